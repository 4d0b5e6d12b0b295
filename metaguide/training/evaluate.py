"""Adaptation to held-out domains, judged on the same saved episodes for every learner."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from metaguide.data.episodes import episode_key
from metaguide.types import Family, Learner

Evaluate = Callable[..., dict[str, np.ndarray]]


def episode_keys(seed: int, split: str, episodes: int) -> Key[Array, " episodes"]:
    """Return the keys of the first `episodes` episodes of a split: (seed, split, index) each."""
    return jax.vmap(lambda index: episode_key(seed, split, index))(jnp.arange(episodes))


def evaluator(family: Family, learner_of: Callable[[Array], Learner], chunk: int) -> Evaluate:
    """Compile the adaptation of one learner to the domains of one family.

    Domain, shots, rate and meta-parameters are arguments, so that one program serves all of them:
    every arm that adapts in the same way, from whatever parameters.

    Args:
        family: where episodes come from.
        learner_of: rate -> learner, the rate being what is tuned on validation domains.
        chunk: episodes that adapt side by side, which bounds memory.

    Returns:
        (meta, data, domain, shots, keys [episodes], rate) -> what the problem's `judge` returns,
        each numpy [observations, episodes, queries]; the observations are before the first step
        and after each one.
    """

    @jax.jit
    def adapt_and_judge(meta, data, domain, shots, keys, rate):
        learner = learner_of(rate)

        def one(key):
            episode = family.sample(data, domain, shots, key)

            def observe(adapted):
                outputs = learner.predict(adapted, episode.query, episode.context)
                return family.problem.judge(outputs, episode.query, episode.context)

            _, seen = learner.adapt(meta, episode.support, episode.context, key, observe)
            return seen

        return jax.vmap(one, out_axes=1)(keys)

    def evaluate(
        meta: Any,
        data: Any,
        domain: int,
        shots: int,
        keys: Key[Array, " episodes"],
        rate: float,
    ) -> dict[str, np.ndarray]:
        numbers = jnp.asarray(domain, jnp.int32), jnp.asarray(shots, jnp.int32)
        parts = []
        for first in range(0, len(keys), chunk):
            # The last chunk is filled up, so that every call has the shape that was compiled.
            index = jnp.minimum(jnp.arange(first, first + chunk), len(keys) - 1)
            part = adapt_and_judge(
                meta, data, *numbers, keys[index], jnp.asarray(rate, jnp.float32)
            )
            parts.append(jax.device_get(part))
        joined = {name: np.concatenate([part[name] for part in parts], axis=1) for name in parts[0]}
        return {name: leaf[:, : len(keys)] for name, leaf in joined.items()}

    return evaluate


def drawn(
    family: Family, data: Any, domain: int, shots: int, keys: Key[Array, " episodes"]
) -> dict[str, dict[str, np.ndarray]]:
    """Return which examples the episodes consist of, for floors that are not compiled.

    Args:
        family: where episodes come from.
        data: its data.
        domain: number of the domain.
        shots: number of shots.
        keys: of the episodes.

    Returns:
        {"support", "query", "context"}: the small integer and bool fields of the episodes, with
        a leading axis of episodes; token rows, pictures and catalogues are left out.
    """
    fields = ("id", "label", "class", "mask", "item", "history", "history_mask")

    def one(key):
        episode = family.sample(data, domain, shots, key)
        return {
            "support": {name: episode.support[name] for name in fields if name in episode.support},
            "query": {name: episode.query[name] for name in fields if name in episode.query},
            "context": {
                name: leaf for name, leaf in episode.context.items() if name == "classes"
            },
        }

    return jax.device_get(jax.jit(jax.vmap(one))(keys))
