"""One cell of a few-shot table: a learner, meta-trained on one distribution and tested."""

import math
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections.config_dict import FrozenConfigDict

from experiments.cells.config import HARMLESS
from experiments.config_files import ConfigError
from experiments.run_folder import identity
from experiments.training import Training, schedule_of, train_alone
from metaguide.evaluation.evaluate import episode_keys, evaluator
from metaguide.parallel import local_mesh, mesh_for, replicate
from metaguide.training.episodic import episodic
from metaguide.training.progress import say
from metaguide.types import Learner, Params, TaskDistribution


class Cell(NamedTuple):
    """What is trained and scored, apart from its seed.

    Attributes:
        name: name of its folder, such as "5w1s/maml".
        distribution: the distribution it is trained on.
        learner: the learner as it is trained.
        optimizer: the outer optimizer, over the meta-parameters.
        steps: number of meta-training steps.
        meta_batch_size: episodes per step.
        shots: shots of the support in training.
    """

    name: str
    distribution: TaskDistribution
    learner: Learner
    optimizer: optax.GradientTransformation
    steps: int
    meta_batch_size: int
    shots: int


def way_back(rate: float, steps: int) -> optax.GradientTransformation:
    """Return Reptile's outer optimizer, which goes a share of the way to the adapted parameters.

    The share falls from `rate` to 0 over the steps. The inner optimizer's state, "rule", is set to
    its mean over tasks.
    """

    schedule = optax.linear_schedule(rate, 0.0, steps)
    rules: dict[Hashable, Any] = {"params": optax.sgd(schedule), "rule": optax.sgd(1.0)}

    def labels(tree: Params) -> Params:
        return jax.tree.map_with_path(
            lambda path, _: "rule" if "['rule']" in jax.tree_util.keystr(path) else "params", tree
        )

    return optax.partition(rules, labels)


def train_cell(
    cell: Cell,
    config: FrozenConfigDict,
    workdirs: Sequence[Path],
    seeds: Sequence[int],
    mesh: Mesh | None = None,
) -> list[Params]:
    """Meta-train seeds of a cell side by side, each in its folder, resuming where they stopped.

    Args:
        cell: what to train.
        config: its `tasks_per_chunk`, `parallel`, `steps_per_call`, `log_every` and
            `checkpoint_every` are read.
        workdirs: the cell's folder for each seed.
        seeds: seeds of initial parameters and episodes.
        mesh: mesh of the devices that share the tasks; by default as many as divide them.

    Returns:
        The meta-parameters of each seed, replicated on each device of this process.

    Raises:
        ConfigError: the devices or chunks do not divide the tasks, the steps per call do not divide
            the steps, or `parallel` is unknown.
    """
    mesh = mesh_for(cell.meta_batch_size) if mesh is None else mesh
    if mesh.size < jax.device_count():
        used = f"{mesh.size} of {jax.device_count()} devices"
        say(f"{cell.name}: {cell.meta_batch_size} tasks per step, on {used}")
    try:
        gradient = episodic(
            cell.distribution,
            cell.learner,
            meta_batch_size=cell.meta_batch_size,
            shots=(cell.shots,),
            tasks_per_chunk=config.tasks_per_chunk or None,
            mesh=mesh,
        )
    except ValueError as error:
        raise ConfigError(f"config: {error}") from error
    steps_per_call = config.steps_per_call or best_steps_per_call(
        cell.steps, config.log_every, config.checkpoint_every
    )
    keys = [jax.random.key(1000 + seed) for seed in seeds]
    metas = [cell.learner.init(jax.random.key(seed)) for seed in seeds]
    of = {"cell": cell.name, "config": identity(config, harmless=HARMLESS)}
    abouts = [{**of, "seed": seed} for seed in seeds]
    alone = len(seeds) == 1
    training = Training(
        "episodes",
        gradient,
        metas[0] if alone else metas,
        cell.distribution.data,
        cell.optimizer,
        keys[0] if alone else jnp.stack(keys),
    )
    trained = train_alone(
        training,
        schedule_of(config, "config", cell.steps, steps_per_call),
        workdirs[0] if alone else workdirs,
        mesh=mesh,
        parallel=config.parallel,
        name=f"{cell.name} seed {', '.join(map(str, seeds))}",
        where="config",
        hint="lower config.learning_rate, or the inner_learning_rate of the learner",
        about=abouts[0] if alone else abouts,
    )
    if alone:
        return [trained]
    return [jax.tree.map(lambda leaf: leaf[i], trained) for i in range(len(seeds))]


def best_steps_per_call(*counts: int) -> int:
    """Return the best number of steps per call of the program: up to 50 on an accelerator.

    There a step takes about as long as the call itself. On a CPU the cost of a call is negligible.

    Args:
        counts: the total number of steps, and the numbers between logging and checkpoints; the
            result divides each.
    """
    return 1 if jax.default_backend() == "cpu" else math.gcd(50, *counts)


def at_once(config: FrozenConfigDict) -> int:
    """Return how many seeds of a cell one program trains: all of them on an accelerator.

    One small training leaves most of an accelerator idle, but no part of a CPU.
    """
    return config.seeds_at_once or (1 if jax.default_backend() == "cpu" else config.seeds)


def scored(
    distribution: TaskDistribution,
    learner_of: Callable[[Any], Learner],
    metas: Sequence[Params],
    *,
    shots: int,
    seed: int,
    split: str,
    episodes: int,
    chunk: int,
    rates: tuple[float, ...] = (0.0,),
) -> list[dict[str, np.ndarray]]:
    """Return the problem's `score` on fixed episodes.

    Everything is one program, compiled once.

    Args:
        distribution: where the episodes come from; they depend only on seed, split and index.
        learner_of: rate -> the learner that adapts.
        metas: the meta-parameters of one or several seeds.
        shots: shots of the support.
        seed: seed of the episodes, the same for all methods.
        split: "validation" or "test".
        episodes: number of episodes.
        chunk: episodes side by side on all devices of this process.
        rates: rates that the learner is built with.

    Returns:
        For each of the metas and each rate: arrays [observations, episodes, queries], keyed by
        name.
    """
    mesh = local_mesh()
    run = evaluator(distribution, {"learner": learner_of}, min(chunk, episodes), mesh).run
    keys, (metas, data) = (
        episode_keys(seed, split, episodes),
        replicate((metas, distribution.data), mesh),
    )
    return [
        run(meta, data, 0, shots, keys, {"learner": rate})["learner"]
        for meta in metas
        for rate in rates
    ]
