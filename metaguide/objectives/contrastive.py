"""Contrastive learning: two views of one item belong together, views of two items do not."""

from collections.abc import Mapping

import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from metaguide.objectives.tasks import is_highest, masked_mean
from metaguide.types import OUT


def info_nce(
    a: Float[Array, "batch width"],
    b: Float[Array, "batch width"],
    temperature: float | Float[Array, ""],
    where: Bool[Array, " batch"],
) -> tuple[Float[Array, ""], Mapping[str, Array]]:
    """Return the symmetric InfoNCE (van den Oord et al. 2018; as in CLIP, Radford et al. 2021).

    With S = a bᵀ / temperature, over the rows and columns that count,
    J = ½ mean_i (log Σ_j exp S_ij − S_ii) + ½ mean_i (log Σ_j exp S_ji − S_ii).
    For pictures and texts, and for a text with itself under two dropout masks (SimCSE, Gao et al.
    2021). For unit vectors it lies between 0 and log(batch) + 2 / temperature.

    Args:
        a: unit vectors of the first views.
        b: unit vectors of the second views; each row is the same item as in `a`.
        temperature: a positive number.
        where: rows that have both views; the others do not serve as negatives either.

    Returns:
        The loss, 0 without rows, and the metric `accuracy`: how often the partner scores highest,
        averaged over both directions.
    """
    scores = a @ b.T / jnp.asarray(temperature, a.dtype)
    labels = jnp.arange(len(a))
    loss, accuracy = jnp.zeros((), a.dtype), jnp.zeros((), a.dtype)
    for direction in (scores, scores.T):
        direction = jnp.where(where, direction, OUT)
        losses = optax.softmax_cross_entropy_with_integer_labels(direction, labels)
        loss += masked_mean(losses, where) / 2
        accuracy += masked_mean(is_highest(direction, labels), where) / 2
    return loss, {"accuracy": accuracy}
