"""The losses of an optimizer on an optimizee, computed with the inner loop."""

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

    Each loss is taken on the examples of the next step, which no step has seen yet.

    Args:
        optimizee: the distribution of functions to minimise; the key draws one.
        optimizer: any optax transform, learned or hand-designed.
        steps: number of steps to take.

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
    """Take some steps of a descent in progress.

    Args:
        optimizee: the distribution of functions to minimise.
        loop: the inner loop.
        data, task: the source of its batches.
        carry: its current state.
        steps: number of steps to take.
        seen: (carry, output of the loss function there) -> observation; the loss by default.

    Returns:
        The state after the steps, and the observations, such as the losses [steps + 1] of
        `descent`.
    """

    def batch(step: Int[Array, "*problems"]) -> Any:
        return optimizee.batch(data, task, step)

    def observed(carry: Carry) -> Any:
        return seen(carry, optimizee.loss(carry.params, batch(carry.step)))

    return run(loop, carry, batch, steps, observed)
