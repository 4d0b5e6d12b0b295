"""Inputs of a meta-step: parameters and episodes as NumPy arrays, the same for every system.

Inputs are a flat dict: `params` (name to array, kernels are [in, out]) and `support_x`,
`support_y`, `query_x`, `query_y`, each with a leading axis of tasks. The meta-step is that of
second-order MAML: every task takes some steps of gradient descent on its support loss, the
meta-loss is the mean over tasks of the query loss after them, and Adam takes one step along its
gradient.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

Inputs = dict[str, Any]

EPISODE = ("support_x", "support_y", "query_x", "query_y")
"""The arrays of the episodes, in the order in which functions here take them."""

OUTER_RATE = 1e-3
"""The learning rate of Adam."""

EPSILON = 1e-3
"""Added to the variance in batch normalisation, which uses the statistics of the batch."""

WAY, SHOT, QUERIES, SIDE = 5, 1, 15, 28
CHANNELS, BLOCKS = 64, 4


def conv4(seed: int = 0, tasks: int = 32) -> Inputs:
    """Return few-shot classification of pictures, as with Omniglot.

    The network is four blocks of a 3 x 3 convolution with stride 2, without bias, and padded like
    XLA's "SAME", batch normalisation and ReLU; then the mean over space and a linear layer. A
    convolution's kernel is [3 * 3 * in, out]: HWIO with its first three axes merged.

    Args:
        seed: seed of parameters and pictures.
        tasks: number of episodes.

    Returns:
        Inputs in which x is [tasks, examples, 28, 28, 1] float32 and y is int32 [tasks, examples],
        with 5 classes, 1 example of each in the support and 15 in the query.
    """
    rng = np.random.default_rng(seed)
    params, channels = {}, 1
    for i in range(BLOCKS):
        params[f"conv{i}/kernel"] = he(rng, 9 * channels, CHANNELS)
        params[f"norm{i}/scale"] = np.ones(CHANNELS, np.float32)
        params[f"norm{i}/bias"] = np.zeros(CHANNELS, np.float32)
        channels = CHANNELS
    params["head/kernel"] = he(rng, CHANNELS, WAY)
    params["head/bias"] = np.zeros(WAY, np.float32)
    # Pictures of a class share a coarse pattern, so there is something to adapt to.
    pattern = rng.normal(size=(tasks, WAY, 1, 7, 7)).repeat(4, axis=-2).repeat(4, axis=-1)
    noise = rng.normal(size=(tasks, WAY, SHOT + QUERIES, SIDE, SIDE))
    pictures = (pattern + 0.5 * noise).astype(np.float32)[..., None]
    labels = np.arange(WAY, dtype=np.int32)

    def part(shots: slice) -> tuple[np.ndarray, np.ndarray]:
        chosen = pictures[:, :, shots]
        y = np.broadcast_to(labels[:, None], chosen.shape[:3])
        return chosen.reshape(tasks, -1, SIDE, SIDE, 1), y.reshape(tasks, -1)

    episodes = (*part(slice(SHOT)), *part(slice(SHOT, None)))
    return {"params": params, **dict(zip(EPISODE, episodes, strict=True))}


def sinusoid(seed: int = 0, tasks: int = 25) -> Inputs:
    """Return regression of sine waves that differ in amplitude and phase, by a 1-40-40-1 MLP.

    Args:
        seed: seed of parameters and waves.
        tasks: number of waves.

    Returns:
        Inputs in which x and y are [tasks, 10, 1] float32, in both support and query.
    """
    rng = np.random.default_rng(seed)
    params = {}
    for i, (inputs, outputs) in enumerate(((1, 40), (40, 40), (40, 1))):
        params[f"dense{i}/kernel"] = he(rng, inputs, outputs)
        params[f"dense{i}/bias"] = np.zeros(outputs, np.float32)
    x = rng.uniform(-5, 5, (tasks, 20, 1)).astype(np.float32)
    amplitude, phase = rng.uniform((0.1, 0), (5, np.pi), (tasks, 2)).T[..., None, None]
    y = (amplitude * np.sin(x - phase)).astype(np.float32)
    episodes = (x[:, :10], y[:, :10], x[:, 10:], y[:, 10:])
    return {"params": params, **dict(zip(EPISODE, episodes, strict=True))}


def he(rng: np.random.Generator, inputs: int, outputs: int) -> np.ndarray:
    """Return a kernel that preserves variance in a ReLU layer, float32 [inputs, outputs]."""
    return (rng.normal(size=(inputs, outputs)) * (2 / inputs) ** 0.5).astype(np.float32)


class Problem(NamedTuple):
    """A workload's inputs and its inner loop: steps and learning rate of gradient descent."""

    inputs: Callable[..., Inputs]
    steps: int
    learning_rate: float


WORKLOADS = {
    "conv4": Problem(conv4, 5, 0.4),
    "sinusoid": Problem(sinusoid, 1, 0.01),
}
