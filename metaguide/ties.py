"""Ties between scores, broken by a draw, so that a constant score gets what chance gets."""

import jax.numpy as jnp
from jaxtyping import Array, Int, Num


def drawn(number: Int[Array, "*n"], count: Int[Array, "*n"]) -> Int[Array, "*n"]:
    """Return draws from 0 to `count` - 1 that are functions of a number, such as the example's."""
    bits = _mixed(number.astype(jnp.uint32))
    return (bits % jnp.maximum(count, 1).astype(jnp.uint32)).astype(count.dtype)


def highest(scores: Num[Array, "rows n"], number: Int[Array, " rows"]) -> Int[Array, " rows"]:
    """Return the place of the highest score of each row, of equals one drawn with equal chance.

    Args:
        scores: none of them is NaN; what else stands there where one is says nothing.
        number: the draw is a function of it, the example's, and of nothing else.

    Returns:
        The places.
    """
    level = scores == scores.max(-1, keepdims=True)
    place = jnp.arange(scores.shape[-1], dtype=jnp.uint32)
    own = _mixed(number.astype(jnp.uint32))[:, None]
    # Each place has a lot of its own, and of those that are level the highest lot wins.
    lots = (_mixed(own + place * jnp.uint32(0x9E3779B1)) >> 1).astype(jnp.int32)
    return jnp.where(level, lots, -1).argmax(-1)


def _mixed(bits: Array) -> Array:
    for factor in (0x45D9F3B, 0x2545F491):
        bits = (bits ^ (bits >> 16)) * jnp.uint32(factor)
    return bits ^ (bits >> 16)
