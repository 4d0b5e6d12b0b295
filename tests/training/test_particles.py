"""Inner problems carried by the training state: many are one by one, on any devices, resumed."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaguide.objectives.weighting import fixed
from metaguide.optimizers.coordinatewise import coordinatewise
from metaguide.optimizers.estimators import evolution, truncated
from metaguide.optimizers.recurrent import rnn
from metaguide.parallel import replicate, tasks_mesh
from metaguide.training.loop import Schedule, train
from metaguide.training.particles import particles
from metaguide.training.step import init_state, make_step
from metaguide.types import Optimizee

TASKS, HORIZON, WINDOW, STEPS = 8, 6, 2, 6
RULE = rnn(3, 1)


def draw(data, key):
    one, two = jax.random.split(key)
    x = jax.random.normal(one, (3,))
    return {"bias": x[0], "x": x[1:]}, two


def batch(data, task, step):
    return jax.random.normal(task, (2,))


def loss(params, y):
    return jnp.square(params["x"] + 3 * params["bias"] - y).sum(), ()


QUADRATICS = Optimizee(draw, batch, loss)
ESTIMATORS = {
    "truncated": truncated(RULE, QUADRATICS, HORIZON, WINDOW),
    "persistent": evolution(RULE, QUADRATICS, HORIZON, WINDOW, 0.1),
}


def prepared(estimator, devices, parallel="jit", steps_per_call=1):
    mesh = tasks_mesh(jax.devices()[:devices])
    many = particles(estimator, TASKS, mesh)
    meta, weighting = {"rule": RULE.init(jax.random.key(0))}, fixed({"r": 1.0})
    optimizer, key = optax.adam(0.01), jax.random.key(1)
    carry = {"r": many.start(meta, (), key)}
    state = init_state(meta, weighting, optimizer, key, carry)
    step = make_step(
        {"r": many},
        weighting,
        optimizer,
        STEPS,
        mesh=mesh,
        parallel=parallel,
        steps_per_call=steps_per_call,
    )
    return step, replicate(state, mesh)


def after_steps(estimator, devices, parallel="jit", steps_per_call=1):
    step, state = prepared(estimator, devices, parallel, steps_per_call)
    for _ in range(STEPS // steps_per_call):
        state, metrics = step(state, {"r": ()})
    metrics = jax.tree.map(lambda leaf: leaf if steps_per_call == 1 else leaf[-1], metrics)
    return jax.device_get(
        (state.params, jax.tree.leaves(state.carry["r"]._replace(task=())), metrics)
    )


def near(found, expected):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found, expected
    )


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize(
    ("devices", "parallel"),
    [
        (8, "jit"),
        pytest.param(2, "jit", marks=pytest.mark.slow),
        pytest.param(8, "pmap", marks=pytest.mark.slow),
    ],
)
def test_any_devices_agree(name, devices, parallel):
    """Faults: a device carries another's problems, the carry is not whole again, the mean is over a
    device's own problems alone."""
    near(after_steps(ESTIMATORS[name], devices, parallel), after_steps(ESTIMATORS[name], 1))


@pytest.mark.slow
@pytest.mark.parametrize("name", ESTIMATORS)
def test_several_steps_a_call_are_the_steps_one_by_one(name):
    """Faults: two inner problems of one start share a buffer, which is donated twice; what is
    carried is that of the first step."""
    near(after_steps(ESTIMATORS[name], 1, steps_per_call=3), after_steps(ESTIMATORS[name], 1))


@pytest.mark.slow
@pytest.mark.parametrize(
    "chunk", [pytest.param(4096, id="one chunk"), pytest.param(3, id="chunks of several problems")]
)
def test_the_mean_is_that_of_one_by_one(chunk, monkeypatch):
    """Faults: problems share a key, begin at one age, or their gradients are summed; a coordinate
    is given what one of another chunk, tensor or problem remembers; a problem that diverges takes
    the others with it, goes on, or is not counted."""
    module = importlib.import_module("metaguide.optimizers.coordinatewise")
    monkeypatch.setattr(module, "CHUNK", chunk)
    estimator = ESTIMATORS["truncated"]
    many = particles(estimator, TASKS)
    theta, key = RULE.init(jax.random.key(0)), jax.random.key(2)
    carry = many.start({"rule": theta}, (), key)
    assert carry.age.tolist() == [0, 0, 0, 2, 2, 2, 4, 4]
    (loop,) = carry.loops
    far = loop.params | {"x": loop.params["x"].at[4].set(1e30)}
    carry = carry._replace(loops=(loop._replace(params=far),))
    step, one = jax.jit(many.gradient), jax.jit(estimator.gradient)
    for meta_step in range(3):
        keys = jax.random.split(key, TASKS)
        found = [
            one(theta, (), jax.tree.map(lambda a, i=i: a[i], carry), keys[i], 0.0)
            for i in range(TASKS)
        ]
        (loss, metrics), slope, carry = step({"rule": theta}, (), key, 0.0, carry)
        np.testing.assert_allclose(loss, np.mean([each[0][0] for each in found]), rtol=1e-5)
        assert metrics["diverged"] == (1 / TASKS if meta_step == 0 else 0)
        if meta_step == 0:
            assert carry.age[jnp.asarray([0, 1, 2, 3, 5, 6, 7])].tolist() == [2, 2, 2, 4, 4, 6, 6]
        mean = jax.tree.map(lambda *leaves: sum(leaves) / TASKS, *[each[1] for each in found])
        assert optax.tree.norm(mean) > 1e-3
        near(slope["rule"], mean)
        after = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[each[2] for each in found])
        near(carry._replace(task=()), after._replace(task=()))
        key = jax.random.fold_in(key, 0)
    assert len({tuple(data) for data in jax.random.key_data(carry.task).tolist()}) == TASKS


@pytest.mark.slow
def test_each_problem_has_a_bound_on_curvature_of_its_own():
    """Faults: one bound is shared by all, so that a steep problem shrinks what a flat one learns;
    it holds for a problem's share of the mean, so that more problems loosen it."""
    rule = coordinatewise(
        "sgd",
        lambda key: {"rate": jnp.asarray(0.02)},
        lambda shape, dtype: (),
        lambda theta, gradient, memory: (-theta["rate"] * gradient, memory),
    )
    theta, key, found = rule.init(jax.random.key(0)), jax.random.key(2), {}
    keys = jax.random.split(key, TASKS)
    for curvature in (0.0, 0.02, jnp.inf):
        estimator = truncated(rule, QUADRATICS, 4, 4, curvature=curvature)
        many = particles(estimator, TASKS)
        carry = many.start({"rule": theta}, (), key)
        slope = jax.jit(many.gradient)({"rule": theta}, (), key, 0.0, carry)[1]
        each = jax.vmap(estimator.gradient, (None, None, 0, 0, None))
        alone = jax.jit(each)(theta, (), carry, keys, 0.0)[1]
        found[curvature] = float(slope["rule"]["rate"])
        np.testing.assert_allclose(found[curvature], alone["rate"].mean(), rtol=1e-5)
    assert len({round(value, 2) for value in found.values()}) == 3, found


@pytest.mark.slow
def test_a_resumed_run_is_the_unbroken_one(tmp_path):
    """Faults: a checkpoint leaves out the problems on their way, or what was added up on them."""
    estimator = ESTIMATORS["persistent"]

    def run(folder, steps, start=None):
        step, state = prepared(estimator, 2)
        return train(
            step,
            state,
            {"r": ()},
            Schedule(steps, 2, 2),
            folder,
            name="r",
        )

    whole = run(tmp_path / "whole", STEPS)
    run(tmp_path / "broken", 4)
    again = run(tmp_path / "broken", STEPS)
    same = lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b))  # noqa: E731
    jax.tree.map(same, again.params, whole.params)
    jax.tree.map(same, again.carry["r"].memory, whole.carry["r"].memory)
    jax.tree.map(same, again.carry["r"].loops, whole.carry["r"].loops)


def test_problems_that_devices_do_not_divide_are_an_error():
    """Fault: some device carries none, or the last problems are left out."""
    with pytest.raises(ValueError, match="6 inner problems do not divide over 8 devices"):
        particles(ESTIMATORS["truncated"], 6, tasks_mesh())
