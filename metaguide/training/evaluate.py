"""Adaptation to held-out domains, judged on the same saved episodes for every learner."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from metaguide.data.episodes import episode_key
from metaguide.types import Episode, Family, Learner

Evaluate = Callable[..., dict[str, dict[str, np.ndarray]]]


def episode_keys(seed: int, split: str, episodes: int) -> Key[Array, " episodes"]:
    """Return the keys of the first `episodes` episodes of a split: (seed, split, index) each."""
    return jax.vmap(lambda index: episode_key(seed, split, index))(jnp.arange(episodes))


def evaluator(
    family: Family, learners_of: Mapping[str, Callable[[Array], Learner]], chunk: int
) -> Evaluate:
    """Compile the adaptation of several learners to the domains of one family, side by side.

    Domain, shots, rates and meta-parameters are arguments, so that one program serves all arms
    that adapt in these ways, from whatever parameters. What the learners have in common, such as
    encoding the episode, is computed once for all of them.

    Args:
        family: where episodes come from.
        learners_of: by way of adapting, rate -> learner, the rate being what is tuned.
        chunk: episodes that adapt side by side, which bounds memory.

    Returns:
        (meta, data, domain, shots, keys [episodes], rates by way) -> by way, what the problem's
        `judge` returns, each numpy [observations, episodes, queries]; the observations are before
        the first step and after each one.
    """

    @jax.jit
    def adapt_and_judge(meta, data, domain, shots, keys, rates):
        learners = {way: learner_of(rates[way]) for way, learner_of in learners_of.items()}

        def one(key):
            episode = family.sample(data, domain, shots, key)

            def outcome(learner: Learner):
                def observe(adapted):
                    outputs = learner.predict(adapted, episode.query, episode.context)
                    return family.problem.judge(outputs, episode.query, episode.context)

                return learner.adapt(meta, episode.support, episode.context, key, observe)[1]

            return {way: outcome(learner) for way, learner in learners.items()}

        return jax.vmap(one, out_axes=1)(keys)

    def evaluate(
        meta: Any,
        data: Any,
        domain: int,
        shots: int,
        keys: Key[Array, " episodes"],
        rates: Mapping[str, float],
    ) -> dict[str, dict[str, np.ndarray]]:
        numbers = jnp.asarray(domain, jnp.int32), jnp.asarray(shots, jnp.int32)
        given = {way: jnp.asarray(rates[way], jnp.float32) for way in learners_of}
        parts = []
        for first in range(0, len(keys), chunk):
            # The last chunk is filled up, so that every call has the shape that was compiled.
            index = jnp.minimum(jnp.arange(first, first + chunk), len(keys) - 1)
            parts.append(jax.device_get(adapt_and_judge(meta, data, *numbers, keys[index], given)))
        joined = jax.tree.map(lambda *leaves: np.concatenate(leaves, axis=1), *parts)
        return jax.tree.map(lambda leaf: leaf[:, : len(keys)], joined)

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
    numbers = jnp.asarray(domain, jnp.int32), jnp.asarray(shots, jnp.int32)
    return jax.device_get(_small_fields(family.sample, data, *numbers, keys))


@partial(jax.jit, static_argnums=0)
def _small_fields(sample: Callable[..., Episode], data: Any, domain, shots, keys):
    """Draw the episodes; compiled once a family, since domain and shots are arguments."""
    fields = ("id", "label", "class", "mask", "item", "history", "history_mask")

    def one(key):
        episode = sample(data, domain, shots, key)
        return {
            "support": {name: episode.support[name] for name in fields if name in episode.support},
            "query": {name: episode.query[name] for name in fields if name in episode.query},
            "context": {
                name: episode.context[name]
                for name in ("classes", "unseen")
                if name in episode.context
            },
        }

    return jax.vmap(one)(keys)
