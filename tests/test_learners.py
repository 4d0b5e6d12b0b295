from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from metaguide.inner_loop import FirstOrder, Implicit, Unrolled, inner_loop, run
from metaguide.learners import (
    anil,
    completed,
    fine_tuning,
    imaml,
    joint,
    learned,
    logistic,
    maml,
    maml_plus_plus,
    meta_sgd,
    proto_maml,
    prototypical,
    proximal_sgd,
    r2d2,
    reptile,
    ridge,
)
from metaguide.learners.gradient_based import learned_rates
from metaguide.learners.maml_plus_plus import step_weights
from metaguide.learners.on_features import prototypes, standardised
from metaguide.learners.reptile import _like, minibatches
from metaguide.methods import METHODS, Settings
from metaguide.optimizers import lstm
from metaguide.types import Episode, Problem

WAY, INPUTS, WIDTH, TASKS = 3, 4, 5, 4
SUPPORT, QUERY = 2 * WAY, 9
SGD = optax.sgd(0.5)
RULE = lstm(4, 1, p=None, scale=10.0)  # at a gradient of 0 it stays where it is

SETTINGS = Settings(steps=3, learning_rate=0.5, penalty=0.5, features=WIDTH, hidden=8)
GIVEN = {
    "imaml": replace(SETTINGS, steps=25, inner=optax.sgd(0.35), strength=2.0, cg_steps=20),
    "matching": replace(SETTINGS, temperature=0.2),
}
"""What some methods are built with, in place of `SETTINGS`."""


def built(name):
    """problem -> the learner that a method is trained as, or with nothing to train adapts by."""
    method = METHODS[name]
    build = method.train if method.stage == "metatrain" else method.at_test
    return lambda problem: build(problem, GIVEN.get(name, SETTINGS))


def is_one_of_its_own(method):
    """Whether no other method has the same learner: Adam for SGD is the same, and each rule is.

    Without names, a method that reads them is another; what reads words cannot read `problem_of`.
    """
    adaptation = method.adaptation
    if adaptation is not None and (adaptation.is_learned or adaptation.by == "adam"):
        return False
    if adaptation is not None and (adaptation.reads != "features" or "named-" in adaptation.by):
        return False
    return method.stage != "random"


LEARNERS = {
    **{name: built(name) for name, method in METHODS.items() if is_one_of_its_own(method)},
    # With what the methods of this name leave at its default, so that it is tested too.
    "maml++": lambda p: maml_plus_plus(
        p, 0.5, 3, multi_step_until=0.5, second_order_from=0.0, per_step=is_bias
    ),
    "learned": lambda p: learned(p, RULE.init, RULE.transform, 3, Unrolled()),
}
ON_FEATURES = (
    "prototypical",
    "named-prototypes",
    "soft-k-means",
    "label-spreading",
    "ridge",
    "named-ridge",
    "logistic",
    "matching",
    "relation",
    "r2d2",
)
every = pytest.mark.parametrize("name", LEARNERS)


def problem_of(body=True, way=WAY):
    """Softmax regression on tanh features (or, without body, on the inputs themselves)."""

    def init(key):
        one, two = jax.random.split(key)
        kernel = 0.1 * jax.random.normal(two, (WIDTH if body else INPUTS, WAY))
        head = {"kernel": kernel, "bias": jnp.zeros((WAY,))}
        first = {"w": jax.random.normal(one, (INPUTS, WIDTH))} if body else {}
        return {"body": first, "head": head, "unused": {"w": jnp.ones(2)}}

    def encode(params, batch, context, key):
        return jnp.tanh(batch["x"] @ params["body"]["w"]) if body else batch["x"]

    def predict(params, encoded, batch, context):
        return {"logits": encoded @ params["head"]["kernel"] + params["head"]["bias"]}

    def loss(params, encoded, batch, context):
        logits = jax.nn.log_softmax(predict(params, encoded, batch, context)["logits"])
        each = -jnp.take_along_axis(logits, batch["label"][:, None], axis=1)[:, 0]
        count = jnp.maximum(batch["mask"].sum(), 1).astype(each.dtype)
        value = jnp.where(batch["mask"], each, 0).sum() / count
        return value, {"loss": value}

    return Problem(
        init=init,
        encode=encode,
        loss=loss,
        predict=predict,
        features=lambda encoded: encoded,
        score=lambda outputs, query, context: outputs,
        body=("body",),
        head=("head",),
        target="label",
        way=way,
    )


def is_bias(name):
    return name.endswith("bias")


PROBLEM = problem_of()


@cache
def tasks(seed=1, dtype=np.float32):
    """Episodes whose classes are clouds around centres of their own, stacked."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(TASKS, WAY, INPUTS))

    def batch(size):
        label = np.tile(np.arange(size, dtype=np.int32) % WAY, (TASKS, 1))
        x = centres[np.arange(TASKS)[:, None], label] + 0.4 * rng.normal(size=(TASKS, size, INPUTS))
        return {"x": x.astype(dtype), "label": label, "mask": np.ones((TASKS, size), bool)}

    return Episode(batch(SUPPORT), batch(QUERY))


def task(index=0, dtype=np.float32):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf[index]), tasks(dtype=dtype))


@cache
def start(name="maml"):
    return compiled(name).learner.init(jax.random.key(0))


def use(learner):
    """(meta, episode) -> everything that a learner says of one episode."""

    def used(meta, episode):
        adapted, seen = learner.adapt(
            meta, episode.support, episode.context, None, lambda adapted: adapted
        )
        value, metrics = learner.loss(adapted, episode.query, episode.context)
        outputs = learner.predict(adapted, episode.query, episode.context)
        return {"adapted": adapted, "seen": seen, "loss": (value, metrics), "outputs": outputs}

    return used


def objective(learner):
    """(meta, stacked episodes) -> the mean of the learner's objective."""

    def value(meta, episodes):
        def one(episode):
            return learner.objective(meta, episode, None, jnp.zeros(()))[0]

        return jax.vmap(one)(episodes).mean()

    return value


def value_and_slope(learner):
    """(meta, stacked episodes) -> the mean of the objective, and of the learner's meta-gradient."""
    if learner.gradient is None:
        return jax.value_and_grad(objective(learner))

    def own(meta, episodes):
        def one(episode):
            (value, _), slope = learner.gradient(meta, episode, None, jnp.zeros(()))
            return value, slope

        return jax.tree.map(lambda leaf: leaf.mean(0), jax.vmap(one)(episodes))

    return own


class Compiled:
    """A learner's two programs, compiled once for all tests, and how often each was traced."""

    def __init__(self, name):
        self.learner = LEARNERS[name](PROBLEM)
        self.traces = {"use": 0, "slope": 0}
        self.use = self._jit("use", jax.vmap(use(self.learner), in_axes=(None, 0)))
        self.slope = self._jit("slope", value_and_slope(self.learner))

    def _jit(self, name, function):
        def counted(*args):
            self.traces[name] += 1
            return function(*args)

        return jax.jit(counted)


compiled = cache(Compiled)


def near(a, b, rtol=1e-5, atol=1e-6):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol, atol), a, b)


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def at(index, tree):
    return jax.tree.map(lambda leaf: leaf[index], tree)


def with_support(episodes, **fields):
    return episodes._replace(support={**episodes.support, **fields})


@pytest.mark.slow
@every
def test_compiled_side_by_side_is_eager_one_by_one(name):
    """Faults: a learner does other things when traced, such as branching on a value; under vmap a
    task reads the support of another, or a solver mixes the tasks."""
    together = compiled(name).use(start(name), tasks())
    for index in (0, TASKS - 1):
        # A scan of no steps cannot be run without compilation, and many steps take long.
        with jax.disable_jit(name not in ("zero-shot", "imaml")):
            alone = use(compiled(name).learner)(start(name), task(index))
        near(at(index, together), alone, rtol=1e-4)


@pytest.mark.slow
@every
def test_float32_stays_float32(name):
    """Fault: a constant of the learner widens, or makes weak, the type of what it returns."""
    slope = compiled(name).slope(start(name), tasks())
    for leaf in jax.tree.leaves((compiled(name).use(start(name), tasks()), slope)):
        assert leaf.dtype in (jnp.float32, bool) and not leaf.weak_type
    assert jax.tree.map(jnp.shape, slope[1]) == jax.tree.map(jnp.shape, start(name))


@pytest.mark.slow
@every
def test_new_values_need_no_new_program(name):
    """Fault: a value is closed over as a constant, or what comes out cannot go in again."""
    program, meta = compiled(name), start(name)
    for seed in (1, 2, 3):
        program.use(meta, tasks(seed))
        _, slope = program.slope(meta, tasks(seed))
        meta = jax.tree.map(lambda leaf, by: leaf - 0.1 * by, meta, slope)
    assert program.traces == {"use": 1, "slope": 1}


@every
def test_masked_support_has_no_influence(name):
    """Faults: a mean over the support divides by its padded size, or padding is fitted."""
    mask = np.tile(np.arange(SUPPORT) < WAY, (TASKS, 1))
    some = with_support(tasks(), mask=mask)
    other = with_support(
        some,
        x=np.where(mask[..., None], some.support["x"], np.float32(9)),
        label=np.where(mask, some.support["label"], np.int32(WAY - 1)),
    )
    meta, found = start(name), [compiled(name).use(start(name), one) for one in (some, other)]
    if name == "matching":  # keeps the features of masked rows, which no class has
        found = [{**one, "adapted": (), "seen": ()} for one in found]
    same(*found)
    same(compiled(name).slope(meta, some), compiled(name).slope(meta, other))
    part, whole = (
        np.asarray(compiled(name).use(meta, episodes)["outputs"]["logits"])
        for episodes in (some, tasks())
    )
    assert (abs(whole - part).max() > 1e-3) == (name != "zero-shot")


@every
def test_an_all_masked_support_gives_no_nan(name):
    """Fault: a mean over nothing, which is NaN in the meta-gradient even where the value is not."""
    none = with_support(tasks(), mask=np.zeros((TASKS, SUPPORT), bool))
    found = compiled(name).use(start(name), none), compiled(name).slope(start(name), none)
    for leaf in jax.tree.leaves(found):
        assert np.isfinite(leaf).all()
    if name not in (*ON_FEATURES, "map-head", "proto-maml"):
        same(at(0, found[0]["adapted"]), start(name)["params"])


@pytest.mark.slow
@every
def test_objective_gradient_against_finite_differences(name):
    """Fault: a stop_gradient too many or too few. First order is biased on purpose: its gradient
    is that of the query's loss at the adapted parameters."""
    learner = LEARNERS[name](PROBLEM)
    with jax.enable_x64(True):
        meta = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), start(name))
        episodes = tasks(dtype=np.float64)
        slope = jax.jit(value_and_slope(learner))
        _, gradient = slope(meta, episodes)
        assert gradient["params"]["body"]["w"].dtype == np.float64
        if name == "first-order":
            expected = jax.jit(jax.vmap(after_adaptation(learner), (None, 0)))(meta, episodes)
            expected = jax.tree.map(lambda leaf: leaf.mean(0), expected)
            near(gradient["params"], expected, rtol=1e-9, atol=1e-12)
            return
        if name == "reptile":  # its gradient is the way back from where the support led
            adapted = jax.jit(jax.vmap(use(learner), in_axes=(None, 0)))(meta, episodes)["adapted"]
            way = jax.tree.map(lambda leaf, to: leaf - to.mean(0), meta["params"], adapted)
            near(gradient["params"], way, rtol=1e-9, atol=1e-12)
            return
        rng, size = np.random.default_rng(5), 1e-5
        leaves, tree = jax.tree.flatten(meta)
        for place in range(len(leaves)):
            along = [np.zeros_like(leaf) for leaf in leaves]
            along[place] = size * rng.normal(size=leaves[place].shape)
            along = jax.tree.unflatten(tree, along)
            ahead, behind = (
                slope(jax.tree.map(lambda leaf, by: leaf + sign * by, meta, along), episodes)[0]
                for sign in (1, -1)
            )
            found = optax.tree.vdot(gradient, along)
            np.testing.assert_allclose(found, (ahead - behind) / 2, rtol=1e-6, atol=1e-14)


def after_adaptation(learner):
    """(meta, episode) -> the gradient of the query's loss at the adapted parameters."""

    def gradient(meta, episode):
        adapted, _ = learner.adapt(meta, episode.support, (), None)
        return jax.grad(lambda params: learner.loss(params, episode.query, ())[0])(adapted)

    return gradient


@every
def test_meta_training_learns(name):
    """Fault: the objective's gradient points elsewhere than down."""
    meta, losses = start(name), []
    for _ in range(40):
        value, gradient = compiled(name).slope(meta, tasks(4))
        losses.append(value)
        meta = jax.tree.map(lambda leaf, by: np.asarray(leaf) - 0.2 * by, meta, gradient)
    assert losses[-1] < 0.97 * losses[0]
    assert np.mean(losses[-10:]) < np.mean(losses[:10])


@pytest.mark.slow
@pytest.mark.parametrize(
    "learner",
    [
        maml(PROBLEM, SGD, 0),
        imaml(PROBLEM, SGD, 0),
        meta_sgd(PROBLEM, 0.5, 0),
        reptile(PROBLEM, SGD, 0),
        anil(PROBLEM, SGD, 0),
        fine_tuning(PROBLEM, SGD, 0),
        fine_tuning(PROBLEM, SGD, 0, head_only=True),
        joint(PROBLEM),
    ],
    ids=["maml", "imaml", "meta-sgd", "reptile", "anil", "fine-tuning", "head-only", "zero-shot"],
)
def test_no_step_is_no_adaptation(learner):
    """Fault: what adapts by no step is not the meta-parameters to the bit."""
    meta = learner.init(jax.random.key(0))
    adapted, seen = learner.adapt(meta, task().support, (), None, lambda params: params["head"])
    same(adapted, meta["params"])
    same(seen["kernel"], meta["params"]["head"]["kernel"][None])


@pytest.mark.slow
def test_joint_training_reads_support_and_query():
    """Faults: the support is wasted, or the padding of the support is trained on."""
    zero = maml(PROBLEM, SGD, 0)
    for masked in (0, 3):
        mask = np.tile(np.arange(SUPPORT) < SUPPORT - masked, (TASKS, 1))
        episodes = with_support(tasks(), mask=mask)
        expected = []
        for index in range(TASKS):
            support, query, _ = at(index, episodes)
            rows = {
                name: jnp.asarray(np.concatenate([support[name][support["mask"]], query[name]]))
                for name in support
            }
            expected.append(zero.loss(start()["params"], rows, ())[0])
        near(compiled("zero-shot").slope(start(), episodes)[0], np.mean(expected))


@pytest.mark.parametrize("name", ["maml", "first-order", "fine-tuning", "meta-sgd", "reptile"])
def test_adapting_all_is_gradient_descent_on_the_support(name):
    """Faults: a step reads the query, a group of body or head is held, one that the problem does
    not read is moved, or the rate is not the one given."""
    found = at(0, compiled(name).use(start(name), tasks())["adapted"])
    support = task().support
    params = start()["params"]
    w, v = np.asarray(params["body"]["w"]), np.asarray(params["head"]["kernel"])
    b = np.asarray(params["head"]["bias"])
    x, y = np.asarray(support["x"]), np.eye(WAY)[np.asarray(support["label"])]
    for _ in range(3):
        hidden = np.tanh(x @ w)
        chance = np.exp(hidden @ v + b)
        error = (chance / chance.sum(1, keepdims=True) - y) / SUPPORT
        w, v = w - 0.5 * x.T @ ((error @ v.T) * (1 - hidden**2)), v - 0.5 * hidden.T @ error
        b = b - 0.5 * error.sum(0)
    near(found["body"]["w"], w, rtol=1e-4)
    near(found["head"], {"kernel": v, "bias": b}, rtol=1e-4)
    same(found["unused"], start()["params"]["unused"])


@pytest.mark.parametrize("name", ["anil", "head-only"])
def test_adapting_the_head_leaves_the_body_to_the_bit(name):
    """Faults: the body moves (optax.masked passes raw gradients through), or the head does not."""
    found = at(0, compiled(name).use(start(), tasks()))
    same(found["adapted"]["body"], start()["params"]["body"])
    moved = found["adapted"]["head"]["kernel"] - start()["params"]["head"]["kernel"]
    assert abs(moved).max() > 0.05
    assert found["seen"]["body"]["w"].shape == (4, INPUTS, WIDTH)
    same(at(-1, found["seen"]), found["adapted"])


def test_head_only_fine_tuning_adapts_as_anil():
    """Fault: head-only fine-tuning is another rule than the one ANIL meta-learns for."""
    head, both = (compiled(name).use(start(), tasks()) for name in ("head-only", "anil"))
    same(head["adapted"], both["adapted"])


@pytest.mark.slow
def test_anil_is_maml_where_the_body_has_no_parameters():
    """Fault: ANIL's short cut (encode once, differentiate the head) changes value or gradient."""
    problem = problem_of(body=False)
    meta = {"params": problem.init(jax.random.key(3))}
    found = [
        jax.jit(jax.value_and_grad(objective(learner(problem, SGD, 3))))(meta, tasks())
        for learner in (anil, maml)
    ]
    near(*found)
    assert abs(found[0][1]["params"]["head"]["kernel"]).max() > 1e-3


def features(batch):
    return np.tanh(np.asarray(batch["x"]) @ np.asarray(start()["params"]["body"]["w"]))


def scaled(x):
    x = x / np.sqrt((x**2).mean(1, keepdims=True))
    return np.concatenate([x, np.ones_like(x[:, :1])], axis=1)


def masked_task():
    """All tasks with the support's last row masked, and what a solver should see of the first."""
    mask = np.tile(np.arange(SUPPORT) < SUPPORT - 1, (TASKS, 1))
    episodes = with_support(tasks(), mask=mask)
    support = at(0, episodes.support)
    return episodes, scaled(features(support))[:-1], support["label"][:-1]


def test_standardised_features_have_unit_mean_square_and_a_constant():
    """Faults: the scale is of the batch and not of the example, or there is no bias column."""
    x = np.array([[3.0, -4.0], [0.3, -0.4]], np.float32)
    np.testing.assert_allclose(standardised(jnp.asarray(x)), scaled(x), rtol=1e-4)


def test_ridge_is_the_primal_closed_form():
    """Fault: the dual is solved with another penalty or target, or masked rows are counted."""
    episodes, x, label = masked_task()
    target = 2.0 * np.eye(WAY)[label] - 1.0
    expected = np.linalg.solve(x.T @ x + 0.5 * np.eye(WIDTH + 1), x.T @ target)
    found = at(0, jax.jit(jax.vmap(use(ridge(PROBLEM, 0.5, 1.0)), (None, 0)))(start(), episodes))
    near(found["adapted"][1], expected, rtol=1e-3, atol=1e-4)
    query = scaled(features(task().query))
    near(found["outputs"]["logits"], query @ expected, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_logistic_is_scikit_learns():
    """Faults: the penalty is scaled by the number of examples, the descent stops far from the
    solution or runs away from it, or masked rows are fitted."""
    episodes, x, label = masked_task()
    support = jax.tree.map(jnp.asarray, at(0, episodes.support))
    for penalty in (0.5, 5.0):
        model = LogisticRegression(C=1 / penalty, fit_intercept=False, tol=1e-8, max_iter=5000)
        expected = model.fit(x, label).coef_.T
        found = {
            steps: logistic(PROBLEM, penalty, steps).adapt(start(), support, (), None)[0][1]
            for steps in (30, 1000)
        }
        near(found[1000], expected, rtol=1e-3, atol=1e-3)
        chance = np.exp(x @ np.asarray(found[30]))
        chance /= chance.sum(1, keepdims=True)
        near(chance, model.predict_proba(x), rtol=0, atol=0.02)


def test_prototypes_are_the_means_of_the_classes():
    """Faults: masked rows count, or a class without examples is NaN."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(7, 2)).astype(np.float32)
    label = np.array([0, 1, 0, 2, 1, 0, 2], np.int32)
    mask = np.array([1, 1, 1, 0, 1, 0, 0], bool)
    found = prototypes(jnp.asarray(x), jnp.asarray(label), jnp.asarray(mask), 3)
    for one in range(3):
        rows = [x[i] for i in range(7) if label[i] == one and mask[i]]
        np.testing.assert_allclose(found[one], np.mean(rows or [[0, 0]], axis=0), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["prototypical", "relation", "matching", "proto-maml"])
def test_a_class_without_support_is_never_chosen(name):
    """Faults: its prototype, 0, is nearer than those of the others; without any support not all
    classes are alike."""
    learner, episode = LEARNERS[name](PROBLEM), task()

    def outputs(mask):
        support = episode.support | {"mask": mask}
        adapted, _ = learner.adapt(learner.init(jax.random.key(0)), support, (), None)
        return jax.nn.softmax(learner.predict(adapted, episode.query, ())["logits"])

    label = episode.support["label"]
    assert outputs(label != 1)[:, 1].max() < 1e-6
    np.testing.assert_allclose(outputs(jnp.zeros_like(label, bool)).sum(1), 1.0, rtol=1e-5)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_a_penalty_that_is_not_positive_is_an_error(value):
    """Fault: a loss that is not a number, from a system that is not positive."""
    for learner in (lambda: ridge(PROBLEM, value), lambda: r2d2(PROBLEM, 1.0, value)):
        with pytest.raises(ValueError, match="it has to be positive"):
            learner()


def test_prototypical_scores_by_distance():
    """Fault: the score is not minus the squared distance over the root of the width."""
    found = at(0, compiled("prototypical").use(start(), tasks()))
    query, label = features(task().query), np.asarray(task().query["label"])
    centres, logits = np.asarray(found["adapted"][1][0]), np.zeros((QUERY, WAY))
    for row in range(QUERY):
        for one in range(WAY):
            logits[row, one] = -((query[row] - centres[one]) ** 2).sum() / WIDTH**0.5
    near(found["outputs"]["logits"], logits, rtol=1e-4)
    chance = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    loss, metrics = found["loss"]
    near(loss, -np.log(chance[np.arange(QUERY), label]).mean(), rtol=1e-4)
    near(metrics["accuracy"], np.mean(logits.argmax(1) == label))


def test_matching_is_attention_over_the_support():
    """Faults: cosine without its norms, a temperature the wrong way up, a class of the average and
    not of the sum of attention."""
    found = at(0, compiled("matching").use(start("matching"), tasks()))
    params = start("matching")["params"]["body"]["w"]
    known, asked = (np.tanh(np.asarray(b["x"]) @ np.asarray(params)) for b in task()[:2])
    known, asked = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (known, asked))
    attention = np.exp(asked @ known.T / 0.2)
    attention /= attention.sum(1, keepdims=True)
    chance = attention @ np.eye(WAY)[np.asarray(task().support["label"])]
    near(jax.nn.softmax(found["outputs"]["logits"]), chance, rtol=1e-4)


def test_relation_scores_pairs_of_prototype_and_query():
    """Faults: the pair is the other way round, queries and classes are swapped, the loss is not
    the squared error of the sigmoid."""
    meta = start("relation")
    found = at(0, compiled("relation").use(meta, tasks()))
    centres = np.asarray(found["adapted"][1][0])
    asked = np.tanh(np.asarray(task().query["x"]) @ np.asarray(meta["params"]["body"]["w"]))
    rule = jax.tree.map(np.asarray, meta["rule"])
    logits = np.zeros((QUERY, WAY))
    for row in range(QUERY):
        for one in range(WAY):
            pair = np.concatenate([centres[one], asked[row]])
            hidden = np.maximum(pair @ rule["hidden"]["kernel"] + rule["hidden"]["bias"], 0)
            logits[row, one] = (hidden @ rule["score"]["kernel"] + rule["score"]["bias"])[0]
    near(found["outputs"]["logits"], logits, rtol=1e-4)
    error = 1 / (1 + np.exp(-logits)) - np.eye(WAY)[np.asarray(task().query["label"])]
    near(found["loss"][0], (error**2).sum(1).mean(), rtol=1e-4)


def test_r2d2_is_ridge_with_learned_penalty_and_scale():
    """Fault: penalty or scale are not those of the rule, or another in fit and score."""
    meta = {"params": start()["params"]}
    rule = {"log_penalty": jnp.log(0.5), "log_scale": jnp.log(4.0)}
    found, fixed = (
        jax.jit(use(learner))(one, task())
        for learner, one in (
            (r2d2(PROBLEM), {**meta, "rule": rule}),
            (ridge(PROBLEM, 0.5, temperature=0.25), meta),
        )
    )
    near(found["outputs"], fixed["outputs"], rtol=1e-4)


def test_proto_maml_without_steps_is_a_prototypical_network():
    """Faults: kernel and bias are not 2c and −|c|², or the head starts at its own values."""
    params = start()["params"]
    proto = jax.jit(use(proto_maml(PROBLEM, SGD, 0)))({"params": params}, task())
    plain = jax.jit(use(prototypical(PROBLEM, 1.0)))({"params": params}, task())
    a, b = (jax.nn.log_softmax(one["outputs"]["logits"]) for one in (proto, plain))
    near(a, b, rtol=1e-4, atol=1e-5)


def test_proto_maml_needs_a_linear_head():
    """Fault: a head of another form is overwritten by one that its problem cannot read."""
    other = PROBLEM._replace(head=("unused",))
    with pytest.raises(ValueError, match="needs one linear head"):
        proto_maml(other, SGD, 1).adapt(start(), task().support, (), None)


@pytest.mark.slow
def test_meta_sgd_with_one_rate_is_maml():
    """Faults: a rate is applied twice or with the wrong sign, or is no meta-parameter. The gradient
    in the rates is −⟨∇L_query, ∇L_support⟩ by parameter after one step."""
    learner = meta_sgd(PROBLEM, 0.5, 3)
    meta = learner.init(jax.random.key(0))
    value, slope = jax.jit(value_and_slope(learner))(meta, tasks())
    near(
        (value, slope["params"]),
        (lambda v, g: (v, g["params"]))(*compiled("maml").slope(start(), tasks())),
    )
    one = jax.jit(value_and_slope(meta_sgd(PROBLEM, 0.5, 1)))
    episodes = jax.tree.map(lambda leaf: leaf[:1], tasks())
    _, slope = one(meta, episodes)
    params = meta["params"]
    inner = jax.grad(lambda p: maml(PROBLEM, SGD, 0).loss(p, task().support, ())[0])(params)
    moved = jax.tree.map(lambda p, g: p - 0.5 * g, params, inner)
    outer = jax.grad(lambda p: maml(PROBLEM, SGD, 0).loss(p, task().query, ())[0])(moved)
    expected = jax.tree.map(lambda a, b: -a * b, inner, outer)
    near(slope["rule"]["rates"], {name: expected[name] for name in ("body", "head")}, atol=1e-6)


@pytest.mark.parametrize("strength", [0.0, 0.5, 1e6])
def test_proximal_descent_ends_at_the_penalised_minimum(strength):
    """Faults: the pull is to the last point or to zero, it is taken without the rate, or a strong
    one makes the descent diverge."""
    target, start = jnp.asarray([1.0, -2.0]), jnp.asarray([3.0, 5.0])
    rule, theta = proximal_sgd(0.5, strength), start
    state = rule.init(theta)
    for step in range(100):
        update, state = rule.update(theta - target, state, theta)
        if not step and not strength:
            same(update, SGD.update(theta - target, SGD.init(theta))[0])
        theta = theta + update
    near(theta, (target + strength * start) / (1 + strength), rtol=1e-5)


def test_an_adapt_that_cannot_be_observed_is_an_error():
    """Fault: a learner trains for hours, and fails when it is evaluated."""
    with pytest.raises(TypeError, match="adapt is called as adapt.meta, support, context, key, o"):
        completed(PROBLEM, lambda meta, support, context, key: (meta["params"], None))


def test_rates_of_another_structure_are_an_error():
    """Fault: the rate of one layer is applied to another that happens to come next."""
    rule = learned_rates(lambda step: {"a": jnp.ones(2)})
    with pytest.raises(AssertionError, match="structs"):
        rule.update({"b": jnp.ones(2)}, rule.init({}))


def test_learned_rates_and_implicit_gradients_do_not_go_together():
    """Fault: rates are never trained, without a word."""
    with pytest.raises(ValueError, match="no learned rate changes"):
        meta_sgd(PROBLEM, 0.5, 1, Implicit())


def plus_plus(**options):
    return maml_plus_plus(PROBLEM, 0.5, 3, per_step=is_bias, **options)


def test_maml_plus_plus_is_maml_where_nothing_is_its_own():
    """Faults: with the last step's loss alone, second order and one rate it is not MAML; the loss
    of a step weighs wrongly."""
    off = {"multi_step_until": 0.0, "second_order_from": 0.0}
    learner = maml_plus_plus(PROBLEM, 0.5, 3, per_step=lambda name: False, **off)
    value, slope = jax.jit(value_and_slope(learner))(learner.init(jax.random.key(0)), tasks())
    expected = compiled("maml").slope(start(), tasks())
    near((value, slope["params"]), (expected[0], expected[1]["params"]))
    assert jax.tree.map(jnp.shape, slope["rule"]["rates"]["head"]) == {"kernel": (3,), "bias": (3,)}


@pytest.mark.slow
def test_maml_plus_plus_anneals():
    """Faults: first order is not taken first, or second order never; the multi-step loss does not
    end; both thresholds are one."""
    learner = plus_plus(multi_step_until=0.5, second_order_from=0.75)
    meta, episode = learner.init(jax.random.key(0)), task()

    @jax.jit
    def at_progress(progress):
        objective = lambda meta: learner.objective(meta, episode, None, progress)[0]  # noqa: E731
        return jax.value_and_grad(objective)(meta)

    found = {progress: at_progress(jnp.float32(progress)) for progress in (0.0, 0.49, 0.5, 0.75)}
    last = learner.loss(learner.adapt(meta, episode.support, (), None)[0], episode.query, ())[0]
    near([found[0.5][0], found[0.75][0]], [last, last])
    assert abs(found[0.0][0] - last) > 1e-3
    w = [np.asarray(found[p][1]["params"]["body"]["w"]) for p in (0.5, 0.75)]
    assert abs(w[0] - w[1]).max() > 1e-4
    exact = plus_plus(multi_step_until=0.0, second_order_from=0.0)
    slope = jax.jit(jax.grad(lambda meta: exact.objective(meta, episode, None, 0.0)[0]))(meta)
    near(found[0.75][1], slope)


def test_step_weights_anneal_to_the_last_step():
    """Faults: weights do not sum to 1, start unequal, or end elsewhere than at the last step."""
    for progress, last in ((0.0, 0.25), (1.0, 1 - 3 * 0.03 / 4)):
        weights = np.asarray(step_weights(4, jnp.float32(progress)))
        np.testing.assert_allclose(weights.sum(), 1.0, rtol=1e-6)
        np.testing.assert_allclose(weights[-1], last, rtol=1e-6)
        assert (weights[:-1] == weights[0]).all()


@pytest.mark.slow
def test_each_step_has_its_own_normalisation():
    """Faults: the query after a step is read with the values of another step; they are adapted
    inside the loop; a step's values are not learned while the last step's loss alone counts."""
    learner = plus_plus()
    meta = learner.init(jax.random.key(0))
    own = {"head.bias": jnp.arange(3.0)[:, None] * jnp.ones(WAY)}
    assert set(meta["rule"]["per_step"]) == set(own)
    meta = {**meta, "rule": {**meta["rule"], "per_step": own}}
    adapted, seen = learner.adapt(meta, task().support, (), None, lambda p: p["head"]["bias"][0])
    near(seen, [0.0, 0, 1, 2])
    near(adapted["head"]["bias"], np.full(WAY, 2.0))
    last = plus_plus(multi_step_until=0.0, second_order_from=0.0)
    slope = jax.grad(lambda meta: last.objective(meta, task(), None, 0.0)[0])(meta)
    assert (abs(slope["rule"]["per_step"]["head.bias"]).max(1) > 1e-6).all()


def test_maml_plus_plus_needs_a_step():
    """Fault: rates of no step, whose mean is NaN."""
    with pytest.raises(ValueError, match="steps is 0"):
        maml_plus_plus(PROBLEM, 0.5, 0)


@partial(jax.jit, static_argnums=(2, 3))
def numbers_drawn(mask, key, size, steps):
    """The rows of the first batches, one after the other."""
    batches = minibatches({"mask": mask, "number": jnp.arange(len(mask))}, size, key)
    return jax.vmap(lambda step: batches(step)["number"])(jnp.arange(steps)).reshape(-1)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(st.sets(st.integers(0, 6), min_size=1), st.sampled_from([1, 3, 5]), st.integers(0, 99))
def test_minibatches_go_through_the_support_epoch_by_epoch(rows, size, seed):
    """Faults: a masked row is drawn, a row comes twice in an epoch or not at all, or a batch stops
    at the end of an epoch."""
    mask = jnp.isin(jnp.arange(7), jnp.asarray(sorted(rows)))
    found = numbers_drawn(mask, jax.random.key(seed), size, -(-21 // size))
    for epoch in range(3):
        assert set(found[epoch * len(rows) : (epoch + 1) * len(rows)].tolist()) == rows


def test_every_epoch_has_an_order_of_its_own():
    """Fault: all epochs go through the support alike."""
    found = numbers_drawn(jnp.ones(7, bool), jax.random.key(0), 1, 21).reshape(3, 7)
    assert len({tuple(order) for order in found.tolist()}) == 3


@pytest.mark.slow
def test_a_rule_set_to_be_sgd_is_maml_or_anil():
    """Faults: the rule's parameters are not those that are learned; the initialisation is held
    where it should be learned, or the other way round; the body moves under the head's rule."""

    def rule(theta):
        return optax.with_extra_args_support(optax.sgd(theta["rate"]))

    def start_of(key):
        return {"rate": jnp.float32(0.5)}

    exact = learned(PROBLEM, start_of, rule, 3, Unrolled())
    meta = start() | {"rule": start_of(None)}
    value, slope = jax.jit(value_and_slope(exact))(meta, tasks())
    expected = compiled("maml").slope(start(), tasks())
    near((value, slope["params"]), (expected[0], expected[1]["params"]))
    assert abs(slope["rule"]["rate"]) > 1e-4
    held = learned(PROBLEM, start_of, rule, 3, hold_start=True)
    _, slope = jax.jit(value_and_slope(held))(meta, tasks())
    assert optax.tree.norm(slope["params"]) == 0 and abs(slope["rule"]["rate"]) > 1e-4
    head = learned(PROBLEM, start_of, rule, 3, Unrolled(), head_only=True)
    value, slope = jax.jit(value_and_slope(head))(meta, tasks())
    expected = compiled("anil").slope(start(), tasks())
    near((value, slope["params"]), (expected[0], expected[1]["params"]))
    with pytest.raises(ValueError, match="which no learned rule changes"):
        learned(PROBLEM, start_of, rule, 3, Implicit())


def test_reptile_keeps_the_optimizers_state_across_tasks():
    """Faults: the second moment starts anew with each task; a whole number in the state is lost; an
    outer rate of 1 does not make the state the mean of what the tasks left."""
    learner = reptile(PROBLEM, optax.adam(0.1, b1=0.0), 3, keep_state=True)
    meta = learner.init(jax.random.key(0))
    (_, _), slope = learner.gradient(meta, task(), jax.random.key(1), 0.0)
    after = jax.tree.map(lambda leaf, by: leaf - by, meta["rule"], slope["rule"])
    assert after[0].count == 3
    loop = inner_loop(
        lambda p, batch: maml(PROBLEM, SGD, 0).loss({**meta["params"], **p}, batch, ()),
        optax.adam(0.1, b1=0.0),
        FirstOrder(),
    )
    params = {name: meta["params"][name] for name in ("body", "head")}
    carry, _ = run(loop, loop.start(params), lambda step: task().support, 3)
    near(after[0].nu, carry.optimizer[0].nu, atol=1e-7)
    again, _ = run(
        loop, loop.start(params)._replace(optimizer=carry.optimizer), lambda step: task().support, 3
    )
    kept = {**meta, "rule": after}
    adapted, _ = learner.adapt(kept, task().support, (), jax.random.key(1))
    near({name: adapted[name] for name in params}, again.params, atol=1e-6)


def test_a_kept_count_is_whole_at_any_precision():
    """Faults: bfloat16 cannot hold a count above 256; a mean just below a whole number is cut."""
    half = PROBLEM._replace(
        init=lambda key: jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), PROBLEM.init(key))
    )
    rule = reptile(half, optax.adam(0.1), 1, keep_state=True).init(jax.random.key(0))["rule"]
    assert rule[0].count.dtype == jnp.float32
    assert int(_like(jnp.float32(399.9999), jnp.int32(0))) == 400


def test_what_is_masked_may_be_anything():
    """Fault: 0 times a NaN in the padding is a prototype without a number."""
    features = jnp.array([[1.0, 2.0], [3.0, 4.0], [jnp.nan, jnp.inf]])
    mask = jnp.array([True, True, False])
    found = prototypes(features, jnp.array([0, 0, 1]), mask, 2)
    near(found, jnp.array([[2.0, 3.0], [0.0, 0.0]]))


@pytest.mark.parametrize("learner", [*ON_FEATURES, "tf-idf", "map-head", "proto-maml"])
def test_classifiers_on_features_need_classes(learner):
    """Fault: a problem without classes fails in the middle of a trace, or not at all."""
    with pytest.raises(ValueError, match="needs a problem with classes"):
        METHODS[learner].at_test(problem_of(way=None), SETTINGS)
