"""The knobs of the bazaar."""

from dataclasses import dataclass

from metaguide.data.bazaar_words import vocabularies


@dataclass(frozen=True)
class BazaarSettings:
    """The knobs of the bazaar.

    Attributes:
        seed: where all chance comes from; not negative.
        domains: names out of `vocabularies()`. A domain is the same whichever others there are.
        categories: of a domain, 1 to 8.
        products: of a category.
        reviews: of a domain.
        questions: of a domain.
        users: of a domain.
        interactions: least and most of a user, each with another product.
        chinese: share of the products, with their reviews and questions, that are in Chinese.
        shared: what domains have in common. The chance that a word of praise or blame, a taste
            word, the colour that a taste goes for, a question's attribute and its phrasing come
            from the stock of all domains, not from the domain's own. 0: nothing; 1: all.
        private_sentiment: how many words of praise, and how many of blame, a domain has of its
            own; beyond its lexicon, words are invented.
        private_attributes: how many attributes a domain has of its own, 2 or 4.
        named: share of the products whose text has the name of the category.
        borrowed: chance that a feature of a product is typical of another category.
        negation: chance that a judgement is put as the negation of its opposite.
        contrast: share of the reviews that weigh a point for against a point against.
        label_noise: share of the reviews whose stars contradict their text.
        picture_noise: see `render`.
        unanswerable: share of the questions to which their passage has no answer.
        distractors: chance that a passage has a value of the same type as the one asked for.
        taste: how much a user's choice follows their taste; 0 is not at all.
        popularity: how much all users' choices follow one order of the products.
    """

    seed: int = 0
    domains: tuple[str, ...] = tuple(vocabularies())
    categories: int = 8
    products: int = 20
    reviews: int = 240
    questions: int = 160
    users: int = 120
    interactions: tuple[int, int] = (12, 16)
    chinese: float = 0.25
    shared: float = 0.7
    private_sentiment: int = 4
    private_attributes: int = 4
    named: float = 0.4
    borrowed: float = 0.4
    negation: float = 0.15
    contrast: float = 0.22
    label_noise: float = 0.04
    picture_noise: float = 0.5
    unanswerable: float = 0.3
    distractors: float = 0.6
    taste: float = 1.4
    popularity: float = 0.7

    def __post_init__(self) -> None:
        for name in (
            *("chinese", "shared", "named", "borrowed", "negation", "contrast", "label_noise"),
            *("picture_noise", "unanswerable", "distractors"),
        ):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"bazaar: {name}={getattr(self, name)}; give a number in [0, 1].")
        for name in ("seed", "reviews", "questions", "users", "private_sentiment", "taste"):
            if getattr(self, name) < 0:
                raise ValueError(f"bazaar: {name}={getattr(self, name)}; it must not be negative.")
        unknown = [name for name in self.domains if name not in vocabularies()]
        if unknown or not self.domains:
            raise ValueError(
                f"bazaar: domains={self.domains}; choose out of {', '.join(vocabularies())}."
            )
        if not 1 <= self.categories <= 8 or self.products < 1:
            raise ValueError(
                f"bazaar: categories={self.categories}, products={self.products}; give 1 to 8 "
                "categories of at least one product."
            )
        if self.private_attributes not in (2, 4):
            raise ValueError(f"bazaar: private_attributes={self.private_attributes}; give 2 or 4.")
        if self.private_sentiment < 1 or self.private_sentiment > 100:
            raise ValueError(
                f"bazaar: private_sentiment={self.private_sentiment}; give 1 to 100 words."
            )
        low, high = self.interactions
        if not 1 <= low <= high <= self.categories * self.products:
            raise ValueError(
                f"bazaar: interactions={self.interactions}; give the least and the most, from 1 to "
                f"the {self.categories * self.products} products of a domain."
            )
