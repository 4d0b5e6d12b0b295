import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaguide.inner_loop import (
    FirstOrder,
    Implicit,
    Mixed,
    Unrolled,
    differentiable,
    inner_loop,
    run,
)
from metaguide.inner_loop import adapt as adapt_by

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
    _, seen = jax.jit(adapt(optax.sgd(RATE), STEPS, observe=lambda carry: {"seen": carry.params}))(
        params, batches
    )
    assert seen["seen"]["w"].shape == (STEPS + 1, 3)
    same(jax.tree.map(lambda leaf: leaf[0], seen["seen"]), params)
    for steps in (1, STEPS):
        after, nothing = jax.jit(adapt(optax.sgd(RATE), steps))(params, batches)
        assert nothing is None
        near(jax.tree.map(lambda leaf: leaf[steps], seen["seen"]), after, rtol=1e-6, atol=1e-7)


def test_zero_steps_return_what_came_in():
    """Fault: a loop of no steps moves the parameters or observes nothing."""
    params, batches = make(batches=1)
    after, seen = adapt(optax.sgd(RATE), 0, observe=lambda carry: carry.params["w"])(
        params, batches
    )
    same(after, params)
    same(seen, params["w"][None])


@pytest.mark.parametrize("mode", [Unrolled(), FirstOrder()])
def test_nothing_may_adapt(mode):
    """Fault: a problem without parameters, such as the nearest sentence, cannot be served."""

    def value(params, batch):
        return jnp.zeros(()), {}

    found, seen = adapt_by(value, optax.adam(0.1, eps_root=1e-8), mode, {}, lambda step: (), 2)
    assert found == {} and seen is None


@pytest.mark.parametrize("mode", [Unrolled(), Mixed(), FirstOrder(), Implicit(1.0)])
def test_a_python_number_is_a_parameter(mode):
    """Faults: only an array is; a rule without a second derivative is refused where it takes no
    step."""

    def loss(params, batch):
        return (params - batch) ** 2, {}

    adapted, _ = adapt_by(loss, optax.sgd(0.25), mode, 0.0, lambda step: jnp.float32(1), 1)
    assert float(adapted) > 0
    adapted, _ = adapt_by(loss, optax.adam(0.1), mode, 2.0, lambda step: jnp.float32(1), 0)
    assert float(adapted) == 2


def test_fewer_than_zero_steps_is_an_error():
    """Fault: a negative number of steps is taken for none."""
    params, batches = make(batches=1)
    with pytest.raises(ValueError, match="steps is -1"):
        adapt(optax.sgd(RATE), -1)(params, batches)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [0, 1, 2, 7])
def test_remat_changes_nothing(steps):
    """Faults: recomputing the activations changes the value, the meta-gradient or what is observed;
    the steps that fill no segment are left out, or observed in another order."""
    params, batches = make(batches=max(steps, 1))

    def value(mode):
        def of(params, batches):
            after, seen = adapt(optax.sgd(RATE), steps, mode, lambda carry: carry.params)(
                params, batches
            )
            return loss(after, last(batches))[0], seen

        return jax.jit(jax.value_and_grad(of, has_aux=True))(params, batches)

    near(value(Unrolled()), value(Unrolled(remat=True)), rtol=1e-5, atol=1e-7)
    assert value(Unrolled(remat=True))[0][1]["w"].shape == (steps + 1, 3)


def reached(optimizer, mode, steps=STEPS):
    """Loss behind a loop whose loss closes over floats, integers and a step of its own."""

    def of(params, batches, scale, chosen):
        def closing(own, batch):
            value, auxiliary = loss(own, batch)
            return value * scale[chosen] + 0.1 * jnp.sum(own["w"] ** 2), auxiliary

        def at(step):
            return {**jax.tree.map(lambda leaf: leaf[step], batches), "number": step}

        after, seen = adapt_by(
            closing, optimizer, mode, params, at, steps, lambda carry: carry.params
        )
        return loss(after, last(batches))[0], seen

    return of


def by_value():
    """SGD whose step depends on the loss that it is told."""

    def update(updates, state, params=None, *, value, **extra):
        del params, extra
        return jax.tree.map(lambda g: -0.02 * value * g, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: (), update)


@pytest.mark.slow
@pytest.mark.parametrize("unroll", [1, 2])
@pytest.mark.parametrize(
    "optimizer",
    [optax.sgd(RATE), optax.adam(0.1, eps_root=1e-8), by_value()],
    ids=["sgd", "adam", "by value"],
)
def test_mixed_mode_is_exact(optimizer, unroll):
    """Faults: the gradient for what the loss closes over, for the batches or by way of the loss's
    value is lost; an integer it closes over cannot be told from a float; steps that fill no pass
    are left out or observed in another order."""
    with jax.enable_x64(True):
        params, batches = make(np.float64, STEPS)
        given = params, batches, jnp.array([0.5, 1.5]), jnp.array(1)
        found, expected = (
            jax.jit(jax.value_and_grad(reached(optimizer, mode), (0, 1, 2), has_aux=True))(*given)
            for mode in (Mixed(unroll), Unrolled())
        )
        near(found, expected, rtol=1e-9, atol=1e-12)
        assert all(jnp.any(leaf != 0) for leaf in jax.tree.leaves(found[1]))


@pytest.mark.slow
def test_mixed_mode_maps_over_tasks_whose_loss_closes_over_them():
    """Fault: what a task's loss closes over is one task's for all, or has no mapped form."""
    params, batches = make(batches=STEPS)
    many = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), batches)
    scales, chosen = jnp.array([[0.5, 1.5], [1.0, 2.0]]), jnp.array([1, 0])

    def slopes(mode):
        of = jax.grad(lambda *given: reached(optax.sgd(RATE), mode)(*given)[0], (0, 2))
        return jax.jit(jax.vmap(of, (None, 0, 0, 0)))(params, many, scales, chosen)

    near(slopes(Mixed()), slopes(Unrolled()), rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_mixed_mode_keeps_parameters_alone():
    """Fault: activations of all steps are kept, so that memory is that of an unrolled loop."""
    params = {"w": jnp.ones((4, 4))}
    x = jnp.ones((512, 4))

    def deep(own, batch):
        hidden = batch
        for _ in range(4):
            hidden = jnp.tanh(hidden @ own["w"])
        return jnp.mean(hidden**2), None

    def bytes_of(mode):
        def value(params):
            return deep(adapt_by(deep, optax.sgd(0.1), mode, params, lambda _: x, 32)[0], x)[0]

        memory = jax.jit(jax.grad(value)).lower(params).compile().memory_analysis()
        return memory.temp_size_in_bytes

    assert bytes_of(Mixed()) < bytes_of(Unrolled()) / 8


def test_mixed_mode_of_no_steps_a_pass_is_an_error():
    """Fault: a pass of no steps ends in an error of the compiler."""
    params, batch = make()
    with pytest.raises(ValueError, match="unroll has to be ≥ 1"):
        adapt_by(loss, optax.sgd(RATE), Mixed(0), params, lambda _: batch, 2)


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


SPREAD = np.array([[2.0, 0.3, 0.0], [0.3, 1.0, -0.4], [0.0, -0.4, 0.5]])


def quadratic(params, batch):
    """½ θᵀAθ − bᵀθ, whose proximal solution is (A + λI)⁻¹ (b + λφ)."""
    theta = params["w"]
    return 0.5 * theta @ batch["A"] @ theta - batch["b"] @ theta, None


def implicit_loss(start, scale, steps=400, mode=Implicit(strength=1.5, cg_steps=3)):  # noqa: B008
    """Σ sin of the adapted parameters; the curvature is scaled by what the loop closes over."""
    batch = {"A": SPREAD * scale, "b": np.ones(3)}
    adapted, _ = adapt_by(quadratic, optax.sgd(0.2), mode, {"w": start}, lambda _: batch, steps)
    return jnp.sin(adapted["w"]).sum()


def test_implicit_gradient_is_that_of_the_solution():
    """Faults: the pull is left out of the curvature or of the gradient; what the loss closes over
    gets no gradient; conjugate gradients of as many steps as dimensions are not exact."""

    def solved(start, scale):
        matrix = SPREAD * scale + 1.5 * np.eye(3)
        return jnp.sin(jnp.linalg.solve(matrix, np.ones(3) + 1.5 * start)).sum()

    with jax.enable_x64(True):
        point = jnp.asarray([0.3, -1.0, 2.0]), jnp.asarray(1.2)
        found = jax.jit(jax.value_and_grad(implicit_loss, argnums=(0, 1)))(*point)
        near(found, jax.value_and_grad(solved, argnums=(0, 1))(*point), rtol=1e-9)


def test_implicit_gradient_does_not_pass_through_the_way():
    """Fault: the loop is unrolled as well, so that its length is in the memory of the gradient."""

    def eqns(steps):
        jaxpr = jax.make_jaxpr(jax.grad(lambda w: implicit_loss(w, 1.0, steps)))(jnp.ones(3))
        return {shape for e in jaxpr.eqns for v in e.outvars for shape in [v.aval.shape] if shape}

    assert not any(37 in shape for shape in eqns(37))


@pytest.mark.slow
def test_damping_shrinks_the_implicit_gradient():
    """Faults: damping is left out, or of the other sign. With H = 0 the gradient is v / (1 + d)."""
    flat = lambda params, batch: (0.0 * params["w"].sum(), None)  # noqa: E731

    def value(start, damping):
        mode = Implicit(strength=2.0, cg_steps=2, damping=damping)
        return adapt_by(flat, optax.sgd(0.1), mode, start, lambda _: (), 2)[0]["w"].sum()

    found = [jax.grad(value)({"w": jnp.ones(2)}, damping)["w"] for damping in (0.0, 1.0)]
    near(found, [np.ones(2), np.full(2, 0.5)], rtol=1e-6)


@pytest.mark.parametrize("steps", [0, 3])
def test_implicit_adapts_by_the_pulled_loss(steps):
    """Faults: the inner loop descends the loss without its pull; no step moves the parameters."""
    batch, start = {"A": SPREAD, "b": np.ones(3)}, np.array([0.3, -1.0, 2.0], np.float32)
    theta = start
    for _ in range(steps):
        theta = theta - 0.2 * (SPREAD @ theta - 1 + 1.5 * (theta - start))
    mode = Implicit(strength=1.5)
    found, seen = adapt_by(
        quadratic,
        optax.sgd(0.2),
        mode,
        {"w": jnp.asarray(start)},
        lambda _: jax.tree.map(lambda leaf: leaf.astype(np.float32), batch),
        steps,
        lambda carry: carry.params["w"],
    )
    near(found["w"], theta, rtol=1e-5)
    assert seen.shape == (steps + 1, 3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("optimizer", "fine"),
    [
        (optax.sgd(0.1, momentum=0.9), True),
        (optax.adam(0.1), False),
        (optax.adam(0.1, eps_root=1e-8), True),
        (optax.chain(optax.clip(1.0), optax.adamw(0.1)), False),
        (optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1)), True),
        (optax.lamb(0.1, eps_root=1e-8), False),
        (optax.lars(0.1), False),
        (optax.chain(optax.clip_by_block_rms(1.0), optax.sgd(0.1)), False),
        (optax.radam(0.1, eps_root=1e-8), False),
        (optax.chain(optax.normalize_by_update_norm(), optax.sgd(0.1)), True),
    ],
    ids=[
        *("momentum", "adam", "adam with eps_root", "adamw in a chain", "clipped norm", "lamb"),
        *("lars", "clipped blocks", "radam", "unit norm"),
    ],
)
def test_an_optimizer_that_breaks_second_order_is_refused(optimizer, fine):
    """Faults: Adam's √0, the norm of a leaf of zeros or RAdam's sixth step makes the meta-gradient
    NaN long after; a sound optimizer is refused; it is refused where no second derivative is taken,
    or only outside of jit."""
    params, batch = make()

    def adapted(mode):
        return jax.jit(
            lambda params: adapt_by(loss, optimizer, mode, params, lambda _: batch, 1)[0]
        )(params)

    adapted(FirstOrder())
    if fine:
        adapted(Unrolled())
        return
    for mode in (Unrolled(), Mixed()):
        with pytest.raises(ValueError, match="eps_root"):
            adapted(mode)


ACCEPTED = {
    "sgd": optax.sgd(0.1),
    "momentum": optax.sgd(0.1, momentum=0.9),
    "clipped": optax.chain(optax.clip(1.0), optax.sgd(0.1)),
    "clipped norm": optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1)),
    "clipped norm, momentum": optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1, 0.9)),
    "unit norm": optax.chain(optax.normalize_by_update_norm(), optax.sgd(0.1)),
    "adam": optax.adam(0.1, eps_root=1e-8),
    "nadam": optax.nadam(0.1, eps_root=1e-8),
    "rmsprop": optax.rmsprop(0.1),
    "adabelief": optax.adabelief(0.1, eps_root=1e-8),
}


@pytest.mark.slow
@pytest.mark.parametrize("mode", [Unrolled(), Mixed()], ids=["unrolled", "mixed"])
@pytest.mark.parametrize("name", ACCEPTED)
def test_what_is_accepted_has_finite_meta_gradients(name, mode):
    """Fault: a rule passes the trial, and its meta-gradient is NaN behind a support without
    examples, a leaf that has no gradient, or many steps."""
    params, batch = make()
    params |= {"unused": jnp.zeros(2)}

    def value(params, mask):
        def masked(own, batch):
            error = (jnp.tanh(batch["x"] @ own["w"]) + own["b"] - batch["y"]) ** 2
            count = jnp.maximum(mask.sum(), 1).astype(error.dtype)
            return jnp.sum(jnp.where(mask, error, 0)) / count, None

        after, _ = adapt_by(masked, ACCEPTED[name], mode, params, lambda _: batch, 9)
        return masked(after, batch)[0] + loss({k: after[k] for k in "wb"}, batch)[0]

    slope = jax.jit(jax.vmap(jax.grad(value), (None, 0)))
    masks = jnp.array([[False] * 6, [True] * 6, [True] + [False] * 5])
    found = slope(params, masks)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
    # Nothing is learned from nothing: there the meta-gradient is that of the loss alone.
    alone = jax.grad(lambda own: loss({k: own[k] for k in "wb"}, batch)[0])(params)
    near(jax.tree.map(lambda leaf: leaf[0], found), alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("field", [{"strength": 0.0}, {"cg_steps": 0}, {"damping": -1.0}])
def test_implicit_gradients_out_of_range_are_an_error(field):
    """Fault: no step of conjugate gradients, or no pull, gives a gradient of 0 without a word."""
    params, batch = make()
    with pytest.raises(ValueError, match="strength has to be > 0, cg_steps ≥ 1 and damping ≥ 0"):
        adapt_by(loss, optax.sgd(0.1), Implicit(**field), params, lambda _: batch, 1)


@pytest.mark.parametrize("mode", ["first-order", FirstOrder, Implicit()])
def test_a_loop_of_another_mode_is_an_error(mode):
    """Fault: what is not FirstOrder() is unrolled without a word."""
    with pytest.raises(TypeError, match="mode"):
        inner_loop(loss, optax.sgd(0.1), mode)


def test_a_traced_rate_is_not_refused():
    """Fault: what cannot be tried while tracing ends in an error of JAX."""
    params, _ = make()

    def checked(rate):
        differentiable(optax.sgd(rate), params)
        return rate

    assert jax.vmap(jax.grad(checked))(jnp.ones(2)).shape == (2,)
