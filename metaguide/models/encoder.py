"""An encoder as a value: maps an example to a vector and a token to a state."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int, UInt8

from metaguide.models.transformer import PAD, TransformerEncoder


class Encoding(NamedTuple):
    """The shared encoder's output.

    Attributes:
        vector: one vector per example.
        states: one state per token; None if there is no text.
    """

    vector: Float[Array, "batch width"]
    states: Float[Array, "batch length width"] | None


@dataclass(frozen=True)
class Encoder:
    """An encoder of examples; `GuideModel` builds on any of them.

    Attributes:
        text: the unbound Linen module for texts. Its call, (tokens int32 [batch, length],
            deterministic) -> float [batch, length, width], returns one state per token; its
            `attend`, states -> float [..., vocabulary], compares states with the embeddings.
        vocabulary: number of token ids.
        width: width of vectors and states.
        length: longest sequence, in tokens.
        channels: channels of the convolutions on pictures; () if pictures are not read.
        dtype: dtype of the computation; parameters are float32.
    """

    text: nn.Module
    vocabulary: int
    width: int
    length: int
    channels: tuple[int, ...] = ()
    dtype: Any = jnp.float32

    @property
    def image(self) -> bool:
        """Return whether pictures are read."""
        return bool(self.channels)

    def groups(self, pictures: bool) -> tuple[str, ...]:
        """Return the names of the parameter groups that encode texts, or texts and pictures."""
        return ("text", "image", "fusion") if pictures and self.image else ("text", "fusion")


def transformer(
    vocabulary: int,
    width: int = 64,
    layers: int = 2,
    heads: int = 4,
    length: int = 64,
    *,
    dropout: float = 0.1,
    channels: tuple[int, ...] = (16, 32, 64),
    dtype: Any = jnp.float32,
) -> Encoder:
    """Return the library's own encoder: a Transformer, plus convolutions if there are `channels`.

    Args:
        vocabulary: number of token ids.
        width: width of vectors and states, a multiple of 4 and of `heads`.
        layers: number of Transformer layers.
        heads: number of attention heads.
        length: longest sequence, in tokens.
        dropout: dropout rate of the Transformer.
        channels: channels of the convolutions on pictures.
        dtype: dtype of the computation.
    """
    text = TransformerEncoder(vocabulary, width, layers, heads, length, dropout, dtype)
    return Encoder(text, vocabulary, width, length, channels, dtype)


def mean_state(
    states: Float[Array, "batch length width"], tokens: Int[Array, "batch length"]
) -> Float[Array, "batch width"]:
    """Return the mean state over the tokens that are not padding, 0 if all are."""
    mask = (tokens != PAD).astype(states.dtype)
    total = jnp.einsum("bl,blw->bw", mask, states)
    return total / jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1)


def pixels(
    image: Float[Array, "batch 32 32 3"] | UInt8[Array, "batch 32 32 3"],
) -> Float[Array, "batch 32 32 3"]:
    """Return pictures as floats in [0, 1]."""
    return image.astype(jnp.float32) / 255 if image.dtype == jnp.uint8 else image
