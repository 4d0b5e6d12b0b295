from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.linear_model import LogisticRegression

from metaguide.inner_loop import FirstOrder
from metaguide.learners import anil, fine_tuning, joint, logistic, maml, prototypical, ridge
from metaguide.learners.on_features import prototypes, standardised
from metaguide.types import Episode, Problem

WAY, INPUTS, WIDTH, TASKS = 3, 4, 5, 4
SUPPORT, QUERY = 2 * WAY, 9
SGD = optax.sgd(0.5)

LEARNERS = {
    "maml": lambda p: maml(p, SGD, 3),
    "first order": lambda p: maml(p, SGD, 3, FirstOrder()),
    "anil": lambda p: anil(p, SGD, 3),
    "fine-tuning": lambda p: fine_tuning(p, SGD, 3),
    "head-only": lambda p: fine_tuning(p, SGD, 3, head_only=True),
    "joint": joint,
    "prototypical": prototypical,
    "ridge": lambda p: ridge(p, 0.5),
    "logistic": lambda p: logistic(p, 0.5),
}
every = pytest.mark.parametrize("name", LEARNERS)


def problem_of(body=True, way=WAY):
    """Softmax regression on tanh features (or, without body, on the inputs themselves)."""

    def init(key):
        one, two = jax.random.split(key)
        head = {"w": 0.1 * jax.random.normal(two, (WIDTH if body else INPUTS, WAY))}
        first = {"w": jax.random.normal(one, (INPUTS, WIDTH))} if body else {}
        return {"body": first, "head": head, "unused": {"w": jnp.ones(2)}}

    def encode(params, batch, context, key):
        return jnp.tanh(batch["x"] @ params["body"]["w"]) if body else batch["x"]

    def predict(params, encoded, batch, context):
        return {"logits": encoded @ params["head"]["w"]}

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
        judge=lambda outputs, query, context: outputs,
        body=("body",),
        head=("head",),
        target="label",
        way=way,
    )


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
def start():
    return {"params": PROBLEM.init(jax.random.key(0))}


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


class Compiled:
    """A learner's two programs, compiled once for all tests, and how often each was traced."""

    def __init__(self, name):
        self.learner = LEARNERS[name](PROBLEM)
        self.traces = {"use": 0, "slope": 0}
        self.use = self._jit("use", jax.vmap(use(self.learner), in_axes=(None, 0)))
        self.slope = self._jit("slope", jax.value_and_grad(objective(self.learner)))

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


@every
def test_compiled_side_by_side_is_eager_one_by_one(name):
    """Faults: a learner does other things when traced, such as branching on a value; under vmap a
    task reads the support of another, or a solver mixes the tasks."""
    together = compiled(name).use(start(), tasks())
    for index in (0, TASKS - 1):
        # A scan of no steps cannot be run without compilation.
        with jax.disable_jit(name != "joint"):
            alone = use(compiled(name).learner)(start(), task(index))
        near(at(index, together), alone, rtol=1e-4)


@every
def test_float32_stays_float32(name):
    """Fault: a constant of the learner widens, or makes weak, the type of what it returns."""
    slope = compiled(name).slope(start(), tasks())
    for leaf in jax.tree.leaves((compiled(name).use(start(), tasks()), slope)):
        assert leaf.dtype == jnp.float32 and not leaf.weak_type
    assert jax.tree.map(jnp.shape, slope[1]) == jax.tree.map(jnp.shape, start())


@every
def test_new_values_need_no_new_program(name):
    """Fault: a value is closed over as a constant, or what comes out cannot go in again."""
    program, meta = compiled(name), start()
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
    same(compiled(name).use(start(), some), compiled(name).use(start(), other))
    same(compiled(name).slope(start(), some), compiled(name).slope(start(), other))
    part, whole = (
        np.asarray(compiled(name).use(start(), episodes)["outputs"]["logits"])
        for episodes in (some, tasks())
    )
    assert (abs(whole - part).max() > 1e-3) == (name != "joint")


@every
def test_an_all_masked_support_gives_no_nan(name):
    """Fault: a mean over nothing, which is NaN in the meta-gradient even where the value is not."""
    none = with_support(tasks(), mask=np.zeros((TASKS, SUPPORT), bool))
    found = compiled(name).use(start(), none), compiled(name).slope(start(), none)
    for leaf in jax.tree.leaves(found):
        assert np.isfinite(leaf).all()
    if name not in ("prototypical", "ridge", "logistic"):
        same(at(0, found[0]["adapted"]), start()["params"])


@every
def test_objective_gradient_against_finite_differences(name):
    """Fault: a stop_gradient too many or too few. First order is biased on purpose: its gradient
    is that of the query's loss at the adapted parameters."""
    learner = LEARNERS[name](PROBLEM)
    with jax.enable_x64(True):
        meta = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), start())
        episodes = tasks(dtype=np.float64)
        slope = jax.jit(jax.value_and_grad(objective(learner)))
        _, gradient = slope(meta, episodes)
        assert gradient["params"]["body"]["w"].dtype == np.float64
        if name == "first order":
            expected = jax.jit(jax.vmap(after_adaptation(learner), (None, 0)))(meta, episodes)
            expected = jax.tree.map(lambda leaf: leaf.mean(0), expected)
            near(gradient["params"], expected, rtol=1e-9, atol=1e-12)
            return
        rng, size = np.random.default_rng(5), 1e-5
        for group in meta["params"]:
            matrix = meta["params"][group]["w"]
            along = size * rng.normal(size=matrix.shape)
            ahead, behind = (
                slope({"params": {**meta["params"], group: {"w": matrix + by}}}, episodes)[0]
                for by in (along, -along)
            )
            found = np.vdot(gradient["params"][group]["w"], along)
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
    meta, losses = start(), []
    for _ in range(40):
        value, gradient = compiled(name).slope(meta, tasks(4))
        losses.append(value)
        meta = jax.tree.map(lambda leaf, by: np.asarray(leaf) - 0.2 * by, meta, gradient)
    assert losses[-1] < 0.97 * losses[0]
    assert np.mean(losses[-10:]) < np.mean(losses[:10])


@pytest.mark.parametrize(
    "learner",
    [
        maml(PROBLEM, SGD, 0),
        anil(PROBLEM, SGD, 0),
        fine_tuning(PROBLEM, SGD, 0),
        fine_tuning(PROBLEM, SGD, 0, head_only=True),
        joint(PROBLEM),
    ],
    ids=["maml", "anil", "fine-tuning", "head-only", "joint"],
)
def test_no_step_is_no_adaptation(learner):
    """Fault: what adapts by no step is not the meta-parameters to the bit."""
    adapted, seen = learner.adapt(start(), task().support, (), None, lambda params: params["head"])
    same(adapted, start()["params"])
    same(seen["w"], start()["params"]["head"]["w"][None])


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
        near(compiled("joint").slope(start(), episodes)[0], np.mean(expected))


@pytest.mark.parametrize("name", ["maml", "first order", "fine-tuning"])
def test_adapting_all_is_gradient_descent_on_the_support(name):
    """Faults: a step reads the query, a group of body or head is held, one that the problem does
    not read is moved, or the rate is not the one given."""
    found = at(0, compiled(name).use(start(), tasks())["adapted"])
    support = task().support
    w, v = (np.asarray(start()["params"][group]["w"]) for group in ("body", "head"))
    x, y = np.asarray(support["x"]), np.eye(WAY)[np.asarray(support["label"])]
    for _ in range(3):
        hidden = np.tanh(x @ w)
        chance = np.exp(hidden @ v)
        error = (chance / chance.sum(1, keepdims=True) - y) / SUPPORT
        w, v = w - 0.5 * x.T @ ((error @ v.T) * (1 - hidden**2)), v - 0.5 * hidden.T @ error
    near(found["body"]["w"], w, rtol=1e-4)
    near(found["head"]["w"], v, rtol=1e-4)
    same(found["unused"], start()["params"]["unused"])


@pytest.mark.parametrize("name", ["anil", "head-only"])
def test_adapting_the_head_leaves_the_body_to_the_bit(name):
    """Faults: the body moves (optax.masked passes raw gradients through), or the head does not."""
    found = at(0, compiled(name).use(start(), tasks()))
    same(found["adapted"]["body"], start()["params"]["body"])
    assert abs(found["adapted"]["head"]["w"] - start()["params"]["head"]["w"]).max() > 0.05
    assert found["seen"]["body"]["w"].shape == (4, INPUTS, WIDTH)
    same(at(-1, found["seen"]), found["adapted"])


def test_head_only_fine_tuning_adapts_as_anil():
    """Fault: head-only fine-tuning is another rule than the one ANIL meta-learns for."""
    head, both = (compiled(name).use(start(), tasks()) for name in ("head-only", "anil"))
    same(head["adapted"], both["adapted"])


def test_anil_is_maml_where_the_body_has_no_parameters():
    """Fault: ANIL's short cut (encode once, differentiate the head) changes value or gradient."""
    problem = problem_of(body=False)
    meta = {"params": problem.init(jax.random.key(3))}
    found = [
        jax.jit(jax.value_and_grad(objective(learner(problem, SGD, 3))))(meta, tasks())
        for learner in (anil, maml)
    ]
    near(*found)
    assert abs(found[0][1]["params"]["head"]["w"]).max() > 1e-3


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
    found = at(0, compiled("ridge").use(start(), episodes))
    near(found["adapted"][1], expected, rtol=1e-3, atol=1e-4)
    query = scaled(features(task().query))
    near(found["outputs"]["logits"], query @ expected, rtol=1e-3, atol=1e-3)


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


def test_prototypical_scores_by_distance():
    """Fault: the score is not minus the squared distance over the root of the width."""
    found = at(0, compiled("prototypical").use(start(), tasks()))
    query, label = features(task().query), np.asarray(task().query["label"])
    centres, logits = np.asarray(found["adapted"][1]), np.zeros((QUERY, WAY))
    for row in range(QUERY):
        for one in range(WAY):
            logits[row, one] = -((query[row] - centres[one]) ** 2).sum() / WIDTH**0.5
    near(found["outputs"]["logits"], logits, rtol=1e-4)
    chance = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    loss, metrics = found["loss"]
    near(loss, -np.log(chance[np.arange(QUERY), label]).mean(), rtol=1e-4)
    near(metrics["accuracy"], np.mean(logits.argmax(1) == label))


@pytest.mark.parametrize("learner", ["prototypical", "ridge", "logistic"])
def test_classifiers_on_features_need_classes(learner):
    """Fault: a problem without classes fails in the middle of a trace, or not at all."""
    with pytest.raises(ValueError, match="needs a problem with classes"):
        LEARNERS[learner](problem_of(way=None))
