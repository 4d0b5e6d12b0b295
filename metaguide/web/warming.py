"""Doing what a guide's first answers and lessons need before a user asks, so that nobody waits."""

from collections.abc import Iterable, Sequence
from typing import Any

from metaguide.data.catalogue import Product, Question, Review
from metaguide.data.histories import History
from metaguide.guide import AdaptedGuide
from metaguide.tasks import Reading
from metaguide.training.program import SIZES, padded_size, power_of_two

MOST_WINDOWS = 16
"""The most windows of a passage for which programs are compiled; longer passages are rare."""


def warm(guide: AdaptedGuide, tasks: Iterable[str], most: int) -> None:
    """Compile the programs of tasks for every padded number of up to `most` examples."""
    for task in tasks:
        for example in _samples(guide, task):
            for size in sorted({1, *SIZES}):
                if size <= padded_size(most):
                    guide.predict([example] * size)


def warm_lessons(guide: AdaptedGuide) -> None:
    """Adapt every task to its own examples again, which compiles and encodes what lessons need.

    A pretrained encoder, which remembers the vectors of these texts, may take half a minute.
    """
    for one in guide.adapted.values():
        if one.support:
            guide.adapt(one.support[:1])


def _samples(guide: AdaptedGuide, task: str) -> Sequence[Any]:
    """Return examples of a task that differ in the program which answers them."""
    if task == "classification":
        return (Product("", "good"),)
    if task == "sentiment":
        return (Review("", "good"),)
    if task == "questions":
        return _questions(guide.guide.reading)
    ids = tuple(one.id for one in guide.domain.products)
    return History("", ids[:1]), History("", ids[:20])


def _questions(reading: Reading) -> list[Question]:
    """Return a question for each padded number of windows of its passage, up to the most."""
    if reading.reader.tokenizer is None:
        return [Question("", "a", "a")]
    found: dict[int, Question] = {}
    words = 1
    while True:
        asked = Question("", "a", "a " * words)
        pair = [asked.question], [asked.text]
        windows = reading.tokenizer.encode_pairs(*pair, reading.lengths.pair).tokens.shape[1]
        if windows > MOST_WINDOWS:
            return list(found.values())
        found.setdefault(power_of_two(windows), asked)
        words += 1 + words // 4  # in smaller steps than those between two numbers of windows
