"""Texts of the bazaar: products, reviews and questions, composed of its words."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np

from metaguide.data.bazaar_settings import BazaarSettings
from metaguide.data.bazaar_words import (
    AGREEMENTS,
    CHOICES,
    CLOSERS,
    COLOURS,
    CONTRASTS,
    FILLERS,
    MILD,
    NEGATIONS,
    SHARED_ASPECTS,
    SHARED_ATTRIBUTES,
    SHARED_BLAME,
    SHARED_CARRIERS,
    SHARED_PRAISE,
    SHARED_TASTES,
    STATEMENTS,
    STRONG,
    Vocabulary,
)

T = TypeVar("T")

Sides = tuple[Sequence[str], Sequence[str]]
"""Words of praise, words of blame."""

_GAP = {"en": " ", "zh": ""}
_SYLLABLES = {
    "en": tuple(a + b for a in "bdfgklmnprstvz" for b in "aeiou"),
    "zh": tuple("阿贝卡迪伊法吉赫杰克拉米纳奥帕奇鲁斯图维"),
}


def pick(rng: np.random.Generator, choices: Sequence[T]) -> T:
    """Return one of `choices`, drawn uniformly."""
    return choices[int(rng.integers(len(choices)))]


def own_sentiment(words: Vocabulary, language: str, number: int, count: int) -> Sides:
    """Return `count` words of praise, and of blame, that only domain `number` has."""
    praise, blame = words.positive[language], words.negative[language]
    return (
        praise[:count] + _invented(language, 2 * number, count - len(praise)),
        blame[:count] + _invented(language, 2 * number + 1, count - len(blame)),
    )


def _invented(language: str, block: int, count: int) -> tuple[str, ...]:
    """Return words of three syllables, which depend only on the block and differ between blocks."""
    syllables = _SYLLABLES[language]
    base = len(syllables)
    # A stride coprime to every base scatters neighbours; 8,000 words hold 20 blocks of 100.
    codes = ((block * 100 + word) * 3_677 % base**3 for word in range(count))
    return tuple(
        "".join(syllables[code // base**place % base] for place in range(3)) for code in codes
    )


def product_text(
    words: Vocabulary,
    category: int,
    language: str,
    told: Sequence[bool],
    brand: str,
    colour: str,
    settings: BazaarSettings,
    rng: np.random.Generator,
) -> tuple[str, str, str]:
    """Compose the text of a product.

    Args:
        words: the domain's own words.
        category: number of the category.
        language: "en" or "zh".
        told: for each of `TASTES`, whether the text has a word for it.
        brand: the brand as written.
        colour: one of `COLOURS`.
        settings: the knobs.
        rng: source of randomness.

    Returns:
        (noun, title, description)
    """
    kind = words.categories[category]
    chance = rng.random()
    if chance < settings.named:
        noun = kind.names[language]
    elif chance < settings.named + 0.6 * (1 - settings.named):
        noun = pick(rng, kind.nouns[language])
    else:
        noun = words.noun[language]
    features: list[str] = []
    while len(features) < 2:
        borrowed = rng.random() < settings.borrowed
        source = pick(rng, words.categories[: settings.categories]) if borrowed else kind
        feature = pick(rng, source.features[language])
        if feature not in features:
            features.append(feature)
    stocks = (words.tastes[language], SHARED_TASTES[language])
    tastes = [
        stocks[int(rng.random() < settings.shared)][meaning]
        for meaning, tell in enumerate(told)
        if tell
    ]
    tastes = [tastes[k] for k in rng.permutation(len(tastes))]
    lead = tastes.pop() if tastes else ""
    choice = CHOICES[language][min(len(tastes), 2)].format(
        *tastes, article="An" if tastes and tastes[0][0] in "aeiou" else "A"
    )
    if language == "zh":
        title = f"{brand} {lead}{COLOURS[colour][0]}{noun}"
        return noun, title, f"带{features[0]}和{features[1]}。{choice}"
    title = " ".join(part for part in (brand, lead, colour, noun) if part)
    return noun, title, f"With {features[0]} and {features[1]}. {choice}"


def review_text(
    words: Vocabulary,
    own: Sides,
    language: str,
    noun: str,
    stars: int,
    settings: BazaarSettings,
    rng: np.random.Generator,
) -> str:
    """Compose a review.

    Args:
        words: the domain's own words.
        own: the domain's own words of praise and blame.
        language: "en" or "zh".
        noun: noun for the product.
        stars: rating that the text expresses, 1 to 5. Above 3 the main point is in favour of the
            product, below against it, and strongly so at 5 and 1; at 3 there is a mild point for
            it and one against.
        settings: the knobs.
        rng: source of randomness.

    Returns:
        The review.
    """
    good = stars > 3 if stars != 3 else rng.random() < 0.5
    strong = stars in (1, 5)
    topics = _topics(words, language, settings, rng)
    main = _judgement(topics[0], own, language, good, strong, settings, rng)
    chance = rng.random()
    alone = False
    if stars == 3 or chance < settings.contrast:
        minor = _judgement(topics[1], own, language, not good, False, settings, rng)
        body = pick(rng, CONTRASTS[language]).format(main=main, minor=minor)
    elif chance < settings.contrast + 0.5 * (1 - settings.contrast):
        second = _judgement(topics[1], own, language, good, strong, settings, rng)
        body = pick(rng, AGREEMENTS[language]).format(first=main, second=second)
    else:
        alone = True
        body = main + {"en": ".", "zh": "。"}[language]
    sentences = [body[0].upper() + body[1:]]
    if stars != 3 and rng.random() < 0.35 * settings.shared:
        sentences.append(pick(rng, CLOSERS[language][0 if good else 1]))
    if alone or rng.random() < 0.3:
        filler = pick(rng, FILLERS[language]).format(n=noun)
        sentences.insert(int(rng.integers(2)), filler)
    return _GAP[language].join(sentences)


def _topics(
    words: Vocabulary, language: str, settings: BazaarSettings, rng: np.random.Generator
) -> list[tuple[bool, str]]:
    """Return two aspects, each with whether it is judged in words that all domains share."""
    own = words.aspects[language]
    aspects = [own[k] for k in rng.permutation(len(own))[:2]]
    common = tuple(SHARED_ASPECTS[language])
    shared = [common[k] for k in rng.permutation(len(common))[:2]]
    topics = []
    for one, other in zip(aspects, shared, strict=True):
        is_shared = bool(rng.random() < settings.shared)
        topics.append((is_shared, other if is_shared and rng.random() < 0.6 else one))
    return topics


def _judgement(
    topic: tuple[bool, str],
    own: Sides,
    language: str,
    good: bool,
    strong: bool,
    settings: BazaarSettings,
    rng: np.random.Generator,
) -> str:
    shared, aspect = topic
    negated = rng.random() < settings.negation
    side = 0 if good != negated else 1
    stock = (SHARED_PRAISE, SHARED_BLAME)[side][language] if shared else own[side]
    special = SHARED_ASPECTS[language].get(aspect)
    if special and rng.random() < 0.6:
        stock = special[side]
    word = pick(rng, stock)
    if negated:
        word = pick(rng, NEGATIONS[language]).format(w=word)
    else:
        degree = pick(rng, (STRONG if strong else MILD)[language])
        word = f"{degree}{_GAP[language]}{word}"
    return pick(rng, STATEMENTS[language]).format(a=aspect, w=word)


def question_text(
    words: Vocabulary,
    language: str,
    facts: Mapping[str, str],
    settings: BazaarSettings,
    rng: np.random.Generator,
) -> tuple[str, str, tuple[int, int] | None]:
    """Compose a question and its passage.

    Args:
        words: the domain's own words.
        language: "en" or "zh".
        facts: known values of attributes, keyed by the attribute's English name.
        settings: the knobs.
        rng: source of randomness.

    Returns:
        (question, passage, half-open character span of the answer or None)
    """
    shared = rng.random() < settings.shared
    private = words.attributes[: settings.private_attributes]
    everything = (*SHARED_ATTRIBUTES, *private)
    start, stock = (0, SHARED_ATTRIBUTES) if shared else (len(SHARED_ATTRIBUTES), private)
    asked = start + int(rng.integers(len(stock)))
    # Attributes 2k and 2k + 1 have values of one type.
    partner = asked ^ 1
    told = [] if rng.random() < settings.unanswerable else [asked]
    answerable = bool(told)
    if rng.random() < settings.distractors:
        told.append(partner)
    others = [k for k in range(len(everything)) if k not in (asked, partner)]
    size = 4 + int(rng.random() < 0.4)
    told += [others[k] for k in rng.permutation(len(others))[: size - len(told)]]

    values: dict[int, str] = {}
    for number in told:
        attribute = everything[number]
        taken = values.get(number ^ 1)
        free = [value for value in attribute.values[language] if value != taken]
        known = facts.get(attribute.name)
        values[number] = known if known and known != taken else pick(rng, free)
    passage, answer = "", None
    for number in (told[k] for k in rng.permutation(len(told))):
        before, _, after = pick(rng, everything[number].sentences[language]).partition("{v}")
        passage += _GAP[language] if passage else ""
        begin = len(passage) + len(before)
        passage += before + values[number] + after
        if number == asked and answerable:
            answer = (begin, begin + len(values[number]))
    question = pick(rng, everything[asked].questions[language])
    if not shared:
        own = rng.random() >= settings.shared
        carriers = (words.carriers if own else SHARED_CARRIERS)[language]
        question = pick(rng, carriers).format(a=question)
    return question, passage, answer
