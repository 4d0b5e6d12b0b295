import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaguide.arms import ARMS, Way, adaptation, arm_named, meta_learner
from metaguide.optimizers import rnn
from metaguide.types import Episode, Problem

WAY, RATE = 2, 0.5
RULE = rnn(2, 1)


def init(key):
    return {"body": {"w": 0.5 * jnp.ones((3, 4))}, "head": {"w": jnp.zeros((4, WAY))}}


def loss(params, encoded, batch, context):
    chance = jax.nn.log_softmax(encoded @ params["head"]["w"])
    value = -jnp.take_along_axis(chance, batch["label"][:, None], axis=1).mean()
    return value, {"loss": value}


def problem(way=WAY):
    return Problem(
        init=init,
        encode=lambda params, batch, context, key: jnp.tanh(batch["x"] @ params["body"]["w"]),
        loss=loss,
        predict=lambda params, encoded, batch, context: {"logits": encoded @ params["head"]["w"]},
        features=lambda encoded: encoded,
        judge=lambda outputs, query, context: outputs,
        body=("body",),
        head=("head",),
        target="label",
        way=way,
    )


@pytest.fixture(scope="module")
def episode():
    x = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    batch = {
        "x": jnp.asarray(x),
        "label": jnp.asarray([0, 1, 0, 1, 0, 1], jnp.int32),
        "mask": jnp.ones(6, bool),
    }
    return Episode(batch, {**batch, "x": batch["x"][::-1]})


def moved(learner, episode):
    """Which groups adaptation moves; its parts where `adapted` is no set of parameters."""
    meta = learner.init(jax.random.key(0))
    adapted, _ = learner.adapt(meta, episode.support, (), None)
    if not isinstance(adapted, dict):
        return "a classifier on features"
    return {name for name in adapted if (adapted[name]["w"] != meta["params"][name]["w"]).any()}


@pytest.mark.parametrize(
    ("way", "expected"),
    [
        (Way("all", "sgd"), {"body", "head"}),
        (Way("all", "adam"), {"body", "head"}),
        (Way("all", "rnn"), {"body", "head"}),
        (Way("head", "sgd"), {"head"}),
        (Way("head", "adam"), {"head"}),
        (Way("head", "rnn"), {"head"}),
        (Way("nothing"), set()),
        (Way("features", "ridge"), "a classifier on features"),
        (Way("features", "logistic"), "a classifier on features"),
        (Way("features", "prototypes"), "a classifier on features"),
    ],
)
def test_an_arm_adapts_what_it_says(way, expected, episode):
    """Fault: two ways to adapt are mixed up."""
    # From zero, the head has to move before the body can.
    assert moved(adaptation(way, problem(), RATE, 2, RULE), episode) == expected


def test_every_way_to_adapt_is_known():
    """Fault: an arm adapts in a way that there is not, found only when it is its turn."""
    for arm in ARMS.values():
        assert adaptation(arm.way, problem(), RATE, 1, RULE)
        assert arm.stage in ("random", "multitask", "metatrain")


def test_adam_is_not_sgd(episode):
    """Fault: the tuned Adam of the tables is another SGD."""
    learner = adaptation(Way("head", "adam"), problem(), RATE, 1)
    meta = {"params": init(None)}
    adapted, _ = learner.adapt(meta, episode.support, (), None)
    np.testing.assert_allclose(abs(adapted["head"]["w"]), RATE, rtol=1e-4)  # its first step


@pytest.mark.slow
def test_a_factor_multiplies_the_updates_of_a_learned_optimizer(episode):
    """Fault: what validation chooses for a learned optimizer changes nothing, or the rule reads it
    too."""
    meta = {"params": init(None), "rule": RULE.init(jax.random.key(0))}

    def step(factor):
        learner = adaptation(Way("head", "rnn"), problem(), factor, 1, RULE)
        return learner.adapt(meta, episode.support, (), None)[0]["head"]["w"]

    np.testing.assert_allclose(step(3.0), 3 * step(1.0), rtol=1e-5)
    trained = meta_learner("rnn", "classification", problem(), RATE, 1, rule=RULE)
    adapted, _ = trained.adapt(meta, episode.support, (), None)
    same = adaptation(Way("all", "rnn"), problem(), 1.0, 1, RULE)
    expected, _ = same.adapt(meta, episode.support, (), None)
    jax.tree.map(np.testing.assert_array_equal, adapted, expected)


@pytest.mark.parametrize("way", [Way("all", "sgd"), Way("features", "ridge")])
def test_the_rate_may_be_traced(way, episode):
    """Fault: each rate or penalty that is tried costs a compilation of its own."""
    traces = []

    @jax.jit
    def outputs(rate):
        traces.append(rate)
        learner = adaptation(way, problem(), rate, steps=2)
        adapted, _ = learner.adapt({"params": init(None)}, episode.support, (), None)
        return learner.predict(adapted, episode.query, ())["logits"]

    found = outputs(0.1), outputs(0.9)
    assert len(traces) == 1 and abs(found[0] - found[1]).max() > 1e-3


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("maml", "sentiment", {"body", "head"}),
        ("first-order", "classification", {"body", "head"}),
        ("anil", "sentiment", {"head"}),
        ("maml", "recommendation", {"head"}),
        ("first-order", "recommendation", {"head"}),
        ("prototypical", "classification", "a classifier on features"),
        ("prototypical", "questions", set()),
        ("prototypical", "recommendation", set()),
        ("rnn", "sentiment", {"body", "head"}),
        ("rnn", "recommendation", {"head"}),
        ("lstm-head", "classification", {"head"}),
        ("maml+lstm", "questions", {"body", "head"}),
        ("maml+lstm", "recommendation", {"head"}),
    ],
)
def test_meta_training_adapts_as_the_arm_does(name, kind, expected, episode):
    """Faults: an arm is meta-trained in another way than it is named for, or prototypes are asked
    to answer questions."""
    way = None if kind in ("questions", "recommendation") else WAY
    learner = meta_learner(name, kind, problem(way), RATE, 2, rule=RULE)
    assert moved(learner, episode) == expected


@pytest.mark.parametrize("name", ["lstm", "lstm-head", "maml+lstm"])
def test_an_optimizer_is_learned_and_its_start_is_held(name, episode):
    """Faults: the parameters that an arm starts from are trained too, so that the guide needs no
    update and the optimizer learns to make none; or the optimizer is not learned."""
    learner = meta_learner(name, "sentiment", problem(), RATE, 2, rule=RULE)

    def value(meta):
        return learner.objective(meta, episode, None, 0.0)[0]

    slope = jax.jit(jax.grad(value))(learner.init(jax.random.key(0)))
    assert optax.tree.norm(slope["params"]) == 0
    assert optax.tree.norm(slope["rule"]) > 0


def test_an_optimizer_has_to_be_given():
    """Fault: an arm of a learned optimizer is gradient descent in silence."""
    with pytest.raises(ValueError, match="a learned optimizer, lstm, makes the steps"):
        meta_learner("maml+lstm", "sentiment", problem(), RATE, 1)
    with pytest.raises(ValueError, match="a learned optimizer, hyper, makes the steps"):
        adaptation(Way("all", "hyper"), problem(), RATE, 1)


@pytest.mark.slow
def test_first_order_and_maml_differ_in_the_meta_gradient_alone(episode):
    """Fault: first-order MAML takes second derivatives, or MAML does not."""
    found = {}
    for name in ("maml", "first-order"):
        learner = meta_learner(name, "sentiment", problem(), RATE, 2)
        meta = learner.init(jax.random.key(0))

        def value(meta, learner=learner):
            return learner.objective(meta, episode, None, jnp.zeros(()))[0]

        found[name] = jax.jit(jax.value_and_grad(value))(meta)
    exact, first = found.values()
    np.testing.assert_allclose(exact[0], first[0], rtol=1e-6)
    gap = jax.tree.map(lambda a, b: abs(a - b).max(), exact[1], first[1])
    assert gap["params"]["head"]["w"] > 1e-3


@pytest.mark.parametrize("remat", [False, True])
def test_remat_is_passed_on(remat, episode):
    """Fault: `remat` is not heard, and a long inner loop does not fit into memory."""
    learner = meta_learner("maml", "sentiment", problem(), RATE, 2, remat)

    def value(meta):
        return learner.objective(meta, episode, None, jnp.zeros(()))[0]

    program = str(jax.make_jaxpr(jax.grad(value))({"params": init(None)}))
    assert ("remat" in program or "checkpoint" in program) == remat


def test_an_unknown_arm_lists_the_known():
    """Fault: a wrong name ends in a KeyError, or an arm that is not meta-trained is."""
    assert arm_named("anil") == ARMS["anil"]
    with pytest.raises(ValueError, match="no learner 'mamll'; there are scratch, .*prototypical"):
        arm_named("mamll")
    with pytest.raises(ValueError, match="'ridge'; there are maml, first-order, anil, proto"):
        meta_learner("ridge", "sentiment", problem(), RATE, 1)
