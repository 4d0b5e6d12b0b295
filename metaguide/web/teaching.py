"""Lessons: adapting a guide further, measured on examples that it is not taught."""

import hashlib
import json
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from metaguide.data.catalogue import Product, Question, Review
from metaguide.guide import AdaptedGuide
from metaguide.methods import NOTHING, adaptation_of
from metaguide.scoring import answer_scores


class Outcome(NamedTuple):
    """An example of a lesson.

    Attributes:
        held_back: whether it was measured on, and not taught.
        before: whether it was answered rightly before; None if it was not asked, or not answered.
        after: the same, after.
    """

    held_back: bool
    before: bool | None = None
    after: bool | None = None


class Lesson(NamedTuple):
    """What came of a lesson.

    Attributes:
        guide: the guide that adapted further.
        outcomes: one for each example.
        notes: what could not be adapted to, and what else to know.
    """

    guide: AdaptedGuide
    outcomes: tuple[Outcome, ...]
    notes: tuple[str, ...]


def content_id(*parts: str | Mapping[str, str]) -> str:
    """Return an id that texts have in every lesson, so that a new label replaces the old one."""
    content = json.dumps(parts, sort_keys=True, ensure_ascii=True)
    return "taught-" + hashlib.sha256(content.encode()).hexdigest()[:24]


def held_back(
    labels: Sequence[Hashable],
    marks: Sequence[bool | None],
    is_known: Sequence[bool],
    seed: int,
) -> list[bool]:
    """Draw the examples to measure on: half of those without a mark, balanced over labels.

    Args:
        labels: label of each example.
        marks: whether it is held back, if that is given.
        is_known: whether the guide has adapted to it before. It can measure nothing then, and is
            not drawn.
        seed: seed of the draw.

    Returns:
        Whether each is held back. Of every label at least one is taught, if any can be.
    """
    held = [mark is True for mark in marks]
    order = np.random.default_rng(seed).permutation(len(labels)).tolist()
    left = Counter(label for label, one in zip(labels, held, strict=True) if not one)
    free = [row for row in order if marks[row] is None and not is_known[row]]
    for _ in range(len(free) // 2):
        able = [row for row in free if left[labels[row]] > 1]
        if not able:
            break
        row = max(able, key=lambda row: left[labels[row]])
        held[row] = True
        left[labels[row]] -= 1
        free.remove(row)
    return held


def label_of(example: Product | Review | Question) -> Hashable:
    """Return the label of an example, by which a draw is balanced."""
    if isinstance(example, Question):
        return example.answer is not None
    return example.category if isinstance(example, Product) else example.sentiment


def is_right(example: Product | Review | Question, answer: Any) -> bool:
    """Return whether a prediction is the example's label; answers are compared by SQuAD's rule."""
    if isinstance(example, Product):
        return answer.category == example.category
    if isinstance(example, Review):
        return answer.sentiment == example.sentiment
    exact, _ = answer_scores(answer.text or "", example.golds)
    return exact == 1.0


def lesson(
    guide: AdaptedGuide,
    task: str,
    examples: Sequence[Product | Review | Question],
    held: Sequence[bool],
) -> Lesson:
    """Adapt a guide further to the examples that are not held back, and measure on the others.

    Args:
        guide: the guide, which does not change.
        task: the task of the examples.
        examples: labelled examples, without repeats.
        held: whether each is held back.

    Raises:
        ValueError: the guide cannot adapt to an example.
    """
    after = guide.adapt([one for one, is_held in zip(examples, held, strict=True) if not is_held])
    notes, known = after.notes.get(task, ()), adapted_to(guide, task)
    asked = [one for one, is_held in zip(examples, held, strict=True) if is_held]
    if adaptation_of(method := guide.guide.serving[task].method) is NOTHING:
        notes = (*notes, f"{task} is served by {method}, which learns nothing from examples")
    if seen := sum(one.id in known for one in asked):
        notes = (*notes, f"the guide had adapted to {seen} of the examples held back before")
    answers = zip(_are_right(guide, task, asked), _are_right(after, task, asked), strict=True)
    outcomes = [Outcome(True, *next(answers)) if is_held else Outcome(False) for is_held in held]
    return Lesson(after, tuple(outcomes), notes)


def adapted_to(guide: AdaptedGuide, task: str) -> frozenset[str]:
    """Return the ids of the examples that a guide adapted to."""
    return frozenset(guide.adapted[task].chosen if task in guide.adapted else ())


def _are_right(guide: AdaptedGuide, task: str, examples: Sequence[Any]) -> Sequence[bool | None]:
    """Return whether each is answered rightly; None for each if the task is not answered."""
    if task not in guide.adapted or not examples:
        return [None] * len(examples)
    answers = guide.predict([unlabelled(one) for one in examples])
    return [is_right(*pair) for pair in zip(examples, answers, strict=True)]


def unlabelled(example: Product | Review | Question) -> Product | Review | Question:
    """Return an example as it is predicted."""
    if isinstance(example, Product):
        return replace(example, category=None)
    if isinstance(example, Review):
        return replace(example, stars=None, sentiment=None)
    return replace(example, answer=None, others=())
