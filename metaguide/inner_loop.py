"""The one inner loop, resumable, over any optax transform, and the ways to differentiate it.

Every learner that adapts by gradients is this loop: MAML is it with `optax.sgd`, fine-tuning is
it without a meta-gradient, a learned optimizer is it with another transform. `start` and `step`
are apart from `run` so that an estimator may stop a loop, carry it over an outer step, and go on.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree

Loss = Callable[[Any, Any], tuple[Array, Any]]
"""(params, batch) -> (scalar, auxiliary output)."""


class Unrolled(NamedTuple):
    """Differentiate through every inner step: the exact meta-gradient.

    Costs memory for the activations of all inner steps, O(steps); with `remat` each step's
    activations are computed anew in the backward pass, which leaves O(1) activations and
    O(steps) parameters for about one more forward and backward pass of time. No bias.
    """

    remat: bool = False


class FirstOrder(NamedTuple):
    """Take the inner gradients as constants: d adapted / d initial = I.

    No activations of the inner steps are kept and no second derivative is taken. Biased by the
    dropped Hessian terms, O(rate * steps). Finn et al. 2017, section 5.2.
    """


Mode = Unrolled | FirstOrder


class Carry(NamedTuple):
    """An inner loop between two of its steps.

    Attributes:
        step: number of steps taken.
        params: the parameters being adapted.
        optimizer: state of the optax transform.
    """

    step: Int[Array, ""]
    params: PyTree
    optimizer: PyTree


class InnerLoop(NamedTuple):
    """A loop as two pure functions.

    Attributes:
        start: params -> carry.
        step: (carry, batch) -> carry.
    """

    start: Callable[[PyTree], Carry]
    step: Callable[[Carry, Any], Carry]


def inner_loop(
    loss: Loss, optimizer: optax.GradientTransformation, mode: Mode = Unrolled()
) -> InnerLoop:
    """Build the loop θ ← θ + u(∇L(θ, batch)), u being the update of `optimizer`.

    Args:
        loss: (params, batch) -> (scalar, auxiliary output); the latter is dropped.
        optimizer: any optax transform; the loss reaches it as `value=` where it takes one.
        mode: how a meta-gradient passes through a step.

    Returns:
        The loop's `start` and `step`.
    """
    optimizer = optax.with_extra_args_support(optimizer)

    def start(params: PyTree) -> Carry:
        return Carry(jnp.zeros((), jnp.int32), params, optimizer.init(params))

    def step(carry: Carry, batch: Any) -> Carry:
        (value, _), gradient = jax.value_and_grad(loss, has_aux=True)(carry.params, batch)
        if isinstance(mode, FirstOrder):
            value, gradient = jax.lax.stop_gradient((value, gradient))
        # Optax raises floats to its int32 count, which strict promotion of dtypes forbids.
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimizer.update(gradient, carry.optimizer, carry.params, value=value)
        return Carry(carry.step + 1, optax.apply_updates(carry.params, updates), state)

    if isinstance(mode, Unrolled) and mode.remat:
        step = jax.checkpoint(step)
    return InnerLoop(start, step)


def run(
    loop: InnerLoop,
    carry: Carry,
    batches: Callable[[Int[Array, ""]], Any],
    steps: int,
    observe: Callable[[PyTree], Any] | None = None,
) -> tuple[Carry, Any]:
    """Take `steps` steps from `carry`; one scan, compiled once for any number of steps.

    Args:
        loop: what to run.
        carry: where it stands; a fresh one comes from `loop.start(params)`.
        batches: step -> batch: the support each time for MAML, fresh minibatches for training.
        steps: how many steps to take; 0 returns `carry`.
        observe: params -> pytree, called before the first step and after each one.

    Returns:
        The carry after the last step, and the observations stacked on a leading axis of
        `steps + 1`; None where `observe` is None.
    """
    if steps < 0:
        raise ValueError(f"steps is {steps}: an inner loop takes 0 or more")

    def body(carry: Carry, _: None) -> tuple[Carry, Any]:
        carry = loop.step(carry, batches(carry.step))
        return carry, None if observe is None else observe(carry.params)

    first = None if observe is None else observe(carry.params)
    carry, later = jax.lax.scan(body, carry, length=steps)
    if observe is None:
        return carry, None
    return carry, jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, later)
