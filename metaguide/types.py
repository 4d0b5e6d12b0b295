"""The words that everyone speaks: episode, problem, learner, distribution, optimizee.

A domain is a source of episodes. A problem is a model in two parts and a loss. A learner turns
the support of an episode into an adapted problem. Training differentiates through that.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxtyping import Array

Batch = Mapping[str, Array]
"""Arrays with a leading axis of examples; `mask` (bool) where padded, `id` = row in its table."""

Params = Any
"""A pytree of arrays."""

Metrics = Mapping[str, Array]
"""Scalars by name."""

OUT = -1e30
"""The score of what cannot be chosen. It is below any that a model gives, so that no probability is
left for it, and a sum of two is finite."""


class Episode(NamedTuple):
    """One few-shot task.

    Attributes:
        support: the labelled examples to adapt to, padded to the largest number of shots of the
            run and masked, in an order that makes one shot a prefix of five, five of ten.
        query: the examples to be scored on; the same for every number of shots.
        context: what belongs to the task and not to an example: tokens of the class names, the
            catalogue that a recommendation ranks.
    """

    support: Batch
    query: Batch
    context: Any = ()


class Problem(NamedTuple):
    """What is learned: a model in two parts, a body that encodes and a head that is scored.

    The cut between the two is what head-only learners, probes and metric learners stand on: they
    encode an episode once instead of once a step. `loss(params, encode(params, ...), ...)` is the
    loss of the whole.

    Attributes:
        init: key -> params, a dict of parameter groups by name.
        encode: (params, batch, context, key) -> encoded, any pytree; `key` is None where dropout
            is off.
        loss: (params, encoded, batch, context) -> (scalar, metrics).
        predict: (params, encoded, batch, context) -> dict of arrays, leading axis examples.
        features: (encoded) -> [examples, width] array, for metric learners and probes.
        score: (outputs, query, context) -> dict of arrays, leading axis examples: what the metrics
            of this kind of task are computed from.
        body: names of the parameter groups that `encode` reads.
        head: names of the parameter groups that `loss` and `predict` read beside `encoded`.
        target: the batch's label field.
        way: static number of classes; None where there are no classes.
    """

    init: Callable[..., Params]
    encode: Callable[..., Any]
    loss: Callable[..., tuple[Array, Metrics]]
    predict: Callable[..., Mapping[str, Array]]
    features: Callable[..., Array]
    score: Callable[..., Mapping[str, Array]]
    body: tuple[str, ...]
    head: tuple[str, ...]
    target: str
    way: int | None = None


class Learner(NamedTuple):
    """How a problem is learned to be learned, built as `maml(problem, optax.sgd(0.1), steps=5)`.

    `adapted` is opaque outside its learner.

    Attributes:
        init: key -> meta-parameters, `{"params": ...}`, with `"rule"` beside it where the rule of
            the inner loop is learned too.
        adapt: (meta, support, context, key, observe=None) -> (adapted, observations); `observe`
            maps `adapted` to a pytree and is called at step 0 and after each step; the
            observations are stacked on a leading axis.
        loss: (adapted, query, context) -> (scalar, metrics).
        predict: (adapted, query, context) -> dict of arrays.
        objective: (meta, episode, key, progress) -> (scalar, metrics); what meta-training
            minimises, `progress` in [0, 1] being how far it has come.
        gradient: (meta, episode, key, progress) -> ((scalar, metrics), meta-gradient), where it is
            not that of `objective` (Reptile); None where it is.
    """

    init: Callable[..., Params]
    adapt: Callable[..., tuple[Any, Any]]
    loss: Callable[..., tuple[Array, Metrics]]
    predict: Callable[..., Mapping[str, Array]]
    objective: Callable[..., tuple[Array, Metrics]]
    gradient: Callable[..., tuple[tuple[Array, Metrics], Params]] | None = None


class TaskDistribution(NamedTuple):
    """One kind of task in one shape. Its domains are drawn inside, so one program serves them all.

    Attributes:
        domains: names of its domains, in the order of the leading axis of `data`.
        data: device arrays of all its domains; an argument of every compiled step, never closed
            over.
        sample: (data, domain, shots, key) -> Episode; pure, static shapes.
        problem: what its episodes are solved with.
    """

    domains: tuple[str, ...]
    data: Any
    sample: Callable[..., Episode]
    problem: Problem


class Optimizee(NamedTuple):
    """What a learned optimizer is trained on: a distribution of functions to be minimised.

    Attributes:
        draw: (data, key) -> (initial parameters, task), the task being what makes this function
            one of its own: its constants, its examples, a key.
        batch: (data, task, step) -> the examples of a step.
        loss: (parameters, batch) -> (scalar, auxiliary output).
    """

    draw: Callable[..., tuple[Params, Any]]
    batch: Callable[..., Any]
    loss: Callable[..., tuple[Array, Any]]
