"""Learned optimizers against tuned hand-made ones: losses at the horizon and beyond it.

METAGUIDE_DATA_DIR=FOLDER python -m experiments.tables.learned_optimizers
python -m experiments.tables.learned_optimizers --config.problem=quadratic --config.learner=lstm

Trains and scores what is not finished in the work folder, then writes the complete table:
`results.json`, and a picture of the loss curves. Hand-made optimizers are tuned again in each
setting; learned ones are used as they were trained.
"""

from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path

import numpy as np
from ml_collections.config_dict import FrozenConfigDict

from experiments import runner
from experiments.cells.config import methods_asked_for
from experiments.cells.outcomes import check_cells, outcome_of, outcomes_in, write_table
from experiments.config_files import ConfigError
from experiments.hand_made import HAND_MADE, made_of, scheduled, tuned
from experiments.learn_optimizer import TRAINED, cell_config, rule_named, train_rule
from experiments.modules import COMMANDS
from experiments.optimizees import log10_of, score_cell, setting_of
from experiments.reports.layout import MINUS
from experiments.reports.terminal import print_tables
from experiments.tables.pictures import descents
from metaguide.evaluation.metrics import bootstrap_interval, mean_interval
from metaguide.evaluation.results import Row, Scores, key
from metaguide.parallel import is_first_process
from metaguide.training.progress import say

METRIC = "log10_loss"
"""Mean log10 of the loss after the last step."""


def groups_of(config: FrozenConfigDict) -> dict[str, tuple[str, str]]:
    """Return the problem and the transfer ("" for none) of each group of cells, keyed by name."""
    return {
        f"{problem}-{transfer or TRAINED}": (problem, transfer)
        for problem in config.problems
        for transfer in ("", *config[problem].transfer)
    }


def computing(
    config: FrozenConfigDict, problem: str, method: str, cell: FrozenConfigDict, workdir: Path
) -> Callable[[int], dict[str, np.ndarray]]:
    """Build a function: seed -> test losses of the optimizer trained or tuned for the problem."""
    setting = setting_of(cell.setting)
    optimizer_of = (
        scheduled(method, setting.horizon)
        if method in HAND_MADE
        else rule_named(config, method).transform
    )
    losses = score_cell(cell, setting, optimizer_of, "test")

    def compute(seed: int) -> dict[str, np.ndarray]:
        if method not in HAND_MADE:
            return {"loss": losses(train_rule(config, problem, method, seed, workdir).theta)}
        choice = tuned(cell, setting, method)
        return {
            "loss": losses(made_of(choice.learning_rate, choice.schedule)),
            "learning_rate": np.asarray(choice.learning_rate),
            "schedule": np.asarray(choice.schedule),
        }

    return compute


def seeds_of(config: FrozenConfigDict, method: str) -> int:
    """Return how many seeds a method has: one if it is hand-made, since nothing in it is random."""
    return 1 if method in HAND_MADE else config.seeds


def logarithms_in(config: FrozenConfigDict, workdir: Path) -> dict[str, dict[str, np.ndarray]]:
    """Return log10 of the losses of finished cells, keyed by group and method.

    Each array is [seeds, problems, steps + 1].
    """
    return {
        group: {
            method: log10_of(cell["loss"], config.least, config.cap)
            for method in config.learners
            if (
                cell := outcomes_in(
                    workdir, f"{group}/{method}", seeds_of(config, method), ("loss",)
                )
            )
        }
        for group in groups_of(config)
    }


def rows_of(
    config: FrozenConfigDict, logarithms: Mapping[str, Mapping[str, np.ndarray]]
) -> tuple[list[Row], Scores]:
    """Return the rows of all finished cells, and the log10 loss on every test problem.

    Args:
        config: config of the table.
        logarithms: the return value of `logarithms_in`.
    """
    rows: list[Row] = []
    scores: Scores = {}
    for group, (problem, transfer) in groups_of(config).items():
        section = config[problem].to_dict()
        section |= section["transfer"].get(transfer, {})
        last = {method: values[..., -1] for method, values in logarithms[group].items()}
        worst = np.log10(config.cap)  # replaces what is larger or NaN

        def row(method: str, metric: str, values: np.ndarray, half: float | None, lost) -> Row:
            over_seeds = mean_interval(values.mean(1))
            return Row(
                table=config.table,
                method=method,
                domain=section["domain"],
                task=problem,
                steps=section["horizon"],
                metric=metric,
                value=over_seeds.value,
                ci95=half,
                ci95_seeds=over_seeds.half,
                episodes=values.shape[1],
                seeds=len(values),
                diverged=int(lost.sum()),
            )

        for method, values in last.items():
            mean, lost = values.mean(0), values >= worst
            main = row(method, METRIC, values, mean_interval(mean).half, lost)
            score = {"score": mean[:, None].astype(np.float32), "id": np.arange(len(mean))[:, None]}
            no_lower = values >= logarithms[group][method][..., 0]
            rows += [main, row(method, "no_lower", no_lower, None, lost)]
            scores[key(main)] = score
            for rival in HAND_MADE if method not in HAND_MADE else ():
                if rival not in last:
                    continue
                apart, either = values - last[rival], lost | (last[rival] >= worst)
                rows.append(row(rival, f"{method}{MINUS}", apart, half_of(apart), either))
    return rows, scores


def half_of(apart: np.ndarray) -> float | None:
    """Return the half-width for the mean of differences [seeds, problems], over both axes."""
    seeds, problems = (place.ravel() for place in np.indices(apart.shape))
    if len(apart) == 1:  # with one seed there is only the interval over problems
        return bootstrap_interval(apart.ravel(), problems).half
    return bootstrap_interval(apart.ravel(), problems, seeds).half


def main(config: FrozenConfigDict, workdir: Path) -> None:
    """Train, tune and score what is requested and not finished, then write the table."""
    methods = methods_asked_for(config)
    if config.problem and config.problem not in config.problems:
        known = ", ".join(config.problems)
        raise ConfigError(f"config.problem: there is no {config.problem!r}; there are {known}")
    groups = groups_of(config)

    def cell_of(group: str, method: str) -> FrozenConfigDict | None:
        if group not in groups or method not in config.learners:
            return None
        problem, transfer = groups[group]
        return cell_config(config, problem, method, transfer)

    check_cells(workdir, cell_of)
    for group, (problem, transfer) in groups.items():
        if config.problem in ("", problem):
            for method in methods:
                cell = cell_config(config, problem, method, transfer)
                build = cache(partial(computing, config, problem, method, cell, workdir))
                for seed in range(seeds_of(config, method)):
                    folder = workdir / group / method / f"seed{seed}"
                    outcome_of(folder, cell, lambda build=build, seed=seed: build()(seed))
    if not is_first_process():
        return
    logarithms = logarithms_in(config, workdir)
    rows, scores = rows_of(config, logarithms)
    path = write_table(config, workdir, rows, scores)
    for problem in config.problems:
        shown = [row for row in rows if row.task == problem]
        for metric in (METRIC, f"lstm{MINUS}"):
            if any(row.metric == metric for row in shown):
                steps = sorted({row.steps or 0 for row in shown})
                print_tables(shown, metric=metric, steps=steps)
    panels = {
        group: {
            method: values.reshape(-1, values.shape[-1]) for method, values in of_methods.items()
        }
        for group, of_methods in logarithms.items()
    }
    drawn = descents(panels, workdir / "descents.png")
    say(f"learned optimizers: {path}, {drawn}")


if __name__ == "__main__":
    runner.run(main, **COMMANDS["experiments.tables.learned_optimizers"]._asdict())
