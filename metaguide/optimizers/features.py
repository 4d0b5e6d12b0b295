"""Inputs of a learned rule: the gradient, its history, the loss, the step and the tensor.

Each is a function of arrays; those with a memory take the old memory and return the new one.
"""

import math
from collections.abc import Iterable, Sequence

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

SMALL = 1e-16
"""Added to a mean square before its root divides: gradients below 1e-8 count as 0."""

DECAYS = (0.5, 0.9, 0.99)
"""Decays of the momenta: the means span some 2, 10 and 100 steps."""

VARIANCE_DECAY = 0.999
"""Decay of the second moment, as in Adam."""

Flat = Float[Array, " coordinates"]
Tensor = Float[Array, "*shape"]


def log_and_sign(gradient: Flat, p: float = 10.0) -> Float[Array, "2 coordinates"]:
    """Return (log|g| / p, sign g) where |g| ≥ e⁻ᵖ, and (−1, eᵖ g) where it is less.

    Gradients of any magnitude map to about [−1, 1], continuously towards 0.

    Args:
        gradient: gradient of any magnitude.
        p: the logarithm is used for gradients down to e⁻ᵖ.

    Andrychowicz et al.: Learning to learn by gradient descent by gradient descent, 2016, appendix.
    """
    size = jnp.abs(gradient)
    large = size >= math.exp(-p)
    # The branch not taken has to be finite too, or its derivative is not.
    logarithm = jnp.log(jnp.where(large, size, 1.0)) / p
    return jnp.stack(
        [
            jnp.where(large, logarithm, -1.0),
            jnp.where(large, jnp.sign(gradient), math.exp(p) * gradient),
        ]
    )


def momenta(remembered: Iterable[Tensor], gradient: Tensor) -> tuple[Tensor, ...]:
    """Return m ← β m + (1 − β) g for each β of `DECAYS`."""
    pairs = zip(DECAYS, remembered, strict=True)
    return tuple(decay * mean + (1 - decay) * gradient for decay, mean in pairs)


def second_moment(remembered: Tensor, gradient: Tensor) -> Tensor:
    """Return v ← β v + (1 − β) g², where β is `VARIANCE_DECAY`."""
    return VARIANCE_DECAY * remembered + (1 - VARIANCE_DECAY) * jnp.square(gradient)


def bias_corrected(mean: Array, decay: float | Array, step: Int[Array, ""]) -> Array:
    """Return a running mean without its bias towards the initial 0: m / (1 − βᵗ), t ≥ 1."""
    return mean / (1 - jnp.asarray(decay, mean.dtype) ** step.astype(mean.dtype))


def step_waves(step: Int[Array, ""], dtype: DTypeLike = jnp.float32) -> Float[Array, " periods"]:
    """Return tanh(t / s − 1) for s = 1, 3, 10, …, 10⁵: the progress of training at any horizon.

    The encoding of the step in Metz et al.: Understanding and correcting pathologies in the
    training of learned optimizers, 2019.
    """
    scales = jnp.asarray([1, 3, 10, 30, 100, 300, 1e3, 3e3, 1e4, 3e4, 1e5], dtype)
    return jnp.tanh(step.astype(dtype) / scales - 1)


def loss_trend(
    remembered: Float[Array, " decays"], loss: Float[Array, ""], step: Int[Array, ""]
) -> tuple[Float[Array, " decays"], Float[Array, " trends"]]:
    """Return the running means of asinh(loss) and their differences, the trend of the loss.

    Args:
        remembered: the running means, one per entry of `DECAYS`; 0 at the start.
        loss: the loss of this step, of any magnitude and sign.
        step: number of this step, from 1.

    Returns:
        The new means, and the trends in [−1, 1]: tanh of the value minus the fastest mean, and of
        each mean minus the next slower one. A non-finite loss changes no mean and has no trend.
    """
    value, finite = loss.astype(remembered.dtype), jnp.isfinite(loss)
    value = jnp.arcsinh(jnp.where(finite, value, 0))
    decays = jnp.asarray(DECAYS, remembered.dtype)
    means = jnp.where(finite, decays * remembered + (1 - decays) * value, remembered)
    ladder = jnp.concatenate([value[None], bias_corrected(means, decays, step)])
    return means, jnp.where(finite, jnp.tanh(ladder[:-1] - ladder[1:]), 0)


def tensor_statistics(
    params: Tensor, gradient: Tensor, momentum: Sequence[Tensor]
) -> Float[Array, " statistics"]:
    """Return statistics of a complete tensor, each roughly in [−1, 1] or a few times that.

    The logarithms of the root mean squares of parameters, gradient and slowest momentum, and of the
    number of coordinates, all / 10; and the cosines between gradient and each momentum.
    """

    def size(values: Tensor) -> Array:
        return 0.5 * jnp.log(jnp.square(values).mean() + SMALL) / 10

    def cosine(mean: Tensor) -> Array:
        # Their product has to be finite too.
        ours, theirs = (jnp.minimum(jnp.square(x).sum(), 1e19) for x in (gradient, mean))
        return jnp.clip((mean * gradient).sum() / jnp.sqrt(ours * theirs + SMALL), -1, 1)

    count = jnp.asarray(math.log(gradient.size) / 10, gradient.dtype)
    sizes = [size(params), size(gradient), size(momentum[-1]), count]
    return jnp.stack([*sizes, *map(cosine, momentum)])
