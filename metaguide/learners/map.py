"""Maximum a posteriori adaptation: a head that stays close to the one trained on the sources.

`map_head` is the learner. Its parts are pure functions of arrays, for use on precomputed vectors.
All of them work under `jit` and `vmap`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key

from metaguide.inner_loop import inner_loop, run
from metaguide.learners.on_features import (
    Features,
    absent,
    centred,
    check_positive,
    classes_of,
    masked_loss,
    prototypes,
    standardised,
)
from metaguide.types import Batch, Episode, Learner, Metrics, Observe, Params, Problem, Progress

Inputs = Float[Array, "examples width"]
Logits = Float[Array, "examples way"]
Labels = Int[Array, " examples"]
Mask = Bool[Array, " examples"]
Shift = Float[Array, "width way"]
Prior = Float[Array, " way"]
Penalty = float | Float[Array, ""] | Float[Array, " width"]

_LEAST_SHARE = 1e-6
"""Lower bound of a class's share before the logarithm is taken."""


class Rows(NamedTuple):
    """Examples as `map_shift` reads them; when stacked over tasks, with one more leading axis."""

    inputs: Array
    label: Array
    mask: Array
    prior_logits: Array


def map_head(
    problem: Problem, penalty: float | Array = 300.0, caution: float | None = 2.0
) -> Learner:
    """Build a head with a penalty towards the trained one: argmin_θ Σ_i ℓ_i(θ) + λ/2 ‖θ − s θ₀‖².

    θ = s θ₀ + Δ, where θ₀ is the problem's own trained head, of any form, and Δ is linear in the
    features of `centred`. The scale s calibrates the head on domains that are new to it. Δ has
    no bias: a support is balanced while its domain need not be, and ten examples say little about
    the boundary between the classes. Classes without support keep what the sources taught.

    λ and s are meta-learned on the loss of the query, without the guard, which has no gradient. The
    episodes must be of domains that the head was not trained on: if it has seen their labels, there
    is nothing to adapt to, and λ grows. For precomputed vectors, use `learn_rule`.

    Args:
        problem: a problem with classes, its head trained on source domains.
        penalty: initial λ > 0, for features of unit mean square.
        caution: how certain the guard must be, as in `worth_adapting`; None always adapts. The
            guard adapts once for each example of the support.

    Returns:
        A learner whose meta-parameters are {"params": φ, "rule": {"log_penalty", "log_scale"}},
        and whose `adapted` is (meta-parameters, (middle of the support, Δ)). Given {"params": φ}
        alone, it adapts with λ = `penalty` and s = 1.

    Raises:
        ValueError: the problem has no classes, or λ is not positive.

    Chelba, Acero: Adaptation of Maximum Entropy Capitalizer, 2004.

    >>> learner = map_head(pictures, penalty=0.1, caution=None)
    >>> adapted, _ = jax.jit(learner.adapt)(learner.init(key), shades.support, (), key)
    >>> print(learner.predict(adapted, shades.query, ())["logits"].argmax(-1))
    [0 1 0 1]
    """
    way = classes_of(problem, "map_head")
    check_positive(penalty=penalty)

    def rule_of(meta: Params) -> Params:
        if "rule" in meta:
            return meta["rule"]
        dtype = jnp.result_type(*jax.tree.leaves(meta["params"]))
        log_penalty = jnp.log(jnp.asarray(penalty, dtype))
        return {"log_penalty": log_penalty, "log_scale": jnp.zeros((), dtype)}

    def init(key: Key[Array, ""]) -> Params:
        params = problem.init(key)
        return {"params": params, "rule": rule_of({"params": params})}

    def encoded(meta: Params, batch: Batch, context: Any) -> tuple[Array, Array]:
        states = problem.encode(meta["params"], batch, context, None)
        logits = problem.predict(meta["params"], states, batch, context)["logits"]
        return problem.features(states), jnp.exp(rule_of(meta)["log_scale"]) * logits

    def fit(meta: Params, support: Batch, context: Any, caution: float | None) -> Any:
        features, known = encoded(meta, support, context)
        label, mask = support[problem.target], support["mask"]
        middle = mean_of_classes(features, label, mask, way)
        rows = Rows(centred(features, middle), label, mask, known)
        strength = jnp.exp(rule_of(meta)["log_penalty"])
        shift = map_shift(*rows, strength)
        if caution is not None:
            pays = worth_adapting(*leave_one_out_losses(*rows, strength), mask, caution)
            shift = jnp.where(pays, shift, 0)
        return meta, (middle, shift)

    def adapt(
        meta: Params,
        support: Batch,
        context: Any,
        key: Key[Array, ""] | None,
        observe: Observe | None = None,
    ) -> tuple[Any, Any]:
        del key
        adapted = fit(meta, support, context, caution)
        seen = None if observe is None else jax.tree.map(lambda a: a[None], observe(adapted))
        return adapted, seen

    def predict(adapted: Any, query: Batch, context: Any) -> dict[str, Array]:
        meta, (middle, shift) = adapted
        features, known = encoded(meta, query, context)
        return {"logits": known + centred(features, middle) @ shift}

    def loss(adapted: Any, query: Batch, context: Any) -> tuple[Array, Metrics]:
        logits = predict(adapted, query, context)["logits"]
        return masked_loss(logits, query[problem.target], query["mask"])

    def objective(
        meta: Params, episode: Episode, key: Key[Array, ""] | None, progress: Progress
    ) -> tuple[Array, Metrics]:
        del key, progress
        adapted = fit(meta, episode.support, episode.context, None)
        return loss(adapted, episode.query, episode.context)

    return Learner(init, adapt, loss, predict, objective)


def mean_of_classes(features: Features, label: Labels, mask: Mask, way: int) -> Array:
    """Return the mean of the classes' mean features, [width], over the classes with examples.

    Unlike the mean of the examples, it does not depend on the number of examples per class.
    """
    flat = standardised(features)[:, :-1]
    present = ~absent(label, mask, way)[:, None]
    centres = jnp.where(present, prototypes(flat, label, mask, way), 0)
    return centres.sum(0) / present.sum().astype(flat.dtype)


def map_shift(
    inputs: Inputs,
    label: Labels,
    mask: Mask,
    prior_logits: Logits,
    penalty: Penalty,
    steps: int = 25,
) -> Shift:
    """Return Δ = argmin Σ_i −log softmax(z_i + Δᵀ x_i)_{y_i} + ½ Σ_k λ_k ‖Δ_k‖².

    With z_i = θ₀ᵀ x_i this is the maximum a posteriori head θ = θ₀ + Δ under a Gaussian prior of
    mean θ₀ and precision λ; z_i may also come from a nonlinear head.

    The problem is convex. Newton's steps are solved by conjugate gradients, which stay in the span
    of the support and are exact after at most examples × (way − 1) iterations. A step that
    overshoots is halved. The first derivatives in `inputs`, `prior_logits` and `penalty` are those
    of the minimum, by the implicit function theorem, not those of the iterations (Rajeswaran et
    al.: Meta-Learning with Implicit Gradients, 2019).

    Args:
        inputs: x, the inputs of the linear Δ; append a column of ones for a bias.
        label: class of each example, in [0, way); ignored where `mask` is False.
        mask: which examples count.
        prior_logits: z, the logits before adaptation.
        penalty: λ > 0, a scalar or one value per column of `inputs`.
        steps: the most steps of Newton's method.

    Returns:
        Δ; zero if no example counts.
    """
    return _shift_of(_posed(inputs, label, mask, prior_logits, penalty), steps)


Task = tuple[Array, Array, Array, Array]
"""The support of `map_shift`: x and z (0 where masked), one-hot targets (0 where an example does
not count), λ [width, 1]."""


def _posed(
    inputs: Inputs, label: Labels, mask: Mask, prior_logits: Logits, penalty: Penalty
) -> Task:
    known = mask[:, None]
    x = jnp.where(known, inputs, 0)
    z = jnp.where(known, prior_logits, 0).astype(x.dtype)
    target = jnp.where(known, jax.nn.one_hot(label, z.shape[1], dtype=x.dtype), 0)
    precision = jnp.broadcast_to(jnp.asarray(penalty, x.dtype), x.shape[1:])[:, None]
    return x, z, target, precision


def _shift_of(task: Task, steps: int = 25, start: Shift | None = None) -> Shift:
    fixed = jax.lax.stop_gradient(task)
    found = _minimum(fixed, steps, start)
    # At the minimum this last step is zero, and its derivative is the minimum's.
    return found - _newton(fixed, found, _slope(task, found))


def _value(task: Task, shift: Shift) -> Float[Array, ""]:
    x, z, target, precision = task
    log_p = jax.nn.log_softmax(z + x @ shift)
    return 0.5 * (precision * jnp.square(shift)).sum() - (target * log_p).sum()


def _slope(task: Task, shift: Shift) -> Shift:
    x, z, target, precision = task
    counts = target.sum(-1, keepdims=True)
    return x.T @ (counts * jax.nn.softmax(z + x @ shift) - target) + precision * shift


def _newton(task: Task, shift: Shift, slope: Shift) -> Shift:
    """Return H⁻¹ slope, where H is the Hessian at the shift."""
    x, z, target, precision = task
    p = target.sum(-1, keepdims=True) * jax.nn.softmax(z + x @ shift)
    # With λ scaled to 1, the rank of the remaining term bounds the number of iterations.
    root = jax.lax.rsqrt(precision)

    def hessian(vector: Array) -> Array:
        change = x @ (root * vector)
        curved = p * (change - (p * change).sum(-1, keepdims=True))
        return vector + root * (x.T @ curved)

    rank = min(x.shape[0] * (z.shape[1] - 1), x.shape[1] * z.shape[1])
    tol, most = float(jnp.finfo(x.dtype).eps), 2 * rank + 10
    moved, _ = jax.scipy.sparse.linalg.cg(hessian, root * slope, tol=tol, maxiter=most)
    return root * moved


def _minimum(task: Task, steps: int, start: Shift | None = None) -> Shift:
    """Return Δ by Newton's method with line search, from a start or from 0."""
    x, z, *_ = task
    sizes = 0.5 ** jnp.arange(12, dtype=x.dtype)
    # Newton's steps square the error: after one this small, what is left is below all digits.
    small = float(jnp.finfo(x.dtype).eps) ** 0.5

    def unfinished(carry: tuple[Array, Array, Array]) -> Array:
        _, moving, count = carry
        return moving & (count < steps)

    def step(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        shift, _, count = carry
        move = _newton(task, shift, _slope(task, shift))
        values = jax.vmap(lambda size: _value(task, shift - size * move))(sizes)
        # Near the minimum all values round to the same number, but the full step still adds digits.
        near = jnp.abs(move).max() <= 1e-2 * jnp.abs(shift).max()
        size = jnp.where(near, 1, sizes[jnp.argmin(values)])
        after = jnp.where(near | (values.min() < _value(task, shift)), shift - size * move, shift)
        has_moved = jnp.abs(after - shift).max() > 0
        moving = has_moved & (jnp.abs(move).max() > small * jnp.abs(after).max())
        return after, moving, count + 1

    start = jnp.zeros((x.shape[1], z.shape[1]), x.dtype) if start is None else start
    begin = start, jnp.asarray(True), jnp.asarray(0, jnp.int32)
    return jax.lax.while_loop(unfinished, step, begin)[0]


def leave_one_out_losses(
    inputs: Inputs,
    label: Labels,
    mask: Mask,
    prior_logits: Logits,
    penalty: Penalty,
) -> tuple[Float[Array, " examples"], Float[Array, " examples"]]:
    """Return each support example's loss before adaptation, and after adapting to the others.

    Args:
        inputs, label, mask, prior_logits, penalty: as in `map_shift`.

    Returns:
        (−log softmax(z_i)_{y_i}, −log softmax(z_i + Δ₋ᵢᵀ x_i)_{y_i}), where Δ₋ᵢ is the `map_shift`
        of the support without example i; 0 where `mask` is False.
    """

    x, z, target, precision = task = _posed(inputs, label, mask, prior_logits, penalty)
    # One example moves the minimum little, so that Newton's method is soon there.
    whole = _minimum(jax.lax.stop_gradient(task), 25)

    def left_out(row: Array) -> Array:
        # All turns share the inputs, of which there would otherwise be a copy for each.
        shift = _shift_of((x, z, target.at[row].set(0), precision), start=whole)
        return z[row] + x[row] @ shift

    after = jax.vmap(left_out)(jnp.arange(len(mask), dtype=jnp.int32))
    return _losses(z, label, mask), _losses(after, label, mask)


def worth_adapting(
    before: Float[Array, " examples"],
    after: Float[Array, " examples"],
    mask: Mask,
    caution: float,
) -> Bool[Array, ""]:
    """Return whether the losses fell by more than chance: mean(d) > c · sd(d) / √n.

    d = before − after.

    Args:
        before, after: losses of n support examples, as from `leave_one_out_losses`.
        mask: which examples count.
        caution: c, in standard errors. At 0 the better mean wins; with larger values, adaptation
            does harm less often and helps less.

    Returns:
        A bool; False for fewer than two examples.
    """
    count = mask.sum().astype(before.dtype)
    gain = jnp.where(mask, before - after, 0)
    mean = gain.sum() / jnp.maximum(count, 1)
    spread = jnp.where(mask, jnp.square(gain - mean), 0).sum() / jnp.maximum(count - 1, 1)
    return (count > 1) & (mean > caution * jnp.sqrt(spread / jnp.maximum(count, 1)))


def learn_rule(
    support: Rows, query: Rows, penalty: float = 300.0, steps: int = 80
) -> dict[str, Float[Array, ""]]:
    """Meta-learn λ and s by descending the queries' mean loss after adaptation to the supports.

    The scale s calibrates a head on domains that are new to it. It changes no decision before
    adaptation; but if logits are too small, fitting the support mostly enlarges them, along
    whatever direction a few examples suggest.

    Args:
        support, query: tasks of source domains, stacked on a leading axis. The `prior_logits` of a
            task must come from a head that was not trained on its domain: hold out each in turn.
        penalty: initial λ; s starts at 1.
        steps: number of steps of resilient propagation, which needs no learning rate.

    Returns:
        {"log_penalty", "log_scale"}, as in the rule of `map_head`.
    """
    dtype = support.inputs.dtype

    def loss(rule: dict[str, Array], tasks: tuple[Rows, Rows]) -> tuple[Array, None]:
        def of_task(support: Rows, query: Rows) -> Array:
            scale = jnp.exp(rule["log_scale"])
            known = scale * support.prior_logits.astype(dtype)
            shift = map_shift(*support._replace(prior_logits=known), jnp.exp(rule["log_penalty"]))
            logits = scale * query.prior_logits.astype(dtype) + query.inputs @ shift
            return _mean(_losses(logits, query.label, query.mask), query.mask)

        return jax.vmap(of_task)(*tasks).mean(), None

    start = {"log_penalty": jnp.log(jnp.asarray(penalty, dtype)), "log_scale": jnp.zeros((), dtype)}
    loop = inner_loop(loss, optax.rprop(0.1, min_step_size=1e-4, max_step_size=1.0))
    return run(loop, loop.start(start), lambda _: (support, query), steps)[0].params


def prior_shift(
    logits: Logits, source_prior: Float[Array, " way"], target_prior: Float[Array, " way"]
) -> Logits:
    """Return the logits under another class prior: z_n + log π'_n − log π_n.

    Exact if p(x | class) is the same under both: p'(n | x) ∝ p(n | x) π'_n / π_n.

    Args:
        logits: z, logits of a model that is calibrated under `source_prior`.
        source_prior: π, such as the class shares of the training examples; uniform for a balanced
            support.
        target_prior: π', such as that of `estimate_prior`.

    Returns:
        Logits whose softmax is p'. A share of 0 is replaced by 1e-6.

    Saerens, Latinne, Decaestecker: Adjusting the Outputs of a Classifier to New a Priori
    Probabilities, 2002.

    >>> even = jnp.zeros((1, 2))
    >>> print(jax.nn.softmax(prior_shift(even, jnp.array([0.5, 0.5]), jnp.array([0.8, 0.2]))))
    [[0.8 0.2]]
    """
    source = jnp.log(jnp.maximum(source_prior, _LEAST_SHARE))
    target = jnp.log(jnp.maximum(target_prior, _LEAST_SHARE))
    return logits + (target - source).astype(logits.dtype)


def estimate_prior(
    logits: Logits,
    mask: Mask,
    source_prior: Float[Array, " way"],
    strength: float = 0.0,
    steps: int = 200,
) -> Prior:
    """Estimate the class prior of unlabelled examples: π' ← (Σ_i p'(x_i) + s π) / (n + s).

    p' is `prior_shift` to the previous π': expectation maximisation that starts from π.

    Args:
        logits: logits of n unlabelled examples of the new domain, from a model that is calibrated
            under `source_prior`.
        mask: which examples count.
        source_prior: π > 0.
        strength: s, the number of examples that the source prior is worth; 0 in the paper. With 0,
            a domain whose scores are shifted, but not its prior, is mistaken for one with another
            prior.
        steps: number of iterations; each raises the likelihood.

    Returns:
        π', which sums to 1; the source prior if no example counts.

    Saerens, Latinne, Decaestecker: Adjusting the Outputs of a Classifier to New a Priori
    Probabilities, 2002.
    """
    source = (source_prior / source_prior.sum()).astype(logits.dtype)
    finite = jnp.where(mask[:, None], logits, 0)
    count = mask.sum().astype(logits.dtype) + strength

    def step(prior: Array, _: None) -> tuple[Array, None]:
        each = jax.nn.softmax(prior_shift(finite, source, prior))
        total = jnp.where(mask[:, None], each, 0).sum(0) + strength * source
        return jnp.where(count > 0, total / jnp.where(count > 0, count, 1), source), None

    return jax.lax.scan(step, source, length=steps)[0]


def _losses(logits: Logits, label: Labels, mask: Mask) -> Float[Array, " examples"]:
    """Return the cross-entropy of each example, 0 where masked."""
    known = jnp.where(mask, label, 0)
    each = optax.softmax_cross_entropy_with_integer_labels(logits, known)
    return jnp.where(mask, each, 0)


def _mean(values: Float[Array, " examples"], mask: Mask) -> Float[Array, ""]:
    """Return the mean over the mask, 0 if the mask is empty."""
    return jnp.where(mask, values, 0).sum() / jnp.maximum(mask.sum(), 1).astype(values.dtype)
