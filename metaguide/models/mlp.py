"""The multi-layer perceptron of regression and of learned optimizers' problems."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

INITIALISERS: dict[str, Callable[..., Any]] = {
    "he": nn.initializers.he_normal(),
    "truncated": nn.initializers.truncated_normal(0.01),
    "lecun": nn.initializers.lecun_normal(),
}
"""Kernel initialisers: variance 2/inputs, σ = .01 cut at 2σ, variance 1/inputs; biases are 0."""


class MLP(nn.Module):
    """h ← activation(h W + b), once per width.

    Attributes:
        widths: number of units of each layer.
        activation: function applied after every layer.
        initialiser: a key of `INITIALISERS`.
        dtype: dtype of the computation, None for that of the parameters and inputs.
    """

    widths: tuple[int, ...]
    activation: Callable[[Array], Array] = nn.relu
    initialiser: str = "he"
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "batch inputs"]) -> Float[Array, "batch width"]:
        """Return the last layer's units."""
        for number, width in enumerate(self.widths):
            dense = nn.Dense(
                width,
                dtype=self.dtype,
                kernel_init=INITIALISERS[self.initialiser],
                name=f"layer{number}",
            )
            x = self.activation(dense(x))
        return x if self.dtype is None else x.astype(jnp.float32)


class PixelMLP(nn.Module):
    """An `MLP` on the flattened pixels of a picture; without layers, the pixels themselves.

    Attributes:
        widths, activation, initialiser: as in `MLP`.
    """

    widths: tuple[int, ...]
    activation: Callable[[Array], Array] = nn.sigmoid
    initialiser: str = "lecun"

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width channels"], reference: Any = None
    ) -> Float[Array, "batch features"]:
        """Return the last layer's units; `reference`, which batch norms use, is ignored."""
        del reference
        mlp = MLP(self.widths, self.activation, self.initialiser, name="mlp")
        return mlp(images.reshape(len(images), -1))
