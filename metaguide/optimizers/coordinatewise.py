"""Rules built from an update of one coordinate, the same for all coordinates of all tensors.

All coordinates lie on the last axis, in chunks that fit in a core's cache: a network's intermediate
values between a chunk's gradient and its update never reach main memory.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec, reshard
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float, Int, PyTree

from metaguide.optimizers.features import Flat
from metaguide.optimizers.rule import (
    Joint,
    Rule,
    Theta,
    check_gradients,
    check_theta,
    count_skipped,
    named,
    varying_like,
)

CHUNK = 4096
"""Number of coordinates in a chunk."""


class State(NamedTuple):
    """The state of a coordinate-wise rule.

    Attributes:
        memory: pytree of [chunks, ..., coordinates of a chunk], in the dtype of θ.
        skipped: number of updates with a non-finite gradient somewhere, where the memory was left
            unchanged; one number per problem if the state is that of many.
    """

    memory: PyTree
    skipped: Int[Array, "*problems"]


def coordinatewise(
    kind: str,
    init: Callable[[Array], Theta],
    start: Callable[[tuple[int, int], Any], PyTree],
    update: Callable[[Theta, Flat, PyTree], tuple[Flat, PyTree]],
    settings: Mapping[str, Any] = MappingProxyType({}),
) -> Rule:
    """Build a rule from its update of a chunk of coordinates.

    Args:
        kind: see `Rule`.
        init: key -> θ.
        start: ((chunks, coordinates of a chunk), dtype) -> memory, [chunks, ..., coordinates].
        update: (θ, gradient of a chunk, its memory) -> (its update, its memory); it must not
            depend on which coordinates are in a chunk.
        settings: see `Rule`.

    Returns:
        The rule. Its transform raises ValueError for another rule's θ, and TypeError for a gradient
        that is not floating-point.

    >>> def init(key):
    ...     return {"log_rate": jnp.log(0.1)}
    >>> def start(shape, dtype):
    ...     return ()
    >>> def update(theta, gradient, memory):
    ...     return -jnp.exp(theta["log_rate"]) * gradient, memory
    >>> rule = coordinatewise("learned sgd", init, start, update)
    >>> optimizer = rule.transform(rule.init(key))
    >>> updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    >>> print(updates["w"].round(3))
    [-0.2 -0.2 -0.2]
    """

    name = named(kind, settings)

    def transform(theta: Theta) -> optax.GradientTransformationExtraArgs:
        check_theta(name, init, theta)
        dtype = jnp.result_type(*jax.tree.leaves(theta))

        def begin(params: PyTree) -> State:
            check_gradients(name, params)
            state = State(start(_chunks(_size(params)), dtype), jnp.zeros((), jnp.int32))
            return varying_like(state, params)

        def step(
            updates: PyTree, state: Any, params: PyTree | None = None, **extra: Any
        ) -> tuple[PyTree, State]:
            del params, extra
            check_gradients(name, updates)

            def of_chunk(item: tuple[Flat, PyTree]) -> tuple[Flat, PyTree]:
                gradient, before = item
                finite = jnp.isfinite(gradient)
                moved, memory = update(theta, jnp.where(finite, gradient, 0), before)
                memory = jax.tree.map(lambda a, b: jnp.where(finite, a, b), memory, before)
                return jnp.where(finite, moved, 0), memory

            gradient = _in_chunks(updates, dtype)
            # Recomputing a chunk in the backward pass is cheaper than storing its results.
            anew = jax.checkpoint(of_chunk, prevent_cse=False)
            if len(gradient) == 1:  # a batch of one is slower than its one element
                moved, memory = anew(jax.tree.map(lambda x: x[0], (gradient, state.memory)))
                moved, memory = jax.tree.map(lambda x: x[None], (moved, memory))
            else:
                moved, memory = jax.lax.map(anew, (gradient, state.memory))
            skipped = count_skipped(state.skipped, updates)
            return _as(moved, updates), State(memory, skipped)

        return optax.GradientTransformationExtraArgs(begin, step)

    return Rule(kind, init, transform, settings, Joint(_join, _part))


def _join(states: State, params: PyTree) -> State:
    """Return the states of all problems as one: one tensor of all problems, then the next."""
    count, sizes = _problems(params)

    def joined(leaf: Array) -> Array:
        apart = _split(jax.vmap(_whole, out_axes=-2)(leaf), sizes)
        tensors = [
            tensor.reshape(*tensor.shape[:-2], count * size)
            for tensor, size in zip(apart, sizes, strict=True)
        ]
        return _cut(jnp.concatenate(tensors, axis=-1))

    return State(jax.tree.map(joined, states.memory), states.skipped)


def _part(state: State, params: PyTree) -> State:
    """Return the state of each problem; see `_join`."""
    count, sizes = _problems(params)

    def parted(leaf: Array) -> Array:
        tensors = _split(_whole(leaf), [count * size for size in sizes])
        apart = [
            tensor.reshape(*tensor.shape[:-1], count, size)
            for tensor, size in zip(tensors, sizes, strict=True)
        ]
        return jax.vmap(_cut, in_axes=-2)(jnp.concatenate(apart, axis=-1))

    return State(jax.tree.map(parted, state.memory), state.skipped)


def _problems(params: PyTree) -> tuple[int, list[int]]:
    """Return how many problems there are, and how many coordinates each has in each tensor."""
    leaves = jax.tree.leaves(params)
    count = len(leaves[0])
    return count, [jnp.size(leaf) // count for leaf in leaves]


def _split(values: Array, sizes: Sequence[int]) -> list[Array]:
    """Return the parts of the last axis that have these sizes; the remainder is padding."""
    return jnp.split(values, list(itertools.accumulate(sizes)), axis=-1)[:-1]


def _size(params: PyTree) -> int:
    return sum(jnp.size(leaf) for leaf in jax.tree.leaves(params))


def _chunks(size: int) -> tuple[int, int]:
    """Return how many chunks there are, and how many coordinates each has."""
    count = max(-(-size // CHUNK), 1)
    return count, -(-size // count)


def _cut(whole: Float[Array, "*units coordinates"]) -> Float[Array, "chunks *units width"]:
    """Return coordinates in chunks; the last chunk is padded with 0."""
    *units, size = whole.shape
    count, width = _chunks(size)
    padded = jnp.pad(whole, [(0, 0)] * len(units) + [(0, count * width - size)])
    return jnp.moveaxis(padded.reshape(*units, count, width), -2, 0)


def _whole(chunks: Float[Array, "chunks *units width"]) -> Float[Array, "*units padded"]:
    """Return the coordinates of chunks, including the last one's padding; see `_cut`."""
    along = jnp.moveaxis(chunks, 0, -2)
    return along.reshape(*along.shape[:-2], chunks.shape[0] * chunks.shape[-1])


def _in_chunks(tree: PyTree, dtype: DTypeLike) -> Float[Array, "chunks width"]:
    """Return all coordinates of a tree."""
    leaves = [jnp.ravel(_whole_tensor(leaf)).astype(dtype) for leaf in jax.tree.leaves(tree)]
    return _cut(jnp.concatenate(leaves) if leaves else jnp.zeros((0,), dtype))


def _as(chunks: Float[Array, "chunks width"], like: PyTree) -> PyTree:
    """Return the coordinates as a tree with the shapes and dtypes of `like`."""
    leaves, structure = jax.tree.flatten(like)
    parts = _split(_whole(chunks), [jnp.size(leaf) for leaf in leaves])
    shaped = [
        _sharded_like(part.reshape(jnp.shape(leaf)).astype(jnp.result_type(leaf)), leaf)
        for part, leaf in zip(parts, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, shaped)


def _whole_tensor(leaf: ArrayLike) -> Array:
    """Return a tensor without the sharding that its type names: a chunk is of several tensors."""
    leaf = jnp.asarray(leaf)
    sharding = jax.typeof(leaf).sharding
    if not any(sharding.spec):
        return leaf
    return reshard(leaf, NamedSharding(sharding.mesh, PartitionSpec()))


def _sharded_like(value: Array, like: ArrayLike) -> Array:
    """Return an array with the sharding that the type of another names."""
    sharding = jax.typeof(jnp.asarray(like)).sharding
    return reshard(value, sharding) if any(sharding.spec) else value
