"""MAML with a learned inner rule, or a learned rule from a given initialisation."""

from collections.abc import Callable
from typing import Any

import jax
import optax
from jaxtyping import Array, Key

from metaguide.inner_loop import FirstOrder, Mode
from metaguide.learners.gradient_based import (
    adapting,
    check_differentiates_steps,
    completed,
    descend,
    head_loss,
    support_loss,
)
from metaguide.types import Batch, Learner, Observe, Params, Problem


def learned(
    problem: Problem,
    init_rule: Callable[..., Any],
    rule: Callable[[Any], optax.GradientTransformation],
    steps: int,
    mode: Mode = FirstOrder(),
    hold_start: bool = False,
    head_only: bool = False,
) -> Learner:
    """Learn an initialisation and the rule that adapts it: θ_{t+1} = θ_t + u(∇L(θ_t); ω).

    The inner loop is that of `maml`, with the transform of a learned optimizer in it. Under
    `FirstOrder` the gradient that the rule reads is a constant, as in its paper; the rule itself
    and its dependence on the initialisation are differentiated.

    Args:
        problem: the model and its loss.
        init_rule: key -> ω, such as `lstm().init`.
        rule: ω -> an optax transform, such as `lstm().transform`.
        steps: number of inner steps.
        mode: `FirstOrder`, `Unrolled` or `Mixed`.
        hold_start: learn only the rule and keep the initialisation fixed.
        head_only: freeze the body and adapt only `problem.head`, as `anil` does.

    Returns:
        A learner whose meta-parameters are {"params": φ, "rule": ω}.

    Raises:
        ValueError: the mode is `Implicit`, which gives the rule no gradient.

    Ravi, Larochelle: Optimization as a Model for Few-Shot Learning, 2017.

    >>> from metaguide.optimizers import lstm
    >>> rule = lstm(hidden=4)
    >>> learner = learned(problem, rule.init, rule.transform, steps=1)
    >>> sorted(learner.init(key))
    ['params', 'rule']
    """
    check_differentiates_steps(mode, "rule")

    def init(key: Key[Array, ""]) -> Params:
        key, rule_key = jax.random.split(key)
        return {"params": problem.init(key), "rule": init_rule(rule_key)}

    def adapt(
        meta: Params,
        support: Batch,
        context: Any,
        key: Key[Array, ""] | None,
        observe: Observe | None = None,
    ) -> tuple[Params, Any]:
        del key
        params = jax.lax.stop_gradient(meta["params"]) if hold_start else meta["params"]
        inner = rule(meta["rule"])
        if head_only:
            loss, groups = head_loss(problem, params, support, context), problem.head
        else:
            loss, groups = support_loss(problem, params, context), adapting(problem)
        return descend(loss, inner, mode, params, groups, support, steps, observe)

    return completed(problem, adapt, init)
