import os
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaguide.learners import maml
from metaguide.parallel import replicate, side_by_side, split_tasks, tasks_mesh
from metaguide.types import Episode, Problem

TASKS, INPUTS, WIDTH = 8, 3, 6


def loss(params, encoded, batch, context):
    value = jnp.mean((encoded @ params["head"]["w"] - batch["y"]) ** 2)
    return value, {"error": value}


REGRESSION = Problem(
    init=lambda key: {},
    encode=lambda params, batch, context, key: jnp.tanh(batch["x"] @ params["body"]["w"]),
    loss=loss,
    predict=lambda params, encoded, batch, context: {"y": encoded @ params["head"]["w"]},
    features=lambda encoded: encoded,
    judge=lambda outputs, query, context: outputs,
    body=("body",),
    head=("head",),
    target="y",
)


def program(mesh):
    """(meta, data, rows) -> (each task's adapted parameters, meta-gradient); a task is a row."""
    learner = maml(REGRESSION, optax.sgd(0.1), 3)

    def one(meta, data, row):
        x, y = data["x"][row], data["y"][row]
        episode = Episode({"x": x[:5], "y": y[:5]}, {"x": x[5:], "y": y[5:]})
        adapted, _ = learner.adapt(meta, episode.support, (), None)
        return learner.loss(adapted, episode.query, ())[0], adapted

    def mean(meta, data, rows):
        rows = split_tasks(rows, mesh)
        losses, adapted = jax.vmap(one, in_axes=(None, None, 0))(meta, data, rows)
        return losses.mean(), adapted

    def step(meta, data, rows):
        gradient, adapted = jax.grad(mean, has_aux=True)(meta, data, rows)
        return adapted, gradient

    return jax.jit(step)


def on_devices(count, dtype):
    rng, mesh = np.random.default_rng(0), tasks_mesh(jax.devices()[:count])

    def normal(*shape):
        return rng.normal(size=shape).astype(dtype)

    params = {"body": {"w": normal(INPUTS, WIDTH)}, "head": {"w": normal(WIDTH)}}
    data = {"x": normal(TASKS, 10, INPUTS), "y": normal(TASKS, 10)}
    rows = np.arange(TASKS, dtype=np.int32)
    return program(mesh)(*replicate(({"params": params}, data, rows), mesh))


def test_there_are_eight_devices():
    """Fault: the tests of this file compare one device with itself."""
    assert len(jax.devices()) == 8 and tasks_mesh().shape == {"tasks": 8}


def test_adapted_parameters_and_meta_gradients_agree_on_1_2_and_8_devices():
    """Faults: tasks leak into each other (an inner gradient summed over devices), or the
    meta-gradient is of one device's tasks."""
    one = on_devices(1, np.float32)
    for count in (2, 8):
        many = on_devices(count, np.float32)
        adapted = many[0]["head"]["w"]
        assert len(adapted.sharding.device_set) == count
        assert adapted.sharding.shard_shape(adapted.shape)[0] == TASKS // count
        for a, b in zip(one, many, strict=True):
            apart = jax.tree.map(lambda x, y: np.asarray(x) - np.asarray(y), a, b)
            assert optax.tree.norm(apart) <= 1e-5 * optax.tree.norm(jax.device_get(a))
    with jax.enable_x64(True):
        one, many = on_devices(1, np.float64), on_devices(8, np.float64)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-10, 1e-12), one, many)


@pytest.mark.parametrize(("count", "parts"), [(16, 8), (8, 8), (3, 1), (12, 1)])
def test_keys_are_split_evenly_or_not_at_all(count, parts):
    """Faults: a number of tasks that the devices do not divide is padded, cut or an error; keys
    that they do divide lie whole on every device."""
    mesh, keys = tasks_mesh(), jax.random.split(jax.random.key(2), count)
    laid = jax.jit(lambda keys: split_tasks({"keys": keys}, mesh))(keys)["keys"]
    assert laid.sharding.shard_shape(laid.shape) == (count // parts,)
    np.testing.assert_array_equal(jax.random.key_data(laid), jax.random.key_data(keys))


def test_replicated_is_whole_on_every_device():
    """Fault: parameters are left on one device and copied at every step."""
    leaf = replicate({"w": jnp.arange(5.0)}, tasks_mesh())["w"]
    assert leaf.sharding.is_fully_replicated and len(leaf.addressable_shards) == 8


@pytest.mark.parametrize("count", [1, 2])
def test_calls_side_by_side_keep_their_order_and_their_errors(count):
    """Faults: results come in the order in which they were done; an error is lost; programs on
    several devices are called from several threads, whose collectives may wait for each other."""
    mesh, threads = tasks_mesh(jax.devices()[:count]), set()

    def call(item):
        threads.add(threading.current_thread().name)
        time.sleep(0.01 * (3 - item))
        return 10 * item

    assert side_by_side(call, range(4), mesh) == [0, 10, 20, 30]
    assert len(threads) == (min(4, os.cpu_count() or 1) if count == 1 else 1)
    with pytest.raises(ZeroDivisionError):
        side_by_side(lambda item: 1 // item, [1, 0], mesh)
