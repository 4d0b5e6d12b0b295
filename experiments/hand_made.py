"""Optimizers made by hand, from optax, each tuned as a learned one is chosen: on validation."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax
from ml_collections.config_dict import FrozenConfigDict

from experiments.optimizees import Setting, validation_score

HAND_MADE: Mapping[str, Callable[[Any], optax.GradientTransformation]] = {
    "sgd": optax.sgd,
    "nesterov": lambda rate: optax.sgd(rate, momentum=0.9, nesterov=True),
    "rmsprop": optax.rmsprop,
    "adam": optax.adam,
    "adamw": optax.adamw,
}
"""Rate or schedule -> optimizer, by the name of the method."""

SCHEDULES = ("constant", "cosine")
"""The rate, or the rate times (1 + cos(π t / horizon)) / 2 at step t."""


class Choice(NamedTuple):
    """A rate, a name of `SCHEDULES`, and the mean log10 of the loss that they came to."""

    learning_rate: float
    schedule: str
    score: float


def scheduled(method: str, horizon: int) -> Callable[[Any], optax.GradientTransformation]:
    """Build: (rate, share of the cosine in it, 0 or 1) -> the optimizer of a method."""

    def optimizer(made_of: tuple[Any, Any]) -> optax.GradientTransformation:
        rate, falls = made_of

        def schedule(step):
            return rate * (1 - falls / 2 * (1 - jnp.cos(jnp.pi * step / horizon)))

        return HAND_MADE[method](schedule)

    return optimizer


def tuned(cell: FrozenConfigDict, setting: Setting, method: str) -> Choice:
    """Return the rate and the schedule with the least mean log10 loss on validation problems.

    Args:
        cell: reads `learning_rates`, and what `validation_score` reads.
        setting: what is minimised.
        method: a name of `HAND_MADE`.
    """
    score_of = validation_score(cell, setting, scheduled(method, setting.horizon))
    tried = [
        Choice(rate, schedule, score_of(made_of(rate, schedule)))
        for schedule in SCHEDULES
        for rate in cell.learning_rates
    ]
    return min(tried, key=lambda choice: choice.score)


def made_of(rate: float, schedule: str) -> tuple[np.floating, np.floating]:
    """Return what `scheduled` takes as numbers of a dtype, so that one program serves all rates."""
    return np.float32(rate), np.float32(schedule == "cosine")
