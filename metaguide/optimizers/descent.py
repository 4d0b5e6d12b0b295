"""How an optimizer does on an optimizee: its losses on the way down, on the one inner loop."""

from collections.abc import Callable
from typing import Any

import optax
from jaxtyping import Array, Float, Int

from metaguide.inner_loop import Carry, FirstOrder, InnerLoop, inner_loop, run
from metaguide.types import Optimizee


def descent(
    optimizee: Optimizee, optimizer: optax.GradientTransformation, steps: int
) -> Callable[[Any, Array], Float[Array, " losses"]]:
    """Build (data, key) -> losses [steps + 1] before the first step and after each one.

    A loss is that of the examples of the step to come, which no step has seen yet.

    Args:
        optimizee: what is minimised; its function is drawn with the key.
        optimizer: any optax transform, learned or made by hand.
        steps: how many to take.

    >>> losses = jax.jit(descent(quadratics(dim=2), optax.sgd(0.05), steps=10))((), key)
    >>> losses.shape, bool(losses[-1] < losses[0])
    ((11,), True)
    """
    loop = inner_loop(optimizee.loss, optimizer, FirstOrder())

    def losses(data: Any, key: Array) -> Float[Array, " losses"]:
        params, task = optimizee.draw(data, key)
        return window(optimizee, loop, data, task, loop.start(params), steps)[1]

    return losses


def window(
    optimizee: Optimizee,
    loop: InnerLoop,
    data: Any,
    task: Any,
    carry: Carry,
    steps: int,
    seen: Callable[[Carry, tuple[Array, Any]], Any] = lambda carry, found: found[0],
) -> tuple[Carry, Any]:
    """Take some steps of a descent that is on its way.

    Args:
        optimizee: what is minimised.
        loop: how.
        data, task: what its batches come from.
        carry: where it stands.
        steps: how many to take.
        seen: (where it stands, what the loss function returns there) -> what is observed; the loss.

    Returns:
        Where it stands then, and what was observed, such as the losses [steps + 1] of `descent`.
    """

    def batch(step: Int[Array, "*problems"]) -> Any:
        return optimizee.batch(data, task, step)

    def observed(carry: Carry) -> Any:
        return seen(carry, optimizee.loss(carry.params, batch(carry.step)))

    return run(loop, carry, batch, steps, observed)
