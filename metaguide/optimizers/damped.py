"""A bound on the meta-gradient that passes back through the gradients that an optimizer reads."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

Function = Callable[[PyTree], PyTree]


def damped(
    optimizer: optax.GradientTransformation,
    max_norm: float,
    each: Callable[[Function], Function] = lambda function: function,
) -> optax.GradientTransformationExtraArgs:
    """Bound the second-order part of a meta-gradient, step by step.

    The updates are unchanged. In the backward pass a step adds H ḡ to the cotangent of the
    parameters, where H is the Hessian of the inner loss and ḡ the meta-gradient with respect to the
    gradient that the optimizer read. If the inner loop is chaotic these products grow without
    bound, so ḡ is clipped:

        ḡ ← ḡ min(1, max_norm / ‖ḡ‖),    and 0 where ‖ḡ‖ is not finite.

    `max_norm` = 0 is first order, infinity is exact second order. The meta-gradient through the
    loss passed as `value=` is bounded separately in the same way.

    Args:
        optimizer: any optax transform.
        max_norm: bound on the norm over all parameters, at least 0.
        each: turns a function of one problem's gradient into one of many, such as `jax.vmap` for
            gradients with a leading axis of problems, each with its own norm.

    Returns:
        The transform, which can be differentiated only in reverse mode.

    Raises:
        ValueError: `max_norm` is negative or NaN.

    >>> optimizer = damped(optax.sgd(0.1), max_norm=1.0)
    >>> updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    >>> print(updates["w"].round(3))
    [-0.2 -0.2 -0.2]
    """
    if not max_norm >= 0:
        raise ValueError(f"max_norm is {max_norm}: a bound on a norm is 0 or more")
    optimizer = optax.with_extra_args_support(optimizer)

    @jax.custom_vjp
    def bounded(tree: PyTree) -> PyTree:
        return tree

    def backward(_: None, slope: PyTree) -> tuple[PyTree]:
        norm = optax.tree.norm(slope)
        share = jnp.where(norm <= max_norm, 1, max_norm / norm)
        kept = jax.tree.map(lambda leaf: jnp.where(jnp.isfinite(norm), share * leaf, 0), slope)
        return (kept,)

    bounded.defvjp(lambda tree: (tree, None), backward)

    def update(
        updates: PyTree, state: Any, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, Any]:
        if "value" in extra:
            extra["value"] = bounded(extra["value"])
        return optimizer.update(each(bounded)(updates), state, params, **extra)

    return optax.GradientTransformationExtraArgs(optimizer.init, update)
