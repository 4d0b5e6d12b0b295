"""Adaptation to held-out domains: every method on the same episodes, next to the baselines.

python -m experiments.adapt --config.init_from=runs/guide/seed0/multitask --workdir=runs/adapt
"""

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections.config_dict import FrozenConfigDict

from experiments import run_folder, runner
from experiments.config_files import ConfigError
from experiments.domain_split import DomainSplit
from experiments.modules import COMMANDS
from experiments.outcomes import digest, kept
from experiments.processes import command_line
from experiments.ranges import faults, positive, several
from experiments.reports.terminal import print_tables
from experiments.stages import random_start, split_of_stage, stage_before, start
from metaguide.evaluation import results
from metaguide.evaluation.baselines import BASELINES
from metaguide.evaluation.evaluate import drawn, episode_keys, evaluator
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
from metaguide.optimizers import Rule
from metaguide.parallel import replicate, tasks_mesh
from metaguide.run_config import Served
from metaguide.tasks import TASKS
from metaguide.tasks.classification import categories_of
from metaguide.tasks.task import Outcome
from metaguide.training.progress import progress, say
from metaguide.types import Params, TaskDistribution

TUNED_AT = 5
"""Number of shots at which rates are chosen."""

GRIDS = (
    *("learning_rates", "adam_learning_rates", "rule_factors"),
    *("penalties", "map_penalties", "map_all_penalties"),
)
"""Fields of the config's `adapt` that hold the values validation chooses from."""

OUTCOMES = "outcomes"
"""Subfolder of a run with what was scored, so that an interrupted comparison can resume."""


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


class Bench:
    """The compiled evaluations of one task, each outcome computed once.

    Methods that adapt in the same way share a program. All adaptations that keep the encoder fixed,
    and so cost almost nothing compared to it, are one program, except those with learned
    optimizers, whose parameters are an argument of theirs.

    Attributes:
        task: a name in `TASKS`.
        distribution: the task distribution of the domains that no stage trains on.
        data: data of the distribution, on the devices.
        held_out: its held-out domains.
        validation: its validation domains, on which rates are chosen.
    """

    def __init__(
        self,
        config: FrozenConfigDict,
        split: DomainSplit,
        task: str,
        distribution: TaskDistribution,
        methods: Collection[str],
        rules: Mapping[str, Rule],
        folder: Path,
    ):
        """Set up what these methods need; `rules` maps tasks to their learned optimizers.

        Outcomes are kept in `folder`, where a restarted run finds them.
        """
        section = config.adapt
        used = {
            method: adaptation_of(method) for method in methods if task in section.methods[method]
        }
        adaptations = {NOTHING, *used.values()}
        learners = {
            adaptation: partial(
                adaptation.tuned_to,
                distribution.problem,
                steps=section.steps,
                rule=rules.get(adaptation.by),
            )
            for adaptation in adaptations
        }
        for method, adaptation in used.items():
            try:
                learners[adaptation](1.0)
            except ValueError as error:
                raise ConfigError(f"config.adapt.methods.{method}, {task}: {error}") from error
        self.task, self.distribution, self.rules = task, distribution, rules
        self.data = replicate(distribution.data, tasks_mesh())
        self.held_out = [one.name for one in split.held_out if one.name in distribution.domains]
        self.validation = [one.name for one in split.validation if one.name in distribution.domains]
        alone = {
            adaptation
            for adaptation in adaptations
            if adaptation.adapts == "all" or adaptation.is_learned
        }
        self._together = {
            adaptation: frozenset({adaptation} if adaptation in alone else adaptations - alone)
            for adaptation in adaptations
        }
        self._evaluators = {
            together: evaluator(
                distribution,
                {adaptation: learners[adaptation] for adaptation in together},
                section.chunk[task],
            )
            for together in set(self._together.values())
        }
        # An episode of recommendation has a single query, so its score takes more of them.
        episodes = {"validation": section.validation_episodes, "test": section.episodes}
        if TASKS[task].is_ranking:
            episodes = {name: count * section.users for name, count in episodes.items()}
        self._keys = {
            name: episode_keys(config.seed, name, count) for name, count in episodes.items()
        }
        self._folder = folder
        self._of = digest(run_folder.identity(config), task, distribution.data)
        self._names: dict[Any, str] = {}
        self._known: dict[Any, Any] = {}
        self._took: dict[Any, list[float]] = {}

    def compile(self, meta: Params) -> None:
        """Compile before the first call, for parameters with the shapes of `meta`."""
        for together, evaluation in self._evaluators.items():
            rule = next(
                (self.rules[adaptation.by] for adaptation in together if adaptation.is_learned),
                None,
            )
            theta = {} if rule is None else {"rule": rule.init(jax.random.key(0))}
            evaluation.compile({**meta, **theta}, self.data)

    def __call__(
        self,
        meta: Params,
        adaptation: Adaptation,
        domain: str,
        shots: int,
        split: str,
        rates: Mapping[Adaptation, float],
    ):
        """Return the outcome of a method that adapts in this way; see `Evaluator.run`."""
        together = self._together[adaptation]
        given = {one: float(rates.get(one, 1.0)) for one in together}
        key = (id(meta), domain, shots, split, tuple(sorted(given.items())))
        if key not in self._known:
            read = meta if adaptation.is_learned else {"params": meta["params"]}
            whose = id(meta), adaptation.is_learned
            if whose not in self._names:
                self._names[whose] = digest(read)
            asked = domain, shots, split, sorted(given.items())
            path = self._folder / f"{digest(self._of, self._names[whose], repr(asked))}.npz"
            number, keys = self.distribution.domains.index(domain), self._keys[split]
            run = self._evaluators[together].run
            self._known[key], seconds = kept(
                path, together, lambda: run(read, self.data, number, shots, keys, given)
            )
            each = seconds / len(keys)
            self._took.setdefault((id(meta), together, split), []).append(each)
        return self._known[key][adaptation]

    def baselines(
        self, split: DomainSplit, domain: str, shots: Collection[int]
    ) -> Iterator[Outcome]:
        """Yield every baseline on one held-out domain, on the same examples as the methods' cells.

        Args:
            split: the split whose sources vocabularies and classifiers are fitted on.
            domain: a domain of the distribution.
            shots: numbers of shots of the cells.
        """
        number, keys = self.distribution.domains.index(domain), self._keys["test"]
        cells = {k: drawn(self.distribution, self.data, number, k, keys) for k in sorted(shots)}
        held_out = next(one for one in split.held_out if one.name == domain)
        of_task = TASKS[self.task].baselines
        return of_task(split.sources, held_out, split.reading, split.always, cells)

    def seconds(self, metas: Sequence[Params], adaptation: Adaptation) -> float | None:
        """Return the wall time for adapting to and answering a test episode from these parameters.

        It is the median over the cells requested so far, so it is robust to a call that may have
        waited for its program to compile. Adaptations that share a program are each charged its
        full time.

        Args:
            metas: the parameters of each training seed, the same objects the bench was called with.
            adaptation: how the method adapts.

        Returns:
            Seconds; None if this bench was asked for no such outcome.
        """
        keys = [(id(meta), self._together[adaptation], "test") for meta in metas]
        took = [each for key in keys for each in self._took.get(key, ())]
        return float(np.median(took)) if took else None


def compared(split: DomainSplit, **sizes: int) -> dict[str, TaskDistribution]:
    """Return the domains that no stage trains on, keyed by the tasks that methods are compared on.

    A task without a validation domain is left out with a message, since its rates could not be
    chosen.

    Args:
        split: the split whose validation and held-out domains are read.
        sizes: fields of `Shape`; the config's by default.

    Raises:
        ConfigError: no task is left.
    """
    distributions = split.task_distributions("unseen", **sizes)
    names = {one.name for one in split.validation}
    found = {task: one for task, one in distributions.items() if names.intersection(one.domains)}
    lacking = ", ".join(task for task in distributions if task not in found)
    hint = "name one that has them in config.data.validation"
    if not found:
        of = lacking or "any task"
        raise ConfigError(f"no validation domain has examples of {of}; {hint}")
    if lacking:
        say(f"adapt: {lacking} left out: no validation domain has examples of it; {hint}")
    return found


def benches(
    config: FrozenConfigDict,
    split: DomainSplit,
    distributions: Mapping[str, TaskDistribution],
    methods: Collection[str],
    folder: Path,
    rules: Mapping[str, Rule] | None = None,
) -> dict[str, Bench]:
    """Set up the evaluation of each task on the domains that no stage trains on.

    Args:
        config: its `adapt` and `seed` are read.
        split: the split whose held-out and validation domains are used.
        distributions: the return value of `compared`.
        methods: methods to compare.
        folder: folder of the run, in which outcomes are kept.
        rules: rules of the learned optimizers among the methods, keyed by task.

    Raises:
        ConfigError: a task lacks something that a method needs.
    """
    return {
        task: Bench(config, split, task, distribution, methods, rules or {}, folder / OUTCOMES)
        for task, distribution in distributions.items()
    }


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
    """Choose the rate of one method by its mean score over validation domains and seeds.

    A rate with an outcome that is not finite ranks below all rates without one.
    """
    adaptation = adaptation_of(name)
    grids = {one: _grid(config.adapt, one) or (1.0,) for one in map(adaptation_of, IN_GUIDE)}
    found = []
    for place in range(len(grids[adaptation])):
        # Adaptations that share a program take their value at the same position, so that one run
        # serves all of them.
        rates = {one: grid[place % len(grid)] for one, grid in grids.items()}
        raws = [
            bench(meta, adaptation, domain, TUNED_AT, "validation", rates)
            for domain in bench.validation
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
    return results.write(
        comparison.rows,
        comparison.scores,
        workdir,
        command=command_line(),
        config=config.to_dict(),
        seeds=seeds,
        tunings=comparison.tunings,
        classes=class_names(split),
    )


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
        write_comparison(comparison, config, split, workdir, [config.seed])
    print_tables(comparison.rows)


if __name__ == "__main__":
    runner.run(main, **COMMANDS["experiments.adapt"]._asdict())
