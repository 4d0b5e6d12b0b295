"""The bazaar: a generated shopping world, for machines without a catalogue.

Each domain has products with pictures, reviews, questions and users, in English and Chinese. One
knob sets how much the domains share, others how much is private to each, so that transfer between
domains is real, partial and measurable.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from metaguide.data.bazaar_pictures import render
from metaguide.data.bazaar_settings import BazaarSettings
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

__all__ = ["BazaarSettings", "generate"]


def generate(settings: BazaarSettings) -> dict[str, Domain]:
    """Generate the world.

    Args:
        settings: the knobs; the world is a pure function of them.

    Returns:
        The domains keyed by name, in the order of `settings.domains`.
    """
    return {name: _domain(name, settings) for name in settings.domains}


class _Item(NamedTuple):
    """A product and its hidden properties."""

    product: Product
    category: int
    language: str
    noun: str
    quality: float
    taste: np.ndarray  # [7]: price, classic, modern, playful, eco, warm colour, dear brand


def _domain(name: str, settings: BazaarSettings) -> Domain:
    words = vocabularies()[name]
    number = list(vocabularies()).index(name)
    # One random stream per part, so that asking for more reviews does not change the products.
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
    # The domain's own order of colours (the first four suit a warm taste), for the unshared part.
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
        # Low price, high price, classic, modern, playful, eco: which hold, and which are told.
        holds = [price < 0, price > 0, *(style == k for k in range(3)), eco]
        told = [bool(flag and rng.random() < 0.85) for flag in holds]
        brand = pick(rng, words.brands[2:] if dear else words.brands[:2])
        noun, title, description = product_text(
            words, category, language, told, brand, colour, settings, rng
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
    known = ("colour", "material", "price")
    facts: dict[str, str] = dict(zip(known, attributes.values(), strict=True))
    question, text, answer = question_text(words, item.language, facts, settings, rng)
    return Question(name, question, text, answer, item.product.id)


def _interactions(
    items: tuple[_Item, ...], settings: BazaarSettings, rng: np.random.Generator
) -> tuple[Interaction, ...]:
    """Draw users' products without replacement by softmax(taste · product + popularity)."""
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
        # The largest Gumbel-perturbed utilities are a softmax draw without replacement. They are
        # shuffled, since their order is by liking, which the times must not reveal.
        chosen = rng.permutation(np.argsort(-(utility + rng.gumbel(size=len(items))))[:count])
        times = rng.uniform(0, 300) + np.cumsum(rng.exponential(3.0, count) + 0.01)
        interactions += [
            Interaction(f"u{number:04d}", items[row].product.id, round(float(time), 2))
            for row, time in zip(chosen, times, strict=True)
        ]
    return tuple(interactions)
