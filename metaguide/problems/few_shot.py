"""Problems of the published few-shot tables: regression and picture classification.

A problem is a body (the network) and a linear head {"kernel", "bias"} on its features.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from metaguide.objectives.tasks import classification_loss, masked_mean
from metaguide.ties import highest
from metaguide.types import (
    Batch,
    EncodeFn,
    Episode,
    InitFn,
    Metrics,
    Params,
    Problem,
    SampleFn,
)

STATISTICS = ("transductive", "support", "one-query")
"""Whose mean and variance batch norm takes on queries: those of all queries at hand; those of the
support, so that a query's answer is its own; those of the support and the one query."""


def regression(
    model: Any,
    initialiser: Callable[..., Array] | None = None,
    inputs: int = 1,
    outputs: int = 1,
) -> Problem:
    """Build the regression of `y` on `x` by mean squared error.

    Args:
        model: x [points, inputs] -> features [points, width].
        initialiser: initialiser of the head's kernel; normal with variance 2 / width by default.
        inputs: number of numbers that a point is known by.
        outputs: number of numbers to predict of it.

    Returns:
        A problem whose batches hold `x`, `y` [points, outputs] and `mask`; it scores by
        `squared_error`, the mean over outputs. Its loss and score raise ValueError for `y` of
        another shape.
    """
    features, init = _parts(model, jnp.zeros((1, inputs)), outputs, initialiser or _HE)

    def encode(params: Params, batch: Batch, context: Any, key: Key[Array, ""] | None) -> Array:
        del context, key
        return features(params, batch["x"])

    def predict(params: Params, encoded: Array, batch: Batch, context: Any) -> dict[str, Array]:
        del batch, context
        return {"y": linear(params["head"], encoded)}

    def loss(params: Params, encoded: Array, batch: Batch, context: Any) -> tuple[Array, Metrics]:
        error = squared_error(predict(params, encoded, batch, context)["y"], batch["y"])
        mean = masked_mean(error, batch["mask"])
        return mean, {"mse": mean}

    def score(outputs: Mapping[str, Array], query: Batch, context: Any) -> dict[str, Array]:
        del context
        error = squared_error(outputs["y"], query["y"])
        return {"squared_error": error, "mask": query["mask"], "id": query["id"]}

    def squared_error(said: Array, y: Array) -> Array:
        if said.shape != y.shape:  # they would be broadcast, to every pair of points
            raise ValueError(f"y is {list(y.shape)} and has to be {list(said.shape)}")
        return jnp.square(said - y).mean(-1)

    return Problem(init, encode, loss, predict, _same, score, ("body",), ("head",), "y")


def classification(model: Any, way: int, inputs: Sequence[int] = (1,)) -> Problem:
    """Build the classification of arrays into the `way` classes of an episode, by cross-entropy.

    Args:
        model: x [examples, *inputs] -> features [examples, width].
        way: number of classes.
        inputs: shape of an example.

    Returns:
        A problem whose batches hold `x`, `label` and `mask`; it scores by `correct`, with ties
        between logits broken by the query's `id`.
    """
    features, init = _parts(model, jnp.zeros((1, *inputs)), way, jax.nn.initializers.zeros)

    def encode(params: Params, batch: Batch, context: Any, key: Key[Array, ""] | None) -> Array:
        del context, key
        return features(params, batch["x"])

    return _classifying(init, encode, way)


def classification_of_pictures(
    model: Any,
    way: int,
    statistics: str = "transductive",
    padded: bool = False,
    side: int = 28,
    channels: int = 1,
) -> Problem:
    """Build the classification of pictures into the `way` classes of an episode.

    Args:
        model: pictures [examples, side, side, channels] -> features [examples, width]. A model
            with a batch norm has a second argument, `reference`: it marks the examples whose
            statistics that takes. Where all count, it is not given.
        way: number of classes.
        statistics: one of `STATISTICS`. All but the first read the support that `inductive` puts
            into the query; a batch without it has its own statistics.
        padded: whether supports have masked examples, which the statistics then ignore.
        side: side of the pictures, in pixels.
        channels: channels of the pictures.

    Returns:
        A problem whose batches hold `image`, `label` and `mask`; it scores by `correct`, with ties
        between logits broken by the query's `id`.

    Raises:
        ValueError: unknown statistics.
    """
    if statistics not in STATISTICS:
        raise ValueError(f"statistics is {statistics!r}, not one of {', '.join(STATISTICS)}")
    features, init = _parts(
        model, jnp.zeros((1, side, side, channels)), way, jax.nn.initializers.zeros
    )

    def encode(params: Params, batch: Batch, context: Any, key: Key[Array, ""] | None) -> Array:
        del context, key
        images = batch["image"]
        if statistics == "transductive" or "reference" not in batch:
            return features(params, images, *([batch["mask"]] if padded else []))
        known, there = batch["reference"], batch["reference_mask"]
        if statistics == "support":
            there = jnp.concatenate([there, jnp.zeros(len(images), bool)])
            return features(params, jnp.concatenate([known, images]), there)[len(known) :]

        def one(image: Array) -> Array:
            together = jnp.concatenate([known, image[None]])
            marked = [jnp.concatenate([there, jnp.ones(1, bool)])] if padded else []
            return features(params, together, *marked)[-1]

        return jax.vmap(one)(images)

    return _classifying(init, encode, way)


def _classifying(init: InitFn, encode: EncodeFn, way: int) -> Problem:
    """Return the problem of a linear head that tells classes apart."""

    def predict(params: Params, encoded: Array, batch: Batch, context: Any) -> dict[str, Array]:
        del batch, context
        return {"logits": linear(params["head"], encoded)}

    def loss(params: Params, encoded: Array, batch: Batch, context: Any) -> tuple[Array, Metrics]:
        logits = predict(params, encoded, batch, context)["logits"]
        return classification_loss(logits, batch["label"], batch["mask"])

    def score(outputs: Mapping[str, Array], query: Batch, context: Any) -> dict[str, Array]:
        del context
        logits = outputs["logits"]
        chosen = highest(logits, query["id"]).astype(query["label"].dtype)
        finite = jnp.isfinite(logits).all(-1)
        right = {"correct": (chosen == query["label"]) & finite, "finite": finite}
        return right | {"mask": query["mask"], "id": query["id"]}

    return Problem(init, encode, loss, predict, _same, score, ("body",), ("head",), "label", way)


def inductive(sample: SampleFn) -> SampleFn:
    """Return a sampler whose queries carry the support's pictures, for their statistics.

    Args:
        sample: a sampler of pictures.

    Returns:
        The same episodes, with `reference` and `reference_mask` in the query.
    """

    def with_reference(*args: Any) -> Episode:
        episode = sample(*args)
        support = episode.support
        own = {"reference": support["image"], "reference_mask": support["mask"]}
        return episode._replace(query={**episode.query, **own})

    return with_reference


def linear(head: Params, features: Float[Array, "n width"]) -> Float[Array, "n outputs"]:
    """Return features W + b."""
    return features @ head["kernel"] + head["bias"]


_HE = jax.nn.initializers.he_normal()


def _same(encoded: Array) -> Array:
    return encoded


def _parts(
    model: Any, example: Array, outputs: int, initialiser: Callable[..., Array]
) -> tuple[Callable[..., Array], InitFn]:
    """Return (params, *inputs) -> features, and key -> {"body", "head"}.

    The latter raises ValueError if the model has variables that are no parameters, or returns
    something else than a vector for each example.
    """

    def features(params: Params, *inputs: Any) -> Array:
        return model.apply({"params": params["body"]}, *inputs)  # type: ignore[return-value]

    def init(key: Key[Array, ""]) -> Params:
        body_key, head_key = jax.random.split(key)
        variables = dict(model.init(body_key, example))
        body = variables.pop("params", {})
        if variables:
            raise ValueError(
                f"the model keeps {min(variables)!r} beside its parameters, which nothing updates "
                "in an inner loop; give one without, such as Conv4 or one with GroupNorm"
            )
        found = jax.eval_shape(lambda: model.apply({"params": body}, example))
        if len(getattr(found, "shape", ())) != 2:
            raise ValueError(
                f"the model returns {jax.tree.map(lambda leaf: [*leaf.shape], found)} for one "
                "example; let it return features [examples, width] alone"
            )
        width = found.shape[-1]
        kernel = initialiser(head_key, (width, outputs), jnp.float32)
        return {"body": body, "head": {"kernel": kernel, "bias": jnp.zeros((outputs,))}}

    return features, init
