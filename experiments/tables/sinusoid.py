"""MSE on sine waves after 1, 5 and 10 steps of adaptation, next to the published values.

python -m experiments.tables.sinusoid
python -m experiments.tables.sinusoid --config.learner=maml --config.seeds=1

Trains and scores what is not finished in the work folder, then writes the complete table:
`results.json`, and pictures of learning curves and of fits before and after adaptation.
"""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections.config_dict import FrozenConfigDict

from experiments import runner
from experiments.cells.cell import Cell, scored, train_cell, way_back
from experiments.cells.config import method_of, methods_asked_for, read_by, settings_of
from experiments.cells.outcomes import check_cells, outcome_of, outcomes_in, write_table
from experiments.config_files import ConfigError
from experiments.modules import COMMANDS
from experiments.reports.terminal import print_tables
from experiments.tables.pictures import fits, learning_curves
from metaguide.data.sinusoid import wave_sampler, waves
from metaguide.evaluation.evaluate import episode_keys
from metaguide.evaluation.metrics import mean_interval
from metaguide.evaluation.results import Row, Scores, key
from metaguide.methods import METHODS, Settings
from metaguide.models.mlp import INITIALISERS, MLP
from metaguide.parallel import is_first_process
from metaguide.problems import regression
from metaguide.training.progress import say
from metaguide.types import Learner, Params, Problem, TaskDistribution

PUBLISHED = {
    ("maml", 5): {1: 0.67, 5: 0.38, 10: 0.35},
    ("pretrained", 5): {1: 2.41, 5: 2.23, 10: 2.19},
}
"""MSE by method, shots and number of steps, from Finn et al. 2017."""

PRETRAINED = METHODS["fine-tuning"]
"""The method with which "pretrained" adapts."""

FITS = ("fit_support", "fit_query", "fit_predicted")
"""Arrays of an outcome that the picture of the fits shows."""

LARGEST = 25.0
"""The largest MSE of always answering 0, A² at A = 5. A task with a larger MSE, or with NaN, has
diverged."""


def problem_of(config: FrozenConfigDict, initialiser: str) -> Problem:
    """Build the regression with the config's multi-layer perceptron."""
    if initialiser not in INITIALISERS:
        raise ConfigError(
            f"config.initialisers: there is no {initialiser!r}; there are {', '.join(INITIALISERS)}"
        )
    model = MLP(tuple(config.widths), initialiser=initialiser)
    return regression(model, INITIALISERS[initialiser])


def cell_of(config: FrozenConfigDict, method: str, initialiser: str) -> Cell:
    """Build the meta-training of a method."""
    cfg, problem = config[method], problem_of(config, initialiser)
    shots = cfg.get("train_shots", config.train_shots)
    distribution = TaskDistribution(
        ("waves",), waves(), wave_sampler(shots, config.train_shots), problem
    )
    if method == "pretrained":
        learner = PRETRAINED.train(problem, Settings())
    else:
        learner = method_of(method).train(problem, settings_of(method, cfg, cfg.inner_steps))
    steps, optimizer = cfg.get("steps", config.steps), optax.adam(config.learning_rate)
    if method == "reptile":
        optimizer = way_back(cfg.outer_learning_rate, steps)
    return Cell(
        f"{initialiser}/{method}",
        distribution,
        learner,
        optimizer,
        steps,
        config.meta_batch_size,
        shots,
    )


def learner_at_test(config: FrozenConfigDict, method: str, problem: Problem, rate) -> Learner:
    """Build the learner that adapts at test; `rate` applies only to the pre-trained network."""
    cfg = config[method]
    steps = cfg.get("test_steps", config.test_steps)
    if method == "pretrained":
        return PRETRAINED.at_test(problem, Settings(steps=steps, learning_rate=rate))
    return method_of(method).at_test(problem, settings_of(method, cfg, steps))


def steps_shown(config: FrozenConfigDict, method: str) -> tuple[int, ...]:
    """Return the numbers of steps with a row: the table's, and a method's last if it has more."""
    last = config[method].get("test_steps", config.test_steps)
    return (*config.shown_steps, last) if last > config.test_steps else tuple(config.shown_steps)


def compute(config: FrozenConfigDict, method: str, initialiser: str, seed: int, folder: Path):
    """Train one seed of a method and return its squared errors, one array per number of shots."""
    cell = cell_of(config, method, initialiser)
    (meta,) = train_cell(cell, config, [folder], [seed])
    problem, found, rate = cell.distribution.problem, {}, 0.0
    for shots in config.test_shots:
        distribution = TaskDistribution(("waves",), waves(), wave_sampler(shots, shots), problem)
        learner_of = partial(learner_at_test, config, method, problem)
        ask = partial(
            scored, distribution, learner_of, [meta], shots=shots, seed=config.seed, chunk=100
        )
        if method == "pretrained":
            rate = best_rate(config, ask)
            found[f"rate{shots}"] = np.asarray(rate)
        (errors,) = ask(split="test", episodes=config.test_tasks, rates=(rate,))
        found[f"mse{shots}"] = errors["squared_error"].mean(-1)
    return found | fits_of(config, learner_at_test(config, method, problem, rate), meta)


def fits_of(config: FrozenConfigDict, learner: Learner, meta: Params) -> dict[str, np.ndarray]:
    """Return three test waves and the learner's fits of them, for `pictures.fits`."""
    shots = max(config.test_shots)
    sample = wave_sampler(shots, 200)

    def fit(key):
        episode = sample(waves(), 0, shots, key)
        _, predicted = learner.adapt(
            meta,
            episode.support,
            (),
            key,
            lambda adapted: learner.predict(adapted, episode.query, ())["y"][:, 0],
        )
        points = (
            jnp.concatenate([batch["x"], batch["y"]], axis=1)
            for batch in (episode.support, episode.query)
        )
        return (*points, predicted)

    found = jax.device_get(jax.jit(jax.vmap(fit))(episode_keys(config.seed, "test", 3)))
    return dict(zip(FITS, found, strict=True))


def best_rate(config: FrozenConfigDict, ask) -> float:
    """Return the rate with the lowest median error on validation tasks, after all steps."""
    rates = tuple(config.pretrained.learning_rates)
    errors = ask(split="validation", episodes=config.validation_tasks, rates=rates)
    last = [median(one["squared_error"][-1].mean(-1)) for one in errors]
    return rates[int(np.argmin(last))]


def median(errors: np.ndarray) -> np.ndarray:
    """Return the median over the last axis, with NaN as the largest value."""
    return np.median(np.where(np.isnan(errors), np.inf, errors), axis=-1)


def rows_of(config: FrozenConfigDict, workdir: Path) -> tuple[list[Row], Scores]:
    """Return the rows of all finished cells, and the error of every test task."""
    rows: list[Row] = []
    scores: Scores = {}
    needed = [f"mse{shots}" for shots in config.test_shots]
    for initialiser in config.initialisers:
        baselines = outcomes_in(workdir, f"{initialiser}/pretrained", config.seeds, needed)
        for method in config.learners:
            found = outcomes_in(workdir, f"{initialiser}/{method}", config.seeds, needed)
            for shots in config.test_shots if found else ():
                for steps in steps_shown(config, method):
                    errors = found[f"mse{shots}"][:, steps].astype(np.float64)
                    baseline = None
                    if baselines and steps <= config.test_steps:
                        baseline = baselines[f"mse{shots}"][:, steps].mean(dtype=np.float64)
                    cell = _cell_rows(config, method, initialiser, shots, steps, errors, baseline)
                    rows += cell
                    mean = errors.mean(0)
                    ids = np.arange(len(mean), dtype=np.int64)
                    scores |= {
                        key(row): {"score": mean[:, None].astype(np.float32), "id": ids[:, None]}
                        for row in cell
                        if row.metric == "mse"
                    }
    return rows, scores


def _cell_rows(config, method, initialiser, shots, steps, errors, baseline) -> list[Row]:
    """Return the rows of errors [seeds, tasks]: mean if finite, median, and share diverged."""

    def row(
        metric: str, by_seed: np.ndarray, over_tasks=None, baseline=None, published=None
    ) -> Row:
        over_seeds = mean_interval(by_seed)
        return Row(
            table=config.table,
            method=method,
            domain=initialiser,
            task="sinusoid",
            shots=shots,
            steps=steps,
            metric=metric,
            value=over_seeds.value,
            ci95=over_tasks,
            ci95_seeds=over_seeds.half,
            episodes=errors.shape[1],
            seeds=len(errors),
            baseline=baseline,
            published=published,
            diverged=int((~np.isfinite(errors)).sum()),
        )

    rows = []
    if np.isfinite(errors).all():
        means = errors.mean(1)
        rows.append(
            row(
                "mse",
                means,
                mean_interval(errors.mean(0)).half,
                float(baseline) if baseline is not None and np.isfinite(baseline) else None,
                PUBLISHED.get((method, shots), {}).get(steps),
            )
        )
    medians = median(errors)
    if np.isfinite(medians).all():
        rows.append(row("mse_median", medians))
    rows.append(row("diverged", 1.0 - (errors <= LARGEST).mean(1)))
    return rows


def main(config: FrozenConfigDict, workdir: Path) -> None:
    """Train and score what is requested and not finished, then write the table."""
    methods = methods_asked_for(config)
    if max(config.shown_steps) > config.test_steps:
        raise ConfigError(
            f"config.shown_steps is {config.shown_steps}: no row comes after more than "
            f"config.test_steps={config.test_steps}"
        )
    check_cells(workdir, lambda _, method: read_by(config, method))
    for initialiser in config.initialisers:
        for method in methods:
            for seed in range(config.seeds):
                folder = workdir / initialiser / method / f"seed{seed}"
                job = partial(compute, config, method, initialiser, seed, folder)
                outcome_of(folder, read_by(config, method), job)
    if not is_first_process():
        return
    rows, scores = rows_of(config, workdir)
    path = write_table(config, workdir, rows, scores)
    for metric in ("mse", "mse_median", "diverged"):
        for shots in config.test_shots:
            shown = [row for row in rows if row.shots == shots]
            if any(row.metric == metric for row in shown):
                baselines, steps = ("pretrained",), config.shown_steps
                print_tables(shown, baselines=baselines, metric=metric, steps=steps)
    methods = {
        f"{initialiser}: {method}": {name: leaf[0] for name, leaf in found.items()}
        for initialiser in config.initialisers
        for method in config.learners
        if (found := outcomes_in(workdir, f"{initialiser}/{method}", 1, FITS))
    }
    panels = {
        initialiser: [f"{initialiser}/{method}" for method in config.learners]
        for initialiser in config.initialisers
    }
    curves = learning_curves(workdir, panels, config.seeds)
    say(f"sinusoid: {path}, {curves}, {fits(methods, workdir / 'fits.png')}")


if __name__ == "__main__":
    runner.run(main, **COMMANDS["experiments.tables.sinusoid"]._asdict())
