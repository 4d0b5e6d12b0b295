"""The domains that no stage trains on, and how methods do there: each outcome computed once."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections.config_dict import FrozenConfigDict

from experiments import run_folder
from experiments.config_files import ConfigError
from experiments.domain_split import DomainSplit
from experiments.outcomes import digest, kept
from metaguide.evaluation.evaluate import drawn, episode_keys, evaluator
from metaguide.methods import NOTHING, Adaptation, adaptation_of
from metaguide.optimizers import Rule
from metaguide.parallel import replicate, tasks_mesh
from metaguide.tasks import TASKS
from metaguide.tasks.task import Outcome
from metaguide.training.progress import say
from metaguide.types import Params, TaskDistribution

OUTCOMES = "outcomes"
"""Subfolder of a run with what was scored, so that an interrupted comparison can resume."""


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
        self._metas: dict[int, Params] = {}  # an id is that of one object only while it lives
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
        self._metas[id(meta)] = meta
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
