"""An encoder as a value: what makes a vector of an example, and a state of a token."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int, UInt8

from metaguide.models.transformer import PAD, TransformerEncoder


class Encoding(NamedTuple):
    """What the shared encoder makes of examples.

    Attributes:
        vector: one vector an example.
        states: one state a token; None where there is no text.
    """

    vector: Float[Array, "batch width"]
    states: Float[Array, "batch length width"] | None


@dataclass(frozen=True)
class Encoder:
    """What reads examples; `GuideModel` builds on any.

    Attributes:
        text: the Linen module of texts, unbound. Its call, (tokens int32 [batch, length],
            deterministic) -> float [batch, length, width], returns a state a token, and its
            `attend`, states -> float [..., vocabulary], compares states with the embeddings.
        vocabulary: number of token ids.
        width: of vectors and states.
        length: longest sequence, in tokens.
        channels: of the convolutions on pictures; () where pictures are not read.
        dtype: of the computation; parameters are float32.
    """

    text: nn.Module
    vocabulary: int
    width: int
    length: int
    channels: tuple[int, ...] = ()
    dtype: Any = jnp.float32

    @property
    def image(self) -> bool:
        """Whether pictures are read."""
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
    """Return our own encoder: a Transformer, and convolutions where there are `channels`.

    Args:
        vocabulary: number of token ids.
        width: of vectors and states, a multiple of 4 and of `heads`.
        layers: of the Transformer.
        heads: of its attention.
        length: longest sequence, in tokens.
        dropout: in the Transformer.
        channels: of the convolutions on pictures.
        dtype: of the computation.
    """
    text = TransformerEncoder(vocabulary, width, layers, heads, length, dropout, dtype)
    return Encoder(text, vocabulary, width, length, channels, dtype)


def mean_state(
    states: Float[Array, "batch length width"], tokens: Int[Array, "batch length"]
) -> Float[Array, "batch width"]:
    """Return the mean of the states of what is not padding, 0 where all is."""
    mask = (tokens != PAD).astype(states.dtype)
    total = jnp.einsum("bl,blw->bw", mask, states)
    return total / jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1)


def pixels(
    image: Float[Array, "batch 32 32 3"] | UInt8[Array, "batch 32 32 3"],
) -> Float[Array, "batch 32 32 3"]:
    """Return pictures as floats in [0, 1]."""
    return image.astype(jnp.float32) / 255 if image.dtype == jnp.uint8 else image
