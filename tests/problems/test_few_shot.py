from collections.abc import Callable
from functools import cache, partial

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaguide.data.episodes import balanced_sampler
from metaguide.data.sinusoid import wave_sampler, waves
from metaguide.inner_loop import FirstOrder, Unrolled
from metaguide.learners import joint, maml
from metaguide.models.conv4 import Conv4
from metaguide.models.mlp import MLP
from metaguide.problems import (
    classification,
    classification_of_pictures,
    inductive,
    regression,
)

WAY, SHOTS, QUERIES = 3, 2, 4
MODEL = Conv4(4)
of_pictures = partial(classification_of_pictures, MODEL, WAY)


@cache
def drawings():
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 2, (1, 7, 10, 28, 28)).astype(np.uint8) * 255,
        "character": np.arange(7, dtype=np.int32)[None],
        "turns": np.full((1, 7), -1, np.int32),
    }


@cache
def params():
    return jax.jit(of_pictures().init)(jax.random.key(0))


@cache
def episode(key=0, shots=SHOTS):
    sample = inductive(balanced_sampler(WAY, SHOTS, QUERIES))
    return jax.jit(sample)(drawings(), 0, shots, jax.random.key(key))


@cache
def encoder(statistics, padded=False):
    problem = of_pictures(statistics=statistics, padded=padded)
    own = params()
    return jax.jit(lambda batch: problem.encode(own, batch, (), None))


@jax.jit
def forward(images, reference=None):
    return MODEL.apply({"params": params()["body"]}, images, reference)


@pytest.mark.slow
@pytest.mark.parametrize("statistics", ["transductive", "support", "one-query"])
def test_whose_statistics_a_query_takes(statistics):
    """Faults: support statistics are those of support and query; the one query is left out of its
    own statistics, or all queries are in; features of the support are returned for the queries."""
    query, known = episode().query, episode().support["image"]
    found = encoder(statistics)(query)
    if statistics == "transductive":
        expected = forward(query["image"])
    elif statistics == "support":
        both = jnp.concatenate([known, query["image"]])
        expected = forward(both, jnp.arange(len(both)) < len(known))[len(known) :]
    else:
        expected = jnp.stack(
            [forward(jnp.concatenate([known, one[None]]))[-1] for one in query["image"]]
        )
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("statistics", ["support", "one-query"])
def test_an_inductive_answer_is_a_querys_own(statistics):
    """Fault: another query changes the answer. The negative control: transductive, it does."""
    query = episode().query
    other = {**query, "image": query["image"].at[1:].set(1 - query["image"][1:])}
    first = [encoder(statistics)(batch)[0] for batch in (query, other)]
    np.testing.assert_allclose(*first, rtol=1e-5, atol=1e-6)
    first = [encoder("transductive")(batch)[0] for batch in (query, other)]
    assert abs(first[0] - first[1]).max() > 1e-3


@pytest.mark.parametrize("statistics", ["support", "one-query"])
def test_a_support_has_its_own_statistics(statistics):
    """Fault: the inner loop normalises the support by something else than itself."""
    support = episode().support
    np.testing.assert_allclose(
        encoder(statistics)(support), encoder("transductive")(support), rtol=1e-6
    )


@pytest.mark.slow
@pytest.mark.parametrize("statistics", ["transductive", "support", "one-query"])
def test_masked_examples_count_for_no_statistics(statistics):
    """Fault: the padding of a smaller support is in its mean and variance."""
    one = episode(shots=1)
    blank = ~one.support["mask"][:, None, None, None]
    support = {**one.support, "image": jnp.where(blank, 0.5, one.support["image"])}
    query = {**one.query, "reference": support["image"]}
    found = encoder(statistics, padded=True)
    real = one.support["mask"]
    np.testing.assert_allclose(found(support)[real], found(one.support)[real], rtol=1e-5)
    np.testing.assert_allclose(found(query), found(one.query), rtol=1e-5)


@pytest.mark.slow
def test_joint_training_leaves_the_reference_out():
    """Fault: support and query, which have other fields, cannot be put together."""
    learner = joint(of_pictures(statistics="support"))
    loss, metrics = learner.objective({"params": params()}, episode(), None, 0.0)
    assert np.isfinite(loss) and 0 <= metrics["accuracy"] <= 1


def test_judged_right_is_the_highest_logit():
    """Fault: the lowest, or the label of another query."""
    problem = of_pictures()
    query = {name: leaf[:2] for name, leaf in episode().query.items()}
    query["label"] = jnp.asarray([2, 0], jnp.int32)
    found = problem.score({"logits": jnp.asarray([[0.0, 1, 2], [0, 1, 2]])}, query, ())
    np.testing.assert_array_equal(found["correct"], [True, False])


class Of(nn.Module):
    """A dense layer, and a function of what it returns."""

    function: Callable

    @nn.compact
    def __call__(self, x):
        """Apply both."""
        return self.function(nn.Dense(2)(x))


def flat(x):
    return x.reshape(len(x), -1)


def test_arrays_are_classified_as_pictures_are():
    """Fault: the classification of arrays has another head, loss or score than that of pictures."""
    pictures = classification_of_pictures(Of(flat), 3, side=2)
    arrays = classification(Of(flat), 3, inputs=(2, 2, 1))
    params = pictures.init(jax.random.key(0))
    chex.assert_trees_all_equal(params, arrays.init(jax.random.key(0)))
    x, label = jax.random.normal(jax.random.key(1), (5, 2, 2, 1)), jnp.array([0, 2, 1, 1, 0])
    batch = {"label": label, "mask": label < 2, "id": jnp.arange(5)}
    params["head"]["kernel"] = jax.random.normal(jax.random.key(2), (8, 3))
    found = []
    for problem, name in ((pictures, "image"), (arrays, "x")):
        own = {**batch, name: x}
        encoded = problem.encode(params, own, (), None)
        outputs = problem.predict(params, encoded, own, ())
        scored = problem.score(outputs, own, ())
        found.append((problem.loss(params, encoded, own, ()), outputs, scored))
    chex.assert_trees_all_close(*found, rtol=1e-6)


def test_a_model_that_returns_no_vectors_is_an_error():
    """Fault: a picture of features, or a tuple, fails deep inside the first step."""
    for model in (lambda x: (x, x), lambda x: x[..., None], lambda x: x.mean()):
        with pytest.raises(ValueError, match="let it return features .examples, width. alone"):
            classification(Of(model), 2, inputs=(3,)).init(jax.random.key(0))


def test_wrong_statistics_are_an_error():
    """Fault: a slip of the flag is transductive without a word."""
    with pytest.raises(ValueError, match="statistics is 'suport', not one of transductive"):
        of_pictures(statistics="suport")


@pytest.mark.slow
def test_bfloat16_has_float32_parameters_and_a_second_order_gradient_near_that_of_float32():
    """Faults: parameters or inner updates are rounded to bfloat16; the second-order part of the
    meta-gradient is lost in its rounding, which would leave it as far off as first order is."""
    keys, found = jax.random.split(jax.random.key(1), 4), {}
    table = jax.tree.map(jnp.asarray, drawings())
    kinds = {
        "exact": (jnp.float32, Unrolled()),
        "rounded": (jnp.bfloat16, Unrolled()),
        "first order": (jnp.float32, FirstOrder()),
    }
    for name, (dtype, mode) in kinds.items():
        problem = classification_of_pictures(Conv4(4, dtype=dtype), WAY)
        meta = {"params": problem.init(jax.random.key(0))}
        learner = maml(problem, optax.sgd(0.4), 2, mode)

        def one(meta, key, learner=learner):
            drawn = balanced_sampler(WAY, SHOTS, QUERIES)(table, 0, SHOTS, key)
            return learner.objective(meta, drawn, None, 0.0)[0]

        loss = jax.jit(jax.grad(lambda meta, one=one: jax.vmap(one, (None, 0))(meta, keys).mean()))
        found[name] = loss(meta)
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((meta, found[name])))

    def apart(name):
        difference = optax.tree.sub(found[name], found["exact"])
        return optax.tree.norm(difference) / optax.tree.norm(found["exact"])

    assert 1e-6 < apart("rounded") < 0.1
    assert apart("first order") > 3 * apart("rounded")


@pytest.mark.parametrize("shots_now", [1, 3])
def test_waves_are_waves_at_known_points(shots_now):
    """Faults: support and query are of other waves, amplitude or phase leave their ranges, x leaves
    [−5, 5], or the mask counts other points than the first."""
    sample = wave_sampler(3, 40)
    draw = jax.jit(lambda key: sample(waves(), 0, jnp.int32(shots_now), key))
    for number in range(20):
        support, query, _ = draw(jax.random.key(number))
        x = np.concatenate([support["x"], query["x"]])[:, 0]
        y = np.concatenate([support["y"], query["y"]])[:, 0]
        basis = np.stack([np.sin(x), np.cos(x)], 1)
        (sine, cosine), residual, *_ = np.linalg.lstsq(basis, y, rcond=None)
        assert abs(x).max() <= 5 and residual < 1e-6
        assert 0.1 <= np.hypot(sine, cosine) <= 5.001
        assert -1e-3 <= np.arctan2(-cosine, sine) <= np.pi + 1e-3
        assert support["mask"].tolist() == [place < shots_now for place in range(3)]


@pytest.mark.slow
def test_regression_counts_masked_points_for_nothing():
    """Faults: the mean divides by all points, or the error of the padding is in it."""
    problem = regression(MLP((5,)))
    own = problem.init(jax.random.key(0))
    batch = {"x": jnp.ones((4, 1)), "y": jnp.asarray([[1.0], [2.0], [9.0], [9.0]])}
    batch |= {"mask": jnp.arange(4) < 2, "id": jnp.arange(4)}
    encoded = problem.encode(own, batch, (), None)
    predicted = problem.predict(own, encoded, batch, ())["y"]
    loss, metrics = problem.loss(own, encoded, batch, ())
    expected = np.mean([(predicted[0, 0] - 1) ** 2, (predicted[1, 0] - 2) ** 2])
    np.testing.assert_allclose([loss, metrics["mse"]], expected, rtol=1e-6)
    errors = problem.score({"y": predicted}, batch, ())["squared_error"]
    np.testing.assert_allclose(errors, (predicted - batch["y"])[:, 0] ** 2, rtol=1e-6)


@pytest.mark.slow
def test_pictures_judged_by_constant_nan_and_single_logits():
    """Faults: equal logits are always the first class, which a class-ordered batch may hold most
    of; NaN is the first class; one class is none."""
    many, score = 3000, of_pictures().score
    query = {"label": jnp.zeros(many, jnp.int32), "mask": jnp.ones(many, bool)}
    query["id"] = jnp.arange(many)
    found = score({"logits": jnp.zeros((many, WAY))}, query, ())
    assert 0.3 < found["correct"].mean() < 0.37 and found["finite"].all()
    for bad in (jnp.nan, jnp.inf, -jnp.inf):
        found = score({"logits": jnp.zeros((many, WAY)).at[:9, 0].set(bad)}, query, ())
        assert not found["correct"][:9].any() and not found["finite"][:9].any()
        assert found["finite"][9:].all()
    assert score({"logits": jnp.zeros((many, 1))}, query, ())["correct"].all()


@pytest.mark.slow
def test_regression_of_several_outputs_and_of_another_shape():
    """Faults: only the first output is learned; points of another shape are broadcast to all pairs;
    inputs of several numbers do not fit."""
    problem = regression(MLP((5,)), inputs=3, outputs=2)
    own = problem.init(jax.random.key(0))
    rng = np.random.default_rng(0)
    x, y = (jnp.asarray(rng.normal(size=(4, size)), jnp.float32) for size in (3, 2))
    batch = {"x": x, "y": y, "mask": jnp.ones(4, bool), "id": jnp.arange(4)}
    encoded = problem.encode(own, batch, (), None)
    said = problem.predict(own, encoded, batch, ())["y"]
    loss, _ = problem.loss(own, encoded, batch, ())
    np.testing.assert_allclose(loss, np.square(said - y).mean(), rtol=1e-5)
    for other in (y[:, 0], y[:, :1]):
        with pytest.raises(ValueError, match=r"has to be \[4, 2\]"):
            problem.loss(own, encoded, {**batch, "y": other}, ())
        with pytest.raises(ValueError, match=r"has to be \[4, 2\]"):
            problem.score({"y": said}, {**batch, "y": other}, ())


@pytest.mark.slow
def test_a_plain_model_is_enough_and_one_with_statistics_is_an_error():
    """Faults: a model has to take an argument that it does not need; running statistics are dropped
    in silence."""

    class Plain(nn.Module):
        has_norm: bool = False

        @nn.compact
        def __call__(self, x):
            if self.has_norm:
                x = nn.BatchNorm(use_running_average=False)(x)
            return nn.Dense(4)(x.reshape(len(x), -1))

    problem = classification_of_pictures(Plain(), 3, side=2, channels=3)
    own = problem.init(jax.random.key(0))
    batch = {"image": jnp.ones((6, 2, 2, 3)), "label": jnp.arange(6) % 3, "mask": jnp.ones(6, bool)}
    encoded = problem.encode(own, batch, (), None)
    np.testing.assert_allclose(problem.loss(own, encoded, batch, ())[0], np.log(3), rtol=1e-5)
    with pytest.raises(ValueError, match="keeps 'batch_stats' beside its parameters"):
        classification_of_pictures(Plain(has_norm=True), 3, side=2).init(jax.random.key(0))


def test_more_shots_than_a_sampler_draws_are_an_error():
    """Fault: an episode of ten shots has five."""
    sample = wave_sampler(5, 5)
    with pytest.raises(ValueError, match="10 shots: the sampler draws 5 at most"):
        sample(waves(), 0, 10, jax.random.key(0))
    jax.jit(lambda domain: sample(waves(), domain, 5, jax.random.key(0)))(0)
