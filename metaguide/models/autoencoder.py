"""The two halves of a convolutional autoencoder for small pictures."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from metaguide.models.convolution import PatchConvolution, PatchTranspose
from metaguide.models.transformer import LayerNorm

SIDE = 32
"""Height and width of a picture, in pixels."""


class ImageEncoder(nn.Module):
    """Stride-2 convolutions, then one dense layer and a layer norm.

    Attributes:
        width: size of the vector.
        channels: number of channels after each convolution; each halves the side.
    """

    width: int
    channels: tuple[int, ...] = (16, 32, 64)
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image: Float[Array, "batch 32 32 3"]) -> Float[Array, "batch {self.width}"]:
        """Return one vector per picture; `image` is in [0, 1]."""
        x = image.astype(self.dtype) * 2 - 1
        for i, features in enumerate(self.channels):
            x = nn.relu(PatchConvolution(features, dtype=self.dtype, name=f"convolution_{i}")(x))
        x = nn.Dense(self.width, dtype=self.dtype, name="dense")(x.reshape(x.shape[0], -1))
        return LayerNorm(self.dtype, name="norm")(x)


class ImageDecoder(nn.Module):
    """Decode a vector into a picture in [0, 1].

    Attributes:
        channels: the encoder's channels, in the encoder's order; each one doubles the side.
    """

    channels: tuple[int, ...] = (16, 32, 64)
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, vector: Float[Array, "batch width"]) -> Float[Array, "batch 32 32 3"]:
        """Return float32 pictures in [0, 1]."""
        side = SIDE >> len(self.channels)
        outputs = (*reversed(self.channels[:-1]), 3)
        x = nn.Dense(side * side * self.channels[-1], dtype=self.dtype, name="dense")(vector)
        x = x.reshape(-1, side, side, self.channels[-1])
        for i, features in enumerate(outputs):
            x = PatchTranspose(features, dtype=self.dtype, name=f"transpose_{i}")(nn.relu(x))
        return nn.sigmoid(x.astype(jnp.float32))
