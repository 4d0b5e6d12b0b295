"""A descent's losses, and a curriculum of its lengths."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metaguide.optimizers import curriculum, descent, mlp, truncated
from metaguide.types import Optimizee


def test_a_loss_is_of_the_step_to_come():
    """Faults: the loss is that of the batch just learned from, the first or last one is missing, or
    the batches are those of another step."""

    def loss(params, batch):
        return jnp.square(params["x"] - batch), ()

    optimizee = Optimizee(
        lambda data, key: ({"x": data}, ()), lambda data, task, step: step.astype(float), loss
    )
    found = descent(optimizee, optax.sgd(0.25), 3)(jnp.asarray(4.0), jax.random.key(0))
    x, expected = 4.0, []
    for step in range(4):
        expected.append((x - step) ** 2)
        x -= 0.5 * (x - step)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.slow
@settings(deadline=None)
@given(st.integers(1, 60), st.integers(0, 200), st.integers(1, 30), st.floats(0.05, 1.0))
def test_a_curriculum_grows_to_the_whole(first, more, truncation, until):
    """Faults: it shrinks, ends below the last horizon, begins above the first one, or stops in the
    middle of a window."""
    last = first + more
    horizon = curriculum(first, last, truncation, until)
    steps = [int(horizon(jnp.float32(progress))) for progress in np.linspace(0, 1, 9)]
    assert steps == sorted(steps)
    assert all(count % truncation == 0 for count in steps)
    assert first <= steps[0] < first + truncation
    assert last <= steps[-1] < last + truncation
    assert int(horizon(jnp.float32(until))) == steps[-1]


def test_ages_are_windows_of_the_longest_horizon():
    """Faults: they are spread over the first horizon, are no whole windows, or are all alike."""
    quick = Optimizee(lambda data, key: ({}, ()), lambda *_: (), lambda params, batch: (0.0, ()))
    for horizon in (50, curriculum(10, 50, 10)):
        ages = truncated(mlp(1), quick, horizon, 10).ages
        assert ages(10).tolist() == [0, 0, 10, 10, 20, 20, 30, 30, 40, 40]
        assert ages(2).tolist() == [0, 20]


def test_a_wrong_curriculum_is_an_error():
    """Fault: one that shrinks, or is complete before it begins."""
    for first, last, until in ((0, 9, 0.5), (9, 8, 0.5), (1, 9, 0.0), (1, 9, 1.5)):
        with pytest.raises(ValueError, match="give 1 <= first <= last and 0 < until <= 1"):
            curriculum(first, last, 3, until)
