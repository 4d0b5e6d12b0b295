"""Learned rules of a coordinate: any tree, chunks, hand-set to be SGD or Adam, errors."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaguide.inner_loop import Unrolled, adapt
from metaguide.optimizers.perceptron import ADAM, mlp
from metaguide.optimizers.recurrent import lstm, rnn

RULES = {"lstm": lstm(5), "rnn": rnn(5), "mlp": mlp(3), "plain lstm": lstm(4, 1, None)}
every = pytest.mark.parametrize("name", RULES)


def tree(scale=1.0):
    rng = np.random.default_rng(0)
    shapes = {"a": (2, 3), "scalar": (), "b": [(4,), (0,)]}
    return jax.tree.map(
        lambda shape: jnp.asarray(scale * rng.normal(size=shape), jnp.float32),
        shapes,
        is_leaf=lambda shape: isinstance(shape, tuple),
    )


def same(found, expected, **near):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **near), found, expected)


def steps(rule, theta, gradients, params=None):
    optimizer = rule.transform(theta)
    state, moves = optimizer.init(tree() if params is None else params), []
    update = jax.jit(optimizer.update)
    for gradient in gradients:
        move, state = update(gradient, state)
        moves.append(move)
    return moves, state


@pytest.mark.slow
@every
def test_any_shapes_as_one_coordinate_at_a_time(name):
    """Faults: coordinates are mixed up, a scalar or an empty tensor is an error, the dtype of an
    update or of the state is another after a step, the second step does not read the first."""
    rule = RULES[name]
    theta = rule.init(jax.random.key(0))
    moves, state = steps(rule, theta, [tree(), tree(0.1)])
    flat = [jnp.concatenate([x.ravel() for x in jax.tree.leaves(tree(s))]) for s in (1.0, 0.1)]
    for place in range(len(flat[0])):
        alone, _ = steps(rule, theta, [one[place] for one in flat], jnp.zeros(()))
        for move, expected in zip(moves, alone, strict=True):
            whole = jnp.concatenate([x.ravel() for x in jax.tree.leaves(move)])
            np.testing.assert_allclose(whole[place], expected, rtol=1e-5, atol=1e-7)
    first = rule.transform(theta).init(tree())
    assert jax.tree.map(lambda a: (a.shape, a.dtype), first) == jax.tree.map(
        lambda a: (a.shape, a.dtype), state
    )
    assert jax.tree.map(jnp.shape, moves[1]) == jax.tree.map(jnp.shape, tree())


@pytest.mark.parametrize("name", ["lstm", "rnn", "plain lstm"])
def test_chunks_change_nothing(name, monkeypatch):
    """Faults: chunks come back in another order, the last one's padding comes back with them, or
    their memories are one another's."""
    rule = RULES[name]
    theta = rule.init(jax.random.key(1))
    gradients = [tree(), tree(2.0), tree(-1.0)]
    whole, _ = steps(rule, theta, gradients)
    module = importlib.import_module("metaguide.optimizers.coordinatewise")
    monkeypatch.setattr(module, "CHUNK", 4)
    parts, state = steps(rule, theta, gradients)
    same(parts, whole, rtol=1e-5, atol=1e-7)
    assert all(leaf.shape[0] == 3 for leaf in jax.tree.leaves(state.memory))


@pytest.mark.slow
@every
def test_in_optax_and_in_the_inner_loop(name):
    """Faults: it does not stand in a chain, under vmap or scan, or cannot be differentiated."""
    rule = RULES[name]

    def learned(theta, start):
        optimizer = optax.chain(optax.clip_by_global_norm(10.0), rule.transform(theta))
        loss = lambda x, batch: (jnp.sum(jnp.square(x["w"] - batch)), ())  # noqa: E731
        return adapt(loss, optimizer, Unrolled(), {"w": start}, lambda step: jnp.ones(3), 3)[0]["w"]

    theta = rule.init(jax.random.key(0))
    starts = jnp.stack([jnp.zeros(3), jnp.full(3, 2.0)])
    many = jax.jit(jax.vmap(learned, (None, 0)))(theta, starts)
    np.testing.assert_allclose(many[1], learned(theta, starts[1]), rtol=1e-5)
    slope = jax.jit(jax.grad(lambda theta: learned(theta, starts[0]).sum()))(theta)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slope))
    assert optax.tree.norm(slope) > 0


def small_signal(rule, gates):
    """θ of one layer of one unit that passes a small signal on unchanged."""
    theta = jax.tree.map(jnp.zeros_like, rule.init(jax.random.key(0)))
    small = 1e-3
    theta["layer0"]["kernel"] = theta["layer0"]["kernel"].at[0, -1].set(small)
    theta["layer0"]["bias"] = jnp.asarray(gates)
    return theta | {"output": jnp.asarray([-1 / small])}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rule", "gates"),
    [(rnn(1, 1, None, 0.1), [0.0]), (lstm(1, 1, None, 0.1), [50.0, -50.0, 50.0, 0.0])],
    ids=["rnn", "lstm"],
)
def test_a_recurrent_rule_set_to_be_sgd_is_sgd(rule, gates):
    """Faults: a gate is another's, the forget gate forgets the wrong way round, the output has
    another sign or scale, the gradient is preprocessed where it should not be."""
    with jax.enable_x64(True):
        theta = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), small_signal(rule, gates))
        gradients = [jax.tree.map(lambda a: a.astype(jnp.float64), tree(s)) for s in (1.0, -0.3)]
        moves, _ = steps(rule, theta, gradients, gradients[0])
        for move, gradient in zip(moves, gradients, strict=True):
            same(move, jax.tree.map(lambda g: -0.1 * g, gradient), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [4096, 4])
@pytest.mark.parametrize("name", ["rnn", "plain lstm"])
def test_problems_as_one_are_each_alone(name, chunk, monkeypatch):
    """Faults: what is remembered goes to another problem or tensor, on the way in or back; a scalar
    or an empty tensor takes what is another's."""
    monkeypatch.setattr(
        importlib.import_module("metaguide.optimizers.coordinatewise"), "CHUNK", chunk
    )
    rule = RULES[name]
    optimizer = rule.transform(rule.init(jax.random.key(1)))
    many = jax.tree.map(lambda *leaves: jnp.stack(leaves), tree(), tree(0.3), tree(-1.0))
    each = jax.jit(jax.vmap(optimizer.update))
    _, states = each(many, jax.vmap(optimizer.init)(many))
    moved, whole = jax.jit(optimizer.update)(many, rule.joint.join(states, many))
    expected, states = each(many, states)
    same(moved, expected, rtol=1e-5, atol=1e-7)
    again, _ = each(many, rule.joint.part(whole, many))
    same(again, each(many, states)[0], rtol=1e-5, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_the_perceptron_set_to_be_sgd_or_adam_is_that(kind):
    """Faults: momenta, their correction for the start, or the second moment are not Adam's; the
    plain part goes through the learned magnitude."""
    rule = mlp(3, scale=0.01)
    theta = jax.tree.map(jnp.zeros_like, rule.init(jax.random.key(0)))
    place = {"sgd": 0, "adam": ADAM}[kind]
    theta["skip"] = theta["skip"].at[place].set(1.0)
    other = optax.sgd(0.01) if kind == "sgd" else optax.adam(0.01, eps=0.0)
    gradients = [tree(), tree(0.5), tree(-2.0)]
    moves, _ = steps(rule, theta, gradients)
    state = other.init(tree())
    for move, gradient in zip(moves, gradients, strict=True):
        with jax.numpy_dtype_promotion("standard"):
            expected, state = other.update(gradient, state)
        same(move, expected, rtol=2e-5)


@pytest.mark.slow
def test_the_perceptron_is_differentiated_as_it_is_computed():
    """Faults: its products, which stand for the sums where it is differentiated, are others; the
    derivative leaves out a kernel, a bias or what comes through the inputs."""
    with jax.enable_x64(True):
        wide = lambda tree: jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), tree)  # noqa: E731
        rule = mlp(3)
        theta = wide(rule.init(jax.random.key(0)))

        @jax.jit
        def moved(theta, gradient):
            optimizer = rule.transform(theta)
            return optimizer.update(gradient, optimizer.init(gradient))[0]

        at = (theta, jnp.asarray([0.3, -2.0, 1e-3, 5.0]))
        towards = jax.tree.map(lambda a: jnp.cos(jnp.arange(a.size) + a.ndim).reshape(a.shape), at)
        value, slope = jax.jvp(moved, at, towards)
        np.testing.assert_allclose(value, moved(*at), rtol=1e-12)
        ahead, behind = (
            moved(*jax.tree.map(lambda a, d, step=step: a + step * d, at, towards))
            for step in (1e-6, -1e-6)
        )
        np.testing.assert_allclose(slope, (ahead - behind) / 2e-6, rtol=1e-5, atol=1e-9)


@every
def test_a_new_state_can_be_donated(name):
    """Fault: two memories of a new state are one buffer, which cannot be given away twice."""
    rule = RULES[name]
    optimizer = rule.transform(rule.init(jax.random.key(0)))
    state = optimizer.init(tree())
    places = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state) if leaf.size]
    assert len(set(places)) == len(places)


@every
def test_what_a_rule_cannot_read_is_one_clear_error(name):
    """Faults: integers are rounded updates, the parameters of another rule end in an error about
    shapes."""
    rule = RULES[name]
    theta = rule.init(jax.random.key(0))
    optimizer = rule.transform(theta)
    with pytest.raises(TypeError, match=r"\['n'\] is int32; .*optax.partition"):
        optimizer.init({"n": jnp.zeros(3, jnp.int32)})
    with pytest.raises(ValueError, match="theta is of another rule than .*; give what this"):
        rule.transform({**theta, "more": jnp.zeros(2)})
    with pytest.raises(ValueError, match="theta is of another rule"):
        lstm(7).transform(theta)
