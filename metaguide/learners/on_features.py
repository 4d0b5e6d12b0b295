"""Learners that hold the encoder and fit a small classifier on its features, in one go.

Trained episodically they are meta-learners (prototypical networks; ridge is R2-D2); given the
parameters of another stage they are the frozen-feature baselines that meta-learners have to beat.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from metaguide.types import Batch, Episode, Learner, Problem

Features = Float[Array, "examples width"]


def prototypical(problem: Problem) -> Learner:
    """Classify by the nearest class mean: p(y = n | x) ∝ exp(−‖f(x) − c_n‖² / √width).

    The division by √width takes the place of a temperature, so that the logits of a wide encoder
    start at a sensible size.

    Args:
        problem: a problem with classes (`way`); its head is not used.

    Returns:
        A learner whose `adapted` is (params, prototypes).

    Raises:
        ValueError: the problem has no classes.

    Snell, Swersky, Zemel: Prototypical Networks for Few-shot Learning, 2017.
    """

    def score(features: Features, centres: Array) -> Array:
        distance = jnp.square(features[:, None] - centres).sum(-1)
        return -distance / jnp.sqrt(jnp.asarray(features.shape[-1], features.dtype))

    return _on_features(problem, prototypes, score)


def ridge(problem: Problem, penalty: float | Array, temperature: float = 1.0) -> Learner:
    """Fit W = argmin ‖XW − (2Y − 1)‖² + λ‖W‖² on the support's features, in closed form.

    Args:
        problem: a problem with classes.
        penalty: λ > 0, for features of unit mean square.
        temperature: the logits are divided by it; matters to training only.

    Returns:
        A learner whose `adapted` is (params, W).

    Raises:
        ValueError: the problem has no classes.

    Bertinetto et al.: Meta-learning with differentiable closed-form solvers, 2019.
    """

    def fit(features: Features, label: Array, mask: Array, way: int) -> Array:
        x = jnp.where(mask[:, None], standardised(features), 0.0)
        y = jax.nn.one_hot(label, way, dtype=x.dtype)
        target = jnp.where(mask[:, None], 2.0 * y - 1.0, 0.0)
        # The dual form: a support has fewer examples than features.
        gram = x @ x.T + penalty * jnp.eye(len(x), dtype=x.dtype)
        return x.T @ jax.scipy.linalg.solve(gram, target, assume_a="pos")

    return _on_features(problem, fit, lambda f, w: standardised(f) @ w / temperature)


def logistic(problem: Problem, penalty: float | Array, steps: int = 30) -> Learner:
    """Fit W = argmin Σ_i −log softmax(x_i W)_{y_i} + λ/2 ‖W‖² by accelerated gradient descent.

    The rate 1 / (‖X‖²/2 + λ) is the inverse of a bound of the curvature, so the descent holds for
    any λ > 0.

    Args:
        problem: a problem with classes.
        penalty: λ > 0, for features of unit mean square.
        steps: number of descent steps.

    Returns:
        A learner whose `adapted` is (params, W).

    Raises:
        ValueError: the problem has no classes.
    """

    def fit(features: Features, label: Array, mask: Array, way: int) -> Array:
        x = jnp.where(mask[:, None], standardised(features), 0.0)
        y = jax.nn.one_hot(label, way, dtype=x.dtype)
        weight = mask[:, None].astype(x.dtype)
        rate = 1.0 / (0.5 * jnp.square(x).sum() + penalty)

        def step(carry, index):
            now, before = carry
            ahead = now + (index / (index + 3.0)) * (now - before)
            error = weight * (jax.nn.softmax(x @ ahead) - y)
            return (ahead - rate * (x.T @ error + penalty * ahead), now), None

        zero = jnp.zeros((x.shape[1], way), x.dtype)
        (weights, _), _ = jax.lax.scan(step, (zero, zero), jnp.arange(steps, dtype=x.dtype))
        return weights

    return _on_features(problem, fit, lambda f, w: standardised(f) @ w)


def prototypes(
    features: Float[Array, "examples width"],
    label: Int[Array, " examples"],
    mask: Bool[Array, " examples"],
    way: int,
) -> Float[Array, "way width"]:
    """Return the mean feature of each class: c_n = Σ_i [y_i = n] f_i / Σ_i [y_i = n].

    Args:
        features: the support's features.
        label: class of each example, in [0, way).
        mask: which examples count.
        way: number of classes.

    Returns:
        One prototype a class; zero where a class has no example.
    """
    member = jax.nn.one_hot(label, way, axis=0, dtype=features.dtype) * mask.astype(features.dtype)
    return member @ features / jnp.maximum(member.sum(1, keepdims=True), 1.0)


def standardised(features: Features) -> Float[Array, "examples width_and_one"]:
    """Return the features at unit mean square an example, with a constant column for the bias."""
    x = features * jax.lax.rsqrt(jnp.square(features).mean(-1, keepdims=True) + 1e-6)
    return jnp.concatenate([x, jnp.ones_like(x[:, :1])], axis=1)


def _on_features(
    problem: Problem,
    fit: Callable[[Features, Array, Array, int], Any],
    score: Callable[[Features, Any], Array],
) -> Learner:
    """Make a learner of `fit(features, labels, mask, way)` and `score(features, fitted)`."""
    way = problem.way
    if way is None:
        raise ValueError("a classifier on features needs a problem with classes; way is None here")

    def features(params, batch: Batch, context) -> Array:
        return problem.features(problem.encode(params, batch, context, None))

    def adapt(meta, support: Batch, context, key, observe=None):
        del key
        params = meta["params"]
        fitted = fit(
            features(params, support, context), support[problem.target], support["mask"], way
        )
        adapted = (params, fitted)
        # One step takes it from nothing to the solution, so there is one observation.
        seen = None if observe is None else jax.tree.map(lambda a: a[None], observe(adapted))
        return adapted, seen

    def predict(adapted, query: Batch, context):
        params, fitted = adapted
        return {"logits": score(features(params, query, context), fitted)}

    def loss(adapted, query: Batch, context):
        logits = predict(adapted, query, context)["logits"]
        label, mask = query[problem.target], query["mask"]
        each = -jnp.take_along_axis(jax.nn.log_softmax(logits), label[:, None], axis=1)[:, 0]
        count = jnp.maximum(mask.sum(), 1).astype(each.dtype)
        hit = mask & (logits.argmax(-1).astype(label.dtype) == label)
        accuracy = hit.sum().astype(each.dtype) / count
        return jnp.where(mask, each, 0.0).sum() / count, {"accuracy": accuracy}

    def objective(meta, episode: Episode, key, progress):
        del progress
        adapted, _ = adapt(meta, episode.support, episode.context, key)
        return loss(adapted, episode.query, episode.context)

    return Learner(lambda key: {"params": problem.init(key)}, adapt, loss, predict, objective)
