"""The shared vocabulary: episode, problem, learner, distribution, optimizee.

A domain is a source of episodes. A problem is a model in two parts and a loss. A learner turns
the support of an episode into an adapted problem. Training differentiates through that.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Array, ArrayLike, Float, Int, Key

Batch = Mapping[str, Array]
"""Arrays with a leading axis of examples; `mask` (bool) where padded, `id` = row in its table."""

UNLABELLED = "unlabelled"
"""The field of a support that marks the rows without a label that a learner may read."""

HASHES = 1 << 18
"""Bound on the numbers of n-grams: of 5,000 words, 4% share their number with another one."""

TEXT_FIELDS = ("tokens", "grams", "vector")
"""Fields of a batch that hold its texts, as an encoder may read them: token ids, hashed n-grams,
and vectors from a pretrained encoder."""

Params = Any
"""A pytree of arrays."""

Metrics = Mapping[str, Array]
"""Scalars keyed by name."""

Progress = Float[Array, ""] | float
"""Progress of meta-training, in [0, 1]."""

Step = int | Int[Array, ""]
"""The number of a step, from 0: traced inside a compiled loop, a plain integer outside."""

Observe = Callable[[Any], Any]
"""A function of the state of an adaptation: adapted -> observation, any pytree."""

OUT = -1e30
"""The score of an option that cannot be chosen. It is below any score of a model, so the option
gets no probability, and the sum of two such scores is finite."""


class Episode(NamedTuple):
    """One few-shot task.

    Attributes:
        support: the labelled examples to adapt to, padded to the largest number of shots of the
            run and masked, in an order that makes one shot a prefix of five, five of ten.
        query: the examples to be scored on; the same for every number of shots.
        context: data of the task rather than of an example: tokens of the class names, the
            catalogue that a recommendation ranks.
    """

    support: Batch
    query: Batch
    context: Any = ()


@runtime_checkable
class InitFn(Protocol):
    """Initialises parameters."""

    def __call__(self, key: Key[Array, ""], /) -> Params:
        """Return the parameters drawn with a key."""
        ...


@runtime_checkable
class EncodeFn(Protocol):
    """The body of a problem."""

    def __call__(
        self, params: Params, batch: Batch, context: Any, key: Key[Array, ""] | None, /
    ) -> Any:
        """Return the encoded examples, any pytree; `key` is None if dropout is off."""
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
        """Return arrays keyed by name, with a leading axis of examples."""
        ...


@runtime_checkable
class FeaturesFn(Protocol):
    """The features of an encoding that metric learners and probes read."""

    def __call__(self, encoded: Any, /) -> Array:
        """Return an array [examples, width]."""
        ...


@runtime_checkable
class NamesFn(Protocol):
    """The names of an episode's classes, as examples."""

    def __call__(self, encoded: Any, context: Any, /) -> tuple[Array, Array, Batch]:
        """Return features [way, width], bool [way], which classes have a name, and their fields."""
        ...


@runtime_checkable
class ScoreFn(Protocol):
    """Computes the inputs of a task's metrics."""

    def __call__(
        self, outputs: Mapping[str, Array], query: Batch, context: Any, /
    ) -> Mapping[str, Array]:
        """Return arrays keyed by name, leading axis examples, from the output of `predict`."""
        ...


@runtime_checkable
class AdaptFn(Protocol):
    """Adapts a learner to a support."""

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

        `key` may be None if the learner draws nothing, as in serving. `observe` maps `adapted` to a
        pytree and is called at step 0 and after each step; the observations are stacked on a
        leading axis, or None without `observe`.
        """
        ...


@runtime_checkable
class AdaptedLossFn(Protocol):
    """The loss of an adapted problem on a query."""

    def __call__(self, adapted: Any, query: Batch, context: Any, /) -> tuple[Array, Metrics]:
        """Return (scalar, metrics)."""
        ...


@runtime_checkable
class AdaptedPredictFn(Protocol):
    """The predictions of an adapted problem for a query."""

    def __call__(self, adapted: Any, query: Batch, context: Any, /) -> Mapping[str, Array]:
        """Return arrays keyed by name, with a leading axis of examples."""
        ...


@runtime_checkable
class ObjectiveFn(Protocol):
    """The objective of meta-training on one episode."""

    def __call__(
        self, meta: Params, episode: Episode, key: Key[Array, ""] | None, progress: Progress, /
    ) -> tuple[Array, Metrics]:
        """Return (scalar, metrics); `key` may be None if the learner draws nothing."""
        ...


@runtime_checkable
class GradientFn(Protocol):
    """A learner's own meta-gradient on one episode."""

    def __call__(
        self, meta: Params, episode: Episode, key: Key[Array, ""] | None, progress: Progress, /
    ) -> tuple[tuple[Array, Metrics], Params]:
        """Return ((scalar, metrics), meta-gradient); `key` as in `ObjectiveFn`."""
        ...


@runtime_checkable
class SampleFn(Protocol):
    """Draws episodes; pure, with static shapes."""

    def __call__(
        self, data: Any, domain: ArrayLike, shots: ArrayLike, key: Key[Array, ""], /
    ) -> Episode:
        """Return an episode of `shots` in the domain with this index, drawn with the key.

        Both numbers are traced int32, and plain ints where training and evaluation let a sampler
        refuse what it does not have.
        """
        ...


@runtime_checkable
class DrawFn(Protocol):
    """Draws a function to minimise."""

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
    """A model in two parts, a body that encodes and a head that predicts, and its loss.

    Head-only learners, probes and metric learners rely on the split: they encode an episode once
    instead of once per step. `loss(params, encode(params, ...), ...)` is the loss of the complete
    model.

    Attributes:
        init: key -> params, a dict of parameter groups keyed by name.
        encode: (params, batch, context, key) -> encoded, any pytree; `key` is None if dropout is
            off.
        loss: (params, encoded, batch, context) -> (scalar, metrics).
        predict: (params, encoded, batch, context) -> dict of arrays, leading axis examples.
        features: (encoded) -> [examples, width] array, for metric learners and probes.
        score: (outputs, query, context) -> dict of arrays, leading axis examples: the inputs of
            the task's metrics.
        body: names of the parameter groups that `encode` reads.
        head: names of the parameter groups that `loss` and `predict` read in addition to `encoded`.
        target: the batch's label field.
        way: static number of classes; None if there are no classes.
        names: (encoded, context) -> the features of the classes' names, which classes have one, and
            the fields that a batch of them would have; None if names are not read.
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
    names: NamesFn | None = None


class Learner(NamedTuple):
    """A meta-learning algorithm on a problem, such as `maml(problem, optax.sgd(0.1), steps=5)`.

    `adapted` is opaque outside its learner.

    Attributes:
        init: key -> meta-parameters, `{"params": ...}`, plus `"rule"` if the rule of the inner loop
            is learned too.
        adapt: (meta, support, context, key, observe=None) -> (adapted, observations); `observe`
            maps `adapted` to a pytree and is called at step 0 and after each step; the
            observations are stacked on a leading axis.
        loss: (adapted, query, context) -> (scalar, metrics).
        predict: (adapted, query, context) -> dict of arrays.
        objective: (meta, episode, key, progress) -> (scalar, metrics), the objective of
            meta-training at `progress` in [0, 1].
        gradient: (meta, episode, key, progress) -> ((scalar, metrics), meta-gradient) if it is not
            the gradient of `objective` (Reptile); otherwise None.
    """

    init: InitFn
    adapt: AdaptFn
    loss: AdaptedLossFn
    predict: AdaptedPredictFn
    objective: ObjectiveFn
    gradient: GradientFn | None = None


class TaskDistribution(NamedTuple):
    """One task with one shape; domains are drawn inside, so one program serves them all.

    Attributes:
        domains: names of its domains, in the order of the leading axis of `data`.
        data: device arrays of all its domains; an argument of every compiled step, never closed
            over.
        sample: (data, domain, shots, key) -> Episode; pure, static shapes.
        problem: the model and loss for its episodes.
    """

    domains: tuple[str, ...]
    data: Any
    sample: SampleFn
    problem: Problem


def check_rows(logits: Array, labels: Array, mask: Array) -> None:
    """Check that each row of the logits has one label and one entry of the mask.

    Raises:
        ValueError: labels or mask have another shape, such as [rows, 1], which would be broadcast,
            or the mask is not of booleans.
    """
    if not logits.shape[:1] == labels.shape == mask.shape:
        raise ValueError(
            f"labels are {[*labels.shape]} and mask {[*mask.shape]}; give one of each for "
            f"{len(logits)} examples"
        )
    if mask.dtype != bool:
        raise ValueError(f"mask is {mask.dtype}; give bool, True for an example that counts")


class Optimizee(NamedTuple):
    """A distribution of functions to minimise, on which a learned optimizer is trained.

    Attributes:
        draw: (data, key) -> (initial parameters, task); the task determines the function: its
            constants, its examples, a key.
        batch: (data, task, step) -> the examples of a step.
        loss: (parameters, batch) -> (scalar, auxiliary output).
    """

    draw: DrawFn
    batch: StepBatchFn
    loss: StepLossFn
