import importlib.util

import numpy as np
import pytest

from experiments.benchmarks.maml import in_float64
from experiments.benchmarks.workloads import EPISODE, WORKLOADS


@pytest.fixture
def peers():
    pytest.importorskip("torch", reason="PyTorch is not installed: pip install -e '.[bench]'")
    from experiments.benchmarks import peers

    return peers


def flat(tree):
    return np.concatenate([tree[name].ravel() for name in sorted(tree)])


def distance(ours, theirs):
    """Relative error of the whole tree."""
    return np.linalg.norm(flat(ours) - flat(theirs)) / np.linalg.norm(flat(theirs))


@pytest.mark.parametrize("workload", WORKLOADS)
def test_inputs_are_the_same_every_time(workload):
    """Catches systems that are given different episodes, and arrays of another kind."""
    first, again, other = (WORKLOADS[workload].inputs(seed, 3) for seed in (0, 0, 1))
    assert list(first) == ["params", *EPISODE]
    for name in EPISODE:
        assert first[name].shape[0] == 3
        np.testing.assert_array_equal(first[name], again[name])
    assert not np.array_equal(first["support_x"], other["support_x"])
    for name, value in first["params"].items():
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, again["params"][name])


def test_episodes_are_of_the_stated_sizes():
    """Catches 15 queries in all for 15 a class, labels out of step with their pictures."""
    pictures = WORKLOADS["conv4"].inputs()
    assert pictures["support_x"].shape == (32, 5, 28, 28, 1)
    assert pictures["query_x"].shape == (32, 75, 28, 28, 1)
    assert pictures["query_y"].dtype == np.int32
    np.testing.assert_array_equal(pictures["support_y"][7], [0, 1, 2, 3, 4])
    support, query = pictures["support_x"][7], pictures["query_x"][7]
    nearest = ((query[:, None] - support[None]) ** 2).sum((2, 3, 4)).argmin(1)
    np.testing.assert_array_equal(nearest, pictures["query_y"][7])
    waves = WORKLOADS["sinusoid"].inputs()
    assert waves["support_x"].shape == waves["query_y"].shape == (25, 10, 1)


@pytest.mark.slow
@pytest.mark.parametrize("workload", WORKLOADS)
@pytest.mark.parametrize("peer", ["higher", "torchopt", "torch.func"])
def test_peers_have_the_same_meta_gradient(peer, workload, peers):
    """Catches a peer that is fast because it does something else."""
    if peer != "torch.func" and not importlib.util.find_spec(peer):
        pytest.skip(f"{peer} is not installed")
    inputs = in_float64(WORKLOADS[workload].inputs(0, 2))
    ours = peers.meta_gradient("torch-loop", workload, inputs)
    assert {k: v.shape for k, v in ours.items()} == {
        k: v.shape for k, v in inputs["params"].items()
    }
    assert distance(peers.meta_gradient(peer, workload, inputs), ours) < 1e-6


@pytest.mark.slow
def test_the_meta_gradient_is_that_of_finite_differences(peers):
    """Catches a first-order gradient, and a mean over tasks that is a sum."""
    inputs = in_float64(WORKLOADS["conv4"].inputs(0, 2))
    gradient = peers.meta_gradient("torch-loop", "conv4", inputs)
    norm = np.linalg.norm(flat(gradient))

    def value(step):
        params = {k: v + step * gradient[k] / norm for k, v in inputs["params"].items()}
        return meta_loss(peers, {**inputs, "params": params})

    assert (value(1e-6) - value(-1e-6)) / 2e-6 == pytest.approx(norm, rel=1e-6)


def meta_loss(peers, inputs):
    """The mean query loss of `conv4` behind the inner loop, no gradient of which is followed."""
    import torch

    net, _ = peers.prepare("torch-loop", "conv4", inputs)
    apply, loss, _ = peers.SETTINGS["conv4"]
    _, steps, rate = WORKLOADS["conv4"]
    total = 0.0
    for episode in zip(*(torch.tensor(inputs[name]) for name in EPISODE), strict=True):
        support_x, support_y, query_x, query_y = episode
        fast = {name: value.detach() for name, value in net.named_parameters()}
        for _ in range(steps):
            fast = {name: value.requires_grad_() for name, value in fast.items()}
            inner = loss(apply(fast, support_x.movedim(-1, 1)), support_y.long())
            grads = torch.autograd.grad(inner, list(fast.values()))
            pairs = zip(fast.items(), grads, strict=True)
            fast = {name: (value - rate * grad).detach() for (name, value), grad in pairs}
        total += loss(apply(fast, query_x.movedim(-1, 1)), query_y.long()).item()
    return total / len(inputs["support_x"])
