"""The knobs of the bazaar."""

from dataclasses import dataclass

from metaguide.data.bazaar_words import vocabularies


@dataclass(frozen=True)
class BazaarSettings:
    """The knobs of the bazaar.

    Attributes:
        seed: seed of all randomness; not negative.
        domains: names out of `vocabularies()`. A domain does not depend on which others there are.
        categories: number of categories per domain, 1 to 8.
        products: number of products per category.
        reviews: number of reviews per domain.
        questions: number of questions per domain.
        users: number of users per domain.
        interactions: least and most interactions per user, each with a different product.
        chinese: share of the products, with their reviews and questions, that are in Chinese.
        shared: how much the domains have in common: the probability that a word of praise or
            blame, a taste word, the colour that suits a taste, a question's attribute or its
            phrasing comes from the common stock rather than the domain's own. 0: nothing; 1: all.
        private_sentiment: number of private words of praise per domain, and as many of blame; if
            its lexicon has fewer, words are invented.
        private_attributes: number of private attributes per domain, 2 or 4.
        named: share of the products whose text contains the name of the category.
        borrowed: probability that a feature of a product is drawn from any of the categories.
        negation: probability that a judgement is phrased as the negation of its opposite.
        contrast: share of the reviews that have both a point for and one against the product.
        label_noise: share of the reviews whose stars contradict their text.
        picture_noise: noise of the pictures; see `render`.
        unanswerable: share of the questions whose passage has no answer.
        distractors: probability that a passage also has a value of the same type as the answer.
        taste: how much a user's choices follow their taste; 0 means not at all.
        popularity: how much all users' choices follow a common order of the products.
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
                f"bazaar: domains={self.domains}; choose from {', '.join(vocabularies())}."
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
