"""Conv4, the four-layer network for few-shot images, normalised by the current batch."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from metaguide.models.convolution import PatchConvolution

EPSILON = 1e-3
"""Added to a variance before its square root divides."""

POOLINGS = ("stride", "flat", "max")
CONVOLUTIONS = ("patches", "xla")


def widened(dtype: Any) -> Any:
    """Return float32, or `dtype` where that is wider."""
    return dtype if jnp.dtype(dtype).itemsize > 4 else jnp.float32


def halved(
    x: Float[Array, "batch height width channels"],
) -> Float[Array, "batch rows columns channels"]:
    """Return the maxima over 2 × 2 positions, dropping an odd last row or column.

    Among equal values the first one is taken, as in `nn.max_pool`, whose gradient is a scatter and
    nearly three times as slow on a CPU. The gradient of `jnp.max` divides by the number of
    positions equal to the maximum. When XLA recomputes x for it and rounds differently, that number
    is 0 and the gradient is NaN.
    """
    rows, columns = x.shape[1] // 2, x.shape[2] // 2
    x = x[:, : 2 * rows, : 2 * columns].reshape(len(x), rows, 2, columns, 2, -1)

    def larger(a: Array, b: Array) -> Array:
        return jnp.where(a >= b, a, b)

    x = larger(x[:, :, 0], x[:, :, 1])
    return larger(x[:, :, :, 0], x[:, :, :, 1])


def mean_of_rows(
    values: Float[Array, "batch height width channels"],
    reference: Bool[Array, " batch"] | None = None,
) -> Float[Array, " channels"]:
    """Return each channel's mean over the positions of the marked examples, 0 if none is marked."""
    if reference is None:
        return jnp.mean(values, (0, 1, 2))
    marked = reference[:, None, None, None]
    count = jnp.maximum(jnp.sum(marked, dtype=values.dtype), 1)
    count *= values.shape[1] * values.shape[2]
    return jnp.sum(values, (0, 1, 2), where=marked) / count


def moments(
    x: Float[Array, "batch height width channels"],
    reference: Bool[Array, " batch"] | None = None,
) -> tuple[Float[Array, " channels"], Float[Array, " channels"]]:
    """Return the mean and the biased variance of each channel.

    Args:
        x: values in a dtype wide enough for sums over all positions.
        reference: the examples that count; None for all.
    """
    mean = mean_of_rows(x, reference)
    return mean, mean_of_rows(jnp.square(x - mean), reference)


def moments_of_product(
    rows: Float[Array, "batch height width taps"],
    kernel: Float[Array, "taps channels"],
    reference: Bool[Array, " batch"] | None = None,
) -> tuple[Float[Array, " channels"], Float[Array, " channels"]]:
    """Return `moments(rows @ kernel, reference)` without the product: mᵀ K and diag(Kᵀ C K).

    m and C are the mean and covariance of the rows. They are cheaper to sum when a row has fewer
    taps than the product has channels, and for pictures they do not depend on the parameters.
    """
    mean = mean_of_rows(rows, reference)
    apart = rows - mean
    kept = apart if reference is None else jnp.where(reference[:, None, None, None], apart, 0)
    count = rows.size // rows.shape[-1]
    if reference is not None:
        marked = jnp.sum(reference, dtype=rows.dtype)
        count = jnp.maximum(marked, 1) * (rows.shape[1] * rows.shape[2])
    flat = kept.reshape(-1, rows.shape[-1])
    # Full precision: an error here would affect every value of a channel.
    exact = jax.lax.Precision.HIGHEST
    covariance = jnp.matmul(flat.T, flat, precision=exact) / count
    spread = jnp.matmul(covariance, kernel, precision=exact)
    return jnp.matmul(mean, kernel, precision=exact), jnp.sum(kernel * spread, 0)


class BatchNorm(nn.Module):
    """scale · (x - mean) / √(variance + 1e-3) + bias, per channel (Ioffe & Szegedy 2015).

    The mean and biased variance are taken over the examples and positions of the current batch, in
    float32 or wider. There is no running average over batches, so each task has its own statistics.
    """

    @nn.compact
    def __call__(
        self, mean: Float[Array, " channels"], variance: Float[Array, " channels"]
    ) -> tuple[Float[Array, " channels"], Float[Array, " channels"]]:
        """Return (slope, shift) such that x · slope + shift is x normalised."""
        scale = self.param("scale", nn.initializers.ones, mean.shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, mean.shape, jnp.float32)
        scale, bias = scale.astype(mean.dtype), bias.astype(mean.dtype)
        slope = scale * jax.lax.rsqrt(variance + EPSILON)
        return slope, bias - mean * slope


class Layer(nn.Module):
    """A convolution, batch norm or a bias, and ReLU; halves the side. Attributes as in `Conv4`."""

    channels: int
    pooling: str
    normalise: bool
    convolution: str
    dtype: Any

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        reference: Bool[Array, " batch"] | None,
    ) -> Float[Array, "batch rows columns features"]:
        """Return the features; rows = ⌊height / 2⌋ for "max", ⌈height / 2⌉ otherwise."""
        convolution = PatchConvolution(
            self.channels,
            stride=1 if self.pooling == "max" else 2,
            dtype=self.dtype,
            use_bias=not self.normalise,
            patched=self.convolution == "patches",
            name="convolution",
        )
        if not self.normalise:
            x = convolution(x)
        else:
            norm = BatchNorm(name="norm")
            wide = widened(self.dtype or x.dtype)

            def affine(rows: Array, kernel: Array) -> tuple[Array, Array]:
                return norm(*moments_of_product(rows.astype(wide), kernel.astype(wide), reference))

            if self.convolution == "patches" and 9 * x.shape[-1] < self.channels:
                x = convolution(x, affine)
            else:
                x = convolution(x).astype(wide)
                slope, shift = norm(*moments(x, reference))
                x = (x * slope + shift).astype(self.dtype or wide)
        if self.pooling == "max":
            x = halved(x)
        # ReLU commutes with the maximum, and after it there are a quarter as many values.
        return nn.relu(x)


class Conv4(nn.Module):
    """Four 3 × 3 convolutions, each followed by batch norm and ReLU and halving the side.

    The network of Vinyals et al. 2016 as used by MAML (Finn et al. 2017: stride 2, features
    averaged over positions), Reptile (Nichol et al. 2018: stride 2, features of all positions), or
    prototypical networks (Snell et al. 2017: 2 × 2 maxima, features of all positions).

    Attributes:
        channels: number of features of each layer.
        pooling: "stride": stride 2 and a final spatial mean; "flat": stride 2, then all positions
            flattened; "max": stride 1, the maximum over 2 × 2 positions, then all positions
            flattened.
        normalise: whether to use batch norm; without it each convolution has a bias.
        convolution: "patches": slices and one matrix product, faster on a CPU and when each task
            has its own kernels; "xla": `jax.lax.conv_general_dilated`.
        dtype: dtype of the computation, None for that of the parameters and images; parameters are
            float32, statistics and features float32 or wider.
    """

    channels: int = 64
    pooling: str = "stride"
    normalise: bool = True
    convolution: str = "patches"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "batch height width channels"],
        reference: Bool[Array, " batch"] | None = None,
    ) -> Float[Array, "batch features"]:
        """Return the features of each image.

        Args:
            images: images with any number of channels.
            reference: the rows whose mean and variance normalise every row; None for all rows.
                Unmarked rows then do not affect one another.

        Raises:
            ValueError: an unknown `pooling` or `convolution`.
        """
        for name, value, choices in (
            ("pooling", self.pooling, POOLINGS),
            ("convolution", self.convolution, CONVOLUTIONS),
        ):
            if value not in choices:
                raise ValueError(f"{name} is {value!r}, not one of {', '.join(choices)}")
        x = images if self.dtype is None else images.astype(self.dtype)
        for i in range(4):
            x = Layer(
                self.channels,
                self.pooling,
                self.normalise,
                self.convolution,
                self.dtype,
                name=f"layer{i}",
            )(x, reference)
        x = x.astype(widened(x.dtype))
        if self.pooling == "stride":
            return jnp.mean(x, axis=(1, 2))
        return x.reshape(x.shape[0], -1)
