import os
import socket
import threading
import time
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import threadpoolctl
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from metaguide import parallel
from metaguide.learners import maml, reptile
from metaguide.optimizers import pretrained
from metaguide.parallel import (
    DeviceError,
    check_agreed,
    connect,
    mean_over_devices,
    on_each_device,
    own_share,
    replicate,
    side_by_side,
    split_tasks,
    tasks_mesh,
    to_local,
    use_cpu_devices,
)
from metaguide.training.episodic import episodic
from metaguide.types import Episode, Problem, TaskDistribution

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
    score=lambda outputs, query, context: outputs,
    body=("body",),
    head=("head",),
    target="y",
)


def sample(data, domain, shots, key):
    x, y = (
        jax.random.normal(one, shape)
        for one, shape in zip(jax.random.split(key), ((10, INPUTS), (10,)), strict=True)
    )
    x, y = (value.astype(data["scale"].dtype) * data["scale"] for value in (x, y))
    return Episode({"x": x[:5], "y": y[:5]}, {"x": x[5:], "y": y[5:]})


FAMILY = TaskDistribution(("noise",), {}, sample, REGRESSION)
LEARNER = maml(REGRESSION, optax.sgd(0.1), 3)


def watched():
    """MAML, which tells of the adapted parameters as a metric."""

    def objective(meta, episode, key, progress):
        adapted, _ = LEARNER.adapt(meta, episode.support, (), key)
        loss, _ = LEARNER.loss(adapted, episode.query, ())
        return loss, {"body": adapted["body"]["w"], "head": adapted["head"]["w"]}

    return LEARNER._replace(objective=objective)


@cache
def on_devices(count, by="jit", chunk=None, dtype=np.float32, learner=watched):
    """((loss, adapted parameters), meta-gradient) of eight tasks, on so many devices."""
    mesh = tasks_mesh(jax.devices()[:count])
    gradient = episodic(
        FAMILY, learner(), meta_batch_size=TASKS, shots=(5,), tasks_per_chunk=chunk, mesh=mesh
    )
    rng = np.random.default_rng(0)
    params = {
        "body": {"w": rng.normal(size=(INPUTS, WIDTH)).astype(dtype)},
        "head": {"w": rng.normal(size=WIDTH).astype(dtype)},
    }
    arguments = {"params": params}, {"scale": np.ones((), dtype)}, jax.random.key(0)
    program = on_each_device(gradient, mesh, by)
    return jax.device_get(program(*replicate((*arguments, np.zeros((), dtype)), mesh)))


def apart(a, b):
    """‖a − b‖ / ‖b‖ over the whole tree."""
    return optax.tree.norm(optax.tree.sub(a, b)) / optax.tree.norm(b)


def test_there_are_eight_devices():
    """Fault: the tests of this file compare one device with itself."""
    assert len(jax.devices()) == 8 and tasks_mesh().shape == {"tasks": 8}


WAYS_TO_SHARE = [
    (1, "jit", 1),
    (1, "jit", 4),
    (1, "pmap", 2),
    (2, "jit", None),
    (2, "jit", 1),
    (2, "pmap", 2),
    (8, "jit", None),
    (8, "jit", 1),
    (8, "pmap", None),
]


@pytest.mark.slow
@pytest.mark.parametrize(("count", "by", "chunk"), WAYS_TO_SHARE)
def test_adapted_parameters_and_meta_gradients_agree(count, by, chunk):
    """Faults: tasks leak into each other (an inner gradient summed over devices), the meta-gradient
    is of one device's tasks or is summed instead of averaged, a chunk draws what another drew."""
    assert apart(on_devices(count, by, chunk), on_devices(1)) <= 1e-5
    with jax.enable_x64(True):
        found, one = (
            on_devices(*way, dtype=np.float64) for way in ((count, by, chunk), (1, "jit", None))
        )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-10, 1e-12), found, one)


@pytest.mark.slow
@pytest.mark.parametrize("by", ["jit", "pmap"])
def test_a_gradient_of_its_own_agrees_too(by):
    """Fault: Reptile's way back is not averaged over chunks and devices."""
    own = lambda: reptile(REGRESSION, optax.sgd(0.1), 3)  # noqa: E731
    one, many = on_devices(1, learner=own), on_devices(2, by, 2, learner=own)
    assert apart(many, one) <= 1e-5 and optax.tree.norm(one[1]) > 1e-2


def test_shard_map_would_leak_without_what_on_each_device_does():
    """Fault: nobody notices that JAX sums the inner gradients itself by default, and the check of
    agreement would not see it."""
    mesh = tasks_mesh(jax.devices()[:2])
    arguments = ({"w": jnp.ones(2)}, jnp.asarray([1.0, 3.0]))

    def slope(params, targets):
        target = own_share(targets, mesh)[0]
        return jax.grad(lambda p: jnp.sum((p["w"] - target) ** 2))(params)["w"]

    def first(params, targets):
        gradient = slope(params, targets)
        return mean_over_devices(jnp.where(jax.lax.axis_index("tasks") == 0, gradient, 0), mesh)

    found = on_each_device(first, mesh)(*replicate(arguments, mesh))
    leaked = jax.jit(jax.shard_map(first, mesh=mesh, in_specs=P(), out_specs=P()))(*arguments)
    np.testing.assert_allclose(found, [0.0, 0.0])
    assert abs(leaked).max() > 0.5


def test_tasks_that_devices_do_not_divide_are_an_error():
    """Fault: tasks that fill no device are dropped."""
    with pytest.raises(ValueError, match=r"12 tasks a step do not divide .* 8 devices"):
        episodic(FAMILY, LEARNER, meta_batch_size=12, shots=(5,), mesh=tasks_mesh())


def test_another_way_of_going_parallel_is_an_error():
    """Fault: a slip of the flag runs on one device."""
    with pytest.raises(ValueError, match="parallel is 'pjit'; there are jit and pmap"):
        on_each_device(lambda: 1, tasks_mesh(), "pjit")


@pytest.mark.parametrize("address", ["localhost", ":1", "localhost:", "localhost:port"])
def test_an_address_without_a_port_is_an_error(address):
    """Fault: JAX answers with an IndexError of its own."""
    with pytest.raises(DeviceError, match=f"coordinator '{address}', process 0 of 2: give address"):
        connect(address, 2, 0)


def test_a_coordinator_that_does_not_answer_is_an_error():
    """Fault: JAX ends the process with a stack of C++ where nobody listens at the address."""
    with socket.socket() as unheard:
        unheard.bind(("localhost", 0))  # a port that is taken, and does not listen
        address = f"localhost:{unheard.getsockname()[1]}"
        with pytest.raises(DeviceError, match=f"no process 0 answered at {address} in 0 s"):
            connect(address, 2, 1, wait=0)


def test_devices_that_come_too_late_are_an_error():
    """Fault: devices and processes that were asked for are silently not there."""
    assert jax.devices()
    with pytest.raises(DeviceError, match="too late for 3 CPU devices"):
        use_cpu_devices(3)
    with pytest.raises(DeviceError, match="cannot join the processes at auto: .*before"):
        connect("auto")
    with pytest.raises(DeviceError, match="0 CPU devices: there has to be at least one"):
        use_cpu_devices(0)


def test_alone_a_process_agrees_and_has_all_at_hand():
    """Fault: a single process waits for others, or copies its arrays."""
    check_agreed(object(), "nobody to differ from")
    tree = replicate({"w": jnp.arange(5.0), "key": jax.random.key(0)}, tasks_mesh())
    assert all(a is b for a, b in zip(*map(jax.tree.leaves, (to_local(tree), tree)), strict=True))


@pytest.mark.parametrize(("processes", "index"), [(2, 2), (2, -1), (0, 0)])
def test_a_process_without_a_place_is_an_error(processes, index):
    """Fault: a process waits for ever for one that has its number."""
    with pytest.raises(ValueError, match="give address:port of process 0"):
        connect("localhost:1" if processes else "here", processes, index)


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


def test_calls_on_every_core_leave_blas_one_thread():
    """Faults: BLAS spreads beneath each of the calls, which slows them down a hundredfold; it is
    left with one thread afterwards; results are out of order; other devices get several at once."""
    mesh = Mesh(np.array(jax.devices()[:1]), ("tasks",))

    def threads(item):
        pools = threadpoolctl.threadpool_info()
        return item, {one["num_threads"] for one in pools if one["user_api"] == "blas"}

    before = threads(0)[1]
    assert side_by_side(threads, range(9), mesh) == [(item, {1}) for item in range(9)]
    assert threads(0)[1] == before
    several = Mesh(np.array(jax.devices()), ("tasks",))
    assert side_by_side(threads, range(3), several) == [(item, before) for item in range(3)]


@pytest.mark.parametrize("number", [0, 1])
def test_the_first_process_is_the_first(monkeypatch, number):
    """Faults: a process makes files before the first one has, or the first one waits for those that
    wait for it; where it fails, the others wait for ever."""
    said = []
    monkeypatch.setattr(parallel, "is_first_process", lambda: number == 0)
    monkeypatch.setattr(parallel, "check_agreed", lambda *_: said.append("met"))

    def call():
        said.append("called")
        return 1

    assert parallel.first_process_first(call) == 1
    assert said == (["called", "met"] if number == 0 else ["met", "called"])

    def fails():
        raise ValueError("no room")

    with pytest.raises(ValueError, match="no room"):
        parallel.first_process_first(fails)
    assert said[2:] == ["met"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["hyper", "lstm", "mlp", "rnn"])
def test_a_learned_rule_makes_its_steps_on_each_device_apart(kind):
    """Fault: its state begins as if it were the same on all devices, which a scan refuses."""
    rule, theta, _ = pretrained(kind)
    optimizer = optax.with_extra_args_support(rule.transform(theta))

    def trained(params):
        def step(carry, _):
            value, gradient = jax.value_and_grad(lambda p: jnp.square(p).sum())(carry[0])
            updates, state = optimizer.update(gradient, carry[1], carry[0], value=value)
            return (optax.apply_updates(carry[0], updates), state), None

        (found, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), length=3)
        return found

    params = jnp.linspace(-1.0, 1.0, 6).reshape(2, 3)
    mesh = Mesh(np.array(jax.devices()[:2]), ("devices",))
    spec = P("devices")
    found = jax.jit(jax.shard_map(trained, mesh=mesh, in_specs=spec, out_specs=spec))(params)
    apart = [jax.jit(trained)(row[None])[0] for row in params]
    np.testing.assert_allclose(found, np.stack(apart), rtol=1e-5, atol=1e-6)
