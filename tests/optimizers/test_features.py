"""What a rule reads of a gradient."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from metaguide.optimizers.features import (
    DECAYS,
    bias_corrected,
    log_and_sign,
    momenta,
)


@settings(max_examples=60, deadline=None)
@given(st.floats(-1e6, 1e6, width=32), st.sampled_from([5.0, 10.0]))
def test_log_and_sign_is_the_formula(gradient, p):
    """Faults: the logarithm's base or divisor, the threshold, the scale below it."""
    if abs(gradient) >= np.exp(-p):
        expected = [np.log(abs(gradient)) / p, np.sign(gradient)]
    else:
        expected = [-1.0, np.exp(p) * gradient]
    found = log_and_sign(jnp.asarray([gradient], jnp.float32), p)[:, 0]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_log_and_sign_is_differentiable_everywhere():
    """Fault: the logarithm of 0 on the side that is not taken makes the derivative NaN."""
    slopes = jax.vmap(jax.grad(lambda g: log_and_sign(g[None]).sum()))(
        jnp.asarray([0.0, 1e-12, -1e-3, 2.0])
    )
    assert np.isfinite(slopes).all()
    np.testing.assert_allclose(slopes[0], np.exp(10), rtol=1e-5)


def test_a_constant_gradient_is_its_own_momentum():
    """Faults: momenta share a decay, or keep the bias of their start at 0."""
    means, gradient = [jnp.zeros(2)] * len(DECAYS), jnp.asarray([1.0, -3.0])
    for step in range(1, 4):
        means = momenta(means, gradient)
        for mean, decay in zip(means, DECAYS, strict=True):
            np.testing.assert_allclose(
                bias_corrected(mean, decay, jnp.int32(step)), gradient, rtol=1e-4
            )
    assert len({float(mean[0]) for mean in means}) == len(DECAYS)
