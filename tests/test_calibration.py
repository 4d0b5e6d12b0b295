"""How sure a classifier is: the factor of its logits, from examples that it did not see."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from metaguide.learners import ridge
from metaguide.learners.calibration import LEAST, SCALES, SPREAD, TYPICAL, scale_of
from metaguide.learners.on_features import (
    leave_one_out_logits,
    ridge_weights,
    standardised,
    with_names,
)
from tests.test_learners_on_features import named_problem, on_rows


def expected_scale(logits, label):
    """The most probable factor, by a plain loop."""

    def log_posterior(scale):
        chosen = scipy.special.log_softmax(scale * logits, axis=1)[np.arange(len(label)), label]
        return np.maximum(chosen, LEAST).sum() - np.log(scale / TYPICAL) ** 2 / SPREAD**2 / 2

    return max(SCALES, key=log_posterior)


@pytest.mark.parametrize("strength", [0.05, 1.0, 20.0])
def test_the_factor_is_the_most_probable_one(strength):
    """Faults: examples that do not count are read; the prior is missing, or counted once for each
    example; one sure mistake makes all unsure."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, 30)
    logits = strength * (rng.normal(size=(30, 3)) + 2 * np.eye(3)[label]).astype(np.float32)
    logits[0] = -1e3 * np.eye(3)[label[0]]
    counts = np.arange(30) < 25
    wrong = np.where(counts[:, None], logits, -logits)
    found = scale_of(jnp.asarray(wrong), jnp.asarray(label), jnp.asarray(counts))
    assert found == pytest.approx(expected_scale(logits[:25], label[:25]))
    assert scale_of(jnp.asarray(wrong), jnp.asarray(label), jnp.zeros(30, bool)) == 1


def test_a_few_examples_that_are_all_right_do_not_make_sure_of_everything():
    """Fault: without a prior the factor of a perfect support is the largest one."""
    label = np.arange(6) % 2
    logits = jnp.asarray(2.0 * np.eye(2)[label] - 1, jnp.float32)
    assert scale_of(logits, jnp.asarray(label), jnp.ones(6, bool)) < SCALES[-1] / 5


@pytest.mark.parametrize("penalty", [0.1, 10.0])
def test_what_a_regression_says_without_an_example(penalty):
    """Faults: the residual for the prediction; another diagonal; a masked row counts."""
    problem, support = on_rows(3, 4)
    x, label = support["x"], support["label"]
    mask = np.arange(12) != 5
    found = leave_one_out_logits(x, label, jnp.asarray(mask), 3, penalty)
    weights_on = jax.jit(lambda others: ridge_weights(x, label, others, 3, penalty))
    for row in np.flatnonzero(mask):
        weights = weights_on(jnp.asarray(mask & (np.arange(12) != row)))
        np.testing.assert_allclose(found[row], (standardised(x) @ weights)[row], atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("names", [0, 3])
def test_a_ridge_regression_is_as_sure_as_it_is_right_without_each_example(names):
    """Faults: names, which are there several times, or an example that is alone in its class
    count; the factor is that of the regression that has seen the example."""
    own = jnp.asarray(np.random.default_rng(2).normal(size=(3, 32)), jnp.float32)
    problem, support = named_problem(own, [True] * 3)
    # The examples say nothing of their classes, and each name is three times itself.
    x = jnp.asarray(np.random.default_rng(3).normal(size=(12, 32)), jnp.float32)
    label = np.asarray(support["label"])
    mask = jnp.asarray((label != 2) | (np.arange(12) == 11))
    support = {**support, "x": x, "mask": mask}
    plain, found = (
        np.asarray(ridge(problem, 3.0, one, names).adapt({"params": {}}, support, (), None)[0][1])
        for one in (1.0, None)
    )
    rows = support["x"], support["label"], mask
    if names:
        rows = with_names(*rows, own, jnp.ones(3, bool), names)
    x, labels, known = rows
    held_back = [row for row in np.flatnonzero(mask) if names or row != 11]
    weights_on = jax.jit(lambda others: ridge_weights(x, labels, others, 3, 3.0))
    logits = [(standardised(x) @ weights_on(known.at[row].set(False)))[row] for row in held_back]
    scale = expected_scale(np.stack(logits), label[held_back])
    np.testing.assert_allclose(found, scale * plain, rtol=1e-3, atol=1e-4)
