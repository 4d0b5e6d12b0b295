"""How an optimizer does on an optimizee: its losses on the way down, on the one inner loop."""

from collections.abc import Callable
from operator import itemgetter
from typing import Any

import optax
from jaxtyping import Array, Float

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
    seen: Callable[[tuple[Array, Any]], Array] = itemgetter(0),
) -> tuple[Carry, Float[Array, "losses *problems"]]:
    """Take some steps of a descent that is on its way.

    Args:
        optimizee: what is minimised.
        loop: how.
        data, task: what its batches come from.
        carry: where it stands.
        steps: how many to take.
        seen: what the loss function returns -> what is observed of it; the loss.

    Returns:
        Where it stands then, and the losses [steps + 1], as of `descent`.
    """

    def batch(step):
        return optimizee.batch(data, task, step)

    def loss(carry: Carry):
        return seen(optimizee.loss(carry.params, batch(carry.step)))

    return run(loop, carry, batch, steps, loss)
