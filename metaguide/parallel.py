"""The only file that knows devices: a mesh with a `tasks` axis, and what lies on it."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree


def tasks_mesh(devices: list | None = None) -> Mesh:
    """Return a mesh with one axis, `tasks`, over the devices.

    Args:
        devices: which devices; all of them by default.

    Returns:
        A mesh of shape {"tasks": number of devices}.
    """
    return Mesh(np.asarray(jax.devices() if devices is None else devices), ("tasks",))


def split_tasks(tree: PyTree, mesh: Mesh) -> PyTree:
    """Lay the leading axis of every leaf over the mesh's `tasks` axis, inside a compiled step.

    XLA then runs each device's tasks there and sums the meta-gradient over devices. A leading
    axis that the devices do not divide is left whole on every device.

    Args:
        tree: arrays with a leading axis of tasks.
        mesh: from `tasks_mesh`.

    Returns:
        The same values, sharded.
    """
    count = mesh.shape["tasks"]

    def split(leaf):
        spec = PartitionSpec("tasks") if leaf.shape[0] % count == 0 else PartitionSpec()
        return jax.lax.with_sharding_constraint(leaf, NamedSharding(mesh, spec))

    return jax.tree.map(split, tree)


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """Put a copy of every leaf on every device of the mesh."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


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
