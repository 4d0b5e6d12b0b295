import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaguide.learners import proximal_sgd
from metaguide.objectives.weighting import fixed, uncertainty
from metaguide.parallel import replicate, tasks_mesh
from metaguide.training.step import init_state, make_step


@functools.partial(jax.value_and_grad, has_aux=True)
def squares(meta, data, key, progress):
    loss = jnp.sum((meta["w"] - data) ** 2)
    return loss, {"distance": jnp.sqrt(loss), "progress": progress}


@functools.partial(jax.value_and_grad, has_aux=True)
def absolute(meta, data, key, progress):
    return jnp.sum(jnp.abs(meta["w"] - data)), {"draw": jax.random.uniform(key)}


def test_step_descends_the_weighted_sum():
    """Faults: a loss is left out or weighted twice, an objective gets another one's data, or the
    metrics are of other losses than the step descended."""
    w, a, b = jnp.array([1.0, -2.0]), jnp.array([0.5, 1.0]), jnp.array([3.0, 0.0])
    weights, rate = fixed({"near": 2.0, "far": 0.5}), 0.1
    step = make_step({"near": squares, "far": absolute}, weights, optax.sgd(rate), total=3)
    state, metrics = step(
        init_state({"w": w}, weights, optax.sgd(rate), jax.random.key(0)), {"near": a, "far": b}
    )
    gradient = 2.0 * 2.0 * (w - a) + 0.5 * jnp.sign(w - b)
    np.testing.assert_allclose(state.params["meta"]["w"], w - rate * gradient, rtol=1e-6)
    np.testing.assert_allclose(metrics["gradient_norm"], jnp.linalg.norm(gradient), rtol=1e-6)
    np.testing.assert_allclose(metrics["near/loss"], jnp.sum((w - a) ** 2), rtol=1e-6)
    np.testing.assert_allclose(metrics["far/loss"], jnp.sum(jnp.abs(w - b)), rtol=1e-6)
    np.testing.assert_allclose(metrics["near/distance"] ** 2, metrics["near/loss"], rtol=1e-6)
    total = 2.0 * metrics["near/loss"] + 0.5 * metrics["far/loss"]
    np.testing.assert_allclose(metrics["loss"], total, rtol=1e-6)
    assert state.step == 1


def test_learned_weights_are_trained_along():
    """Fault: uncertainty weights are part of the loss but never move. dJ/ds at s = 0 is 1 - J."""
    w, target = jnp.array([1.0, -2.0]), jnp.zeros(2)
    weights, rate = uncertainty(["near"]), 0.01
    step = make_step({"near": squares}, weights, optax.sgd(rate), total=1)
    before = init_state({"w": w}, weights, optax.sgd(rate), jax.random.key(0))
    state, _ = step(before, {"near": target})
    np.testing.assert_allclose(state.params["weighting"]["near"], -rate * (1 - 5.0), rtol=1e-6)


def test_an_optimizer_keeps_its_dtypes():
    """Fault: a share of float32 widens the moments of other parameters, so that the second step is
    another program and a checkpoint of the first cannot be read."""
    weights, rule = fixed({"near": 1.0}), optax.adam(0.1)
    meta = {"w": jnp.ones(2, jnp.bfloat16), "b": jnp.ones(2)}

    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss(meta, data, key, progress):
        return sum(jnp.sum(leaf.astype(jnp.float32) ** 2) for leaf in meta.values()), {}

    step = make_step({"near": loss}, weights, rule, total=2)
    before = init_state(meta, weights, rule, jax.random.key(0))
    dtypes = jax.tree.map(jnp.result_type, before.optimizer)
    state, _ = step(before, {"near": ()})
    assert jax.tree.map(jnp.result_type, state.optimizer) == dtypes
    assert dtypes[0].mu["meta"]["w"] == jnp.bfloat16


KEY = jax.random.key(3)
RULES = {
    "reads the loss": optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau()),
    "needs the loss": optax.polyak_sgd(),
    "keeps the caller's key": optax.noisy_sgd(0.1, key=KEY),
    "keeps the parameters": proximal_sgd(0.1, 1.0),
}


@pytest.mark.parametrize("name", RULES)
def test_rules_of_all_kinds_take_outer_steps(name):
    """Faults: a rule is not told the loss; its state shares a buffer with the parameters, which
    cannot be donated twice, or with a key of the caller's, which is deleted."""
    weights, rule = fixed({"near": 1.0}), RULES[name]
    step = make_step({"near": squares}, weights, rule, total=3)
    for _ in range(2):
        state = init_state({"w": jnp.ones(2)}, weights, rule, jax.random.key(0))
        for _ in range(2):
            state, metrics = step(state, {"near": jnp.zeros(2)})
        assert metrics["near/loss"] < 2.0


def test_every_step_and_objective_draws_anew_and_again_the_same():
    """Faults: one key serves all steps or both objectives; a stage cannot be run a second time."""
    weights = fixed({"a": 1.0, "b": 1.0})
    step = make_step({"a": absolute, "b": absolute}, weights, optax.sgd(0.1), total=4)
    data = {"a": jnp.zeros(2), "b": jnp.zeros(2)}

    def draws():
        state = init_state({"w": jnp.ones(2)}, weights, optax.sgd(0.1), jax.random.key(3))
        for _ in range(4):
            state, metrics = step(state, data)
            yield from (float(metrics["a/draw"]), float(metrics["b/draw"]))

    first = list(draws())
    assert len(set(first)) == 8
    assert first == list(draws())


def test_progress_runs_from_zero_to_one():
    """Fault: annealing starts late, or runs past its end."""
    weights = fixed({"near": 1.0})
    step = make_step({"near": squares}, weights, optax.sgd(0.0), total=4)
    state = init_state({"w": jnp.ones(2)}, weights, optax.sgd(0.0), jax.random.key(0))
    seen = []
    for _ in range(4):
        state, metrics = step(state, {"near": jnp.zeros(2)})
        seen.append(float(metrics["near/progress"]))
    assert seen == [0.0, 0.25, 0.5, 0.75]


def test_what_was_compiled_ahead_is_what_is_called_on_every_device():
    """Fault: what stands for losses and gradients when compiling ahead is placed otherwise than
    they are, so that the first step, or the one after it, compiles again."""
    weights, mesh = uncertainty(["near", "far"]), tasks_mesh()
    step = make_step({"near": squares, "far": absolute}, weights, optax.adam(0.1), total=3)
    state = init_state({"w": jnp.ones(2)}, weights, optax.adam(0.1), jax.random.key(0))
    state = replicate(state, mesh)
    data = replicate({"near": jnp.zeros(2), "far": jnp.ones(2)}, mesh)
    step.compile(state, data)
    logged = []
    jax.monitoring.register_event_duration_secs_listener(lambda name, *_, **__: logged.append(name))
    for _ in range(3):
        state, _ = step(state, data)
    assert not [name for name in logged if "backend_compile" in name]


def test_caller_keeps_the_parameters_it_started_from():
    """Fault: the donated state deletes the arrays that another stage still reads."""
    meta, key = {"w": jnp.ones(2)}, jax.random.key(0)
    weights = fixed({"near": 1.0})
    step = make_step({"near": squares}, weights, optax.adam(0.1), total=2)
    step(init_state(meta, weights, optax.adam(0.1), key), {"near": jnp.zeros(2)})
    np.testing.assert_array_equal(meta["w"], jnp.ones(2))
    assert not key.is_deleted()


def test_a_metric_cannot_take_the_name_of_the_loss():
    """Fault: a metric named "loss" is lost, and nothing says so."""

    def renamed(meta, data, key, progress):
        (loss, _), slope = squares(meta, data, key, progress)
        return (loss, {"loss": 2 * loss}), slope

    weights, rule = fixed({"near": 1.0}), optax.sgd(0.1)
    step = make_step({"near": renamed}, weights, rule, total=3)
    state = init_state({"w": jnp.ones(2)}, weights, rule, jax.random.key(0))
    with pytest.raises(ValueError, match="near has a metric 'loss'"):
        step(state, {"near": jnp.zeros(2)})


@pytest.mark.parametrize(("gradients", "total"), [({}, 3), ({"near": squares}, 0)])
def test_nothing_to_train_is_an_error(gradients, total):
    """Fault: a stage without objectives, or of no steps, fails deep inside the compiler."""
    with pytest.raises(ValueError, match="at least one step"):
        make_step(gradients, fixed({"near": 1.0}), optax.sgd(0.1), total)


@pytest.mark.usefixtures("room_for_programs")
@pytest.mark.slow
@pytest.mark.parametrize(("parallel", "devices"), [("jit", 1), ("jit", 8), ("pmap", 8)])
def test_several_steps_a_call_are_the_steps_one_by_one(parallel, devices):
    """Faults: a scanned step draws with the key of another, progress stands still within a call,
    the metrics of one step alone are returned, or pmap takes another step than jit."""
    weights, optimizer, mesh = uncertainty(["near", "far"]), optax.adam(0.1), tasks_mesh()
    shared = tasks_mesh(jax.devices()[:devices])
    gradients = {"near": squares, "far": absolute}
    one = make_step(gradients, weights, optimizer, total=6)
    many = make_step(
        gradients, weights, optimizer, total=6, mesh=shared, parallel=parallel, steps_per_call=3
    )
    state, other = (
        init_state({"w": jnp.ones(2)}, weights, optimizer, jax.random.key(0)) for _ in range(2)
    )
    data, each = {"near": jnp.zeros(2), "far": jnp.ones(2)}, []
    for _ in range(6):
        state, metrics = one(state, data)
        each.append(metrics)
    other, stacked = replicate(other, shared), []
    for _ in range(2):
        other, metrics = many(other, replicate(data, shared))
        stacked.append(metrics)
    assert mesh.size == 8 and many.compilations() == 1
    found = jax.tree.map(lambda *leaves: np.concatenate(leaves), *stacked)
    expected = jax.tree.map(lambda *leaves: np.stack(leaves), *each)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-5), found, expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-5), other.params, state.params)
    assert other.step == 6


def test_calls_that_do_not_fit_are_an_error():
    """Fault: the last call trains past the end."""
    with pytest.raises(ValueError, match="7 steps do not divide into calls of 3"):
        make_step({"near": squares}, fixed({"near": 1.0}), optax.sgd(0.1), 7, steps_per_call=3)


@functools.partial(jax.value_and_grad, has_aux=True)
def by_turns(meta, data, key, progress):
    """A loss that draws, and branches on how far training has come."""
    noise = jax.random.normal(key, data.shape)
    near, far = (lambda w: jnp.sum((w - data) ** 2)), (lambda w: jnp.sum(jnp.sin(w * noise)))
    return jax.lax.cond(progress < 0.5, near, far, meta["w"]), {"progress": progress}


@pytest.mark.slow
@pytest.mark.parametrize("steps_per_call", [1, 2])
def test_trainings_side_by_side_are_those_alone(steps_per_call):
    """Faults: one training's key, parameters, optimizer or learned weights are another one's; the
    data are split among them; metrics are of the first one, or summed."""
    weights, optimizer = uncertainty(["a"]), optax.adam(0.1)
    starts = [
        init_state({"w": jnp.full(2, 1.0 + i)}, weights, optimizer, jax.random.key(i))
        for i in range(3)
    ]
    data = {"a": jnp.array([0.5, -1.0])}

    def go(seeds, state):
        step = make_step(
            {"a": by_turns}, weights, optimizer, 4, steps_per_call=steps_per_call, seeds=seeds
        )
        losses = []
        for _ in range(4 // steps_per_call):
            state, metrics = step(state, data)
            losses.append(jnp.reshape(metrics["loss"], (-1, seeds or 1)))
        return jax.tree.map(np.asarray, state._replace(key=())), np.concatenate(losses)

    state, losses = go(3, jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts))
    for i, start in enumerate(starts):
        alone, own = go(None, start)
        part = jax.tree.map(lambda leaf, i=i: leaf[i], state)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), part, alone)
        np.testing.assert_allclose(losses[:, i], own[:, 0], rtol=1e-5)


def test_a_branch_on_progress_stays_one_side_by_side():
    """Fault: mapped over trainings, a branch computes both of its sides in every step."""
    weights, optimizer = fixed({"a": 1.0}), optax.sgd(0.1)
    step = make_step({"a": by_turns}, weights, optimizer, 4, steps_per_call=2, seeds=2)
    starts = [init_state({"w": jnp.ones(2)}, weights, optimizer, jax.random.key(i)) for i in (0, 1)]
    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts)
    program = str(jax.make_jaxpr(step._steps)(both, {"a": jnp.zeros(2)}))
    assert "cond[" in program
