import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaguide.data.episodes import EpisodeError, episode_key, labelled_sampler
from metaguide.evaluation.evaluate import drawn, episode_keys, evaluator
from metaguide.learners import fine_tuning, joint, maml, ridge
from metaguide.parallel import tasks_mesh
from metaguide.types import Problem, TaskDistribution

WAY, SHOTS, QUERIES, EPISODES, STEPS, RATE = 2, 3, 5, 5, 2, 0.3


def loss(params, encoded, batch, context):
    chance = jax.nn.log_softmax(encoded @ params["head"]["w"])
    each = -jnp.take_along_axis(chance, batch["label"][:, None], axis=1)[:, 0]
    count = jnp.maximum(batch["mask"].sum(), 1).astype(each.dtype)
    return jnp.where(batch["mask"], each, 0).sum() / count, {}


def score(outputs, query, context):
    return {
        "logits": outputs["logits"],
        "target": context["classes"][query["label"]],
        "mask": query["mask"],
        "id": query["id"],
    }


PROBLEM = Problem(
    init=lambda key: {},
    encode=lambda params, batch, context, key: jnp.tanh(batch["x"] @ params["body"]["w"]),
    loss=loss,
    predict=lambda params, encoded, batch, context: {"logits": encoded @ params["head"]["w"]},
    features=lambda encoded: encoded,
    score=score,
    body=("body",),
    head=("head",),
    target="label",
    way=WAY,
)


@pytest.fixture(scope="module")
def distribution():
    rng = np.random.default_rng(0)
    members = np.arange(24, dtype=np.int32).reshape(1, 4, 6).repeat(2, axis=0)
    data = {
        "rows": {"x": rng.normal(size=(2, 24, 3)).astype(np.float32)},
        "members": members,
        "count": np.array([[6, 4, 5, 6], [4, 4, 4, 4]], np.int32),
    }
    data = jax.tree.map(jnp.asarray, data)
    return TaskDistribution(("a", "b"), data, labelled_sampler(WAY, SHOTS, QUERIES), PROBLEM)


@pytest.fixture(scope="module")
def meta():
    rng = np.random.default_rng(1)
    body, head = (rng.normal(size=shape).astype(np.float32) for shape in ((3, 4), (4, WAY)))
    return {"params": {"body": {"w": jnp.asarray(body)}, "head": {"w": jnp.asarray(head)}}}


@pytest.fixture(scope="module")
def keys():
    return episode_keys(0, "test", EPISODES)


WAYS = {
    "maml": lambda rate: maml(PROBLEM, optax.sgd(rate), STEPS),
    "ridge": lambda rate: ridge(PROBLEM, rate),
    "none": lambda rate: joint(PROBLEM),
    "head": lambda rate: fine_tuning(PROBLEM, optax.sgd(rate), 1, head_only=True),
}


def at(rate):
    return {"maml": rate, "ridge": 1.0, "none": 0.0, "head": 0.2}


@pytest.fixture(scope="module")
def traced(distribution):
    traces = []

    def counted(rate):
        traces.append(rate)
        return WAYS["maml"](rate)

    return evaluator(distribution, {**WAYS, "maml": counted}, chunk=2), traces


@pytest.fixture(scope="module")
def sample(distribution):
    return jax.jit(distribution.sample)


@pytest.mark.slow
def test_evaluation_is_the_plain_loop(distribution, meta, keys, traced, sample):
    """Faults: episodes are mixed up or left out, an observation is of another step, the filling of
    the last chunk is counted, domain, shots or rate do not arrive. Also: a program for each domain,
    each number of shots, each rate."""
    evaluate, traces = traced
    for domain, shots, rate in ((0, 3, RATE), (1, 1, 0.1), (0, 0, RATE)):
        found = evaluate.run(meta, distribution.data, domain, shots, keys, at(rate))["maml"]
        assert found["logits"].shape == (STEPS + 1, EPISODES, QUERIES, WAY)
        for index in range(EPISODES):
            episode = sample(distribution.data, domain, shots, episode_key(0, "test", index))
            x, label, mask = (np.asarray(episode.support[name]) for name in ("x", "label", "mask"))
            w, v = (np.asarray(meta["params"][group]["w"]) for group in ("body", "head"))
            for step in range(STEPS + 1):
                logits = np.tanh(np.asarray(episode.query["x"]) @ w) @ v
                np.testing.assert_allclose(found["logits"][step, index], logits, 1e-4, 1e-5)
                hidden = np.tanh(x @ w)
                chance = np.exp(hidden @ v)
                error = chance / chance.sum(1, keepdims=True) - np.eye(WAY)[label]
                error = error * mask[:, None] / max(mask.sum(), 1)
                w, v = (
                    w - rate * x.T @ ((error @ v.T) * (1 - hidden**2)),
                    v - rate * hidden.T @ error,
                )
            expected = score({"logits": 0}, episode.query, episode.context)
            for name in ("target", "mask", "id"):
                for step in range(STEPS + 1):
                    np.testing.assert_array_equal(found[name][step, index], expected[name])
    assert len(traces) == 1


@pytest.mark.slow
def test_chunks_change_nothing(distribution, meta, keys, traced):
    """Fault: what is evaluated side by side (episodes in a program, programs in threads, episodes
    on devices, learners) changes score or order."""
    expected = traced[0].run(meta, distribution.data, 0, 3, keys, at(RATE))["maml"]
    one = tasks_mesh(jax.devices()[:1])
    alone = evaluator(distribution, {"maml": WAYS["maml"]}, chunk=2, mesh=one)
    found = alone.run(meta, distribution.data, 0, 3, keys, {"maml": RATE})["maml"]
    assert found.keys() == expected.keys()
    for name in found:
        assert found[name].shape == expected[name].shape
        np.testing.assert_allclose(found[name], expected[name], 1e-5, 1e-6)


@pytest.mark.slow
def test_methods_are_scored_on_the_same_examples(distribution, meta, keys, traced):
    """Fault: a method, or a baseline, has episodes of its own, so that their difference is luck."""
    examples = drawn(distribution, distribution.data, 0, 2, keys)
    steps = {"maml": STEPS + 1, "ridge": 1, "none": 1, "head": 2}
    methods = traced[0].run(meta, distribution.data, 0, 2, keys, at(RATE))
    assert {way: len(found["id"]) for way, found in methods.items()} == steps
    np.testing.assert_array_equal(methods["none"]["logits"][0], methods["maml"]["logits"][0])
    assert abs(methods["ridge"]["logits"][0] - methods["head"]["logits"][1]).max() > 1e-3
    for found in methods.values():
        for ids, mask in zip(found["id"], found["mask"], strict=True):
            np.testing.assert_array_equal(ids, examples["query"]["id"])
            np.testing.assert_array_equal(mask, examples["query"]["mask"])


def test_drawn_says_what_the_episodes_consist_of(distribution, keys, sample):
    """Faults: the baselines fit other supports than the methods, or whole tables are copied out."""
    found = drawn(distribution, distribution.data, 1, 2, keys)
    assert set(found["query"]) == set(found["support"]) == {"id", "label", "mask"}
    assert found["context"]["classes"].shape == (EPISODES, WAY)
    for index in range(EPISODES):
        episode = sample(distribution.data, 1, 2, episode_key(0, "test", index))
        for part in ("support", "query"):
            for name, leaf in found[part].items():
                np.testing.assert_array_equal(leaf[index], getattr(episode, part)[name])


def test_more_episodes_begin_with_the_same():
    """Fault: the number of episodes changes which they are."""
    few, more = (jax.random.key_data(episode_keys(3, "test", count)) for count in (2, 6))
    np.testing.assert_array_equal(few, more[:2])
    np.testing.assert_array_equal(more[5], jax.random.key_data(episode_key(3, "test", 5)))


def test_what_a_distribution_does_not_have_is_refused(distribution, meta, keys):
    """Faults: an index that is too large reads the last domain, so that a held-out one gets the
    score of a source; more shots than the sampler draws are scored as if they were there; labels
    that are no class of the problem are scored as wrong; an adaptation that observes nothing fails
    without saying so."""
    evaluate = evaluator(distribution, WAYS, chunk=2)
    third = distribution._replace(domains=("a", "b", "c"))
    data = distribution.data
    for given, domain, shots, said in (
        (evaluate, 2, 1, "domain 2: there are 2, a, b"),
        (evaluate, -1, 1, "domain -1"),
        (evaluator(third, WAYS, chunk=2), 2, 1, "domain 2: the data have 2"),
        (evaluate, 0, SHOTS + 1, f"{SHOTS + 1} shots: the sampler draws {SHOTS}"),
    ):
        with pytest.raises(EpisodeError, match=said):
            given.run(meta, data, domain, shots, keys, at(RATE))
        with pytest.raises(EpisodeError, match=said):
            drawn(third if "data" in said else distribution, data, domain, shots, keys)
    evaluate.run(meta, data, 1, 1, keys, at(RATE))
    first = jax.tree.map(lambda leaf: leaf[:1], data)  # the data of another call
    with pytest.raises(EpisodeError, match="domain 1: the data have 1"):
        evaluate.run(meta, first, 1, 1, keys, at(RATE))
    wider = distribution._replace(problem=PROBLEM._replace(way=WAY + 1))
    with pytest.raises(EpisodeError, match=f"have {WAY} classes, and the problem has {WAY + 1}"):
        evaluator(wider, WAYS, chunk=2).run(meta, data, 0, 1, keys, at(RATE))
    silent = joint(PROBLEM)._replace(adapt=lambda meta, *rest: (meta["params"], None))
    with pytest.raises(ValueError, match="no observations; call observe"):
        evaluator(distribution, {"silent": lambda rate: silent}, chunk=2).run(
            meta, data, 0, 1, keys, {"silent": 0.0}
        )
