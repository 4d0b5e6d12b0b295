"""The losses of the four tasks against loops, scikit-learn and finite differences."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads
from sklearn.metrics import log_loss, mean_absolute_error, mean_squared_error

from metaguide.learners.on_features import masked_loss
from metaguide.objectives.tasks import (
    classification_loss,
    is_highest,
    masked_mean,
    ranking_loss,
    sentiment_loss,
    span_loss,
    span_predict,
)
from metaguide.types import OUT

ROWS, WAY, LENGTH, PRODUCTS = 20, 4, 7, 15
RNG = np.random.default_rng(0)
MASK = RNG.random(ROWS) < 0.7
CANDIDATES = np.arange(PRODUCTS) != 3
LABELS = RNG.integers(0, WAY, ROWS).astype(np.int32)
SIGNS = RNG.integers(-1, 2, ROWS).astype(np.int32)
STARS = RNG.integers(0, 6, ROWS).astype(np.float32)
STARTS = RNG.integers(0, LENGTH, ROWS).astype(np.int32)
ENDS = RNG.integers(0, LENGTH, ROWS).astype(np.int32)
TARGETS = RNG.integers(4, PRODUCTS, ROWS).astype(np.int32)


def scores(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


LOGITS, BINARY, PREDICTED = scores(ROWS, WAY), scores(ROWS, 2), 3 + scores(ROWS)
START, END, RANKED = scores(ROWS, LENGTH), scores(ROWS, LENGTH), scores(ROWS, PRODUCTS)


def softmax(x: np.ndarray) -> np.ndarray:
    return np.exp(x) / np.exp(x).sum(-1, keepdims=True)


def classification(logits, mask):
    return classification_loss(logits, jnp.asarray(LABELS), mask)


def sentiment(logits, stars, mask):
    return sentiment_loss(logits, stars, jnp.asarray(SIGNS), jnp.asarray(STARS, stars.dtype),
                          mask, 0.3)  # fmt: skip


def spans(start, end, mask):
    return span_loss(start, end, jnp.asarray(STARTS), jnp.asarray(ENDS), mask)


def ranking(scored, mask):
    return ranking_loss(scored, jnp.asarray(TARGETS), mask, jnp.asarray(CANDIDATES))


LOSSES = {
    "classification": (classification, (LOGITS,)),
    "sentiment": (sentiment, (BINARY, PREDICTED)),
    "questions": (spans, (START, END)),
    "recommendation": (ranking, (RANKED,)),
}
every_loss = pytest.mark.parametrize("name", LOSSES)


@pytest.mark.parametrize("loss", [classification_loss, masked_loss])
def test_labels_of_another_shape_are_refused(loss):
    """Fault: labels [n, 1] are compared with all n predictions, and the accuracy is above 1."""
    logits, label, mask = jnp.asarray(LOGITS), jnp.asarray(LABELS), jnp.asarray(MASK)
    # Users have no runtime checks of shapes.
    unchecked = inspect.unwrap(loss)
    for wrong in ((label[:, None], mask), (label, mask[:, None]), (label[1:], mask)):
        with pytest.raises(ValueError, match="give one of each for"):
            unchecked(logits, *wrong)
    with pytest.raises(ValueError, match="mask is float32; give bool"):
        unchecked(logits, label, mask.astype(jnp.float32))


def test_classification_is_sklearns_log_loss():
    """Fault: padded rows counted, or a sum in place of a mean."""
    loss, metrics = classification(jnp.asarray(LOGITS), jnp.asarray(MASK))
    expected = log_loss(LABELS[MASK], softmax(LOGITS)[MASK], labels=range(WAY))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    right = (LOGITS.argmax(1) == LABELS)[MASK].mean()
    np.testing.assert_allclose(metrics["accuracy"], right, rtol=1e-6)


def test_sentiment_counts_labels_and_stars_apart():
    """Fault: an unlabelled review as negative, a missing rating as 0 stars, a wrong divisor."""
    loss, metrics = sentiment(jnp.asarray(BINARY), jnp.asarray(PREDICTED), jnp.asarray(MASK))
    labelled, rated = MASK & (SIGNS >= 0), MASK & (STARS > 0)
    assert labelled.sum() < MASK.sum() and rated.sum() < MASK.sum()
    expected = log_loss(SIGNS[labelled], softmax(BINARY)[labelled], labels=[0, 1])
    expected += 0.3 * mean_squared_error(STARS[rated], PREDICTED[rated])
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    right = (BINARY.argmax(1) == SIGNS)[labelled].mean()
    np.testing.assert_allclose(metrics["accuracy"], right, rtol=1e-6)
    error = mean_absolute_error(STARS[rated], PREDICTED[rated])
    np.testing.assert_allclose(metrics["stars_error"], error, rtol=1e-5)


def test_span_loss_by_loop():
    """Fault: start and end mixed up, or one of them left out."""
    loss, metrics = spans(jnp.asarray(START), jnp.asarray(END), jnp.asarray(MASK))
    expected, exact = [], []
    for row in np.flatnonzero(MASK):
        s, e = STARTS[row], ENDS[row]
        chance = softmax(START[row])[s] * softmax(END[row])[e]
        expected.append(-np.log(chance) / 2)
        exact.append(START[row].argmax() == s and END[row].argmax() == e)
    np.testing.assert_allclose(loss, np.mean(expected), rtol=1e-5)
    np.testing.assert_allclose(metrics["exact"], np.mean(exact), rtol=1e-6)


def test_spans_ignore_what_is_not_text():
    """Fault: positions scored out still take probability, or give infinities."""
    start = jnp.asarray(START).at[:, 2:5].set(OUT)
    target = jnp.zeros(ROWS, jnp.int32)
    loss, _ = span_loss(start, start, target, target, jnp.ones(ROWS, bool))
    kept = np.delete(START, [2, 3, 4], axis=1)
    np.testing.assert_allclose(loss, -np.log(softmax(kept)[:, 0]).mean(), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("level", [-1e12, 0.0, 1e12])
def test_what_cannot_be_chosen_is_below_scores_of_any_size(level):
    """Fault: its own score is above those of products or positions that a large scale made low, so
    that padding is the highest, and takes all probability."""
    loss, metrics = ranking(jnp.asarray(RANKED) + level, jnp.asarray(MASK))
    assert loss < 100 + 1e-6 * abs(level) and metrics["reciprocal_rank"] > 0.1
    start = jnp.full((1, 1, 6), level).at[:, :, 3:].set(OUT)
    first, last, window = span_predict(start, start, jnp.ones((1, 1), bool), 2, jnp.arange(1))
    assert int(last[0]) < 3 and int(first[0]) < 3


def test_ranking_by_loop():
    """Fault: padding among the products, or a rank off by one."""
    scored = RANKED.copy()
    scored[:, 3] = 100.0  # a product that does not exist
    first = MASK.argmax()
    scored[first, TARGETS[first]] = scored[first, 0]  # a tie
    loss, metrics = ranking(jnp.asarray(scored), jnp.asarray(MASK))
    losses, reciprocal, hits = [], [], []
    for row in np.flatnonzero(MASK):
        own = scored[row, TARGETS[row]]
        others = [scored[row, p] for p in np.flatnonzero(CANDIDATES) if p != TARGETS[row]]
        losses.append(np.log(np.exp([own, *others]).sum()) - own)
        rank = 1 + sum(x > own for x in others) + sum(x == own for x in others) / 2
        reciprocal.append(1 / rank)
        hits.append(rank <= 10)
    np.testing.assert_allclose(loss, np.mean(losses), rtol=1e-5)
    np.testing.assert_allclose(metrics["reciprocal_rank"], np.mean(reciprocal), rtol=1e-5)
    np.testing.assert_allclose(metrics["hit_10"], np.mean(hits), rtol=1e-6)


def test_a_target_that_is_no_candidate_counts_for_nothing():
    """Fault: a loss of 1e9 from a row whose product is padding."""
    target = jnp.asarray(TARGETS).at[0].set(3)
    everyone = jnp.ones(ROWS, bool)
    args = jnp.asarray(RANKED), target
    got = ranking_loss(*args, everyone, jnp.asarray(CANDIDATES))
    expected = ranking_loss(*args, everyone.at[0].set(False), jnp.asarray(CANDIDATES))
    assert jax.tree.map(float, got) == jax.tree.map(float, expected)


@pytest.mark.slow
@every_loss
def test_padded_rows_have_no_influence(name):
    """Fault: what stands in padded rows changes loss, metrics or gradient."""
    loss, inputs = LOSSES[name]
    padded = [np.where(MASK.reshape(-1, *[1] * (x.ndim - 1)), x, 77.0) for x in inputs]
    mask = jnp.asarray(MASK)
    grad = jax.value_and_grad(loss, tuple(range(len(inputs))), has_aux=True)
    got, expected = grad(*map(jnp.asarray, inputs), mask), grad(*map(jnp.asarray, padded), mask)
    jax.tree.map(np.testing.assert_array_equal, got, expected)
    for gradient in got[1]:
        np.testing.assert_array_equal(np.asarray(gradient)[~MASK], 0)


@every_loss
def test_no_rows_cost_nothing(name):
    """Fault: the mean over nothing is NaN, in the loss, the metrics or the gradient."""
    loss, inputs = LOSSES[name]
    grad = jax.value_and_grad(loss, tuple(range(len(inputs))), has_aux=True)
    (value, metrics), gradients = grad(*map(jnp.asarray, inputs), jnp.zeros(ROWS, bool))
    for leaf in jax.tree.leaves((value, metrics, gradients)):
        assert np.isfinite(leaf).all()
    assert value == 0
    for gradient in gradients:
        np.testing.assert_array_equal(gradient, 0)


@every_loss
def test_gradients_against_finite_differences(name):
    """Fault: a gradient that is stopped, masked or scaled wrongly."""
    loss, inputs = LOSSES[name]
    with jax.enable_x64(True):
        mask = jnp.asarray(MASK)
        exact = tuple(jnp.asarray(x, jnp.float64) for x in inputs)
        check_grads(jax.jit(lambda *x: loss(*x, mask)[0]), exact, 1, ("rev",))


@every_loss
def test_jit_changes_nothing(name):
    """Fault: Python control flow on values."""
    loss, inputs = LOSSES[name]
    args = (*map(jnp.asarray, inputs), jnp.asarray(MASK))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5),
                 loss(*args), jax.jit(loss)(*args))  # fmt: skip


@given(st.lists(st.tuples(st.floats(-100, 100, width=32), st.booleans()), min_size=1, max_size=9))
@settings(max_examples=40, deadline=None)
def test_masked_mean(pairs):
    """Fault: the divisor counts padding, or is 0."""
    x, mask = (np.array(part) for part in zip(*pairs, strict=True))
    got = masked_mean(jnp.asarray(x, jnp.float32), jnp.asarray(mask))
    expected = x[mask].mean() if mask.any() else 0.0
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


# Few values, so that ties occur and sums are exact.
SCORES = st.lists(st.lists(st.sampled_from([-2.0, -1.0, 0.0, 1.0, 2.0, OUT]),
                           min_size=28, max_size=28), min_size=3, max_size=3)  # fmt: skip


@pytest.mark.slow
@given(SCORES, st.integers(1, 9), st.lists(st.integers(1, 2), min_size=3, max_size=3))
@settings(max_examples=150, deadline=None)
def test_span_predict_by_brute_force(values, max_answer_tokens, windows):
    """Fault: a span turned round, too long, with [CLS] in it, over two windows or in padding, or
    an answer where none is best."""
    table = np.array(values, np.float32).reshape(3, 2, 14)
    start, end = table[..., :7], table[..., 7:]
    exists = np.arange(2) < np.array(windows)[:, None]
    got = span_predict(jnp.asarray(start), jnp.asarray(end), jnp.asarray(exists), max_answer_tokens)
    for row in range(3):
        best, answer = min(start[row, w, 0] + end[row, w, 0] for w in range(windows[row])), (0,) * 3
        for w in range(windows[row]):
            for s in range(1, 7):
                for e in range(s, min(7, s + max_answer_tokens)):
                    if start[row, w, s] + end[row, w, e] > best:
                        best, answer = start[row, w, s] + end[row, w, e], (w, s, e)
        assert tuple(int(part[row]) for part in got) == answer


@pytest.mark.slow
@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
def test_what_is_not_finite_counts_for_nothing(bad):
    """Faults: the first NaN is the highest of all; a rank of 1/2, whose reciprocal is 2."""
    assert is_highest(jnp.array([[jnp.nan, jnp.nan]]), jnp.array([0])).tolist() == [0]
    scores = jnp.tile(jnp.arange(12.0), (2, 1)).at[0, 3].set(bad)
    target, everything = jnp.array([11, 11]), jnp.ones(12, bool)
    _, metrics = ranking_loss(scores, target, jnp.array([True, False]), everything)
    assert metrics["hit_10"] == 0 and abs(metrics["reciprocal_rank"] - 1 / 12) < 1e-6
    _, metrics = ranking_loss(scores, target, jnp.array([False, True]), everything)
    assert metrics["hit_10"] == metrics["reciprocal_rank"] == 1
