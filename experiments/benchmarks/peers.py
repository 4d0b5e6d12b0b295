"""The meta-step of `workloads` in PyTorch, in the several ways that metaguide is compared with.

This module needs PyTorch, and the peer's package if it has one. Benchmarks therefore import it in
the function that builds a system, and so in the system's own process.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from torch import Tensor, nn  # pyright: ignore[reportMissingImports]
from torch.nn import functional  # pyright: ignore[reportMissingImports]

from experiments.benchmarks.measure import cores
from experiments.benchmarks.workloads import EPISODE, EPSILON, OUTER_RATE, WORKLOADS, Inputs

Params = Mapping[str, Tensor]
Apply = Callable[[Params, Tensor], Tensor]
Backward = Callable[[Tensor, Tensor, Tensor, Tensor], None]
"""(support x, y, query x, y) -> None; stores the meta-gradient in the parameters' `grad`."""


class Net(nn.Module):
    """A forward function and its parameters.

    It is one flat module, the cheapest form for higher and TorchOpt, which need a module;
    `apply_to` is for the others.
    """

    def __init__(self, apply: Apply, params: dict[str, Tensor]):
        super().__init__()
        self.apply_to = apply
        for name, value in params.items():
            self.register_parameter(name, nn.Parameter(value))

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs with the module's current parameters."""
        return self.apply_to(cast("Params", self._parameters), x)


def convolutions(params: Params, x: Tensor) -> Tensor:
    """Return logits [examples, way] of `workloads.conv4`'s network for NCHW pictures."""
    for i, (before, after) in enumerate([(0, 1), (0, 1), (1, 1), (0, 1)]):
        if before < after:
            x = functional.pad(x, (before, after, before, after))
        x = functional.conv2d(x, params[f"conv{i}/kernel"], stride=2, padding=before)
        scale, bias = params[f"norm{i}/scale"], params[f"norm{i}/bias"]
        x = functional.batch_norm(x, None, None, scale, bias, training=True, eps=EPSILON)
        x = functional.relu(x)
    return torch.addmm(params["head/bias"], x.mean((2, 3)), params["head/kernel"])


def perceptron(params: Params, x: Tensor) -> Tensor:
    """Return values [examples, 1] of `workloads.sinusoid`'s network."""
    for i in range(2):
        x = torch.addmm(params[f"dense{i}/bias"], x, params[f"dense{i}/kernel"]).relu()
    return torch.addmm(params["dense2/bias"], x, params["dense2/kernel"])


class Inner(NamedTuple):
    """Inputs of every peer: network, loss, inner loop, and number of tasks at once."""

    net: Net
    loss: Callable[[Tensor, Tensor], Tensor]
    steps: int
    learning_rate: float
    chunk: int | None


def to_torch(name: str, array: np.ndarray) -> Tensor:
    """Return a parameter in PyTorch's layout, which is OIHW for convolutions."""
    if name.startswith("conv"):
        array = array.reshape(3, 3, -1, array.shape[-1]).transpose(3, 2, 0, 1)
    return torch.tensor(array).contiguous()


def from_torch(name: str, tensor: Tensor) -> np.ndarray:
    """Return a parameter's gradient in JAX's layout."""
    array = tensor.numpy()
    if name.startswith("conv"):
        return array.transpose(2, 3, 1, 0).reshape(-1, array.shape[0])
    return array


def autograd_loop(inner: Inner) -> Backward:
    """Return the meta-gradient task by task, as in learn2learn."""
    net, loss, steps, learning_rate, _ = inner
    params = dict(net.named_parameters())

    def backward(*episodes: Tensor) -> None:
        for support_x, support_y, query_x, query_y in zip(*episodes, strict=True):
            fast = params
            for _ in range(steps):
                value = loss(net.apply_to(fast, support_x), support_y)
                grads = torch.autograd.grad(value, list(fast.values()), create_graph=True)
                fast = {
                    k: p - learning_rate * g for (k, p), g in zip(fast.items(), grads, strict=True)
                }
            value = loss(net.apply_to(fast, query_x), query_y)
            (value / len(episodes[0])).backward()

    return backward


def higher_loop(inner: Inner) -> Backward:
    """Return the meta-gradient task by task with higher, as in its example maml-omniglot.py."""
    import higher  # pyright: ignore[reportMissingImports]

    net, loss, steps, learning_rate, _ = inner
    descent = torch.optim.SGD(net.parameters(), learning_rate)

    def backward(*episodes: Tensor) -> None:
        for support_x, support_y, query_x, query_y in zip(*episodes, strict=True):
            with higher.innerloop_ctx(
                net, descent, copy_initial_weights=False, track_higher_grads=True
            ) as (fast, differentiable):
                for _ in range(steps):
                    differentiable.step(loss(fast(support_x), support_y))
                (loss(fast(query_x), query_y) / len(episodes[0])).backward()

    return backward


def torchopt_loop(inner: Inner) -> Backward:
    """Return the meta-gradient task by task with TorchOpt, as in its MAML example."""
    import torchopt  # pyright: ignore[reportMissingImports]

    net, loss, steps, learning_rate, _ = inner
    descent = torchopt.MetaSGD(net, learning_rate)
    start = [torchopt.extract_state_dict(x, by="reference") for x in (net, descent)]

    def backward(*episodes: Tensor) -> None:
        for support_x, support_y, query_x, query_y in zip(*episodes, strict=True):
            for _ in range(steps):
                descent.step(loss(net(support_x), support_y))
            (loss(net(query_x), query_y) / len(episodes[0])).backward()
            torchopt.recover_state_dict(net, start[0])
            torchopt.recover_state_dict(descent, start[1])

    return backward


def vmapped(inner: Inner) -> Backward:
    """Return the meta-gradient of many tasks at once with torch.func.

    `backward` through `vmap` is faster, but silently wrong by 2% in `conv4`: PyTorch 2.13 loses a
    term when batch normalisation's scale is adapted. There the outer gradient is computed within
    `vmap` and averaged.
    """
    return _over_tasks(inner, _descended(inner))


def compiled(inner: Inner) -> Backward:
    """Return `vmapped` with its program compiled by torch.compile."""
    return _over_tasks(inner, _descended(inner), torch.compile)


def torchopt_functional(inner: Inner) -> Backward:
    """Return the meta-gradient of many tasks at once with torch.func and TorchOpt's transforms."""
    import torchopt  # pyright: ignore[reportMissingImports]

    descent = torchopt.sgd(lr=inner.learning_rate)

    def adapt(params: Params, gradient: Callable[[Params], Params]) -> Params:
        state = descent.init(params)
        for _ in range(inner.steps):
            updates, state = descent.update(gradient(params), state, params=params, inplace=False)
            params = torchopt.apply_updates(params, updates, inplace=False)
        return params

    return _over_tasks(inner, adapt)


Adapt = Callable[[Params, Callable[[Params], Params]], Params]
"""(parameters, their gradient on the support) -> parameters after the inner loop."""


def _descended(inner: Inner) -> Adapt:
    """Return explicit gradient descent."""

    def adapt(params: Params, gradient: Callable[[Params], Params]) -> Params:
        for _ in range(inner.steps):
            grads = gradient(params)
            params = {name: params[name] - inner.learning_rate * grads[name] for name in params}
        return params

    return adapt


def _over_tasks(
    inner: Inner, adapt: Adapt, program: Callable[[Any], Any] = lambda function: function
) -> Backward:
    """Return the meta-gradient of an inner loop mapped by `vmap`; `program` compiles it."""
    net, loss, chunk = inner.net, inner.loss, inner.chunk
    axes = (None, 0, 0, 0, 0)

    def value(fast: Params, x: Tensor, y: Tensor) -> Tensor:
        return loss(net.apply_to(fast, x), y)

    def adapted(
        params: Params, support_x: Tensor, support_y: Tensor, query_x: Tensor, query_y: Tensor
    ) -> Tensor:
        fast = adapt(params, lambda fast: torch.func.grad(value)(fast, support_x, support_y))
        return value(fast, query_x, query_y)

    losses = torch.func.vmap(adapted, axes, chunk_size=chunk)
    gradients = program(torch.func.vmap(torch.func.grad(adapted), axes, chunk_size=chunk))

    def through(*episodes: Tensor) -> None:
        losses(dict(net.named_parameters()), *episodes).mean().backward()

    def within(*episodes: Tensor) -> None:
        params = {name: value.detach() for name, value in net.named_parameters()}
        grads = gradients(params, *episodes)
        for name, parameter in net.named_parameters():
            parameter.grad = grads[name].mean(0)

    # With batch norm, and if the complete gradient is to be one program.
    return within if net.apply_to is convolutions or program is torch.compile else through


PEERS = {
    "torch-loop": autograd_loop,
    "higher": higher_loop,
    "torchopt": torchopt_loop,
    "torch.func": vmapped,
    "torch.func-compiled": compiled,
    "torchopt.func": torchopt_functional,
}


class Setting(NamedTuple):
    """A workload in PyTorch: network, loss, and the number of tasks that suits torch.func best."""

    apply: Apply
    loss: Callable[[Tensor, Tensor], Tensor]
    chunk: int | None


SETTINGS = {
    "conv4": Setting(convolutions, functional.cross_entropy, 8),
    "sinusoid": Setting(perceptron, functional.mse_loss, None),
}


def prepare(
    peer: str, workload: str, inputs: Inputs, device: str = "cpu"
) -> tuple[Net, Callable[[], None]]:
    """Return a peer's network and a function that stores the meta-gradient in its `grad`.

    Args:
        peer: name in `PEERS`.
        workload: name in `WORKLOADS`.
        inputs: inputs of the workload; with float64 arrays the computation is in float64.
        device: "cpu" or "cuda"; on "cuda" all tasks are computed at once.
    """
    problem, setting = WORKLOADS[workload], SETTINGS[workload]
    net = Net(setting.apply, {k: to_torch(k, v) for k, v in inputs["params"].items()}).to(device)
    support_x, support_y, query_x, query_y = (
        torch.tensor(inputs[name], device=device) for name in EPISODE
    )
    if workload == "conv4":  # channels last is no faster for any of the peers
        support_x, query_x = (x.movedim(-1, 2).contiguous() for x in (support_x, query_x))
        support_y, query_y = support_y.long(), query_y.long()
    chunk = setting.chunk if device == "cpu" else None
    inner = Inner(net, setting.loss, problem.steps, problem.learning_rate, chunk)
    backward = PEERS[peer](inner)
    return net, lambda: backward(support_x, support_y, query_x, query_y)


def meta_gradient(
    peer: str, workload: str, inputs: Inputs, device: str = "cpu"
) -> dict[str, np.ndarray]:
    """Return the gradient of the meta-loss keyed by parameter name, in JAX's layout.

    Args:
        peer: name in `PEERS`.
        workload: name in `WORKLOADS`.
        inputs: inputs of the workload, float32 or float64.
        device: "cpu" or "cuda".
    """
    net, backward = prepare(peer, workload, inputs, device)
    backward()
    found = {name: value.grad for name, value in net.named_parameters()}
    return {name: from_torch(name, grad.cpu()) for name, grad in found.items() if grad is not None}


def build(peer: str, workload: str, device: str = "cpu", tf32: bool = True) -> Callable[[], None]:
    """Return a function that runs a peer's complete meta-step, including the outer Adam update.

    Args:
        peer: name in `PEERS`.
        workload: name in `WORKLOADS`.
        device: "cpu" or "cuda".
        tf32: whether float32 products may use TF32, which a CPU does not have.
    """
    torch.set_num_threads(cores())
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    net, backward = prepare(peer, workload, WORKLOADS[workload].inputs(), device)
    optimizer = torch.optim.Adam(net.parameters(), OUTER_RATE, fused=True)

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        backward()
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return run
