"""The only file that knows devices: a mesh with a `tasks` axis, hosts, and what lies on them.

Several processes, one a host, run the same program on one mesh of all their devices (`connect`).
Nothing else changes for a training step; what reads or writes files asks `is_first_process`, and
`check_agreed` where all have to have seen the same.

A training step is one function that every device runs on its own share of the tasks, with the
parameters whole on each of them and the meta-gradient averaged at the end. `on_each_device` maps
it, by `jit` over a mesh or by `pmap`; on one device it is a plain `jit`.
"""

import os
import socket
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding
from jaxtyping import Array, PyTree

TASKS = "tasks"
"""The name of the one axis."""

AUTO = "auto"
"""The coordinator where JAX finds the processes by itself."""

ONE_FOLDER = "give all processes the same work folder, one that all of them see"
"""How it is fixed where files are there for some processes only."""

SHUTDOWN_SECONDS = 30
"""How long a process that ends waits for the others to end."""


class DeviceError(ValueError):
    """The devices or the other processes that were asked for are not there, or do not fit."""


def use_cpu_devices(count: int) -> None:
    """Make JAX take the CPU for so many devices, before anything else asks it for one.

    Raises:
        DeviceError: there are to be none, or JAX has its devices already.
    """
    if count < 1:
        raise DeviceError(f"{count} CPU devices: there has to be one at least")
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError as error:
        raise DeviceError(
            f"too late for {count} CPU devices: JAX has its devices already"
        ) from error


def connect(coordinator: str, processes: int = 0, index: int = -1, wait: int = 300) -> None:
    """Join several processes to one program, before anything else asks JAX for a device.

    After it, `jax.devices()` are those of all processes, and so is `tasks_mesh()`. All have to run
    the same program to its end, and call `check_agreed` there.

    Args:
        coordinator: HOST:PORT of process 0, which listens there; "auto" on a TPU pod, or under
            SLURM or Open MPI, where JAX finds the others by itself.
        processes: how many there are; not with "auto".
        index: number of this one, from 0; not with "auto".
        wait: seconds that it waits for the others.

    Raises:
        DeviceError: the index is none of the processes, there is no coordinator for them, it does
            not answer, or JAX has its devices already.
    """
    if coordinator == AUTO:
        if processes or index != -1:
            raise DeviceError(
                f"coordinator {AUTO}: JAX finds the processes and their numbers; give none"
            )
        return _initialize(AUTO)
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 <= index < processes:
        raise DeviceError(
            f"coordinator {coordinator!r}, process {index} of {processes}: give address:port of "
            f"process 0, and each process a number of its own below {max(processes, 1)}"
        )
    if index:
        _wait_for(host.strip("[]"), int(port), wait)
    _initialize(
        coordinator,
        coordinator_address=coordinator,
        num_processes=processes,
        process_id=index,
        initialization_timeout=wait,
    )


def _initialize(coordinator: str, **settings: Any) -> None:
    try:
        # After `check_agreed` all end together: one that waits longer has lost another to an error.
        jax.distributed.initialize(shutdown_timeout_seconds=SHUTDOWN_SECONDS, **settings)
    except ValueError as error:
        raise DeviceError(
            f"coordinator {coordinator}: JAX finds no other processes here ({error}); give "
            "HOST:PORT of process 0, and each process its number"
        ) from error
    except RuntimeError as error:  # too late, joined before, or the port is another program's
        raise DeviceError(f"cannot join the processes at {coordinator}: {error}") from error


def _wait_for(host: str, port: int, seconds: int) -> None:
    """Return when process 0 listens; JAX would end this process over one that never does."""
    until = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((host, port), timeout=max(until - time.monotonic(), 1)).close()
            return
        except OSError as error:
            if time.monotonic() > until:
                raise DeviceError(
                    f"no process 0 answered at {host}:{port} in {seconds} s ({error}); start it "
                    "there, or fix the address"
                ) from error
            time.sleep(0.2)


def is_first_process() -> bool:
    """Return whether this process is the one that writes what is written once."""
    return jax.process_index() == 0


def check_agreed(value: Any, otherwise: str) -> None:
    """Wait until all processes are here, and make sure that all have the same value.

    Every process has to call it, in the same order among the programs that all of them run.

    Args:
        value: of this process; its `repr` is compared.
        otherwise: what is wrong where they differ, and how it is fixed.

    Raises:
        DeviceError: they differ; in every process, so that none is left waiting for the others.
    """
    if not jax.distributed.is_initialized():
        return
    found = multihost_utils.process_allgather(np.uint32(zlib.crc32(repr(value).encode())))
    if len(set(found.tolist())) > 1:
        raise DeviceError(otherwise)


def tasks_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """Return a mesh with one axis, `tasks`, over the devices.

    Args:
        devices: which devices; all of them, of all processes, by default.

    Returns:
        A mesh of shape {"tasks": number of devices}.
    """
    return Mesh(np.asarray(jax.devices() if devices is None else devices), (TASKS,))


def mesh_for(meta_batch_size: int) -> Mesh:
    """Return a mesh of as many devices as divide the tasks of a step.

    Of several processes each has to take part, so that there it has all devices.
    """
    devices = jax.devices()
    count = max(n for n in range(1, len(devices) + 1) if max(meta_batch_size, 1) % n == 0)
    return tasks_mesh(devices if jax.process_count() > 1 else devices[:count])


def local_mesh() -> Mesh:
    """Return a mesh over this process's devices, for what every process does alike by itself."""
    return tasks_mesh(jax.local_devices())


def on_each_device(
    function: Callable,
    mesh: Mesh | None,
    by: str = "jit",
    donate: tuple[int, ...] = (),
) -> Any:
    """Compile a function that all devices of a mesh run at once, each on its own tasks.

    Inside it `own_share` is what is this device's and `mean_over_devices` joins the results. The
    arguments are whole on each device, and so are the outputs, which have to be equal on all.

    `jax.shard_map` by default sums the cotangents of what is whole on every device, which would
    leak the inner gradients of one device's tasks into those of others; here nothing is summed
    but by `mean_over_devices`.

    Args:
        function: what a device does.
        mesh: from `tasks_mesh`; None for the one default device.
        by: "jit" maps it over the mesh; "pmap" by `jax.pmap`, within one process.
        donate: numbers of the arguments whose buffers may be used again.

    Returns:
        The function, jitted.

    Raises:
        ValueError: `by` is another name, or pmap for devices of several processes.
    """
    if by not in ("jit", "pmap"):
        raise ValueError(f"parallel is {by!r}; there are jit and pmap")
    if by == "pmap" and mesh is not None and mesh.is_multi_process:
        raise ValueError("parallel is 'pmap', for devices of one process; use jit for several")
    if mesh is None or (mesh.size == 1 and by == "jit"):
        return jax.jit(function, donate_argnums=donate)
    whole = PartitionSpec()
    if by == "jit":
        mapped = jax.shard_map(
            function, mesh=mesh, in_specs=whole, out_specs=whole, check_vma=False
        )
        return jax.jit(mapped, donate_argnums=donate)

    def numbered(*args: Any) -> Any:
        # pmap needs an argument to map over.
        each = jax.pmap(
            lambda number, *args: function(*args),
            axis_name=TASKS,
            in_axes=(0, *(None for _ in args)),
            out_axes=None,  # type: ignore[arg-type]
            devices=list(mesh.devices.flat),
        )
        return each(jnp.arange(mesh.size), *args)

    return jax.jit(numbered, donate_argnums=donate)


def own_share(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """Return this device's part of a leading axis of tasks, inside a function of `on_each_device`.

    Raises:
        ValueError: the devices do not divide the tasks.
    """
    if mesh is None or mesh.size == 1:
        return tree
    number = jax.lax.axis_index(TASKS)

    def part(leaf: Array) -> Array:
        if len(leaf) % mesh.size:
            raise ValueError(f"{len(leaf)} tasks do not divide over {mesh.size} devices")
        return leaf.reshape(mesh.size, len(leaf) // mesh.size, *leaf.shape[1:])[number]

    return jax.tree.map(part, tree)


def mean_over_devices(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """Return the mean of every leaf over the devices, inside a function of `on_each_device`."""
    return tree if mesh is None or mesh.size == 1 else jax.lax.pmean(tree, TASKS)


def whole_of_shares(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """Return the leading axis of tasks whole again, of which each device had its `own_share`."""
    if mesh is None or mesh.size == 1:
        return tree

    def joined(leaf: Array) -> Array:
        if is_key(leaf):
            data = jax.lax.all_gather(jax.random.key_data(leaf), TASKS, tiled=True)
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
        return jax.lax.all_gather(leaf, TASKS, tiled=True)

    return jax.tree.map(joined, tree)


def split_tasks(tree: PyTree, mesh: Mesh) -> PyTree:
    """Lay the leading axis of every leaf over the mesh's `tasks` axis, inside a jitted function.

    For what is mapped over tasks and never summed, such as evaluation: XLA runs each device's
    tasks there. A leading axis that the devices do not divide is left whole on every device.

    Args:
        tree: arrays with a leading axis of tasks.
        mesh: from `tasks_mesh`.

    Returns:
        The same values, sharded.
    """
    count = mesh.shape[TASKS]

    def split(leaf: Array) -> Array:
        spec = PartitionSpec(TASKS) if leaf.shape[0] % count == 0 else PartitionSpec()
        return jax.lax.with_sharding_constraint(leaf, NamedSharding(mesh, spec))

    return jax.tree.map(split, tree)


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """Put a copy of every leaf on every device of the mesh, whichever process it belongs to."""
    whole = NamedSharding(mesh, PartitionSpec())
    if mesh.is_multi_process:
        return jax.tree.map(lambda leaf: place(leaf, whole), tree)
    return jax.device_put(tree, whole)


def place(leaf: Any, sharding: Sharding) -> jax.Array:
    """Lay an array out, over devices of other processes too, which do the same with an equal one.

    Args:
        leaf: equal in all processes.
        sharding: where it goes.
    """
    if sharding.is_fully_addressable or is_global(leaf):
        return jax.device_put(leaf, sharding)
    if is_key(leaf):
        data = place(jax.random.key_data(leaf), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    # A device's array cannot be copied to another process: each gives its own, equal one.
    value = np.asarray(leaf)
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


def is_global(leaf: Any) -> bool:
    """Return whether an array lies on devices of other processes too."""
    return isinstance(leaf, jax.Array) and not leaf.is_fully_addressable


def to_local(tree: PyTree) -> PyTree:
    """Return arrays that are whole on every device as arrays of this process's devices alone.

    Programs of one process cannot take those that lie on devices of others. Nothing is copied.
    """
    whole = NamedSharding(local_mesh(), PartitionSpec())

    def own(leaf: Any) -> Any:
        if not is_global(leaf):
            return leaf
        if is_key(leaf):
            return jax.random.wrap_key_data(
                own(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf)
            )
        parts = [shard.data for shard in leaf.addressable_shards]
        return jax.make_array_from_single_device_arrays(leaf.shape, whole, parts)

    return jax.tree.map(own, tree)


def is_key(leaf: Any) -> bool:
    """Return whether an array is one of random keys, which numpy does not know."""
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def side_by_side(call: Callable[[Any], Any], items: Iterable[Any], mesh: Mesh) -> list[Any]:
    """Return the result of `call` for each item, on a lone CPU several under way at once.

    The products of one small task are too small to be shared out among a CPU's cores: a core each
    for several tasks takes half the time. Other devices, and several, get one call at a time.

    Args:
        call: thread-safe; blocks until its result is there.
        items: what to call it with.
        mesh: of the devices that the calls run on.
    """
    lone_cpu = mesh.size == 1 and mesh.devices.flat[0].platform == "cpu"
    with ThreadPoolExecutor((os.cpu_count() or 1) if lone_cpu else 1) as pool:
        return list(pool.map(call, items))
