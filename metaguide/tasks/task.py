"""What a type of task is: everything the guide knows of it, as one value."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from metaguide.data.catalogue import Domain
from metaguide.evaluation.rows import Scoring
from metaguide.models.encoder import Encoder
from metaguide.tasks.serving import Adapted
from metaguide.types import TaskDistribution

Outcome = tuple[str, int, Mapping[str, np.ndarray]]
"""A baseline's name, the shots it had, and what it is scored by, as `Problem.score` returns it."""


class Shape(NamedTuple):
    """The static sizes of episodes.

    Attributes:
        way: classes of a classification episode.
        shots: the largest number of shots.
        queries: query examples an episode; recommendation has one.
        candidates: products that a training episode of recommendation ranks; None for all.
    """

    way: int
    shots: int
    queries: int
    candidates: int | None


class Task(NamedTuple):
    """One type of task.

    Attributes:
        name: in configs, tables and checkpoints; the model's head has the same one.
        title: in reports.
        summary: what is asked, in a sentence.
        part: of a domain that it adapts to, a field of `Domain`.
        asks: the type whose examples ask for it.
        classes: names of its classes, where every domain has the same ones.
        has_examples: whether a domain has what it needs.
        head: (encoder, way) -> the Linen module of its head, with slots for `way` classes.
        episodes: (model, domains, reading, shape, always, scored) -> the episodes of domains that
            all have examples; `always`, by domain, are classes that each episode contains, and
            `scored` says whether answers will be scored.
        scoring: from outcomes to metrics.
        baselines: (sources, domain, reading, always, cells) -> outcomes on one held-out domain;
            `cells`, by shots, are of `metaguide.evaluation.evaluate.drawn`.
        adapt: (server, domain, shots, rng, picked) -> (adapted or None, notes); `picked` are
            examples to adapt to in place of a draw, or None.
        predict: (server, adapted, examples, domain, shots, top) -> answers; `top` is of rankings.
        checked: (where, example) -> the example as `predict` reads it, without its label; `where`
            is for messages.
        picked: examples to adapt to -> the same, checked, each with its label; None where the task
            does not adapt to examples of its domain.
        check: (adapted, examples, domain) -> None; refuses what cannot be answered.
        size: of an example; those of like size are asked together. None: all are of one size.
        needs_states: whether it needs a state for each token, which not every encoder has.
        is_ranking: whether answers rank something, and so have a top.
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
    predict: Callable[..., list[Any]]
    checked: Callable[[str, Any], Any] = lambda where, example: example
    picked: Callable[[Sequence[Any]], Sequence[Any]] | None = lambda examples: examples
    check: Callable[[Adapted, Sequence[Any], Domain], None] = lambda adapted, examples, domain: None
    size: Callable[[Any], int] | None = None
    needs_states: bool = False
    is_ranking: bool = False
    classes: tuple[str, ...] = ()
