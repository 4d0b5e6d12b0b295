import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaguide.inner_loop import FirstOrder, Unrolled, inner_loop, run

RATE, STEPS = 0.3, 5


def loss(params, batch):
    error = jnp.tanh(batch["x"] @ params["w"]) + params["b"] - batch["y"]
    return jnp.mean(error**2), {"error": error}


UNROLLED = Unrolled()


def make(dtype=np.float32, batches=None):
    rng, lead = np.random.default_rng(0), () if batches is None else (batches,)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), dtype)

    batch = {"x": normal(*lead, 6, 3), "y": normal(*lead, 6)}
    return {"w": normal(3), "b": jnp.zeros((), dtype)}, batch


def adapt(optimizer, steps, mode=UNROLLED, observe=None):
    """(params, batches with a leading axis of steps) -> (params after the loop, observations)."""

    def adapted(params, batches):
        loop = inner_loop(loss, optimizer, mode)
        carry, seen = run(
            loop,
            loop.start(params),
            lambda step: jax.tree.map(lambda leaf: leaf[step], batches),
            steps,
            observe,
        )
        return carry.params, seen

    return adapted


def meta_loss(mode, steps=STEPS):
    def value(params, batches):
        return loss(adapt(optax.sgd(RATE), steps, mode)(params, batches)[0], last(batches))[0]

    return value


def last(batches):
    return jax.tree.map(lambda leaf: leaf[-1], batches)


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def near(a, b, rtol, atol=0.0):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol, atol), a, b)


@pytest.mark.parametrize("optimizer", [optax.sgd(RATE), optax.adam(0.1)], ids=["sgd", "adam"])
def test_scan_is_the_plain_loop(optimizer):
    """Faults: the optimizer's state is started anew each step, a step reads the batch of another
    step, or the update has the wrong sign."""
    params, batches = make(batches=STEPS)
    found, _ = jax.jit(adapt(optimizer, STEPS))(params, batches)
    state, slope = optimizer.init(params), jax.jit(jax.grad(lambda p, batch: loss(p, batch)[0]))
    with jax.numpy_dtype_promotion("standard"):
        for step in range(STEPS):
            gradient = slope(params, jax.tree.map(lambda leaf: leaf[step], batches))
            updates, state = optimizer.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
    near(found, params, rtol=1e-5, atol=1e-6)


def test_three_steps_and_two_are_five_to_the_bit():
    """Faults: the carry forgets the step (and so the batch), or the optimizer's moments."""
    params, batches = make(batches=5)
    loop = inner_loop(loss, optax.adam(0.1))

    def at(step):
        return jax.tree.map(lambda leaf: leaf[step], batches)

    whole, _ = run(loop, loop.start(params), at, 5)
    part, _ = run(loop, loop.start(params), at, 3)
    assert part.step == 3
    resumed, _ = run(loop, part, at, 2)
    same(whole, resumed)


def test_observations_stand_before_the_first_step_and_after_each():
    """Faults: step 0 is missing or the last step is; observations are of the gradient's point
    (one step behind)."""
    params, batches = make(batches=STEPS)
    _, seen = jax.jit(adapt(optax.sgd(RATE), STEPS, observe=lambda p: {"seen": p}))(params, batches)
    assert seen["seen"]["w"].shape == (STEPS + 1, 3)
    same(jax.tree.map(lambda leaf: leaf[0], seen["seen"]), params)
    for steps in (1, STEPS):
        after, nothing = jax.jit(adapt(optax.sgd(RATE), steps))(params, batches)
        assert nothing is None
        near(jax.tree.map(lambda leaf: leaf[steps], seen["seen"]), after, rtol=1e-6, atol=1e-7)


def test_zero_steps_return_what_came_in():
    """Fault: a loop of no steps moves the parameters or observes nothing."""
    params, batches = make(batches=1)
    after, seen = adapt(optax.sgd(RATE), 0, observe=lambda p: p["w"])(params, batches)
    same(after, params)
    same(seen, params["w"][None])


def test_fewer_than_zero_steps_is_an_error():
    """Fault: a negative number of steps is taken for none."""
    params, batches = make(batches=1)
    with pytest.raises(ValueError, match="steps is -1"):
        adapt(optax.sgd(RATE), -1)(params, batches)


def test_remat_changes_nothing():
    """Fault: recomputing the activations changes the value or the meta-gradient."""
    params, batches = make(batches=STEPS)
    plain, remat = (
        jax.jit(jax.value_and_grad(meta_loss(mode)))(params, batches)
        for mode in (Unrolled(), Unrolled(remat=True))
    )
    near(plain, remat, rtol=1e-5, atol=1e-7)


def test_first_order_is_the_gradient_at_the_adapted_parameters():
    """Faults: second derivatives leak into the first-order meta-gradient, or the path through the
    parameters is cut too and it is zero."""
    params, batches = make(batches=STEPS)
    found = jax.jit(jax.grad(meta_loss(FirstOrder())))(params, batches)
    adapted, _ = jax.jit(adapt(optax.sgd(RATE), STEPS))(params, batches)
    expected = jax.jit(jax.grad(lambda p: loss(p, last(batches))[0]))(adapted)
    near(found, expected, rtol=1e-5, atol=1e-6)
    exact = jax.jit(jax.grad(meta_loss(Unrolled())))(params, batches)
    assert abs(exact["w"] - found["w"]).max() > 1e-2


def test_unrolled_meta_gradient_against_finite_differences():
    """Fault: a second-order term is dropped or counted twice."""
    with jax.enable_x64(True):
        params, batches = make(dtype=np.float64, batches=STEPS)
        slope = jax.jit(jax.value_and_grad(meta_loss(Unrolled())))
        _, gradient = slope(params, batches)
        assert gradient["w"].dtype == jnp.float64
        step = 1e-5
        for axis in range(3):
            ahead, behind = (
                slope({**params, "w": np.asarray(params["w"]) + by * np.eye(3)[axis]}, batches)[0]
                for by in (step, -step)
            )
            difference = (ahead - behind) / (2 * step)
            np.testing.assert_allclose(gradient["w"][axis], difference, rtol=1e-7)


@pytest.mark.parametrize("mode", [Unrolled(), FirstOrder()], ids=["unrolled", "first order"])
def test_the_loss_reaches_a_transform_that_wants_it(mode):
    """Fault: `value=` is dropped, so that rules that read the loss (line search, learned ones)
    cannot be inner rules."""

    def update(updates, state, params=None, *, value, **extra):
        return jax.tree.map(jnp.zeros_like, updates), state + value

    sums = optax.GradientTransformationExtraArgs(lambda params: jnp.zeros(()), update)
    params, batch = make()
    loop = inner_loop(loss, sums, mode)
    carry, _ = run(loop, loop.start(params), lambda step: batch, 3)
    near(carry.optimizer, 3 * loss(params, batch)[0], rtol=1e-6)
