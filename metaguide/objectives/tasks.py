"""Losses of the four tasks: classification, sentiment, questions, recommendation.

Rows where the mask is False are ignored, as long as their values are finite. Losses are means over
the rows that count, in nats if they are likelihoods; without any such row, the loss and its
gradient are 0.
"""

from collections.abc import Mapping

import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Num

from metaguide.ties import highest
from metaguide.types import OUT, check_rows

_Loss = tuple[Float[Array, ""], Mapping[str, Array]]


def masked_mean(x: Num[Array, "*shape"], mask: Bool[Array, "*shape"]) -> Num[Array, ""]:
    """Return the mean of finite `x` where `mask`: Σ mask · x / max(1, Σ mask); 0 if all False."""
    return jnp.where(mask, x, 0).sum() / jnp.maximum(mask.sum(), 1).astype(x.dtype)


def is_highest(scores: Float[Array, "... n"], labels: Int[Array, "..."]) -> Float[Array, "..."]:
    """Return 1 where the label scores highest (first among equals), else 0; 0 if any is NaN."""
    highest = (scores.argmax(-1).astype(labels.dtype) == labels) & ~jnp.isnan(scores).any(-1)
    return highest.astype(scores.dtype)


def classification_loss(
    logits: Float[Array, "batch way"],
    labels: Int[Array, " batch"],
    mask: Bool[Array, " batch"],
) -> _Loss:
    """Return the cross-entropy, J = − mean log softmax(logits)[label].

    Args:
        logits: scores of the classes.
        labels: the class of each row, in [0, way).
        mask: which rows count.

    Returns:
        The loss, and the metric `accuracy`.

    Raises:
        ValueError: labels or mask have another shape, such as [batch, 1].
    """
    check_rows(logits, labels, mask)
    labels = jnp.where(mask, labels, 0)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return masked_mean(losses, mask), {"accuracy": masked_mean(is_highest(logits, labels), mask)}


def sentiment_loss(
    logits: Float[Array, "batch 2"],
    stars_predicted: Float[Array, " batch"],
    labels: Int[Array, " batch"],
    stars: Float[Array, " batch"],
    mask: Bool[Array, " batch"],
    stars_weight: float,
) -> _Loss:
    """Return the cross-entropy of the sentiment plus the squared error of the stars.

    J = − mean_{labelled} log softmax(logits)[label] + stars_weight · mean_{rated} (ŝ − s)².

    Args:
        logits: scores of negative and positive.
        stars_predicted: ŝ, in stars.
        labels: 0 negative, 1 positive, -1 none.
        stars: s in [1, 5]; 0 where there is no rating.
        mask: which rows count.
        stars_weight: weight of the squared error.

    Returns:
        The loss, and the metrics `accuracy` of the labelled rows and `stars_error`, the mean
        absolute error of the rated ones.
    """
    loss, metrics = classification_loss(logits, labels, mask & (labels >= 0))
    rated = mask & (stars > 0)
    error = stars_predicted - stars
    loss += stars_weight * masked_mean(error**2, rated)
    return loss, {**metrics, "stars_error": masked_mean(jnp.abs(error), rated)}


def span_loss(
    start: Float[Array, "batch length"],
    end: Float[Array, "batch length"],
    start_target: Int[Array, " batch"],
    end_target: Int[Array, " batch"],
    mask: Bool[Array, " batch"],
    weights: Float[Array, " batch"] | None = None,
) -> _Loss:
    """Return the cross-entropy of the answer's first and last tokens (Devlin et al. 2019).

    J = − ½ mean (log softmax(start)[s] + log softmax(end)[e]).

    Args:
        start: scores of the positions as the first token of the answer; `OUT` outside the text.
        end: the same for its last token.
        start_target: s, the first token; 0 where the question has no answer.
        end_target: e, the last token, inclusive; 0 where the question has no answer.
        mask: which rows count.
        weights: weight of each row in the mean; equal by default.

    Returns:
        The loss, and the metric `exact`: how often both ends score highest.
    """
    start_target = jnp.where(mask, start_target, 0)
    end_target = jnp.where(mask, end_target, 0)
    losses = optax.softmax_cross_entropy_with_integer_labels(start, start_target)
    losses += optax.softmax_cross_entropy_with_integer_labels(end, end_target)
    exact = is_highest(start, start_target) * is_highest(end, end_target)
    if weights is not None:
        mean = weights / jnp.maximum(masked_mean(weights, mask), jnp.finfo(weights.dtype).tiny)
        losses, exact = losses * mean, exact * mean
    return masked_mean(losses / 2, mask), {"exact": masked_mean(exact, mask)}


def span_predict(
    start: Float[Array, "batch windows length"],
    end: Float[Array, "batch windows length"],
    exists: Bool[Array, "batch windows"],
    max_answer_tokens: int,
    number: Int[Array, " batch"] | None = None,
) -> tuple[Int[Array, " batch"], Int[Array, " batch"], Int[Array, " batch"]]:
    """Return each row's best answer: argmax start_s + end_e, 1 ≤ s ≤ e < s + max_answer_tokens.

    Windows of one passage compete with one another. Among equals the first is taken. No answer,
    (0, 0), is given when start_0 + end_0 is at least as high as the best in some window (Devlin et
    al. 2019, for SQuAD 2.0).

    With `number`, one of the equals is drawn; every valid span and "no answer" have the same
    chance. Without it, constant scores would be right wherever there is no answer.

    Args:
        start: scores of the positions as the first token of the answer.
        end: the same for its last token.
        exists: which windows are not padding.
        max_answer_tokens: largest number of tokens in an answer.
        number: number of each example, which determines the draws.

    Returns:
        The window of the answer (0 if there is none), and its first and last token, inclusive.
    """
    batch, windows, length = start.shape
    s, e = jnp.arange(length)[:, None], jnp.arange(length)
    allowed = (s >= 1) & (s <= e) & (e < s + max_answer_tokens) & exists[:, :, None, None]
    scores = jnp.where(allowed, start[..., None] + end[:, :, None, :], -jnp.inf)
    scores = scores.reshape(batch, windows * length * length)
    none = jnp.where(exists, start[..., 0] + end[..., 0], jnp.inf).min(1)
    # No answer stands where the span (0, 0) of the first window would, which no answer may be.
    scores = jnp.where(jnp.arange(scores.shape[1]) == 0, none[:, None], scores)
    best = scores.argmax(1) if number is None else highest(scores, number)
    place = best % length**2
    return best // length**2, place // length, place % length


def ranking_loss(
    scores: Float[Array, "batch products"],
    target: Int[Array, " batch"],
    mask: Bool[Array, " batch"],
    candidates: Bool[Array, " products"],
) -> _Loss:
    """Return the full softmax loss: J = − mean log softmax_{candidates}(scores)[target].

    Args:
        scores: score of every product for the user of each row.
        target: the product that was taken; rows whose target is not a candidate are ignored.
        mask: which rows count.
        candidates: which products exist; the rest is padding.

    Returns:
        The loss, and the metrics `reciprocal_rank` and `hit_10` of the target among the candidates;
        a product with the same score counts as half a rank.
    """
    target = jnp.where(mask, target, 0)
    mask = mask & candidates[target]
    scores = jnp.where(candidates, scores, OUT)
    losses = optax.softmax_cross_entropy_with_integer_labels(scores, target)
    own = jnp.take_along_axis(scores, target[:, None], axis=1)
    above = ((scores > own) & candidates).sum(1).astype(scores.dtype)
    same = ((scores == own) & candidates).sum(1).astype(scores.dtype) - 1  # without the target
    lost = ~(jnp.isfinite(scores) | ~candidates).all(1)
    rank = jnp.where(lost, candidates.sum().astype(scores.dtype), 1 + above + same / 2)
    return masked_mean(losses, mask), {
        "reciprocal_rank": masked_mean(1 / rank, mask),
        "hit_10": masked_mean((rank <= 10).astype(scores.dtype), mask),
    }
