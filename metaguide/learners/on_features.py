"""Learners that freeze the encoder and fit a small classifier on its features in one step.

Trained episodically, they are metric learners and learners with a closed-form head. Given the
parameters of another stage, they are the frozen-feature baselines that meta-learners have to beat.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Key

from metaguide.learners import positive_definite
from metaguide.learners.calibration import scale_of
from metaguide.types import (
    UNLABELLED,
    Batch,
    Episode,
    Learner,
    Metrics,
    Observe,
    Params,
    Problem,
    Progress,
    check_rows,
)

Features = Float[Array, "examples width"]


def prototypical(problem: Problem, temperature: float | None = None, names: int = 0) -> Learner:
    """Classify by the nearest class mean: p(y = n | x) ∝ exp(−‖f(x) − c_n‖² / τ).

    Args:
        problem: a problem with classes (`way`); its head is not used.
        temperature: τ; 1 in the paper. √width by default, which keeps the initial logits of a wide
            encoder at a sensible size.
        names: as how many examples of its class a name counts, where the problem has `names`.

    Returns:
        A learner whose `adapted` is (meta-parameters, (prototypes, which classes are absent)).

    Raises:
        ValueError: the problem has no classes.

    Snell, Swersky, Zemel: Prototypical Networks for Few-shot Learning, 2017.

    >>> learner = prototypical(pictures)
    >>> adapted, _ = jax.jit(learner.adapt)(learner.init(key), shades.support, (), key)
    >>> print(learner.predict(adapted, shades.query, ())["logits"].argmax(-1))
    [0 1 0 1]
    """

    def score(rule: Params, features: Features, fitted: Any) -> Array:
        centres, lacking = fitted
        return mask_absent(nearness(features, centres, temperature), lacking)

    return on_features(problem, _fit_prototypes, score, names=names)


def soft_k_means(
    problem: Problem, steps: int = 3, weight: float | Array = 10.0, temperature: float | None = None
) -> Learner:
    """Refine the prototypes by examples without labels: c_n = Σ_i p_in f_i / Σ_i p_in.

    The sums are over the support, where p_in is `weight` for the class of the example and else 0,
    and over the unlabelled examples, where p_in ∝ exp(−‖f_i − c_n‖² / τ) with the prototypes of the
    previous step. Features are centred at the mean of all these examples, so that what the texts of
    a domain have in common does not count, and then scaled to unit mean square. Classes are assumed
    to be about equally frequent.

    The support's field `unlabelled`, bool, says which of the rows that its mask leaves out are
    such examples. Without the field, or without steps, each class has the mean of its support.

    Args:
        problem: a problem with classes; its head is not used.
        steps: number of refinements; 1 in the paper.
        weight: how many unlabelled examples an example of the support counts as; 1 in the paper.
            A larger one does less harm where one class is much rarer than another.
        temperature: τ; √width by default, as in `prototypical`.

    Returns:
        A learner whose `adapted` is (meta-parameters, (mean of the examples, prototypes, which
        classes are absent)).

    Raises:
        ValueError: the problem has no classes.

    Ren et al.: Meta-Learning for Semi-Supervised Few-Shot Classification, 2018.

    >>> learner = soft_k_means(pictures)
    >>> first = jnp.arange(4) < 2
    >>> support = {**shades.support, "mask": first, "unlabelled": ~first}
    >>> adapted, _ = jax.jit(learner.adapt)(learner.init(key), support, (), key)
    >>> print(learner.predict(adapted, shades.query, ())["logits"].argmax(-1))
    [0 1 0 1]
    """

    def fit(
        rule: Params,
        features: Features,
        label: Array,
        mask: Array,
        way: int,
        unlabelled: Array | None = None,
    ) -> Any:
        others = jnp.zeros_like(mask) if unlabelled is None else unlabelled & ~mask
        found = soft_prototypes(features, label, mask, others, way, steps, weight, temperature)
        return *found, absent(label, mask, way)

    def score(rule: Params, features: Features, fitted: Any) -> Array:
        middle, centres, lacking = fitted
        logits = nearness(centred(features, middle), centres, temperature)
        return mask_absent(logits, lacking)

    return on_features(problem, fit, score, reads_unlabelled=True)


def matching(problem: Problem, temperature: float = 1.0) -> Learner:
    """Classify by attention over the support: p(y = n | x) = Σ_{i: y_i = n} a(x, x_i).

    a = softmax over the support of cos(f(x), f(x_i)) / τ. The paper's optional full-context
    embeddings are left out.

    Args:
        problem: a problem with classes.
        temperature: τ; 1 in the paper, which keeps every probability well below 1.

    Returns:
        A learner whose `adapted` is (meta-parameters, (the support's unit features, membership)).

    Raises:
        ValueError: the problem has no classes.

    Vinyals et al.: Matching Networks for One Shot Learning, 2016.

    >>> learner = matching(pictures)
    >>> adapted, _ = jax.jit(learner.adapt)(learner.init(key), shades.support, (), key)
    >>> print(learner.predict(adapted, shades.query, ())["logits"].argmax(-1))
    [0 1 0 1]
    """

    def unit(features: Features) -> Features:
        return features * jax.lax.rsqrt(jnp.square(features).sum(-1, keepdims=True) + 1e-12)

    def fit(rule: Params, features: Features, label: Array, mask: Array, way: int) -> Any:
        return unit(features), (label == jnp.arange(way, dtype=label.dtype)[:, None]) & mask

    def score(rule: Params, features: Features, fitted: Any) -> Array:
        known, member = fitted
        attention = unit(features) @ known.T / temperature
        lacking = ~member.any(-1)
        # An empty sum has no logarithm: a class without examples gets any value and is put last.
        counted = jnp.where(lacking[:, None], True, member)
        scores = jax.nn.logsumexp(jnp.where(counted, attention[:, None], -jnp.inf), axis=-1)
        return mask_absent(scores, lacking)

    return on_features(problem, fit, score)


class RelationModule(nn.Module):
    """The similarity of two feature vectors: an MLP on both, one score per pair."""

    hidden: int

    @nn.compact
    def __call__(self, pairs: Float[Array, "... twice_width"]) -> Float[Array, "..."]:
        """Return the score, before the sigmoid."""
        dtype = pairs.dtype
        hidden = nn.relu(nn.Dense(self.hidden, param_dtype=dtype, name="hidden")(pairs))
        return nn.Dense(1, param_dtype=dtype, name="score")(hidden)[..., 0]


def relation(problem: Problem, width: int, hidden: int = 64) -> Learner:
    """Learn the similarity too: r_n(x) = g([c_n, f(x)]), trained by Σ (σ(r_n) − [y = n])².

    In the paper, g is convolutional on feature maps and c_n is a sum over shots. Here g is an MLP
    on feature vectors, so that it works with any encoder, and c_n is their mean.

    Args:
        problem: a problem with classes.
        width: width of the problem's features.
        hidden: number of hidden units of g.

    Returns:
        A learner whose meta-parameters are {"params": φ, "rule": parameters of g}.

    Raises:
        ValueError: the problem has no classes.

    Sung et al.: Learning to Compare, 2018.

    >>> learner = relation(pictures, width=4, hidden=8)
    >>> sorted(learner.init(key)["rule"])
    ['hidden', 'score']
    """
    module = RelationModule(hidden)

    def init(key: Key[Array, ""], dtype: DTypeLike) -> Params:
        return module.init(key, jnp.zeros((2 * width,), dtype))["params"]

    def score(rule: Params, features: Features, fitted: Any) -> Array:
        centres, lacking = fitted
        shape = (len(features), *centres.shape)
        pairs = jnp.broadcast_to(centres, shape), jnp.broadcast_to(features[:, None], shape)
        alike = module.apply({"params": rule}, jnp.concatenate(pairs, axis=-1))
        return mask_absent(jnp.asarray(alike), lacking)

    def squared(logits: Array, label: Array) -> Array:
        error = jax.nn.sigmoid(logits) - jax.nn.one_hot(label, logits.shape[1], dtype=logits.dtype)
        return jnp.square(error).sum(-1)

    return on_features(problem, _fit_prototypes, score, init, squared)


def ridge(
    problem: Problem, penalty: float | Array, temperature: float | None = None, names: int = 0
) -> Learner:
    """Fit W = argmin ‖XW − (2Y − 1)‖² + λ‖W‖² on the support's features, in closed form.

    A regression on −1 and 1 says which class, and not how surely. So the logits are XW / τ with the
    τ that gives the examples of the support the largest likelihood, each by the regression on the
    others.

    Args:
        problem: a problem with classes.
        penalty: λ > 0, for features of unit mean square.
        temperature: τ, which has no gradient unless it is given.
        names: as in `prototypical`.

    Returns:
        A learner whose `adapted` is (meta-parameters, W / τ).

    Raises:
        ValueError: the problem has no classes, or λ is a number that is not positive.

    Bertinetto et al.: Meta-learning with differentiable closed-form solvers, 2019.

    >>> learner = ridge(pictures, penalty=1.0)
    >>> adapted, _ = jax.jit(learner.adapt)(learner.init(key), shades.support, (), key)
    >>> print(learner.predict(adapted, shades.query, ())["logits"].argmax(-1))
    [0 1 0 1]
    """
    check_positive(penalty=penalty)

    def fit(rule: Params, features: Features, label: Array, mask: Array, way: int) -> Array:
        weights = ridge_weights(features, label, mask, way, penalty)
        if temperature is not None:
            return weights / temperature
        examples = len(label) - (names * way if problem.names is not None else 0)
        logits = leave_one_out_logits(features, label, mask, way, penalty)
        counts = mask & (jnp.bincount(jnp.where(mask, label, way), length=way + 1)[label] > 1)
        scale = scale_of(logits[:examples], label[:examples], counts[:examples])
        return weights * jax.lax.stop_gradient(scale)

    def score(rule: Params, features: Features, weights: Array) -> Array:
        return standardised(features) @ weights

    return on_features(problem, fit, score, names=names)


def r2d2(problem: Problem, penalty: float | Array = 1.0, scale: float = 1.0) -> Learner:
    """Fit like `ridge`, with a meta-learned penalty λ and scale α of the logits.

    Features have unit mean square and targets are −1 and 1. The paper has raw features, targets 0
    and 1, and a learned offset of the logits, which does not change a softmax.

    Args:
        problem: a problem with classes.
        penalty, scale: initial λ and α.

    Returns:
        A learner whose meta-parameters are {"params": φ, "rule": {"log_penalty", "log_scale"}}.

    Raises:
        ValueError: the problem has no classes, or λ or α is not positive.

    Bertinetto et al.: Meta-learning with differentiable closed-form solvers, 2019.

    >>> learner = r2d2(pictures)
    >>> adapted, _ = jax.jit(learner.adapt)(learner.init(key), shades.support, (), key)
    >>> print(learner.predict(adapted, shades.query, ())["logits"].argmax(-1))
    [0 1 0 1]
    """
    check_positive(penalty=penalty, scale=scale)

    def init(key: Key[Array, ""], dtype: DTypeLike) -> Params:
        del key
        start = {"log_penalty": penalty, "log_scale": scale}
        return {name: jnp.log(jnp.asarray(value, dtype)) for name, value in start.items()}

    def fit(rule: Params, features: Features, label: Array, mask: Array, way: int) -> Array:
        return ridge_weights(features, label, mask, way, jnp.exp(rule["log_penalty"]))

    def score(rule: Params, features: Features, weights: Array) -> Array:
        return jnp.exp(rule["log_scale"]) * (standardised(features) @ weights)

    return on_features(problem, fit, score, init)


def logistic(problem: Problem, penalty: float | Array, steps: int = 200) -> Learner:
    """Fit W = argmin Σ_i −log softmax(x_i W)_{y_i} + λ/2 ‖W‖² by accelerated gradient descent.

    A step follows (½XᵀX + λI)⁻¹ ∇, the inverse of a bound on the curvature (Böhning 1992), so it
    descends for any λ > 0. It works in the span of the support, W = XᵀA, because a support has
    fewer examples than features.

    Args:
        problem: a problem with classes.
        penalty: λ > 0, for features of unit mean square.
        steps: number of descent steps; 200 reach within a thousandth of the minimum for λ ≥ .1.

    Returns:
        A learner whose `adapted` is (meta-parameters, W).

    Raises:
        ValueError: the problem has no classes.

    >>> learner = logistic(pictures, penalty=1.0, steps=20)
    >>> adapted, _ = jax.jit(learner.adapt)(learner.init(key), shades.support, (), key)
    >>> print(learner.predict(adapted, shades.query, ())["logits"].argmax(-1))
    [0 1 0 1]
    """

    def fit(rule: Params, features: Features, label: Array, mask: Array, way: int) -> Array:
        return logistic_weights(standardised(features), label, mask, way, penalty, steps)

    return on_features(problem, fit, lambda rule, f, w: standardised(f) @ w)


def logistic_weights(
    x: Float[Array, "examples width"],
    label: Int[Array, " examples"],
    mask: Bool[Array, " examples"] | Float[Array, " examples"],
    way: int,
    penalty: float | Float[Array, ""],
    steps: int = 200,
) -> Float[Array, "width way"]:
    """Return W = argmin Σ_i −m_i log softmax(x_i W)_{y_i} + λ/2 ‖W‖², with m the mask.

    Args:
        x: one row per example.
        label: class of each example, in [0, way).
        mask: which examples count, or as how many each of them counts.
        way: number of classes.
        penalty, steps: as in `logistic`.
    """
    # In the span of √m x the problem has the same form, and the bound on the curvature holds.
    root = jnp.sqrt(mask.astype(x.dtype))[:, None]
    x = root * jnp.where(root > 0, x, 0.0)
    unscaled = jnp.where(root > 0, 1.0 / jnp.where(root > 0, root, 1.0), 0.0)
    y = jax.nn.one_hot(label, way, dtype=x.dtype)
    gram = x @ x.T
    bound = positive_definite.with_penalty(0.5 * gram, penalty)
    inverse = positive_definite.solve(bound, jnp.eye(len(x), dtype=x.dtype))

    def step(carry: tuple[Array, Array, Array], _: None) -> tuple[tuple[Array, Array, Array], None]:
        now, before, since = carry
        ahead = now + (since / (since + 3.0)) * (now - before)
        error = root * (jax.nn.softmax(unscaled * (gram @ ahead)) - y)
        move = inverse @ (error + penalty * ahead)
        after = ahead - move
        # Drop momentum that leads uphill (O'Donoghue and Candès 2015).
        uphill = (move * ((0.5 * gram) @ (after - now) + penalty * (after - now))).sum() > 0
        return (after, now, jnp.where(uphill, 0.0, since + 1.0).astype(x.dtype)), None

    zero, begun = jnp.zeros((len(x), way), x.dtype), jnp.zeros((), x.dtype)
    (found, *_), _ = jax.lax.scan(step, (zero, zero, begun), length=steps)
    return x.T @ found


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
        One prototype per class; zero for a class without examples.
    """
    member = jax.nn.one_hot(label, way, axis=0, dtype=features.dtype) * mask.astype(features.dtype)
    # 0 times a NaN is a NaN.
    features = jnp.where(mask[:, None], features, 0)
    return member @ features / jnp.maximum(member.sum(1, keepdims=True), 1.0)


def soft_prototypes(
    features: Features,
    label: Int[Array, " examples"],
    mask: Bool[Array, " examples"],
    unlabelled: Bool[Array, " examples"],
    way: int,
    steps: int = 3,
    weight: float | Array = 10.0,
    temperature: float | None = None,
) -> tuple[Float[Array, " width"], Float[Array, "way width"]]:
    """Return prototypes that examples without labels refine, as `soft_k_means` does.

    Args:
        features: features of all examples; of those that neither mask has, they are not read.
        label: class of each example, in [0, way); not read where `mask` is False.
        mask: which examples have a label.
        unlabelled: which other examples are read.
        way: number of classes.
        steps, weight, temperature: as in `soft_k_means`.

    Returns:
        The mean that features are centred at by `centred`, and a prototype per class in centred
        features; zero for a class without examples.
    """
    read = mask | unlabelled
    rows = jnp.where(read[:, None], features, 0)
    middle = mean_feature(features, read)
    x = centred(rows, middle)
    lacking = absent(label, mask, way)
    member = weight * jax.nn.one_hot(label, way, dtype=x.dtype) * mask[:, None].astype(x.dtype)

    def mean_of(shares: Array) -> Array:
        return shares.T @ x / jnp.maximum(shares.sum(0)[:, None], 1e-6)

    def refine(centres: Array, _: None) -> tuple[Array, None]:
        chance = jax.nn.softmax(mask_absent(nearness(x, centres, temperature), lacking))
        return mean_of(member + jnp.where(unlabelled[:, None], chance, 0)), None

    centres, _ = jax.lax.scan(refine, mean_of(member), length=steps)
    return middle, centres


def nearness(
    features: Features, centres: Float[Array, "way width"], temperature: float | None = None
) -> Float[Array, "examples way"]:
    """Return −‖f − c‖² / τ of each feature and prototype; τ is √width by default."""
    scale = features.shape[-1] ** 0.5 if temperature is None else temperature
    return -jnp.square(features[:, None] - centres).sum(-1) / scale


def absent(label: Int[Array, " examples"], mask: Bool[Array, " examples"], way: int) -> Array:
    """Return which classes have no example, bool [way]; all False if no class has any."""
    present = ((label == jnp.arange(way, dtype=label.dtype)[:, None]) & mask).any(1)
    return ~present & present.any()


def ridge_weights(
    features: Float[Array, "examples width"],
    label: Int[Array, " examples"],
    mask: Bool[Array, " examples"],
    way: int,
    penalty: float | Float[Array, ""],
) -> Float[Array, "width_and_one way"]:
    """Return W = Xᵀ (XXᵀ + λI)⁻¹ (2Y − 1), where X is `standardised(features)` where `mask`.

    The dual form is used because a support has fewer examples than features. λ is raised until the
    rounded XXᵀ + λI is positive definite, to some 1e-6 of the trace in float32.
    """
    x, gram, target = _regression(features, label, mask, way, penalty)
    return x.T @ positive_definite.solve(gram, target)


def leave_one_out_logits(
    features: Features,
    label: Int[Array, " examples"],
    mask: Bool[Array, " examples"],
    way: int,
    penalty: float | Float[Array, ""],
) -> Float[Array, "examples way"]:
    """Return x_i W of each row, with the W of `ridge_weights` of all the other rows.

    In closed form it is t_i − (C⁻¹ T)_i / (C⁻¹)_ii, with T = 2Y − 1 and C = XXᵀ + λI.

    Rasmussen, Williams: Gaussian Processes for Machine Learning, 2006, equation 5.12.
    """
    _, gram, target = _regression(features, label, mask, way, penalty)
    inverse = positive_definite.solve(gram, jnp.eye(len(gram), dtype=gram.dtype))
    return target - inverse @ target / jnp.diag(inverse)[:, None]


def _regression(
    features: Features, label: Array, mask: Array, way: int, penalty: float | Array
) -> tuple[Array, Array, Array]:
    """Return X, XXᵀ + λI and 2Y − 1 of a ridge regression, with zeros where the mask is False."""
    x = jnp.where(mask[:, None], standardised(features), 0.0)
    y = jax.nn.one_hot(label, way, dtype=x.dtype)
    target = jnp.where(mask[:, None], 2.0 * y - 1.0, 0.0)
    return x, positive_definite.with_penalty(x @ x.T, penalty), target


def mask_absent(
    scores: Float[Array, "examples way"], lacking: Bool[Array, " way"]
) -> Float[Array, "examples way"]:
    """Return finite scores that rank classes without examples below all others.

    Such classes get no probability at any magnitude of the scores. If all classes lack examples,
    none is preferred: all scores are 0.
    """
    known = jax.lax.stop_gradient(scores)
    least = jnp.where(lacking, jnp.inf, known).min(-1, keepdims=True)
    least = jnp.where(jnp.isfinite(least), least, 0)
    below = least - 1e4 - 0.01 * jnp.abs(least)
    return jnp.where(lacking.all(), 0, jnp.where(lacking, below, scores))


def standardised(features: Features) -> Float[Array, "examples width_and_one"]:
    """Return the features with unit mean square per example, and a constant column for the bias."""
    x = features * jax.lax.rsqrt(jnp.square(features).mean(-1, keepdims=True) + 1e-6)
    return jnp.concatenate([x, jnp.ones_like(x[:, :1])], axis=1)


def mean_feature(features: Features, read: Bool[Array, " examples"]) -> Float[Array, " width"]:
    """Return the mean of the features that are read, scaled to unit mean square; 0 if none is."""
    rows = jnp.where(read[:, None], features, 0)
    counts = read.astype(rows.dtype)
    return counts @ standardised(rows)[:, :-1] / jnp.maximum(counts.sum(), 1)


def centred(features: Features, middle: Float[Array, " width"]) -> Features:
    """Return features scaled to unit mean square, centred at a middle, and scaled again.

    Sentence encoders put all texts into a narrow cone: without centring, the common part acts as a
    bias. The axes are not scaled separately: directions in which texts differ a lot may move more.
    """
    return standardised(standardised(features)[:, :-1] - middle)[:, :-1]


def unit_centred(features: Features, middle: Float[Array, " width"]) -> Features:
    """Return `centred` of features, as vectors of unit length."""
    return centred(features, middle) / features.shape[1] ** 0.5


def classes_of(problem: Problem, learner: str) -> int:
    """Return the problem's number of classes.

    Raises:
        ValueError: the problem has no classes; the message names the learner.
    """
    if problem.way is None:
        raise ValueError(f"{learner} needs a problem with classes; way is None here")
    return problem.way


def with_names(
    features: Features,
    label: Int[Array, " examples"],
    mask: Bool[Array, " examples"],
    names: Float[Array, "way width"],
    has_name: Bool[Array, " way"],
    times: int,
) -> tuple[Float[Array, "more width"], Int[Array, " more"], Bool[Array, " more"]]:
    """Return a support to which the name of each class is added, as an example of it.

    Names are shorter than texts, and have something in common that texts lack. So they are moved by
    the mean of c_n − names_n over the classes that have examples, with c_n their prototypes.

    Args:
        features, label, mask: the support.
        names: features of the names.
        has_name: which classes have one.
        times: how often each is added.

    Returns:
        Features, labels and mask of the support and then of the names.
    """
    way = len(names)
    member = (label == jnp.arange(way, dtype=label.dtype)[:, None]) & mask
    both = (has_name & member.any(1)).astype(features.dtype)
    apart = prototypes(features, label, mask, way) - names
    moved = names + both @ apart / jnp.maximum(both.sum(), 1.0)
    return (
        jnp.concatenate([features, *[moved] * times]),
        jnp.concatenate([label, *[jnp.arange(way, dtype=label.dtype)] * times]),
        jnp.concatenate([mask, *[has_name] * times]),
    )


def _fit_prototypes(rule: Params, features: Features, label: Array, mask: Array, way: int) -> Any:
    return prototypes(features, label, mask, way), absent(label, mask, way)


def check_positive(**numbers: float | Array) -> None:
    """Raise a ValueError that names a number that is not positive; traced ones are not checked."""
    for name, value in numbers.items():
        if isinstance(value, int | float) and not value > 0:
            raise ValueError(f"{name} is {value}: it has to be positive")


def masked_loss(
    logits: Float[Array, "examples way"],
    label: Int[Array, " examples"],
    mask: Bool[Array, " examples"],
    each_loss: Callable[[Array, Array], Array] | None = None,
) -> tuple[Array, Metrics]:
    """Return the mean loss and the accuracy of the examples that count; 0 if none does.

    Args:
        logits: scores of the classes.
        label: class of each example.
        mask: which examples count.
        each_loss: (logits, label) -> loss of each example; cross-entropy by default.

    Raises:
        ValueError: label or mask has another shape, such as [examples, 1].
    """
    check_rows(logits, label, mask)
    if each_loss is None:
        # A loss is a difference of logits: if these are large, all its digits would be lost.
        stable = logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True))
        each = optax.softmax_cross_entropy_with_integer_labels(stable, label)
    else:
        each = each_loss(logits, label)
    count = jnp.maximum(mask.sum(), 1).astype(each.dtype)
    hit = mask & (logits.argmax(-1).astype(label.dtype) == label)
    accuracy = hit.sum().astype(each.dtype) / count
    return jnp.where(mask, each, 0.0).sum() / count, {"accuracy": accuracy}


def on_features(
    problem: Problem,
    fit: Callable[..., Any],
    score: Callable[..., Array],
    init_rule: Callable[..., Params] | None = None,
    each_loss: Callable[[Array, Array], Array] | None = None,
    reads_unlabelled: bool = False,
    names: int = 0,
    beside: str = "",
) -> Learner:
    """Build a learner that fits a classifier to the features of a support.

    Args:
        problem: the model and its classes.
        fit: (rule, features, label, mask, way) -> fitted, any pytree.
        score: (rule, features, fitted) -> logits, [examples, way].
        init_rule: (key, dtype) -> `rule`, the meta-parameters beside the encoder's; none by
            default.
        each_loss: (logits, label) -> the loss of each example; cross-entropy by default.
        reads_unlabelled: whether `fit` also takes the support's field `unlabelled`, or None.
        names: as how many more examples each class's name counts, as in `with_names`.
        beside: a field of the batch that `fit` and `score` also take, None if there is none; `fit`
            then takes what `problem.names` returns too, None if they are not read.

    Returns:
        The learner; its adapted state is `fitted`.

    Raises:
        ValueError: the problem does not classify.
    """
    way = classes_of(problem, "a classifier on features")

    def init(key: Key[Array, ""]) -> Params:
        if init_rule is None:
            return {"params": problem.init(key)}
        key, rule_key = jax.random.split(key)
        params = problem.init(key)
        dtype = jnp.result_type(*jax.tree.leaves(params))
        return {"params": params, "rule": init_rule(rule_key, dtype)}

    def features(params: Params, batch: Batch, context: Any) -> Array:
        return problem.features(problem.encode(params, batch, context, None))

    def adapt(
        meta: Params,
        support: Batch,
        context: Any,
        key: Key[Array, ""] | None,
        observe: Observe | None = None,
    ) -> tuple[Any, Any]:
        del key
        encoded = problem.encode(meta["params"], support, context, None)
        known, given = problem.features(encoded), support.get(UNLABELLED)
        label, mask = support[problem.target], support["mask"]
        reads = problem.names if names or beside else None
        named = None if reads is None else reads(encoded, context)
        if names and named is not None:
            of_names, has_name, _ = named
            known, label, mask = with_names(known, label, mask, of_names, has_name, names)
            given = None if given is None else jnp.pad(given, (0, len(label) - len(given)))
        given = (given,) if reads_unlabelled else ()
        given = (*given, support.get(beside), named) if beside else given
        fitted = fit(meta.get("rule"), known, label, mask, way, *given)
        adapted = (meta, fitted)
        # One step goes straight to the solution, so there is one observation.
        seen = None if observe is None else jax.tree.map(lambda a: a[None], observe(adapted))
        return adapted, seen

    def predict(adapted: Any, query: Batch, context: Any) -> dict[str, Array]:
        meta, fitted = adapted
        known = features(meta["params"], query, context)
        given = (query.get(beside),) if beside else ()
        logits = score(meta.get("rule"), known, fitted, *given)
        return {"logits": logits}

    def loss(adapted: Any, query: Batch, context: Any) -> tuple[Array, Metrics]:
        logits = predict(adapted, query, context)["logits"]
        label, mask = query[problem.target], query["mask"]
        return masked_loss(logits, label, mask, each_loss)

    def objective(
        meta: Params, episode: Episode, key: Key[Array, ""] | None, progress: Progress
    ) -> tuple[Array, Metrics]:
        del progress
        adapted, _ = adapt(meta, episode.support, episode.context, key)
        return loss(adapted, episode.query, episode.context)

    return Learner(init, adapt, loss, predict, objective)
