"""The meta-gradient of the LSTM optimizer on quadratics in PyTorch, problem by problem or batched.

This module needs PyTorch, so benchmarks import it only in the functions that build a system.
"""

import math
from collections.abc import Callable
from typing import cast

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from torch import Tensor, nn  # pyright: ignore[reportMissingImports]

from experiments.benchmarks.workloads import OUTER_RATE, Inputs

TO_TORCH = [0, 1, 3, 2]
"""Permutation of the gates i, f, o, new into PyTorch's order, and its inverse."""


class Lstm(nn.Module):
    """`metaguide.optimizers.lstm`: LSTM cells on log |g| and sign, and a linear output."""

    def __init__(self, theta: dict[str, np.ndarray], p: float, scale: float):
        super().__init__()
        self.p, self.scale = p, scale
        self.output = nn.Parameter(torch.tensor(theta["output"]))
        self.cells = nn.ModuleList()
        while f"layer{len(self.cells)}/kernel" in theta:
            kernel, bias = (theta[f"layer{len(self.cells)}/{name}"] for name in ("kernel", "bias"))
            width = len(bias) // 4
            inputs = len(kernel) - width
            cell = nn.LSTMCell(inputs, width, dtype=self.output.dtype)
            rows = in_gates(torch.tensor(kernel).T)
            cell.weight_ih = nn.Parameter(rows[:, :inputs].contiguous())
            cell.weight_hh = nn.Parameter(rows[:, inputs:].contiguous())
            cell.bias_ih = nn.Parameter(in_gates(torch.tensor(bias)))
            cell.bias_hh = nn.Parameter(torch.zeros_like(cell.bias_ih), requires_grad=False)
            self.cells.append(cell)

    def forward(self, gradient: Tensor, memory: list) -> tuple[Tensor, list]:
        """Return the updates [coordinates] of gradients [coordinates], and the memory."""
        size = gradient.abs()
        large = size >= math.exp(-self.p)
        logarithm = torch.where(large, size.log() / self.p, -1.0)
        x = torch.stack(
            [logarithm, torch.where(large, gradient.sign(), math.exp(self.p) * gradient)], -1
        )
        after = []
        for cell, own in zip(self.cells, memory, strict=True):
            after.append(cell(x, own))
            x = after[-1][0]
        return self.scale * (x @ self.output), after

    def gradients(self) -> dict[str, np.ndarray]:
        """Return the gradients keyed by the names of θ, in JAX's layout."""
        grads = {name: cast("Tensor", one.grad) for name, one in self.named_parameters()}
        found = {"output": grads["output"]}
        for i in range(len(self.cells)):
            rows = torch.cat([grads[f"cells.{i}.weight_{of}h"] for of in "ih"], 1)
            found[f"layer{i}/kernel"] = in_gates(rows).T
            found[f"layer{i}/bias"] = in_gates(grads[f"cells.{i}.bias_ih"])
        return {name: value.cpu().numpy() for name, value in found.items()}


def in_gates(rows: Tensor) -> Tensor:
    """Return the gates' rows [4 units, ...] in PyTorch's order, or in ours."""
    return torch.cat([rows.chunk(4)[place] for place in TO_TORCH])


def window(net: Lstm, w: Tensor, y: Tensor, theta: Tensor, steps: int) -> Tensor:
    """Return the mean over a window of the sum over problems of ‖W θ − y‖² after each step.

    The gradient that the rule reads is computed explicitly from the residual, which the loss needs
    anyway; nested autograd takes longer.

    Args:
        net: the rule.
        w: matrices, [problems, dim, dim].
        y: targets, [problems, dim].
        theta: starting points, [problems, dim].
        steps: steps of the window.
    """
    memory: list = [None for _ in net.cells]
    residual = torch.bmm(w, theta[..., None])[..., 0] - y
    total = residual.new_zeros(())
    for _ in range(steps):
        gradient = 2 * torch.bmm(residual.detach()[:, None], w)[:, 0]
        moved, memory = net(gradient.flatten(), memory)
        theta = theta + moved.view_as(theta)
        residual = torch.bmm(w, theta[..., None])[..., 0] - y
        total = total + residual.square().sum() / steps
    return total


def prepare(peer: str, inputs: Inputs, device: str = "cpu") -> tuple[Lstm, Callable[[], None]]:
    """Return a peer's rule and a function that stores the meta-gradient in its `grad`.

    Args:
        peer: "torch-loop", one problem after the other, or "torch-batched", all at once.
        inputs: `theta` keyed by name; `w`, `y` and `start` of the problems; `steps`, `p` and
            `scale`. With float64 arrays the computation is in float64.
        device: "cpu" or "cuda".
    """
    net = Lstm(inputs["theta"], inputs["p"], inputs["scale"]).to(device)
    names = ("w", "y", "start")
    problems = tuple(torch.tensor(inputs[name], device=device) for name in names)
    count = len(problems[0])
    size = 1 if peer == "torch-loop" else count

    def backward() -> None:
        for w, y, start in zip(*(one.split(size) for one in problems), strict=True):
            (window(net, w, y, start, inputs["steps"]) / count).backward()

    return net, backward


def meta_gradient(peer: str, inputs: Inputs) -> dict[str, np.ndarray]:
    """Return a peer's gradient of the mean loss keyed by the names of θ; see `prepare`."""
    net, backward = prepare(peer, inputs)
    backward()
    return net.gradients()


def build(peer: str, inputs: Inputs, threads: int, device: str = "cpu") -> Callable[[], None]:
    """Return a function that runs a peer's complete meta-step; for the arguments see `prepare`."""
    torch.set_num_threads(threads)
    net, backward = prepare(peer, inputs, device)
    learned = [value for value in net.parameters() if value.requires_grad]
    optimizer = torch.optim.Adam(learned, OUTER_RATE, fused=True)

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        backward()
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return run
