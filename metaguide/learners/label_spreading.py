"""The learner that spreads labels along a graph of labelled and unlabelled examples."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from metaguide.learners.on_features import (
    Features,
    absent,
    mask_absent,
    mean_feature,
    on_features,
    unit_centred,
)
from metaguide.types import Learner, Params, Problem


class Spread(NamedTuple):
    """What `label_spreading` fits.

    Attributes:
        middle: the mean that features are centred at.
        known: unit features of the examples.
        shares: how much of each class each of them is; rows that were not read are 0.
        read: which examples were read.
        lacking: which classes have no example.
    """

    middle: Float[Array, " width"]
    known: Float[Array, "examples width"]
    shares: Float[Array, "examples way"]
    read: Bool[Array, " examples"]
    lacking: Bool[Array, " way"]


def label_spreading(
    problem: Problem,
    strength: float = 0.9,
    neighbours: int = 10,
    sharpness: float = 10.0,
    steps: int = 50,
    balancing: int = 0,
) -> Learner:
    """Spread labels to unlabelled neighbours: Z ← α D^-½ W D^-½ Z + (1 − α) Y.

    W_ij = exp(σ (cos(f_i, f_j) − 1)) if one of two examples is among the nearest of the other,
    else 0; D is the diagonal of its row sums, Y the labels, and features f are centred at the mean
    of all examples. A query has the shares of the classes in its nearest examples, weighted alike.
    Where soft k-means assumes a round cloud for each class, this follows clouds of any shape.

    The support's field `unlabelled` is as in `soft_k_means`. Without it, labels spread among the
    labelled examples alone.

    Args:
        problem: a problem with classes; its head is not used.
        strength: α in (0, 1), how much an example takes from its neighbours.
        neighbours: how many are nearest.
        sharpness: σ.
        steps: number of iterations; what is left to spread falls as α^steps.
        balancing: number of rounds, of which each scales the shares of all examples in a class to
            the same sum, and then those of an example to 1 (Sinkhorn). It assumes that the classes
            are equally frequent, and 20 gain much if they are.

    Returns:
        A learner whose `adapted` is (meta-parameters, `Spread`).

    Raises:
        ValueError: the problem has no classes.

    Zhou et al.: Learning with Local and Global Consistency, 2003.

    >>> learner = label_spreading(pictures)
    >>> first = jnp.arange(4) < 2
    >>> support = {**shades.support, "mask": first, "unlabelled": ~first}
    >>> adapted, _ = jax.jit(learner.adapt)(learner.init(key), support, (), key)
    >>> print(learner.predict(adapted, shades.query, ())["logits"].argmax(-1))
    [0 1 0 1]
    """

    def nearest(alike: Float[Array, "rows examples"]) -> Float[Array, "rows examples"]:
        value, place = jax.lax.top_k(alike, min(neighbours, alike.shape[1]))
        weight = jnp.exp(sharpness * (value - 1))
        return jnp.zeros_like(alike).at[jnp.arange(len(alike))[:, None], place].set(weight)

    def to_one(shares: Array, axis: int) -> Array:
        return shares / jnp.maximum(shares.sum(axis, keepdims=True), 1e-12)

    def even(shares: Array, _: None) -> tuple[Array, None]:
        return to_one(to_one(shares, 0), 1), None

    def fit(
        rule: Params,
        features: Features,
        label: Array,
        mask: Array,
        way: int,
        unlabelled: Array | None = None,
    ) -> Spread:
        read = mask if unlabelled is None else mask | unlabelled
        rows = jnp.where(read[:, None], features, 0)
        middle = mean_feature(features, read)
        known = unit_centred(rows, middle)
        pairs = read[:, None] & read & ~jnp.eye(len(read), dtype=bool)
        weight = nearest(jnp.where(pairs, known @ known.T, -jnp.inf))
        weight = jnp.maximum(weight, weight.T)
        degree = jax.lax.rsqrt(jnp.maximum(weight.sum(1), 1e-12))
        graph = degree[:, None] * weight * degree
        given = jax.nn.one_hot(label, way, dtype=rows.dtype) * mask[:, None].astype(rows.dtype)

        def step(shares: Array, _: None) -> tuple[Array, None]:
            return strength * (graph @ shares) + (1 - strength) * given, None

        shares, _ = jax.lax.scan(step, given, length=steps)
        shares = to_one(shares, 1)
        if balancing:
            shares, _ = jax.lax.scan(even, shares, length=balancing)
        return Spread(middle, known, shares, read, absent(label, mask, way))

    def score(rule: Params, features: Features, fitted: Spread) -> Array:
        alike = unit_centred(features, fitted.middle) @ fitted.known.T
        weight = to_one(nearest(jnp.where(fitted.read, alike, -jnp.inf)), 1)
        return mask_absent(jnp.log(weight @ fitted.shares + 1e-6), fitted.lacking)

    return on_features(problem, fit, score, reads_unlabelled=True)
