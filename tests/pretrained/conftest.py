"""Small encoders of every kind that is read, as folders on disk."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from safetensors.numpy import save_file
from tokenizers import models, normalizers, pre_tokenizers, processors

WORDS = ("good", "bad", "phone", "the", "screen", "is", "not", "很", "好", "手", "机")

VARIANTS = {
    "bert": ("bert", "wordpiece", ""),
    "e5": ("bert", "unigram", "bert."),
    "xlm-roberta": ("xlm-roberta", "unigram", "roberta."),
    "roberta": ("roberta", "unigram", ""),
}
"""Names of encoders: their architecture, tokenizer, and what stands before their tensors."""

TEXTS = (
    "The phone is good, the screen is not bad",
    "手机很好",
    "",
    "not unbelievably [SEP] good </s> good",
)


def wordpiece() -> tokenizers.Tokenizer:
    """BERT's tokenizer."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, ",", "un", "##believ", "##ably"]
    pieces += ["[", "]", "sep", "<", ">", "/", "s"]
    vocabulary = {piece: id for id, piece in enumerate(pieces)}
    core = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer()
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    core.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    return core


def unigram() -> tokenizers.Tokenizer:
    """XLM-R's tokenizer."""
    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -3.0)]
    pieces += [(f"▁{word}", -4.0) for word in WORDS] + [(word, -5.0) for word in WORDS]
    pieces += [("believ", -6.0), ("ably", -6.5), ("un", -5.5), (",", -3.5), ("s", -7.0)]
    pieces += [("[", -7.0), ("]", -7.0), ("▁The", -4.5)]
    core = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=3))
    core.normalizer = normalizers.NFKC()
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    core.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>"])
    return core


def fields(architecture: str, tokenizer: tokenizers.Tokenizer) -> dict:
    """What a `config.json` holds."""
    return {
        "model_type": architecture,
        "hidden_act": "gelu",
        "hidden_size": 16,
        "intermediate_size": 24,
        "layer_norm_eps": 1e-12 if architecture == "bert" else 1e-5,
        "max_position_embeddings": 24,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "pad_token_id": 0 if architecture == "bert" else 1,
        "type_vocab_size": 2 if architecture == "bert" else 1,
        "vocab_size": tokenizer.get_vocab_size() + 3,
    }


def tensors(config: dict, prefix: str) -> dict[str, np.ndarray]:
    """Random weights that are the same in every version of NumPy."""
    random = np.random.RandomState(0)
    width, hidden = config["hidden_size"], config["intermediate_size"]
    found = {}

    def add(name: str, *shape: int, around: float = 0.0) -> None:
        found[prefix + name] = (around + 0.3 * random.standard_normal(shape)).astype(np.float32)

    def dense(name: str, inputs: int, outputs: int) -> None:
        add(f"{name}.weight", outputs, inputs)
        add(f"{name}.bias", outputs)

    def norm(name: str) -> None:
        add(f"{name}.LayerNorm.weight", width, around=1.0)
        add(f"{name}.LayerNorm.bias", width)

    add("embeddings.word_embeddings.weight", config["vocab_size"], width)
    add("embeddings.position_embeddings.weight", config["max_position_embeddings"], width)
    add("embeddings.token_type_embeddings.weight", config["type_vocab_size"], width)
    norm("embeddings")
    for number in range(config["num_hidden_layers"]):
        name = f"encoder.layer.{number}"
        for part in ("query", "key", "value"):
            dense(f"{name}.attention.self.{part}", width, width)
        dense(f"{name}.attention.output.dense", width, width)
        norm(f"{name}.attention.output")
        dense(f"{name}.intermediate.dense", width, hidden)
        dense(f"{name}.output.dense", hidden, width)
        norm(f"{name}.output")
    return found


def write(folder: Path, variant: str, dtype: type = np.float32) -> Path:
    """Write the folder of an encoder and return it."""
    architecture, kind, prefix = VARIANTS[variant]
    core = wordpiece() if kind == "wordpiece" else unigram()
    config = fields(architecture, core)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    core.save(str(folder / "tokenizer.json"))
    weights = {name: value.astype(dtype) for name, value in tensors(config, prefix).items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """What returns the folder of a variant; nothing in it is changed."""
    root = tmp_path_factory.mktemp("encoders")

    def folder(variant: str) -> Path:
        path = root / variant
        return path if path.exists() else write(path, variant)

    return folder
