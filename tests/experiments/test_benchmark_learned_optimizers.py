import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks import learned_optimizers
from experiments.benchmarks.learned_optimizers import (
    SHAPES,
    begun,
    check,
    hand_fused_apart,
    inputs_of,
    memory_row,
    workloads,
)
from experiments.benchmarks.measure import Timing, rows


@pytest.fixture
def peers():
    pytest.importorskip("torch", reason="PyTorch is not installed: pip install -e '.[bench]'")
    from experiments.benchmarks import learned_optimizer_peers

    return learned_optimizer_peers


def inputs(steps):
    """What the peers are given of three quadratics, in float64, with a rule that moves."""
    rng = np.random.default_rng(0)
    theta = {"output": 0.1 * rng.normal(size=20)}
    for i, width in enumerate((22, 40)):
        theta[f"layer{i}/kernel"] = 0.3 * rng.normal(size=(width, 80))
        theta[f"layer{i}/bias"] = 0.3 * rng.normal(size=80)
    problems = {"w": (3, 10, 10), "y": (3, 10), "start": (3, 10)}
    drawn = {name: rng.normal(size=shape) for name, shape in problems.items()}
    return {"theta": theta, **drawn, "steps": steps, "p": 10.0, "scale": 0.1}


def mean_loss(given):
    """Mean over problems and steps of ‖W θ − y‖², by NumPy, and the gradients that were read."""

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    theta, read, total = given["start"], [], 0.0
    memory = [np.zeros((2, theta.size, 20)) for _ in range(2)]
    for _ in range(given["steps"]):
        residual = np.einsum("pij,pj->pi", given["w"], theta) - given["y"]
        g = given.get("read", 2 * np.einsum("pij,pi->pj", given["w"], residual).ravel())
        g = g if g.ndim == 1 else g[len(read)]
        read.append(g)
        large = np.abs(g) >= np.exp(-10)
        logarithm = np.where(large, np.log(np.abs(g)) / 10, -1)
        x = np.stack([logarithm, np.where(large, np.sign(g), np.exp(10) * g)], 1)
        for i, (h, c) in enumerate(memory):
            layer = {name: given["theta"][f"layer{i}/{name}"] for name in ("kernel", "bias")}
            gates = np.concatenate([x, h], 1) @ layer["kernel"] + layer["bias"]
            take, keep, show, new = np.split(gates, 4, 1)
            c = sigmoid(keep) * c + sigmoid(take) * np.tanh(new)
            x = sigmoid(show) * np.tanh(c)
            memory[i] = np.stack([x, c])
        theta = theta + 0.1 * (x @ given["theta"]["output"]).reshape(theta.shape)
        residual = np.einsum("pij,pj->pi", given["w"], theta) - given["y"]
        total += np.square(residual).sum(1).mean() / given["steps"]
    return total, np.stack(read)


def test_a_peers_gradient_is_that_of_finite_differences(peers):
    """Faults: the gates of PyTorch in another order, a second-order gradient, a loss before the
    step for the one after it, a sum over problems for the mean."""
    given = inputs(4)
    found = peers.meta_gradient("torch-batched", given)
    assert {name: value.shape for name, value in found.items()} == {
        name: value.shape for name, value in given["theta"].items()
    }
    given["read"] = mean_loss(given)[1]  # the gradients that the rule reads are constants
    rng = np.random.default_rng(0)
    towards = {name: 1e-5 * rng.normal(size=value.shape) for name, value in found.items()}
    ahead, behind = (
        mean_loss({**given, "theta": {n: v + s * towards[n] for n, v in given["theta"].items()}})[0]
        for s in (1, -1)
    )
    expected = sum(np.vdot(found[name], towards[name]) for name in found)
    assert (ahead - behind) / 2 == pytest.approx(expected, rel=1e-6)


def test_problem_by_problem_is_all_at_once(peers):
    """Faults: the loop leaves a problem out, or its memory goes on to the next."""
    given = inputs(2)
    one, all_ = (peers.meta_gradient(peer, given) for peer in ("torch-loop", "torch-batched"))
    for name, value in all_.items():
        np.testing.assert_allclose(one[name], value, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_ours_and_all_others_are_the_same(peers):
    """Faults: our step has another window, rule, mean or order than the peers'; a peer that is not
    as ours is timed all the same."""
    found = check(["torch-batched"], problems=2)
    assert set(found) == {"torch-batched", "hand-fused"}


def test_a_peer_that_computes_something_else_is_named(monkeypatch):
    """Fault: the check passes whatever it finds, NaN too."""
    for value in (1e-3, np.nan):
        monkeypatch.setattr(learned_optimizers, "hand_fused_apart", lambda value=value: value)
        with pytest.raises(AssertionError, match="hand-fused"):
            check([])


@pytest.mark.slow
def test_the_hand_written_rule_is_ours():
    """Faults: a chunk's memory goes to another, a gate without its half, its memory forgotten."""
    with jax.enable_x64(True):
        assert hand_fused_apart(chunk=5, chunks=3) < 1e-12


def test_a_million_parameters():
    """Fault: the model is of another size than the figures say, or cannot be cut into chunks."""
    shapes = jax.tree.leaves(SHAPES, is_leaf=lambda shape: isinstance(shape, tuple))
    assert sum(map(np.prod, shapes)) == 1_000_000
    assert 1_000_000 % learned_optimizers.CHUNK == 0


@pytest.mark.slow
def test_peers_are_given_our_first_problems():
    """Faults: parameters of a layer under another's name, targets of another problem."""
    meta, _, carry = begun(3)
    found = inputs_of(meta, carry)
    np.testing.assert_array_equal(found["theta"]["layer1/kernel"], meta["rule"]["layer1"]["kernel"])
    residual = np.einsum("pij,pj->pi", found["w"], found["start"]) - found["y"]
    (loop,) = carry.loops
    for i in range(3):
        expected = carry.task["w"][i] @ loop.params["theta"][i] - carry.task["y"][i]
        np.testing.assert_allclose(residual[i], expected, rtol=1e-4, atol=1e-5)
    assert found["w"].shape == (3, 10, 10) and not jnp.any(carry.loops[0].step)


def test_rows_count_the_steps_of_a_call_and_the_share_of_a_state():
    """Faults: a call of several steps is timed as one step, a share upside down."""
    quadratics = workloads(["torch-loop"])[0]
    assert [one.name for one in quadratics.systems][2:] == ["torch-loop"]
    found = {one.name: Timing(1.0, 0.5, 1.0) for one in quadratics.systems}
    ours, _, theirs = rows(quadratics, found)
    assert (ours["steps_per_s"], theirs["ratio"]) == (20, 10)
    row = memory_row("m", "s", 2**21, 2**20)
    assert (row["mib"], row["share"]) == (2, 2)
