"""Convolutions as slices and one matrix product, which stay fast when kernels differ by task."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float


def patches(
    x: Float[Array, "batch height width channels"], kernel: int, stride: int
) -> Float[Array, "batch rows columns taps"]:
    """Returns the kernel × kernel neighbourhood of each output position, padded as "SAME".

    Args:
        x: images.
        kernel: side of the neighbourhood.
        stride: step between output positions; rows = ceil(height / stride).

    Returns:
        taps = kernel · kernel · channels, in the order of a kernel [kernel, kernel, channels].
    """
    sides = []
    for size in x.shape[1:3]:
        steps = -(-size // stride)
        total = max((steps - 1) * stride + kernel - size, 0)
        sides.append((steps, total // 2, total - total // 2))
    (rows, top, bottom), (columns, left, right) = sides
    x = jnp.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))
    taps = [
        x[
            :,
            i : i + (rows - 1) * stride + 1 : stride,
            j : j + (columns - 1) * stride + 1 : stride,
        ]
        for i in range(kernel)
        for j in range(kernel)
    ]
    return jnp.concatenate(taps, axis=-1)


class PatchConvolution(nn.Module):
    """y = patches(x) · K + b: a "SAME" convolution as one matrix product.

    The kernel is a matrix [kernel · kernel · channels, features], that of
    `jax.lax.conv_general_dilated` in HWIO order with its first three axes as one.
    """

    features: int
    kernel: int = 3
    stride: int = 2
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch rows columns features"]:
        """Returns the convolved images, rows = ceil(height / stride)."""
        dense = nn.Dense(self.features, dtype=self.dtype, name="taps")
        return dense(patches(x, self.kernel, self.stride))


class PatchTranspose(nn.Module):
    """Twice the height and width: a convolution to 4 · features, each pixel then spread to 2 × 2.

    The sub-pixel convolution of Shi et al. 2016; its patches are a quarter of those of a
    convolution behind an upsampling.
    """

    features: int
    kernel: int = 3
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch rows columns features"]:
        """Returns images of twice the height and width."""
        batch, height, width, _ = x.shape
        x = PatchConvolution(4 * self.features, self.kernel, 1, self.dtype, name="convolution")(x)
        x = x.reshape(batch, height, width, 2, 2, self.features)
        return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, 2 * height, 2 * width, self.features)
