"""Encoding texts with a pretrained encoder: ours, PyTorch's and ONNX Runtime's, on the same texts.

python -m experiments.benchmarks.encode --folder=FOLDER --output=encode.json

FOLDER is a Hugging Face folder of the BERT family; without one, an encoder of the shape of
multilingual-e5-small with random weights is written for the time of the run. The texts are reviews
and products of the bazaar, or the lines of `--texts`. A step encodes all of them, from text to
vector. PyTorch and ONNX Runtime read our batches of similar lengths, each padded to its longest
text, of at most `--tokens` tokens, and run on all cores. The products counted are those of tokens
that are there, so that padding lowers the share of the limit.

With the extra `bench` and `pip install transformers onnx onnxscript onnxruntime` the peers are
timed beside ours; those that are not installed are left out.
"""

import functools
import importlib.util
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from experiments.benchmarks.measure import OUTPUT, ROUNDS, System, Workload, cores, report, start

FOLDER = flags.DEFINE_string("folder", None, "folder of the encoder; random weights without one")
TEXTS = flags.DEFINE_string("texts", None, "file of texts, one a line; the bazaar's without one")
COUNT = flags.DEFINE_integer("count", 128, "texts of a step", lower_bound=1)
PREFIX = flags.DEFINE_string("prefix", "", "put before every text, such as 'query: '")
TOKENS = flags.DEFINE_integer("tokens", 512, "tokens of a peer's batch", lower_bound=1)


def bazaar_texts(count: int) -> list[str]:
    """Return reviews and products of the bazaar, English and Chinese."""
    from metaguide.data.bazaar import BazaarSettings, generate
    from metaguide.data.texts import product_text

    domains = generate(BazaarSettings(categories=4, products=10, questions=2, users=2)).values()
    texts = [review.text for domain in domains for review in domain.reviews]
    texts += [product_text(product) for domain in domains for product in domain.products]
    return [texts[row] for row in np.random.default_rng(0).permutation(len(texts))[:count]]


def write_random(folder: Path, texts: Sequence[str]) -> None:
    """Write an encoder of multilingual-e5-small's shape with random weights, 30,000 pieces."""
    import tokenizers
    from safetensors.numpy import save_file
    from tokenizers import models, normalizers, pre_tokenizers, processors, trainers

    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    core = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer()
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.train_from_iterator(
        texts, trainers.WordPieceTrainer(vocab_size=30_000, special_tokens=specials)
    )
    core.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    core.save(str(folder / "tokenizer.json"))
    width, hidden, layers = 384, 1536, 12
    config = {
        "model_type": "bert",
        "hidden_act": "gelu",
        "hidden_size": width,
        "intermediate_size": hidden,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": 512,
        "num_attention_heads": 12,
        "num_hidden_layers": layers,
        "pad_token_id": 0,
        "type_vocab_size": 2,
        "vocab_size": 30_000,
    }
    (folder / "config.json").write_text(json.dumps(config))
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (30_000, width),
        "embeddings.position_embeddings.weight": (512, width),
        "embeddings.token_type_embeddings.weight": (2, width),
    }
    norms = ["embeddings"]
    for number in range(layers):
        name = f"encoder.layer.{number}"
        square = ("self.query", "self.key", "self.value", "output.dense")
        dense = {f"{name}.attention.{part}": (width, width) for part in square}
        dense[f"{name}.intermediate.dense"] = (hidden, width)
        dense[f"{name}.output.dense"] = (width, hidden)
        for part, shape in dense.items():
            shapes |= {f"{part}.weight": shape, f"{part}.bias": shape[:1]}
        norms += [f"{name}.attention.output", f"{name}.output"]
    random = np.random.default_rng(0)
    weights = {
        name: 0.02 * random.standard_normal(shape, np.float32) for name, shape in shapes.items()
    }
    for name in norms:
        weights[f"{name}.LayerNorm.weight"] = np.ones(width, np.float32)
        weights[f"{name}.LayerNorm.bias"] = np.zeros(width, np.float32)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def matrix_flops(folder: Path, texts: Sequence[str], prefix: str) -> tuple[int, int]:
    """Return the number of tokens, and the operations of the matrix products that they need.

    A layer takes 2 (4 w² + 2 w h) operations a token for its kernels and 4 l w for scores and
    mixtures, of l tokens in the text.
    """
    from metaguide.data.pretrained_tokenizer import read_tokenizer
    from metaguide.pretrained.folder import read_config

    config = read_config(folder / "config.json")
    encoded = read_tokenizer(folder / "tokenizer.json").encode(texts, config.length, prefix)
    counts = encoded.counts.astype(np.int64)
    kernels = 2 * (4 * config.width**2 + 2 * config.width * config.hidden)
    operations = config.layers * (counts * kernels + 4 * counts**2 * config.width)
    return int(counts.sum()), int(operations.sum())


def build_metaguide(folder: str, texts: Sequence[str], prefix: str) -> Callable[[], Any]:
    """Return a function that encodes the texts with our encoder."""
    from metaguide.pretrained import load_encoder

    encoder = load_encoder(folder, prefix=prefix)
    return lambda: encoder.encode(texts)


def peer_batches(folder: str, texts: Sequence[str], prefix: str, tokens: int) -> Callable[[], Any]:
    """Return what yields the (rows, ids, mask) of batches, from the texts on; int64."""
    import tokenizers

    from metaguide.pretrained.encoder import batches

    config = json.loads((Path(folder) / "config.json").read_text())
    core = tokenizers.Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
    core.no_padding()
    core.enable_truncation(config["max_position_embeddings"])

    def read() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        encodings = core.encode_batch_fast([prefix + text for text in texts])
        counts = np.array([len(encoding) for encoding in encodings])
        for rows, _, _ in batches(counts, tokens, config["max_position_embeddings"]):
            ids = np.full((len(rows), counts[rows].max()), config["pad_token_id"], np.int64)
            mask = np.zeros_like(ids)
            for place, row in enumerate(rows):
                ids[place, : counts[row]], mask[place, : counts[row]] = encodings[row].ids, 1
            yield rows, ids, mask

    return read


def pooled(states: Any, mask: Any) -> Any:
    """Return the mean of the states that are not padding, NumPy's or PyTorch's."""
    kept = mask[..., None]
    return (states * kept).sum(1) / kept.sum(1)


def build_torch(folder: str, texts: Sequence[str], prefix: str, tokens: int) -> Callable[[], Any]:
    """Return a function that encodes the texts with PyTorch and transformers."""
    import torch  # pyright: ignore[reportMissingImports]
    from transformers import AutoModel  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(cores())
    model = AutoModel.from_pretrained(folder, add_pooling_layer=False).eval()
    read = peer_batches(folder, texts, prefix, tokens)

    def run() -> np.ndarray:
        found = np.zeros((len(texts), model.config.hidden_size), np.float32)
        with torch.inference_mode():
            for rows, ids, mask in read():
                ids, mask = torch.from_numpy(ids), torch.from_numpy(mask)
                states = model(input_ids=ids, attention_mask=mask).last_hidden_state
                found[rows] = pooled(states, mask).numpy()
        return found

    return run


def build_onnx(folder: str, texts: Sequence[str], prefix: str, tokens: int) -> Callable[[], Any]:
    """Return a function that encodes the texts with ONNX Runtime, its graph optimised fully."""
    import onnxruntime  # pyright: ignore[reportMissingImports]
    import torch  # pyright: ignore[reportMissingImports]
    from transformers import AutoModel  # pyright: ignore[reportMissingImports]

    model = AutoModel.from_pretrained(folder, add_pooling_layer=False).eval()
    width = model.config.hidden_size
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = cores()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    with tempfile.TemporaryDirectory() as root:
        path = str(Path(root) / "model.onnx")
        # Two tensors: one alone would be taken for one input.
        ids, mask = (torch.ones((2, 8), dtype=torch.int64) for _ in range(2))
        axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", max=512)}
        torch.onnx.export(
            model,
            (),
            path,
            kwargs={"input_ids": ids, "attention_mask": mask},
            input_names=["input_ids", "attention_mask"],
            output_names=["states"],
            dynamic_shapes={"input_ids": axes, "attention_mask": axes},
            dynamo=True,
        )
        session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
    read = peer_batches(folder, texts, prefix, tokens)

    def run() -> np.ndarray:
        found = np.zeros((len(texts), width), np.float32)
        for rows, ids, mask in read():
            (states,) = session.run(["states"], {"input_ids": ids, "attention_mask": mask})
            found[rows] = pooled(states, mask)
        return found

    return run


PEERS = {
    "torch": (build_torch, ("torch", "transformers")),
    "onnxruntime": (build_onnx, ("onnxruntime", "onnx", "onnxscript", "torch", "transformers")),
}
"""The systems beside ours, and what they need."""


def main() -> None:
    """Measure, print the table, write the rows."""
    if TEXTS.value:
        lines = Path(TEXTS.value).read_text(encoding="utf-8").splitlines()
        texts = [line for line in lines if line.strip()][: COUNT.value]
    else:
        texts = bazaar_texts(COUNT.value)
    with tempfile.TemporaryDirectory() as root:
        folder = Path(FOLDER.value or root)
        if not FOLDER.value:
            write_random(folder, texts)
        tokens, flops = matrix_flops(folder, texts, PREFIX.value)
        print(f"{len(texts)} texts of {tokens} tokens, on {cores()} cores")
        given = (str(folder), texts, PREFIX.value)
        systems = [System("metaguide", functools.partial(build_metaguide, *given))]
        missing = []
        for name, (build, needed) in PEERS.items():
            if all(map(importlib.util.find_spec, needed)):
                systems.append(System(name, functools.partial(build, *given, TOKENS.value)))
            else:
                missing.append(name)
        name = f"encode_{len(texts)}_texts_{tokens}_tokens"
        report([Workload(name, systems, flops)], ROUNDS.value, OUTPUT.value)
    if missing:
        print(f"{' and '.join(missing)} cannot be timed: see the head of this module.")


if __name__ == "__main__":
    start(main)
