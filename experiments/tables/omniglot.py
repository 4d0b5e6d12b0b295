"""Accuracy on Omniglot, 5-way and 20-way, 1-shot and 5-shot, next to the published values.

python -m experiments.tables.omniglot --config.way=5 --config.shot=1 --config.learner=maml

Trains and scores what is requested and not finished in the work folder, then writes the table of
all finished cells: `results.json`, and a picture of the learning curves.
"""

from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections.config_dict import FrozenConfigDict

from experiments import runner
from experiments.cells.cell import Cell, at_once, scored, train_cell, way_back
from experiments.cells.config import learners_in, method_of, methods_asked_for, read_by, settings_of
from experiments.cells.outcomes import (
    check_cells,
    is_finished,
    keep_outcome,
    outcome_of,
    outcomes_in,
    write_table,
)
from experiments.config_files import ConfigError
from experiments.modules import COMMANDS
from experiments.processes import flags_of, in_processes
from experiments.reports.terminal import print_tables
from experiments.sources.parts import data_folder
from experiments.tables.pictures import learning_curves
from metaguide.data import omniglot
from metaguide.data.episodes import balanced_sampler
from metaguide.evaluation.metrics import mean_interval
from metaguide.evaluation.results import Row, Scores, key
from metaguide.learners import prototypical
from metaguide.models.conv4 import CONVOLUTIONS, Conv4
from metaguide.parallel import is_first_process
from metaguide.problems import STATISTICS, classification_of_pictures, inductive
from metaguide.training.progress import say
from metaguide.types import Problem, TaskDistribution

PUBLISHED = {
    "maml": {"5w1s": 0.987, "5w5s": 0.999, "20w1s": 0.958, "20w5s": 0.989},
    "first-order": {"5w1s": 0.983, "5w5s": 0.992, "20w1s": 0.894, "20w5s": 0.979},
    "anil": {"20w1s": 0.962, "20w5s": 0.980},
    "reptile": {"5w1s": 0.9768, "5w5s": 0.9948, "20w1s": 0.8943, "20w5s": 0.9712},
    "imaml": {"5w1s": 0.9916, "5w5s": 0.9967, "20w1s": 0.9446, "20w5s": 0.9869},
    "maml++": {"5w1s": 0.9947, "5w5s": 0.999, "20w1s": 0.9765, "20w5s": 0.9933},
}
"""Accuracy by method and task, with transductive batch norm if the paper uses it."""

PUBLISHED_INDUCTIVE = {
    "reptile": {"5w1s": 0.9539, "5w5s": 0.9890, "20w1s": 0.8814, "20w5s": 0.9665},
    "prototypical": {"5w1s": 0.988, "5w5s": 0.997, "20w1s": 0.960, "20w5s": 0.989},
}
"""The same without statistics of the queries. Prototypical networks were scored with averages over
training, which are not kept here; ours use the support's statistics."""

NO_NORM = "none"
"""Value of `config.statistics` for a network without batch norm."""

PRECISIONS = ("default", "tensorfloat32", "float32")
"""Precisions of float32 matrix products: JAX's default, or one that a GPU offers."""

BASELINE = "pixels"
"""The baseline, which learns nothing: nearest mean of the support's raw pictures."""

METRICS = ("accuracy", "accuracy_inductive")
"""Metrics with statistics of the queries, and without; the baseline has only the first."""

FINITE = "_finite"
"""Suffix of a metric in an outcome: whether the scores of each query are finite."""


def read(config: FrozenConfigDict) -> dict[str, dict[str, np.ndarray]]:
    """Read Omniglot and return the table of each split, "train", "validation" and "test"."""
    folder = data_folder()
    drawings = omniglot.read_drawings(folder)
    if config.split == "vinyals":
        classes = omniglot.vinyals_split(folder, drawings.names)
        return {name: omniglot.table(drawings, *own.T) for name, own in classes.items()}
    if config.split != "maml":
        raise ConfigError(f"config.split={config.split}: there are maml and vinyals")
    split = omniglot.random_split(len(drawings.names), config.seed)
    return {name: omniglot.table(drawings, own) for name, own in split.items()}


def own_section(config: FrozenConfigDict, method: str, way: int) -> FrozenConfigDict:
    """Return a method's protocol for a number of ways: that for 20 from 10 ways on, else for 5."""
    return config[method]["way5" if way < 10 else "way20"]


def problem_of(config: FrozenConfigDict, network: str, way: int, statistics: str) -> Problem:
    """Build the classification by Conv4; raise a ConfigError for an unknown name in the config."""
    if config.convolution not in CONVOLUTIONS:
        raise ConfigError(
            f"config.convolution={config.convolution}: there are {', '.join(CONVOLUTIONS)}"
        )
    if config.statistics not in (*STATISTICS, NO_NORM):
        known = ", ".join((*STATISTICS, NO_NORM))
        raise ConfigError(f"config.statistics={config.statistics}: there are {known}")
    if config.dtype not in ("float32", "bfloat16"):
        raise ConfigError(f"config.dtype={config.dtype}: there are float32 and bfloat16")
    model = Conv4(
        config.channels,
        pooling=network,
        normalise=config.statistics != NO_NORM,
        convolution=config.convolution,
        dtype=jnp.dtype(config.dtype).type,
    )
    return classification_of_pictures(model, way, statistics)


def statistics_in_training(config: FrozenConfigDict) -> str:
    """Return the statistics that batch norm uses; any valid name if there is no batch norm."""
    return "transductive" if config.statistics == NO_NORM else config.statistics


def family_of(table: Mapping[str, np.ndarray], problem: Problem, way, shots, queries, statistics):
    """Build the episodes of one split; the sampler refuses too few classes or drawings."""
    sample = balanced_sampler(way, shots, queries)
    sample = sample if statistics == "transductive" else inductive(sample)
    return TaskDistribution(("omniglot",), table, sample, problem)


def cell_of(config: FrozenConfigDict, tables, method: str, way: int, shot: int) -> Cell:
    """Build the meta-training of a method at a number of ways and shots."""
    cfg = own_section(config, method, way)
    train_way, shots = cfg.get("train_way", way), cfg.get("train_shots", shot)
    queries = cfg.get("queries", shot)
    statistics = statistics_in_training(config)
    problem = problem_of(config, cfg.network, train_way, statistics)
    distribution = family_of(tables["train"], problem, train_way, shots, queries, statistics)
    given = settings_of(method, cfg, cfg.get("inner_steps", 0), config.channels)
    learner = method_of(method).train(problem, given)
    steps = cfg.get("steps", config.steps)
    optimizer = optax.adam(rate_of(config, cfg))
    if method == "reptile":
        optimizer = way_back(cfg.outer_learning_rate, steps)
    meta_batch_size = cfg.get("meta_batch_size", config.meta_batch_size)
    return Cell(
        f"{way}w{shot}s/{method}", distribution, learner, optimizer, steps, meta_batch_size, shots
    )


def rate_of(config: FrozenConfigDict, cfg: FrozenConfigDict) -> optax.ScalarOrSchedule:
    """Return the outer learning rate: constant, halved now and then, or annealed."""
    if "halve_every" in cfg:
        return optax.exponential_decay(config.learning_rate, cfg.halve_every, 0.5, staircase=True)
    if "last_learning_rate" in cfg:
        steps = cfg.get("steps", config.steps)
        return optax.cosine_decay_schedule(
            config.learning_rate, steps, cfg.last_learning_rate / config.learning_rate
        )
    return config.learning_rate


def compute(
    config: FrozenConfigDict, tables, method: str, way: int, shot: int, seeds, folders
) -> list[dict[str, np.ndarray]]:
    """Train seeds of a cell; return `correct` on the test queries, keyed by metric.

    The meta-parameters of a learner depend on the number of ways only in the head, which metric
    learners do not read.
    """
    cell = cell_of(config, tables, method, way, shot)
    metas = train_cell(cell, config, folders, seeds)
    cfg = own_section(config, method, way)
    alone = "one-query" if method == "reptile" else "support"
    found: list[dict[str, np.ndarray]] = [{} for _ in seeds]
    for metric, statistics in zip(METRICS, ("transductive", alone), strict=True):
        problem = problem_of(config, cfg.network, way, statistics)
        distribution = family_of(
            tables["test"], problem, way, shot, cfg.get("test_queries", shot), statistics
        )
        for outcome, judged_ in zip(
            found, correct(config, distribution, method, cfg, metas, shot), strict=True
        ):
            outcome |= _named(metric, judged_)
    return found


def _named(metric: str, found: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {metric: found["correct"], f"{metric}{FINITE}": found["finite"]}


def correct(
    config: FrozenConfigDict, distribution: TaskDistribution, method, cfg, metas, shot: int
):
    """Return whether each answer of each of the metas is right, bool [steps, episodes, queries]."""
    steps = cfg.get("test_steps", cfg.get("inner_steps", 0))
    at_test = FrozenConfigDict({**cfg, "batch": cfg.get("test_batch", cfg.get("batch"))})
    given = settings_of(method, at_test, steps, config.channels)
    return scored(
        distribution,
        lambda rate: method_of(method).at_test(distribution.problem, given),
        metas,
        shots=shot,
        seed=config.seed,
        split="test",
        episodes=cfg.get("test_episodes", config.test_episodes),
        chunk=config.test_chunk or (8 if jax.default_backend() == "cpu" else 50),
    )


def baseline_of(config: FrozenConfigDict, table, way: int, shot: int) -> dict[str, np.ndarray]:
    """Return whether each answer of the nearest mean is right, bool [1, episodes, queries]."""
    problem = problem_of(config, "stride", way, "transductive")
    problem = problem._replace(
        init=lambda key: {"head": {}},
        encode=lambda params, batch, context, key: batch["image"].reshape(len(batch["image"]), -1),
    )
    distribution = family_of(table, problem, way, shot, shot, "transductive")
    (found,) = scored(
        distribution,
        lambda rate: prototypical(problem, 1.0),
        [{"params": {}}],
        shots=shot,
        seed=config.seed,
        split="test",
        episodes=config.test_episodes,
        chunk=100,
    )
    return _named("accuracy", found)


def rows_of(config: FrozenConfigDict, workdir: Path) -> tuple[list[Row], Scores]:
    """Return the rows of all finished cells, and the answers they are computed from."""
    rows: list[Row] = []
    scores: Scores = {}
    for way in config.ways:
        for shot in config.shots:
            task = f"{way}w{shot}s"
            baseline = outcomes_in(workdir, f"{task}/{BASELINE}", 1, METRICS[:1])
            for method in (*learners_in(config), BASELINE):
                needed = METRICS[:1] if method == BASELINE else METRICS
                found = outcomes_in(workdir, f"{task}/{method}", config.seeds, needed)
                for metric in needed if found else ():
                    # Outcomes from before it was recorded have none.
                    right, finite = found[metric], found.get(f"{metric}{FINITE}")
                    cell = _row(config, method, task, shot, metric, right, finite, baseline)
                    rows.append(cell)
                    last = right[:, -1].mean(0, dtype=np.float64).astype(np.float32)
                    ids = np.arange(last.size, dtype=np.int64).reshape(last.shape)
                    scores[key(cell)] = {"score": last, "id": ids}
    return rows, scores


def _row(config, method, task, shot, metric, right, finite, baseline) -> Row:
    """Return the row of `right`, bool [seeds, steps, episodes, queries], after the last step."""
    lost = None if finite is None else int((~finite[:, -1]).any(-1).sum())
    by_episode = right[:, -1].mean(-1, dtype=np.float64)
    over_seeds = mean_interval(by_episode.mean(1))
    published = PUBLISHED if metric == "accuracy" else PUBLISHED_INDUCTIVE
    return Row(
        table=config.table,
        method=method,
        domain=f"{config.split} split",
        task=task,
        shots=shot,
        steps=right.shape[1] - 1,
        metric=metric,
        value=over_seeds.value,
        ci95=mean_interval(by_episode.mean(0)).half,
        ci95_seeds=over_seeds.half,
        episodes=by_episode.shape[1],
        seeds=len(right),
        baseline=float(baseline["accuracy"][:, -1].mean())
        if baseline and method != BASELINE
        else None,
        published=published.get(method, {}).get(task),
        diverged=lost,
    )


def finish_cell(config: FrozenConfigDict, workdir: Path, tables, method: str, way: int, shot: int):
    """Train and score the unfinished seeds of a cell, as many at once as is efficient."""
    folders = [workdir / f"{way}w{shot}s" / method / f"seed{seed}" for seed in range(config.seeds)]
    todo = [
        n for n, folder in enumerate(folders) if not is_finished(folder, read_by(config, method))
    ]
    for first in range(0, len(todo), size := at_once(config)):
        seeds = todo[first : first + size]
        own = [folders[seed] for seed in seeds]
        outcomes = compute(config, tables(), method, way, shot, seeds, own)
        for folder, found in zip(own, outcomes, strict=True):
            keep_outcome(folder, found)


def main(config: FrozenConfigDict, workdir: Path) -> None:
    """Train and score what is requested and not finished, then write the table."""
    if config.precision not in PRECISIONS:
        raise ConfigError(
            f"config.precision is {config.precision!r}; there are {', '.join(PRECISIONS)}"
        )
    with jax.default_matmul_precision(config.precision):
        run(config, workdir)


def run(config: FrozenConfigDict, workdir: Path) -> None:
    """Do the work of `main`, at the precision that is set."""
    methods = methods_asked_for(config)
    ways = (config.way,) if config.way else tuple(config.ways)
    shots = (config.shot,) if config.shot else tuple(config.shots)
    check_cells(workdir, lambda _, method: read_by(config, method))
    tasks = [(way, shot) for way in ways for shot in shots]
    if config.processes > 1:
        cells = [(f"{w}w{s}s/{method}", w, s, method) for w, s in tasks for method in methods]
        in_processes(
            {name: flags_of(way=w, shot=s, learner=method) for name, w, s, method in cells},
            workdir,
            config.processes,
        )
    tables = cache(lambda: read(config))
    for way, shot in tasks:
        folder = workdir / f"{way}w{shot}s" / BASELINE / "seed0"
        baseline = partial(
            lambda way, shot: baseline_of(config, tables()["test"], way, shot), way, shot
        )
        outcome_of(folder, read_by(config, BASELINE), baseline)
        for method in methods:
            finish_cell(config, workdir, tables, method, way, shot)
    if not is_first_process():
        return
    rows, scores = rows_of(config, workdir)
    path = write_table(config, workdir, rows, scores)
    print_tables(rows, baselines=(BASELINE,))
    tasks = [f"{way}w{shot}s" for way in config.ways for shot in config.shots]
    panels = {task: [f"{task}/{method}" for method in learners_in(config)] for task in tasks}
    say(f"omniglot: {path}, {learning_curves(workdir, panels, config.seeds)}")


if __name__ == "__main__":
    runner.run(main, **COMMANDS["experiments.tables.omniglot"]._asdict())
