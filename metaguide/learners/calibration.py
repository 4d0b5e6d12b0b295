"""How sure a classifier should be: the factor of its logits, from examples that it did not see."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

SCALES = np.exp(np.linspace(-4, 4, 33))
"""The factors that are tried."""

LEAST = -5.0
"""The least log-probability that an example counts with, so that one confident mistake does not
decide everything."""

TYPICAL, SPREAD = 4.0, 1.0
"""The prior of a factor: its median, and the standard deviation of its logarithm, which is normal.

Ten examples that are all right would otherwise ask for the largest factor there is.
"""


def log_probabilities(
    logits: Float[Array, "examples way"], label: Int[Array, " examples"]
) -> Float[Array, "scales examples"]:
    """Return max(log softmax(s z_i)_{y_i}, `LEAST`) for each s in `SCALES`.

    Args:
        logits: z.
        label: y; the class of each example, in [0, way).
    """
    scaled = logits * jnp.asarray(SCALES, logits.dtype)[:, None, None]
    each = jax.nn.log_softmax(scaled)
    index = jnp.broadcast_to(label.astype(jnp.int32)[None, :, None], (*each.shape[:2], 1))
    return jnp.maximum(jnp.take_along_axis(each, index, axis=2)[..., 0], LEAST)


def scale_of(
    logits: Float[Array, "examples way"],
    label: Int[Array, " examples"],
    counts: Bool[Array, " examples"],
) -> Float[Array, ""]:
    """Return the most probable s in `SCALES`, given examples; 1 if none counts.

    It has the largest Σ_i log p_i(s) − (log s − μ)² / 2σ², where log p_i(s) is that of
    `log_probabilities`, μ the logarithm of `TYPICAL`, and σ is `SPREAD`.

    Args:
        logits: what the classifier says of each example without having seen its label.
        label: class of each example.
        counts: which examples count.

    Guo et al.: On Calibration of Modern Neural Networks, 2017.
    """
    scales = jnp.asarray(SCALES, logits.dtype)
    prior = -jnp.square(jnp.log(scales / TYPICAL) / SPREAD) / 2
    likelihood = jnp.where(counts, log_probabilities(logits, label), 0).sum(1)
    return jnp.where(counts.any(), scales[(likelihood + prior).argmax()], 1)
