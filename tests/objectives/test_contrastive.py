"""InfoNCE against its formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from metaguide.objectives.contrastive import info_nce


def units(seed: int, rows: int = 6, width: int = 5) -> np.ndarray:
    x = np.random.default_rng(seed).normal(size=(rows, width))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def by_loop(a, b, temperature, where):
    rows = [i for i in range(len(a)) if where[i]]
    loss = right = 0.0
    for left, other in ((a, b), (b, a)):
        for i in rows:
            scores = [left[i] @ other[j] / temperature for j in rows]
            own = left[i] @ other[i] / temperature
            loss += (np.log(np.sum(np.exp(scores))) - own) / (2 * len(rows))
            right += (max(scores) == own) / (2 * len(rows))
    return loss, right


@pytest.mark.slow
@given(st.lists(st.booleans(), min_size=6, max_size=6).filter(any), st.floats(0.05, 2.0))
@settings(max_examples=40, deadline=None)
def test_against_a_loop(where, temperature):
    """Fault: a missing direction, a wrong temperature, or padding as negatives."""
    a, b = units(0), units(1)
    loss, metrics = info_nce(jnp.asarray(a), jnp.asarray(b), temperature, jnp.asarray(where))
    expected, accuracy = by_loop(a.astype(float), b.astype(float), temperature, where)
    np.testing.assert_allclose(loss, expected, rtol=2e-4, atol=2e-6)
    np.testing.assert_allclose(metrics["accuracy"], accuracy, atol=1e-6)


@pytest.mark.slow
def test_symmetric_and_blind_to_order():
    """Fault: only the first view sees negatives."""
    a, b, where = jnp.asarray(units(0)), jnp.asarray(units(1)), jnp.ones(6, bool)
    order = jnp.array([3, 1, 5, 0, 2, 4])
    expected, _ = info_nce(a, b, 0.2, where)
    np.testing.assert_allclose(info_nce(b, a, 0.2, where)[0], expected, rtol=1e-6)
    np.testing.assert_allclose(info_nce(a[order], b[order], 0.2, where)[0], expected, rtol=1e-6)


def test_extremes():
    """Fault: an offset or a sign: equal vectors give log n, far ones at low temperature 0."""
    where = jnp.ones(6, bool)
    loss, _ = info_nce(jnp.ones((6, 3)), jnp.ones((6, 3)), 0.1, where)
    np.testing.assert_allclose(loss, np.log(6), rtol=1e-6)
    loss, metrics = info_nce(jnp.eye(6), jnp.eye(6), 0.02, where)
    assert loss < 1e-6 and metrics["accuracy"] == 1


@pytest.mark.slow
def test_padding_has_no_influence():
    """Fault: what stands in rows that do not count changes the loss or its gradient."""
    where = jnp.array([True, True, False, True, False, True])
    a, b = jnp.asarray(units(0)), jnp.asarray(units(1))
    both = jax.value_and_grad(info_nce, (0, 1), has_aux=True)
    (loss, _), gradients = both(a, b, 0.3, where)
    other = jnp.where(where[:, None], a, 50.0)
    (again, _), _ = both(other, b, 0.3, where)
    np.testing.assert_allclose(loss, again, rtol=1e-6)
    for gradient in gradients:
        np.testing.assert_array_equal(np.asarray(gradient)[~np.asarray(where)], 0)


def test_no_rows_cost_nothing():
    """Fault: the mean over nothing is NaN, in the loss or in its gradient."""
    a = jnp.asarray(units(0))
    (loss, _), gradient = jax.value_and_grad(info_nce, has_aux=True)(a, a, 0.1, jnp.zeros(6, bool))
    assert loss == 0
    np.testing.assert_array_equal(gradient, 0)


def test_gradients_against_finite_differences():
    """Fault: a stopped or wrong gradient, of the views or of the temperature."""
    with jax.enable_x64(True):
        where = jnp.array([True, True, False, True, True, True])
        a, b = (jnp.asarray(units(seed), jnp.float64) for seed in (0, 1))
        tau = jnp.asarray(0.5, jnp.float64)
        loss = jax.jit(lambda a, b, temperature: info_nce(a, b, temperature, where)[0])
        check_grads(loss, (a, b, tau), 1, ("rev",))
