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


def task(index=0, **options):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf[index]), tasks(**options))


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
    def value(meta, episode):
        return learner.objective(meta, episode, None, jnp.zeros(()))[0]

    return value


class Compiled:
    """A learner's programs, compiled once for all tests, and how often each was traced."""

    def __init__(self, name):
        self.learner = LEARNERS[name](PROBLEM)
        self.traces = {"use": 0, "slope": 0}
        self.use = self._jit("use", use(self.learner))
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


def with_support(episode, **fields):
    return episode._replace(support={**episode.support, **fields})


@every
def test_compiled_is_eager(name):
    """Fault: a learner does other things when traced, such as branching on a value."""
    # A scan of no steps cannot be run without compilation.
    with jax.disable_jit(name != "joint"):
        eager = use(LEARNERS[name](PROBLEM))(start(), task())
    near(compiled(name).use(start(), task()), eager)


@every
def test_side_by_side_is_one_after_the_other(name):
    """Fault: under vmap a task reads the support of another, or a solver mixes the batch."""
    together = jax.jit(jax.vmap(use(compiled(name).learner), in_axes=(None, 0)))(start(), tasks())
    for index in range(TASKS):
        alone = compiled(name).use(start(), task(index))
        near(jax.tree.map(lambda leaf: leaf[index], together), alone, rtol=1e-4)


@every
def test_float32_stays_float32(name):
    """Fault: a constant of the learner widens, or makes weak, the type of what it returns."""
    found = compiled(name).use(start(), task()), compiled(name).slope(start(), task())
    for leaf in jax.tree.leaves(found):
        assert leaf.dtype == jnp.float32, leaf
    for adapted, before in zip(
        jax.tree.leaves(found[1][1]), jax.tree.leaves(start()), strict=True
    ):
        assert adapted.shape == before.shape and not adapted.weak_type


@every
def test_new_values_need_no_new_program(name):
    """Fault: a value is closed over as a constant, or what comes out cannot go in again."""
    program = compiled(name)
    for seed in (1, 2):
        program.use(start(), task(seed=seed))
    meta = start()
    for seed in (1, 2, 3):
        _, slope = program.slope(meta, task(seed=seed))
        meta = jax.tree.map(lambda leaf, by: leaf - 0.1 * by, meta, slope)
    assert program.traces["use"] == program.traces["slope"] == 1


@every
def test_masked_support_has_no_influence(name):
    """Faults: a mean over the support divides by its padded size, or padding is fitted."""
    mask = np.arange(SUPPORT) < WAY
    episode = with_support(task(), mask=mask)
    other = with_support(
        episode,
        x=np.where(mask[:, None], episode.support["x"], np.float32(9)),
        label=np.where(mask, episode.support["label"], np.int32(WAY - 1)),
    )
    same(compiled(name).use(start(), episode), compiled(name).use(start(), other))
    same(compiled(name).slope(start(), episode), compiled(name).slope(start(), other))
    whole, part = (
        np.asarray(compiled(name).use(start(), one)["outputs"]["logits"])
        for one in (task(), episode)
    )
    assert (abs(whole - part).max() > 1e-3) == (name != "joint")


@every
def test_an_all_masked_support_gives_no_nan(name):
    """Fault: a mean over nothing, which is NaN in the meta-gradient even where the value is not."""
    episode = with_support(task(), mask=jnp.zeros(SUPPORT, bool))
    found = compiled(name).use(start(), episode), compiled(name).slope(start(), episode)
    for leaf in jax.tree.leaves(found):
        assert np.isfinite(leaf).all()
    if name not in ("prototypical", "ridge", "logistic"):
        same(found[0]["adapted"], start()["params"])


@every
def test_objective_gradient_against_finite_differences(name):
    """Fault: a stop_gradient too many or too few. First order is biased on purpose: its gradient
    is that of the query's loss at the adapted parameters."""
    learner = LEARNERS[name](PROBLEM)
    with jax.enable_x64(True):
        meta = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), start())
        episode = task(dtype=np.float64)
        if name == "first order":
            gradient = jax.jit(jax.grad(objective(learner)))(meta, episode)
            adapted, _ = learner.adapt(meta, episode.support, (), None)
            expected = jax.grad(lambda p: learner.loss(p, episode.query, ())[0])(adapted)
            near(gradient["params"], expected, rtol=1e-9, atol=1e-12)
            return
        slope = jax.jit(jax.value_and_grad(objective(learner)))
        rng, size = np.random.default_rng(5), 1e-5
        for group in meta["params"]:
            matrix = meta["params"][group]["w"]
            along = size * rng.normal(size=matrix.shape)
            ahead, behind = (
                slope({"params": {**meta["params"], group: {"w": matrix + by}}}, episode)[0]
                for by in (along, -along)
            )
            found = np.vdot(slope(meta, episode)[1]["params"][group]["w"], along)
            np.testing.assert_allclose(found, (ahead - behind) / 2, rtol=1e-6, atol=1e-14)


@every
def test_meta_training_learns(name):
    """Fault: the objective's gradient points elsewhere than down."""
    meta, losses = start(), []
    for _ in range(30):
        slopes = [compiled(name).slope(meta, task(index, seed=4)) for index in range(TASKS)]
        losses.append(np.mean([value for value, _ in slopes]))
        gradient = jax.tree.map(lambda *by: np.mean(by, axis=0), *(by for _, by in slopes))
        meta = jax.tree.map(lambda leaf, by: np.asarray(leaf - 0.2 * by), meta, gradient)
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
    program = compiled("joint")
    episode = task()
    both = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), episode.support, episode.query)
    expected = maml(PROBLEM, SGD, 0).loss(start()["params"], both, ())[0]
    near(program.slope(start(), episode)[0], expected)
    alone = with_support(episode, mask=jnp.zeros(SUPPORT, bool))
    expected = maml(PROBLEM, SGD, 0).loss(start()["params"], episode.query, ())[0]
    near(program.slope(start(), alone)[0], expected)


@pytest.mark.parametrize("name", ["maml", "first order", "fine-tuning"])
def test_adapting_all_is_gradient_descent_on_the_support(name):
    """Faults: a step reads the query, a group is held, or the rate is not the one given."""
    params, episode = start()["params"], task()

    def support_loss(params):
        encoded = PROBLEM.encode(params, episode.support, (), None)
        return PROBLEM.loss(params, encoded, episode.support, ())[0]

    for _ in range(3):
        params = jax.tree.map(lambda p, g: p - 0.5 * g, params, jax.grad(support_loss)(params))
    near(compiled(name).use(start(), episode)["adapted"], params)


@pytest.mark.parametrize("name", ["anil", "head-only"])
def test_adapting_the_head_leaves_the_body_to_the_bit(name):
    """Faults: the body moves (optax.masked passes raw gradients through), or the head does not."""
    found = compiled(name).use(start(), task())
    same(found["adapted"]["body"], start()["params"]["body"])
    assert abs(found["adapted"]["head"]["w"] - start()["params"]["head"]["w"]).max() > 0.05
    assert found["seen"]["body"]["w"].shape == (4, INPUTS, WIDTH)
    same(jax.tree.map(lambda leaf: leaf[-1], found["seen"]), found["adapted"])


def test_head_only_fine_tuning_adapts_as_anil():
    """Fault: head-only fine-tuning is another rule than the one ANIL meta-learns for."""
    head, both = (compiled(name).use(start(), task()) for name in ("head-only", "anil"))
    same(head["adapted"], both["adapted"])


def test_anil_is_maml_where_the_body_has_no_parameters():
    """Fault: ANIL's short cut (encode once, differentiate the head) changes value or gradient."""
    problem, episode = problem_of(body=False), task()
    meta = {"params": problem.init(jax.random.key(3))}
    found = [
        jax.jit(jax.value_and_grad(objective(learner(problem, SGD, 3))))(meta, episode)
        for learner in (anil, maml)
    ]
    near(*found)
    assert abs(found[0][1]["params"]["head"]["w"]).max() > 1e-3


def support_features(masked=1):
    episode = task()
    mask = np.arange(SUPPORT) < SUPPORT - masked
    features = PROBLEM.encode(start()["params"], episode.support, (), None)
    x = np.asarray(standardised(features))[mask]
    return with_support(episode, mask=jnp.asarray(mask)), x, np.asarray(episode.support["label"])[mask]


def test_standardised_features_have_unit_mean_square_and_a_constant():
    """Faults: the scale is of the batch and not of the example, or there is no bias column."""
    x = np.array([[3.0, -4.0], [0.3, -0.4]], np.float32)
    expected = np.array([[3.0, -4.0, 0], [3.0, -4.0, 0]]) / np.sqrt(12.5) + [0, 0, 1]
    np.testing.assert_allclose(standardised(jnp.asarray(x)), expected, rtol=1e-4)


def test_ridge_is_the_primal_closed_form():
    """Fault: the dual is solved with another penalty or target, or masked rows are counted."""
    episode, x, label = support_features()
    target = 2.0 * np.eye(WAY)[label] - 1.0
    expected = np.linalg.solve(x.T @ x + 0.5 * np.eye(WIDTH + 1), x.T @ target)
    found = compiled("ridge").use(start(), episode)
    near(found["adapted"][1], expected, rtol=1e-3, atol=1e-4)
    query = standardised(PROBLEM.encode(start()["params"], episode.query, (), None))
    near(found["outputs"]["logits"], query @ expected, rtol=1e-3, atol=1e-3)


def test_logistic_is_scikit_learns():
    """Faults: the penalty is scaled by the number of examples, the descent stops far from the
    solution or runs away from it, or masked rows are fitted."""
    episode, x, label = support_features()
    for penalty in (0.5, 5.0):
        model = LogisticRegression(C=1 / penalty, fit_intercept=False, tol=1e-8, max_iter=5000)
        expected = model.fit(x, label).coef_.T
        found = {
            steps: logistic(PROBLEM, penalty, steps).adapt(start(), episode.support, (), None)[0][1]
            for steps in (30, 1000)
        }
        near(found[1000], expected, rtol=1e-3, atol=1e-3)
        near(jax.nn.softmax(x @ found[30]), model.predict_proba(x), rtol=0, atol=0.02)


def test_prototypes_are_the_means_of_the_classes():
    """Faults: masked rows count, or a class without examples is NaN."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(7, 2)).astype(np.float32)
    label = np.array([0, 1, 0, 2, 1, 0, 2], np.int32)
    mask = np.array([1, 1, 1, 0, 1, 0, 0], bool)
    found = prototypes(jnp.asarray(features), jnp.asarray(label), jnp.asarray(mask), 3)
    for one in range(3):
        rows = [features[i] for i in range(7) if label[i] == one and mask[i]]
        np.testing.assert_allclose(found[one], np.mean(rows or [[0, 0]], axis=0), rtol=1e-6)


def test_prototypical_scores_by_distance():
    """Fault: the score is not minus the squared distance over the root of the width."""
    found = compiled("prototypical").use(start(), task())
    params, centres = found["adapted"]
    query = PROBLEM.encode(params, task().query, (), None)
    for row in range(QUERY):
        for one in range(WAY):
            distance = float(((query[row] - centres[one]) ** 2).sum())
            expected = -distance / WIDTH**0.5
            np.testing.assert_allclose(found["outputs"]["logits"][row, one], expected, rtol=1e-4)
    label = np.asarray(task().query["label"])
    chance = jax.nn.log_softmax(found["outputs"]["logits"])
    near(found["loss"][0], -np.mean(np.asarray(chance)[np.arange(QUERY), label]))
    near(found["loss"][1]["accuracy"], np.mean(np.argmax(chance, -1) == label))


@pytest.mark.parametrize("learner", ["prototypical", "ridge", "logistic"])
def test_classifiers_on_features_need_classes(learner):
    """Fault: a problem without classes fails in the middle of a trace, or not at all."""
    with pytest.raises(ValueError, match="needs a problem with classes"):
        LEARNERS[learner](problem_of(way=None))
