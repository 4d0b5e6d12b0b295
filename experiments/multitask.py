"""Joint training of the four tasks on the source domains: J(θ) = Σ λₜ Jₜ(θ).

python -m experiments.multitask --config.init_from=runs/pretrain --workdir=runs/multitask
"""

from pathlib import Path

from ml_collections.config_dict import FrozenConfigDict

from experiments import runner
from experiments.config_files import ConfigError
from experiments.domain_split import DomainSplit
from experiments.modules import COMMANDS
from experiments.stages import Stage, build_stage, run_stage, shared_by, stage_before, weighting_of
from metaguide.learners import joint
from metaguide.tasks.sentiment import NAME as SENTIMENT
from metaguide.tasks.sentiment import fit_polarity
from metaguide.training.episodic import episodic
from metaguide.training.progress import say
from metaguide.training.state import TrainState
from metaguide.types import Params


def multitask_stage(config: FrozenConfigDict, split: DomainSplit) -> Stage:
    """Build the joint training of encoder and heads, with batches balanced over domains and tasks.

    A batch has several episodes of every task, from uniformly drawn domains. Support and query are
    trained on alike, without adaptation. What n-grams say of a review's sentiment is fitted first.

    Args:
        config: its `multitask` is read.
        split: the split whose sources are read.

    Returns:
        The stage.

    Raises:
        ConfigError: no task is left.
    """
    section = config.multitask
    distributions = split.task_distributions(
        "sources",
        ranked=split.shape.candidates,
        shots=max(section.shots),
        users=section.users,
    )
    wanted = [task for task, weight in section.weights.items() if weight > 0]
    distributions = {task: one for task, one in distributions.items() if task in wanted}
    lacking = ", ".join(task for task in wanted if task not in distributions)
    if not distributions:
        why = f"no source domain has data of {lacking}" if lacking else "all are 0"
        raise ConfigError(f"config.multitask.weights: {why}; nothing is left to train on")
    if lacking:
        why = "no source domain has data of it"
        if split.model.encoder.text is None:
            why += ", or it needs token states: give config.model.layers or config.encoder.train"
        say(f"multitask: {lacking} left out: {why}")
    shared = shared_by(section.meta_batch_size)
    stage = build_stage(
        config,
        "multitask",
        {
            task: episodic(
                distribution,
                joint(distribution.problem),
                meta_batch_size=section.meta_batch_size,
                shots=section.shots,
                mesh=shared,
            )
            for task, distribution in distributions.items()
        },
        {task: distribution.data for task, distribution in distributions.items()},
        weighting_of(section.weighting, section.weights, list(distributions)),
        shared=shared,
        frozen=split.frozen,
    )
    if SENTIMENT not in distributions or not split.reading.reader.buckets:
        return stage
    polarity = fit_polarity(split.sources, split.reading)

    def init(meta: Params, seed: int) -> TrainState:
        params = meta["params"]
        grams = {**params["grams"], "polarity": polarity}
        return stage.init({**meta, "params": {**params, "grams": grams}}, seed)

    return stage._replace(init=init)


def main(config: FrozenConfigDict, workdir: Path) -> None:
    """Run this stage alone."""
    run_stage(multitask_stage, config, workdir, stage_before(config))


if __name__ == "__main__":
    runner.run(main, **COMMANDS["experiments.multitask"]._asdict())
