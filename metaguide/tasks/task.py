"""A task type: everything the guide knows about it, as one value."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from metaguide.data.catalogue import Domain
from metaguide.evaluation.rows import Scoring
from metaguide.models.encoder import Encoder
from metaguide.tasks.serving import Adapted, HeldBack, Server
from metaguide.types import TaskDistribution

Outcome = tuple[str, int, Mapping[str, np.ndarray]]
"""A baseline's name, its number of shots, and its outcomes, as `Problem.score` returns them."""


class Shape(NamedTuple):
    """The static sizes of episodes.

    Attributes:
        way: number of classes of a classification episode.
        shots: the largest number of shots.
        queries: number of query examples per episode; recommendation has one.
        candidates: number of products that a training episode of recommendation ranks; None for
            all.
        users: number of users of an episode of recommendation. With more than one there is no
            support: such episodes are for joint training.
    """

    way: int
    shots: int
    queries: int
    candidates: int | None
    users: int = 1


class Labels(NamedTuple):
    """How the labels of a task's examples and answers are read.

    Attributes:
        distinct: domain -> the examples with a label, each content once.
        label: example with a label -> it.
        is_bare: example -> whether it has no label yet.
        answer: answer -> the label that it gives.
        probability: answer -> the probability of that label.
        text: example -> its text.
    """

    distinct: Callable[[Domain], Sequence[Any]]
    label: Callable[[Any], str]
    is_bare: Callable[[Any], bool]
    answer: Callable[[Any], str]
    probability: Callable[[Any], float]
    text: Callable[[Any], str]


class Task(NamedTuple):
    """One task type.

    Attributes:
        name: name in configs, tables and checkpoints, and of the model's head.
        title: name in reports.
        summary: the task in one sentence.
        part: the part of a domain that it adapts to, a field of `Domain`.
        asks: type of the examples that it predicts; no other task has the same.
        classes: names of its classes, if every domain has the same ones.
        columns: names of the columns of a table of answers.
        cells: answer -> the rows of that table that say it, several for a ranking.
        counts: domain -> numbers of examples, keyed by class or by what they are; repeated ones
            count once.
        labels: how its labels are read; None if its examples have none.
        has_examples: domain -> whether it has examples of the task.
        needs: what a domain must have for it, for messages; the name of the part by default.
        head: (encoder, way) -> the Linen module of its head, with slots for `way` classes.
        episodes: (model, domains, reading, shape, always, scored) -> the episodes of domains that
            all have examples; `always` are, for each domain, the classes that each episode
            contains, and `scored` tells whether answers will be scored.
        scoring: how outcomes become metrics.
        baselines: (sources, domain, reading, always, cells) -> outcomes on one held-out domain;
            `cells`, keyed by shots, are those of `metaguide.evaluation.evaluate.drawn`.
        adapt: (server, domain, shots, rng, picked, unlabelled) -> (adapted or None, notes);
            `picked` are examples to adapt to instead of drawn ones, or None, and `unlabelled` is
            the most other examples that a method may learn from without their labels, or these
            examples themselves.
        arrays: adapted -> the pytree of arrays that a saved guide keeps of it.
        restore: (server, domain, shots, support, unlabelled, fill) -> adapted; `fill` returns the
            saved arrays, given a pytree of the shapes of what `arrays` returned.
        predict: (server, adapted, examples, domain, shots, top) -> answers; `top` is for rankings.
        validate: (server, domain, adapted) -> how the examples adapted to are predicted when they
            are held back, or each user's last product; None if the task has nothing to choose by.
        checked: (where, example) -> the example as `predict` reads it, without its label; `where`
            is for messages.
        picked: examples to adapt to -> the same examples, checked, each with its label; None if the
            task does not adapt to examples of its domain.
        check: (adapted, examples, domain) -> None; raises if an example cannot be answered.
        size: example -> its size; examples of similar size are answered together. None if all have
            the same size.
        needs_states: whether it needs a state for each token, which not every encoder has.
        is_ranking: whether answers are rankings, and so take a `top`.
    """

    name: str
    title: str
    summary: str
    part: str
    asks: type
    has_examples: Callable[[Domain], bool]
    head: Callable[[Encoder, int], Any]
    episodes: Callable[..., TaskDistribution]
    scoring: Scoring
    baselines: Callable[..., Iterator[Outcome]]
    adapt: Callable[..., tuple[Adapted | None, tuple[str, ...]]]
    arrays: Callable[[Adapted], Any]
    restore: Callable[..., Adapted]
    predict: Callable[..., list[Any]]
    validate: Callable[[Server, Domain, Adapted], HeldBack] | None = None
    checked: Callable[[str, Any], Any] = lambda where, example: example
    picked: Callable[[Sequence[Any]], Sequence[Any]] | None = lambda examples: examples
    check: Callable[[Adapted, Sequence[Any], Domain], None] = lambda adapted, examples, domain: None
    size: Callable[[Any], int] | None = None
    needs: str = ""
    needs_states: bool = False
    is_ranking: bool = False
    classes: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    cells: Callable[[Any], Sequence[tuple[Any, ...]]] = lambda answer: [tuple(answer)]
    counts: Callable[[Domain], Mapping[str, int]] = lambda domain: {}
    labels: Labels | None = None
