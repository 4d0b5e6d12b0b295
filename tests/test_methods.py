import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaguide.inner_loop import Unrolled
from metaguide.methods import (
    ALL_BY_ADAM,
    ALL_BY_SGD,
    HEAD_BY_ADAM,
    HEAD_BY_SGD,
    LOGISTIC,
    MAP_ALL,
    META_TRAINED,
    METHODS,
    NOTHING,
    PROTOTYPES,
    RIDGE,
    SOFT_K_MEANS,
    Settings,
    UnknownMethod,
    adaptation_of,
    by_rule,
    method_named,
)
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
        score=lambda outputs, query, context: outputs,
        body=("body",),
        head=("head",),
        target="label",
        way=way,
    )


def settings(**fields):
    return Settings(**{"steps": 2, "learning_rate": RATE, "rule": RULE, **fields})


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
    ("adaptation", "expected"),
    [
        (ALL_BY_SGD, {"body", "head"}),
        (ALL_BY_ADAM, {"body", "head"}),
        (MAP_ALL, {"body", "head"}),
        (by_rule("rnn"), {"body", "head"}),
        (HEAD_BY_SGD, {"head"}),
        (HEAD_BY_ADAM, {"head"}),
        (by_rule("rnn", head_only=True), {"head"}),
        (NOTHING, set()),
        (RIDGE, "a classifier on features"),
        (LOGISTIC, "a classifier on features"),
        (PROTOTYPES, "a classifier on features"),
        (SOFT_K_MEANS, "a classifier on features"),
    ],
)
def test_a_method_adapts_what_it_says(adaptation, expected, episode):
    """Fault: two adaptations to adapt are mixed up."""
    # From zero, the head has to move before the body can.
    assert moved(adaptation.tuned_to(problem(), RATE, 2, RULE), episode) == expected


@pytest.mark.parametrize("name", METHODS)
def test_every_method_can_be_trained_and_adapts(name):
    """Fault: an entry names a stage or a start that there is not, or its learner cannot be built,
    found only when it is its turn."""
    method = METHODS[name]
    assert method.stage in ("random", "multitask", "metatrain")
    assert method.start == "multitask" or METHODS[method.start].stage == "metatrain"
    assert all(hasattr(Settings(), field) for field in method.needs)
    given = settings(features=4)
    for learner in (method.train(problem(), given), method.at_test(problem(), given)):
        assert "params" in learner.init(jax.random.key(0))


def test_a_method_of_the_tables_alone_adapts_as_it_is_trained():
    """Faults: a guide serves by a method whose meta-parameters it does not keep; the tables test
    such a method by another rule than its own."""
    with pytest.raises(UnknownMethod, match="no method 'meta-sgd'; there are scratch, zero-shot"):
        adaptation_of("meta-sgd")
    assert adaptation_of("maml") == METHODS["maml"].adaptation == ALL_BY_SGD
    adapted = METHODS["meta-sgd"].at_test(problem(), settings())
    assert "rates" in adapted.init(jax.random.key(0))["rule"]


def test_a_learners_own_error_is_not_one_of_the_name(monkeypatch):
    """Fault: a slip in a learner's code is reported as an unknown method."""

    def broken(*_):
        raise AttributeError("'NoneType' object has no attribute 'way'")

    monkeypatch.setattr("metaguide.methods.matching", broken)
    with pytest.raises(AttributeError, match="NoneType"):
        method_named("matching").train(problem(), settings())


def test_adam_is_not_sgd(episode):
    """Fault: the tuned Adam of the tables is another SGD."""
    learner = HEAD_BY_ADAM.tuned_to(problem(), RATE, 1)
    meta = {"params": init(None)}
    adapted, _ = learner.adapt(meta, episode.support, (), None)
    np.testing.assert_allclose(abs(adapted["head"]["w"]), RATE, rtol=1e-4)  # its first step


@pytest.mark.slow
def test_a_factor_multiplies_the_updates_of_a_learned_optimizer(episode):
    """Fault: what validation chooses for a learned optimizer changes nothing, or the rule reads it
    too."""
    meta = {"params": init(None), "rule": RULE.init(jax.random.key(0))}

    def step(factor):
        learner = by_rule("rnn", head_only=True).tuned_to(problem(), factor, 1, RULE)
        return learner.adapt(meta, episode.support, (), None)[0]["head"]["w"]

    np.testing.assert_allclose(step(3.0), 3 * step(1.0), rtol=1e-5)
    trained = METHODS["rnn"].train(problem(), settings(steps=1))
    adapted, _ = trained.adapt(meta, episode.support, (), None)
    same = by_rule("rnn").tuned_to(problem(), 1.0, 1, RULE)
    expected, _ = same.adapt(meta, episode.support, (), None)
    jax.tree.map(np.testing.assert_array_equal, adapted, expected)


@pytest.mark.parametrize("adaptation", [ALL_BY_SGD, MAP_ALL, RIDGE])
def test_the_rate_may_be_traced(adaptation, episode):
    """Fault: each rate or penalty that is tried costs a compilation of its own."""
    traces = []

    @jax.jit
    def outputs(rate):
        traces.append(rate)
        learner = adaptation.tuned_to(problem(), rate, 2)
        adapted, _ = learner.adapt({"params": init(None)}, episode.support, (), None)
        return learner.predict(adapted, episode.query, ())["logits"]

    found = outputs(0.1), outputs(0.9)
    assert len(traces) == 1 and abs(found[0] - found[1]).max() > 1e-3


@pytest.mark.parametrize(
    ("name", "task", "expected"),
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
def test_meta_training_adapts_as_the_method_does(name, task, expected, episode):
    """Faults: a method is meta-trained in another way than it is named for, or prototypes are asked
    to answer questions."""
    way = None if task in ("questions", "recommendation") else WAY
    learner = METHODS[name].train(problem(way), settings(hold_body=task == "recommendation"))
    assert moved(learner, episode) == expected


@pytest.mark.parametrize("name", ["lstm", "lstm-head", "maml+lstm"])
def test_an_optimizer_is_learned_and_its_start_is_held(name, episode):
    """Faults: the parameters that a method starts from are trained too, so that the guide needs no
    update and the optimizer learns to make none; or the optimizer is not learned."""
    learner = METHODS[name].train(problem(), settings())

    def value(meta):
        return learner.objective(meta, episode, None, 0.0)[0]

    slope = jax.jit(jax.grad(value))(learner.init(jax.random.key(0)))
    assert optax.tree.norm(slope["params"]) == 0
    assert optax.tree.norm(slope["rule"]) > 0


def test_an_optimizer_has_to_be_given():
    """Fault: a method of a learned optimizer is gradient descent in silence."""
    with pytest.raises(ValueError, match="a learned optimizer, lstm, makes the steps"):
        METHODS["maml+lstm"].train(problem(), settings(rule=None))
    with pytest.raises(ValueError, match="a learned optimizer, hyper, makes the steps"):
        by_rule("hyper").tuned_to(problem(), RATE, 1)


@pytest.mark.slow
def test_first_order_and_maml_differ_in_the_meta_gradient_alone(episode):
    """Fault: first-order MAML takes second derivatives, or MAML does not."""
    found = {}
    for name in ("maml", "first-order"):
        learner = METHODS[name].train(problem(), settings())
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
    learner = METHODS["maml"].train(problem(), settings(mode=Unrolled(remat)))

    def value(meta):
        return learner.objective(meta, episode, None, jnp.zeros(()))[0]

    program = str(jax.make_jaxpr(jax.grad(value))({"params": init(None)}))
    assert ("remat" in program or "checkpoint" in program) == remat


def test_an_unknown_method_lists_the_known():
    """Fault: a wrong name ends in a KeyError, or one that is not meta-trained is."""
    assert method_named("anil") is METHODS["anil"]
    with pytest.raises(UnknownMethod, match="no method 'mamll'; there are scratch, .*prototypical"):
        method_named("mamll")
    with pytest.raises(UnknownMethod, match="'ridge'; there are maml, first-order, anil, proto"):
        method_named("ridge", META_TRAINED)
