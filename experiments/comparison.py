"""A comparison: every method on the same episodes of held-out domains, next to the baselines."""

import itertools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from ml_collections.config_dict import FrozenConfigDict

from experiments.bench import Bench
from experiments.config_files import ConfigError
from experiments.domain_split import DomainSplit
from experiments.ranges import faults, positive, several
from experiments.run_folder import write_results
from metaguide.evaluation import results
from metaguide.evaluation.baselines import BASELINES
from metaguide.methods import (
    ALL_BY_ADAM,
    HEAD_BY_ADAM,
    IN_GUIDE,
    MAP_ALL,
    MAP_HEAD,
    META_TRAINED,
    METHODS,
    NOTHING,
    Adaptation,
    UnknownMethod,
    adaptation_of,
    method_named,
)
from metaguide.run_config import Served
from metaguide.tasks import TASKS
from metaguide.tasks.classification import categories_of
from metaguide.training.progress import progress
from metaguide.types import Params

GRIDS = (
    *("learning_rates", "adam_learning_rates", "rule_factors"),
    *("penalties", "map_penalties", "map_all_penalties"),
)
"""Fields of the config's `adapt` that hold the values validation chooses from."""


class Choice(NamedTuple):
    """The value that validation chose for one method on one task, and its score there.

    `diverged` is the share of its validation outcomes that were not finite. It is 0 if there is any
    rate without such outcomes.
    """

    method: str
    learning_rate: float
    score: float
    diverged: float = 0.0


class Comparison(NamedTuple):
    """All methods on all held-out domains.

    Attributes:
        rows: rows of the table.
        scores: scores of the episodes that the rows are computed from.
        choices: for each task, what validation chose for each method, best method first.
        tunings: the choices as stored in a results file, with the cost of each method.
    """

    rows: list[results.Row]
    scores: results.Scores
    choices: dict[str, list[Choice]]
    tunings: list[results.Tuning]


def methods_in(config: FrozenConfigDict, tasks: Collection[str] = tuple(TASKS)) -> tuple[str, ...]:
    """Return the methods of a run: those used for a task and, if meta-trained, among the learners.

    A method that starts from another method comes after it.

    Args:
        config: its `adapt` and `metatrain` are read.
        tasks: tasks to compare on; a method used for none of them is left out.

    Raises:
        ConfigError: the config names an unknown method or learner, leaves out a method that another
            one starts from, or has a grid with numbers that are not positive.
    """
    grids = {name: config.adapt[name] for name in GRIDS}
    for fault in faults(grids, dict.fromkeys(GRIDS, several(positive()))):
        raise ConfigError(f"config.adapt.{fault}")
    section, learners = config.adapt.methods, config.metatrain.learners
    known = {"adapt.methods": (section, IN_GUIDE), "metatrain.learners": (learners, META_TRAINED)}
    for field, (names, among) in known.items():
        for name in names:
            try:
                method_named(name, among)
            except UnknownMethod as error:
                raise ConfigError(f"config.{field}: {error}") from error
    trained = [
        method for method in section if METHODS[method].stage != "metatrain" or method in learners
    ]
    serving = [method for method in trained if set(section[method]).intersection(tasks)]
    started_from = {METHODS[method].start for method in serving}
    chosen = [
        method
        for method in trained
        if method in serving or (section[method] and method in started_from)
    ]
    later = [method for method in chosen if METHODS[method].start in META_TRAINED]
    for method in later:
        if METHODS[method].start not in chosen:
            raise ConfigError(
                f"config.metatrain.learners: {method} starts from the parameters of "
                f"{METHODS[method].start}; add it to them, and to config.adapt.methods"
            )
    return (*(method for method in chosen if method not in later), *later)


def check_served(config: FrozenConfigDict, methods: Sequence[str], tasks: Iterable[str]) -> None:
    """Check that every task has a method that can serve it.

    Raises:
        ConfigError: a task has none.
    """
    for task in tasks:
        able = (method for method in methods if METHODS[method].stage != "random")
        if not any(task in config.adapt.methods[method] for method in able):
            raise ConfigError(
                f"config.adapt.methods: no method that a guide can serve is used for {task}; add "
                "it to one, such as zero-shot"
            )


def compare(
    config: FrozenConfigDict,
    split: DomainSplit,
    metas: Mapping[str, Sequence[Params]],
    bench_of: Mapping[str, Bench],
) -> Comparison:
    """Adapt every method to every held-out domain, with rates chosen on the validation domains.

    Args:
        config: its `adapt`, `table` and `seed` are read.
        split: the split on whose held-out domains baselines are computed.
        metas: for each method its meta-parameters, one for each training seed; methods that start
            from the same parameters hold the same objects.
        bench_of: the return value of `benches`.

    Returns:
        The comparison.
    """
    rows: list[results.Row] = []
    scores: results.Scores = {}
    choices: dict[str, list[Choice]] = {}
    tunings: list[results.Tuning] = []
    total = sum(len(_methods_on(config, task, metas)) + 1 for task in bench_of)
    with progress("adapt", total, unit="method") as show:
        done = itertools.count(1)
        for task, bench in bench_of.items():

            def scored(method: str, task: str = task) -> None:
                show(next(done), f"{task}, {method}")

            found = compare_methods(config, bench, metas, scored)
            more, own = score_baselines(config, split, bench)
            scored("baselines")
            rows += found.rows + more
            scores |= found.scores | own
            choices |= found.choices
            tunings += found.tunings
    return Comparison(results.with_baselines(rows, BASELINES), scores, choices, tunings)


def compare_methods(
    config: FrozenConfigDict,
    bench: Bench,
    metas: Mapping[str, Sequence[Params]],
    scored: Callable[[str], None] = lambda method: None,
) -> Comparison:
    """Adapt every method to the held-out domains of one task; the arguments are those of `compare`.

    Args:
        config, metas: as there.
        bench: of the task.
        scored: is called with each method once it is scored.

    Returns:
        The comparison, without baselines.
    """
    task, methods = bench.task, _methods_on(config, bench.task, metas)
    rows: list[results.Row] = []
    scores: results.Scores = {}
    chosen = {method: _choose(config, method, bench, metas[method]) for method in methods}
    for method in methods:
        rates = {
            adaptation_of(other): chosen[other].learning_rate
            for other in methods
            if metas[other][0] is metas[method][0]
        }
        for domain, shots in [(d, k) for d in bench.held_out for k in config.adapt.shots]:
            adaptation = _adaptation_in(method, task, shots)
            if adaptation is None:
                continue
            outcomes = [
                bench(meta, adaptation, domain, shots, "test", rates) for meta in metas[method]
            ]
            raw = jax.tree.map(lambda *seeds: np.stack(seeds), *outcomes)
            more, own = _rows(config, task, raw, method, domain, shots, _steps(adaptation))
            rows += more
            scores |= own
        scored(method)
    choices = sorted(chosen.values(), key=lambda one: (one.diverged, -one.score))
    tunings = [_tuning(config, bench, one, metas[one.method]) for one in choices]
    return Comparison(rows, scores, {task: choices}, tunings)


def score_baselines(
    config: FrozenConfigDict, split: DomainSplit, bench: Bench
) -> tuple[list[results.Row], results.Scores]:
    """Return the rows and scores of all baselines on the held-out domains of one task."""
    rows: list[results.Row] = []
    scores: results.Scores = {}
    for domain in bench.held_out:
        for baseline, shots, raw in bench.baselines(split, domain, config.adapt.shots):
            more, own = _rows(config, bench.task, raw, baseline, domain, shots, [None])
            rows += more
            scores |= own
    return rows, scores


def _methods_on(config: FrozenConfigDict, task: str, metas: Collection[str]) -> list[str]:
    """Return the methods among these that the config uses for a task."""
    of = config.adapt.methods
    return [method for method in of if task in of[method] and method in metas]


def _rows(
    config: FrozenConfigDict,
    task: str,
    raw: Mapping[str, np.ndarray],
    method: str,
    domain: str,
    shots: int,
    steps: Sequence[int | None] | None,
) -> tuple[list[results.Row], results.Scores]:
    return results.cells_to_rows(
        raw,
        scoring=TASKS[task].scoring,
        table=config.table,
        method=method,
        domain=domain,
        shots=shots,
        steps=steps,
    )


def _tuning(
    config: FrozenConfigDict, bench: Bench, choice: Choice, metas: Sequence[Params]
) -> results.Tuning:
    """Return a choice as stored in a results file, with the cost of its method."""
    adaptation = adaptation_of(choice.method)
    return {
        "task": bench.task,
        "method": choice.method,
        "learning_rate": choice.learning_rate if _grid(config.adapt, adaptation) else None,
        "tuned_by": {"metric": TASKS[bench.task].scoring.metrics[0], "score": choice.score},
        "diverged": choice.diverged,
        "seconds": bench.seconds(metas, adaptation),
    }


def _choose(config: FrozenConfigDict, name: str, bench: Bench, metas: Sequence[Params]) -> Choice:
    """Choose the rate of one method by its mean score over validation domains, shots and seeds.

    It serves any number of shots, so all numbers in the table weigh the same, except 0. A rate with
    an outcome that is not finite ranks below all rates without one.
    """
    adaptation = adaptation_of(name)
    grids = {one: _grid(config.adapt, one) or (1.0,) for one in map(adaptation_of, IN_GUIDE)}
    every = [shots for shots in config.adapt.shots if shots] or [0]
    found = []
    for place in range(len(grids[adaptation])):
        # Adaptations that share a program take their value at the same position, so that one run
        # serves all of them.
        rates = {one: grid[place % len(grid)] for one, grid in grids.items()}
        raws = [
            bench(meta, adaptation, domain, shots, "validation", rates)
            for domain in bench.validation
            for shots in every
            for meta in metas
        ]
        score = float(np.mean([TASKS[bench.task].scoring.foremost(raw) for raw in raws]))
        lost = float(np.mean([1 - raw["finite"][-1][raw["mask"][-1]].mean() for raw in raws]))
        found.append(Choice(name, float(grids[adaptation][place]), score, lost))
    return min(found, key=lambda one: (one.diverged, -one.score))


def _grid(section: FrozenConfigDict, adaptation: Adaptation) -> tuple[float, ...]:
    """Return the values validation chooses from: rates, penalties or factors; () if none."""
    if not adaptation.tuned:
        return ()
    grids = {"learning_rate": "learning_rates", "penalty": "penalties", "factor": "rule_factors"}
    of_its_own = {
        ALL_BY_ADAM: "adam_learning_rates",
        HEAD_BY_ADAM: "adam_learning_rates",
        MAP_HEAD: "map_penalties",
        MAP_ALL: "map_all_penalties",
    }
    return section[of_its_own.get(adaptation, grids[adaptation.tuned])]


def _adaptation_in(name: str, task: str, shots: int) -> Adaptation | None:
    """Return how a method adapts in a cell; None if the row would repeat another one.

    Without shots nothing adapts, so methods that start from the same parameters share one row, such
    as zero-shot. More shots change nothing for zero-shot, unless they are a user's products, which
    it reads without adapting.
    """
    method, adaptation = METHODS[name], adaptation_of(name)
    if name == "zero-shot":
        return NOTHING if not shots or task == "recommendation" else None
    if shots:
        return adaptation
    holds_start = method.stage == "multitask" or adaptation.is_learned
    return None if holds_start or adaptation.adapts == "features" else NOTHING


def _steps(adaptation: Adaptation) -> list[int | None] | None:
    """Return the steps at which an adaptation is observed; None for 0, 1, 2 and so on."""
    return {"nothing": [0], "features": [None]}.get(adaptation.adapts)


def class_names(split: DomainSplit) -> dict[str, list[str]]:
    """Return the categories of each held-out domain, as classification numbers them."""
    found = {one.name: categories_of(one.products) for one in split.held_out}
    return {name: list(categories) for name, categories in found.items() if categories}


def write_comparison(
    comparison: Comparison,
    config: FrozenConfigDict,
    split: DomainSplit,
    workdir: Path,
    seeds: Sequence[int],
) -> Path:
    """Write the results of a comparison to the folder of its run, and return the JSON file."""
    more = {"tunings": comparison.tunings, "classes": class_names(split)}
    return write_results(config, workdir, comparison.rows, comparison.scores, seeds, **more)


def serving_of(comparison: Comparison, folders: Mapping[str, str], steps: int) -> dict[str, Served]:
    """Return what serves each task: the method that did best on the validation domains.

    Args:
        comparison: the return value of `compare`.
        folders: the folder of each method's checkpoint; methods without one cannot serve.
        steps: steps of gradient descent.
    """
    return {
        task: next(
            Served(folders[c.method], c.method, c.learning_rate, steps)
            for c in choices
            if c.method in folders
        )
        for task, choices in comparison.choices.items()
    }
