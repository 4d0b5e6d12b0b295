"""Convolutions as slices and one matrix product, fast even when kernels differ by task."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from jaxtyping import Array, Float


def patches(
    x: Float[Array, "batch height width channels"], kernel: int, stride: int
) -> Float[Array, "batch rows columns taps"]:
    """Return the kernel × kernel neighbourhood of each output position, with "SAME" padding.

    Args:
        x: images.
        kernel: side of the neighbourhood.
        stride: step between output positions; rows = ceil(height / stride).

    Returns:
        The patches; taps = kernel · kernel · channels, ordered as [kernel, kernel, channels].
    """
    # Group positions by their remainder modulo the stride: each tap is then a slice without gaps,
    # whose transpose is a shift. With gaps, every derivative would have kernel² cases per position.
    rows, columns = (-(-size // stride) for size in x.shape[1:3])
    reach = (kernel - 1) // stride
    before = [max((-(-n // stride) - 1) * stride + kernel - n, 0) // 2 for n in x.shape[1:3]]
    whole = [stride * (count + reach) for count in (rows, columns)]
    after = [total - first - n for total, first, n in zip(whole, before, x.shape[1:3], strict=True)]
    x = jnp.pad(x, ((0, 0), (before[0], after[0]), (before[1], after[1]), (0, 0)))
    x = x.reshape(x.shape[0], rows + reach, stride, columns + reach, stride, x.shape[-1])
    phases = [
        [column[:, :, 0, :, 0] for column in jnp.split(row, stride, axis=4)]
        for row in jnp.split(x, stride, axis=2)
    ]
    taps = [
        phases[i % stride][j % stride][
            :, i // stride : i // stride + rows, j // stride : j // stride + columns
        ]
        for i in range(kernel)
        for j in range(kernel)
    ]
    return jnp.concatenate(taps, axis=-1)


def product(
    rows: Float[Array, "*batch taps"], kernel: Float[Array, "taps features"]
) -> Float[Array, "*batch features"]:
    """Return rows · K, with a gradient for K that a CPU computes as gᵀ · rows, not rowsᵀ · g.

    A CPU forms Aᵀ · B from a transposed copy of A, and g is narrower than the rows when there are
    more taps than features. JAX emits gᵀ · rows and a transposition. Without the barrier between
    them, XLA would fold the two back into rowsᵀ · g. The tangents and cotangents of a barrier have
    a barrier too, so this holds for derivatives of every order, forward and reverse.
    """
    taps, features = kernel.shape
    # One axis of rows: a gradient that contracts several axes is a third slower overall.
    matrix = rows.reshape(-1, taps)
    if taps <= features:
        y = matrix @ kernel
    else:
        transposed = jax.lax.optimization_barrier(kernel.T)
        y = jax.lax.dot_general(matrix, transposed, (((1,), (1,)), ((), ())))
    return y.reshape(*rows.shape[:-1], features)


def convolve(
    x: Float[Array, "batch height width channels"],
    kernel: Float[Array, "taps features"],
    side: int,
    stride: int,
) -> Float[Array, "batch rows columns features"]:
    """Return patches(x) · K, computed by XLA's convolution, which is faster on accelerators.

    Args:
        x: images.
        kernel: taps = side · side · channels, in the order of `patches`.
        side: side of the neighbourhood.
        stride: step between output positions.
    """
    kernel = kernel.reshape(side, side, x.shape[-1], -1)
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


Affine = Callable[[Array, Array], tuple[Array, Array]]
"""(rows [..., taps], kernel [taps, features]) -> (slope [features], shift [features])."""


class Taps(nn.Module):
    """The parameters of a convolution: a matrix and, with `use_bias`, a vector."""

    features: int
    use_bias: bool = True

    @nn.compact
    def __call__(
        self, taps: int
    ) -> tuple[Float[Array, "taps features"], Float[Array, " features"] | None]:
        """Return the kernel and the bias; the bias is None without `use_bias`."""
        shape = (taps, self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape, jnp.float32)
        if not self.use_bias:
            return kernel, None
        return kernel, self.param("bias", nn.initializers.zeros, shape[1:], jnp.float32)


class PatchConvolution(nn.Module):
    """y = patches(x) · K + b: a "SAME" convolution as one matrix product.

    The kernel is a matrix [kernel · kernel · channels, features]: the HWIO kernel of
    `jax.lax.conv_general_dilated` with its first three axes merged.

    Attributes:
        features: number of channels of y.
        kernel: side of the neighbourhood.
        stride: step between output positions.
        dtype: dtype of the computation; None for that of x and the parameters.
        use_bias: whether to add b.
        patched: if False, the same y is computed from the same parameters by `convolve`.
    """

    features: int
    kernel: int = 3
    stride: int = 2
    dtype: Any = jnp.float32
    use_bias: bool = True
    patched: bool = True

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], affine: Affine | None = None
    ) -> Float[Array, "batch rows columns features"]:
        """Return the convolved images, rows = ceil(height / stride).

        Args:
            x: images.
            affine: a map per channel, y · slope + shift, to fold into the product; only with
                `patched`.
        """
        taps = Taps(self.features, self.use_bias, name="taps")
        kernel, bias = taps(self.kernel * self.kernel * x.shape[-1])
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        if self.patched:
            rows = patches(x, self.kernel, self.stride)
            if affine is not None:
                slope, shift = affine(rows, kernel)
                # The shift is one more tap, whose input is 1: its gradient comes with the kernel's.
                rows = jnp.pad(rows, [(0, 0)] * 3 + [(0, 1)], constant_values=1)
                kernel = jnp.concatenate([kernel * slope, shift[None]])
                return product(rows, kernel.astype(rows.dtype))
            y = product(rows, kernel)
        else:
            y = convolve(x, kernel, self.kernel, self.stride)
        return y if bias is None else y + bias


class PatchTranspose(nn.Module):
    """Double the height and width: a convolution to 4 · features, then each pixel becomes 2 × 2.

    The sub-pixel convolution of Shi et al. 2016. It has a quarter as many patches as a convolution
    after upsampling.
    """

    features: int
    kernel: int = 3
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch rows columns features"]:
        """Return images of twice the height and width."""
        batch, height, width, _ = x.shape
        x = PatchConvolution(4 * self.features, self.kernel, 1, self.dtype, name="convolution")(x)
        x = x.reshape(batch, height, width, 2, 2, self.features)
        return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, 2 * height, 2 * width, self.features)
