"""All device handling: a mesh with a `tasks` axis, hosts, and the placement of arrays.

Several processes, one per host, run the same program on one mesh of all their devices (`connect`).
A training step does not change. Code that reads or writes files calls `is_first_process`, or
`first_process_first` to make files that all read, and `check_agreed` if all have to see the same.

A training step is one function that every device runs on its own share of the tasks. The parameters
are replicated and the meta-gradient is averaged at the end. `on_each_device` maps the function by
`jit` over a mesh or by `pmap`; on one device it is a plain `jit`.
"""

import os
import socket
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import threadpoolctl
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding
from jaxtyping import Array, PyTree

Result = TypeVar("Result")

TASKS = "tasks"
"""The name of the mesh's only axis."""

AUTO = "auto"
"""The coordinator if JAX finds the processes by itself."""

ONE_FOLDER = "give all processes the same work folder, one that all of them see"
"""The hint for files that only some processes see."""

SHUTDOWN_SECONDS = 30
"""How long a process waits at its end for the others to end."""


class DeviceError(ValueError):
    """The requested devices or processes are not available or do not fit."""


def use_cpu_devices(count: int) -> None:
    """Make JAX treat the CPU as `count` devices; call it before anything requests a device.

    Raises:
        DeviceError: `count` is less than 1, or JAX has its devices already.
    """
    if count < 1:
        raise DeviceError(f"{count} CPU devices: there has to be at least one")
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError as error:
        raise DeviceError(
            f"too late for {count} CPU devices: JAX has its devices already"
        ) from error


def connect(coordinator: str, processes: int = 0, index: int = -1, wait: int = 300) -> None:
    """Join several processes into one program; call it before anything requests a device.

    Afterwards, `jax.devices()` and `tasks_mesh()` cover the devices of all processes. All processes
    have to run the same program to its end, and call `check_agreed` there.

    Args:
        coordinator: HOST:PORT of process 0, which listens there; "auto" on a TPU pod, or under
            SLURM or Open MPI, where JAX finds the others by itself.
        processes: number of processes; not with "auto".
        index: number of this process, from 0; not with "auto".
        wait: seconds to wait for the others.

    Raises:
        DeviceError: the index is out of range, there is no coordinator, it does not answer, or JAX
            has its devices already.
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
        # All processes end together after `check_agreed`: a longer wait means another one failed.
        jax.distributed.initialize(shutdown_timeout_seconds=SHUTDOWN_SECONDS, **settings)
    except ValueError as error:
        raise DeviceError(
            f"coordinator {coordinator}: JAX finds no other processes here ({error}); give "
            "HOST:PORT of process 0, and each process its number"
        ) from error
    except RuntimeError as error:  # too late, already joined, or another program has the port
        raise DeviceError(f"cannot join the processes at {coordinator}: {error}") from error


def _wait_for(host: str, port: int, seconds: int) -> None:
    """Wait until process 0 listens; JAX would kill this process if it never does."""
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
    """Return whether this process writes the files that are written once."""
    return jax.process_index() == 0


def check_agreed(value: Any, otherwise: str) -> None:
    """Wait for all processes, and check that all have the same value.

    Every process has to call it, at the same point in the sequence of joint programs.

    Args:
        value: this process's value; its `repr` is compared.
        otherwise: what is wrong if the values differ, and how to fix it.

    Raises:
        DeviceError: the values differ; raised in every process, so that none waits for the others.
    """
    if not jax.distributed.is_initialized():
        return
    found = multihost_utils.process_allgather(np.uint32(zlib.crc32(repr(value).encode())))
    if len(set(found.tolist())) > 1:
        raise DeviceError(otherwise)


def first_process_first(call: Callable[[], Result]) -> Result:
    """Call a function in the first process, and in the others once that is done.

    So the first process makes files that the others find. Every process has to call it, at the same
    point in the sequence of joint programs.

    Args:
        call: the function, without arguments. Where it fails in the first process, the others try
            it too.

    Returns:
        What it returned in this process.
    """
    is_first = is_first_process()
    if not is_first:
        check_agreed(None, "")
    try:
        return call()
    finally:
        if is_first:
            check_agreed(None, "")


def tasks_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """Return a mesh with one axis, `tasks`, over the devices.

    Args:
        devices: the devices; all devices of all processes by default.

    Returns:
        A mesh of shape {"tasks": number of devices}.
    """
    return Mesh(np.asarray(jax.devices() if devices is None else devices), (TASKS,))


def mesh_for(meta_batch_size: int) -> Mesh:
    """Return a mesh of the largest number of devices that divides the meta-batch.

    With several processes it has all devices, because each process has to take part.
    """
    devices = jax.devices()
    count = max(n for n in range(1, len(devices) + 1) if max(meta_batch_size, 1) % n == 0)
    return tasks_mesh(devices if jax.process_count() > 1 else devices[:count])


def local_mesh() -> Mesh:
    """Return a mesh over this process's devices, for work that every process repeats by itself."""
    return tasks_mesh(jax.local_devices())


def on_each_device(
    function: Callable,
    mesh: Mesh | None,
    by: str = "jit",
    donate: tuple[int, ...] = (),
) -> Any:
    """Compile a function that all devices of a mesh run at once, each on its own tasks.

    Inside it, `own_share` selects this device's tasks and `mean_over_devices` joins the results.
    Arguments and outputs are replicated; the outputs have to be equal on all devices.

    By default, `jax.shard_map` sums the cotangents of replicated values, which would leak the inner
    gradients of one device's tasks into those of others. Here only `mean_over_devices` sums.

    Args:
        function: the function that each device runs.
        mesh: a mesh from `tasks_mesh`; None for the default device alone.
        by: "jit" maps it over the mesh; "pmap" uses `jax.pmap`, within one process.
        donate: indices of the arguments whose buffers may be reused.

    Returns:
        The jitted function.

    Raises:
        ValueError: `by` is another name, or "pmap" with devices of several processes.
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
    """Return the complete leading axis of tasks, gathered from each device's `own_share`."""
    if mesh is None or mesh.size == 1:
        return tree

    def joined(leaf: Array) -> Array:
        if is_key(leaf):
            data = jax.lax.all_gather(jax.random.key_data(leaf), TASKS, tiled=True)
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
        return jax.lax.all_gather(leaf, TASKS, tiled=True)

    return jax.tree.map(joined, tree)


def split_tasks(tree: PyTree, mesh: Mesh) -> PyTree:
    """Shard the leading axis of every leaf over the mesh's `tasks` axis, inside a jitted function.

    For computations that are mapped over tasks and never summed, such as evaluation: XLA runs each
    device's tasks on that device. A leading axis that the devices do not divide is replicated.

    Args:
        tree: arrays with a leading axis of tasks.
        mesh: a mesh from `tasks_mesh`.

    Returns:
        The same values, sharded.
    """
    count = mesh.shape[TASKS]

    def split(leaf: Array) -> Array:
        spec = PartitionSpec(TASKS) if leaf.shape[0] % count == 0 else PartitionSpec()
        return jax.lax.with_sharding_constraint(leaf, NamedSharding(mesh, spec))

    return jax.tree.map(split, tree)


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """Put a copy of every leaf on every device of the mesh, in all processes."""
    whole = NamedSharding(mesh, PartitionSpec())
    if mesh.is_multi_process:
        return jax.tree.map(lambda leaf: place(leaf, whole), tree)
    return jax.device_put(tree, whole)


def place(leaf: Any, sharding: Sharding) -> jax.Array:
    """Place an array by its sharding, possibly across processes, each passing an equal array.

    Args:
        leaf: an array, equal in all processes.
        sharding: its placement.
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
    """Return replicated arrays as arrays of this process's devices alone.

    Programs of one process cannot take arrays that lie on devices of others. Nothing is copied.
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
    """Return whether an array holds random keys, which numpy does not support."""
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def side_by_side(call: Callable[[Any], Any], items: Iterable[Any], mesh: Mesh) -> list[Any]:
    """Return the result of `call` for each item, running several at once on a single CPU.

    The products of one small task are too small to split among a CPU's cores: running several
    tasks, one per core, takes half the time. Other or several devices get one call at a time.

    Args:
        call: a thread-safe function that blocks until its result is ready.
        items: the arguments of the calls.
        mesh: mesh of the devices that the calls run on.
    """
    lone_cpu = mesh.size == 1 and mesh.devices.flat[0].platform == "cpu"
    if not lone_cpu:
        return [call(item) for item in items]
    # Where each core has a call of its own, threads of BLAS beneath them only get in their way. JAX
    # takes that of SciPy, and loads it when it first needs it.
    import scipy.linalg  # noqa: F401

    limits = threadpoolctl.threadpool_limits(1, "blas")
    with limits, ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return list(pool.map(call, items))
