"""Adaptation to held-out domains, scored on the same saved episodes for every learner."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, ArrayLike, Key

from metaguide.data.episodes import check_draws, episode_key
from metaguide.parallel import local_mesh, side_by_side, split_tasks, to_local
from metaguide.training.program import Program
from metaguide.types import Learner, Params, SampleFn, TaskDistribution

ADAPTATION = 2**31 - 1
"""Folded into an episode's key for what a learner draws: no part of it that a sampler takes."""


class Evaluator(NamedTuple):
    """The adaptation of several learners to the domains of one distribution, as one program.

    Attributes:
        compile: (meta, data) -> None; compiles ahead of the first run, in any thread.
        run: (meta, data, domain, shots, keys [episodes], learning rates keyed by adaptation) ->
            the outputs of the problem's `score`, keyed by adaptation, each numpy [observations,
            episodes, queries]; observations are before the first step and after each one.
    """

    compile: Callable[[Any, Any], None]
    run: Callable[..., dict[Any, dict[str, np.ndarray]]]


def episode_keys(seed: int, split: str, episodes: int) -> Key[Array, " episodes"]:
    """Return the keys of the first `episodes` episodes of a split: (seed, split, index) each."""
    return jax.vmap(lambda index: episode_key(seed, split, index))(jnp.arange(episodes))


def evaluator(
    distribution: TaskDistribution,
    learners_of: Mapping[Any, Callable[[Array], Learner]],
    chunk: int,
    mesh: Mesh | None = None,
) -> Evaluator:
    """Build the joint evaluation of several learners on one distribution.

    Domain, shots, learning rates and meta-parameters are arguments, so one program serves every
    method that adapts like one of these learners, from any parameters. Shared work, such as
    encoding the episode, is computed once for all learners.

    Args:
        distribution: the source of episodes.
        learners_of: rate -> learner, keyed by adaptation (keys of one sortable type); the rate is
            the tuned value.
        chunk: number of episodes that adapt in parallel in the program, which bounds memory;
            rounded up to a multiple of the devices.
        mesh: mesh whose devices share the episodes of a chunk; those of this process by default,
            so each of several processes computes all of it.

    Returns:
        The evaluation.
    """
    mesh = local_mesh() if mesh is None else mesh
    chunk = -(-chunk // mesh.size) * mesh.size

    def adapt_and_score(
        meta: Params,
        data: Any,
        domain: ArrayLike,
        shots: ArrayLike,
        keys: Key[Array, " episodes"],
        rates: Mapping[Any, Array],
    ) -> dict[Any, Mapping[str, Array]]:
        learners = {
            adaptation: learner_of(rates[adaptation])
            for adaptation, learner_of in learners_of.items()
        }

        def one(key: Key[Array, ""]) -> dict[Any, Mapping[str, Array]]:
            episode = distribution.sample(data, domain, shots, key)
            own_key = jax.random.fold_in(key, ADAPTATION)

            def outcome(learner: Learner) -> Mapping[str, Array]:
                def observe(adapted: Any) -> Mapping[str, Array]:
                    outputs = learner.predict(adapted, episode.query, episode.context)
                    return distribution.problem.score(outputs, episode.query, episode.context)

                support, context = episode.support, episode.context
                _, seen = learner.adapt(meta, support, context, own_key, observe)
                if seen is None:
                    raise ValueError(
                        "a learner's adapt returned no observations; call observe before the "
                        "first step and after each, and return what it gives, stacked"
                    )
                return seen

            return {adaptation: outcome(learner) for adaptation, learner in learners.items()}

        return jax.vmap(one, out_axes=1)(split_tasks(keys, mesh))

    program, known = Program(adapt_and_score), set[Any]()

    def arguments(
        meta: Params,
        data: Any,
        domain: int,
        shots: int,
        keys: Key[Array, " episodes"],
        rates: Mapping[Any, float],
    ) -> tuple[Any, ...]:
        numbers = jnp.asarray(domain, jnp.int32), jnp.asarray(shots, jnp.int32)
        given = {
            adaptation: jnp.asarray(rates[adaptation], jnp.float32) for adaptation in learners_of
        }
        return meta, data, *numbers, keys, given

    def compile(meta: Any, data: Any) -> None:
        keys = episode_keys(0, "test", chunk)
        meta, data = to_local((meta, data))
        program.compile(*arguments(meta, data, 0, 0, keys, dict.fromkeys(learners_of, 0.0)))

    def run(
        meta: Any,
        data: Any,
        domain: int,
        shots: int,
        keys: Key[Array, " episodes"],
        rates: Mapping[Any, float],
    ) -> dict[Any, dict[str, np.ndarray]]:
        asked = domain, shots, tuple(map(jnp.shape, jax.tree.leaves(data)))
        if asked not in known:
            check_draws(distribution, data, domain, shots)
            known.add(asked)
        meta, data = to_local((meta, data))

        def of_chunk(first: int) -> dict[Any, dict[str, np.ndarray]]:
            # Fill up the last chunk, so that every call has the compiled shape.
            index = np.minimum(np.arange(first, first + chunk), len(keys) - 1)
            given = arguments(meta, data, domain, shots, keys[index], rates)
            return jax.device_get(program(*given))

        parts = side_by_side(of_chunk, range(0, len(keys), chunk), mesh)
        joined = jax.tree.map(lambda *leaves: np.concatenate(leaves, axis=1), *parts)
        return jax.tree.map(lambda leaf: leaf[:, : len(keys)], joined)

    return Evaluator(compile, run)


def drawn(
    distribution: TaskDistribution,
    data: Any,
    domain: int,
    shots: int,
    keys: Key[Array, " episodes"],
) -> dict[str, dict[str, np.ndarray]]:
    """Return the examples that make up the episodes, for baselines that are not compiled.

    Args:
        distribution: the source of episodes.
        data: its data.
        domain: index of the domain.
        shots: number of shots.
        keys: keys of the episodes.

    Returns:
        {"support", "query", "context"}: the small integer and bool fields of the episodes, with
        a leading axis of episodes; token rows, pictures and catalogues are left out.

    Raises:
        EpisodeError: there is no such domain, or the sampler draws fewer shots.
    """
    check_draws(distribution, data, domain, shots)
    numbers = jnp.asarray(domain, jnp.int32), jnp.asarray(shots, jnp.int32)
    return jax.device_get(_small_fields(distribution.sample, to_local(data), *numbers, keys))


@partial(jax.jit, static_argnums=0)
def _small_fields(
    sample: SampleFn,
    data: Any,
    domain: ArrayLike,
    shots: ArrayLike,
    keys: Key[Array, " episodes"],
) -> dict[str, dict[str, Array]]:
    """Draw the episodes; compiled once per distribution, as domain and shots are arguments."""
    fields = ("id", "label", "class", "mask", "item", "history", "history_mask")

    def one(key: Key[Array, ""]) -> dict[str, dict[str, Array]]:
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
