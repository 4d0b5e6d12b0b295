"""Random tie-breaking between scores, so that a constant score performs at chance level."""

import jax.numpy as jnp
from jaxtyping import Array, Int, Num


def drawn(number: Int[Array, "*n"], count: Int[Array, "*n"]) -> Int[Array, "*n"]:
    """Return draws from 0 to `count` - 1 that depend only on a number, such as the example's."""
    bits = _mixed(number.astype(jnp.uint32))
    return (bits % jnp.maximum(count, 1).astype(jnp.uint32)).astype(count.dtype)


def highest(scores: Num[Array, "rows n"], number: Int[Array, " rows"]) -> Int[Array, " rows"]:
    """Return the index of each row's highest score; ties are broken uniformly at random.

    Args:
        scores: scores without NaN; the result for a row with NaN is meaningless.
        number: the example's number, which alone determines the draw.

    Returns:
        The indices.
    """
    level = scores == scores.max(-1, keepdims=True)
    place = jnp.arange(scores.shape[-1], dtype=jnp.uint32)
    own = _mixed(number.astype(jnp.uint32))[:, None]
    # Each index gets its own lot; among tied scores the highest lot wins.
    lots = (_mixed(own + place * jnp.uint32(0x9E3779B1)) >> 1).astype(jnp.int32)
    return jnp.where(level, lots, -1).argmax(-1)


def _mixed(bits: Array) -> Array:
    for factor in (0x45D9F3B, 0x2545F491):
        bits = (bits ^ (bits >> 16)) * jnp.uint32(factor)
    return bits ^ (bits >> 16)
