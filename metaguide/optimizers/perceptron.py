"""Rules that read a history: a per-coordinate perceptron, and one made by a HyperNetwork."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float, Int, Key, PyTree

from metaguide.optimizers.features import (
    DECAYS,
    SMALL,
    VARIANCE_DECAY,
    Tensor,
    bias_corrected,
    loss_trend,
    momenta,
    second_moment,
    step_waves,
    tensor_statistics,
)
from metaguide.optimizers.rule import (
    Rule,
    Theta,
    check_gradients,
    check_theta,
    count_skipped,
    dense,
    loss_given,
    named,
    varying_like,
)

DIRECTIONS = 1 + len(DECAYS)
"""Directions per coordinate: gradient and momenta, each over the root of the second moment."""

ADAM = 2 + DECAYS.index(0.9)
"""Index in `skip` of Adam's direction; that of SGD is 0."""


LARGEST = 1e18
"""Larger gradients are clipped to it, as their squares would be infinite in float32."""


class History(NamedTuple):
    """The memory of gradients, of one tensor or of a tree of them.

    Attributes:
        momenta: a running mean of g for each of `DECAYS`; each has the gradient's shape.
        variance: the running mean of g².
    """

    momenta: tuple[PyTree, ...]
    variance: PyTree


_HISTORY = History((0,) * len(DECAYS), 0)
"""The form of a history."""


class MlpState(NamedTuple):
    """The perceptron's state.

    Attributes:
        step: number of updates made.
        history: trees like the parameters.
        skipped: number of updates with a non-finite gradient somewhere.
    """

    step: Int[Array, ""]
    history: History
    skipped: Int[Array, ""]


def mlp(hidden: int = 8, scale: float = 0.01) -> Rule:
    """Build the per-coordinate perceptron: u = −scale · (s · r + d(φ)) · exp(a(φ)).

    φ contains directions (the gradient and its momenta, each over the root of the running second
    moment), the logarithm of that root, and the step. r contains the gradient and φ's directions,
    so that s alone can express SGD (s on the gradient) or Adam (s on the momentum of .9), where it
    starts.

    Args:
        hidden: number of units of the hidden layer.
        scale: scale of the update.

    Returns:
        The rule; its state has 4 numbers per coordinate, in the shapes and shardings of the
        parameters.

    After Metz et al.: Understanding and correcting pathologies in the training of learned
    optimizers, 2019.

    >>> optimizer = optax.chain(optax.clip_by_global_norm(1.0), mlp().transform(mlp().init(key)))
    >>> updates, _ = jax.jit(optimizer.update)(gradient, optimizer.init(params), params)
    >>> bool((updates["w"] < 0).all())
    True
    """

    def init(key: Key[Array, ""]) -> Theta:
        one, two = jax.random.split(key)
        waves = step_waves(jnp.zeros((), jnp.int32)).size
        return _network(one, hidden) | {"step": 0.1 * jax.random.normal(two, (waves, hidden))}

    settings = {"hidden": hidden, "scale": scale}
    name = named("mlp", settings)

    def transform(theta: Theta) -> optax.GradientTransformationExtraArgs:
        check_theta(name, init, theta)
        theta, dtype = _widened(theta)

        def begin(params: PyTree) -> MlpState:
            check_gradients(name, params)
            none = jnp.zeros((), jnp.int32)
            return varying_like(MlpState(none, _nothing_yet(params, dtype), none), params)

        def update(
            updates: PyTree, state: Any, params: PyTree | None = None, **extra: Any
        ) -> tuple[PyTree, MlpState]:
            del params, extra
            check_gradients(name, updates)
            step = state.step + 1
            waves = step_waves(step, dtype) @ theta["step"]

            def of_tensor(gradient: Tensor, history: History) -> tuple[Tensor, History]:
                moved, history = _moved(theta, waves, step, gradient, history)
                return scale * moved, history

            moves, history = _each(of_tensor, dtype, updates, state.history, _HISTORY)
            return moves, MlpState(step, history, count_skipped(state.skipped, updates))

        return optax.GradientTransformationExtraArgs(begin, update)

    return Rule("mlp", init, transform, settings)


class HyperState(NamedTuple):
    """The state of the HyperNetwork's rule.

    Attributes:
        step: number of updates made.
        losses: running means of the loss.
        hidden: the per-tensor network's own memory.
        history: trees like the parameters.
        skipped: number of updates with a non-finite gradient somewhere.
    """

    step: Int[Array, ""]
    losses: Float[Array, " decays"]
    hidden: Float[Array, "tensors hidden"]
    history: History
    skipped: Int[Array, ""]


def hyper(hidden: int = 32, inner: int = 4, scale: float = 0.01) -> Rule:
    """Build the HyperNetwork optimizer: a per-tensor network generates the rule of its entries.

    h ← tanh(W [x, h] + b) for each tensor, where x is the trend of the task's loss, the tensor's
    statistics and the step. All weights of the `mlp` rule (with `inner` hidden units) and the
    logarithm of its rate are linear in h: each tensor has a different rule at each step.

    Args:
        hidden: number of units of the per-tensor network.
        inner: number of hidden units of the generated rule.
        scale: scale of the update.

    Returns:
        The rule; it reads the loss, as `value=`. Its state has 4 numbers per coordinate, in the
        shapes and shardings of the parameters, and `hidden` per tensor.

    Applies the idea of Ha, Dai, Le: HyperNetworks, 2016, to an update rule.

    >>> optimizer = hyper().transform(hyper().init(key))
    >>> update = jax.jit(optimizer.update)
    >>> updates, _ = update(gradient, optimizer.init(params), params, value=value)
    >>> bool((updates["w"] < 0).all())
    True
    """
    settings = {"hidden": hidden, "inner": inner, "scale": scale}
    name = named("hyper", settings)

    def init(key: Key[Array, ""]) -> Theta:
        one, two, three = jax.random.split(key, 3)
        base = _network(one, inner) | {"rate": jnp.zeros(())}
        reads = tensor_statistics(jnp.ones(2), jnp.ones(2), [jnp.ones(2)] * len(DECAYS)).size
        reads += len(DECAYS) + step_waves(jnp.zeros((), jnp.int32)).size
        count = sum(leaf.size for leaf in jax.tree.leaves(base))
        return {
            "tensor": dense(two, reads + hidden, hidden),
            "made": 0.01 * jax.random.normal(three, (hidden, count)),
            "base": base,
        }

    def transform(theta: Theta) -> optax.GradientTransformationExtraArgs:
        check_theta(name, init, theta)
        theta, dtype = _widened(theta)
        base, unravel = ravel_pytree(theta["base"])

        def begin(params: PyTree) -> HyperState:
            check_gradients(name, params)
            losses, none = jnp.zeros((len(DECAYS),), dtype), jnp.zeros((), jnp.int32)
            memory = jnp.zeros((len(jax.tree.leaves(params)), hidden), dtype)
            history = _nothing_yet(params, dtype)
            return varying_like(HyperState(none, losses, memory, history, none), params)

        def update(
            updates: PyTree,
            state: Any,
            params: PyTree | None = None,
            *,
            value: ArrayLike | None = None,
            **extra: Any,
        ) -> tuple[PyTree, HyperState]:
            del extra
            check_gradients(name, updates)
            if params is None:
                raise ValueError(
                    f"{name} reads the parameters: call update(gradient, state, params)"
                )
            step = state.step + 1
            losses, trend = loss_trend(state.losses, loss_given(name, value), step)
            shared = jnp.concatenate([trend, step_waves(step, dtype)])

            def of_tensor(gradient: Tensor, memory: Any, param: Tensor) -> tuple[Tensor, Any]:
                h, history = memory
                known = tensor_statistics(param, _bounded(gradient), history.momenta)
                layer = theta["tensor"]
                x = jnp.concatenate([known, shared, h])
                h = jnp.tanh(x @ layer["kernel"] + layer["bias"])
                made = unravel(base + h @ theta["made"])
                moved, history = _moved(made, 0.0, step, gradient, history)
                return scale * jnp.exp(made["rate"]) * moved, (h, history)

            each = jax.tree.unflatten(jax.tree.structure(updates), list(state.hidden))
            memory, form = (each, state.history), (0, _HISTORY)
            moves, (each, history) = _each(of_tensor, dtype, updates, memory, form, params)
            rows = jax.tree.leaves(each)
            memory = jnp.stack(rows) if rows else state.hidden
            skipped = count_skipped(state.skipped, updates)
            return moves, HyperState(step, losses, memory, history, skipped)

        return optax.GradientTransformationExtraArgs(begin, update)

    return Rule("hyper", init, transform, settings)


def _widened(theta: Theta) -> tuple[Theta, Any]:
    """Return θ and the dtype that a rule computes in: that of θ, but float32 if θ has 16 bits.

    In bfloat16 the decay of the second moment is 1, and in float16 the square of 300 is infinite.
    """
    dtype = jnp.result_type(*jax.tree.leaves(theta))
    dtype = jnp.dtype(dtype if dtype.itemsize >= 4 else jnp.float32)
    return optax.tree.cast(theta, dtype), dtype


def _nothing_yet(params: PyTree, dtype: DTypeLike) -> History:
    """Return the history of parameters before their first gradient."""

    def zeros() -> PyTree:
        return jax.tree.map(lambda leaf: jnp.zeros_like(leaf, dtype), params)

    return History(tuple(zeros() for _ in DECAYS), zeros())


def _each(
    of_tensor: Callable[..., tuple[Array, Any]],
    dtype: Any,
    updates: PyTree,
    memory: Any,
    form: Any,
    *more: PyTree,
) -> tuple[PyTree, Any]:
    """Return the moves of all tensors, as a tree like `updates`, and their new memory.

    Works tensor by tensor: XLA then compiles an update to one loop and writes the memory back in
    place.

    Args:
        of_tensor: (gradient, its memory, its leaves of `more`) -> (its move, its memory).
        dtype: dtype of the computation, that of θ.
        updates: gradients.
        memory: trees like `updates`, in a tree of the structure of `form`.
        form: the structure of one tensor's memory, with any leaves.
        more: trees like `updates`.
    """
    # Recomputing a tensor in the backward pass is cheaper than storing its results.
    anew = jax.checkpoint(of_tensor, prevent_cse=False)

    def of_leaf(leaf: ArrayLike, memory: Any, *own: ArrayLike) -> tuple[ArrayLike, Any]:
        if not jnp.size(leaf):
            return leaf, memory
        gradient, *rest = (jnp.asarray(x).astype(dtype) for x in (leaf, *own))
        move, memory = anew(gradient, memory, *rest)
        return move.astype(jnp.result_type(leaf)), memory

    leaves, structure = jax.tree.flatten(updates)
    if not leaves:
        return updates, memory
    outer = jax.tree.structure(form)
    trees = outer.flatten_up_to(memory)
    moves, after = [], []
    for leaf, *rest in zip(leaves, *map(jax.tree.leaves, (*trees, *more)), strict=True):
        own, others = outer.unflatten(rest[: len(trees)]), rest[len(trees) :]
        move, kept = of_leaf(leaf, own, *others)
        moves.append(move)
        after.append(outer.flatten_up_to(kept))
    whole = [
        jax.tree.unflatten(jax.tree.structure(tree), of_tensors)
        for tree, of_tensors in zip(trees, zip(*after, strict=True), strict=True)
    ]
    return jax.tree.unflatten(structure, moves), outer.unflatten(whole)


def _network(key: Key[Array, ""], hidden: int) -> Theta:
    """Return the weights of a coordinate's network, which starts close to Adam."""
    one, two = jax.random.split(key)
    output = {"kernel": 0.01 * jax.random.normal(two, (hidden, 2)), "bias": jnp.zeros((2,))}
    skip = jnp.zeros((1 + DIRECTIONS,)).at[ADAM].set(1.0)
    return {"hidden": dense(one, DIRECTIONS + 1, hidden), "output": output, "skip": skip}


def _moved(
    weights: Theta, shift: Any, step: Array, gradient: Tensor, history: History
) -> tuple[Tensor, History]:
    """Return the unscaled update of some coordinates; `shift` is added to the hidden units."""
    finite, gradient = jnp.isfinite(gradient), _bounded(gradient)
    mean = momenta(history.momenta, gradient)
    variance = second_moment(history.variance, gradient)
    root = jnp.sqrt(bias_corrected(variance, VARIANCE_DECAY, step) + SMALL)
    inverse = 1 / root
    unbiased = [bias_corrected(m, decay, step) for m, decay in zip(mean, DECAYS, strict=True)]
    direction = [x * inverse for x in (gradient, *unbiased)]
    inputs, (layer, out) = [*direction, jnp.log(root) / 10], (weights["hidden"], weights["output"])
    inner = [jax.nn.relu(x) for x in _dense(layer["kernel"], layer["bias"] + shift, inputs)]
    d, a = _dense(out["kernel"], out["bias"], inner)
    plain = sum(s * x for s, x in zip(weights["skip"], [gradient, *direction], strict=True))
    after = jax.tree.map(partial(jnp.where, finite), History(mean, variance), history)
    return jnp.where(finite, -(plain + d) * jnp.exp(a), 0), after


def _bounded(gradient: Tensor) -> Tensor:
    """Return the gradient clipped so that its square is finite, and 0 where it is not finite."""
    return jnp.where(jnp.isfinite(gradient), jnp.clip(gradient, -LARGEST, LARGEST), 0)


@jax.custom_jvp
def _dense(
    kernel: Float[Array, "inputs outputs"], bias: Float[Array, " outputs"], x: list[Tensor]
) -> list[Any]:
    """Return kernelᵀ x + bias as a list with one entry per output.

    It sums rows instead of multiplying matrices: XLA fuses the sums and the surrounding code into
    one loop, and the hidden units stay in registers. When differentiated, it uses matrix products:
    the hidden units are stored anyway, and the kernel's gradient is a sum over coordinates.
    """
    return [
        sum((k * row for k, row in zip(column, x, strict=True)), b)
        for column, b in zip(kernel.T, bias, strict=True)
    ]


@_dense.defjvp
def _dense_jvp(
    primals: tuple[Any, ...], tangents: tuple[Any, ...]
) -> tuple[list[Tensor], list[Tensor]]:
    (kernel, bias, x), (to_kernel, to_bias, to_x) = primals, tangents
    shape = x[0].shape
    # XLA multiplies by flat rows twice as fast, but a sharding that a type names may not be merged.
    if not any(jax.typeof(x[0]).sharding.spec):
        x, to_x = ([jnp.ravel(row) for row in rows] for rows in (x, to_x))
    x, to_x = jnp.stack(x), jnp.stack(to_x)
    one_each = (-1, *(1,) * (x.ndim - 1))
    value = jnp.tensordot(kernel.T, x, 1) + bias.reshape(one_each)
    to_value = jnp.tensordot(to_kernel.T, x, 1) + jnp.tensordot(kernel.T, to_x, 1)
    to_value += to_bias.reshape(one_each)
    return [row.reshape(shape) for row in value], [row.reshape(shape) for row in to_value]
