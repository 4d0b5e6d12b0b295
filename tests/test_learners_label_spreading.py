"""Label spreading: it is scikit-learn's on the same graph, and reads nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import make_moons
from sklearn.semi_supervised import LabelSpreading

from metaguide.learners import label_spreading, soft_k_means
from tests.test_learners_on_features import on_rows

PROBLEM = on_rows(2, 1)[0]
SHARPNESS, NEIGHBOURS = 10.0, 4


def rows_of(x, label, first):
    """Labelled rows where `first`, the others without a label."""
    given = {"x": jnp.asarray(x, jnp.float32), "label": jnp.asarray(label, jnp.int32)}
    return {**given, "mask": jnp.asarray(first), "unlabelled": jnp.asarray(~first)}


def fitted_to(rows, **arguments):
    learner = label_spreading(PROBLEM, **arguments)
    return learner, jax.jit(learner.adapt)({"params": {}}, rows, (), None)[0]


def logits(learner, adapted, x):
    return np.asarray(learner.predict(adapted, {"x": jnp.asarray(x, jnp.float32)}, ())["logits"])


def unit(x, middle):
    """Rows of unit length, centred after a first scaling."""
    scaled = x / np.sqrt(np.square(x).mean(1, keepdims=True)) - middle
    return scaled / np.linalg.norm(scaled, axis=1, keepdims=True)


def nearest(alike):
    """Weights of the nearest in each row."""
    weight = np.zeros_like(alike)
    for row, place in enumerate(np.argsort(-alike, axis=1)[:, :NEIGHBOURS]):
        weight[row, place] = np.exp(SHARPNESS * (alike[row, place] - 1))
    return weight


@pytest.mark.slow
def test_shares_are_those_of_scikit_learn():
    """Faults: another normalisation of the graph, an example that is its own neighbour, a graph
    that is not symmetric, labels that fade, a query with weights of its own."""
    rng = np.random.default_rng(0)
    x, asked = rng.normal(size=(30, 5)), rng.normal(size=(7, 5))
    label, first = rng.integers(0, 2, 30), np.arange(30) < 8
    learner, adapted = fitted_to(
        rows_of(x, label, first), neighbours=NEIGHBOURS, sharpness=SHARPNESS, steps=300
    )
    middle = (x / np.sqrt(np.square(x).mean(1, keepdims=True))).mean(0)
    known = unit(x, middle)
    alike = known @ known.T
    np.fill_diagonal(alike, -np.inf)
    graph = np.maximum(nearest(alike), nearest(alike).T)
    model = LabelSpreading(kernel=lambda a, b: graph.copy(), alpha=0.9, max_iter=300, tol=1e-9)
    model.fit(known, np.where(first, label, -1))
    np.testing.assert_allclose(adapted[1].shares, model.label_distributions_, atol=1e-4)
    weight = nearest(unit(asked, middle) @ known.T)
    expected = weight @ model.label_distributions_ / weight.sum(1, keepdims=True)
    found = np.exp(logits(learner, adapted, asked))
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.slow
def test_labels_follow_clouds_that_are_not_round():
    """Faults: unlabelled examples are not read, or only as neighbours of labelled ones."""
    x, label = make_moons(400, noise=0.05, random_state=0)
    # Features have a scale of their own in the guide; here a constant keeps what they mean.
    x = np.concatenate([x - x.mean(0), np.full((400, 1), 3.0)], axis=1)
    ends = [int(np.flatnonzero(label == n)[np.argmin(x[label == n, 0])]) for n in (0, 1)]
    first = np.isin(np.arange(400), ends)
    rows = rows_of(x, label, first)

    def accuracy(learner):
        adapted, _ = jax.jit(learner.adapt)({"params": {}}, rows, (), None)
        return (logits(learner, adapted, x).argmax(1) == label)[~first].mean()

    spread = label_spreading(PROBLEM, strength=0.99, sharpness=200.0, steps=1000)
    assert accuracy(spread) > 0.97 > 0.9 > accuracy(soft_k_means(PROBLEM))


@pytest.mark.slow
def test_rows_that_neither_mask_has_are_not_read():
    """Faults: padding has neighbours, moves the middle, or answers a query."""
    rng = np.random.default_rng(1)
    x, label, first = rng.normal(size=(12, 5)), np.arange(12) % 2, np.arange(12) < 4
    rows = rows_of(x, label, first)
    more = {name: jnp.concatenate([one, one[:5]]) for name, one in rows.items()}
    more["x"] = more["x"].at[12:].set(7.0)
    more = {**more, **{name: more[name].at[12:].set(False) for name in ("mask", "unlabelled")}}
    known, padded = (logits(*fitted_to(one), x) for one in (rows, more))
    np.testing.assert_allclose(known, padded, atol=1e-5)


@pytest.mark.slow
def test_balancing_gives_each_class_as_much():
    """Faults: a class of many neighbours keeps them all; a class without examples takes a share."""
    rng = np.random.default_rng(2)
    x = np.concatenate([rng.normal(size=(30, 5)) + 0.4, rng.normal(size=(30, 5)) - 0.4])
    label, first = np.repeat([0, 1], 30), np.isin(np.arange(60), [0, 1, 2, 30])
    sums = {
        rounds: np.asarray(fitted_to(rows_of(x, label, first), balancing=rounds)[1][1].shares)
        for rounds in (0, 50)
    }
    assert np.ptp(sums[50].sum(0)) < 0.1 < np.ptp(sums[0].sum(0))
    np.testing.assert_allclose(sums[50].sum(1), 1, atol=1e-5)
    alone = np.isin(np.arange(60), [0, 1, 2])
    learner, adapted = fitted_to(rows_of(x, label, alone), balancing=20)
    assert adapted[1].lacking.tolist() == [False, True]
    assert (logits(learner, adapted, x).argmax(1) == 0).all()


LEARNER = label_spreading(PROBLEM, balancing=3)
ADAPT = jax.jit(LEARNER.adapt)


@pytest.mark.slow
@pytest.mark.parametrize("x", [0.0, 1.0])
def test_examples_that_are_all_alike_have_finite_answers(x):
    """Fault: a row of the graph, or features, without length give NaN."""
    rows = rows_of(np.full((6, 3), x), [0, 1] * 3, np.arange(6) < 2)
    adapted, _ = ADAPT({"params": {}}, rows, (), None)
    assert np.isfinite(logits(LEARNER, adapted, np.full((2, 3), x))).all()


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(st.lists(st.booleans(), min_size=6, max_size=6), st.integers(0, 99))
def test_any_masks_have_finite_answers(labelled, seed):
    """Faults: no example, one alone, or a class without any gives NaN."""
    x = np.random.default_rng(seed).normal(size=(6, 3))
    rows = rows_of(x, [0, 0, 0, 1, 1, 1], np.array(labelled))
    rows["unlabelled"] = rows["unlabelled"] & (seed % 2 == 0)
    adapted, _ = ADAPT({"params": {}}, rows, (), None)
    assert np.isfinite(logits(LEARNER, adapted, x)).all()
