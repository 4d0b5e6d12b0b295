"""The bazaar: a generated shopping world, the catalogue of a machine that has none.

Each domain has products with pictures, reviews, questions and users, in English and Chinese.
What domains share is one knob, what is private to each are others, so that transfer between
domains is real, partial and measurable.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from metaguide.data.bazaar_pictures import render
from metaguide.data.bazaar_texts import (
    Sides,
    own_sentiment,
    pick,
    product_text,
    question_text,
    review_text,
)
from metaguide.data.bazaar_words import (
    COLOURS,
    LANGUAGES,
    MATERIALS,
    PRICES,
    Vocabulary,
    vocabularies,
)
from metaguide.data.catalogue import Domain, Interaction, Product, Question, Review


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
    private_sentiment: int = 6
    private_attributes: int = 4
    named: float = 0.4
    borrowed: float = 0.4
    negation: float = 0.25
    contrast: float = 0.3
    label_noise: float = 0.04
    picture_noise: float = 0.5
    unanswerable: float = 0.3
    distractors: float = 0.6
    taste: float = 1.0
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


def generate(settings: BazaarSettings) -> dict[str, Domain]:
    """Generates the world.

    Args:
        settings: the knobs; the world is a pure function of them.

    Returns:
        The domains by name, in the order of `settings.domains`.
    """
    return {name: _domain(name, settings) for name in settings.domains}


class _Item(NamedTuple):
    """A product with what is hidden of it."""

    product: Product
    category: int
    language: str
    noun: str
    quality: float
    taste: np.ndarray  # [7]: price, classic, modern, playful, eco, warm colour, dear brand


def _domain(name: str, settings: BazaarSettings) -> Domain:
    words = vocabularies()[name]
    number = list(vocabularies()).index(name)
    # A stream for each part: asking for more reviews leaves the products as they are.
    products, reviews, questions, users = (
        np.random.default_rng([settings.seed, number, part]) for part in range(4)
    )
    items = _items(words, settings, products)
    own = {
        language: own_sentiment(words, language, number, settings.private_sentiment)
        for language in LANGUAGES
    }
    return Domain(
        name=name,
        products=tuple(item.product for item in items),
        reviews=tuple(
            _review(f"r{row:04d}", words, own, pick(reviews, items), settings, reviews)
            for row in range(settings.reviews)
        ),
        questions=tuple(
            _question(f"q{row:04d}", words, pick(questions, items), settings, questions)
            for row in range(settings.questions)
        ),
        interactions=_interactions(items, settings, users),
    )


def _items(
    words: Vocabulary, settings: BazaarSettings, rng: np.random.Generator
) -> tuple[_Item, ...]:
    count = settings.categories * settings.products
    chinese = rng.permutation(count) < round(settings.chinese * count)
    # Which colours a warm taste goes for here, in the place of the order that all domains share.
    own_colours = [list(COLOURS)[k] for k in rng.permutation(len(COLOURS))]
    items = []
    for row in range(count):
        language = LANGUAGES[int(chinese[row])]
        category = row % settings.categories
        price = int(rng.integers(-1, 2))
        style, eco, warm = int(rng.integers(3)), rng.random() < 0.4, rng.random() < 0.5
        dear = rng.random() < (0.2, 0.5, 0.8)[price + 1]
        order = list(COLOURS) if rng.random() < settings.shared else own_colours
        colour = pick(rng, order[:4] if warm else order[4:])
        material = pick(rng, words.materials)
        # Of low price, high price, classic, modern, playful, eco: what holds and is told.
        holds = [price < 0, price > 0, *(style == k for k in range(3)), eco]
        told = [bool(flag and rng.random() < 0.85) for flag in holds]
        brand = pick(rng, words.brands[2:] if dear else words.brands[:2])
        noun, title, description = product_text(
            words, category, language, told, brand, colour, material, settings, rng
        )
        cost = pick(rng, PRICES[4 * (price + 1) : 4 * (price + 2)])
        facts = {
            "en": {"colour": colour, "material": material, "price": f"{cost} dollars"},
            "zh": {"颜色": COLOURS[colour][0], "材质": MATERIALS[material], "价格": f"{cost}元"},
        }[language]
        name = words.categories[category].name
        image = render(name, colour, material, settings.picture_noise, rng)
        signs = [price, *(float(style == k) for k in range(3)), eco, 2 * warm - 1, 2 * dear - 1]
        items.append(
            _Item(
                Product(f"p{row:04d}", title, description, name, facts, image),
                category,
                language,
                noun,
                float(rng.normal()),
                np.array(signs, float),
            )
        )
    return tuple(items)


def _review(
    name: str,
    words: Vocabulary,
    own: Mapping[str, Sides],
    item: _Item,
    settings: BazaarSettings,
    rng: np.random.Generator,
) -> Review:
    liking = 0.6 * item.quality + 0.8 * rng.normal()
    stars = 1 + int(np.searchsorted((-0.9, -0.25, 0.1, 0.85), liking))
    told = 6 - stars if rng.random() < settings.label_noise else stars
    text = review_text(words, own[item.language], item.language, item.noun, told, settings, rng)
    return Review(name, text, stars=float(stars), product=item.product.id)


def _question(
    name: str, words: Vocabulary, item: _Item, settings: BazaarSettings, rng: np.random.Generator
) -> Question:
    attributes = item.product.attributes
    facts = dict(zip(("colour", "material", "price"), attributes.values(), strict=True))
    question, text, answer = question_text(words, item.language, facts, settings, rng)
    return Question(name, question, text, answer, item.product.id)


def _interactions(
    items: tuple[_Item, ...], settings: BazaarSettings, rng: np.random.Generator
) -> tuple[Interaction, ...]:
    """Users choose without replacement by softmax(taste · product + popularity)."""
    traits = np.stack([item.taste for item in items])
    traits = (traits - traits.mean(0)) / (traits.std(0) + 1e-6)
    quality = np.array([item.quality for item in items])
    popular = settings.popularity * (0.6 * quality + 0.8 * rng.normal(size=len(items)))
    kinds = np.array([item.category for item in items])
    interactions = []
    for number in range(settings.users):
        wants = rng.normal(size=traits.shape[1]) / np.sqrt(traits.shape[1])
        leaning = 0.5 * rng.normal(size=settings.categories)
        utility = popular + settings.taste * (2 * traits @ wants + leaning[kinds])
        count = int(rng.integers(settings.interactions[0], settings.interactions[1] + 1))
        # The largest of Gumbel-perturbed utilities: a draw by softmax without replacement. Their
        # order is by liking, which time must not tell.
        chosen = rng.permutation(np.argsort(-(utility + rng.gumbel(size=len(items))))[:count])
        times = rng.uniform(0, 300) + np.cumsum(rng.exponential(3.0, count) + 0.01)
        interactions += [
            Interaction(f"u{number:04d}", items[row].product.id, round(float(time), 2))
            for row, time in zip(chosen, times, strict=True)
        ]
    return tuple(interactions)
