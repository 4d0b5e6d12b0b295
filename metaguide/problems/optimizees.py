"""Training problems of learned optimizers: quadratics, minibatches, few-shot adaptation."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from metaguide.types import Batch, Episode, Optimizee, Params, Problem, Step, TaskDistribution

VARIANTS = ("paper", "released")


def quadratics(dim: int = 10, variant: str = "paper", batch: int = 128) -> Optimizee:
    """Build random quadratics: f(θ) = ‖W θ − y‖².

    "paper": one function per problem, with normal entries of W, y and the start. "released", as in
    the published code: the mean of `batch` such functions, each of a θ of its own, entries of all
    W and y uniform in [0, 1], and a normal start with σ = .01.

    Args:
        dim: size of θ and y.
        variant: one of `VARIANTS`.
        batch: number of functions in the mean, in the released variant.

    Returns:
        An optimizee without data, {"theta": [dim]}, or [batch, dim] in the released variant, and
        the same function at every step.

    Raises:
        ValueError: unknown variant.

    Andrychowicz et al.: Learning to learn by gradient descent by gradient descent, 2016.
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant is {variant!r}; there are {', '.join(VARIANTS)}")
    of_paper = variant == "paper"
    entries = jax.random.normal if of_paper else jax.random.uniform
    shape, spread = ((dim,), 1.0) if of_paper else ((batch, dim), 0.01)

    def draw(data: Any, key: Key[Array, ""]) -> tuple[Params, Batch]:
        one, two, three = jax.random.split(key, 3)
        start = {"theta": spread * jax.random.normal(three, shape)}
        return start, {"w": entries(one, (*shape, dim)), "y": entries(two, shape)}

    def loss(params: Params, task: Batch) -> tuple[Array, Any]:
        product = jnp.einsum("...ij,...j->...i", task["w"], params["theta"])
        return jnp.square(product - task["y"]).sum(-1).mean(), ()

    return Optimizee(draw, lambda data, task, step: task, loss)


def minibatches_of(problem: Problem, size: int) -> Optimizee:
    """Build the training of a problem's parameters, each time from a new initialisation.

    Args:
        problem: the problem that gives `init` and the loss; without a context.
        size: number of rows per step, drawn with replacement.

    Returns:
        An optimizee whose data are arrays with a leading axis of rows, as the problem's batches.
        Pictures in bytes, [rows, height, width] or [rows, height, width, channels], become floats
        in [0, 1], and get an axis of one channel if they have none; other bytes become int32.
    """

    def draw(data: Mapping[str, Any], key: Key[Array, ""]) -> tuple[Params, Key[Array, ""]]:
        one, two = jax.random.split(key)
        return problem.init(one), two

    def batch(data: Mapping[str, Any], task: Key[Array, ""], step: Step) -> Batch:
        count = len(next(iter(data.values())))
        rows = jax.random.randint(jax.random.fold_in(task, step), (size,), 0, count)
        taken = {name: _from_bytes(jnp.asarray(leaf)[rows]) for name, leaf in data.items()}
        return {**taken, "mask": jnp.ones((size,), bool)}

    def loss(params: Params, batch: Batch) -> tuple[Array, Any]:
        return problem.loss(params, problem.encode(params, batch, (), None), batch, ())

    return Optimizee(draw, batch, loss)


def _from_bytes(leaf: Array) -> Array:
    """Return pictures as floats with channels and other bytes as integers; all else as it is."""
    if leaf.dtype != jnp.uint8:
        return leaf
    if leaf.ndim < 3:
        return leaf.astype(jnp.int32)
    return (leaf if leaf.ndim > 3 else leaf[..., None]).astype(jnp.float32) / 255


def adaptation_of(
    distribution: TaskDistribution, shots: tuple[int, ...], head_only: bool = False
) -> Optimizee:
    """Build the adaptation of given parameters to a few examples of a domain.

    The same episode is drawn again at each of its steps, so that an estimator carries a key from
    step to step, not a catalogue.

    Args:
        distribution: the distribution, whose domains are drawn with equal probability.
        shots: an episode's number of shots is drawn from these.
        head_only: freeze the body and adapt only the head.

    Returns:
        An optimizee whose data are {"episodes": the distribution's data, "params": the start of
        every adaptation}, and whose examples are the support, at every step.
    """
    problem = distribution.problem
    groups = problem.head if head_only else problem.body + problem.head

    def draw(data: Any, key: Key[Array, ""]) -> tuple[Params, Key[Array, ""]]:
        return {name: data["params"][name] for name in groups}, key

    def batch(data: Any, task: Key[Array, ""], step: Step) -> tuple[Episode, Params]:
        of_domain, of_shots, of_episode = jax.random.split(task, 3)
        domain = jax.random.randint(of_domain, (), 0, len(distribution.domains))
        count = jax.random.choice(of_shots, jnp.asarray(shots, jnp.int32))
        return distribution.sample(data["episodes"], domain, count, of_episode), data["params"]

    def loss(params: Params, batch: tuple[Episode, Params]) -> tuple[Array, Any]:
        (support, _, context), start = batch
        params = {**start, **params}
        encoded = problem.encode(params, support, context, None)
        return problem.loss(params, encoded, support, context)

    return Optimizee(draw, batch, loss)
