import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaguide.learners import maml
from metaguide.parallel import on_each_device, tasks_mesh
from metaguide.training.episodic import episodic
from metaguide.types import Episode, Learner, Problem, TaskDistribution


def sample(data, domain, shots, key):
    x = jax.random.uniform(key, (4,))
    batch = {"x": x, "y": data["slope"][domain] * x, "mask": jnp.arange(4) < shots}
    return Episode(batch, batch, {"domain": domain, "shots": shots})


def loss(params, encoded, batch, context):
    error = jnp.where(batch["mask"], (params["head"]["w"] * batch["x"] - batch["y"]) ** 2, 0).mean()
    return error, {"error": error}


PROBLEM = Problem(
    init=lambda key: {"head": {"w": jnp.ones(())}},
    encode=lambda params, batch, context, key: (),
    loss=loss,
    predict=lambda params, encoded, batch, context: {},
    features=lambda encoded: encoded,
    score=lambda outputs, query, context: {},
    body=(),
    head=("head",),
    target="y",
)
FAMILY = TaskDistribution(("a", "b", "c"), {"slope": jnp.asarray([3.0, 5.0, 7.0])}, sample, PROBLEM)
META = {"params": {"head": {"w": jnp.ones(())}}}


def watched(tasks=3000, shots=(1, 4), weights=None, progress=0.0, seed=0):
    """What learners see of the tasks of one step, as means over the tasks."""

    def objective(meta, episode, key, progress):
        return progress, {
            "x": episode.support["x"][0],
            "key": jax.random.uniform(key),
            **{
                f"{name} {number}": (episode.context[name] == number).astype(jnp.float32)
                for name in ("domain", "shots")
                for number in range(6)
            },
        }

    def nothing(*args):
        return None

    learner = Learner(nothing, nothing, nothing, nothing, objective)
    value = episodic(FAMILY, learner, meta_batch_size=tasks, shots=shots, weights=weights)
    found = jax.jit(value)(META, FAMILY.data, jax.random.key(seed), jnp.asarray(progress))
    return jax.device_get(found[0])


def test_every_task_draws_its_own():
    """Faults: all tasks of a step share a domain, a number of shots, an episode or a learner's key;
    domains are not drawn alike where there are no weights; progress is not passed on."""
    loss, metrics = watched(progress=0.25)
    for name in ("shots 1", "shots 4", "x", "key"):
        assert abs(metrics[name] - 0.5) < 0.04
    assert metrics["shots 1"] + metrics["shots 4"] == 1 and loss == 0.25
    for domain in range(3):
        assert abs(metrics[f"domain {domain}"] - 1 / 3) < 0.03


def test_domains_are_drawn_by_their_weights():
    """Faults: weights belong to other domains, or are taken for logits."""
    _, metrics = watched(weights=(1.0, 3.0, 0.0))
    assert abs(metrics["domain 1"] - 0.75) < 0.03 and metrics["domain 2"] == 0


def test_a_domain_of_weight_zero_never_influences():
    """Fault: its data flow into the loss or the gradient, if only multiplied by 0."""
    value = episodic(
        FAMILY,
        maml(PROBLEM, optax.sgd(0.1), 1),
        meta_batch_size=16,
        shots=(2,),
        weights=(1.0, 0.0, 1.0),
    )
    slope = jax.jit(value)
    key, progress = jax.random.key(0), jnp.zeros(())
    spoiled = {"slope": FAMILY.data["slope"].at[1].set(jnp.nan)}
    plain, other = (slope(META, data, key, progress) for data in (FAMILY.data, spoiled))
    jax.tree.map(np.testing.assert_array_equal, plain, other)
    assert np.isfinite(plain[0][0])


@pytest.mark.slow
def test_tasks_over_devices_change_nothing():
    """Fault: with a mesh other episodes are drawn, or only those of one device are averaged."""
    found = []
    for mesh in (None, tasks_mesh()):
        value = episodic(
            FAMILY, maml(PROBLEM, optax.sgd(0.1), 2), meta_batch_size=8, shots=(1, 3), mesh=mesh
        )
        slope = on_each_device(value, mesh)
        found.append(slope(META, FAMILY.data, jax.random.key(2), jnp.zeros(())))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-5), *found)
    assert set(found[0][0][1]) == {"error"}


@pytest.mark.slow
@pytest.mark.parametrize(("devices", "size"), [(1, 1), (1, 8), (2, 1), (8, 2), (8, 32)])
def test_chunks_change_nothing(devices, size):
    """Faults: a chunk draws what another drew, the last one alone is kept, a mean over chunks is a
    sum, or chunks of one differ from chunks of several."""
    learner, jobs = maml(PROBLEM, optax.sgd(0.1), 2), {"meta_batch_size": 32, "shots": (1, 3)}
    key, progress = jax.random.key(4), jnp.zeros(())
    whole = jax.jit(episodic(FAMILY, learner, **jobs))(META, FAMILY.data, key, progress)
    mesh = tasks_mesh(jax.devices()[:devices])
    chunked = episodic(FAMILY, learner, **jobs, tasks_per_chunk=size, mesh=mesh)
    found = on_each_device(chunked, mesh)(META, FAMILY.data, key, progress)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-5), whole, found)


def test_chunks_that_do_not_fit_are_an_error():
    """Fault: tasks that fill no chunk are dropped, or the last chunk is of another shape."""
    with pytest.raises(ValueError, match="6 tasks a step do not divide into chunks of 4 on each"):
        episodic(
            FAMILY,
            maml(PROBLEM, optax.sgd(0.1), 1),
            meta_batch_size=6,
            shots=(1,),
            tasks_per_chunk=4,
        )


@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0, -1.0, 1.0), (0.0, 0.0, 0.0)])
def test_wrong_weights_are_an_error(weights):
    """Fault: weights that fit no domain end in a wrong draw, or in a NaN."""
    with pytest.raises(ValueError, match=r"3 domains \(a, b, c\) need as many weights"):
        episodic(
            FAMILY, maml(PROBLEM, optax.sgd(0.1), 1), meta_batch_size=2, shots=(1,), weights=weights
        )
