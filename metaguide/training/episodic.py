"""The objective of meta-training and of multi-task training: a learner's, over drawn episodes."""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from metaguide.data.episodes import draw_domain
from metaguide.parallel import split_tasks
from metaguide.training.step import Objective
from metaguide.types import Family, Learner


def episodic(
    family: Family,
    learner: Learner,
    *,
    tasks: int,
    shots: tuple[int, ...],
    weights: tuple[float, ...] | None = None,
    mesh: Mesh | None = None,
) -> Objective:
    """Return the mean of a learner's objective over freshly drawn episodes of a family.

    An episode is drawn inside the function that is mapped over tasks, so that what belongs to the
    family and not to a task, such as a catalogue, is never copied a task.

    Args:
        family: where episodes come from; its data reach the objective as an argument.
        learner: whose objective; built on the family's problem.
        tasks: episodes a step.
        shots: an episode's number of shots is drawn from these.
        weights: of the family's domains; equal by default.
        mesh: lays the tasks over its devices.

    Returns:
        (meta, data, key, progress) -> (loss, metrics).

    Raises:
        ValueError: weights that do not fit the domains, are negative or all 0.
    """
    chance = jnp.asarray(weights or (1.0,) * len(family.domains), jnp.float32)
    if chance.shape != (len(family.domains),) or chance.min() < 0 or chance.sum() <= 0:
        raise ValueError(
            f"{len(family.domains)} domains ({', '.join(family.domains)}) need as many weights, "
            f"none negative and not all 0; got {weights}"
        )
    choices = jnp.asarray(shots, jnp.int32)

    def objective(meta, data, key, progress):
        def one(key):
            domain_key, shots_key, episode_key, learner_key = jax.random.split(key, 4)
            domain = draw_domain(chance, domain_key)
            episode = family.sample(
                data, domain, jax.random.choice(shots_key, choices), episode_key
            )
            return learner.objective(meta, episode, learner_key, progress)

        keys = jax.random.split(key, tasks)
        if mesh is not None:
            keys = split_tasks(keys, mesh)
        return jax.tree.map(jnp.mean, jax.vmap(one)(keys))

    return objective
