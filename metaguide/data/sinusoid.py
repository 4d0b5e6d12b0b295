"""Sine waves as regression tasks: y = A sin(x − φ), each task with its amplitude and phase."""

import jax
import jax.numpy as jnp
import numpy as np

from metaguide.types import Episode


def waves(
    amplitude: tuple[float, float] = (0.1, 5.0), phase: tuple[float, float] = (0.0, np.pi)
) -> dict[str, np.ndarray]:
    """Return the table of one domain of waves, the ranges that tasks are drawn from uniformly.

    Args:
        amplitude: lowest and highest A.
        phase: lowest and highest φ, radians.

    Returns:
        float32 [1, 2] each: a domain, from and to.

    Finn et al.: Model-Agnostic Meta-Learning, 2017, section 5.1.
    """
    return {
        "amplitude": np.asarray([amplitude], np.float32),
        "phase": np.asarray([phase], np.float32),
    }


def wave_sampler(shots: int, queries: int, reach: float = 5.0):
    """Return a sampler of waves seen at points x ∈ [−reach, reach].

    Args:
        shots: points of the support.
        queries: points of the query.
        reach: of x.

    Returns:
        (table, domain, shots, key) -> Episode, whose batches hold `x` and `y` (float32 [points,
        1]), `mask` and `id` (the number of the point). The first points of a support are those of
        a support of fewer shots.
    """

    def sample(table, domain, shots_now, key) -> Episode:
        keys = jax.random.split(key, 4)

        def uniform(key, low, high, *shape):
            return jax.random.uniform(key, shape, jnp.float32, low, high)

        amplitude = uniform(keys[0], *table["amplitude"][domain])
        phase = uniform(keys[1], *table["phase"][domain])

        def points(key, count: int, known):
            x = uniform(key, -reach, reach, count, 1)
            number = jnp.arange(count, dtype=jnp.int32)
            y = amplitude * jnp.sin(x - phase)
            return {"x": x, "y": y, "mask": number < known, "id": number}

        return Episode(points(keys[2], shots, shots_now), points(keys[3], queries, queries))

    return sample
