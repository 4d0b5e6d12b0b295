"""The only file that knows devices: a mesh with a `tasks` axis, hosts, and what lies on them.

A training step is one function that every device runs on its own share of the tasks, with the
parameters whole on each of them and the meta-gradient averaged at the end. `on_each_device` maps
it, by `jit` over a mesh or by `pmap`; on one device it is a plain `jit`.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

TASKS = "tasks"
"""The name of the one axis."""


def connect(coordinator: str, processes: int, index: int) -> None:
    """Join several processes to one program, before anything else asks JAX for a device.

    After it, `jax.devices()` are those of all processes, and so is `tasks_mesh()`. On a TPU pod
    JAX finds the others by itself: give an empty coordinator and 0 processes.

    Args:
        coordinator: address:port of process 0.
        processes: how many there are.
        index: number of this one, from 0.

    Raises:
        ValueError: the index is none of the processes, or there is no coordinator for them.
    """
    if not coordinator and not processes:
        jax.distributed.initialize()
        return
    if not coordinator or not 0 <= index < processes:
        raise ValueError(
            f"coordinator {coordinator!r}, process {index} of {processes}: give address:port of "
            f"process 0, and each process a number of its own below {max(processes, 1)}"
        )
    jax.distributed.initialize(coordinator, processes, index)


def is_first_process() -> bool:
    """Return whether this process is the one that writes what is written once."""
    return jax.process_index() == 0


def tasks_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """Return a mesh with one axis, `tasks`, over the devices.

    Args:
        devices: which devices; all of them, of all processes, by default.

    Returns:
        A mesh of shape {"tasks": number of devices}.
    """
    return Mesh(np.asarray(jax.devices() if devices is None else devices), (TASKS,))


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
        by: "jit" maps it over the mesh; "pmap" by `jax.pmap`.
        donate: numbers of the arguments whose buffers may be used again.

    Returns:
        The function, jitted.

    Raises:
        ValueError: `by` is another name.
    """
    if by not in ("jit", "pmap"):
        raise ValueError(f"parallel is {by!r}; there are jit and pmap")
    if mesh is None or (mesh.size == 1 and by == "jit"):
        return jax.jit(function, donate_argnums=donate)
    whole = PartitionSpec()
    if by == "jit":
        mapped = jax.shard_map(
            function, mesh=mesh, in_specs=whole, out_specs=whole, check_vma=False
        )
        return jax.jit(mapped, donate_argnums=donate)

    def numbered(*args):
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

    def part(leaf):
        if len(leaf) % mesh.size:
            raise ValueError(f"{len(leaf)} tasks do not divide over {mesh.size} devices")
        return leaf.reshape(mesh.size, len(leaf) // mesh.size, *leaf.shape[1:])[number]

    return jax.tree.map(part, tree)


def mean_over_devices(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """Return the mean of every leaf over the devices, inside a function of `on_each_device`."""
    return tree if mesh is None or mesh.size == 1 else jax.lax.pmean(tree, TASKS)


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

    def split(leaf):
        spec = PartitionSpec(TASKS) if leaf.shape[0] % count == 0 else PartitionSpec()
        return jax.lax.with_sharding_constraint(leaf, NamedSharding(mesh, spec))

    return jax.tree.map(split, tree)


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """Put a copy of every leaf on every device of the mesh, whichever process it belongs to."""
    whole = NamedSharding(mesh, PartitionSpec())
    if mesh.is_multi_process:
        # A device's array cannot be copied to another process: each gives its own, equal one.
        return jax.tree.map(lambda leaf: _placed_everywhere(leaf, whole), tree)
    return jax.device_put(tree, whole)


def _placed_everywhere(leaf: Any, whole: NamedSharding) -> jax.Array:
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = _placed_everywhere(jax.random.key_data(leaf), whole)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    value = np.asarray(leaf)
    return jax.make_array_from_callback(value.shape, whole, lambda index: value[index])


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
