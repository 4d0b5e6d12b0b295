"""Training on one objective in a folder of its own: a cell of a table, or a learned optimizer."""

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
    """What is trained: one objective, from where, over what data.

    Attributes:
        objective: its name in the metrics.
        gradient: of it.
        meta: what is learned, as it starts; of trainings side by side a list.
        data: what the gradient reads.
        optimizer: over the meta-parameters.
        key: of the training; of trainings side by side stacked.
        carry: what a `Carrying` gradient starts with.
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
        section: reads `log_every` and the field that `checkpoints` names.
        where: the section stands in the config, for messages.
        steps: how many in all.
        steps_per_call: steps a call.
        checkpoints: the field that says how many steps are between two of them.

    Raises:
        ConfigError: lines or checkpoints that are not after whole calls.
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
    """Train in a folder of its own, or go on where it stopped.

    Several trainings go side by side in one program where there are several folders.

    Args:
        training: what is trained.
        schedule: for how long.
        workdir: of this training alone, or of each.
        mesh: of the devices that share the tasks.
        parallel: "jit" or "pmap".
        where: the section of the config that it reads, for messages.
        name: in messages.
        hint: what to do where training diverges.
        about: what checkpoints say of this training, or of each, as of `loop.train`.
        on_checkpoint: as of `loop.train`.

    Returns:
        The meta-parameters, whole on each device of this process, with a leading axis of the
        trainings where there are several.

    Raises:
        ConfigError: steps that calls do not divide, or another way of going parallel.
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
