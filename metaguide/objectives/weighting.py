"""Weighted sums of the losses of several tasks."""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from metaguide.types import Params


class Weighting(NamedTuple):
    """A function that combines losses.

    Attributes:
        init: () -> params of the weighting, `{}` if nothing is learned.
        combine: (params, losses keyed by name) -> scalar; a ValueError lists names that differ
            from those it was built with.
    """

    init: Callable[[], Params]
    combine: Callable[[Params, Mapping[str, Array]], Array]


def fixed(weights: Mapping[str, float]) -> Weighting:
    """Return the weighting J = Σ λ_t J_t with given λ.

    Args:
        weights: λ keyed by name.

    Raises:
        ValueError: no weights.
    """
    weights = dict(weights)
    _some(weights)

    def combine(params: Params, losses: Mapping[str, Array]) -> Array:
        del params
        _same_names(weights, losses)
        return jnp.stack([weights[name] * losses[name] for name in weights]).sum()

    return Weighting(init=dict, combine=combine)


def uncertainty(names: Iterable[str]) -> Weighting:
    """Return J = Σ exp(−s_t) J_t + s_t with learned log variances s_t (Kendall et al. 2018).

    The s_t start at 0, where J is the plain sum. The optimum is s_t = log J_t, where each
    task is scaled to 1; a loss that reaches 0 would drive its s_t to −∞.

    Args:
        names: names of the tasks.

    Raises:
        ValueError: no names.
    """
    names = tuple(names)
    _some(names)

    def init() -> Params:
        return {name: jnp.zeros(()) for name in names}

    def combine(params: Params, losses: Mapping[str, Array]) -> Array:
        _same_names(names, losses)
        terms = [jnp.exp(-params[name]) * losses[name] + params[name] for name in names]
        return jnp.stack(terms).sum()

    return Weighting(init, combine)


def _some(names: Iterable[str]) -> None:
    if not list(names):
        raise ValueError("no losses to weigh: name at least one")


def _same_names(names: Iterable[str], losses: Mapping[str, Array]) -> None:
    missing, unknown = sorted(set(names) - set(losses)), sorted(set(losses) - set(names))
    if missing or unknown:
        raise ValueError(f"weighting and losses disagree: no loss {missing}, no weight {unknown}")
