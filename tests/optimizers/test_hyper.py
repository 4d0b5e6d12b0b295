"""The HyperNetwork's rule: what it reads, what it makes, what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaguide.inner_loop import Unrolled, adapt
from metaguide.optimizers.features import DECAYS, loss_trend, tensor_statistics
from metaguide.optimizers.perceptron import hyper, mlp

RULE = hyper(6, 3)
PARAMS = {"a": jnp.asarray([[1.0, -2.0, 0.5]]), "b": jnp.asarray(0.3)}


def steps(theta, losses, params=PARAMS, gradients=None):
    optimizer = RULE.transform(theta)
    update, state = jax.jit(optimizer.update), optimizer.init(params)
    moves = []
    for place, loss in enumerate(losses):
        gradient = params if gradients is None else gradients[place]
        move, state = update(gradient, state, params, value=jnp.float32(loss))
        moves.append(move)
    return moves, state


@pytest.mark.slow
def test_it_starts_as_adam():
    """Faults: the weights that it makes are not put where the rule reads them; the tensors' means
    are mixed up."""
    theta = RULE.init(jax.random.key(0))
    theta = {**theta, "made": jnp.zeros_like(theta["made"])}
    base = jax.tree.map(jnp.zeros_like, theta["base"]) | {"skip": theta["base"]["skip"]}
    moves, _ = steps({**theta, "base": base}, [1.0, 0.5])
    own = mlp(3).init(jax.random.key(0))
    own = jax.tree.map(jnp.zeros_like, own) | {"skip": base["skip"]}
    optimizer = mlp(3).transform(own)
    state = optimizer.init(PARAMS)
    for move in moves:
        expected, state = optimizer.update(PARAMS, state)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), move, expected)


@pytest.mark.slow
def test_it_reads_the_loss_the_parameters_and_the_step():
    """Faults: the trend of the loss, the tensor's size or the step reach no weight."""
    theta = RULE.init(jax.random.key(0))
    theta = {**theta, "made": 10 * theta["made"]}
    gradient = {"a": jnp.ones((1, 3)), "b": jnp.ones(())}

    def second(losses, params=PARAMS):
        return float(steps(theta, losses, params, [gradient] * len(losses))[0][-1]["a"][0, 0])

    plain = second([1.0, 1.0])
    assert abs(second([1.0, 0.2]) - plain) > 1e-5
    assert abs(second([1.0, 1.0], jax.tree.map(lambda p: 9 * p, PARAMS)) - plain) > 1e-5
    assert abs(second([1.0, 1.0, 1.0]) - plain) > 1e-5


@pytest.mark.slow
def test_it_is_differentiated_in_an_inner_loop_and_a_chain():
    """Faults: the loss does not come through a chain or the loop; a derivative is not finite."""

    def learned(theta):
        optimizer = optax.chain(optax.clip_by_global_norm(5.0), RULE.transform(theta))
        loss = lambda x, batch: (jnp.square(x["w"] - 1).sum(), ())  # noqa: E731
        start = {"w": jnp.zeros(3), "empty": jnp.zeros((0,))}
        return adapt(loss, optimizer, Unrolled(), start, lambda step: (), 3)[0]["w"].sum()

    slope = jax.jit(jax.grad(learned))(RULE.init(jax.random.key(0)))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slope))
    assert optax.tree.norm(slope["tensor"]) > 0 and optax.tree.norm(slope["made"]) > 0


def test_the_state_keeps_its_dtypes():
    """Fault: a second step is compiled anew, or cannot be scanned."""
    first = RULE.transform(RULE.init(jax.random.key(0))).init(PARAMS)
    _, after = steps(RULE.init(jax.random.key(0)), [1.0])
    assert jax.tree.map(jnp.result_type, first) == jax.tree.map(jnp.result_type, after)
    assert jax.tree.structure(first) == jax.tree.structure(after)


def test_what_it_lacks_is_one_clear_error():
    """Faults: without the loss the trend is that of 0; without parameters their size is that of the
    gradient."""
    optimizer = RULE.transform(RULE.init(jax.random.key(0)))
    state = optimizer.init(PARAMS)
    with pytest.raises(ValueError, match=r"reads the loss: call update\(.*value=loss\)"):
        optimizer.update(PARAMS, state, PARAMS)
    with pytest.raises(ValueError, match="reads the parameters"):
        optimizer.update(PARAMS, state, value=jnp.float32(1))


def test_the_trend_of_a_loss():
    """Faults: a falling loss trends up, a constant one trends, means keep the bias of
    their start."""
    means = jnp.zeros(len(DECAYS))
    for step, loss in enumerate([3.0] * 5, 1):
        means, trend = loss_trend(means, jnp.float32(loss), jnp.int32(step))
        np.testing.assert_allclose(trend, 0.0, atol=1e-5)
    _, trend = loss_trend(means, jnp.float32(1.0), jnp.int32(6))
    assert (trend < -0.01).all()


@pytest.mark.slow
def test_tensor_statistics():
    """Faults: a sum for a mean, a cosine without its lengths, NaN where all is 0."""
    params, gradient = jnp.full(4, 3.0), jnp.asarray([1.0, 0, 0, 0])
    momentum = [gradient, -2 * gradient, jnp.zeros(4)]
    found = tensor_statistics(params, gradient, momentum)
    sizes = [np.log(3) / 10, np.log(0.5) / 10, np.log(1e-8) / 10, np.log(4) / 10]
    np.testing.assert_allclose(found, [*sizes, 1, -1, 0], rtol=1e-5, atol=1e-6)
    nothing = lambda p: tensor_statistics(p, jnp.zeros(4), [jnp.zeros(4)] * 3).sum()  # noqa: E731
    assert np.isfinite(jax.grad(nothing)(jnp.zeros(4))).all()
