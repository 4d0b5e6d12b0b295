"""Fixed and learned weights of the tasks."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.test_util import check_grads

from metaguide.objectives.weighting import fixed, uncertainty

LOSSES = {"a": jnp.float32(2.0), "b": jnp.float32(0.25), "c": jnp.float32(5.0)}


def test_fixed_is_the_weighted_sum():
    """Fault: J(θ) is not Σ λ J: weights normalised, squared, or matched by order."""
    weighting = fixed({"c": 0.1, "a": 1.0, "b": 4.0})
    assert weighting.init() == {}
    np.testing.assert_allclose(weighting.combine({}, LOSSES), 0.5 + 2.0 + 1.0, rtol=1e-6)
    gradient = jax.grad(lambda losses: weighting.combine({}, losses))(LOSSES)
    np.testing.assert_allclose([gradient[name] for name in "abc"], [1.0, 4.0, 0.1], rtol=1e-6)


def test_uncertainty_is_its_formula():
    """Fault: a factor of a half, a sign, or the regulariser left out."""
    weighting = uncertainty(["a", "b", "c"])
    params = weighting.init()
    np.testing.assert_allclose(weighting.combine(params, LOSSES), 7.25, rtol=1e-6)
    params = {"a": jnp.float32(0.3), "b": jnp.float32(-1.0), "c": jnp.float32(2.0)}
    expected = sum(np.exp(-params[n]) * LOSSES[n] + params[n] for n in "abc")
    np.testing.assert_allclose(weighting.combine(params, LOSSES), expected, rtol=1e-6)


def test_uncertainty_gradients_against_finite_differences():
    """Fault: no gradient to the weights, or to the losses."""
    with jax.enable_x64(True):
        weighting = uncertainty(("a", "b"))
        params = {"a": jnp.asarray(0.3, jnp.float64), "b": jnp.asarray(-0.4, jnp.float64)}
        losses = {"a": jnp.asarray(2.0, jnp.float64), "b": jnp.asarray(0.5, jnp.float64)}
        check_grads(jax.jit(weighting.combine), (params, losses), 2, ("rev",))


def test_the_optimum_is_the_log_of_each_loss():
    """Fault: weights that learn in the wrong direction, or to another fixed point."""
    weighting = uncertainty(LOSSES)
    rule = optax.sgd(0.3)

    def step(carry, _):
        params, state = carry
        gradient = jax.grad(weighting.combine)(params, LOSSES)
        updates, state = rule.update(gradient, state)
        return (optax.apply_updates(params, updates), state), None

    start = weighting.init()
    (params, _), _ = jax.lax.scan(step, (start, rule.init(start)), length=200)
    for name, loss in LOSSES.items():
        np.testing.assert_allclose(params[name], np.log(loss), atol=1e-4)


def test_names_that_do_not_match_are_named():
    """Fault: a loss without a weight is dropped in silence."""
    for weighting in (fixed({"a": 1.0, "x": 1.0}), uncertainty(["a", "x"])):
        with pytest.raises(ValueError, match=r"no loss \['x'\], no weight \['b', 'c'\]"):
            weighting.combine(weighting.init(), LOSSES)
    with pytest.raises(ValueError, match="no losses to weigh"):
        fixed({})
    with pytest.raises(ValueError, match="no losses to weigh"):
        uncertainty([])
