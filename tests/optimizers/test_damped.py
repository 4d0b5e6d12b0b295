"""A bounded second order: what passes back through an inner gradient, step by step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaguide.optimizers import damped

RATE, STEPS = 0.4, 3
START = {"a": np.asarray([0.3, -1.2]), "b": np.asarray(0.7)}


def loss(params):
    return jnp.cos(params["a"].sum()) * params["b"] + (params["a"] ** 4).sum()


def goal(params):
    return jnp.sin(params["a"]).sum() + params["b"] ** 2


def meta_gradient(largest):
    """Of the goal after some steps, in float64."""
    optimizer = damped(optax.sgd(RATE), largest)

    def after(params):
        state = optimizer.init(params)
        for _ in range(STEPS):
            updates, state = optimizer.update(jax.grad(loss)(params), state, params)
            params = optax.apply_updates(params, updates)
        return goal(params)

    return jax.grad(after)(START)


def by_hand(largest):
    """The same, with Hessians and the bound written out."""
    flat = jnp.concatenate([START["a"], START["b"][None]])
    tree = lambda x: {"a": x[:2], "b": x[2]}  # noqa: E731
    way = [flat]
    for _ in range(STEPS):
        way.append(way[-1] - RATE * jax.grad(lambda x: loss(tree(x)))(way[-1]))
    slope = jax.grad(lambda x: goal(tree(x)))(way[-1])
    for place in reversed(way[:-1]):
        back = -RATE * slope
        back = back * min(1.0, largest / float(jnp.linalg.norm(back)))
        slope = slope + jax.hessian(lambda x: loss(tree(x)))(place) @ back
    return tree(slope)


@pytest.mark.slow
@pytest.mark.parametrize("largest", [0.0, 0.05, 0.2, np.inf])
def test_each_step_passes_back_no_more_than_the_bound(largest):
    """Faults: the whole is bounded and not each step, a leaf and not all, the sign is lost; 0 is
    not first order, infinity not exact."""
    with jax.enable_x64(True):
        found, expected = meta_gradient(largest), by_hand(largest)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), found, expected)
        apart = optax.tree.sub(found, by_hand(0.1))
        assert optax.tree.norm(apart) > 1e-3


def test_forward_nothing_changes():
    """Fault: the gradient that the optimizer reads is bounded too."""
    gradient = jax.tree.map(lambda leaf: 100 * leaf.astype(np.float32), START)
    rule = optax.trace(0.9)
    found, _ = damped(rule, 1e-3).update(gradient, rule.init(gradient))
    expected, _ = rule.update(gradient, rule.init(gradient))
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def slope_through(optimizer, gradient, **extra):
    def moved(gradient, extra):
        updates, _ = optimizer.update(gradient, optimizer.init(gradient), **extra)
        return optax.tree.sum(updates)

    return jax.grad(moved, argnums=(0, 1))(gradient, extra)


def test_what_is_not_finite_passes_nothing():
    """Fault: the root at 0 makes the whole meta-gradient infinite, or no number."""
    root = optax.stateless(lambda updates, _: jax.tree.map(jnp.sqrt, updates))
    found, _ = slope_through(damped(root, 1.0), {"x": jnp.asarray([0.0, 4.0])})
    np.testing.assert_array_equal(found["x"], [0, 0])
    found, _ = slope_through(damped(root, 1.0), {"x": jnp.asarray([1.0, 4.0])})
    np.testing.assert_allclose(found["x"], [0.5, 0.25])


def test_problems_side_by_side_have_a_norm_each():
    """Fault: one problem's curvature shrinks what another passes back."""
    weights = jnp.asarray([[3.0, 4.0], [0.3, 0.4]])
    weighted = optax.stateless(lambda updates, _: updates * weights)
    found, _ = slope_through(damped(weighted, 1.0, each=jax.vmap), jnp.ones((2, 2)))
    np.testing.assert_allclose(found, [[0.6, 0.8], [0.3, 0.4]], rtol=1e-6)


def test_what_passes_through_the_loss_is_bounded_too():
    """Fault: a rule that reads the loss passes back what its gradient may not."""

    def update(updates, state, params=None, *, value):
        return jax.tree.map(lambda leaf: leaf * value, updates), state

    rule = optax.GradientTransformationExtraArgs(lambda params: (), update)
    gradient = {"x": jnp.asarray([30.0, 40.0])}
    found, extra = slope_through(damped(rule, 1.0), gradient, value=jnp.asarray(0.5))
    np.testing.assert_allclose(found["x"], [0.5, 0.5], rtol=1e-6)
    np.testing.assert_allclose(extra["value"], 1.0, rtol=1e-6)


@pytest.mark.parametrize("largest", [-1.0, np.nan])
def test_a_bound_that_is_none_is_an_error(largest):
    """Fault: the sign of the meta-gradient turns, or it is no number."""
    with pytest.raises(ValueError, match="a bound on a norm is 0 or more"):
        damped(optax.sgd(1.0), largest)
