"""The gradient of meta-training and of multi-task training: a learner's, over drawn episodes."""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from metaguide.data.episodes import draw_domain
from metaguide.parallel import split_tasks
from metaguide.training.step import Gradient
from metaguide.types import Family, Learner


def episodic(
    family: Family,
    learner: Learner,
    *,
    tasks: int,
    shots: tuple[int, ...],
    weights: tuple[float, ...] | None = None,
    tasks_per_chunk: int | None = None,
    mesh: Mesh | None = None,
) -> Gradient:
    """Return the gradient of the mean of a learner's objective over freshly drawn episodes.

    An episode is drawn inside the function that is mapped over tasks, so that what belongs to the
    family and not to a task, such as a catalogue, is never copied a task.

    Args:
        family: where episodes come from; its data reach the objective as an argument.
        learner: whose objective; built on the family's problem.
        tasks: episodes a step.
        shots: an episode's number of shots is drawn from these.
        weights: of the family's domains; equal by default.
        tasks_per_chunk: tasks that a device maps over at once, chunk after chunk, which bounds
            memory whatever `tasks` is; all by default.
        mesh: lays the tasks of a chunk over its devices.

    Returns:
        (meta, data, key, progress) -> ((loss, metrics), gradient).

    Raises:
        ValueError: weights that do not fit the domains, are negative or all 0; tasks that the
            chunks do not divide.
    """
    chance = jnp.asarray(weights or (1.0,) * len(family.domains), jnp.float32)
    if chance.shape != (len(family.domains),) or chance.min() < 0 or chance.sum() <= 0:
        raise ValueError(
            f"{len(family.domains)} domains ({', '.join(family.domains)}) need as many weights, "
            f"none negative and not all 0; got {weights}"
        )
    choices = jnp.asarray(shots, jnp.int32)
    devices = 1 if mesh is None else mesh.size
    size = min(tasks, (tasks_per_chunk or tasks) * devices)
    if tasks % size:
        raise ValueError(
            f"{tasks} tasks a step do not divide into chunks of {tasks_per_chunk} on each of "
            f"{devices} devices; make tasks a multiple of {size}"
        )

    def one(meta, data, key, progress):
        domain_key, shots_key, episode_key, learner_key = jax.random.split(key, 4)
        domain = draw_domain(chance, domain_key)
        drawn = jax.random.choice(shots_key, choices)
        episode = family.sample(data, domain, drawn, episode_key)
        return learner.objective(meta, episode, learner_key, progress)

    def chunk(meta, data, keys, progress):
        if size == 1:  # a batch of one costs its tracing, and kernels that are slower
            return one(meta, data, keys[0], progress)
        if mesh is not None:
            keys = split_tasks(keys, mesh)
        mapped = jax.vmap(one, in_axes=(None, None, 0, None))(meta, data, keys, progress)
        return jax.tree.map(jnp.mean, mapped)

    def gradient(meta, data, key, progress):
        keys = jax.random.split(key, (tasks // size, size))
        of_chunk = jax.value_and_grad(chunk, has_aux=True)

        def add(total, keys):
            values, slope = of_chunk(meta, data, keys, progress)
            return jax.tree.map(jnp.add, total, slope), values

        if len(keys) == 1:
            return of_chunk(meta, data, keys[0], progress)
        total, values = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, meta), keys)
        mean = jax.tree.map(lambda leaf: leaf / len(keys), total)
        return jax.tree.map(lambda leaf: leaf.mean(0), values), mean

    return gradient
