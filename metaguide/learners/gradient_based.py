"""Learners that adapt by gradient steps on the support: MAML, ANIL, fine-tuning."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from metaguide.inner_loop import FirstOrder, Loss, Mode, Unrolled, inner_loop, run
from metaguide.types import Batch, Episode, Learner, Metrics, Params, Problem


def maml(
    problem: Problem,
    inner: optax.GradientTransformation,
    steps: int,
    mode: Mode = Unrolled(),
) -> Learner:
    """Learn an initialisation from which a few gradient steps solve a new task.

    min_φ Σ_tasks L_query(U(φ)), U being `steps` updates of `inner` on the support's loss. With
    `mode=FirstOrder()` it is first-order MAML. With 0 steps it is training without adaptation.

    Args:
        problem: what is learned.
        inner: the update rule of the inner loop, any optax transform.
        steps: inner steps, in training and at adaptation alike.
        mode: how the meta-gradient passes through the inner loop.

    Returns:
        A learner whose meta-parameters are {"params": φ} and whose `adapted` is a full set of
        parameters.

    Finn, Abbeel, Levine: Model-Agnostic Meta-Learning, 2017.
    """

    def support_loss(params: Params, support: Batch, context):
        return lambda groups, batch: whole_loss(problem, {**params, **groups}, batch, context, None)

    groups = problem.body + problem.head
    return _learner(problem, _adapts(groups, support_loss, inner, steps, mode))


def anil(
    problem: Problem,
    inner: optax.GradientTransformation,
    steps: int,
    mode: Mode = Unrolled(),
) -> Learner:
    """Learn body and head, adapt the head alone: almost no inner loop.

    The support is encoded once and the inner gradient is taken with respect to the head's groups
    only, so that a step costs a head and not a network.

    Args:
        problem: what is learned; `problem.head` names the groups that adapt.
        inner: the update rule of the inner loop.
        steps: inner steps.
        mode: how the meta-gradient passes through the inner loop.

    Returns:
        A learner whose `adapted` is a full set of parameters, the body as it was.

    Raghu et al.: Rapid Learning or Feature Reuse? 2020.
    """

    def support_loss(params: Params, support: Batch, context):
        encoded = problem.encode(params, support, context, None)
        return lambda head, batch: problem.loss({**params, **head}, encoded, batch, context)

    return _learner(problem, _adapts(problem.head, support_loss, inner, steps, mode))


def joint(problem: Problem) -> Learner:
    """Train on support and query alike, with no adaptation: multi-task training.

    The special case of `maml` with no inner step, whose objective does not waste the support.

    Args:
        problem: what is learned.

    Returns:
        A learner whose `adapted` is the parameters as they are: zero-shot.
    """
    learner = maml(problem, optax.identity(), steps=0)

    def objective(meta, episode: Episode, key, progress) -> tuple[Array, Metrics]:
        del progress
        both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), episode.support, episode.query)
        return whole_loss(problem, meta["params"], both, episode.context, key)

    return learner._replace(objective=objective)


def fine_tuning(
    problem: Problem,
    inner: optax.GradientTransformation,
    steps: int,
    head_only: bool = False,
) -> Learner:
    """Train jointly, then adapt by plain gradient steps: the baseline of transfer learning.

    Args:
        problem: what is learned.
        inner: the update rule at adaptation.
        steps: adaptation steps.
        head_only: hold the body, and adapt `problem.head` alone.

    Returns:
        A learner that trains as `joint` and adapts as `maml` (or, head only, as `anil`) does.
    """
    adapts = anil if head_only else maml
    return adapts(problem, inner, steps, FirstOrder())._replace(objective=joint(problem).objective)


def whole_loss(problem: Problem, params: Params, batch: Batch, context, key):
    """Return the loss of body and head together, as (scalar, metrics)."""
    return problem.loss(params, problem.encode(params, batch, context, key), batch, context)


def _adapts(
    groups: tuple[str, ...],
    support_loss: Callable[[Params, Batch, Any], Loss],
    inner: optax.GradientTransformation,
    steps: int,
    mode: Mode,
):
    """Make an `adapt` whose inner loop runs over some parameter groups and holds the others.

    `support_loss(params, support, context)` is the loss as a function of the groups alone.
    """

    def adapt(meta, support: Batch, context, key, observe=None):
        del key
        params = meta["params"]
        loop = inner_loop(support_loss(params, support, context), inner, mode)

        def whole(adapted: Params) -> Params:
            return {**params, **adapted}

        carry, observations = run(
            loop,
            loop.start({name: params[name] for name in groups}),
            lambda _: support,
            steps,
            None if observe is None else lambda adapted: observe(whole(adapted)),
        )
        return whole(carry.params), observations

    return adapt


def _learner(problem: Problem, adapt) -> Learner:
    """Complete a learner whose `adapted` is a full set of the problem's parameters."""

    def init(key):
        return {"params": problem.init(key)}

    def loss(adapted: Params, query: Batch, context):
        return whole_loss(problem, adapted, query, context, None)

    def predict(adapted: Params, query: Batch, context):
        encoded = problem.encode(adapted, query, context, None)
        return problem.predict(adapted, encoded, query, context)

    def objective(meta, episode: Episode, key, progress):
        del progress
        adapted, _ = adapt(meta, episode.support, episode.context, key)
        return loss(adapted, episode.query, episode.context)

    return Learner(init, adapt, loss, predict, objective)
