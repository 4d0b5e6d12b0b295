"""Hand-made optimizers from optax, tuned on validation just as learned ones are chosen."""

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
"""(rate or schedule) -> optimizer, keyed by method."""

SCHEDULES = ("constant", "cosine")
"""Constant rate, or at step t the rate times (1 + cos(π t / horizon)) / 2."""


class Choice(NamedTuple):
    """A rate, a name in `SCHEDULES`, and the mean log10 loss that they reached."""

    learning_rate: float
    schedule: str
    score: float


def scheduled(method: str, horizon: int) -> Callable[[Any], optax.GradientTransformation]:
    """Build a function: (rate, share of the cosine, 0 or 1) -> the optimizer of a method."""

    def optimizer(made_of: tuple[Any, Any]) -> optax.GradientTransformation:
        rate, falls = made_of

        def schedule(step):
            return rate * (1 - falls / 2 * (1 - jnp.cos(jnp.pi * step / horizon)))

        return HAND_MADE[method](schedule)

    return optimizer


def tuned(cell: FrozenConfigDict, setting: Setting, method: str) -> Choice:
    """Return the rate and the schedule with the lowest mean log10 loss on validation problems.

    Args:
        cell: config whose `learning_rates` is read, and what `validation_score` reads.
        setting: what is minimised.
        method: a name in `HAND_MADE`.
    """
    score_of = validation_score(cell, setting, scheduled(method, setting.horizon))
    tried = [
        Choice(rate, schedule, score_of(made_of(rate, schedule)))
        for schedule in SCHEDULES
        for rate in cell.learning_rates
    ]
    return min(tried, key=lambda choice: choice.score)


def made_of(rate: float, schedule: str) -> tuple[np.floating, np.floating]:
    """Return the argument of `scheduled` with fixed dtypes, so one program serves all rates."""
    return np.float32(rate), np.float32(schedule == "cosine")
