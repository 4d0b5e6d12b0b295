"""Answers as spans of a text: what they are, how they are scored, and what finds them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from metaguide.data.catalogue import Domain, Question
from metaguide.data.encoding import Table
from metaguide.models.guide import GuideModel
from metaguide.tasks.serving import Reading
from metaguide.types import Batch, Problem

NAME = "questions"


class Answer(NamedTuple):
    """An answer and its character span in the passage; both are None if there is no answer."""

    span: tuple[int, int] | None
    text: str | None


class Answering(NamedTuple):
    """A way to find answers.

    Attributes:
        examples: (domain, reading) -> its questions that can be asked, without repeats.
        rows: (questions, reading, name of the domain for messages) -> their arrays.
        problem: (model, reading) -> the problem that predicts from these.
        answers: (outputs of `predict`, questions, reading) -> an answer each.
    """

    examples: Callable[[Domain, Reading], list[Question]]
    rows: Callable[[Sequence[Question], Reading, str], Table]
    problem: Callable[[GuideModel, Reading], Problem]
    answers: Callable[[Mapping[str, np.ndarray], Sequence[Question], Reading], list[Answer]]


def score_spans(outputs: Mapping[str, Array], query: Batch, context: Any) -> dict[str, Array]:
    """Return `em` and `f1` of each answer, `answerable` and `finite`.

    The query's `em` and `f1` hold the scores of all possible answers; see `question_rows`. Span
    scores that are not finite give no prediction, not even "no answer": `em` and `f1` are 0.
    """
    del context
    first, last, finite = outputs["start"], outputs["end"], outputs["finite"]
    answerable = query["start"].reshape(len(first), -1).max(1) > 0

    def score(table: Array) -> Array:
        table = table.reshape(len(first), -1, *table.shape[-2:])
        said = table[jnp.arange(len(first)), outputs["window"], first, last - first]
        worth = jnp.where(first > 0, said.astype(jnp.float32), (~answerable).astype(jnp.float32))
        return jnp.where(finite, worth, 0)

    return {
        "em": score(query["em"]),
        "f1": score(query["f1"]),
        "answerable": answerable,
        "finite": finite,
        "mask": query["mask"],
        "id": query["id"],
    }
