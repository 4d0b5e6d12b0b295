"""The words that everyone speaks: episode, problem, learner, distribution, optimizee.

A domain is a source of episodes. A problem is a model in two parts and a loss. A learner turns
the support of an episode into an adapted problem. Training differentiates through that.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Array, ArrayLike, Float, Int, Key

Batch = Mapping[str, Array]
"""Arrays with a leading axis of examples; `mask` (bool) where padded, `id` = row in its table."""

TEXT_FIELDS = ("tokens", "grams", "vector")
"""Fields of a batch that hold its texts, as an encoder may read them: token ids, hashed n-grams,
and vectors from a pretrained encoder."""

Params = Any
"""A pytree of arrays."""

Metrics = Mapping[str, Array]
"""Scalars by name."""

Progress = Float[Array, ""] | float
"""How far meta-training has come, in [0, 1]."""

Step = int | Int[Array, ""]
"""The number of a step, from 0: traced inside a compiled loop, a plain number outside."""

Observe = Callable[[Any], Any]
"""What maps the state of an adaptation to a pytree: adapted -> observation."""

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


@runtime_checkable
class InitFn(Protocol):
    """How parameters start."""

    def __call__(self, key: Key[Array, ""], /) -> Params:
        """Return the parameters that are drawn with a key."""
        ...


@runtime_checkable
class EncodeFn(Protocol):
    """The body of a problem."""

    def __call__(
        self, params: Params, batch: Batch, context: Any, key: Key[Array, ""] | None, /
    ) -> Any:
        """Return the encoded examples, any pytree; `key` is None where dropout is off."""
        ...


@runtime_checkable
class EncodedLossFn(Protocol):
    """The loss of a problem, after its body."""

    def __call__(
        self, params: Params, encoded: Any, batch: Batch, context: Any, /
    ) -> tuple[Array, Metrics]:
        """Return (scalar, metrics)."""
        ...


@runtime_checkable
class EncodedPredictFn(Protocol):
    """The head of a problem."""

    def __call__(
        self, params: Params, encoded: Any, batch: Batch, context: Any, /
    ) -> Mapping[str, Array]:
        """Return arrays by name, leading axis examples."""
        ...


@runtime_checkable
class FeaturesFn(Protocol):
    """What metric learners and probes read of an encoding."""

    def __call__(self, encoded: Any, /) -> Array:
        """Return an array [examples, width]."""
        ...


@runtime_checkable
class ScoreFn(Protocol):
    """What the metrics of a task are computed from."""

    def __call__(
        self, outputs: Mapping[str, Array], query: Batch, context: Any, /
    ) -> Mapping[str, Array]:
        """Return arrays by name, leading axis examples, of what `predict` returned."""
        ...


@runtime_checkable
class AdaptFn(Protocol):
    """How a learner adapts to a support."""

    def __call__(
        self,
        meta: Params,
        support: Batch,
        context: Any,
        key: Key[Array, ""] | None,
        /,
        observe: Observe | None = None,
    ) -> tuple[Any, Any]:
        """Return (adapted, observations).

        `key` may be None where the learner draws nothing, as in serving. `observe` maps `adapted`
        to a pytree and is called at step 0 and after each step; the observations are stacked on a
        leading axis, and None without it.
        """
        ...


@runtime_checkable
class AdaptedLossFn(Protocol):
    """The loss of what has been adapted."""

    def __call__(self, adapted: Any, query: Batch, context: Any, /) -> tuple[Array, Metrics]:
        """Return (scalar, metrics)."""
        ...


@runtime_checkable
class AdaptedPredictFn(Protocol):
    """What has been adapted says of a query."""

    def __call__(self, adapted: Any, query: Batch, context: Any, /) -> Mapping[str, Array]:
        """Return arrays by name, leading axis examples."""
        ...


@runtime_checkable
class ObjectiveFn(Protocol):
    """What meta-training minimises, of one episode."""

    def __call__(
        self, meta: Params, episode: Episode, key: Key[Array, ""] | None, progress: Progress, /
    ) -> tuple[Array, Metrics]:
        """Return (scalar, metrics); `key` may be None where the learner draws nothing."""
        ...


@runtime_checkable
class GradientFn(Protocol):
    """A meta-gradient of its own, of one episode."""

    def __call__(
        self, meta: Params, episode: Episode, key: Key[Array, ""] | None, progress: Progress, /
    ) -> tuple[tuple[Array, Metrics], Params]:
        """Return ((scalar, metrics), meta-gradient); `key` as of `ObjectiveFn`."""
        ...


@runtime_checkable
class SampleFn(Protocol):
    """What draws episodes: pure, with static shapes."""

    def __call__(
        self, data: Any, domain: ArrayLike, shots: ArrayLike, key: Key[Array, ""], /
    ) -> Episode:
        """Return the episode of `shots` in the domain of this number that the key draws."""
        ...


@runtime_checkable
class DrawFn(Protocol):
    """What draws a function to be minimised."""

    def __call__(self, data: Any, key: Key[Array, ""], /) -> tuple[Params, Any]:
        """Return (initial parameters, task)."""
        ...


@runtime_checkable
class StepBatchFn(Protocol):
    """The examples that a step of a descent sees."""

    def __call__(self, data: Any, task: Any, step: Step, /) -> Any:
        """Return the examples, any pytree."""
        ...


@runtime_checkable
class StepLossFn(Protocol):
    """The function that a descent minimises."""

    def __call__(self, params: Params, batch: Any, /) -> tuple[Array, Any]:
        """Return (scalar, auxiliary output)."""
        ...


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
            of this task are computed from.
        body: names of the parameter groups that `encode` reads.
        head: names of the parameter groups that `loss` and `predict` read beside `encoded`.
        target: the batch's label field.
        way: static number of classes; None where there are no classes.
    """

    init: InitFn
    encode: EncodeFn
    loss: EncodedLossFn
    predict: EncodedPredictFn
    features: FeaturesFn
    score: ScoreFn
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

    init: InitFn
    adapt: AdaptFn
    loss: AdaptedLossFn
    predict: AdaptedPredictFn
    objective: ObjectiveFn
    gradient: GradientFn | None = None


class TaskDistribution(NamedTuple):
    """One task in one shape. Its domains are drawn inside, so one program serves them all.

    Attributes:
        domains: names of its domains, in the order of the leading axis of `data`.
        data: device arrays of all its domains; an argument of every compiled step, never closed
            over.
        sample: (data, domain, shots, key) -> Episode; pure, static shapes.
        problem: what its episodes are solved with.
    """

    domains: tuple[str, ...]
    data: Any
    sample: SampleFn
    problem: Problem


class Optimizee(NamedTuple):
    """What a learned optimizer is trained on: a distribution of functions to be minimised.

    Attributes:
        draw: (data, key) -> (initial parameters, task), the task being what makes this function
            one of its own: its constants, its examples, a key.
        batch: (data, task, step) -> the examples of a step.
        loss: (parameters, batch) -> (scalar, auxiliary output).
    """

    draw: DrawFn
    batch: StepBatchFn
    loss: StepLossFn
