"""A bound on what a meta-gradient passes back through the gradients that an optimizer reads."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

Function = Callable[[PyTree], PyTree]


def damped(
    optimizer: optax.GradientTransformation,
    largest: float,
    each: Callable[[Function], Function] = lambda function: function,
) -> optax.GradientTransformationExtraArgs:
    """Bound the second-order part of a meta-gradient, step by step.

    The updates are the optimizer's own. On the way back a step adds H ḡ to what it has of the
    parameters, H being the Hessian of the inner loss and ḡ the meta-gradient in the gradient that
    the optimizer read. Where the inner loop is chaotic these products grow without end, so that

        ḡ ← ḡ min(1, largest / ‖ḡ‖),    and 0 where ‖ḡ‖ is not finite.

    `largest` = 0 is first order, infinity the exact second order. What passes through the loss that
    comes as `value=` is bounded in the same way, on its own.

    Args:
        optimizer: any optax transform.
        largest: norm over all parameters, at least 0.
        each: makes a function of one problem's gradient one of many, such as `jax.vmap` where they
            have a leading axis of problems and each has a norm of its own.

    Returns:
        The transform. It is differentiated in reverse mode alone.

    Raises:
        ValueError: `largest` is negative, or not a number.

    >>> optimizer = damped(optax.sgd(0.1), largest=1.0)
    >>> updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    >>> print(updates["w"].round(3))
    [-0.2 -0.2 -0.2]
    """
    if not largest >= 0:
        raise ValueError(f"largest is {largest}: a bound on a norm is 0 or more")
    optimizer = optax.with_extra_args_support(optimizer)

    @jax.custom_vjp
    def bounded(tree: PyTree) -> PyTree:
        return tree

    def backward(_: None, slope: PyTree) -> tuple[PyTree]:
        norm = optax.tree.norm(slope)
        share = jnp.where(norm <= largest, 1, largest / norm)
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
