"""The masked language model's training step, relative to the machine's matrix-product rate.

python -m experiments.benchmarks.pretrain --output=pretrain.json

A share of the limit is (floating-point operations of the step's matrix products) / (time of a step)
/ (rate of 1024 x 1024 x 1024 float32 products), with the operations counted by `matrix_flops`.
Every system runs in a separate process and is measured in turn, as described in
`experiments.benchmarks.measure`. With the extra `bench`, PyTorch's TransformerEncoder of the same
shape is timed too.
"""

import functools
import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from experiments.benchmarks.measure import OUTPUT, ROUNDS, System, Workload, cores, report, start


class Shape(NamedTuple):
    """The workload: a Transformer, a batch of texts, and the share of words that is hidden."""

    width: int = 128
    layers: int = 4
    heads: int = 4
    vocabulary: int = 8000
    texts: int = 64
    length: int = 64
    dropout: float = 0.1
    mask_rate: float = 0.15

    @property
    def hidden(self) -> int:
        """Number of positions to predict."""
        return int(self.mask_rate * self.texts * self.length)


def matrix_flops(shape: Shape) -> int:
    """Return the floating-point operations of a training step's matrix products.

    A layer takes 24 w² operations per token (6 for Q, K and V, 2 for the output, 8 + 8 for hidden
    units), and 4 l w for attention scores and their weighted sums. A hidden position takes 2 w² for
    the transform and 2 w v for the logits. The backward pass has two products for each one of the
    forward pass, so the total is three times that. Embedding, norms, softmax, dropout, the
    optimizer, recomputation, and logits of positions that are not hidden are not counted.
    """
    width, tokens = shape.width, shape.texts * shape.length
    layers = shape.layers * tokens * (24 * width**2 + 4 * shape.length * width)
    head = shape.hidden * (2 * width**2 + 2 * width * shape.vocabulary)
    return 3 * (layers + head)


def texts(shape: Shape) -> np.ndarray:
    """Return random token ids without padding, int32 [texts, length], starting with [CLS]."""
    tokens = np.random.default_rng(0).integers(5, shape.vocabulary, (shape.texts, shape.length))
    tokens[:, 0] = 2
    return tokens.astype(np.int32)


def build_metaguide(shape: Shape) -> Callable[[], Any]:
    """Return a function that runs a step of our masked language model, with AdamW."""
    import jax
    import jax.numpy as jnp
    import optax

    from metaguide.data.tokenizer import MASK
    from metaguide.models.encoder import transformer
    from metaguide.models.guide import GuideModel, init_params
    from metaguide.objectives.pretraining import masked_language
    from metaguide.objectives.weighting import fixed
    from metaguide.training.step import init_state, make_step

    sizes = shape.vocabulary, shape.width, shape.layers, shape.heads, shape.length
    model = GuideModel(transformer(*sizes, dropout=shape.dropout, channels=()), heads={})
    objective = masked_language(model, shape.texts, mask_id=MASK, mask_rate=shape.mask_rate)
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
    """Return a function that runs a step of PyTorch's TransformerEncoder, with AdamW."""
    import torch  # pyright: ignore[reportMissingImports]
    from torch import nn  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(cores())
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


def main() -> None:
    """Measure, print the table and write the rows."""
    shape = Shape()
    systems = [System("metaguide", functools.partial(build_metaguide, shape))]
    if importlib.util.find_spec("torch"):
        systems.append(System("torch", functools.partial(build_torch, shape)))
    workload = Workload("masked_language", systems, matrix_flops(shape))
    report([workload], ROUNDS.value, OUTPUT.value)
    if len(systems) == 1:
        print("PyTorch is not installed: pip install -e '.[bench]' to time it too.")


if __name__ == "__main__":
    start(main)
