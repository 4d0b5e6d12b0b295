"""Reptile: move the initialisation towards where training on a task leads."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, Key

from metaguide.inner_loop import Carry, FirstOrder, inner_loop, run
from metaguide.learners.gradient_based import adapting, completed, support_loss
from metaguide.types import Batch, Episode, Learner, Metrics, Observe, Params, Problem, Progress


def reptile(
    problem: Problem,
    inner: optax.GradientTransformation,
    steps: int,
    batch: int | None = None,
    test_steps: int | None = None,
    keep_state: bool = False,
) -> Learner:
    """Train on a task's support and take the displacement as the gradient: φ − U(φ).

    An outer step of SGD with rate ε is φ ← φ + ε (U(φ) − φ). Only the inner loss is differentiated;
    the query is used for reporting only.

    Args:
        problem: the model and its loss.
        inner: the update rule of the inner loop; Adam without momentum in the paper.
        steps: number of inner steps in training.
        batch: number of support rows per step, drawn without replacement within an epoch; all rows
            by default.
        test_steps: number of inner steps at adaptation; `steps` by default.
        keep_state: start each task from the state of `inner` after the previous tasks, averaged
            over tasks, as the paper's code does. Like the parameters, the state is meta-learned by
            its displacement, so give this part of the meta-parameters, "rule", to an outer SGD with
            learning rate 1.

    Returns:
        A learner with its own `gradient` and the meta-parameters {"params": φ}, plus "rule" with
        `keep_state` (the state's leaves in the dtype of the parameters).

    Nichol, Achiam, Schulman: On First-Order Meta-Learning Algorithms, 2018.

    >>> learner = reptile(problem, optax.sgd(0.01), steps=3)
    >>> meta = learner.init(key)
    >>> (loss, metrics), gradient = jax.jit(learner.gradient)(meta, sine, key, 0.0)
    >>> sorted(gradient)
    ['params']
    """

    def moving(params: Params) -> Params:
        return {name: params[name] for name in adapting(problem)}

    def init(key: Key[Array, ""]) -> Params:
        params = problem.init(key)
        if not keep_state:
            return {"params": params}
        # A mean over tasks has fractions of a count, and bfloat16 no count above 256.
        with jax.numpy_dtype_promotion("standard"):
            dtype = jnp.result_type(jnp.float32, *jax.tree.leaves(params))
        return {"params": params, "rule": optax.tree.cast(inner.init(moving(params)), dtype)}

    def train(
        meta: Params,
        support: Batch,
        context: Any,
        key: Key[Array, ""] | None,
        count: int,
        observe: Observe | None = None,
    ) -> tuple[Params, Any, Any]:
        params = meta["params"]
        loop = inner_loop(support_loss(problem, params, context), inner, FirstOrder())
        carry = loop.start(moving(params))
        if keep_state:
            kept = jax.tree.map(_like, meta["rule"], carry.optimizer)
            carry = carry._replace(optimizer=kept)

        def merged(carry: Carry) -> Params:
            return {**params, **carry.params}

        carry, seen = run(
            loop,
            carry,
            minibatches(support, batch, key),
            count,
            None if observe is None else lambda carry: observe(merged(carry)),
        )
        return merged(carry), carry.optimizer, seen

    def adapt(
        meta: Params,
        support: Batch,
        context: Any,
        key: Key[Array, ""] | None,
        observe: Observe | None = None,
    ) -> tuple[Params, Any]:
        count = steps if test_steps is None else test_steps
        adapted, _, seen = train(meta, support, context, key, count, observe)
        return adapted, seen

    learner = completed(problem, adapt, init)

    def gradient(
        meta: Params, episode: Episode, key: Key[Array, ""] | None, progress: Progress
    ) -> tuple[tuple[Array, Metrics], Params]:
        del progress
        adapted, state, _ = train(meta, episode.support, episode.context, key, steps)
        now = {"params": adapted} | ({"rule": state} if keep_state else {})
        way_back = jax.tree.map(lambda a, b: a - b.astype(a.dtype), meta, now)
        return learner.loss(adapted, episode.query, episode.context), way_back

    return learner._replace(gradient=gradient)


def minibatches(
    support: Batch, size: int | None, key: Key[Array, ""] | None
) -> Callable[[Int[Array, ""]], Batch]:
    """Return step -> `size` rows of the support, whose rows are reordered every epoch.

    Only rows where `mask` is True are drawn. Batches run across epoch boundaries, and a support
    smaller than a batch is repeated within it.

    Args:
        support: a batch with a `mask`.
        size: number of rows per step; None for the support as it is.
        key: key of the orders; None if `size` is None.

    Raises:
        ValueError: a size is given without a key.
    """
    if size is None:
        return lambda step: support
    if key is None:
        raise ValueError(f"batches of {size} rows are drawn at random: give a key, not None")
    mask = support["mask"]
    count = jnp.maximum(mask.sum(), 1).astype(jnp.int32)

    def row(place: Int[Array, ""]) -> Int[Array, ""]:
        chance = jax.random.uniform(jax.random.fold_in(key, place // count), mask.shape)
        return jnp.argsort(jnp.where(mask, chance, 2.0))[place % count]

    def at(step: Int[Array, ""]) -> Batch:
        rows = jax.vmap(row)(step * size + jnp.arange(size, dtype=jnp.int32))
        return {name: leaf[rows] for name, leaf in support.items()}

    return at


def _like(leaf: Array, like: Array) -> Array:
    """Return a leaf of a meta-learned state as the optimizer has it; counts are rounded."""
    whole = jnp.round(leaf) if jnp.issubdtype(like.dtype, jnp.integer) else leaf
    return whole.astype(like.dtype)
