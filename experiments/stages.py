"""Common code of pre-training, multi-task training and meta-training: one stage, one folder."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Key
from ml_collections.config_dict import FrozenConfigDict

from experiments.config_files import ConfigError
from experiments.domain_split import DomainSplit, prepare, trains_encoder
from experiments.processes import command_line
from experiments.run_folder import check_config, identity, write_config
from metaguide import run_config
from metaguide.data.tokenizer import Tokenizer
from metaguide.models.encoder import FROZEN
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
from metaguide.types import Metrics, Params


class Stage(NamedTuple):
    """One training stage: a program and the data it reads; it can run with any seed from any start.

    Attributes:
        name: "pretrain", "multitask" or "metatrain", also the name of its config section.
        learner: the learner of meta-training; "" in other stages.
        steps: number of steps.
        step: the function that is compiled.
        data: data of each objective, on the devices.
        init: (meta, seed) -> the state before the first step, on the devices.
        rule: rule of the learned optimizer trained in this stage; None if there is none.
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
    frozen: Params | None = None,
) -> Stage:
    """Build a stage; nothing is compiled yet.

    Args:
        config: config whose section `name` sets the number of steps and the learning rate.
        name: "pretrain", "multitask" or "metatrain".
        gradients: gradient of each objective to minimise, keyed by name.
        data: arrays of each objective; they are put on the devices once.
        weighting: weighting of the objectives.
        learner: the learner, for meta-training.
        shared: mesh over which the gradients share their tasks, from `shared_by`.
        trained: the learner's optimizer, as it is at the start of this stage.
        frozen: the parameter group that nothing trains. The steps read it as they read data: it
            has no gradient, no place in the optimizer and none in the checkpoints.
    """
    section, mesh = config[name], tasks_mesh()
    optimizer = adamw(section.learning_rate, section.steps, section.get("weight_decay", 0.0))
    if trains_encoder(config):
        optimizer = optax.chain(optimizer, _scaled("text", config.encoder.learning_rate_scale))
    if trained is not None:
        # Fixed parameters have no gradient, but AdamW would keep state for them and decay them.
        rule_optimizer = adamw(section.rule_learning_rate, section.steps, 0.0)
        optimizer = optax.partition(
            {"start": optax.set_to_zero(), "rule": rule_optimizer},
            {"meta": {"params": "start", "rule": "rule"}, "weighting": "rule"},
        )

    def init(meta: Params, seed: int) -> TrainState:
        meta = without_frozen(meta)
        meta = meta if trained is None else {**meta, "rule": trained.theta}
        return replicate(init_state(meta, weighting, optimizer, jax.random.key(seed)), mesh)

    if frozen is not None:
        gradients = {name: beside_frozen(gradient) for name, gradient in gradients.items()}
        data = {name: {"data": one, FROZEN: frozen} for name, one in data.items()}
    step = make_step(gradients, weighting, optimizer, section.steps, mesh=shared)
    rule = None if trained is None else trained.rule
    return Stage(name, learner, section.steps, step, replicate(dict(data), mesh), init, rule)


def without_frozen(meta: Params) -> Params:
    """Return meta-parameters without the group that nothing trains."""
    params = {name: one for name, one in meta["params"].items() if name != FROZEN}
    return {**meta, "params": params}


def with_frozen(meta: Params, frozen: Params | None) -> Params:
    """Return meta-parameters with the group that nothing trains, if there is one."""
    return meta if frozen is None else {**meta, "params": {**meta["params"], FROZEN: frozen}}


def beside_frozen(gradient: Gradient) -> Gradient:
    """Return a gradient that finds the frozen parameters beside its data."""

    def beside(
        meta: Params, data: Any, key: Key[Array, ""], progress: Float[Array, ""]
    ) -> tuple[tuple[Array, Metrics], Params]:
        full = with_frozen(meta, data[FROZEN])
        found, slope = gradient(full, data["data"], key, progress)
        return found, without_frozen(slope)

    return beside


def shared_by(meta_batch_size: int) -> Mesh | None:
    """Return the mesh of all devices if their number divides the tasks of a step.

    Otherwise return None: each device then computes all tasks, and no time is saved.
    """
    mesh = tasks_mesh()
    return mesh if meta_batch_size % mesh.size == 0 else None


def compile_stage(stage: Stage, meta: Params) -> None:
    """Compile a stage's step before its first call, for meta-parameters shaped like `meta`."""
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
    """Train one stage to its end in its own folder, resuming where it stopped.

    A learned optimizer is also saved there, to be read by `metaguide.optimizers.load(workdir)`.

    Args:
        stage: the stage to train.
        meta: initial meta-parameters.
        config: the complete config, saved next to the checkpoints.
        split: the split whose tokenizer is saved with the checkpoints.
        workdir: the stage's folder.
        seed: seed of the training.

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
    if is_first_process():
        run_config.write(run, workdir)
        # That of a pretrained encoder is in the encoder's folder.
        if isinstance(tokenizer := split.reading.reader.tokenizer, Tokenizer):
            tokenizer.save(workdir / TOKENIZER)

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
        about={**run.about, "config": identity(config), "encoder": run.encoder_fingerprint},
        on_checkpoint=keep_rule,
    )
    return with_frozen(state.params["meta"], split.frozen)


def run_stage(
    build: Callable[[FrozenConfigDict, DomainSplit], Stage],
    config: FrozenConfigDict,
    workdir: Path,
    before: RunConfig | None,
) -> None:
    """Run a stage alone, as its module does: from `init_from`, or from random parameters.

    Args:
        build: (config, split) -> the stage.
        config: a resolved config.
        workdir: work folder of the stage.
        before: the return value of `stage_before`.
    """
    split = split_of_stage(config, workdir)
    meta, _ = start(config, split, before)
    stage, meta = build(config, split), {"params": meta["params"]}
    train_stage(stage, meta, config=config, split=split, workdir=workdir, seed=config.seed)


def is_finished(stage: Stage, workdir: Path) -> bool:
    """Return whether a stage has nothing left to do in its folder."""
    return (latest(workdir / FOLDER) or 0) >= stage.steps


def warmed(rate: float, steps: int) -> optax.Schedule:
    """Return a learning rate that rises to `rate` in a tenth of the steps, and falls to 0."""
    warm = max(1, steps // 10)
    return optax.warmup_cosine_decay_schedule(0.0, rate, warm, max(steps, warm + 1))


def adamw(rate: float, steps: int, weight_decay: float) -> optax.GradientTransformation:
    """Return AdamW with a warm-up of a tenth of the steps, a cosine to 0, and clipped gradients."""
    # Over one flat vector, since separate kernels for a hundred leaves take seconds to compile.
    return optax.flatten(
        optax.chain(
            optax.clip_by_global_norm(1.0),
            optax.adamw(warmed(rate, steps), weight_decay=weight_decay),
        )
    )


def _scaled(group: str, scale: float) -> optax.GradientTransformation:
    """Return the transform that scales the updates of one parameter group."""

    def update(updates: Params, params: Params | None = None) -> Params:
        del params
        groups = dict(updates["meta"]["params"])
        if group in groups:
            groups[group] = optax.tree.scale(scale, groups[group])
        return {**updates, "meta": {**updates["meta"], "params": groups}}

    return optax.stateless(update)


def weighting_of(kind: str, weights: Mapping[str, float], names: list[str]) -> Weighting:
    """Return the weighting of the objectives `names` that a config specifies."""
    if kind == "uncertainty":
        return uncertainty(names)
    if kind != "fixed":
        raise ConfigError(f"weighting {kind!r}: there are fixed and uncertainty")
    return fixed({name: weights[name] for name in names})


def stage_before(config: FrozenConfigDict) -> RunConfig | None:
    """Read the run config of the stage that `init_from` names; return None if it names none.

    Raises:
        ConfigError: the folder is not that of a stage.
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

    The rule is that of the learned optimizer among them, if there is one.

    Args:
        config: its `init_from` and `seed` are read.
        split: the split whose model the parameters belong to.
        before: the return value of `stage_before`.

    Raises:
        ConfigError: the parameters of `init_from` are on another pretrained encoder.
    """
    if before is None:
        return random_start(split, config.seed), None
    if split.weights and before.encoder_fingerprint != split.guide.encoder_fingerprint:
        raise ConfigError(
            f"--config.init_from={config.init_from}: it is on another encoder than "
            f"--config.encoder.weights={config.encoder.weights}; give the folder of the same one"
        )
    meta = random_start(split, config.seed)
    found, rule = restore_stage(Path(config.init_from), without_frozen(meta), before.about)
    return with_frozen(found, meta["params"].get(FROZEN)), rule


def random_start(split: DomainSplit, seed: int) -> Params:
    """Return fresh meta-parameters, which differ from seed to seed except for pretrained groups."""
    meta = {"params": init_params(split.model, jax.random.key(1000 + seed), split.weights)}
    # Placed as after training, so that no program is compiled twice for different input placements.
    return replicate(meta, tasks_mesh())


def split_of_stage(config: FrozenConfigDict, workdir: Path) -> DomainSplit:
    """Prepare the domains of a stage run alone, with the tokenizer of the stage it starts from.

    Raises:
        ConfigError: the folder holds a run of another config, or `init_from` is not a stage's.
    """
    # Check first, because `prepare` replaces what was made there for other data.
    check_config(config, workdir)
    tokenizer = None
    if config.init_from and config.model.layers and not trains_encoder(config):
        before = Path(config.init_from) / TOKENIZER
        if not before.exists():
            raise ConfigError(
                f"--config.init_from={config.init_from}: no {TOKENIZER} in it; give the work "
                "folder of a stage that has run"
            )
        tokenizer = Tokenizer.load(before)
    return prepare(config, workdir / "data", tokenizer)
