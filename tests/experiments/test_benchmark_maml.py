import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks.maml import (
    FLOPS,
    apart,
    in_float64,
    our_gradient,
    parts,
    to_flat,
    to_groups,
    workloads,
)
from experiments.benchmarks.measure import PRODUCT, Timing, rows
from experiments.benchmarks.workloads import WORKLOADS


@pytest.mark.parametrize("workload", WORKLOADS)
def test_parameters_go_to_our_names_and_back(workload):
    """Faults: a layer is lost, or two of one shape are exchanged."""
    params = WORKLOADS[workload].inputs(0, 1)["params"]
    params = {name: value + np.float32(i) for i, (name, value) in enumerate(params.items())}
    back = to_flat(workload, to_groups(workload, params))
    assert set(back) == set(params)
    jax.tree.map(np.testing.assert_array_equal, back, params)


@pytest.mark.slow
def test_our_meta_gradient_of_waves_against_finite_differences():
    """Fault: the benchmark times another gradient than that of the workload: fewer inner steps,
    first order, support and query exchanged."""
    inputs = in_float64(WORKLOADS["sinusoid"].inputs(0, 3))
    rate = WORKLOADS["sinusoid"].learning_rate

    def network(params, x):
        for i in range(2):
            x = np.maximum(x @ params[f"dense{i}/kernel"] + params[f"dense{i}/bias"], 0)
        return x @ params["dense2/kernel"] + params["dense2/bias"]

    def meta_loss(params):
        total = 0.0
        for task in range(3):
            x, y = inputs["support_x"][task], inputs["support_y"][task]
            kernels = [params[f"dense{i}/kernel"] for i in range(3)]
            first = np.maximum(x @ kernels[0] + params["dense0/bias"], 0)
            second = np.maximum(first @ kernels[1] + params["dense1/bias"], 0)
            error = 2 * (second @ kernels[2] + params["dense2/bias"] - y) / len(x)
            back = error @ kernels[2].T * (second > 0)
            slopes = {"dense2/kernel": second.T @ error, "dense2/bias": error.sum(0)}
            slopes |= {"dense1/kernel": first.T @ back, "dense1/bias": back.sum(0)}
            back = back @ kernels[1].T * (first > 0)
            slopes |= {"dense0/kernel": x.T @ back, "dense0/bias": back.sum(0)}
            moved = {name: params[name] - rate * slopes[name] for name in params}
            errors = network(moved, inputs["query_x"][task]) - inputs["query_y"][task]
            total += np.mean(errors**2) / 3
        return total

    with jax.enable_x64(True):
        found = our_gradient("sinusoid", inputs)
    along = {n: 1e-6 * np.random.default_rng(1).normal(size=v.shape) for n, v in found.items()}
    ahead, behind = (
        meta_loss({name: value + sign * along[name] for name, value in inputs["params"].items()})
        for sign in (1, -1)
    )
    expected = sum(np.vdot(found[name], along[name]) for name in found)
    np.testing.assert_allclose(expected, (ahead - behind) / 2, rtol=1e-6)


def test_distance_is_relative_to_the_second():
    """Fault: two gradients that differ look alike."""
    a, b = {"w": np.array([3.0, 4.0])}, {"w": np.array([0.0, 5.0])}
    np.testing.assert_allclose(apart(a, b), 10**0.5 / 5)


def test_batches_are_those_of_the_workload():
    """Fault: labels of the query with pictures of the support."""
    inputs = WORKLOADS["conv4"].inputs(0, 2)
    _, episodes, _ = parts("conv4", inputs)
    np.testing.assert_array_equal(episodes.query["image"], inputs["query_x"])
    np.testing.assert_array_equal(episodes.support["label"], inputs["support_y"])
    assert jnp.all(episodes.query["mask"]) and episodes.query["mask"].shape == (2, 75)


def test_a_call_of_many_steps_counts_as_many():
    """Faults: many steps are timed as one; the limit's share is of another workload's work."""
    by_name = {one.name: one for one in workloads(["torch-loop"])}
    waves, pictures = by_name["sinusoid"], by_name["conv4"]
    found = {"metaguide": Timing(1.0, 0.05, 1.0), "torch-loop": Timing(1.0, 0.01, 1.0)}
    ours, theirs = rows(waves, found)
    assert (ours["steps_per_s"], theirs["ratio"], ours["limit_share"]) == (2000, 20, None)
    names = [system.name for system in pictures.systems]
    found = {PRODUCT.name: Timing(1.0, 1.0, 1.0), **dict.fromkeys(names, Timing(1.0, 2.0, 1.0))}
    share = rows(pictures, found)[0]["limit_share"]
    np.testing.assert_allclose(share, FLOPS / 2.0 / (20 * 2 * 1024**3))
