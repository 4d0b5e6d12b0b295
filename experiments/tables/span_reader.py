"""A reader that finds the answer to a question in a text: a pretrained encoder with a span head.

A text is read in overlapping windows, each with the question. A training step reads one window of
each of its answers: half of the time the one that holds the answer, if there is one, and otherwise
any of the text's.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key
from ml_collections.config_dict import FrozenConfigDict

from experiments.tables.tuned_encoder import TunedGuide, train_tuned, tuned_guide
from metaguide.data.catalogue import Question
from metaguide.data.tokenizer import PAD
from metaguide.pretrained import PretrainedEncoder
from metaguide.tasks import QUESTIONS
from metaguide.tasks.problem import use_head
from metaguide.tasks.question_answering import question_rows, questions
from metaguide.training.step import Gradient
from metaguide.types import Metrics, Params


def reader_of(config: FrozenConfigDict, encoder: PretrainedEncoder) -> TunedGuide:
    """Return the reader that a config describes: of the encoder, the last layers train.

    Raises:
        ConfigError: the encoder has fewer layers than are to train, or fewer positions.
    """
    most = config.max_answer_tokens
    return tuned_guide(
        config, "reader", encoder, QUESTIONS.name, partial(questions, max_answer_tokens=most), most
    )


# ------------------------------------------------------------------------------ training


def windows_of(reader: TunedGuide, answered: Sequence[Question]) -> dict[str, np.ndarray]:
    """Return the windows of questions, and where each question's own are.

    Returns:
        {"tokens": int32 [windows, length], "start", "end": int32 [windows], "first": int32
        [questions], the first window of a question, "count": the number of its windows, "holds":
        the first of them that holds the whole answer, counted from its first; -1 if none does}.
    """
    tokenizer, parts, first, count, holds = reader.encoder.guide_tokenizer, [], [], [], []
    done = 0
    # The longest text determines the number of windows that its table has for each.
    for some in _in_order_of_size(answered, 256):
        rows = question_rows(some, tokenizer, reader.guide.pair_tokens, "sources")
        tokens, start, end = (
            rows[name].reshape(len(some), -1, *rows[name].shape[rows["start"].ndim :])
            for name in ("tokens", "start", "end")
        )
        exists = tokens[..., 0] != PAD
        parts.append((tokens[exists], start[exists], end[exists]))
        of_each = exists.sum(1)
        first += (done + np.cumsum(of_each) - of_each).tolist()
        count += of_each.tolist()
        holds += np.where((start > 0).any(1), (start > 0).argmax(1), -1).tolist()
        done += int(of_each.sum())
    tokens, start, end = (np.concatenate(one) for one in zip(*parts, strict=True))
    numbers = {"first": first, "count": count, "holds": holds}
    arrays = {name: np.array(of, np.int32) for name, of in numbers.items()}
    return {"tokens": tokens, "start": start, "end": end, **arrays}


def _in_order_of_size(answered: Sequence[Question], most: int) -> Iterator[list[Question]]:
    order = sorted(answered, key=lambda one: len(one.text))
    for start in range(0, len(order), most):
        yield order[start : start + most]


def gradient_of(reader: TunedGuide, batch: int) -> Gradient:
    """Return the gradient of the span loss on `batch` windows that are drawn."""

    def gradient(
        meta: Params, data: Any, key: Key[Array, ""], progress: Float[Array, ""]
    ) -> tuple[tuple[Array, Metrics], Params]:
        del progress
        drawing, dropping = jax.random.split(key)
        rows = drawn_windows(data, drawing, batch)
        windows = {name: data[name][rows] for name in ("tokens", "start", "end")}
        windows["mask"] = jnp.ones(batch, bool)

        def loss(meta: Params) -> tuple[Array, Metrics]:
            encoded = reader.problem.encode(meta["params"], windows, None, dropping)
            return reader.problem.loss(meta["params"], encoded, windows, None)

        return jax.value_and_grad(loss, has_aux=True)(meta)

    return gradient


def drawn_windows(data: Mapping[str, Any], key: Key[Array, ""], batch: int) -> Int[Array, " batch"]:
    """Draw windows of `windows_of`, each of a question that is drawn with equal chances."""
    of_question, of_window, of_answer = jax.random.split(key, 3)
    question = jax.random.randint(of_question, (batch,), 0, len(data["first"]))
    count, holds = data["count"][question], data["holds"][question]
    some = jax.random.randint(of_window, (batch,), 0, count)
    is_held = jax.random.bernoulli(of_answer, 0.5, (batch,)) & (holds >= 0)
    return data["first"][question] + jnp.where(is_held, holds, some)


def train_reader(
    config: FrozenConfigDict,
    reader: TunedGuide,
    windows: Mapping[str, Any],
    seed: int,
    folder: Path,
) -> Params:
    """Return the parameters of a trained reader, as `train_tuned` does.

    Args:
        config: the resolved config.
        reader: the reader.
        windows: those of `windows_of` to learn from.
        seed: seed of the training.
        folder: work folder of this training.
    """
    section = config.reader
    steps = max(1, round(section.epochs * len(windows["first"]) / section.batch))
    gradient = gradient_of(reader, section.batch)
    return train_tuned(config, "reader", reader, gradient, windows, steps, seed, folder)


# ------------------------------------------------------------------------------ scores


class Scored(NamedTuple):
    """What a reader says of one question.

    Attributes:
        none: score of giving no answer: the least over the windows.
        spans: half-open character spans of the likeliest answers, the likeliest first.
        scores: of each span, the largest over the windows that hold it.
    """

    none: float
    spans: tuple[tuple[int, int], ...]
    scores: Float[np.ndarray, " spans"]


def scorer_of(
    config: FrozenConfigDict, reader: TunedGuide
) -> Callable[[Params, Sequence[Question]], list[Scored]]:
    """Return (parameters, questions) -> what a reader says of them, in their order.

    Its program is compiled once for all calls.
    """
    ends = jax.jit(partial(_ends, reader))
    most, size, length = config.max_answer_tokens, config.reader.batch, reader.guide.pair_tokens

    def scored(params: Params, asked: Sequence[Question]) -> list[Scored]:
        found: dict[str, Scored] = {}
        for some in _in_order_of_size(asked, 64):
            pairs = [one.question for one in some], [one.text for one in some]
            encoded = reader.encoder.guide_tokenizer.encode_pairs(*pairs, length)
            exists = encoded.tokens[..., 0] != PAD
            tokens, offsets = encoded.tokens[exists], encoded.offsets[exists]
            padded = np.pad(tokens, ((0, -len(tokens) % size), (0, 0)))
            parts = [ends(params, padded[i : i + size]) for i in range(0, len(padded), size)]
            start, end = (np.concatenate(one)[: len(tokens)] for one in zip(*parts, strict=True))
            windows = np.split(np.arange(len(tokens)), np.cumsum(exists.sum(1))[:-1])
            for question, rows in zip(some, windows, strict=True):
                found[question.id] = _likeliest(
                    start[rows], end[rows], offsets[rows], most, config.candidates
                )
        return [found[one.id] for one in asked]

    return scored


def _ends(reader: TunedGuide, params: Params, tokens: Any) -> tuple[Array, Array]:
    """Return the scores of a span's first and last token, each [windows, length]."""
    encoded = reader.problem.encode(params, {"tokens": jnp.asarray(tokens)}, None, None)
    states = encoded["states"]
    return use_head(reader.model, params, QUESTIONS.name, "__call__", states, tokens)


def _likeliest(
    start: Float[np.ndarray, "windows length"],
    end: Float[np.ndarray, "windows length"],
    offsets: Int[np.ndarray, "windows length 2"],
    most_tokens: int,
    candidates: int,
) -> Scored:
    """Return the best spans of all windows of a text.

    Args:
        start, end: scores of the positions; the first is that of giving no answer.
        offsets: half-open character spans of the tokens, -1 outside of the text.
        most_tokens: longest span.
        candidates: how many are returned at most.
    """
    best: dict[tuple[int, int], float] = {}
    length = start.shape[1]
    first, last = np.triu_indices(length)
    near = last - first < most_tokens
    first, last = first[near], last[near]
    for row in range(len(start)):
        inside = offsets[row, :, 0] >= 0
        kept = inside[first] & inside[last]
        score = start[row, first[kept]] + end[row, last[kept]]
        top = np.argsort(-score, kind="stable")[:candidates]
        for place in top:
            span = (
                int(offsets[row, first[kept][place], 0]),
                int(offsets[row, last[kept][place], 1]),
            )
            best[span] = max(best.get(span, -np.inf), float(score[place]))
    order = sorted(best, key=lambda span: -best[span])[:candidates]
    none = float((start[:, 0] + end[:, 0]).min())
    return Scored(none, tuple(order), np.array([best[span] for span in order]))
