"""Meta-training over the cross-domain task distribution: a mixture of tasks and domains.

python -m experiments.metatrain --config.init_from=runs/multitask --config.metatrain.learner=anil
"""

from pathlib import Path

from ml_collections.config_dict import FrozenConfigDict

from experiments import runner
from experiments.config_files import ConfigError
from experiments.domain_split import DomainSplit
from experiments.modules import COMMANDS
from experiments.stages import (
    Stage,
    build_stage,
    run_stage,
    shared_by,
    stage_before,
    weighting_of,
)
from metaguide.inner_loop import Unrolled
from metaguide.methods import (
    META_TRAINED,
    METHODS,
    Settings,
    UnknownMethod,
    adaptation_of,
    method_named,
)
from metaguide.optimizers import load, pretrained
from metaguide.run_config import RunConfig
from metaguide.training.episodic import episodic
from metaguide.types import TaskDistribution

PARTS = ("sources", "validation")
"""Parts of the domains on which an optimizer can be learned."""


def metatraining_stage(config: FrozenConfigDict, split: DomainSplit, learner: str = "") -> Stage:
    """Build the training of one learner on the weighted mixture of tasks and domains.

    Args:
        config: its `metatrain` is read.
        split: the split whose sources are read, or its validation domains if an optimizer is
            learned on them.
        learner: one of `META_TRAINED`; the config's by default.

    Returns:
        The stage.

    Raises:
        ConfigError: the learner or part is unknown, a weight is given for a domain that is not a
            source, or the chunk size does not divide the number of tasks.
        StoredError: there is no learned optimizer to start from, or it is of another kind.
    """
    section = config.metatrain
    learner = learner or section.learner
    try:
        method = method_named(learner, META_TRAINED)
    except UnknownMethod as error:
        raise ConfigError(f"config.metatrain.learner: {error}") from error
    distributions = _families(config, split, learner)
    adaptation = adaptation_of(learner)
    trained, by = None, adaptation.by
    if adaptation.is_learned:
        trained = load(section.rule_from[by], by) if section.rule_from[by] else pretrained(by)

    def settings_on(task: str) -> Settings:
        return Settings(
            steps=section.inner_steps,
            learning_rate=section.inner_learning_rate,
            mode=Unrolled(section.remat),
            # A user's few products adapt only the user's side.
            hold_body=task == "recommendation",
            rule=trained and trained.rule,
        )

    learners = {
        task: method.train(distribution.problem, settings_on(task))
        for task, distribution in distributions.items()
    }
    shared = shared_by(section.meta_batch_size)
    try:
        gradients = {
            task: episodic(
                distribution,
                learners[task],
                meta_batch_size=section.meta_batch_size,
                shots=section.shots,
                weights=tuple(
                    section.domain_weights.get(name, 1.0) for name in distribution.domains
                ),
                tasks_per_chunk=section.tasks_per_chunk or None,
                mesh=shared,
            )
            for task, distribution in distributions.items()
        }
    except ValueError as error:
        raise ConfigError(f"config.metatrain: {error}") from error
    return build_stage(
        config,
        "metatrain",
        gradients,
        {task: distribution.data for task, distribution in distributions.items()},
        weighting_of("fixed", section.weights, list(distributions)),
        learner,
        shared,
        trained,
        split.frozen,
    )


def _families(
    config: FrozenConfigDict, split: DomainSplit, learner: str
) -> dict[str, TaskDistribution]:
    """Return what a learner trains on, keyed by task.

    Raises:
        ConfigError: no task is left, the part is unknown, or a weight is given for a domain that is
            not a source.
    """
    section, is_learned = config.metatrain, adaptation_of(learner).is_learned
    if section.rule_learned_on not in PARTS:
        known = " and ".join(PARTS)
        raise ConfigError(
            f"config.metatrain.rule_learned_on={section.rule_learned_on!r}: there are {known}"
        )
    part = section.rule_learned_on if is_learned else "sources"
    distributions = split.task_distributions(
        part, ranked=split.shape.candidates, shots=max(section.shots)
    )
    # A learner with a fixed initialisation cannot forget: its optimizer only needs the tasks on
    # which it is scored.
    tasks = config.adapt.methods[learner] if is_learned else tuple(distributions)
    distributions = {
        k: one for k, one in distributions.items() if k in tasks and section.weights.get(k, 0) > 0
    }
    if not distributions:
        raise ConfigError(
            f"config.metatrain.weights and config.adapt.methods leave {learner} no task"
        )
    names = {domain.name for domain in split.sources}
    for name, weight in section.domain_weights.items():
        if name not in names and weight != 1:  # a weight of 1 changes nothing
            raise ConfigError(
                f"config.metatrain.domain_weights.{name}: no source domain of that name; there are "
                f"{', '.join(sorted(names))}"
            )
    return distributions


def check_start(config: FrozenConfigDict, before: RunConfig | None) -> None:
    """Refuse an `init_from` that the config's learner cannot start from.

    Args:
        config: its `metatrain.learner` and `init_from` are read.
        before: the return value of `stage_before`.

    Raises:
        ConfigError: the learner starts from another method, and `init_from` is not the work folder
            of that method.
    """
    learner = config.metatrain.learner
    wanted = METHODS[learner].start if learner in META_TRAINED else ""
    if wanted in META_TRAINED and (before is None or before.learner != wanted):
        raise ConfigError(
            f"--config.init_from={config.init_from}: {learner} starts from the parameters of "
            f"{wanted}; give the work folder of its meta-training"
        )


def main(config: FrozenConfigDict, workdir: Path) -> None:
    """Run this stage alone."""
    before = stage_before(config)
    check_start(config, before)
    run_stage(metatraining_stage, config, workdir, before)


if __name__ == "__main__":
    runner.run(main, **COMMANDS["experiments.metatrain"]._asdict())
