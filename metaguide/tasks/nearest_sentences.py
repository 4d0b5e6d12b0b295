"""Answers without training: the sentence of a text whose vector is nearest to the question's."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from metaguide.data.catalogue import Question
from metaguide.data.encoding import Table
from metaguide.data.repeats import distinct_questions
from metaguide.data.sentences import sentences
from metaguide.models.guide import GuideModel
from metaguide.tasks.problem import problem_of
from metaguide.tasks.serving import Reading
from metaguide.tasks.spans import NAME, Answer, Answering, score_spans
from metaguide.types import Batch, Metrics, Params, Problem

Vectors = Callable[[Sequence[str]], np.ndarray]
"""Texts -> float [texts, width], such as `TextReader.vectors`."""

Near = Callable[[Sequence[str], Sequence[str]], np.ndarray]
"""Two lists of as many texts -> float [pairs], how near each text is to that of the other list."""


def nearest_sentences(model: GuideModel) -> Problem:
    """Build question answering by rows of `sentence_rows`, which hold the answer already.

    It has no parameters, and its loss is 0.
    """

    def encode(
        params: Params, batch: Batch, context: Any, key: Key[Array, ""] | None
    ) -> dict[str, Array]:
        del params, context, key
        return {"vector": batch["near"][:, None]}

    def predict(params: Params, encoded: Any, batch: Batch, context: Any) -> dict[str, Array]:
        del params, context
        found = {name: batch[name] for name in ("start", "end")}
        return {**found, "finite": jnp.isfinite(encoded["vector"][:, 0])}

    def loss(params: Params, encoded: Any, batch: Batch, context: Any) -> tuple[Array, Metrics]:
        del params, encoded, batch, context
        return jnp.zeros(()), {}

    found = problem_of(model, NAME, encode, loss, predict, score_spans)
    return found._replace(body=(), head=())


def sentence_rows(questions: Sequence[Question], near: Near) -> Table:
    """Return for each question the sentence of its text that is nearest to it.

    Args:
        questions: the questions.
        near: what says how near two texts are.

    Returns:
        {"start", "end": int32 [questions], the sentence as a half-open span of characters, 0 and 0
        for a text without any; "near": float32 [questions], how near it is, 0 without any}.
    """
    spans = [sentences(one.text) for one in questions]
    pairs = [
        (one.question, one.text[begin:end])
        for one, some in zip(questions, spans, strict=True)
        for begin, end in some
    ]
    values = near([asked for asked, _ in pairs], [told for _, told in pairs]) if pairs else []
    rows = np.zeros((len(questions), 2), np.int32)
    nearest, done = np.zeros(len(questions), np.float32), 0
    for row, some in enumerate(spans):
        if some:
            own = np.asarray(values[done : done + len(some)])
            rows[row], nearest[row] = some[int(own.argmax())], own.max()
            done += len(some)
    return {"start": rows[:, 0], "end": rows[:, 1], "near": nearest}


def cosines(vectors: Vectors) -> Near:
    """Return the cosine of the vectors of two texts; that of a vector of zeros is 0."""

    def near(left: Sequence[str], right: Sequence[str]) -> Float[np.ndarray, " pairs"]:
        texts = list(dict.fromkeys([*left, *right]))
        place = {text: row for row, text in enumerate(texts)}
        found = np.asarray(vectors(texts), np.float32)
        units = found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
        rows = ([place[text] for text in some] for some in (left, right))
        return np.einsum("pw,pw->p", *(units[one] for one in rows))

    return near


def _rows(questions: Sequence[Question], reading: Reading, where: str) -> Table:
    del where
    assert reading.reader.vectors is not None
    return sentence_rows(questions, cosines(reading.reader.vectors))


def _answers(
    outputs: Mapping[str, np.ndarray], asked: Sequence[Question], reading: Reading
) -> list[Answer]:
    del reading
    spans = [(int(a), int(b)) for a, b in zip(outputs["start"], outputs["end"], strict=True)]
    return [
        Answer(span, one.text[slice(*span)]) if span[1] else Answer(None, None)
        for one, span in zip(asked, spans, strict=True)
    ]


BY_SENTENCE = Answering(
    examples=lambda domain, reading: distinct_questions(domain),
    rows=_rows,
    problem=lambda model, reading: nearest_sentences(model),
    answers=_answers,
)
"""The way of a guide that reads nothing but the vectors of a pretrained encoder."""
