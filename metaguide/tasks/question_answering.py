"""Extractive question answering: find the answer to a question in a text, or that it has none.

A guide that reads tokens finds the answer by its head. One that reads nothing but the vectors of a
pretrained encoder answers with the sentence that is nearest to the question.
"""

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from metaguide.data.catalogue import (
    CatalogueError,
    Domain,
    Question,
    checked_example,
    checked_part,
)
from metaguide.data.encoding import Table, labelled_table
from metaguide.data.repeats import distinct_questions
from metaguide.data.tokenizer import PAD, Encoded, TextTokenizer
from metaguide.evaluation import baselines
from metaguide.evaluation.rows import Measures, Scoring
from metaguide.models.guide import GuideModel
from metaguide.models.heads import QuestionHead
from metaguide.objectives.tasks import span_loss, span_predict
from metaguide.scoring import answer_scores
from metaguide.tasks.labelled import Labelled, Labelling, labelled_task, queried_rows
from metaguide.tasks.nearest_sentences import BY_SENTENCE
from metaguide.tasks.problem import encode_examples, problem_of, use_head
from metaguide.tasks.serving import Reading
from metaguide.tasks.spans import NAME, Answer, Answering, score_spans
from metaguide.tasks.task import Outcome
from metaguide.types import Batch, Metrics, Params, Problem


def questions(model: GuideModel, max_answer_tokens: int) -> Problem:
    """Build extractive question answering: the span of the answer, or none.

    Position 0 means "no answer" (Rajpurkar et al. 2018). A long passage comes in several windows,
    tokens [examples, windows, length]. The loss treats each window as an example; within a passage,
    the windows that hold the answer have total weight one, and so do those that do not. The best
    answer of all windows is predicted. If the batch has `id`, as in scoring, ties (including "no
    answer") are broken at random, so that constant scores perform at chance level.
    """

    def encode(
        params: Params, batch: Batch, context: Any, key: Key[Array, ""] | None
    ) -> dict[str, Array]:
        del context
        tokens = batch["tokens"]
        # An answer is found by the words beside it: hidden tokens cost two points of F1 on domains
        # that training has not seen.
        encoding = encode_examples(
            model, params, {"tokens": tokens.reshape(-1, tokens.shape[-1])}, key, hidden=0.0
        )
        vectors = encoding.vector.reshape(len(tokens), -1, encoding.vector.shape[-1])
        exists = (_windows(tokens)[..., 0] != PAD)[..., None].astype(vectors.dtype)
        vector = (exists * vectors).sum(1) / jnp.maximum(exists.sum(1), 1)
        return {"vector": vector, "states": encoding.states.reshape(*tokens.shape, -1)}

    def scores(params: Params, encoded: Any, batch: Batch) -> tuple[Array, Array, Array]:
        states, tokens = encoded["states"], batch["tokens"]
        flat = states.reshape(-1, *states.shape[-2:]), tokens.reshape(-1, tokens.shape[-1])
        start, end = use_head(model, params, NAME, "__call__", *flat)
        windows = _windows(tokens)
        return start.reshape(windows.shape), end.reshape(windows.shape), windows[..., 0] != PAD

    def predict(params: Params, encoded: Any, batch: Batch, context: Any) -> dict[str, Array]:
        del context
        start, end, exists = scores(params, encoded, batch)
        window, first, last = span_predict(start, end, exists, max_answer_tokens, batch.get("id"))
        finite = (jnp.isfinite(start) & jnp.isfinite(end)).all(-1) | ~exists
        return {"window": window, "start": first, "end": last, "finite": finite.all(-1)}

    def loss(params: Params, encoded: Any, batch: Batch, context: Any) -> tuple[Array, Metrics]:
        del context
        start, end, exists = scores(params, encoded, batch)
        first, last = (batch[name].reshape(exists.shape) for name in ("start", "end"))
        weights = None
        if exists.shape[1] > 1:
            holds, lacks = exists & (first > 0), exists & (first == 0)
            several = jnp.where(holds, holds.sum(1, keepdims=True), lacks.sum(1, keepdims=True))
            weights = (1 / jnp.maximum(several, 1).astype(start.dtype)).reshape(-1)
        length, mask = start.shape[-1], exists & batch["mask"][:, None]
        flat = start.reshape(-1, length), end.reshape(-1, length), first.ravel(), last.ravel()
        return span_loss(*flat, mask.ravel(), weights)

    return problem_of(model, NAME, encode, loss, predict, score_spans)


def question_examples(domain: Domain, reading: Reading) -> list[Question]:
    """Return the questions of a domain that can be learned from and asked, without repeats."""
    return _answering(reading).examples(domain, reading)


def _that_fit(domain: Domain, reading: Reading) -> list[Question]:
    """Return the questions, without repeats, whose answer some window is certain to hold.

    The others are left out with a warning.
    """
    questions = distinct_questions(domain)
    tokenizer, length = reading.tokenizer, reading.lengths.pair
    encoded = _pairs(questions, tokenizer, length)
    kept = [
        question
        for row, question in enumerate(questions)
        if question.answer is None or _token_spans(encoded, row, question, domain.name).any()
    ]
    if len(kept) < len(questions):
        ids = {question.id for question in questions} - {question.id for question in kept}
        warnings.warn(
            f"domain {domain.name}: {len(questions) - len(kept)} of {len(questions)} questions are "
            f"left out: their answers are too long for windows of {length} tokens, such as that of "
            f"{min(ids)!r}; mark shorter answers",
            stacklevel=2,
        )
    return kept


def question_rows(
    questions: Sequence[Question],
    tokenizer: TextTokenizer,
    length: int,
    where: str,
    max_answer_tokens: int | None = None,
) -> Table:
    """Return questions as arrays, each with its passage or with windows of the passage.

    Args:
        questions: the questions to encode.
        tokenizer: the tokenizer of the texts.
        length: number of tokens of a question with its passage, or with a window of it.
        where: name of the domain, for errors.
        max_answer_tokens: the most tokens of an answer; if given, `em` and `f1` are returned too.

    Returns:
        {"tokens": int32 [questions, windows, length], "start", "end": int32 [questions, windows],
        "em": bool, "f1": float32 [questions, windows, length, max_answer_tokens]}. `start` and
        `end` (the last token) are positions in the window's tokens; both are 0, the [CLS] token, if
        the window does not hold the whole answer. `em` and `f1` score the answers that begin at a
        position and have 1 to `max_answer_tokens` tokens; see `metaguide.scoring`. The axis of
        windows is left out if every passage fits into one.

    Raises:
        CatalogueError: an answer is blank.
    """
    encoded = _pairs(questions, tokenizer, length)
    spans = np.zeros((*encoded.tokens.shape[:2], 2), np.int32)
    for row, question in enumerate(questions):
        if question.answer is not None:
            spans[row] = _token_spans(encoded, row, question, where)
    rows: Table = {"tokens": encoded.tokens, "start": spans[..., 0], "end": spans[..., 1]}
    if max_answer_tokens is not None:
        rows["em"] = np.zeros((*encoded.tokens.shape, max_answer_tokens), bool)
        rows["f1"] = np.zeros((*encoded.tokens.shape, max_answer_tokens), np.float32)
        for row, question in enumerate(questions):
            if question.answer is not None:
                _fill_scores(rows["em"][row], rows["f1"][row], encoded.offsets[row], question)
    if encoded.tokens.shape[1] == 1:
        rows = {name: leaf[:, 0] for name, leaf in rows.items()}
    return rows


def _labelled(domain: Domain, reading: Reading, picked: Sequence[Question] | None) -> Labelled:
    whole = domain if picked is None else replace(domain, questions=tuple(picked))
    kept = question_examples(whole, reading)
    return Labelled(kept, np.zeros(len(kept), int), ("the domain",))


def _token_rows(questions: Sequence[Question], reading: Reading, where: str) -> Table:
    return question_rows(questions, reading.tokenizer, reading.lengths.pair, where)


def _table(parts: Mapping[str, Labelled], reading: Reading, always: Any, scored: bool) -> Table:
    """Return the table of questions: one class, rows of `tokens` and the answer's token span.

    Rows are those of `question_rows`, including the scores of all possible answers if `scored`.
    Every row has as many windows as the longest passage of all domains needs; if one is enough,
    the axis of windows is left out.
    """
    del always
    tokenizer, length = reading.tokenizer, reading.lengths.pair
    max_answer_tokens = reading.max_answer_tokens if scored else None
    rows = [
        question_rows(part.examples, tokenizer, length, domain, max_answer_tokens)
        for domain, part in parts.items()
    ]
    if any(table["start"].ndim > 1 for table in rows):
        rows = [
            {
                name: leaf if table["start"].ndim > 1 else leaf[:, None]
                for name, leaf in table.items()
            }
            for table in rows
        ]
    return labelled_table(rows, [part.labels for part in parts.values()])


def _token_answers(
    outputs: Mapping[str, np.ndarray], asked: Sequence[Question], reading: Reading
) -> list[Answer]:
    encoded = _pairs(asked, reading.tokenizer, reading.lengths.pair)
    answers = []
    for row, one in enumerate(asked):
        first, last = int(outputs["start"][row]), int(outputs["end"][row])
        if first == 0:
            answers.append(Answer(None, None))
            continue
        offsets = encoded.offsets[row, int(outputs["window"][row])]
        span = int(offsets[first, 0]), int(offsets[last, 1])
        answers.append(Answer(span, one.text[span[0] : span[1]]))
    return answers


def _measures(flat: Mapping[str, np.ndarray]) -> Measures:
    answerable = flat["answerable"].astype(bool)
    everything = np.ones_like(answerable)
    return {
        "em": (flat["em"], everything),
        "f1": (flat["f1"], everything),
        "em_answerable": (flat["em"], answerable),
        "f1_answerable": (flat["f1"], answerable),
        "accuracy_unanswerable": (flat["em"], ~answerable),
    }


def _baselines(
    sources: Sequence[Domain],
    domain: Domain,
    reading: Reading,
    always: Mapping[str, Sequence[str]],
    cells: Mapping[int, Any],
) -> Iterator[Outcome]:
    del always
    examples = _labelled(domain, reading, None).examples
    asked = [example.question for example in examples]
    texts = [example.text for example in examples]
    golds = [example.golds for example in examples]
    known = [question for one in sources for question in one.questions]
    tfidf = baselines.fit_tfidf([text for q in known for text in (q.question, q.text)])
    answerable = np.array([len(gold) > 0 for gold in golds], bool)
    for shots, cell in cells.items():
        query = queried_rows(cell["query"])
        yield "abstain", shots, baselines.abstain(answerable, query)
        best = baselines.best_sentence(tfidf, asked, texts, golds, query)
        yield "best sentence", shots, best


def _windows(tokens: Array) -> Array:
    """Return tokens [examples, windows, length]; the given ones may lack the axis of windows."""
    return tokens.reshape(len(tokens), -1, tokens.shape[-1])


def _pairs(questions: Sequence[Question], tokenizer: TextTokenizer, length: int) -> Encoded:
    return tokenizer.encode_pairs(
        [question.question for question in questions],
        [question.text for question in questions],
        length,
    )


def _token_spans(encoded: Encoded, row: int, question: Question, where: str) -> np.ndarray:
    """Return the answer's first and last token per window, (0, 0) if it may not hold all of it."""
    assert question.answer is not None
    first, past = question.answer
    begins, ends = encoded.offsets[row, ..., 0], encoded.offsets[row, ..., 1]
    inside = (begins >= 0) & (ends > first) & (begins < past)
    if not inside.any():
        raise CatalogueError(
            f"domain {where}, question {question.id!r}: its answer, characters {first} to {past}, "
            "is blank; give the characters of the answer, or None for no answer"
        )
    spans = np.zeros((len(inside), 2), np.int32)
    windows = int((encoded.tokens[row, :, 0] != PAD).sum())
    for window in np.flatnonzero(inside.any(1)):
        answer, text = np.flatnonzero(inside[window]), np.flatnonzero(begins[window] >= 0)
        # At the edge between two windows, the other one may hold more of the answer.
        cut_before = window > 0 and answer[0] == text[0]
        cut_behind = window + 1 < windows and answer[-1] == text[-1]
        if not (cut_before or cut_behind):
            spans[window] = answer[0], answer[-1]
    return spans


def _fill_scores(em: np.ndarray, f1: np.ndarray, offsets: np.ndarray, question: Question) -> None:
    """Fill in the scores [windows, length, max_answer_tokens] of every possible answer."""
    found: dict[tuple[int, int], tuple[float, float]] = {}
    for window, first in zip(*np.nonzero(offsets[..., 0] >= 0), strict=True):
        begin = int(offsets[window, first, 0])
        for more, (_, end) in enumerate(offsets[window, first : first + em.shape[-1]].tolist()):
            if end < 0:
                break
            if (begin, end) not in found:
                found[begin, end] = answer_scores(question.text[begin:end], question.golds)
            em[window, first, more], f1[window, first, more] = found[begin, end]


BY_HEAD = Answering(
    examples=_that_fit,
    rows=_token_rows,
    problem=lambda model, reading: questions(model, reading.max_answer_tokens),
    answers=_token_answers,
)
"""The way of a guide that reads tokens."""


def _answering(reading: Reading) -> Answering:
    return BY_SENTENCE if reading.reader.tokenizer is None else BY_HEAD


LABELLING = Labelling(
    name=NAME,
    of_domain=_labelled,
    rows=lambda asked, reading, where: _answering(reading).rows(asked, reading, where),
    problem=lambda model, reading, classes: _answering(reading).problem(model, reading),
    answers=lambda outputs, asked, reading, classes: _answering(reading).answers(
        outputs, asked, reading
    ),
    table=_table,
    answers_untrained=True,
    predicts_classes=False,
)

QUESTIONS = labelled_task(
    LABELLING,
    title="Questions",
    summary="Where a text answers a question, if it does.",
    part="questions",
    asks=Question,
    has_examples=lambda domain: bool(domain.questions),
    columns=("answer", "start", "end"),
    cells=lambda answer: [(answer.text, *(answer.span or (None, None)))],
    counts=lambda domain: Counter(
        "with an answer" if question.golds else "without an answer"
        for question in distinct_questions(domain)
    ),
    head=lambda encoder, way: QuestionHead(encoder.dtype),
    needs_states=True,
    scoring=Scoring(
        NAME,
        arrays=("em", "f1", "answerable"),
        measures=_measures,
        metrics=("f1", "em", "f1_answerable", "em_answerable", "accuracy_unanswerable"),
        once="example",
    ),
    baselines=_baselines,
    checked=checked_example,
    picked=partial(checked_part, "support", "questions"),
)
