"""Predictions by programs of few shapes, so that no user waits for one to be compiled.

The arrays of a batch are as wide as its longest text: n-grams have a column for each of them, and
passages a row for each window. Every width is another program. So a batch is answered together with
one more example, whose text fills the width of all others, or the next power of two; its own answer
is dropped.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from metaguide.data.catalogue import Product, Question, Review
from metaguide.data.histories import History
from metaguide.data.ngrams import MOST
from metaguide.guide import AdaptedGuide
from metaguide.tasks import Reading
from metaguide.training.program import SIZES, padded_size

WINDOWS_AT_ONCE = 1024
"""The most windows of a batch of passages, which bounds memory."""

WARM_WINDOWS = (1, 2, 4, 8, 16)
"""Numbers of windows that are compiled before a user asks; longer passages are rare."""

_FULL = " ".join(f"word{number}" for number in range(MOST))
"""A text that has as many n-grams as are read."""


def predict(guide: AdaptedGuide, examples: Sequence[Any], top: int | None = None) -> list[Any]:
    """Return what `guide.predict` answers.

    Args:
        guide: the guide.
        examples: examples of one task, at least one.
        top: number of products of a ranking.
    """
    if not isinstance(examples[0], Question):
        more = _companion(guide, examples[0])
        return guide.predict([*examples, *more], top)[: len(examples)]
    reading, answers = guide.guide.reading, {}
    rows_of: dict[int, list[int]] = {}
    for row, one in enumerate(examples):
        rows_of.setdefault(_power(_windows(reading, one)), []).append(row)
    for windows, rows in rows_of.items():
        companion = [] if windows == 1 else [_passage(reading, windows)]
        most = max(1, WINDOWS_AT_ONCE // windows - len(companion))
        for start in range(0, len(rows), most):
            part = rows[start : start + most]
            found = guide.predict([*(examples[row] for row in part), *companion])
            answers.update(zip(part, found, strict=False))  # the companion's is left out
    return [answers[row] for row in range(len(examples))]


def warm(guide: AdaptedGuide, tasks: Iterable[str], most: int) -> None:
    """Compile the programs of tasks for every padded number of up to `most` examples."""
    # The companion is one of them.
    sizes = [size - 1 for size in SIZES if size <= padded_size(most + 1)]
    for task in tasks:
        for example in _samples(guide, task):
            for size in sizes:
                predict(guide, [example] * size, None)


def _samples(guide: AdaptedGuide, task: str) -> Sequence[Any]:
    """Return examples of a task that differ in the program which answers them."""
    if task == "classification":
        return (Product("", "good"),)
    if task == "sentiment":
        return (Review("", "good"),)
    if task == "questions":
        return [_passage(guide.guide.reading, windows) for windows in WARM_WINDOWS]
    ids = tuple(one.id for one in guide.domain.products)
    return History("", ids[:1]), History("", ids[:20])


def _companion(guide: AdaptedGuide, example: Any) -> tuple[Any, ...]:
    # Without n-grams all rows have one width, and a long text may be dear to encode.
    if not guide.guide.reading.reader.buckets or isinstance(example, History):
        return ()
    return (Product("", _FULL) if isinstance(example, Product) else Review("", _FULL),)


def _windows(reading: Reading, question: Question) -> int:
    """Return the number of windows of a passage."""
    pair = [question.question], [question.text]
    return reading.tokenizer.encode_pairs(*pair, reading.lengths.pair).tokens.shape[1]


@lru_cache(maxsize=64)
def _passage(reading: Reading, windows: int) -> Question:
    """Return a question with a passage of as many windows."""

    def of(words: int) -> Question:
        return Question("", "a", "a " * words)

    most = 1
    while _windows(reading, of(most)) < windows:
        most *= 2
    least = most // 2
    while most - least > 1:
        middle = (least + most) // 2
        if _windows(reading, of(middle)) < windows:
            least = middle
        else:
            most = middle
    return of(most)


def _power(count: int) -> int:
    """Return the smallest power of two that is at least `count`."""
    return 1 << (count - 1).bit_length()
