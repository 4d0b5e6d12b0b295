"""Learned optimizers of parameters that are sharded over the devices of a mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from metaguide.optimizers import hyper, lstm, mlp, rnn

RULES = {"lstm": lstm(5), "rnn": rnn(5), "mlp": mlp(4), "hyper": hyper(6, 3)}
SPECS = {"w": PartitionSpec("a", "b"), "b": PartitionSpec("a"), "s": PartitionSpec()}
PARAMS = {"w": jnp.linspace(-2, 2, 48).reshape(8, 6), "b": jnp.ones(8), "s": jnp.ones(())}

every = pytest.mark.parametrize("name", RULES)
kinds = pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=lambda k: k.name)


def two_moves(optimizer, params):
    """The state after two updates with the gradient p² of each parameter, and the last one."""

    @jax.jit
    def update(state, params):
        return optimizer.update(jax.tree.map(jnp.square, params), state, params, value=1.0)

    _, state = update(optimizer.init(params), params)
    return update(state, params)


@every
@kinds
def test_sharded_parameters_move_like_whole_ones(name, kind):
    """Faults: a rule cannot read parameters whose type names a sharding; it mixes up their parts;
    the moves are not sharded like the parameters, or the memory of `mlp` and `hyper` is not, so
    that each device holds all of it."""
    optimizer = RULES[name].transform(RULES[name].init(jax.random.key(0)))
    wanted, _ = two_moves(optimizer, PARAMS)
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(kind, kind))
    shardings = {key: NamedSharding(mesh, spec) for key, spec in SPECS.items()}
    with jax.set_mesh(mesh):
        moves, state = two_moves(optimizer, jax.device_put(PARAMS, shardings))
    for key, move in moves.items():
        np.testing.assert_allclose(move, wanted[key], rtol=2e-5, atol=1e-8)
        if name in ("mlp", "hyper"):
            assert state.history.variance[key].sharding.is_equivalent_to(shardings[key], move.ndim)
        if kind == AxisType.Explicit:
            assert move.sharding.is_equivalent_to(shardings[key], move.ndim)


@every
def test_the_meta_gradient_passes_through_sharded_parameters(name):
    """Fault: θ has no gradient, or another one, where the parameters are sharded."""

    def of_theta(theta, params):
        optimizer = RULES[name].transform(theta)
        moves, _ = optimizer.update(params, optimizer.init(params), params, value=1.0)
        return optax.tree.norm(moves)

    theta = RULES[name].init(jax.random.key(0))
    wanted = jax.jit(jax.grad(of_theta))(theta, PARAMS)
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Explicit,) * 2)
    shardings = {key: NamedSharding(mesh, spec) for key, spec in SPECS.items()}
    with jax.set_mesh(mesh):
        found = jax.jit(jax.grad(of_theta))(theta, jax.device_put(PARAMS, shardings))
    for one, other in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-6)


@every
@pytest.mark.parametrize("params", [{}, {"a": None}, {"a": jnp.zeros((0, 3))}], ids=str)
def test_there_may_be_nothing_to_move(name, params):
    """Fault: a group of parameters that is empty, as `optax.partition` makes, is an error."""
    optimizer = RULES[name].transform(RULES[name].init(jax.random.key(0)))
    moves, _ = optimizer.update(params, optimizer.init(params), params, value=1.0)
    assert jax.tree.structure(moves) == jax.tree.structure(params)


@every
def test_gradients_may_be_in_other_containers(name):
    """Fault: gradients as a list, of parameters as a tuple, are an error, or change the state."""
    optimizer = RULES[name].transform(RULES[name].init(jax.random.key(0)))
    params = (jnp.ones(3), jnp.ones(2))
    state = optimizer.init(params)
    _, after = optimizer.update(list(params), state, params, value=1.0)
    assert jax.tree.structure(after) == jax.tree.structure(state)


@pytest.mark.parametrize("name", ["mlp", "hyper"])
def test_optax_finds_what_is_shaped_like_the_parameters(name):
    """Fault: `optax.tree.map_params`, by which states are sharded, cannot tell the momenta."""
    optimizer = RULES[name].transform(RULES[name].init(jax.random.key(0)))
    state = optimizer.init(PARAMS)
    marked = optax.tree.map_params(
        optimizer, lambda leaf, spec: spec, state, SPECS, transform_non_params=lambda leaf: None
    )
    assert marked.history == type(marked.history)((SPECS,) * 3, SPECS)
    assert marked.step is marked.skipped is None
