"""Proto-MAML: MAML with a linear head that starts from the support's prototypes."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Key

from metaguide.inner_loop import Mode, Unrolled
from metaguide.learners.gradient_based import adapting, completed, descend, support_loss
from metaguide.learners.on_features import absent, classes_of, prototypes
from metaguide.types import Batch, Learner, Observe, Params, Problem


def proto_maml(
    problem: Problem,
    inner: optax.GradientTransformation,
    steps: int,
    mode: Mode = Unrolled(),
) -> Learner:
    """Start the head as a prototypical network, then adapt body and head by gradient steps.

    W_n = 2 c_n, b_n = −‖c_n‖² for prototypes c_n, so with 0 steps the scores are −‖f(x) − c_n‖² up
    to a term shared by all classes. The meta-gradient passes through c_n.

    Args:
        problem: a problem with classes and a linear head {"kernel": [width, way], "bias": [way]}
            on its features; the head's initial values are not read.
        inner: the update rule of the inner loop.
        steps: number of inner steps.
        mode: how the meta-gradient passes through the inner loop.

    Returns:
        A learner whose `adapted` is a full set of parameters.

    Raises:
        ValueError: the problem has no classes, or (when it adapts) its head is not linear.

    Triantafillou et al.: Meta-Dataset, 2020.

    >>> learner = proto_maml(pictures, optax.sgd(0.01), steps=1)
    >>> adapted, _ = jax.jit(learner.adapt)(learner.init(key), shades.support, (), key)
    >>> print(learner.predict(adapted, shades.query, ())["logits"].argmax(-1))
    [0 1 0 1]
    """
    way = classes_of(problem, "Proto-MAML")

    def adapt(
        meta: Params,
        support: Batch,
        context: Any,
        key: Key[Array, ""] | None,
        observe: Observe | None = None,
    ) -> tuple[Params, Any]:
        del key
        params = meta["params"]
        features = problem.features(problem.encode(params, support, context, None))
        centres = prototypes(features, support[problem.target], support["mask"], way)
        lacking = absent(support[problem.target], support["mask"], way)
        # A class without examples: a logit below 2 f·c − ‖c‖² even for features ten times as long.
        longest = jnp.where(support["mask"], jnp.square(features).sum(-1), 0).max(initial=0)
        below = -1e4 - 100 * jax.lax.stop_gradient(longest)
        bias = jnp.where(lacking, below, -jnp.square(centres).sum(-1))
        head = {"kernel": 2.0 * centres.T, "bias": bias}
        has = {name: jax.tree.map(jnp.shape, params[name]) for name in problem.head}
        needs = jax.tree.map(jnp.shape, head)
        if list(has.values()) != [needs]:
            raise ValueError(f"Proto-MAML needs one linear head {needs}, but the problem has {has}")
        params = {**params, **dict.fromkeys(problem.head, head)}
        loss = support_loss(problem, params, context)
        return descend(loss, inner, mode, params, adapting(problem), support, steps, observe)

    return completed(problem, adapt)
