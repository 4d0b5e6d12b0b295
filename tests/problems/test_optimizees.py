"""What learned optimizers are trained on."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaguide.data.sinusoid import wave_sampler, waves
from metaguide.models.mlp import MLP, PixelMLP
from metaguide.optimizers import mlp, truncated
from metaguide.problems import classification_of_pictures, regression
from metaguide.problems.optimizees import adaptation_of, minibatches_of, quadratics
from metaguide.types import TaskDistribution


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "count"), [("paper", 1), ("released", 64)])
def test_quadratics_are_the_formula(variant, count):
    """Faults: Wᵀ for W, a mean for the sum over coordinates, the constants' or the start's
    distribution is the other variant's, two problems are one, all functions share a θ."""
    optimizee, key = quadratics(10, variant, batch=64), jax.random.key(0)
    params, task = optimizee.draw((), key)
    entries = jax.random.normal if variant == "paper" else jax.random.uniform
    one, two, _ = jax.random.split(key, 3)
    many = np.asarray(entries(one, (count, 10, 10))), np.asarray(entries(two, (count, 10)))
    start = params["theta"]
    assert start.shape == ((10,) if variant == "paper" else (64, 10))
    for theta in (start, jnp.arange(start.size, dtype=jnp.float32).reshape(start.shape) / 100):
        own = np.asarray(theta).reshape(count, 10)
        each = [np.square(w @ t - y).sum() for w, y, t in zip(*many, own, strict=True)]
        loss = optimizee.loss({"theta": theta}, optimizee.batch((), task, 3))[0]
        np.testing.assert_allclose(loss, np.mean(each), rtol=1e-5)
    drawn = jax.vmap(lambda key: optimizee.draw((), key)[0]["theta"])
    spread = np.asarray(drawn(jax.random.split(jax.random.key(1), 500))).std()
    np.testing.assert_allclose(spread, 1.0 if variant == "paper" else 0.01, rtol=0.1)


@pytest.mark.slow
def test_minibatches_are_rows_of_the_data():
    """Faults: label and picture of other rows, all steps or all problems draw the same rows, bytes
    are not scaled, parameters are the same in every problem."""

    problem = classification_of_pictures(PixelMLP((5,)), 7, side=2)
    images = np.arange(7, dtype=np.uint8)[:, None, None].repeat(2, 1).repeat(2, 2)
    data = {"image": jnp.asarray(images), "label": jnp.arange(7, dtype=jnp.int32)}
    optimizee = minibatches_of(problem, 20)
    params, task = optimizee.draw(data, jax.random.key(0))
    first, second = (optimizee.batch(data, task, step) for step in (0, 1))
    np.testing.assert_allclose(first["image"][:, 0, 0, 0] * 255, first["label"], rtol=1e-6)
    assert first["label"].tolist() != second["label"].tolist()
    other, other_task = optimizee.draw(data, jax.random.key(1))
    assert optimizee.batch(data, other_task, 0)["label"].tolist() != first["label"].tolist()
    kernels = [own["body"]["mlp"]["layer0"]["kernel"] for own in (params, other)]
    assert not np.allclose(*kernels)
    loss, metrics = optimizee.loss(params, first)
    np.testing.assert_allclose(loss, np.log(7), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("head_only", [False, True])
def test_an_adaptation_is_one_support_from_one_start(head_only):
    """Faults: each step has another support, or every adaptation the same one; the query is learned
    from; an adaptation starts elsewhere, or moves the body that is held; the held body is not that
    of the data; an estimator cannot carry it from window to window."""
    problem = regression(MLP((5,)))
    distribution = TaskDistribution(("waves",), waves(), wave_sampler(shots=3, queries=4), problem)
    optimizee = adaptation_of(distribution, (2,), head_only)
    start = problem.init(jax.random.key(0))
    data = {"episodes": distribution.data, "params": start}
    params, task = optimizee.draw(data, jax.random.key(1))
    groups = problem.head if head_only else problem.body + problem.head
    assert set(params) == set(groups) and all(params[name] is start[name] for name in groups)
    (first, held), (later, _) = (optimizee.batch(data, task, step) for step in (0, 7))
    jax.tree.map(np.testing.assert_array_equal, first, later)
    other, _ = optimizee.batch(data, jax.random.key(2), 0)
    assert abs(first.support["x"] - other.support["x"]).max() > 0.1
    assert first.support["mask"].tolist() == [True, True, False]
    encoded = problem.encode(start, first.support, (), None)
    expected = float(problem.loss(start, encoded, first.support, ())[0])
    found, _ = optimizee.loss(params, (first, held))
    assert float(found) == pytest.approx(expected, rel=1e-6)

    rule = mlp(2)
    estimator = truncated(rule, optimizee, 4, 2)
    theta = rule.init(jax.random.key(3))
    particle = estimator.start(theta, data, jax.random.key(4), 0)
    (value, _), slope, after = jax.jit(estimator.gradient)(
        theta, data, particle, jax.random.key(5), 0.0
    )
    assert set(after.loops[0].params) == set(groups) and after.age == 2
    assert np.isfinite(value) and max(abs(leaf).max() for leaf in jax.tree.leaves(slope)) > 0


def test_another_variant_is_an_error():
    """Fault: a slip of the flag is the paper's."""
    with pytest.raises(ValueError, match="variant is 'code'; there are paper, released"):
        quadratics(variant="code")


def test_bytes_are_pictures_or_integers():
    """Faults: labels in bytes become pictures; colours get another axis; NumPy rows cannot be drawn
    in a compiled step."""
    problem = classification_of_pictures(PixelMLP((5,)), 7, side=2, channels=3)
    images = np.arange(84, dtype=np.uint8).reshape(7, 2, 2, 3)
    data = {"image": images, "label": np.arange(7, dtype=np.uint8)}
    optimizee = minibatches_of(problem, 20)
    params, task = optimizee.draw(data, jax.random.key(0))
    batch = jax.jit(partial(optimizee.batch, data))(task, 0)
    assert batch["label"].dtype == np.int32
    np.testing.assert_allclose(batch["image"] * 255, images[batch["label"]], rtol=1e-6)
    assert np.isfinite(optimizee.loss(params, batch)[0])
