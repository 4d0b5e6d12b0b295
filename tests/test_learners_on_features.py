"""Classifiers on features at the ends of their ranges: tiny penalties, no support, large values."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize
import scipy.special

from metaguide import learners
from metaguide.learners.on_features import standardised
from metaguide.methods import METHODS, NAMED, Settings
from metaguide.types import Problem


def on_rows(way, shots, width=32, scale=1.0):
    """A problem whose features are the rows themselves, and a support of random ones."""
    problem = Problem(
        init=lambda key: {"unused": jnp.zeros(1)},
        encode=lambda params, batch, context, key: batch["x"],
        loss=lambda *_: (jnp.zeros(()), {}),
        predict=lambda *_: {},
        features=lambda encoded: encoded,
        score=lambda *_: {},
        body=(),
        head=(),
        target="label",
        way=way,
    )
    rng = np.random.default_rng(0)
    x = np.repeat(0.6 * rng.normal(size=(way, width)), shots, 0)
    x = np.maximum(x + rng.normal(size=x.shape), 0) * scale
    label = np.repeat(np.arange(way), shots)
    rows = {"x": jnp.asarray(x, jnp.float32), "label": jnp.asarray(label, jnp.int32)}
    return problem, rows | {"mask": jnp.ones(len(x), bool)}


@pytest.mark.slow
@pytest.mark.parametrize("penalty", [0.1, 0.3, 1.0, 10.0])
@pytest.mark.parametrize("way,shots", [(5, 10), (20, 1), (2, 5)])
def test_logistic_regression_ends_at_its_minimum(way, shots, penalty):
    """Fault: descent stops above the minimum, 26% at a penalty of .3 before, and the baseline that
    meta-learners are held against is too weak."""
    problem, support = on_rows(way, shots)
    (_, weights), _ = learners.logistic(problem, penalty).adapt({"params": {}}, support, (), None)
    x = np.asarray(standardised(support["x"]), np.float64)
    label = np.asarray(support["label"])

    def objective(flat):
        logits = x @ flat.reshape(-1, way)
        log_p = scipy.special.log_softmax(logits, axis=1)
        error = np.exp(log_p) - np.eye(way)[label]
        value = -log_p[np.arange(len(x)), label].sum() + penalty / 2 * (flat**2).sum()
        return value, (x.T @ error).ravel() + penalty * flat

    start = np.zeros(x.shape[1] * way)
    best = scipy.optimize.minimize(objective, start, jac=True, tol=1e-12).fun
    assert objective(np.asarray(weights, np.float64).ravel())[0] < best * 1.002


@pytest.mark.slow
@pytest.mark.parametrize("penalty", [1e-3, 1e-6, 1e-12, 1e-30])
def test_a_small_penalty_has_a_solution(penalty):
    """Fault: in float32 the Gram matrix of equal rows has no Cholesky factor, and all is NaN."""
    problem, support = on_rows(5, 2)
    support["x"] = jnp.concatenate([support["x"][:1]] * 2 + [support["x"][2:]])
    for learner in (
        learners.ridge(problem, penalty),
        learners.r2d2(problem, penalty),
        learners.logistic(problem, penalty),
    ):
        meta = {**learner.init(jax.random.key(0)), "params": {}}
        adapted, _ = learner.adapt(meta, support, (), None)
        logits = learner.predict(adapted, support, ())["logits"]
        assert np.isfinite(logits).all()
        assert (logits.argmax(-1) == support["label"]).mean() > 0.8


METRIC = {
    "prototypical": ("prototypical", Settings(temperature=1.0)),
    "matching": ("matching", Settings(temperature=1.0)),
    "tiny temperature": ("matching", Settings(temperature=1e-12)),
    "tiny temperature of prototypes": ("prototypical", Settings(temperature=1e-8)),
    "relation": ("relation", Settings(features=32)),
    "proto-maml": ("proto-maml", Settings(learning_rate=0.0, steps=0)),
}


def fitted(name, problem, support):
    method, settings = METRIC[name]
    if method == "proto-maml":
        problem = classification_of_rows(problem)
    learner = METHODS[method].train(problem, settings)
    meta = learner.init(jax.random.key(0))
    adapted, _ = learner.adapt(meta, support, (), None)
    return learner, adapted


def classification_of_rows(problem):
    """The rows with a linear head."""

    def logits(params, encoded):
        return encoded @ params["head"]["kernel"] + params["head"]["bias"]

    def loss(params, encoded, batch, context):
        each = optax.softmax_cross_entropy_with_integer_labels(
            logits(params, encoded), batch["label"]
        )
        return each.mean(), {}

    def init(key):
        return {"head": {"kernel": jnp.zeros((32, problem.way)), "bias": jnp.zeros(problem.way)}}

    return problem._replace(
        init=init,
        loss=loss,
        predict=lambda params, encoded, batch, context: {"logits": logits(params, encoded)},
        body=(),
        head=("head",),
    )


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1.0, 1e5, 1e8])
@pytest.mark.parametrize("name", METRIC)
def test_an_absent_class_never_wins(name, scale):
    """Fault: the score of a class without examples is a fixed number, and where features are large
    or the temperature is tiny all others are below it."""
    problem, support = on_rows(5, 2, scale=scale)
    support["mask"] = support["label"] != 3
    learner, adapted = fitted(name, problem, support)
    logits = np.asarray(learner.predict(adapted, support, ())["logits"])
    assert np.isfinite(logits).all()
    assert (logits.argmax(-1) != 3).all()
    assert (jax.nn.softmax(logits)[:, 3] < 1e-6).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", METRIC)
def test_an_empty_support_prefers_no_class(name):
    """Fault: what is known of nothing has a loss of 0, or NaN, where ln(classes) is right."""
    problem, support = on_rows(5, 2)
    empty = {**support, "mask": jnp.zeros(10, bool)}
    learner, adapted = fitted(name, problem, empty)

    def value(x):
        return learner.loss(adapted, {**support, "x": x}, ())[0]

    found, slope = jax.value_and_grad(value)(support["x"])
    if name != "relation":  # whose loss is no cross-entropy
        np.testing.assert_allclose(found, np.log(5), rtol=1e-5)
    logits = learner.predict(adapted, support, ())["logits"]
    np.testing.assert_allclose(logits, jnp.broadcast_to(logits[:, :1], logits.shape), rtol=1e-6)
    assert np.isfinite(slope).all()


def soft_k_means_in_numpy(rows, label, others, way, steps, weight):
    def scaled(x):
        return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + 1e-6)

    flat = scaled(rows)
    middle = flat[label >= 0].sum(0) + flat[others].sum(0)
    middle = middle / ((label >= 0).sum() + others.sum())
    x = scaled(flat - middle)
    member = weight * (label[:, None] == np.arange(way))
    centres = member.T @ x / member.sum(0)[:, None]
    for _ in range(steps):
        logits = -np.square(x[:, None] - centres).sum(-1) / np.sqrt(x.shape[1])
        shares = member + scipy.special.softmax(logits, axis=1) * others[:, None]
        centres = shares.T @ x / shares.sum(0)[:, None]
    return x, centres, -np.square(x[:, None] - centres).sum(-1) / np.sqrt(x.shape[1])


@pytest.mark.parametrize("steps", [0, 3])
def test_soft_k_means_against_a_plain_loop(steps):
    """Faults: the labels of unlabelled rows are read, padding counts, the support is forgotten
    after the first step or has no weight, features are not centred."""
    problem, rows = on_rows(3, 6)
    place = np.arange(18) % 6
    known, others = place < 2, (place == 2) | (place == 3)
    spoilt = np.where((known | others)[:, None], rows["x"], np.nan)
    label = jnp.where(known, rows["label"], 2)
    support = {"x": jnp.asarray(spoilt), "label": label, "mask": jnp.asarray(known)}
    support["unlabelled"] = jnp.asarray(others)
    learner = learners.soft_k_means(problem, steps)
    adapted, _ = jax.jit(learner.adapt)({"params": {}}, support, (), None)
    x, label = np.asarray(rows["x"], np.float64), np.where(known, rows["label"], -1)
    _, centres, logits = soft_k_means_in_numpy(x, label, others, 3, steps, 10.0)
    np.testing.assert_allclose(adapted[1][1], centres, rtol=1e-4, atol=1e-5)
    found = learner.predict(adapted, rows, ())["logits"]
    np.testing.assert_allclose(found, logits, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_unlabelled_rows_help_and_a_class_without_support_gets_none():
    """Faults: unlabelled rows move nothing, or are shared with a class that nobody named."""
    problem, rows = on_rows(3, 40, width=64)
    label = np.asarray(rows["label"])
    rng = np.random.default_rng(0)
    x = 0.5 * rng.normal(size=(3, 64))[label] + rng.normal(size=(120, 64))
    rows["x"] = jnp.asarray(x, jnp.float32)
    first = np.isin(np.arange(120), [0, 40])  # one example of two classes, none of the third
    others = ~first & (label < 2)
    support = {**rows, "mask": jnp.asarray(first)}
    learner = learners.soft_k_means(problem)

    def accuracy(support):
        adapted, _ = learner.adapt({"params": {}}, support, (), None)
        said = learner.predict(adapted, rows, ())["logits"].argmax(-1)
        assert not (said == 2).any()
        return (np.asarray(said) == label)[others].mean()

    alone = accuracy(support)
    assert accuracy(support | {"unlabelled": jnp.asarray(others)}) > alone + 0.05


def named_problem(names, has_name):
    """`on_rows`, with classes that have names."""
    problem, support = on_rows(3, 4)
    names = jnp.asarray(names, jnp.float32)
    return problem._replace(
        names=lambda encoded, context: (names, jnp.asarray(has_name), {})
    ), support


@pytest.mark.slow
@pytest.mark.parametrize(
    "names_and_not", [("named-prototypes", "prototypical"), ("named-ridge", "ridge")]
)
def test_a_name_is_so_many_examples_of_its_class(names_and_not):
    """Faults: a name counts once, or for another class; it is not moved to where the texts are; a
    class without a name has the origin for one."""
    has_name = np.array([True, False, True])
    names = np.random.default_rng(1).normal(size=(3, 32)).astype(np.float32)
    problem, support = named_problem(names, has_name)
    learner, again = (METHODS[one].at_test(problem, Settings()) for one in names_and_not)
    x, label = np.asarray(support["x"]), np.asarray(support["label"])
    centres = np.stack([x[label == n].mean(0) for n in range(3)])
    moved = names + (centres - names)[[0, 2]].mean(0)
    more = {
        "x": jnp.asarray(np.concatenate([x, *[moved[[0, 2]]] * NAMED])),
        "label": jnp.asarray(np.concatenate([label, *[[0, 2]] * NAMED]), jnp.int32),
        "mask": jnp.ones(len(x) + 2 * NAMED, bool),
    }
    query = {"x": support["x"] + 0.1}
    adapted, _ = learner.adapt({"params": {}}, support, (), None)
    expected, _ = again.adapt({"params": {}}, more, (), None)
    found = learner.predict(adapted, query, ())["logits"]
    np.testing.assert_allclose(found, again.predict(expected, query, ())["logits"], atol=1e-3)


def test_a_class_without_examples_is_known_by_its_name():
    """Faults: it is out of reach as without names; names are moved where no class has examples."""
    names = 10 * np.eye(3, 32, dtype=np.float32)
    problem, support = named_problem(names, [True] * 3)
    masks = np.asarray(support["label"]) != 2, np.zeros(12, bool)
    for mask in masks:
        learner = METHODS["named-prototypes"].at_test(problem, Settings())
        rows = {**support, "mask": jnp.asarray(mask)}
        (_, (centres, lacking)), _ = learner.adapt({"params": {}}, rows, (), None)
        assert not lacking.any()
        if not mask.any():
            np.testing.assert_allclose(centres, names, atol=1e-5)
    problem = problem._replace(names=None)
    learner = METHODS["named-prototypes"].at_test(problem, Settings())
    (_, (_, lacking)), _ = learner.adapt(
        {"params": {}}, {**support, "mask": jnp.asarray(masks[0])}, (), None
    )
    assert lacking.tolist() == [False, False, True]
