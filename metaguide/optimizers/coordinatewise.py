"""Make a rule of what it does to a coordinate, the same for all coordinates of all tensors.

They are one axis, the last, in chunks that stay in a core's cache: what a network computes on the
way from a chunk's gradient to its update never reaches the memory.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from metaguide.optimizers.features import Flat
from metaguide.optimizers.rule import Rule, Theta, check_gradients, check_theta, named

CHUNK = 4096
"""Coordinates of a chunk."""


class State(NamedTuple):
    """What a coordinate-wise rule remembers.

    Attributes:
        step: number of updates made.
        memory: pytree of [chunks, ..., coordinates of a chunk], in the dtype of θ.
    """

    step: Int[Array, ""]
    memory: PyTree


def coordinatewise(
    kind: str,
    init: Callable[[Array], Theta],
    start: Callable[[tuple[int, int], Any], PyTree],
    update: Callable[[Theta, Array, Flat, PyTree], tuple[Flat, PyTree]],
    settings: Mapping[str, Any] = MappingProxyType({}),
    fused: bool = False,
) -> Rule:
    """Make a rule of what it does to a chunk of coordinates.

    Args:
        kind: see `Rule`.
        init: key -> θ.
        start: ((chunks, coordinates of a chunk), dtype) -> memory, [chunks, ..., coordinates].
        update: (θ, step from 1 on, gradient of a chunk, its memory) -> (its update, its memory).
        settings: see `Rule`.
        fused: whether XLA makes one loop of the update, which leaves nothing to be kept in a cache:
            all chunks are updated at once, and by all threads.

    Returns:
        The rule. Its transform raises ValueError for a θ of another rule or a gradient that is not
        finite where it can be looked at, and TypeError for one that is not of floating point.
    """

    name = named(kind, settings)

    def transform(theta: Theta) -> optax.GradientTransformationExtraArgs:
        check_theta(name, init, theta)
        dtype = jnp.result_type(*jax.tree.leaves(theta))

        def begin(params: PyTree) -> State:
            check_gradients(name, params)
            return State(jnp.zeros((), jnp.int32), start(_chunks(_size(params)), dtype))

        def step(updates: PyTree, state: Any, params: PyTree | None = None, **extra):
            del params, extra
            check_gradients(name, updates)
            count = state.step + 1

            def of_chunk(item):
                return update(theta, count, *item)

            gradient = _in_chunks(updates, dtype)
            if len(gradient) == 1:  # a batch of one is slower than what it is a batch of
                moved, memory = of_chunk(jax.tree.map(lambda x: x[0], (gradient, state.memory)))
                moved, memory = jax.tree.map(lambda x: x[None], (moved, memory))
            elif fused:
                moved, memory = jax.vmap(of_chunk)((gradient, state.memory))
            else:
                # To compute a chunk anew in a backward pass costs less than to keep what it made.
                anew = jax.checkpoint(of_chunk, prevent_cse=False)
                moved, memory = jax.lax.map(anew, (gradient, state.memory))
            return _as(moved, updates), State(count, memory)

        return optax.GradientTransformationExtraArgs(begin, step)

    return Rule(kind, init, transform, settings)


def _size(params: PyTree) -> int:
    return sum(jnp.size(leaf) for leaf in jax.tree.leaves(params))


def _chunks(size: int) -> tuple[int, int]:
    """Return how many chunks there are, and how many coordinates each has."""
    count = max(-(-size // CHUNK), 1)
    return count, -(-size // count)


def _in_chunks(tree: PyTree, dtype) -> Float[Array, "chunks coordinates"]:
    """Return all coordinates of a tree; what the last chunk has too many is 0."""
    leaves = [jnp.ravel(leaf).astype(dtype) for leaf in jax.tree.leaves(tree)]
    flat = jnp.concatenate(leaves) if leaves else jnp.zeros((0,), dtype)
    count, width = _chunks(flat.size)
    return jnp.pad(flat, (0, count * width - flat.size)).reshape(count, width)


def _as(chunks: Float[Array, "chunks coordinates"], like: PyTree) -> PyTree:
    """Return the coordinates as a tree of these shapes and dtypes."""
    leaves, structure = jax.tree.flatten(like)
    flat, place, parts = chunks.reshape(-1), 0, []
    for leaf in leaves:
        part = flat[place : place + jnp.size(leaf)]
        parts.append(part.reshape(jnp.shape(leaf)).astype(jnp.result_type(leaf)))
        place += jnp.size(leaf)
    return jax.tree.unflatten(structure, parts)
