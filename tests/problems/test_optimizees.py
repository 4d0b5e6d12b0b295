"""What learned optimizers are trained on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaguide.models.mlp import PixelMLP
from metaguide.problems import classification_of_pictures
from metaguide.problems.optimizees import minibatches_of, quadratics


@pytest.mark.parametrize(("variant", "count"), [("paper", 1), ("released", 64)])
def test_quadratics_are_the_formula(variant, count):
    """Faults: Wᵀ for W, a mean for the sum over coordinates, the constants' or the start's
    distribution is the other variant's, two problems are one, the rest is left out."""
    optimizee, key = quadratics(10, variant, batch=64), jax.random.key(0)
    params, task = optimizee.draw((), key)
    entries = jax.random.normal if variant == "paper" else jax.random.uniform
    one, two, _ = jax.random.split(key, 3)
    many = np.asarray(entries(one, (count, 10, 10))), np.asarray(entries(two, (count, 10)))
    for theta in (params["theta"], jnp.arange(10.0)):
        each = [np.square(w @ np.asarray(theta) - y).sum() for w, y in zip(*many, strict=True)]
        loss = optimizee.loss({"theta": theta}, optimizee.batch((), task, 3))[0]
        np.testing.assert_allclose(loss, np.mean(each), rtol=1e-5)
    drawn = jax.vmap(lambda key: optimizee.draw((), key)[0]["theta"])
    spread = np.asarray(drawn(jax.random.split(jax.random.key(1), 500))).std()
    np.testing.assert_allclose(spread, 1.0 if variant == "paper" else 0.01, rtol=0.1)


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


def test_another_variant_is_an_error():
    """Fault: a slip of the flag is the paper's."""
    with pytest.raises(ValueError, match="variant is 'code'; there are paper, released"):
        quadratics(variant="code")
