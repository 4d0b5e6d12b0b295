"""What pre-training, multi-task training and meta-training share: one stage, one folder."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import optax
from jax.sharding import Mesh
from ml_collections.config_dict import FrozenConfigDict

from experiments.config_files import ConfigError
from experiments.domain_split import DomainSplit, prepare
from experiments.processes import command_line
from experiments.run_folder import check_config, identity, write_config
from metaguide import run_config
from metaguide.data.tokenizer import Tokenizer
from metaguide.models.guide import init_params
from metaguide.objectives.weighting import Weighting, fixed, uncertainty
from metaguide.optimizers import Rule, Trained, save
from metaguide.optimizers.stored import FILE
from metaguide.parallel import is_first_process, replicate, tasks_mesh, to_local
from metaguide.run_config import TOKENIZER, RunConfig, stage_serving
from metaguide.training.checkpoint import FOLDER, CheckpointError, latest, restore_stage
from metaguide.training.loop import Schedule, train
from metaguide.training.state import TrainState
from metaguide.training.step import (
    CompiledStep,
    Gradient,
    ScannedStep,
    init_state,
    make_step,
)
from metaguide.types import Params


class Stage(NamedTuple):
    """One training stage: a program, and the data it reads; any seed may run it from any start.

    Attributes:
        name: "pretrain", "multitask" or "metatrain", which names its section of the config.
        learner: of meta-training; "" elsewhere.
        steps: how many it takes.
        step: what is compiled.
        data: by objective, on the devices.
        init: (meta, seed) -> the state before the first step, on the devices.
        rule: of the learned optimizer that is trained in it; None where there is none.
    """

    name: str
    learner: str
    steps: int
    step: CompiledStep | ScannedStep
    data: Mapping[str, Any]
    init: Callable[[Params, int], TrainState]
    rule: Rule | None = None


def build_stage(
    config: FrozenConfigDict,
    name: str,
    gradients: Mapping[str, Gradient],
    data: Mapping[str, Any],
    weighting: Weighting,
    learner: str = "",
    shared: Mesh | None = None,
    trained: Trained | None = None,
) -> Stage:
    """Build a stage; nothing is compiled yet.

    Args:
        config: whose section `name` says how many steps, and at what rate.
        name: "pretrain", "multitask" or "metatrain".
        gradients: of what to minimise, by name of the objective.
        data: arrays by objective; they are put on the devices once.
        weighting: of the objectives.
        learner: of meta-training.
        shared: what the gradients share their tasks over, from `shared_by`.
        trained: the learned optimizer of the learner, as its training here starts.
    """
    section, mesh = config[name], tasks_mesh()
    optimizer = adamw(section.learning_rate, section.steps, section.get("weight_decay", 0.0))
    if trained is not None:
        # Held parameters have no gradient, but AdamW would keep a state of them, and decay them.
        rule_optimizer = adamw(section.rule_learning_rate, section.steps, 0.0)
        optimizer = optax.partition(
            {"start": optax.set_to_zero(), "rule": rule_optimizer},
            {"meta": {"params": "start", "rule": "rule"}, "weighting": "rule"},
        )

    def init(meta: Params, seed: int) -> TrainState:
        meta = meta if trained is None else {**meta, "rule": trained.theta}
        return replicate(init_state(meta, weighting, optimizer, jax.random.key(seed)), mesh)

    step = make_step(gradients, weighting, optimizer, section.steps, mesh=shared)
    rule = None if trained is None else trained.rule
    return Stage(name, learner, section.steps, step, replicate(dict(data), mesh), init, rule)


def shared_by(meta_batch_size: int) -> Mesh | None:
    """Return the mesh of all devices where they divide the tasks of a step.

    None where they do not: each device then has all tasks, and no time is saved.
    """
    mesh = tasks_mesh()
    return mesh if meta_batch_size % mesh.size == 0 else None


def compile_stage(stage: Stage, meta: Params) -> None:
    """Compile a stage's step ahead of its first one, for meta-parameters of the shape of `meta`."""
    stage.step.compile(stage.init(meta, 0), stage.data)


def train_stage(
    stage: Stage,
    meta: Params,
    *,
    config: FrozenConfigDict,
    split: DomainSplit,
    workdir: Path,
    seed: int,
) -> Params:
    """Train one stage to its end in its own folder, or go on where it stopped.

    A learned optimizer is left there too: `metaguide.optimizers.load(workdir)` reads it.

    Args:
        stage: what to train.
        meta: what is learned, as it starts.
        config: the whole config, written beside the checkpoints.
        split: whose tokenizer is kept with the checkpoints.
        workdir: the stage's folder.
        seed: of the training.

    Returns:
        The trained meta-parameters.
    """
    write_config(config, workdir)
    rate, steps = config.metatrain.inner_learning_rate, config.adapt.steps
    run = split.run_config(
        stage=stage.name,
        learner=stage.learner,
        seed=seed,
        serving=stage_serving(stage.learner, rate, steps),
    )
    run_config.write(run, workdir)
    split.reading.tokenizer.save(workdir / TOKENIZER)

    def keep_rule(state: TrainState) -> None:
        if stage.rule is not None and is_first_process():
            theta = to_local(state.params["meta"]["rule"])
            save(workdir / FILE, stage.rule, theta, command_line())

    state = train(
        stage.step,
        stage.init(meta, seed),
        stage.data,
        Schedule(stage.steps, config.log_every, config.checkpoint_every),
        workdir,
        name=f"{stage.name} {stage.learner}".rstrip(),
        hint=f"lower config.{stage.name}.learning_rate",
        about={**run.about, "config": identity(config)},
        on_checkpoint=keep_rule,
    )
    return state.params["meta"]


def run_stage(
    build: Callable[[FrozenConfigDict, DomainSplit], Stage],
    config: FrozenConfigDict,
    workdir: Path,
    before: RunConfig | None,
) -> None:
    """Run a stage alone, as its module does: from `init_from`, or from random parameters.

    Args:
        build: (config, split) -> the stage.
        config: resolved.
        workdir: of the stage.
        before: from `stage_before`.
    """
    split = split_of_stage(config, workdir)
    meta, _ = start(config, split, before)
    stage, meta = build(config, split), {"params": meta["params"]}
    train_stage(stage, meta, config=config, split=split, workdir=workdir, seed=config.seed)


def is_finished(stage: Stage, workdir: Path) -> bool:
    """Return whether a stage has nothing left to do in its folder."""
    return (latest(workdir / FOLDER) or 0) >= stage.steps


def adamw(rate: float, steps: int, weight_decay: float) -> optax.GradientTransformation:
    """Return AdamW with a warm-up of a tenth of the steps, a cosine to 0, and clipped gradients."""
    warm = max(1, steps // 10)
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, warm, max(steps, warm + 1))
    # Over one vector: kernels of its own for each of a hundred leaves take seconds to compile.
    return optax.flatten(
        optax.chain(
            optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=weight_decay)
        )
    )


def weighting_of(kind: str, weights: Mapping[str, float], names: list[str]) -> Weighting:
    """Return the weighting of the objectives `names` that a config asks for."""
    if kind == "uncertainty":
        return uncertainty(names)
    if kind != "fixed":
        raise ConfigError(f"weighting {kind!r}: there are fixed and uncertainty")
    return fixed({name: weights[name] for name in names})


def stage_before(config: FrozenConfigDict) -> RunConfig | None:
    """Read what the stage that `init_from` names says of itself; None where it names none.

    Raises:
        ConfigError: the folder that it names is not that of a stage.
    """
    if not config.init_from:
        return None
    try:
        return run_config.read(Path(config.init_from))
    except CheckpointError as error:
        raise ConfigError(
            f"--config.init_from={config.init_from}: {error}; give the work folder of a stage that "
            "has run"
        ) from error


def start(
    config: FrozenConfigDict, split: DomainSplit, before: RunConfig | None
) -> tuple[Params, Rule | None]:
    """Return the meta-parameters that a stage run alone starts from: `init_from`, or random.

    The rule is that of the learned optimizer among them, where there is one.

    Args:
        config: reads its `init_from` and `seed`.
        split: whose model they are of.
        before: from `stage_before`.
    """
    meta = random_start(split, config.seed)
    if before is None:
        return meta, None
    return restore_stage(Path(config.init_from), meta, before.about)


def random_start(split: DomainSplit, seed: int) -> Params:
    """Return fresh meta-parameters, another set for each seed."""
    meta = {"params": init_params(split.model, jax.random.key(1000 + seed))}
    # Placed as training leaves it, so that no program is compiled twice for where its input lies.
    return replicate(meta, tasks_mesh())


def split_of_stage(config: FrozenConfigDict, workdir: Path) -> DomainSplit:
    """Prepare the domains of a stage run alone, with the tokenizer of the stage it starts from.

    Raises:
        ConfigError: the folder holds a run of another config, or `init_from` is no stage's.
    """
    # First, for `prepare` makes anew what was made there for other data.
    check_config(config, workdir)
    tokenizer = None
    if config.init_from:
        before = Path(config.init_from) / TOKENIZER
        if not before.exists():
            raise ConfigError(
                f"--config.init_from={config.init_from}: no {TOKENIZER} in it; give the work "
                "folder of a stage that has run"
            )
        tokenizer = Tokenizer.load(before)
    return prepare(config, workdir / "data", tokenizer)
