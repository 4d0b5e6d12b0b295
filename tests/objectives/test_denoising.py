"""Spoiling pictures and the loss of restoring them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metaguide.objectives.denoising import corrupt, reconstruction_loss


@pytest.mark.slow
@given(st.integers(0, 8), st.integers(0, 2**31 - 1))
@settings(max_examples=40, deadline=None)
def test_one_square_of_the_side_asked_for(side, seed):
    """Fault: a hole cut off at the border, of another side, or in some channels only."""
    images = jnp.ones((3, 8, 10, 2))
    holes = np.asarray(corrupt(jax.random.key(seed), images, sigma=0.0, occlusion=side)) == 0
    for hole in holes:
        assert (hole[..., 0] == hole[..., 1]).all()
        rows, columns = hole[..., 0].any(1), hole[..., 0].any(0)
        assert rows.sum() == columns.sum() == side
        assert hole[..., 0].sum() == side * side
        for line in (rows, columns):
            assert side == 0 or np.ptp(np.flatnonzero(line)) == side - 1


def test_holes_differ_and_reach_every_place():
    """Fault: one place for the whole batch, or a place that is never covered."""
    images = jnp.ones((500, 6, 6, 1))
    holes = np.asarray(corrupt(jax.random.key(0), images, sigma=0.0, occlusion=3)) == 0
    assert holes.any(0).all()
    tops, lefts = holes.any((2, 3)).argmax(1), holes.any((1, 3)).argmax(1)
    counts = np.bincount(4 * tops + lefts, minlength=16)
    assert counts.min() > 500 / 16 / 2.5 and counts.max() < 2.5 * 500 / 16


def test_the_noise_has_the_deviation_asked_for():
    """Fault: sigma used as a variance, or one noise for all pictures or channels."""
    images = jnp.full((50, 16, 16, 3), 0.5)
    noisy = np.asarray(corrupt(jax.random.key(0), images, sigma=0.1, occlusion=0)) - 0.5
    assert abs(noisy.std() - 0.1) < 0.002 and abs(noisy.mean()) < 0.002
    assert len(np.unique(noisy.round(7))) > 0.9 * noisy.size


@pytest.mark.slow
def test_values_stay_in_range_and_the_key_decides():
    """Fault: noise beyond black and white, or a constant key inside."""
    images = jax.random.uniform(jax.random.key(9), (4, 8, 8, 3))

    def spoil(key):
        return corrupt(key, images, sigma=2.0, occlusion=2)

    one = np.asarray(spoil(jax.random.key(0)))
    assert one.min() == 0 and one.max() == 1
    np.testing.assert_allclose(one, jax.jit(spoil)(jax.random.key(0)), atol=1e-6)
    assert (one != np.asarray(spoil(jax.random.key(1)))).any()


@pytest.mark.parametrize("side", [-1, 9])
def test_a_hole_that_does_not_fit(side):
    """Fault: an empty range of places, from which any place is drawn."""
    with pytest.raises(ValueError, match=f"side {side} does not fit"):
        corrupt(jax.random.key(0), jnp.ones((1, 8, 8, 1)), sigma=0.0, occlusion=side)


def test_loss_is_the_mean_square_over_rows_with_a_picture():
    """Fault: rows without a picture counted, or a sum in place of a mean."""
    rng = np.random.default_rng(0)
    output, target = rng.random((2, 5, 4, 4, 3)).astype(np.float32)
    where = np.array([True, False, True, True, False])
    loss, metrics = reconstruction_loss(*map(jnp.asarray, (output, target, where)))
    np.testing.assert_allclose(loss, ((output - target)[where] ** 2).mean(), rtol=1e-5)
    expected = np.abs(output - target)[where].mean()
    np.testing.assert_allclose(metrics["absolute_error"], expected, rtol=1e-5)
    loss, _ = reconstruction_loss(jnp.asarray(output), jnp.asarray(target))
    np.testing.assert_allclose(loss, ((output - target) ** 2).mean(), rtol=1e-5)


def test_no_pictures_cost_nothing():
    """Fault: the mean over nothing is NaN, in the loss or in its gradient."""
    images, none = jnp.ones((2, 4, 4, 3)), jnp.zeros(2, bool)
    (loss, _), gradient = jax.value_and_grad(reconstruction_loss, has_aux=True)(
        images, 0 * images, none
    )
    assert loss == 0
    np.testing.assert_array_equal(gradient, 0)
