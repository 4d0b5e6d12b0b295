"""A resumable inner loop over any optax transform, and the ways to differentiate it.

Every learner that adapts by gradients uses this loop: MAML with `optax.sgd`, fine-tuning without a
meta-gradient, a learned optimizer with its own transform. `start` and `step` are separate from
`run` so that an estimator can stop a loop, carry it over an outer step, and resume it. `adapt`
runs the complete loop, from parameters to adapted parameters, under any mode.

The examples below minimise (θ − batch)²:

>>> import jax
>>> import jax.numpy as jnp
>>> import optax
>>> def loss(params, batch):
...     return (params - batch) ** 2, {}
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jaxtyping import Array, Int, PyTree

Loss = Callable[[Any, Any], tuple[Array, Any]]
"""(params, batch) -> (scalar, auxiliary output)."""


class Unrolled(NamedTuple):
    """Differentiate through every inner step: the exact meta-gradient.

    Stores the activations of all inner steps: O(steps) memory. With `remat` they are recomputed in
    the backward pass, in segments of √steps; this stores the activations of one step and O(√steps)
    copies of the parameters, and takes about two more forward and backward passes. No bias.

    Chen, Xu, Zhang, Guestrin: Training deep nets with sublinear memory cost, 2016.
    """

    remat: bool = False


class Mixed(NamedTuple):
    """Differentiate through every inner step by forward-over-reverse mode: also exact.

    The backward pass of a step needs the product of a vector v with the derivative of ∇L. For the
    parameters this is Hv, which is the directional derivative of ∇L along v because H is symmetric.
    For everything else that L depends on, it is the directional derivative of L's other gradients.
    So a step stores only its initial parameters, and its gradient is recomputed together with its
    derivative. This takes O(steps) copies of the parameters, the activations of one step, and about
    the time of `Unrolled()` without `remat`. No bias. The result can be differentiated once, in
    reverse.

    Attributes:
        unroll: steps per iteration of the compiled loop, as in `jax.lax.scan`: work between
            iterations, such as copying parameters, is done less often, but compiling takes longer.

    Kemaev, Calian, Zintgraf, Farquhar, van Hasselt: Scalable Meta-Learning via Mixed-Mode
    Differentiation, 2025.
    """

    unroll: int = 1


class FirstOrder(NamedTuple):
    """Treat the inner gradients as constants: d adapted / d initial = I under SGD.

    No activations of the inner steps are stored and no second derivative is taken. Biased by the
    dropped Hessian terms, O(rate * steps). Finn et al. 2017, section 5.2.
    """


class Implicit(NamedTuple):
    """Differentiate the solution that the inner loop approaches, not the path to it.

    The loop descends G(θ) = L(θ) + λ/2 ‖θ − φ‖². At its minimum, with H = ∇²L(θ),

        dθ/dφ = (I + H/λ)⁻¹,    solved by conjugate gradients on ((1 + damping) I + H/λ).

    Costs `cg_steps` Hessian-vector products for any number of inner steps, and memory for one step.
    Biased by ‖∇G‖ ≠ 0 where the loop stops short, by stopping conjugate gradients early, and by the
    damping. Other values that L depends on (the body under an adapted head) get their implicit
    gradient too; values that only the loop depends on (a learned rate) get none. In a loop over
    minibatches, L is the loss on the last one.

    Attributes:
        strength: λ > 0, the pull towards the initial parameters. If the most negative curvature
            of L exceeds it in magnitude, the inner objective has no minimum there and conjugate
            gradients may break down.
        cg_steps: number of conjugate-gradient steps, at least 1.
        damping: ≥ 0, added to the diagonal in case H is not positive.

    Rajeswaran et al.: Meta-Learning with Implicit Gradients, 2019.
    """

    strength: float = 2.0
    cg_steps: int = 5
    damping: float = 0.0


Mode = Unrolled | Mixed | FirstOrder | Implicit


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
        remat: whether `run` recomputes activations in the backward pass.
        unroll: steps per iteration of the compiled loop.
    """

    start: Callable[[PyTree], Carry]
    step: Callable[[Carry, Any], Carry]
    remat: bool = False
    unroll: int = 1


def inner_loop(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    mode: Unrolled | Mixed | FirstOrder = Unrolled(),
) -> InnerLoop:
    """Build the loop θ ← θ + u(∇L(θ, batch)), where u is the update of `optimizer`.

    Args:
        loss: (params, batch) -> (scalar, auxiliary output); the latter is dropped.
        optimizer: any optax transform; the loss is passed as `value=` if it takes one.
        mode: how a meta-gradient passes through a step.

    Returns:
        The loop's `start` and `step`.

    Raises:
        TypeError: any other mode; `Implicit` applies to a complete loop, see `adapt`.

    >>> loop = inner_loop(loss, optax.sgd(0.25))
    >>> carry = jax.jit(loop.step)(loop.start(jnp.zeros(())), 1.0)
    >>> int(carry.step), float(carry.params)
    (1, 0.5)
    """
    if not isinstance(mode, Unrolled | Mixed | FirstOrder):
        raise TypeError(f"mode is {mode!r}; a loop's steps are Unrolled(), Mixed() or FirstOrder()")
    optimizer = optax.with_extra_args_support(optimizer)
    slope = _mixed_value_and_grad(loss) if isinstance(mode, Mixed) else _value_and_grad(loss)

    def start(params: PyTree) -> Carry:
        return Carry(jnp.zeros((), jnp.int32), params, optimizer.init(params))

    def step(carry: Carry, batch: Any) -> Carry:
        value, gradient = slope(carry.params, batch)
        if isinstance(mode, FirstOrder):
            value, gradient = jax.lax.stop_gradient((value, gradient))
        # Optax raises floats to its int32 count, which strict promotion of dtypes forbids.
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimizer.update(gradient, carry.optimizer, carry.params, value=value)
        return Carry(carry.step + 1, optax.apply_updates(carry.params, updates), state)

    remat = isinstance(mode, Unrolled) and mode.remat
    return InnerLoop(start, step, remat, mode.unroll if isinstance(mode, Mixed) else 1)


def _value_and_grad(loss: Loss) -> Callable[[PyTree, Any], tuple[Array, PyTree]]:
    def slope(params: PyTree, batch: Any) -> tuple[Array, PyTree]:
        (value, _), gradient = jax.value_and_grad(loss, has_aux=True)(params, batch)
        return value, gradient

    return slope


def _mixed_value_and_grad(loss: Loss) -> Callable[[PyTree, Any], tuple[Array, PyTree]]:
    """Return `_value_and_grad(loss)` with its reverse derivative computed in forward mode."""

    def slope(params: PyTree, batch: Any) -> tuple[Array, PyTree]:
        # The loss's closed-over values become arguments: the meta-gradient passes through them.
        traced = jax.make_jaxpr(lambda *at: loss(*at)[0])(params, batch)
        given = [*jax.tree.leaves(batch), *traced.consts]
        smooth = [jnp.issubdtype(jnp.result_type(leaf), jnp.inexact) for leaf in given]
        floats = [leaf for leaf, one in zip(given, smooth, strict=True) if one]
        others = [leaf for leaf, one in zip(given, smooth, strict=True) if not one]

        def value(params: PyTree, floats: list[Array], others: list[Array]) -> Array:
            leaves, rest = iter(floats), iter(others)
            given = [next(leaves) if one else next(rest) for one in smooth]
            count = len(given) - len(traced.consts)
            run = jaxpr_as_fun(ClosedJaxpr(traced.jaxpr, given[count:]))
            (found,) = run(*jax.tree.leaves(params), *given[:count])
            return found

        @jax.custom_vjp
        def of(params: PyTree, floats: list[Array], others: list[Array]) -> tuple[Array, PyTree]:
            return jax.value_and_grad(value)(params, floats, others)

        def forward(*arguments: Any) -> tuple[tuple[Array, PyTree], tuple[Any, ...]]:
            return of(*arguments), arguments

        def backward(arguments: Any, cotangent: tuple[Array, PyTree]) -> tuple[Any, ...]:
            params, floats, others = arguments
            weight, direction = cotangent
            gradients, products = jax.jvp(
                lambda at: jax.grad(value, (0, 1))(at, floats, others), (params,), (direction,)
            )
            # The derivative of ⟨∇L, v⟩ + w L.
            return *optax.tree.add_scale(products, weight, gradients), None

        of.defvjp(forward, backward)
        return of(params, floats, others)

    return slope


def run(
    loop: InnerLoop,
    carry: Carry,
    batches: Callable[[Int[Array, ""]], Any],
    steps: int,
    observe: Callable[[Carry], Any] | None = None,
) -> tuple[Carry, Any]:
    """Take `steps` steps from `carry` in one scan, compiled once for any number of steps.

    Args:
        loop: the loop to run.
        carry: the current state; `loop.start(params)` gives a fresh one.
        batches: step -> batch: always the support for MAML, fresh minibatches for training.
        steps: number of steps to take; 0 returns `carry`.
        observe: carry -> pytree, called before the first step and after each one.

    Returns:
        The carry after the last step, and the observations stacked on a leading axis of
        `steps + 1`, or None if `observe` is None.

    Raises:
        ValueError: `steps` is negative.

    >>> loop = inner_loop(loss, optax.sgd(0.25))
    >>> carry, seen = run(loop, loop.start(jnp.zeros(())), lambda step: 1.0, 3, lambda c: c.params)
    >>> print(seen)
    [0.    0.5   0.75  0.875]
    """
    if steps < 0:
        raise ValueError(f"steps is {steps}: an inner loop takes 0 or more")

    def body(carry: Carry, _: None) -> tuple[Carry, Any]:
        carry = loop.step(carry, batches(carry.step))
        return carry, None if observe is None else observe(carry)

    first = None if observe is None else jax.tree.map(jnp.asarray, observe(carry))
    carry, later = _scan(body, carry, steps, loop)
    if observe is None:
        return carry, None
    return carry, jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, later)


def _scan(body: Callable, carry: Carry, steps: int, loop: InnerLoop) -> tuple[Carry, Any]:
    """Scan `body`; with `remat`, a segment of √steps stores only its first carry and is rerun."""
    if steps == 1:  # a loop of one iteration keeps XLA from fusing the step with its surroundings
        carry, seen = body(carry, None)
        return carry, jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], seen)
    if not loop.remat:
        return jax.lax.scan(body, carry, length=steps, unroll=loop.unroll)
    body, segment = jax.checkpoint(body), max(1, round(steps**0.5))
    inner = jax.checkpoint(lambda carry, _: jax.lax.scan(body, carry, length=segment))
    carry, many = jax.lax.scan(inner, carry, length=steps // segment)
    carry, rest = jax.lax.scan(body, carry, length=steps % segment)
    flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), many)
    return carry, jax.tree.map(lambda a, b: jnp.concatenate([a, b]), flat, rest)


def adapt(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    mode: Mode,
    params: PyTree,
    batches: Callable[[Int[Array, ""]], Any],
    steps: int,
    observe: Callable[[Carry], Any] | None = None,
) -> tuple[PyTree, Any]:
    """Return the parameters after `steps` inner steps from `params`, differentiable under `mode`.

    Args:
        loss: (params, batch) -> (scalar, auxiliary output).
        optimizer: the update rule, any optax transform.
        mode: how the meta-gradient is computed.
        params: the initial parameters.
        batches: step -> batch.
        steps: number of steps to take.
        observe: as in `run`; the observations of an `Implicit` loop have no gradient.

    Returns:
        The adapted parameters and the observations.

    Raises:
        ValueError: `mode` needs the derivative of the optimizer's update, which is not finite
            where some gradients are 0 or after some steps; or a field of `mode` is out of range.
        TypeError: `mode` is not one of the four modes.

    >>> def adapted(start, mode):
    ...     return adapt(loss, optax.sgd(0.25), mode, start, lambda step: 1.0, 3)[0]
    >>> slope = jax.jit(jax.grad(adapted), static_argnums=1)
    >>> float(slope(0.0, Unrolled())), float(slope(0.0, FirstOrder()))
    (0.125, 1.0)
    """
    if not isinstance(mode, Mode):
        known = "Unrolled(), Mixed(), FirstOrder() and Implicit()"
        raise TypeError(f"mode is {mode!r}; there are {known}")
    if isinstance(mode, Mixed) and mode.unroll < 1:
        raise ValueError(f"{mode}: unroll has to be ≥ 1")
    params = jax.tree.map(jnp.asarray, params)
    if not isinstance(mode, Implicit):
        if isinstance(mode, Unrolled | Mixed) and steps > 0:
            optimizer = differentiable(optimizer, params)
        loop = inner_loop(loss, optimizer, mode)
        carry, seen = run(loop, loop.start(params), batches, steps, observe)
        return carry.params, seen
    if not (mode.strength > 0 and mode.cg_steps >= 1 and mode.damping >= 0):
        raise ValueError(f"{mode}: strength has to be > 0, cg_steps ≥ 1 and damping ≥ 0")

    def proximal(theta: PyTree, batch: Any) -> tuple[Array, Any]:
        value, auxiliary = loss(theta, batch)
        pull = optax.tree.norm(optax.tree.sub(theta, params), squared=True)
        return value + 0.5 * mode.strength * pull, auxiliary

    loop = inner_loop(proximal, optimizer, FirstOrder())
    carry, seen = run(loop, loop.start(params), batches, steps, observe)
    if steps == 0:
        return params, seen
    solution, last = jax.lax.stop_gradient(carry.params), batches(carry.step - 1)

    def slope(theta: PyTree) -> PyTree:
        slope = jax.grad(lambda theta: proximal(theta, last)[0])(theta)
        return optax.tree.scale(1 / mode.strength, slope)

    residual, push = jax.linearize(slope, solution)
    push, constants = jax.closure_convert(push, solution)
    constants = jax.lax.stop_gradient(constants)

    def curvature(vector: PyTree) -> PyTree:
        return optax.tree.add_scale(push(vector, *constants), mode.damping, vector)

    # A Newton step from the solution on the residual minus its own value: the step is 0, but its
    # derivative in everything that the residual depends on is that of the implicit function.
    residual = optax.tree.sub(residual, jax.lax.stop_gradient(residual))
    # Beyond the precision of the residual, another step would divide 0 by 0.
    exact = float(jnp.finfo(jnp.result_type(*jax.tree.leaves(residual))).eps)
    step, _ = jax.scipy.sparse.linalg.cg(curvature, residual, tol=exact, maxiter=mode.cg_steps)
    return optax.tree.sub(solution, step), jax.lax.stop_gradient(seen)


def differentiable(
    optimizer: optax.GradientTransformation, params: PyTree
) -> optax.GradientTransformation:
    """Return an inner optimizer whose updates have a finite derivative, or raise an error.

    A meta-gradient passes through the updates, and one NaN in it ends training: Adam's √v at v = 0,
    below an inactive ReLU; the norm of a zero leaf in LAMB. The rule is tested here on gradients
    with one 1 per leaf among zeros, with leaves that are all 0, and over several steps. If it fails
    only when the complete gradient is 0, like a rule that divides by the global norm, the
    derivative of such a step is taken as 0: a support without examples teaches nothing. A rule that
    depends on traced values (a learned rate) cannot be tested while tracing, and passes.

    Args:
        optimizer: the inner rule.
        params: the parameters it updates; only their shapes and dtypes are read.

    Returns:
        The rule, with that guard if it needs it.

    Raises:
        ValueError: the derivative is not finite; the message says where, and what to use instead.

    >>> differentiable(optax.adam(0.1), jnp.zeros(2))
    Traceback (most recent call last):
        ...
    ValueError: the inner optimizer's update has no finite derivative where a gradient is 0, ...
    >>> rule = differentiable(optax.adam(0.1, eps_root=1e-8), jnp.zeros(2))
    """
    rule = optax.with_extra_args_support(optimizer)
    leaves, structure = jax.tree.flatten(params)
    if not leaves:
        return rule
    alone = all(leaf.size == 1 for leaf in leaves)
    shapes = [leaf.shape for leaf in leaves]

    def probe(
        shapes: list[tuple[int, ...]], among: Callable[[int], bool] = lambda i: True
    ) -> PyTree:
        """Return one 1 in each of these leaves, zeros elsewhere; only zeros for scalar leaves."""
        of = zip(shapes, leaves, strict=True)
        filled = [np.zeros(int(np.prod(shape)), leaf.dtype) for shape, leaf in of]
        for i, values in enumerate(filled):
            values[:1] = among(i) and not alone
        parts = [values.reshape(shape) for values, shape in zip(filled, shapes, strict=True)]
        return jax.tree.unflatten(structure, parts)

    def runs(gradient: PyTree) -> bool:
        try:
            jax.eval_shape(lambda: rule.update(gradient, rule.init(gradient), gradient, value=0.0))
        except (TypeError, ValueError):
            return False
        return True

    # Several steps at a network's full size would take seconds; only learned rates need that size.
    small = [tuple(min(side, 3) for side in shape) for shape in shapes]
    with jax.numpy_dtype_promotion("standard"):
        small = small if runs(probe(small)) else shapes

    def slopes_of(*gradients: PyTree) -> list[Any]:
        """Differentiate the parameters after a step for each of these gradients."""
        point = jax.tree.map(np.ones_like, gradients[0])

        def change(gradients: tuple[PyTree, ...], params: PyTree) -> Array:
            state = rule.init(point)
            for gradient in gradients:
                updates, state = rule.update(gradient, state, params, value=np.float32(0))
                params = optax.apply_updates(params, updates)
            return jnp.asarray(optax.tree.sum(params))

        with jax.ensure_compile_time_eval(), jax.numpy_dtype_promotion("standard"):
            return jax.tree.leaves(jax.grad(change, (0, 1))(gradients, point))

    def are_finite(slopes: list[Any]) -> bool:
        return all(isinstance(slope, Tracer) or np.isfinite(slope).all() for slope in slopes)

    one, even, odd = (
        probe(small, among)
        for among in (lambda i: True, lambda i: i % 2 == 0, lambda i: i % 2 == 1)
    )
    trials = {"where a gradient is 0": [(probe(shapes),)]}
    if len(leaves) > 1:
        trials["where the gradient of a whole leaf is 0"] = [(even,), (odd,)]
    trials["after some steps"] = [(one,) * PROBED_STEPS]
    for where, sequences in trials.items():
        for gradients in sequences:
            slopes = slopes_of(*gradients)
            if all(isinstance(slope, Tracer) for slope in slopes):
                return optimizer  # of a learned rule, further trials would take seconds to trace
            if are_finite(slopes):
                continue
            raise ValueError(
                f"the inner optimizer's update has no finite derivative {where}, so that the "
                "second-order meta-gradient may be NaN; use FirstOrder(), or a rule that has one: "
                "Adam and its kind with an eps_root, such as optax.adam(rate, eps_root=1e-8)"
            )
    at_nothing = slopes_of(probe(small, lambda i: False))
    return optimizer if are_finite(at_nothing) else _still_at_nothing(rule)


PROBED_STEPS = 8
"""Steps over which `differentiable` tests a rule: RAdam switches rules at its sixth."""


def _still_at_nothing(rule: optax.GradientTransformationExtraArgs) -> Any:
    """Return a rule whose updates have derivative 0 where all gradients are 0."""

    def update(
        updates: PyTree, state: PyTree, params: PyTree = None, **extra: Any
    ) -> tuple[PyTree, PyTree]:
        nothing = jnp.all(jnp.stack([jnp.all(leaf == 0) for leaf in jax.tree.leaves(updates)]))
        # The branch not chosen is differentiated too, so it must not produce the NaN either.
        some = jax.tree.map(lambda leaf: jnp.where(nothing, jnp.ones_like(leaf), leaf), updates)
        still = rule.update(*jax.lax.stop_gradient((updates, state, params)), **extra)
        moved = rule.update(some, state, params, **extra)
        return jax.tree.map(lambda a, b: jnp.where(nothing, a, b), still, moved)

    return optax.GradientTransformationExtraArgs(rule.init, update)
