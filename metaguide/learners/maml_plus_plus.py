"""MAML++: multi-step loss, per-layer per-step rates, annealed order, per-step normalisation."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Key

from metaguide import inner_loop
from metaguide.inner_loop import FirstOrder, Mixed, Mode, Unrolled
from metaguide.learners.gradient_based import adapting, completed, learned_rates, whole_loss
from metaguide.types import (
    AdaptFn,
    Batch,
    Episode,
    Learner,
    Metrics,
    ObjectiveFn,
    Observe,
    Params,
    Problem,
    Progress,
)


def is_normalisation(name: str) -> bool:
    """Return whether the parameter with this dotted name is the scale or bias of a norm."""
    return "norm" in name.lower()


def maml_plus_plus(
    problem: Problem,
    learning_rate: float | Array,
    steps: int,
    *,
    multi_step_until: float = 0.1,
    second_order_from: float = 0.5,
    per_step: Callable[[str], bool] = is_normalisation,
    mode: Unrolled | Mixed = Unrolled(),
) -> Learner:
    """Learn an initialisation and the details of its inner loop at each step.

    min Σ_t w_t L_query(θ_t), θ_{t+1} = θ_t − α_t ∇L_support(θ_t; γ_t), with a rate α_t for each
    layer and step. Each step also has its own scale and bias γ_t of the norms, which stay fixed
    inside the loop; the query after a step is evaluated with that step's values. The weights w_t
    are those of `step_weights` until `multi_step_until`; after that only the last step counts. The
    gradient is first-order until `second_order_from`.

    The problem determines the statistics of a norm. The paper keeps running statistics per step;
    its code takes those of the current batch, as a transductive problem does.

    Args:
        problem: the model and its loss.
        learning_rate: initial learning rate of all parameters.
        steps: number of inner steps, at least 1.
        multi_step_until: share of training with the multi-step loss; 0 to never use it.
        second_order_from: share of training with first-order gradients; 0 to never use them.
        per_step: dotted name of a parameter -> whether it has its own value at each step.
        mode: how the meta-gradient passes through the inner loop once it is second-order.

    Returns:
        A learner whose meta-parameters are {"params": φ, "rule": {"rates": [steps] for each leaf,
        "per_step": [steps, ...] keyed by name}}. For parameters in `per_step`, the entries of φ and
        of the rates are not read.

    Raises:
        ValueError: fewer than one step.

    Antoniou, Edwards, Storkey: How to train your MAML, 2019.

    >>> learner = maml_plus_plus(problem, 0.01, steps=2)
    >>> meta = learner.init(key)
    >>> meta["rule"]["rates"]["head"]["bias"].shape  # a rate for each step
    (2,)
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}: MAML++ learns a rate for each of 1 or more steps")

    def init(key: Key[Array, ""]) -> Params:
        params = problem.init(key)
        moving = {name: params[name] for name in adapting(problem)}
        rates = jax.tree.map(lambda leaf: jnp.full((steps,), learning_rate, leaf.dtype), moving)
        leaves, _ = jax.tree.flatten_with_path(moving)
        own = {
            _name(path): jnp.repeat(leaf[None], steps, axis=0)
            for path, leaf in leaves
            if per_step(_name(path))
        }
        return {"params": params, "rule": {"rates": rates, "per_step": own}}

    def adapts(order: Mode) -> AdaptFn:
        def adapt(
            meta: Params,
            support: Batch,
            context: Any,
            key: Key[Array, ""] | None,
            observe: Observe | None = None,
        ) -> tuple[Params, Any]:
            del key
            params, rule = meta["params"], meta["rule"]

            def at(groups: Params, step: ArrayLike) -> Params:
                """Return the full set of parameters, with the step's own values."""
                return jax.tree.map_with_path(
                    lambda path, leaf: (
                        rule["per_step"][_name(path)][step]
                        if _name(path) in rule["per_step"]
                        else leaf
                    ),
                    {**params, **groups},
                )

            def after(groups: Params, taken: ArrayLike) -> Params:
                return at(groups, jnp.maximum(taken - 1, 0))

            adapted, seen = inner_loop.adapt(
                lambda groups, now: whole_loss(problem, at(groups, now), support, context, None),
                learned_rates(lambda now: jax.tree.map(lambda leaf: leaf[now], rule["rates"])),
                order,
                {name: params[name] for name in adapting(problem)},
                lambda step: step,
                steps,
                None if observe is None else lambda carry: observe(after(carry.params, carry.step)),
            )
            return after(adapted, steps), seen

        return adapt

    def objective_of(order: Mode, multi_step: bool) -> ObjectiveFn:
        learner = completed(problem, adapts(order), init)

        def objective(
            meta: Params, episode: Episode, key: Key[Array, ""] | None, progress: Progress
        ) -> tuple[Array, Metrics]:
            _, (losses, metrics) = learner.adapt(
                meta,
                episode.support,
                episode.context,
                key,
                lambda adapted: learner.loss(adapted, episode.query, episode.context),
            )
            weights = step_weights(steps, progress / multi_step_until)
            last = jax.tree.map(lambda leaf: leaf[-1], metrics)
            return (weights.astype(losses.dtype) * losses[1:]).sum(), last

        return objective if multi_step else learner.objective

    def by_order(multi_step: bool) -> ObjectiveFn:
        first, second = (objective_of(order, multi_step) for order in (FirstOrder(), mode))
        return _until(second_order_from, first, second)

    learner = completed(problem, adapts(mode), init)
    objective = _until(multi_step_until, by_order(True), by_order(False))
    return learner._replace(objective=objective)


def step_weights(steps: int, progress: Progress) -> Float[Array, " steps"]:
    """Return the weights of the query losses after each inner step, annealed to the last step.

    w_t = max(1 − progress, .03) / steps for all but the last, which takes the remainder to 1.

    Args:
        steps: number of inner steps.
        progress: progress of the annealing, in [0, 1].
    """
    early = jnp.maximum(1.0 - progress, 0.03) / steps
    return jnp.full((steps,), early).at[-1].set(1.0 - (steps - 1) * early)


def _until(share: float, before: ObjectiveFn, after: ObjectiveFn) -> ObjectiveFn:
    """Return an objective that is `before` while progress < share, and `after` from then on.

    If `before` is never used, there is no cond. A branch that is not taken is not computed, so
    first-order steps keep their lower cost.
    """
    if share <= 0:
        return after

    def objective(
        meta: Params, episode: Episode, key: Key[Array, ""] | None, progress: Progress
    ) -> tuple[Array, Metrics]:
        return jax.lax.cond(progress < share, before, after, meta, episode, key, progress)

    return objective


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")
