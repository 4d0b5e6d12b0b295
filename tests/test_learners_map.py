"""The head that is pulled to what the sources taught, its guard, and the class prior."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize
import scipy.special

from metaguide.learners.map import (
    Rows,
    centred,
    estimate_prior,
    learn_rule,
    leave_one_out_losses,
    map_head,
    map_shift,
    mean_of_classes,
    prior_shift,
    worth_adapting,
)
from metaguide.types import Episode, Problem

# Compiled once a shape: outside a program each call compiles its loops anew.
shifted = jax.jit(map_shift)
left_out = jax.jit(leave_one_out_losses)


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def rows(count=12, width=20, way=3, seed=0):
    """A support that logits of the sources tell little of."""
    rng = np.random.default_rng(seed)
    return Rows(
        jnp.asarray(rng.normal(size=(count, width))),
        jnp.asarray(np.arange(count) % way, jnp.int32),
        jnp.ones(count, bool),
        jnp.asarray(rng.normal(size=(count, way))),
    )


def by_scipy(support, penalty):
    """The minimum by L-BFGS, with nothing of ours in it."""
    x, label, _, z = (np.asarray(part) for part in support)
    shape = x.shape[1], z.shape[1]

    def objective(flat):
        log_p = scipy.special.log_softmax(z + x @ flat.reshape(shape), axis=1)
        error = np.exp(log_p) - np.eye(shape[1])[label]
        value = -log_p[np.arange(len(x)), label].sum() + (penalty * flat**2).sum() / 2
        return value, (x.T @ error).ravel() + penalty * flat

    options = {"gtol": 1e-9, "maxiter": 5000}
    start = np.zeros(shape[0] * shape[1])
    return scipy.optimize.minimize(objective, start, jac=True, options=options).x.reshape(shape)


@pytest.mark.parametrize("penalty", [1e3, 1.0, 1e-2])
@pytest.mark.parametrize("way,count", [(2, 10), (3, 12), (5, 40)])
def test_newton_ends_at_the_minimum(way, count, penalty):
    """Fault: Newton overshoots, or conjugate gradients stop before they span the support."""
    support = rows(count, way=way)
    shift = shifted(*support, penalty)
    np.testing.assert_allclose(shift, by_scipy(support, penalty), atol=1e-5)


def test_each_column_has_a_penalty_of_its_own():
    """Fault: the penalty is broadcast along the classes, or read as one number."""
    support = rows()
    penalty = np.geomspace(0.1, 10, 20)
    shift = shifted(*support, jnp.asarray(penalty))
    np.testing.assert_allclose(shift, by_scipy(support, np.repeat(penalty, 3)), atol=1e-5)


def test_a_support_that_contradicts_confident_logits():
    """Fault: from where the softmax is flat Newton's step is huge, and nothing brings it back."""
    x, label, mask, _ = rows(way=2)
    z = 40.0 * jax.nn.one_hot(1 - label, 2)
    support = Rows(x, label, mask, z)
    for penalty in (10.0, 0.1):
        shift = shifted(*support, penalty)
        np.testing.assert_allclose(shift, by_scipy(support, penalty), atol=1e-5)


@pytest.mark.parametrize("penalty", [1e-3, 1.0, 1e6])
def test_single_precision_is_enough(penalty):
    """Fault: float32 does not settle, or is NaN, on equal rows and at tiny penalties."""
    x, label, mask, z = rows()
    x = jnp.concatenate([x[:3]] * 2 + [x[6:]])
    exact = shifted(x, label, mask, z, penalty)
    single = shifted(
        x.astype(jnp.float32), label, mask, z.astype(jnp.float32), jnp.float32(penalty)
    )
    assert single.dtype == jnp.float32
    np.testing.assert_allclose(x @ single.astype(float), x @ exact, rtol=1e-2, atol=1e-3)


def test_between_the_prior_and_maximum_likelihood():
    """Fault: λ pulls to zero instead of to the prior, or is divided by the number of examples."""
    support = rows()
    assert np.abs(shifted(*support, 1e12)).max() < 1e-9
    zero = Rows(*support[:3], jnp.zeros_like(support.prior_logits))
    crowd = rows(count=200, width=3)
    flat = scipy.optimize.minimize(
        lambda w: (
            -np.asarray(jax.nn.log_softmax(crowd.prior_logits + crowd.inputs @ w.reshape(3, 3)))[
                np.arange(200), crowd.label
            ].sum()
        ),
        np.zeros(9),
    ).x.reshape(3, 3)
    # Without a pull, what all classes have in common is free; the gauge of least norm has none.
    flat = flat - flat.mean(1, keepdims=True)
    np.testing.assert_allclose(shifted(*crowd, 1e-9), flat, atol=1e-4)
    np.testing.assert_allclose(shifted(*zero, 1.0), by_scipy(zero, 1.0), atol=1e-5)


def slope(function, at, step=1e-5):
    return (function(at + step) - function(at - step)) / (2 * step)


def test_derivatives_are_those_of_the_minimum():
    """Fault: the derivative of the last iterations, or of a stopped gradient, is taken for it."""
    x, label, mask, z = rows()
    target = jnp.asarray(np.random.default_rng(1).normal(size=(20, 3)))

    @jax.jit
    def moved(at):
        log_penalty, inputs, prior = at
        x_moved, z_moved = x + inputs * jnp.roll(x, 1, 0), z + prior * jnp.roll(z, 1, 0)
        return (target * map_shift(x_moved, label, mask, z_moved, jnp.exp(log_penalty))).sum()

    backward, forward = jax.jit(jax.grad(moved)), jax.jit(jax.jacfwd(moved))
    for log_penalty in (-1.0, 3.0):
        at = jnp.asarray([log_penalty, 0.0, 0.0])
        expected = [slope(lambda step, one=one: moved(at + step * one), 0.0) for one in jnp.eye(3)]
        np.testing.assert_allclose(backward(at), expected, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(forward(at), expected, rtol=1e-6, atol=1e-9)


def test_the_order_of_the_support_says_nothing():
    """Fault: an example is paired with the label or the prior logits of another."""
    support = rows()
    order = np.random.default_rng(2).permutation(12)
    mixed = Rows(*(part[order] for part in support))
    np.testing.assert_allclose(shifted(*mixed, 0.3), shifted(*support, 0.3), atol=1e-9)
    for kept, moved in zip(left_out(*support, 0.3), left_out(*mixed, 0.3), strict=True):
        np.testing.assert_allclose(moved, kept[order], atol=1e-8)


def padded(support, by=5):
    """The support with rows that hold nonsense and do not count."""
    x, label, mask, z = support
    return Rows(
        jnp.concatenate([x, jnp.full((by, x.shape[1]), jnp.nan)]),
        jnp.concatenate([label, jnp.full(by, -7, label.dtype)]),
        jnp.concatenate([mask, jnp.zeros(by, bool)]),
        jnp.concatenate([z, jnp.full((by, z.shape[1]), jnp.inf)]),
    )


@pytest.mark.slow
def test_padding_changes_nothing():
    """Fault: a masked row is read, or counts in a mean; NaN times zero is NaN."""
    support, longer = rows(), padded(rows())
    np.testing.assert_allclose(shifted(*longer, 0.3), shifted(*support, 0.3), atol=1e-9)

    def of_penalty(penalty):
        return jnp.square(shifted(*longer, penalty)).sum()

    assert np.isfinite(jax.grad(of_penalty)(0.3))
    short, long = (left_out(*part, 0.3) for part in (support, longer))
    for kept, with_padding in zip(short, long, strict=True):
        np.testing.assert_allclose(with_padding[:12], kept, atol=1e-8)
        assert (with_padding[12:] == 0).all()
    for caution in np.linspace(-3, 3, 25):
        assert worth_adapting(long[0], long[1], longer.mask, caution) == worth_adapting(
            short[0], short[1], support.mask, caution
        )


@pytest.mark.slow
def test_nothing_to_learn_from():
    """Fault: 0/0 where the whole support is masked."""
    x, label, mask, z = rows()
    none = jnp.zeros_like(mask)
    assert (shifted(x, label, none, z, 1.0) == 0).all()
    losses = left_out(x, label, none, z, 1.0)
    assert not worth_adapting(losses[0], losses[1], none, -1.0)
    assert np.isfinite(mean_of_classes(x, label, none, 3)).all()


def test_leave_one_out_is_what_it_says():
    """Fault: the example is in the support that it is scored by."""
    support = rows()
    before, after = left_out(*support, 0.3)
    for row in (0, 7):
        others = Rows(*(jnp.delete(part, row, 0) for part in support))
        logits = support.prior_logits[row] + support.inputs[row] @ by_scipy(others, 0.3)
        log_p = jax.nn.log_softmax(logits)
        np.testing.assert_allclose(after[row], -log_p[support.label[row]], atol=1e-5)
        log_p = jax.nn.log_softmax(support.prior_logits[row])
        np.testing.assert_allclose(before[row], -log_p[support.label[row]], atol=1e-9)


def test_leaving_out_copies_no_inputs():
    """Fault: each turn has a copy of all inputs, so that a thousand examples take gigabytes."""
    count = 256

    def memory(width):
        given = [
            jax.ShapeDtypeStruct((count, width), jnp.float32),
            jax.ShapeDtypeStruct((count,), jnp.int32),
            jax.ShapeDtypeStruct((count,), bool),
            jax.ShapeDtypeStruct((count, 2), jnp.float32),
        ]
        compiled = jax.jit(lambda *support: left_out(*support, 0.3)).lower(*given).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert memory(384) - memory(128) < count * count * 256 * 4 / 2


def test_the_guard_is_a_paired_t_statistic():
    """Fault: the spread of the losses is taken for that of their difference."""
    rng = np.random.default_rng(0)
    before = rng.normal(5, 3, size=40)
    after = before - rng.normal(0.1, 0.2, size=40)
    statistic = scipy.stats.ttest_rel(before, after).statistic
    mask = jnp.ones(40, bool)
    for caution in (statistic - 1e-6, statistic + 1e-6):
        found = worth_adapting(jnp.asarray(before), jnp.asarray(after), mask, caution)
        assert bool(found) == (caution < statistic)


@pytest.mark.slow
def test_learned_rule_is_the_best_of_a_grid():
    """Fault: descent goes up, or the rule is learned on the support."""
    rng = np.random.default_rng(0)

    def told(seed):
        task = rows(count=40, way=2, width=6, seed=seed)
        truth = 3 * task.prior_logits + task.inputs @ rng.normal(0, 1, size=(6, 2))
        noise = rng.gumbel(size=truth.shape)
        return task._replace(label=(truth + noise).argmax(-1).astype(jnp.int32))

    tasks = [told(seed) for seed in range(8)]
    support = Rows(*(jnp.stack([p[:12] for p in parts]) for parts in zip(*tasks, strict=True)))
    query = Rows(*(jnp.stack([p[12:] for p in parts]) for parts in zip(*tasks, strict=True)))

    @jax.jit
    def loss(log_penalty, log_scale):
        known = [
            part._replace(prior_logits=jnp.exp(log_scale) * part.prior_logits)
            for part in (support, query)
        ]
        shift = jax.vmap(map_shift, (0, 0, 0, 0, None))(*known[0], jnp.exp(log_penalty))
        logits = known[1].prior_logits + jnp.einsum("tnw,twc->tnc", query.inputs, shift)
        return optax.softmax_cross_entropy_with_integer_labels(logits, query.label).mean()

    best = min(
        float(loss(penalty, scale))
        for penalty in np.linspace(-4, 5, 19)
        for scale in np.linspace(-1, 2, 13)
    )
    for start in (0.03, 30.0):
        rule = learn_rule(support, query, start)
        assert loss(**rule) < best + 1e-3
        assert rule["log_scale"] > 0.3


def test_prior_by_a_direct_computation():
    """Fault: priors are swapped, or the estimate is not at the likelihood's maximum."""
    rng = np.random.default_rng(0)
    likelihood = rng.dirichlet([1, 1, 1], size=2000) + 1e-3
    source, target = np.array([0.5, 0.3, 0.2]), np.array([0.1, 0.2, 0.7])
    joint = likelihood * source
    logits = jnp.asarray(np.log(joint / joint.sum(1, keepdims=True)))
    moved = likelihood * target
    np.testing.assert_allclose(
        jax.nn.softmax(prior_shift(logits, jnp.asarray(source), jnp.asarray(target))),
        moved / moved.sum(1, keepdims=True),
        atol=1e-9,
    )
    found = estimate_prior(logits, jnp.ones(2000, bool), jnp.asarray(source), steps=2000)

    def unlikely(free):
        return -np.log(likelihood @ scipy.special.softmax(np.append(free, 0))).sum()

    best = scipy.special.softmax(np.append(scipy.optimize.minimize(unlikely, np.zeros(2)).x, 0))
    np.testing.assert_allclose(found, best, atol=1e-4)
    np.testing.assert_allclose(found.sum(), 1, atol=1e-9)


def test_prior_at_the_ends():
    """Fault: the logarithm of a share of 0, an empty set of texts, or a masked NaN."""
    source = jnp.asarray([0.5, 0.5])
    sure = jnp.tile(jnp.asarray([[60.0, 0.0]]), (50, 1))
    found = estimate_prior(sure, jnp.ones(50, bool), source)
    np.testing.assert_allclose(found, [1, 0], atol=1e-5)
    assert np.isfinite(prior_shift(sure, source, found)).all()
    skewed = jnp.asarray([0.8, 0.2])
    untold = jnp.tile(jnp.log(skewed), (50, 1))
    found = estimate_prior(untold, jnp.ones(50, bool), skewed)
    np.testing.assert_allclose(found, skewed, atol=1e-9)
    none = estimate_prior(sure * jnp.nan, jnp.zeros(50, bool), skewed)
    np.testing.assert_allclose(none, skewed)
    some = jnp.arange(50) < 40
    spoilt = jnp.where(some[:, None], sure, jnp.nan)
    np.testing.assert_allclose(estimate_prior(spoilt, some, source), [1, 0], atol=1e-5)
    one = jnp.ones(1)
    np.testing.assert_allclose(estimate_prior(sure[:, :1], jnp.ones(50, bool), one), one)
    held = estimate_prior(sure, jnp.ones(50, bool), source, strength=50.0)
    np.testing.assert_allclose(held, [0.75, 0.25], atol=1e-3)


@pytest.mark.slow
def test_features_from_the_middle():
    """Fault: the middle follows the number of examples a class has, or an absent class's zero."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 8)) + 5)
    label = jnp.asarray([0, 1], jnp.int32)
    even = mean_of_classes(x, label, jnp.ones(2, bool), 4)
    many = jnp.concatenate([x[:1]] * 6 + [x[1:]])
    labels = jnp.asarray([0] * 6 + [1], jnp.int32)
    np.testing.assert_allclose(mean_of_classes(many, labels, jnp.ones(7, bool), 4), even)
    seen = centred(x, even)
    np.testing.assert_allclose(jnp.square(seen).mean(-1), 1, atol=1e-3)
    np.testing.assert_allclose(seen[0], -seen[1], atol=1e-9)
    np.testing.assert_allclose(centred(x * 100, even), seen, atol=1e-3)


def sentiment(way=2, width=8):
    """A problem with a linear head on the rows themselves."""

    def predict(params, encoded, batch, context):
        return {"logits": encoded @ params["head"]["kernel"] + params["head"]["bias"]}

    return Problem(
        init=lambda key: {"head": {"kernel": jnp.ones((width, way)), "bias": jnp.zeros(way)}},
        encode=lambda params, batch, context, key: batch["x"],
        loss=lambda *_: (jnp.zeros(()), {}),
        predict=predict,
        features=lambda encoded: encoded,
        score=lambda *_: {},
        body=(),
        head=("head",),
        target="label",
        way=way,
    )


def episode(truth, shots=20, seed=0):
    """Examples whose class is the sign of `truth`."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(400, len(truth)))
    label = (x @ truth > 0).astype(np.int32)
    chosen = np.concatenate([np.flatnonzero(label == n)[:shots] for n in (0, 1)])

    def batch(index):
        return {
            "x": jnp.asarray(x[index]),
            "label": jnp.asarray(label[index]),
            "mask": jnp.ones(len(index), bool),
        }

    return Episode(batch(chosen), batch(np.setdiff1d(np.arange(400), chosen)))


def zero_shot(learner, meta, task):
    nothing = {**task.support, "mask": jnp.zeros_like(task.support["mask"])}
    adapted, _ = jax.jit(learner.adapt)(meta, nothing, (), None)
    return float(learner.loss(adapted, task.query, ())[1]["accuracy"]), adapted


@pytest.mark.slow
def test_a_domain_that_the_head_knows_is_left_alone_and_another_is_learned():
    """Fault: the guard lets noise through, or holds back what the support plainly says."""
    known = np.eye(8)[0]
    learner = map_head(sentiment(), penalty=1.0)
    kernel = np.stack([-3 * known, 3 * known], 1)
    meta = learner.init(jax.random.key(0))
    meta["params"]["head"]["kernel"] = jnp.asarray(kernel)
    same, other = episode(known), episode(np.eye(8)[1])
    before, unadapted = zero_shot(learner, meta, same)
    adapted, seen = jax.jit(learner.adapt, static_argnums=4)(
        meta, same.support, (), None, lambda adapted: adapted[1][1]
    )
    assert seen.shape == (1, 8, 2)
    assert float(learner.loss(adapted, same.query, ())[1]["accuracy"]) >= before - 0.02
    head = same.query["x"] @ meta["params"]["head"]["kernel"] + meta["params"]["head"]["bias"]
    np.testing.assert_allclose(learner.predict(unadapted, same.query, ())["logits"], head)
    before, _ = zero_shot(learner, meta, other)
    adapted, _ = jax.jit(learner.adapt)(meta, other.support, (), None)
    assert float(learner.loss(adapted, other.query, ())[1]["accuracy"]) > before + 0.2


def test_the_penalty_is_meta_learned():
    """Fault: the guard, whose slope is zero, stands between the query's loss and the penalty."""
    learner = map_head(sentiment(), penalty=20.0, caution=1e9)
    meta = learner.init(jax.random.key(0))
    task = episode(np.eye(8)[1])

    def loss(log_penalty):
        changed = {**meta, "rule": {**meta["rule"], "log_penalty": log_penalty}}
        return learner.objective(changed, task, None, 0.0)[0]

    at = meta["rule"]["log_penalty"]
    found = jax.jit(jax.grad(loss))(at)
    assert found > 1e-3
    np.testing.assert_allclose(found, slope(jax.jit(loss), at), rtol=1e-6)


@pytest.mark.slow
def test_a_class_that_the_support_lacks_keeps_its_place():
    """Fault: adaptation to two classes of three forgets the third."""
    learner = map_head(sentiment(way=3), penalty=20.0, caution=None)
    meta = learner.init(jax.random.key(0))
    meta["params"]["head"]["bias"] = jnp.asarray([0.0, 0.0, 50.0])
    task = episode(np.eye(8)[1])
    adapted, _ = learner.adapt(meta, task.support, (), None)
    assert (learner.predict(adapted, task.query, ())["logits"].argmax(-1) == 2).mean() > 0.9


@pytest.mark.parametrize("penalty", [0.0, -1.0, float("nan")])
def test_a_penalty_that_is_not_positive(penalty):
    """Fault: the logarithm makes NaN of it, much later."""
    with pytest.raises(ValueError, match="penalty"):
        map_head(sentiment(), penalty=penalty)
