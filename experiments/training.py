"""Training on one objective in its own folder: a cell of a table, or a learned optimizer."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Key
from ml_collections.config_dict import FrozenConfigDict

from experiments.config_files import ConfigError
from metaguide.objectives.weighting import fixed
from metaguide.parallel import replicate, to_local
from metaguide.training.checkpoint import About
from metaguide.training.loop import Schedule, train
from metaguide.training.state import TrainState
from metaguide.training.step import Carrying, Gradient, init_state, make_step
from metaguide.types import Params


class Training(NamedTuple):
    """One training: its objective, start and data.

    Attributes:
        objective: name of the objective in the metrics.
        gradient: gradient of the objective.
        meta: initial meta-parameters; a list for trainings that run side by side.
        data: data that the gradient reads.
        optimizer: optimizer of the meta-parameters.
        key: random key; stacked for trainings that run side by side.
        carry: initial carry of a `Carrying` gradient.
    """

    objective: str
    gradient: Gradient | Carrying
    meta: Params | Sequence[Params]
    data: Any
    optimizer: optax.GradientTransformation
    key: Key[Array, "*trainings"]
    carry: Any = None


def schedule_of(
    section: FrozenConfigDict,
    where: str,
    steps: int,
    steps_per_call: int,
    checkpoints: str = "checkpoint_every",
) -> Schedule:
    """Return the schedule of a section of the config.

    Args:
        section: its `log_every` and the field that `checkpoints` names are read.
        where: dotted name of the section, for messages.
        steps: total number of steps.
        steps_per_call: steps per call of the program.
        checkpoints: name of the field with the number of steps between two checkpoints.

    Raises:
        ConfigError: log lines or checkpoints do not fall on the end of a call.
    """
    for field in ("log_every", checkpoints):
        if section[field] % steps_per_call:
            raise ConfigError(
                f"{where}.{field} is {section[field]}: make it a multiple of "
                f"{where}.steps_per_call, {steps_per_call}"
            )
    return Schedule(steps, section.log_every, section[checkpoints], steps_per_call)


def train_alone(
    training: Training,
    schedule: Schedule,
    workdir: Path | Sequence[Path],
    *,
    mesh: Mesh,
    parallel: str,
    where: str,
    name: str,
    hint: str,
    about: About | Sequence[About],
    on_checkpoint: Callable[[TrainState], None] | None = None,
) -> Params:
    """Train in a separate folder, resuming where it stopped.

    If there are several folders, one program runs a training for each, side by side.

    Args:
        training: what to train.
        schedule: for how long to train.
        workdir: folder of this training alone, or of each training.
        mesh: mesh of the devices that share the tasks.
        parallel: "jit" or "pmap".
        where: name of the config section it depends on, for messages.
        name: name of the training in messages.
        hint: what to do if training diverges.
        about: what checkpoints record about this training, or about each, as for `loop.train`.
        on_checkpoint: as for `loop.train`.

    Returns:
        The meta-parameters, replicated on each device of this process, with a leading axis over the
        trainings if there are several.

    Raises:
        ConfigError: the steps per call do not divide the steps, or `parallel` is unknown.
    """
    seeds = None if isinstance(workdir, Path) else len(workdir)
    weighting = fixed({training.objective: 1.0})
    try:
        step = make_step(
            {training.objective: training.gradient},
            weighting,
            training.optimizer,
            schedule.steps,
            mesh=mesh,
            parallel=parallel,
            steps_per_call=schedule.steps_per_call,
            seeds=seeds,
        )
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error
    carrying = isinstance(training.gradient, Carrying)
    carried = {training.objective: training.carry} if carrying else None

    def begun(meta: Params, key: Key[Array, ""]) -> TrainState:
        return init_state(meta, weighting, training.optimizer, key, carried)

    if seeds is None:
        state = begun(training.meta, training.key)
    else:
        each = [begun(*pair) for pair in zip(training.meta, training.key, strict=True)]
        state = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
    state = train(
        step,
        replicate(state, mesh),
        replicate({training.objective: training.data}, mesh),
        schedule,
        workdir,
        name=name,
        hint=hint,
        about=about,
        on_checkpoint=on_checkpoint,
    )
    return to_local(state.params["meta"])
