"""Meta-train one optimizer: a rule, on a distribution of functions to minimise.

python -m experiments.learn_optimizer \
    --config=experiments/configs/learned_optimizers/lstm_quadratic.py

Writes `optimizer.npz` to the folder of each seed: the checkpoint that did best on validation
problems. `metaguide.optimizers.load(folder)` reads it.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections.config_dict import FrozenConfigDict

from experiments import run_folder, runner
from experiments.cells.config import HARMLESS
from experiments.config_files import ConfigError
from experiments.hand_made import HAND_MADE, tuned
from experiments.modules import COMMANDS
from experiments.optimizees import Setting, setting_of, validation_score
from experiments.processes import command_line
from experiments.training import Training, schedule_of, train_alone
from metaguide.files import FileFault, read_json, write_json
from metaguide.optimizers import (
    Estimator,
    Rule,
    Trained,
    curriculum,
    evolution,
    imitation,
    load,
    rule_of,
    save,
    truncated,
)
from metaguide.optimizers.rule import Theta
from metaguide.optimizers.stored import FILE
from metaguide.parallel import is_first_process, mesh_for, to_local
from metaguide.training.checkpoint import FOLDER, latest
from metaguide.training.particles import particles
from metaguide.training.progress import say
from metaguide.training.state import TrainState

TRAINED = "trained"
"""In the folder name of a problem itself, in place of the name of a transfer."""

WARMUP = "warmup"
"""In the folder of a seed: the warm-up training."""

SCORES = "validation.json"
"""In the folder of a seed: mean log10 loss on validation problems, keyed by step."""

OBJECTIVES: Mapping[str, Callable[[Any], Any]] = {
    "loss": lambda loss: loss,
    "log": lambda loss: jnp.log(loss + 1e-8),
}
"""Objectives, keyed by name: a mean over the steps of an inner problem is minimised."""


def rule_named(config: FrozenConfigDict, method: str) -> Rule:
    """Return the rule of a method; raise a ConfigError for a wrong setting."""
    try:
        return rule_of(method, config.rules[method].to_dict())
    except ValueError as error:
        raise ConfigError(f"config.rules.{method}: {error}") from error


def estimator_of(cfg: FrozenConfigDict, rule: Rule, setting: Setting) -> Estimator:
    """Build the estimator that a section of the config describes.

    Args:
        cfg: `estimator` ("truncated", "full", "evolution", "persistent" or "imitation"),
            `truncation`, `first_horizon`, `objective` and `largest`. The first two estimators also
            read `curvature` and `remat`, the next two `sigma`, and the last one `teacher` and
            `teacher_learning_rate`.
        rule: the rule to train.
        setting: the setting to train it on.

    Raises:
        ConfigError: the estimator, objective or teacher is unknown, the horizons do not fit, or
            `curvature` is negative.
    """
    if cfg.objective not in OBJECTIVES:
        raise ConfigError(f"objective={cfg.objective!r}: there are {', '.join(OBJECTIVES)}")
    windows = setting.horizon if cfg.estimator == "full" else cfg.truncation
    first = cfg.first_horizon or setting.horizon
    try:
        horizon = curriculum(first, setting.horizon, windows)
    except ValueError as error:
        raise ConfigError(f"first_horizon={cfg.first_horizon}: {error}") from error
    shared = {"transform": OBJECTIVES[cfg.objective], "max_loss": cfg.largest}
    given = (rule, setting.optimizee, horizon, windows)
    differentiated = partial(truncated, *given, curvature=cfg.curvature, remat=cfg.remat, **shared)
    makers: dict[str, Callable[[], Estimator]] = {
        "truncated": differentiated,
        "full": differentiated,
        "evolution": partial(evolution, *given, cfg.sigma, persistent=False, **shared),
        "persistent": partial(evolution, *given, cfg.sigma, **shared),
        "imitation": lambda: imitation(
            rule, setting.optimizee, _teacher_of(cfg), horizon, windows, max_loss=cfg.largest
        ),
    }
    if not cfg.curvature >= 0:
        raise ConfigError(f"curvature={cfg.curvature}: a bound on a norm is 0 or more")
    if cfg.estimator not in makers:
        raise ConfigError(f"estimator={cfg.estimator!r}: there are {', '.join(makers)}")
    return makers[cfg.estimator]()


def _teacher_of(cfg: FrozenConfigDict) -> optax.GradientTransformation:
    teacher = cfg.get("teacher", "")
    if teacher not in HAND_MADE:
        raise ConfigError(f"teacher={teacher!r}: there are {', '.join(HAND_MADE)}")
    return HAND_MADE[teacher](cfg.teacher_learning_rate)


def train_rule(
    config: FrozenConfigDict, problem: str, method: str, seed: int, workdir: Path
) -> Trained:
    """Meta-train a rule, or resume where it stopped, and keep the best of its checkpoints.

    Args:
        config: its `rules`, the section of the problem, and the fields for validation are read.
        problem: the problem to train on, a name in `config.problems`.
        method: the kind of rule.
        seed: seed of its initial parameters and its inner problems.
        workdir: the common work folder; `folder_of` gives this seed's folder in it.

    Returns:
        The checkpoint with the lowest mean log10 loss on the validation problems.

    Raises:
        ConfigError: a setting of the rule or of its training is wrong, or the folder holds a run
            with another config.
    """
    folder, section = folder_of(workdir, problem, method, seed), config[problem]
    cfg, setting = section.train[method], setting_of(section)
    rule, cell = rule_named(config, method), cell_config(config, problem, method)
    run_folder.write_config(cell, folder, harmless=HARMLESS)
    if (latest(folder / FOLDER) or 0) >= cfg.meta_steps:
        return load(folder, method)
    data = jax.device_put(setting.data["train"])

    def trained(cfg: FrozenConfigDict, theta: Theta, key, folder: Path, where: str, keep=None):
        estimator, mesh = estimator_of(cfg, rule, setting), mesh_for(cfg.meta_batch_size)
        many = particles(estimator, cfg.meta_batch_size, mesh)
        warm_up = cfg.meta_steps // 20
        rate = optax.warmup_cosine_decay_schedule(0.0, cfg.learning_rate, warm_up, cfg.meta_steps)
        training = Training(
            "optimizee",
            many,
            {"rule": theta},
            data,
            optax.chain(optax.clip_by_global_norm(cfg.clip), optax.adam(rate)),
            key,
            carry=many.start({"rule": theta}, data, key),
        )
        return train_alone(
            training,
            schedule_of(cfg, where, cfg.meta_steps, cfg.steps_per_call, "validate_every"),
            folder,
            mesh=mesh,
            parallel=config.parallel,
            name=f"{problem}/{method} seed {seed}, {cfg.estimator}",
            where=where,
            hint=f"lower {where}.learning_rate",
            about={**about, "part": where},
            on_checkpoint=keep,
        )["rule"]

    identity = run_folder.identity(cell, harmless=HARMLESS)
    about = {"problem": problem, "method": method, "seed": seed, "config": identity}
    begin, draw = jax.random.split(jax.random.key(seed))
    theta, where = rule.init(begin), f"config.{problem}.train.{method}"
    if cfg.warmup:
        first = jax.random.fold_in(draw, 0)
        theta = trained(cfg.warmup, theta, first, folder / WARMUP, f"{where}.warmup")
    trained(cfg, theta, draw, folder, where, keeper(cell, setting, rule, folder))
    return load(folder, method)


def keeper(
    cell: FrozenConfigDict, setting: Setting, rule: Rule, folder: Path
) -> Callable[[TrainState], None]:
    """Build a function that scores each checkpoint on validation problems and keeps the best."""
    path, score_of = folder / SCORES, validation_score(cell, setting, rule.transform)

    def keep(state: TrainState) -> None:
        theta = to_local(state.params["meta"]["rule"])
        score = score_of(theta)
        scores = scores_in(path) if path.exists() else {}
        scores[str(int(state.step))] = score
        if not is_first_process():
            return
        if score == min(scores.values()):
            save(folder / FILE, rule, theta, command_line())
        write_json(path, scores)

    return keep


def scores_in(path: Path) -> dict[str, float]:
    """Return the scores of a rule's checkpoints, keyed by step.

    Raises:
        ConfigError: the file is missing or damaged, or its scores are not those of a run.
    """
    try:
        scores = read_json(path)
        if all(step.isdecimal() and type(score) in (int, float) for step, score in scores.items()):
            return scores
        raise FileFault("it does not have a number for each step")
    except (FileNotFoundError, FileFault) as error:
        raise ConfigError(
            f"{path}: {error}; delete the folder that it is in, and the rule is trained again"
        ) from error


def cell_config(
    config: FrozenConfigDict, problem: str, method: str, transfer: str = ""
) -> FrozenConfigDict:
    """Return the config that a method's outcome on a problem, or on a transfer of it, depends on.

    Raises:
        ConfigError: the problem has no such transfer.
    """
    section = config[problem].to_dict()
    train, transfers = section.pop("train"), section.pop("transfer")
    if transfer and transfer not in transfers:
        raise ConfigError(f"config.{problem}.transfer: there is no {transfer!r}")
    setting = section | transfers.get(transfer, {})
    scored = ("seed", "least", "cap", "validation_problems", "test_problems")
    cell = {name: setting.pop(name, config[name]) for name in scored}
    cell["setting"] = setting
    if method in HAND_MADE:
        return FrozenConfigDict(cell | {"learning_rates": config.learning_rates})
    rule = {"rule": config.rules[method], "trained_on": section, "train": train[method]}
    return FrozenConfigDict(cell | rule)


def folder_of(workdir: Path, problem: str, method: str, seed: int) -> Path:
    """Return the folder of a trained rule."""
    return workdir / f"{problem}-{TRAINED}" / method / f"seed{seed}"


def best_of(folder: Path) -> tuple[int, float]:
    """Return the step of the checkpoint that was kept, and its mean log10 loss on validation."""
    scores = scores_in(folder / SCORES)
    step = min(scores, key=lambda step: scores[step])
    return int(step), scores[step]


def main(config: FrozenConfigDict, workdir: Path) -> None:
    """Train the rule that the config names, and compare it with hand-made optimizers."""
    method, problem = config.learner, config.problem
    for field, known in (("learner", tuple(config.rules)), ("problem", config.problems)):
        if config[field] not in known:
            named = ", ".join(known)
            raise ConfigError(f"config.{field}: there is no {config[field]!r}; there are {named}")
    setting = setting_of(config[problem])
    for seed in range(config.seeds):
        train_rule(config, problem, method, seed, workdir)
        step, score = best_of(folder_of(workdir, problem, method, seed))
        say(f"{method} seed {seed}: mean log10 loss {score:.3f} on validation, of step {step}")
    for name in HAND_MADE:
        choice = tuned(cell_config(config, problem, name), setting, name)
        say(
            f"{name}: {choice.score:.3f}, tuned there: "
            f"learning rate {choice.learning_rate:.2g}, {choice.schedule}"
        )
    folder = folder_of(workdir, problem, method, 0)
    say(f"learn_optimizer: rule, theta, _ = metaguide.optimizers.load('{folder}')")


if __name__ == "__main__":
    runner.run(main, **COMMANDS["experiments.learn_optimizer"]._asdict())
