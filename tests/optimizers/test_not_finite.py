"""What every learned optimizer does with gradients that are not finite, or of another magnitude."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.train_state import TrainState

from metaguide.optimizers import apply_gradients, hyper, lstm, mlp, rnn

RULES = {"lstm": lstm(5), "rnn": rnn(5), "mlp": mlp(4), "hyper": hyper(6, 3)}
PARAMS = {"a": jnp.asarray([[1.0, -2.0, 0.5]]), "b": jnp.asarray([0.3, -0.1])}

every = pytest.mark.parametrize("name", RULES)


def updated(name, gradients, dtype=jnp.float32, loss=1.0):
    """The updates and the state after some gradients of `a`; those of `b` are 1."""
    rule = RULES[name]
    theta = jax.tree.map(lambda leaf: leaf.astype(dtype), rule.init(jax.random.key(0)))
    optimizer = rule.transform(theta)
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), PARAMS)
    state, moves, step = optimizer.init(params), [], jax.jit(optimizer.update)
    for gradient in gradients:
        a = jnp.asarray([gradient], dtype)
        given = {"a": a, "b": jnp.ones(2, dtype)}
        move, state = step(given, state, params, value=jnp.asarray(loss, dtype))
        moves.append(move)
    return moves, state


def is_finite(tree):
    return all(np.isfinite(np.asarray(leaf, np.float32)).all() for leaf in jax.tree.leaves(tree))


@pytest.mark.slow
@every
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_entry_without_a_gradient_is_skipped_and_counted(name, bad):
    """Faults: one NaN spoils the parameters or the memory of all entries for good; an entry moves
    by what is no gradient; nothing says that it happened."""
    moves, state = updated(name, [(1.0, 2.0, 3.0), (bad, 2.0, 3.0), (1.0, bad, bad), (1, 2, 3)])
    assert is_finite((moves, state))
    assert moves[1]["a"][0, 0] == 0 and (moves[2]["a"][0, 1:] == 0).all()
    assert (moves[1]["a"][0, 1:] != 0).all() and moves[2]["a"][0, 0] != 0
    assert state.skipped == 2
    if name == "hyper":  # whose rule of a tensor depends on all of its gradients
        return
    # The memory of an entry is that of the gradients it had.
    others, _ = updated(name, [(1.0, 2.0, 3.0), (9.0, 2.0, 3.0), (1.0, 9.0, 9.0), (1, 2, 3)])
    np.testing.assert_array_equal(moves[1]["a"][0, 1:], others[1]["a"][0, 1:])


@pytest.mark.parametrize("name", ["lstm", "rnn"])
def test_problems_as_one_count_each_their_own(name):
    """Faults: a problem's bad gradient is counted for the others, or stops them."""
    rule = RULES[name]
    optimizer = rule.transform(rule.init(jax.random.key(0)))
    many = {"w": jnp.ones((3, 4)).at[1, 2].set(jnp.nan)}
    states = jax.vmap(optimizer.init)(many)
    moved, whole = jax.jit(optimizer.update)(many, rule.joint.join(states, many))
    apart, expected = jax.jit(jax.vmap(optimizer.update))(many, states)
    np.testing.assert_array_equal(rule.joint.part(whole, many).skipped, [0, 1, 0])
    np.testing.assert_array_equal(expected.skipped, [0, 1, 0])
    np.testing.assert_allclose(moved["w"], apart["w"], rtol=1e-5)


@every
@pytest.mark.parametrize("size", [1e-30, 1e9, 3e19, 3e38])
def test_gradients_of_any_magnitude(name, size):
    """Fault: a square overflows, and ∞ / ∞ is no update where Adam has one."""
    moves, state = updated(name, [(size, -size, size)] * 3)
    assert is_finite((moves, state)) and state.skipped == 0


@every
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sixteen_bits(name, dtype):
    """Fault: a decay of .999 is 1 in bfloat16, and a running mean less its bias is 0 / 0."""
    moves, state = updated(name, [(1.0, -2.0, 300.0)] * 3, jnp.dtype(dtype))
    assert is_finite((moves, state))
    assert jax.tree.leaves(moves)[0].dtype == jnp.dtype(dtype)


def test_a_loss_that_is_not_finite_has_no_trend():
    """Fault: one infinite loss is in the running means of the losses for good."""
    rule = RULES["hyper"]
    optimizer = rule.transform(rule.init(jax.random.key(0)))
    state, step = optimizer.init(PARAMS), jax.jit(optimizer.update)
    for loss in (1.0, jnp.inf, jnp.nan, 1.0):
        move, state = step(PARAMS, state, PARAMS, value=jnp.float32(loss))
        assert is_finite((move, state))


@pytest.mark.slow
def test_a_rule_that_reads_the_loss_trains_a_flax_state():
    """Fault: a TrainState cannot hand the loss on, so that `hyper` cannot train one."""
    rule = RULES["hyper"]
    tx = rule.transform(rule.init(jax.random.key(0)))
    state = TrainState.create(apply_fn=lambda *_: None, params=PARAMS, tx=tx)
    after = jax.jit(apply_gradients)(state, PARAMS, value=jnp.float32(2.0))
    moves, _ = tx.update(PARAMS, state.opt_state, PARAMS, value=jnp.float32(2.0))
    expected = optax.apply_updates(PARAMS, moves)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), after.params, expected)
    assert after.step == 1 and after.opt_state.step == 1
    adam = TrainState.create(apply_fn=lambda *_: None, params=PARAMS, tx=optax.adam(0.1))
    with jax.numpy_dtype_promotion("standard"):
        plain = adam.apply_gradients(grads=PARAMS)
        again = apply_gradients(adam, PARAMS, value=1.0)
    jax.tree.map(np.testing.assert_array_equal, plain.params, again.params)
