"""The gradient of meta-training and multi-task training: a learner's gradient, averaged.

Episodes are drawn on the device inside the compiled step (`episodic`), or come from outside, from
a Grain stream or a file (`on_episodes`).
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Key, PyTree

from metaguide.data.episodes import check_draws, draw_domain
from metaguide.parallel import mean_over_devices, own_share
from metaguide.training.step import Gradient
from metaguide.types import (
    Episode,
    GradientFn,
    Learner,
    Metrics,
    ObjectiveFn,
    Params,
    Progress,
    TaskDistribution,
)


def episodic(
    distribution: TaskDistribution,
    learner: Learner,
    *,
    meta_batch_size: int,
    shots: tuple[int, ...],
    weights: tuple[float, ...] | None = None,
    tasks_per_chunk: int | None = None,
    mesh: Mesh | None = None,
) -> Gradient:
    """Return a learner's meta-gradient, the mean over freshly drawn episodes.

    With a mesh, `on_each_device` gives each device its share of the tasks, and the means are over
    all tasks. The episodes drawn do not depend on the devices and chunks.

    An episode is drawn inside the function that is mapped over tasks, so data of the distribution
    rather than of a task, such as a catalogue, are never copied for each task.

    Args:
        distribution: the source of episodes; its data reach the objective as an argument.
        learner: the learner, built on the distribution's problem.
        meta_batch_size: number of episodes per step.
        shots: an episode's number of shots is drawn from these.
        weights: weights of the distribution's domains; equal by default.
        tasks_per_chunk: number of tasks that a device maps over at once, chunk after chunk, which
            bounds memory for any `meta_batch_size`; all by default.
        mesh: mesh of the devices that share the tasks; None for a single device.

    Returns:
        (meta, data, key, progress) -> ((loss, metrics), gradient).

    Raises:
        ValueError: the weights do not fit the domains, are negative or all 0; or the number of
            tasks is not positive or not divisible by devices and chunks. The gradient raises
            EpisodeError for data of fewer domains, or for more shots than the sampler draws.
    """
    chance = jnp.asarray(weights or (1.0,) * len(distribution.domains), jnp.float32)
    if chance.shape != (len(distribution.domains),) or chance.min() < 0 or chance.sum() <= 0:
        raise ValueError(
            f"{len(distribution.domains)} domains ({', '.join(distribution.domains)}) need as many "
            f"weights, none negative and not all 0; got {weights}"
        )
    choices = jnp.asarray(shots, jnp.int32)

    def one(meta: Params, data: Any, key: Key[Array, ""], progress: Progress) -> tuple[Any, Any]:
        domain_key, shots_key, episode_key, learner_key = jax.random.split(key, 4)
        # A draw among one option costs a small problem a tenth of its step.
        domain = jnp.int32(0) if len(chance) == 1 else draw_domain(chance, domain_key)
        drawn = choices[0] if len(choices) == 1 else jax.random.choice(shots_key, choices)
        episode = distribution.sample(data, domain, drawn, episode_key)
        return _of(learner)(meta, episode, learner_key, progress)

    mean = _over_tasks(one, learner, meta_batch_size, tasks_per_chunk, mesh)

    def gradient(
        meta: Params, data: Any, key: Key[Array, ""], progress: Progress
    ) -> tuple[tuple[Array, Metrics], Params]:
        check_draws(distribution, data, len(distribution.domains) - 1, max(shots))
        return mean(meta, data, jax.random.split(key, meta_batch_size), progress)

    return gradient


def on_episodes(
    learner: Learner,
    *,
    meta_batch_size: int,
    tasks_per_chunk: int | None = None,
    mesh: Mesh | None = None,
) -> Gradient:
    """Return a learner's meta-gradient, the mean over episodes given as the data.

    All steps of a call of `make_step(steps_per_call=…)` read the same data: for fresh episodes at
    each step, leave `steps_per_call` at 1 or let a sampler draw them (`episodic`).

    Args:
        learner: the learner.
        meta_batch_size: number of episodes per step.
        tasks_per_chunk, mesh: as in `episodic`.

    Returns:
        (meta, episodes, key, progress) -> ((loss, metrics), gradient); every leaf of `episodes` has
        a leading axis of `meta_batch_size` tasks, or ValueError.

    Raises:
        ValueError: the number of tasks is not positive or not divisible by devices and chunks.
    """

    def one(
        meta: Params, data: Any, item: tuple[Episode, Key[Array, ""]], progress: Progress
    ) -> tuple[Any, Any]:
        episode, key = item
        return _of(learner)(meta, episode, key, progress)

    mean = _over_tasks(one, learner, meta_batch_size, tasks_per_chunk, mesh)

    def gradient(
        meta: Params, data: Episode, key: Key[Array, ""], progress: Progress
    ) -> tuple[tuple[Array, Metrics], Params]:
        odd = {leaf.shape[:1] for leaf in jax.tree.leaves(data)} - {(meta_batch_size,)}
        if odd:
            raise ValueError(
                f"a leaf of the episodes has {[*odd.pop()]} tasks; meta_batch_size is "
                f"{meta_batch_size}"
            )
        return mean(meta, (), (data, jax.random.split(key, meta_batch_size)), progress)

    return gradient


def _of(learner: Learner) -> ObjectiveFn | GradientFn:
    """Return a task's contribution: the objective, or the learner's own gradient if it has one."""
    return learner.gradient or learner.objective


def _over_tasks(
    one: Callable[..., Any],
    learner: Learner,
    meta_batch_size: int,
    tasks_per_chunk: int | None,
    mesh: Mesh | None,
) -> Callable[[PyTree, PyTree, PyTree, Any], Any]:
    """Return (meta, data, items, progress) -> the mean over items of the learner's gradient.

    Each device takes its share of the items' leading axis. A scan over chunks sums the gradients;
    the tasks of a chunk are mapped over at once.
    """
    devices = 1 if mesh is None else mesh.size
    share = max(meta_batch_size // devices, 1)
    size = min(tasks_per_chunk or share, share)
    if min(meta_batch_size, size) < 1 or meta_batch_size % (size * devices):
        raise ValueError(
            f"{meta_batch_size} tasks a step do not divide into chunks of "
            f"{tasks_per_chunk or size} on each of {devices} devices; "
            f"make it a positive multiple of {max(size, 1) * devices}"
        )

    def mean_of(items: PyTree, meta: Params, data: Any, progress: Progress) -> tuple[Any, Any]:
        if size == 1:  # a batch of one costs tracing time and uses slower kernels
            return one(meta, data, jax.tree.map(lambda leaf: leaf[0], items), progress)
        mapped = jax.vmap(one, in_axes=(None, None, 0, None))(meta, data, items, progress)
        return jax.tree.map(lambda leaf: leaf.mean(0), mapped)

    def of_chunk(
        meta: Params, data: Any, items: PyTree, progress: Progress
    ) -> tuple[tuple[Array, Metrics], Params]:
        if learner.gradient is not None:
            return mean_of(items, meta, data, progress)
        objective = functools.partial(mean_of, items)
        return jax.value_and_grad(objective, has_aux=True)(meta, data, progress)

    def mean(
        meta: Params, data: Any, items: PyTree, progress: Progress
    ) -> tuple[tuple[Array, Metrics], Params]:
        items = own_share(items, mesh)
        if share == size:
            return mean_over_devices(of_chunk(meta, data, items, progress), mesh)
        items = jax.tree.map(lambda leaf: leaf.reshape(-1, size, *leaf.shape[1:]), items)

        def add(total: Params, items: PyTree) -> tuple[Params, tuple[Array, Metrics]]:
            values, slope = of_chunk(meta, data, items, progress)
            return jax.tree.map(jnp.add, total, slope), values

        total, values = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, meta), items)
        values = jax.tree.map(lambda leaf: leaf.mean(0), values)
        return mean_over_devices((values, optax.tree.scale(size / share, total)), mesh)

    return mean
