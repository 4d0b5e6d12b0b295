"""Learners that adapt by gradient steps on the support: MAML, ANIL, fine-tuning."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from metaguide.inner_loop import FirstOrder, Mode, Unrolled, inner_loop, run
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

    def adapt(meta, support: Batch, context, key, observe=None):
        del key

        def support_loss(params: Params, batch: Batch):
            return whole_loss(problem, params, batch, context, None)

        loop = inner_loop(support_loss, inner, mode)
        carry, observations = run(
            loop, loop.start(meta["params"]), lambda _: support, steps, observe
        )
        return carry.params, observations

    return _learner(problem, adapt)


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

    def adapt(meta, support: Batch, context, key, observe=None):
        del key
        params = meta["params"]
        encoded = problem.encode(params, support, context, None)

        def with_head(head: Params) -> Params:
            return {**params, **head}

        def support_loss(head: Params, batch: Batch):
            return problem.loss(with_head(head), encoded, batch, context)

        loop = inner_loop(support_loss, inner, mode)
        carry, observations = run(
            loop,
            loop.start({name: params[name] for name in problem.head}),
            lambda _: support,
            steps,
            None if observe is None else lambda head: observe(with_head(head)),
        )
        return with_head(carry.params), observations

    return _learner(problem, adapt)


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
