"""Learners that adapt by gradient steps on the support, all with the same inner loop."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, Key, PyTree

from metaguide import inner_loop
from metaguide.inner_loop import FirstOrder, Implicit, Loss, Mode, Unrolled
from metaguide.types import (
    AdaptFn,
    Batch,
    Episode,
    InitFn,
    Learner,
    Metrics,
    Observe,
    Params,
    Problem,
    Progress,
)


def maml(
    problem: Problem,
    inner: optax.GradientTransformation,
    steps: int,
    mode: Mode = Unrolled(),
) -> Learner:
    """Learn an initialisation from which a few gradient steps solve a new task.

    min_φ Σ_tasks L_query(U(φ)), where U applies `steps` updates of `inner` to the support's loss.
    With `mode=FirstOrder()` it is first-order MAML. With 0 steps it trains without adaptation.

    Args:
        problem: the model and its loss.
        inner: the update rule of the inner loop, any optax transform.
        steps: number of inner steps, both in training and at adaptation.
        mode: how the meta-gradient passes through the inner loop.

    Returns:
        A learner whose meta-parameters are {"params": φ} and whose `adapted` is a full set of
        parameters.

    Finn, Abbeel, Levine: Model-Agnostic Meta-Learning, 2017.

    >>> learner = maml(problem, optax.sgd(0.01), steps=3)
    >>> meta = learner.init(key)
    >>> slope = jax.jit(jax.value_and_grad(learner.objective, has_aux=True))
    >>> (loss, metrics), gradient = slope(meta, sine, key, 0.0)
    >>> sorted(gradient), sorted(metrics)
    (['params'], ['mse'])
    """

    def adapt(
        meta: Params,
        support: Batch,
        context: Any,
        key: Key[Array, ""] | None,
        observe: Observe | None = None,
    ) -> tuple[Params, Any]:
        del key
        params, loss = meta["params"], support_loss(problem, meta["params"], context)
        return descend(loss, inner, mode, params, adapting(problem), support, steps, observe)

    return completed(problem, adapt)


def imaml(
    problem: Problem,
    inner: optax.GradientTransformation,
    steps: int,
    strength: float = 2.0,
    cg_steps: int = 5,
    damping: float = 0.0,
) -> Learner:
    """Learn an initialisation that each task's solution is pulled to: `maml` with `Implicit`.

    min_φ Σ_tasks L_query(argmin_θ L_support(θ) + λ/2 ‖θ − φ‖²).

    Args:
        problem: the model and its loss.
        inner: the optimizer of the inner objective.
        steps: number of its steps; more steps give a smaller bias.
        strength, cg_steps, damping: see `Implicit`.

    Returns:
        A learner like that of `maml`.

    Rajeswaran, Finn, Kakade, Levine: Meta-Learning with Implicit Gradients, 2019.

    >>> learner = imaml(problem, optax.sgd(0.01), steps=20, strength=2.0)
    >>> loss, metrics = jax.jit(learner.objective)(learner.init(key), sine, key, 0.0)
    >>> sorted(metrics)
    ['mse']
    """
    return maml(problem, inner, steps, Implicit(strength, cg_steps, damping))


def anil(
    problem: Problem,
    inner: optax.GradientTransformation,
    steps: int,
    mode: Mode = Unrolled(),
) -> Learner:
    """Learn body and head, adapt only the head: almost no inner loop.

    The support is encoded once, and the inner gradient is taken with respect to the head's groups
    only, so a step costs as much as the head, not the network.

    Args:
        problem: the model and its loss; `problem.head` names the groups that adapt.
        inner: the update rule of the inner loop.
        steps: number of inner steps.
        mode: how the meta-gradient passes through the inner loop.

    Returns:
        A learner whose `adapted` is a full set of parameters with an unchanged body.

    Raghu et al.: Rapid Learning or Feature Reuse? 2020.

    >>> learner = anil(problem, optax.sgd(0.01), steps=1)
    >>> meta = learner.init(key)
    >>> adapted, _ = jax.jit(learner.adapt)(meta, sine.support, (), key)
    >>> bool((adapted["head"]["bias"] != meta["params"]["head"]["bias"]).all())
    True
    """

    def adapt(
        meta: Params,
        support: Batch,
        context: Any,
        key: Key[Array, ""] | None,
        observe: Observe | None = None,
    ) -> tuple[Params, Any]:
        del key
        params, loss = meta["params"], head_loss(problem, meta["params"], support, context)
        return descend(loss, inner, mode, params, problem.head, support, steps, observe)

    return completed(problem, adapt)


def meta_sgd(
    problem: Problem, learning_rate: float | Array, steps: int = 1, mode: Mode = Unrolled()
) -> Learner:
    """Learn an initialisation and a learning rate for each parameter: θ ← θ − α ∘ ∇L(θ).

    Args:
        problem: the model and its loss.
        learning_rate: initial α of all parameters.
        steps: number of inner steps; the paper takes one.
        mode: `Unrolled`, `Mixed` or `FirstOrder`; the rates are learned under each.

    Returns:
        A learner whose meta-parameters are {"params": φ, "rule": {"rates": α}}.

    Raises:
        ValueError: the mode is `Implicit`, which gives the rates no gradient.

    Li, Zhou, Chen, Li: Meta-SGD, 2017.

    >>> learner = meta_sgd(problem, 0.01)
    >>> meta = learner.init(key)
    >>> print(meta["rule"]["rates"]["head"]["bias"])
    [0.01]
    """
    check_differentiates_steps(mode, "rate")

    def init(key: Key[Array, ""]) -> Params:
        params = problem.init(key)
        rates = optax.tree.full_like(
            {name: params[name] for name in adapting(problem)}, learning_rate
        )
        return {"params": params, "rule": {"rates": rates}}

    def adapt(
        meta: Params,
        support: Batch,
        context: Any,
        key: Key[Array, ""] | None,
        observe: Observe | None = None,
    ) -> tuple[Params, Any]:
        del key
        params, loss = meta["params"], support_loss(problem, meta["params"], context)
        rule = learned_rates(lambda step: meta["rule"]["rates"])
        return descend(loss, rule, mode, params, adapting(problem), support, steps, observe)

    return completed(problem, adapt, init)


def joint(problem: Problem) -> Learner:
    """Train on support and query together, without adaptation: multi-task training.

    The special case of `maml` with no inner step, except that the support is trained on too.

    Args:
        problem: the model and its loss.

    Returns:
        A learner whose `adapted` is the unchanged parameters: zero-shot.

    >>> learner = joint(problem)
    >>> meta = learner.init(key)
    >>> adapted, _ = learner.adapt(meta, sine.support, (), key)
    >>> bool((adapted["head"]["bias"] == meta["params"]["head"]["bias"]).all())
    True
    """
    learner = maml(problem, optax.identity(), steps=0)

    def objective(
        meta: Params, episode: Episode, key: Key[Array, ""] | None, progress: Progress
    ) -> tuple[Array, Metrics]:
        del progress
        support, query = episode.support, episode.query
        both = {name: jnp.concatenate([support[name], query[name]]) for name in support}
        return whole_loss(problem, meta["params"], both, episode.context, key)

    return learner._replace(objective=objective)


def fine_tuning(
    problem: Problem,
    inner: optax.GradientTransformation,
    steps: int,
    head_only: bool = False,
) -> Learner:
    """Train jointly, then adapt by plain gradient steps: the transfer-learning baseline.

    Args:
        problem: the model and its loss.
        inner: the update rule at adaptation.
        steps: number of adaptation steps.
        head_only: freeze the body and adapt only `problem.head`.

    Returns:
        A learner that trains like `joint` and adapts like `maml` (or like `anil` if `head_only`).

    >>> learner = fine_tuning(problem, optax.adam(0.01), steps=2, head_only=True)
    >>> meta = learner.init(key)
    >>> adapted, _ = jax.jit(learner.adapt)(meta, sine.support, (), key)
    >>> bool((adapted["head"]["bias"] != meta["params"]["head"]["bias"]).all())
    True
    """
    adapts = anil if head_only else maml
    return adapts(problem, inner, steps, FirstOrder())._replace(objective=joint(problem).objective)


def adapting(problem: Problem) -> tuple[str, ...]:
    """Return the names of the parameter groups that the problem reads."""
    return problem.body + problem.head


def whole_loss(
    problem: Problem, params: Params, batch: Batch, context: Any, key: Key[Array, ""] | None
) -> tuple[Array, Metrics]:
    """Return the loss of body and head together.

    Args:
        problem: the model and its loss.
        params: all of its parameters.
        batch: the examples.
        context: as in `Problem.encode`.
        key: for dropout and the like; None evaluates without.

    Returns:
        The loss, a scalar, and metrics.
    """
    return problem.loss(params, problem.encode(params, batch, context, key), batch, context)


def support_loss(problem: Problem, params: Params, context: Any) -> Loss:
    """Return the loss as a function of (parameter groups, batch); `params` holds the others.

    >>> params = problem.init(key)
    >>> value, metrics = support_loss(problem, params, ())({"head": params["head"]}, sine.support)
    >>> bool(value == metrics["mse"])
    True
    """
    return lambda groups, batch: whole_loss(problem, {**params, **groups}, batch, context, None)


def head_loss(problem: Problem, params: Params, support: Batch, context: Any) -> Loss:
    """Return the loss as a function of (the head's groups, the support), which is encoded once.

    >>> from metaguide.learners import support_loss
    >>> params = problem.init(key)
    >>> loss = head_loss(problem, params, sine.support, ())
    >>> value, _ = loss({"head": params["head"]}, sine.support)
    >>> bool(value == support_loss(problem, params, ())({}, sine.support)[0])
    True
    """
    encoded = problem.encode(params, support, context, None)
    return lambda head, batch: problem.loss({**params, **head}, encoded, batch, context)


def descend(
    loss: Loss,
    inner: optax.GradientTransformation,
    mode: Mode,
    params: Params,
    groups: tuple[str, ...],
    support: Batch,
    steps: int,
    observe: Observe | None = None,
) -> tuple[Params, Any]:
    """Adapt some parameter groups to the support and freeze the others.

    Args:
        loss: (groups keyed by name, batch) -> (scalar, metrics).
        inner: the update rule.
        mode: how the meta-gradient passes through.
        params: the initial full set of parameters.
        groups: names of the groups that adapt.
        support: the batch of every step.
        steps: number of inner steps.
        observe: full set of parameters -> pytree; called at step 0 and after each step.

    Returns:
        The adapted full set of parameters, and the observations.

    >>> from metaguide.inner_loop import Unrolled
    >>> from metaguide.learners import support_loss
    >>> params = problem.init(key)
    >>> loss = support_loss(problem, params, ())
    >>> sgd = optax.sgd(0.01)
    >>> adapted, _ = descend(loss, sgd, Unrolled(), params, ("head",), sine.support, steps=3)
    >>> bool(loss(adapted, sine.support)[0] < loss(params, sine.support)[0])
    True
    """
    adapted, seen = inner_loop.adapt(
        loss,
        inner,
        mode,
        {name: params[name] for name in groups},
        lambda _: support,
        steps,
        None if observe is None else lambda carry: observe({**params, **carry.params}),
    )
    return {**params, **adapted}, seen


def learned_rates(
    rates: Callable[[Int[Array, ""]], Params],
) -> optax.GradientTransformation:
    """Return the transform u = −α ∘ g, where the pytree α may change at each step.

    Args:
        rates: step -> α, with the gradient's structure and shapes that broadcast to its shapes.
    """

    def update(
        updates: PyTree, state: Any, params: Params | None = None
    ) -> tuple[PyTree, Int[Array, ""]]:
        del params
        now = rates(state)
        chex.assert_trees_all_equal_structs(now, updates)
        return jax.tree.map(lambda rate, g: -rate * g, now, updates), state + 1

    return optax.GradientTransformation(lambda params: jnp.zeros((), jnp.int32), update)


def completed(problem: Problem, adapt: AdaptFn, init: InitFn | None = None) -> Learner:
    """Complete a learner whose `adapted` is a full set of the problem's parameters.

    Args:
        problem: the model and its loss.
        adapt: as in `Learner`.
        init: key -> meta-parameters; the problem's parameters alone by default.

    Returns:
        The learner, whose `loss` is the problem's at the adapted parameters.

    Raises:
        TypeError: `adapt` takes other arguments; training would not notice that it lacks `observe`.

    A learner of one's own: gradient descent that freezes all but the bias of the head.

    >>> from metaguide.inner_loop import Unrolled
    >>> from metaguide.learners import descend, support_loss
    >>> def bias_alone(problem, inner, steps):
    ...     def adapt(meta, support, context, key, observe=None):
    ...         params = meta["params"]
    ...         def loss(bias, batch):
    ...             head = {**params["head"], **bias["head"]}
    ...             return support_loss(problem, params, context)({"head": head}, batch)
    ...         start = {"head": {"bias": params["head"]["bias"]}}
    ...         moved, seen = descend(loss, inner, Unrolled(), start, ("head",), support, steps)
    ...         return {**params, "head": {**params["head"], **moved["head"]}}, seen
    ...     return completed(problem, adapt)
    >>> learner = bias_alone(problem, optax.sgd(0.1), steps=3)
    >>> gradient = jax.grad(learner.objective, has_aux=True)
    >>> slope, metrics = gradient(learner.init(key), sine, key, 0.0)
    >>> sorted(slope["params"])
    ['body', 'head']
    """

    try:
        inspect.signature(adapt).bind({}, {}, (), None, None)
    except TypeError as error:
        raise TypeError(
            f"adapt is called as adapt(meta, support, context, key, observe): {error}"
        ) from error

    def loss(adapted: Params, query: Batch, context: Any) -> tuple[Array, Metrics]:
        return whole_loss(problem, adapted, query, context, None)

    def predict(adapted: Params, query: Batch, context: Any) -> Mapping[str, Array]:
        encoded = problem.encode(adapted, query, context, None)
        return problem.predict(adapted, encoded, query, context)

    def objective(
        meta: Params, episode: Episode, key: Key[Array, ""] | None, progress: Progress
    ) -> tuple[Array, Metrics]:
        del progress
        adapted, _ = adapt(meta, episode.support, episode.context, key)
        return loss(adapted, episode.query, episode.context)

    def params_alone(key: Key[Array, ""]) -> Params:
        return {"params": problem.init(key)}

    return Learner(init or params_alone, adapt, loss, predict, objective)


def check_differentiates_steps(mode: Mode, what: str) -> None:
    """Check that the mode gives a gradient to the learned part of the inner rule.

    Args:
        mode: the learner's mode.
        what: the learned part: "rate" or "rule".

    Raises:
        ValueError: the mode is `Implicit`.
    """
    if isinstance(mode, Implicit):
        raise ValueError(
            f"mode Implicit differentiates the inner solution, which no learned {what} changes; "
            f"learn it under Unrolled, Mixed or FirstOrder"
        )


def proximal_sgd(
    learning_rate: float | Array, strength: float | Array
) -> optax.GradientTransformation:
    """Return gradient descent on L(θ) + λ/2 ‖θ − θ₀‖², where θ₀ is where it starts.

    The pull is taken at the new point: θ ← (θ − η ∇L(θ) + η λ θ₀) / (1 + η λ), so that no λ makes
    the descent diverge.

    Args:
        learning_rate: η.
        strength: λ ≥ 0; with 0 it is `optax.sgd`.

    Returns:
        The transform; its state holds θ₀, the parameters given to `init`.

    Parikh, Boyd: Proximal Algorithms, 2014.

    >>> theta, rule = {"w": jnp.ones(())}, proximal_sgd(0.5, 2.0)
    >>> update, _ = rule.update({"w": jnp.ones(())}, rule.init(theta), theta)
    >>> print(update["w"])
    -0.25
    """

    def update(
        updates: PyTree, state: PyTree, params: Params | None = None
    ) -> tuple[PyTree, PyTree]:
        def step(gradient: Array, start: Array, now: Array) -> Array:
            moved = -learning_rate * (gradient + strength * (now - start))
            return (moved / (1 + learning_rate * strength)).astype(gradient.dtype)

        return jax.tree.map(step, updates, state, params), state

    # A copy: a caller may donate the parameters and the state.
    return optax.GradientTransformation(lambda params: jax.tree.map(jnp.copy, params), update)
