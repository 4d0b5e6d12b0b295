"""Sentiment: predict whether a review is negative or positive, and how many stars it gives."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Key
from scipy import sparse

from metaguide.data.catalogue import Domain, Review, checked_example
from metaguide.data.encoding import Table
from metaguide.data.ngrams import hashed_ngrams, inverse_document_frequency
from metaguide.data.repeats import distinct_reviews
from metaguide.evaluation import baselines
from metaguide.evaluation.rows import Scoring, agreement
from metaguide.models.encoder import is_word
from metaguide.models.guide import GuideModel
from metaguide.models.heads import SentimentHead
from metaguide.objectives.tasks import sentiment_loss
from metaguide.tasks import labelled
from metaguide.tasks.labelled import Labelled, Labelling, labelled_task, queried_rows
from metaguide.tasks.problem import encode_examples, problem_of, score_classes, use_head
from metaguide.tasks.serving import Reading, softmax
from metaguide.tasks.task import Labels, Outcome
from metaguide.types import HASHES, Batch, Metrics, Params, Problem

NAME = "sentiment"

CLASSES = ("negative", "positive")

HEAD_WEIGHT = 0.4
"""Weight of the head's logits beside those of `fit_polarity`: trained on the reviews of the sources
until it knows them, the head is too sure of those of another domain."""


class Sentiment(NamedTuple):
    """A review's sentiment ("positive" or "negative"), probability of "positive", and stars."""

    sentiment: str
    positive: float
    stars: float | None


def sentiment(model: GuideModel, stars_weight: float = 0.1) -> Problem:
    """Build sentiment: whether a review is negative (0) or positive (1), and how many stars.

    If n-grams are read, the prediction is a product of two experts: the logits of the head, which
    the loss trains and which adapt, times `HEAD_WEIGHT`, and those of `fit_polarity`, which are
    fixed. Trained as one, the two would leave to each other what each can learn.
    """

    def encode(
        params: Params, batch: Batch, context: Any, key: Key[Array, ""] | None
    ) -> dict[str, Array]:
        del context
        return {"vector": encode_examples(model, params, batch, key).vector}

    def predict(params: Params, encoded: Any, batch: Batch, context: Any) -> dict[str, Array]:
        del context
        logits, stars = use_head(model, params, NAME, "__call__", encoded["vector"])
        if "grams" in batch and model.encoder.buckets:
            said: Any = model.apply({"params": params}, batch["grams"], method="polarity")
            logits = HEAD_WEIGHT * logits + jnp.stack([-said / 2, said / 2], axis=-1)
        return {"logits": logits, "stars": stars}

    def loss(params: Params, encoded: Any, batch: Batch, context: Any) -> tuple[Array, Metrics]:
        del context
        logits, stars = use_head(model, params, NAME, "__call__", encoded["vector"])
        return sentiment_loss(
            logits,
            stars,
            batch["label"],
            batch["stars"],
            batch["mask"],
            stars_weight=stars_weight,
        )

    return problem_of(model, NAME, encode, loss, predict, score_classes, way=2)


def fit_polarity(
    domains: Sequence[Domain], reading: Reading, penalty: float = 1.0
) -> Float32[np.ndarray, " hashes"]:
    """Fit what each word says of a review's sentiment: argmin_c Σ_i ℓ_i(c) + λ/2 Σ_g (c_g / w_g)².

    ℓ is the logistic loss of Σ_g c_g / √n, `NgramBag.polarity`, and w_g = 1 + log((1 + N) / (1 +
    N_g)) the inverse document frequency: a word that is in most reviews says little. Pairs of
    words count as words; a word of fewer than two reviews has c_g = 0. A bias is fitted too and
    left out, since the share of positive reviews differs between domains.

    Args:
        domains: the source domains.
        reading: how texts are read.
        penalty: λ.

    Returns:
        c; 0 if the reviews are not of both sentiments.
    """
    parts = [_labelled(domain, reading, None) for domain in domains]
    label = np.concatenate([part.labels for part in parts])
    texts = [review.text for part in parts for review in part.examples]
    if len(set(label.tolist())) < len(CLASSES):
        return np.zeros(HASHES, np.float32)
    grams = hashed_ngrams(texts)
    words = is_word(grams)
    row, place = np.nonzero(words)
    column = grams[row, place]
    count = np.bincount(column, minlength=HASHES)
    weight = np.where(count < 2, 0, inverse_document_frequency(count, len(texts)))
    value = weight[column] / np.sqrt(words.sum(1))[row]
    features = sparse.csr_matrix((value, (row, column)), shape=(len(texts), HASHES))
    known = baselines.fit_source(features, label, 1 / penalty)
    return (known.coef_[0] * weight).astype(np.float32)


def _labelled(domain: Domain, reading: Reading, picked: Sequence[Review] | None) -> Labelled:
    del reading
    reviews = distinct_reviews(domain) if picked is None else picked
    return Labelled(reviews, np.array([review.label for review in reviews], int), CLASSES)


def _rows(reviews: Sequence[Review], reading: Reading, where: str) -> Table:
    """Return the text fields, and `stars` float32, 0 for a review without stars."""
    del where
    texts = [review.text for review in reviews]
    return {
        **reading.reader.rows(texts, reading.lengths.text),
        "stars": np.array([review.stars or 0.0 for review in reviews], np.float32),
    }


def _problem(model: GuideModel, reading: Reading, classes: int) -> Problem:
    del reading, classes
    return sentiment(model)


def _answers(
    outputs: Mapping[str, np.ndarray],
    reviews: Sequence[Review],
    reading: Reading,
    classes: tuple[str, ...],
) -> list[Sentiment]:
    del reading
    positive = softmax(outputs["logits"])[:, 1]
    stars = outputs.get("stars", [None] * len(reviews))
    return [
        Sentiment(classes[int(chance > 0.5)], float(chance), None if star is None else float(star))
        for chance, star in zip(positive, stars, strict=True)
    ]


def _baselines(
    sources: Sequence[Domain],
    domain: Domain,
    reading: Reading,
    always: Mapping[str, Sequence[str]],
    cells: Mapping[int, Any],
) -> Iterator[Outcome]:
    del always
    source = [_labelled(one, reading, None) for one in sources]
    texts = [review.text for part in source for review in part.examples]
    tfidf = baselines.fit_tfidf(texts)
    known = np.concatenate([part.labels for part in source])
    classifier = baselines.fit_source(tfidf.transform(texts), known)
    reviews, labels, _ = _labelled(domain, reading, None)
    features = tfidf.transform([review.text for review in reviews])
    for shots, cell in cells.items():
        query = queried_rows(cell["query"])
        yield "majority", shots, baselines.majority(labels, query)
        zero = baselines.zero_shot(classifier, features, labels, query)
        yield "tf-idf zero-shot", shots, zero
        if shots:
            support = queried_rows(cell["support"])
            yield "tf-idf few-shot", shots, baselines.few_shot(features, labels, support, query)


LABELLING = Labelling(
    name=NAME,
    of_domain=_labelled,
    rows=_rows,
    problem=_problem,
    answers=_answers,
    # A review of three stars is neither positive nor negative.
    unlabelled=lambda domain: [
        one for one in domain.reviews if one.label is not None or one.stars is None
    ],
    described=lambda name: f"sentiment {name!r}",
    needs_all=True,
)

LABELS = Labels(
    distinct=distinct_reviews,
    label=lambda review: CLASSES[int(review.label or 0)],
    is_bare=lambda review: review.stars is None and review.sentiment is None,
    answer=lambda answer: answer.sentiment,
    probability=lambda answer: max(answer.positive, 1 - answer.positive),
    text=lambda review: review.text,
)

SENTIMENT = labelled_task(
    LABELLING,
    LABELS,
    title="Sentiment",
    summary="Whether a review is positive.",
    part="reviews",
    needs="reviews with stars or a sentiment",
    asks=Review,
    has_examples=lambda domain: any(review.label is not None for review in domain.reviews),
    columns=Sentiment._fields,
    head=lambda encoder, way: SentimentHead(encoder.dtype),
    scoring=Scoring(
        NAME,
        arrays=("predicted", "target"),
        measures=agreement,
        metrics=("accuracy", "macro_f1"),
        once="example",
    ),
    baselines=_baselines,
    checked=checked_example,
    picked=partial(labelled.picked, "reviews", "label", "sentiment or stars but 3"),
    classes=CLASSES,
)
