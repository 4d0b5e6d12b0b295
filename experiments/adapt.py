"""Adaptation to held-out domains: every method on the same episodes, next to the baselines.

python -m experiments.adapt --config.init_from=runs/guide/seed0/multitask --workdir=runs/adapt
"""

from pathlib import Path

from ml_collections.config_dict import FrozenConfigDict

from experiments import run_folder, runner
from experiments.bench import benches, compared
from experiments.comparison import compare, write_comparison
from experiments.config_files import ConfigError
from experiments.modules import COMMANDS
from experiments.reports.terminal import print_tables
from experiments.stages import random_start, split_of_stage, stage_before, start
from metaguide.methods import IN_GUIDE, METHODS, adaptation_of
from metaguide.parallel import is_first_process


def main(config: FrozenConfigDict, workdir: Path) -> None:
    """Adapt the parameters of the stage `init_from`, and untrained parameters."""
    before = stage_before(config)
    if before is None:
        raise ConfigError(
            "--config.init_from is empty; give the work folder of the stage whose guide adapts"
        )
    split = split_of_stage(config, workdir)
    (meta, rule), nothing = start(config, split, before), random_start(split, config.seed)
    learner = before.learner
    mine = [learner] if learner else [a for a in IN_GUIDE if METHODS[a].stage == "multitask"]
    metas = {"scratch": [nothing], **{method: [meta] for method in mine}}
    rules = {adaptation_of(learner).by: rule} if rule else {}
    with run_folder.claimed(config, workdir):
        distributions = compared(split, queries=config.adapt.queries)
        bench_of = benches(config, split, distributions, metas, workdir, rules)
        comparison = compare(config, split, metas, bench_of)
        if is_first_process():
            write_comparison(comparison, config, split, workdir, [config.seed])
            print_tables(comparison.rows)


if __name__ == "__main__":
    runner.run(main, **COMMANDS["experiments.adapt"]._asdict())
