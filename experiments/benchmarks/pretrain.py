"""The masked language model's training step against the machine's matrix-product rate.

python -m experiments.benchmarks.pretrain --output=pretrain.json

A share of the limit is (floating-point operations of the step's matrix products) / (time of a step)
/ (rate of 1024 x 1024 x 1024 float32 products), the operations counted by `matrix_flops`. Every
system runs in a process of its own; bursts of products and steps are measured in turn, round by
round, and the best of each counts, so that other load on the machine meets all of them alike. With
the extra `bench`, PyTorch's own TransformerEncoder of the same shape is timed beside it.

On Linux all of them run with transparent huge pages for large arrays: of 62,000 page faults a step
1,200 are left, and a step takes a fifth less processor time.
"""

import importlib.util
import json
import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import app, flags
from rich.console import Console
from rich.table import Table

OUTPUT = flags.DEFINE_string("output", None, "file to write the rows to, JSON")
ROUNDS = flags.DEFINE_integer("rounds", 25, "how often every system is measured", lower_bound=1)

SIDE, BURST = 1024, 20
"""Rows and columns of the matrices whose product is the limit, and how many are timed at once."""

HUGE_PAGES = ("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
"""The environment variable, read by glibc alone and when a process starts."""


class Shape(NamedTuple):
    """The workload: a Transformer, a batch of texts, and how much of them is hidden."""

    width: int = 128
    layers: int = 4
    heads: int = 4
    vocabulary: int = 8000
    texts: int = 64
    length: int = 64
    dropout: float = 0.1
    rate: float = 0.15

    @property
    def hidden(self) -> int:
        """Number of positions to be guessed."""
        return int(self.rate * self.texts * self.length)


def matrix_flops(shape: Shape) -> int:
    """Return the floating-point operations of a training step's matrix products.

    A layer takes 24 w² operations a token (Q, K, V 6, output 2, hidden units 8 + 8) and 4 l w for
    its scores and mixtures; a hidden position takes 2 w² for the transform and 2 w v for the
    logits. The backward pass has two products for each of the forward pass: three times that.
    Embedding, norms, softmax, dropout and optimizer count for nothing, nor does recomputation,
    nor the logits of positions beyond the hidden ones.
    """
    width, tokens = shape.width, shape.texts * shape.length
    layers = shape.layers * tokens * (24 * width**2 + 4 * shape.length * width)
    head = shape.hidden * (2 * width**2 + 2 * width * shape.vocabulary)
    return 3 * (layers + head)


def texts(shape: Shape) -> np.ndarray:
    """Return random token ids without padding, int32 [texts, length], the first being [CLS]."""
    tokens = np.random.default_rng(0).integers(5, shape.vocabulary, (shape.texts, shape.length))
    tokens[:, 0] = 2
    return tokens.astype(np.int32)


def build_product(shape: Shape) -> Callable[[], Any]:
    """Return a function that multiplies matrices in JAX, a burst about as long as a step."""
    import jax

    del shape
    matrix = jax.random.normal(jax.random.key(0), (SIDE, SIDE))
    multiply = jax.jit(lambda a: a @ a)

    def run() -> None:
        for _ in range(BURST):
            jax.block_until_ready(multiply(matrix))

    return run


def build_metaguide(shape: Shape) -> Callable[[], Any]:
    """Return a function that takes a step of our masked language model, with AdamW."""
    import jax
    import jax.numpy as jnp
    import optax

    from metaguide.data.tokenizer import MASK
    from metaguide.models.guide import GuideModel, init_params
    from metaguide.objectives.weighting import fixed
    from metaguide.pretraining import masked_language
    from metaguide.training.step import init_state, make_step

    model = GuideModel(
        shape.vocabulary,
        shape.width,
        shape.layers,
        shape.heads,
        shape.length,
        shape.dropout,
        image=False,
    )
    objective = masked_language(model, shape.texts, mask_id=MASK, rate=shape.rate)
    gradient = jax.value_and_grad(objective, has_aux=True)
    weighting, optimizer = fixed({"words": 1.0}), optax.adamw(1e-3)
    step = make_step({"words": gradient}, weighting, optimizer, 10_000)
    meta = {"params": init_params(model, jax.random.key(0))}
    words = jnp.broadcast_to(jnp.arange(-1, shape.length - 1), (shape.texts, shape.length))
    data = {"words": {"tokens": jnp.asarray(texts(shape)), "words": words}}
    carry = [init_state(meta, weighting, optimizer, jax.random.key(1))]

    def run() -> None:
        carry[0], metrics = step(carry[0], data)
        jax.block_until_ready((carry[0].params, metrics))

    return run


def build_torch(shape: Shape) -> Callable[[], Any]:
    """Return a function that takes a step of PyTorch's TransformerEncoder, with AdamW."""
    import torch  # pyright: ignore[reportMissingImports]
    from torch import nn  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(0)
    width = shape.width
    layer = nn.TransformerEncoderLayer(
        width, shape.heads, 4 * width, shape.dropout, "relu", batch_first=True, norm_first=True
    )
    parts = nn.ModuleDict(
        {
            "embedding": nn.Embedding(shape.vocabulary, width),
            "position": nn.Embedding(shape.length, width),
            "drop": nn.Dropout(shape.dropout),
            "encoder": nn.TransformerEncoder(
                layer, shape.layers, nn.LayerNorm(width), enable_nested_tensor=False
            ),
            "transform": nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.LayerNorm(width)),
            "logits": nn.Linear(width, shape.vocabulary),
        }
    )
    parts["logits"].weight = parts["embedding"].weight
    optimizer = torch.optim.AdamW(parts.parameters(), lr=1e-3, weight_decay=1e-4, fused=True)
    tokens = torch.from_numpy(texts(shape)).long()
    positions = torch.arange(shape.length)

    def run() -> None:
        places = torch.randperm(tokens.numel())[: shape.hidden]
        inputs = tokens.flatten().index_fill(0, places, 4).view_as(tokens)
        states = parts["drop"](parts["embedding"](inputs) + parts["position"](positions))
        states = parts["encoder"](states, src_key_padding_mask=inputs == 0)
        logits = parts["logits"](parts["transform"](states.flatten(0, 1)[places]))
        loss = nn.functional.cross_entropy(logits, tokens.flatten()[places])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return run


BUILD = {"product": build_product, "metaguide": build_metaguide, "torch": build_torch}


def peak_mib() -> float:
    """Return this process's largest resident memory, MiB."""
    try:  # the kernel lets a child inherit `ru_maxrss` from its parent, but not this
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 2**10
    except (OSError, IndexError):
        unit = 2**20 if sys.platform == "darwin" else 2**10
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def seconds(run: Callable[[], Any]) -> float:
    """Return how long one call takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def serve(system: str, shape: Shape, pipe: Connection) -> None:
    """Build a system, then answer each number n with the times of n runs, and 0 with the peak."""
    if system != "torch":
        import jax

        jax.config.update("jax_enable_compilation_cache", False)
    run = BUILD[system](shape)
    pipe.send(seconds(run))
    while count := pipe.recv():
        pipe.send([seconds(run) for _ in range(count)])
    pipe.send(peak_mib())


def measure(systems: list[str], shape: Shape, rounds: int) -> dict[str, dict[str, float]]:
    """Return for each system the best time, the time of the first call, seconds, and the peak, MiB.

    Args:
        systems: names in `BUILD`.
        shape: the workload.
        rounds: how often each is measured, in turn.
    """
    os.environ.setdefault(*HUGE_PAGES)
    context = multiprocessing.get_context("spawn")
    pipes, processes, found = {}, [], {}
    for system in systems:
        pipes[system], theirs = context.Pipe()
        process = context.Process(target=serve, args=(system, shape, theirs), daemon=True)
        process.start()
        theirs.close()  # so that a process that dies ends our wait
        processes.append(process)
        found[system] = {"first": pipes[system].recv(), "best": np.inf}
    for _ in range(rounds):
        for system in systems:
            pipes[system].send(2)
            found[system]["best"] = min(found[system]["best"], *pipes[system].recv())
    for system, process in zip(systems, processes, strict=True):
        pipes[system].send(0)
        found[system]["peak"] = pipes[system].recv()
        process.join()
    return found


def rows(found: dict[str, dict[str, float]], shape: Shape) -> list[dict[str, Any]]:
    """Return one row a system, as the other benchmarks write them.

    Args:
        found: what `measure` found.
        shape: the workload.

    Returns:
        `workload`, `system`, `steps_per_s`, `ratio` (how many times as fast metaguide is as this
        system), `limit_share`, `compile_s` (first call less one step), `peak_mib`.
    """
    limit = BURST * 2 * SIDE**3 / found["product"]["best"]
    return [
        {
            "workload": "masked_language",
            "system": system,
            "steps_per_s": 1 / own["best"],
            "ratio": own["best"] / found["metaguide"]["best"],
            "limit_share": matrix_flops(shape) / own["best"] / limit,
            "compile_s": own["first"] - own["best"],
            "peak_mib": own["peak"],
        }
        for system, own in found.items()
        if system != "product"
    ]


def main(argv: list[str]) -> None:
    """Measure, print the table, write the rows."""
    if argv[1:]:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    shape = Shape()
    systems = ["product", "metaguide"]
    if importlib.util.find_spec("torch"):
        systems.append("torch")
    found = measure(systems, shape, ROUNDS.value)
    result = rows(found, shape)
    rate = BURST * 2 * SIDE**3 / found["product"]["best"] / 1e9
    table = Table(
        title=f"masked language model: {matrix_flops(shape) / 1e9:.1f} GFLOP a step; "
        f"{rate:.0f} GFLOP/s is the limit; best of {2 * ROUNDS.value}"
    )
    shown = [name for name in result[0] if name != "workload"]
    for name in shown:
        table.add_column(name, justify="left" if name == "system" else "right")
    for row in result:
        values = (row[name] for name in shown)
        table.add_row(*(v if isinstance(v, str) else f"{v:.{0 if v > 99 else 2}f}" for v in values))
    Console().print(table)
    if "torch" not in systems:
        print("PyTorch is not installed: pip install -e '.[bench]' to time it too.")
    if OUTPUT.value:
        path = Path(OUTPUT.value)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + ".partial")
        temporary.write_text(json.dumps(result, indent=1) + "\n")
        os.replace(temporary, path)


if __name__ == "__main__":
    app.run(main)
