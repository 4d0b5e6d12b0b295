"""Denoising: corrupt a picture, then restore it."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from metaguide.objectives.tasks import masked_mean


def corrupt(
    key: Key[Array, ""],
    images: Float[Array, "batch height width channels"],
    *,
    sigma: float | Float[Array, ""],
    occlusion: int,
) -> Float[Array, "batch height width channels"]:
    """Add Gaussian noise and blacken one square of each picture (Vincent et al. 2008).

    x̃ = hole ⊙ clip(x + sigma · ε, 0, 1), with ε ~ N(0, I) and the square inside the picture.

    Args:
        key: PRNG key.
        images: pictures in [0, 1].
        sigma: standard deviation of the noise, in units of the full range.
        occlusion: side of the square in pixels, static; 0 for none.

    Raises:
        ValueError: the square is larger than the picture, or its side negative.
    """
    batch, height, width, _ = images.shape
    if not 0 <= occlusion <= min(height, width):
        raise ValueError(f"a hole of side {occlusion} does not fit pictures of {height}×{width}")
    noise, row, column = jax.random.split(key, 3)
    epsilon = jax.random.normal(noise, images.shape, images.dtype)
    noisy = jnp.clip(images + jnp.asarray(sigma, images.dtype) * epsilon, 0, 1)
    top = jax.random.randint(row, (batch, 1), 0, height - occlusion + 1)
    left = jax.random.randint(column, (batch, 1), 0, width - occlusion + 1)
    below = jnp.arange(height) - top
    right = jnp.arange(width) - left
    in_rows = (below >= 0) & (below < occlusion)
    in_columns = (right >= 0) & (right < occlusion)
    hole = in_rows[:, :, None, None] & in_columns[:, None, :, None]
    return jnp.where(hole, 0, noisy)


def reconstruction_loss(
    output: Float[Array, "batch height width channels"],
    target: Float[Array, "batch height width channels"],
    where: Bool[Array, " batch"] | None = None,
) -> tuple[Float[Array, ""], Mapping[str, Array]]:
    """Return the mean squared error of the restored pictures (Vincent et al. 2008).

    J = mean_{i : where_i} mean_{pixels, channels} (output_i − target_i)²; 0 without pictures.

    Args:
        output: the restored pictures.
        target: the original pictures, in [0, 1].
        where: which rows have a picture; all of them by default.

    Returns:
        The loss, and the metric `absolute_error`.
    """
    if where is None:
        where = jnp.ones(len(output), bool)
    difference = output - target
    squares = jnp.mean(difference**2, axis=(1, 2, 3))
    sizes = jnp.mean(jnp.abs(difference), axis=(1, 2, 3))
    return masked_mean(squares, where), {"absolute_error": masked_mean(sizes, where)}
