"""Sine waves as regression tasks: y = A sin(x − φ), with an amplitude and a phase per task."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Key

from metaguide.data.episodes import check_draw
from metaguide.types import Episode, SampleFn


def waves(
    amplitude: tuple[float, float] = (0.1, 5.0), phase: tuple[float, float] = (0.0, np.pi)
) -> dict[str, np.ndarray]:
    """Return the table of one domain of waves: the ranges of the tasks' uniform distribution.

    Args:
        amplitude: lowest and highest A.
        phase: lowest and highest φ, in radians.

    Returns:
        {"amplitude", "phase"}: float32 [1, 2] each, one domain's lowest and highest values.

    Finn et al.: Model-Agnostic Meta-Learning, 2017, section 5.1.
    """
    return {
        "amplitude": np.asarray([amplitude], np.float32),
        "phase": np.asarray([phase], np.float32),
    }


def wave_sampler(shots: int, queries: int, reach: float = 5.0) -> SampleFn:
    """Return a sampler of waves seen at points x ∈ [−reach, reach].

    Args:
        shots: number of points in the support.
        queries: number of points in the query.
        reach: largest |x|.

    Returns:
        (table, domain, shots, key) -> Episode, whose batches hold `x` and `y` (float32 [points,
        1]), `mask` and `id` (the number of the point). Supports of different shots are nested. The
        sampler raises the errors of `check_draw`.
    """

    def sample(
        table: Mapping[str, Any], domain: ArrayLike, shots_now: ArrayLike, key: Key[Array, ""]
    ) -> Episode:
        check_draw(domain, shots_now, len(table["amplitude"]), shots)
        # A single draw: several would take longer than the inner step that they serve.
        share = jax.random.uniform(key, (2 + shots + queries, 1))
        of_domain = [jnp.asarray(table[name])[domain] for name in ("amplitude", "phase")]
        ranges = jnp.stack(of_domain)
        amplitude, phase = ranges[:, :1] + share[:2] * (ranges[:, 1:] - ranges[:, :1])

        def points(share: Float[Array, "points 1"], known: ArrayLike) -> dict[str, Array]:
            x = reach * (2.0 * share - 1.0)
            number = jnp.arange(len(share), dtype=jnp.int32)
            y = amplitude * jnp.sin(x - phase)
            return {"x": x, "y": y, "mask": number < known, "id": number}

        support, query = share[2 : 2 + shots], share[2 + shots :]
        return Episode(points(support, shots_now), points(query, queries))

    return sample
