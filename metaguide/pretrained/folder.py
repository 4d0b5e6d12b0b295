"""Hugging Face folders of the BERT family: configuration, weights, tokenizer and pooling."""

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors

from metaguide.data.pretrained_tokenizer import PretrainedTokenizer, read_tokenizer
from metaguide.data.tokenizer import TokenizerError
from metaguide.files import FileFault, read_json
from metaguide.models.bert import BertConfig, Pooling

CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
"""The files that a folder must have."""

POOLING = Path("1_Pooling") / CONFIG
"""Where sentence-transformers stores how states are pooled."""

ARCHITECTURES: Mapping[str, str] = {
    "bert": "bert.",
    "roberta": "roberta.",
    "xlm-roberta": "roberta.",
}
"""The supported architectures, and the prefix that the names of their tensors may have."""

FETCH = "fetch the folder again, as snapshot_download of huggingface_hub does"


class EncoderError(ValueError):
    """A folder that holds no readable encoder, or a vector cache that cannot be used."""


class Folder(NamedTuple):
    """The contents of a folder.

    Attributes:
        config: the encoder's shape.
        params: parameters of `metaguide.models.bert.Bert`, NumPy arrays in float32.
        tokenizer: the encoder's tokenizer.
        pooling: how token states become a vector.
        fingerprint: hash of the files' contents.
    """

    config: BertConfig
    params: Mapping[str, Any]
    tokenizer: PretrainedTokenizer
    pooling: Pooling
    fingerprint: str


def is_encoder(folder: Path) -> bool:
    """Return whether a folder holds the weights of a pretrained encoder."""
    return (folder / WEIGHTS).exists()


def read_folder(folder: str | os.PathLike[str], pooling: Pooling | None = None) -> Folder:
    """Read an encoder of the BERT family. No pickle is read.

    Args:
        folder: folder with `config.json`, `model.safetensors` and `tokenizer.json`, and, if
            sentence-transformers wrote it, `1_Pooling/config.json`.
        pooling: overrides that file; "mean" if neither is given.

    Raises:
        EncoderError: the folder or a file is missing or damaged, the architecture is not supported,
            a tensor is missing or has another shape, or the tokenizer has more ids than the
            embedding has rows; the message names the fault and the fix.
    """
    path = Path(folder)
    if not path.is_dir():
        found = "a file, not a folder" if path.exists() else "there is no such folder"
        raise EncoderError(f"{path}: {found}; give the folder of an encoder, with a {CONFIG}")
    for name in (CONFIG, WEIGHTS, TOKENIZER):
        if not (path / name).exists():
            raise EncoderError(f"{path}: there is no {name} here; {_mend(path, name)}")
    config = read_config(path / CONFIG)
    try:
        tokenizer = read_tokenizer(path / TOKENIZER)
    except TokenizerError as error:
        raise EncoderError(str(error)) from error
    if tokenizer.size > config.vocabulary:
        raise EncoderError(
            f"{path / TOKENIZER}: it has ids up to {tokenizer.size - 1}, but the embedding has "
            f"{config.vocabulary} rows; the files belong to different encoders: {FETCH}"
        )
    params = read_weights(path / WEIGHTS, config, ARCHITECTURES[_architecture(path / CONFIG)])
    return Folder(config, params, tokenizer, pooling or _pooling(path), fingerprint_of(path))


def fingerprint_of(folder: Path) -> str:
    """Return a hexadecimal hash of the files that a folder must have."""
    digest = hashlib.sha256()
    for name in (CONFIG, WEIGHTS, TOKENIZER):
        with open(folder / name, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def copy_encoder(folder: str | os.PathLike[str], target: Path, fingerprint: str) -> None:
    """Copy the files of an encoder, without its pooling, into a new folder.

    Args:
        folder: the folder of the encoder.
        target: the folder to make.
        fingerprint: the encoder's fingerprint, which the copy has to have.

    Raises:
        EncoderError: a file is missing, or the folder holds another encoder by now.
    """
    target.mkdir()
    try:
        for name in (CONFIG, WEIGHTS, TOKENIZER):
            shutil.copyfile(Path(folder) / name, target / name)
    except FileNotFoundError as error:
        raise EncoderError(f"{error.filename}: there is no such file any more; {FETCH}") from error
    if fingerprint_of(target) != fingerprint:
        raise EncoderError(f"{folder}: it holds another encoder than the guide reads; {FETCH}")


def read_config(path: Path) -> BertConfig:
    """Return the shape that a `config.json` describes.

    Raises:
        EncoderError: the file is damaged, of another architecture, or has an invalid field.
    """
    fields, kind = _json(path), _architecture(path)

    def number(name: str, default: int | None = None, least: int = 1) -> int:
        value = fields.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            said = f"is {value!r}" if name in fields else "is missing"
            raise EncoderError(f"{path}: {name} {said}; it must be a whole number >= {least}")
        return value

    for name, allowed in {
        "hidden_act": ("gelu",),
        "position_embedding_type": ("absolute",),
        "is_decoder": (False,),
    }.items():
        if (value := fields.get(name, allowed[0])) not in allowed:
            raise EncoderError(f"{path}: {name} is {value!r}; only {allowed[0]!r} is supported")
    epsilon = fields.get("layer_norm_eps", 1e-12)
    if isinstance(epsilon, bool) or not isinstance(epsilon, float) or not 0 < epsilon < 1:
        raise EncoderError(f"{path}: layer_norm_eps is {epsilon!r}; it must be between 0 and 1")
    pad = number("pad_token_id", 0 if kind == "bert" else 1, least=0)
    config = BertConfig(
        vocabulary=number("vocab_size"),
        width=number("hidden_size"),
        layers=number("num_hidden_layers"),
        heads=number("num_attention_heads"),
        hidden=number("intermediate_size"),
        positions=number("max_position_embeddings"),
        token_types=number("type_vocab_size", 2),
        first_position=0 if kind == "bert" else pad + 1,
        epsilon=epsilon,
        pad=pad,
    )
    if config.width % config.heads:
        raise EncoderError(
            f"{path}: hidden_size {config.width} is not a multiple of num_attention_heads "
            f"{config.heads}"
        )
    if config.pad >= config.vocabulary:
        raise EncoderError(f"{path}: pad_token_id {pad} is not below vocab_size")
    if config.length < 3:
        raise EncoderError(f"{path}: max_position_embeddings {config.positions} holds no text")
    return config


def read_weights(path: Path, config: BertConfig, prefix: str = "bert.") -> dict[str, Any]:
    """Return the parameters of `metaguide.models.bert.Bert` from a `model.safetensors`.

    Args:
        path: path of the file. Tensors that the encoder does not use, such as a pooler's, are
            ignored.
        config: the encoder's shape.
        prefix: prefix of the tensors' names, which may lack it.

    Returns:
        The parameters, NumPy arrays in float32; float16 and bfloat16 are widened.

    Raises:
        EncoderError: the file is damaged, or a tensor is missing, not of floats, or of another
            shape.
    """
    try:
        # Opened here, so that the user sees the operating system's message if this fails.
        with open(path, "rb") as file:
            is_pointer = file.read(40).startswith(b"version https://git-lfs")
        if is_pointer:
            raise EncoderError(
                f"{path}: a pointer of Git LFS, not the weights; run `git lfs pull`, or {FETCH}"
            )
        with safetensors.safe_open(path, framework="numpy") as file:
            return _params(path, file, config, prefix)
    except EncoderError:
        raise
    except Exception as error:  # corrupted bytes raise errors of many kinds
        raise EncoderError(
            f"{path}: damaged, or an incomplete download ({error or type(error).__name__}); {FETCH}"
        ) from error


def _params(path: Path, file: Any, config: BertConfig, prefix: str) -> dict[str, Any]:
    names = set(file.keys())
    prefix = prefix if any(name.startswith(prefix) for name in names) else ""
    width, hidden = config.width, config.hidden

    def tensor(name: str, *shape: int) -> np.ndarray:
        name = prefix + name
        if name not in names:
            # Checkpoints converted from TensorFlow use its names for a norm's tensors.
            older = name.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta")
            if older not in names:
                raise EncoderError(
                    f"{path}: there is no tensor {name}; the file belongs to another encoder than "
                    f"{CONFIG}: {FETCH}"
                )
            name = older
        value = file.get_tensor(name)
        if value.shape != shape:
            raise EncoderError(
                f"{path}: {name} is {list(value.shape)}, but {CONFIG} requires {list(shape)}; the "
                f"files belong to different encoders: {FETCH}"
            )
        # bfloat16 is not a native NumPy dtype; its kind is V.
        if value.dtype.kind != "f" and value.dtype.name != "bfloat16":
            raise EncoderError(
                f"{path}: {name} is {value.dtype}; quantised weights are not supported, give those "
                "in float32, float16 or bfloat16"
            )
        value = np.ascontiguousarray(value, np.float32)
        if not np.isfinite(value).all():
            raise EncoderError(f"{path}: {name} has values that are not finite; {FETCH}")
        return value

    def dense(name: str, inputs: int, outputs: int) -> dict[str, np.ndarray]:
        kernel = tensor(f"{name}.weight", outputs, inputs).T
        return {"kernel": np.ascontiguousarray(kernel), "bias": tensor(f"{name}.bias", outputs)}

    def norm(name: str) -> dict[str, np.ndarray]:
        name = f"{name}.LayerNorm"
        return {"scale": tensor(f"{name}.weight", width), "bias": tensor(f"{name}.bias", width)}

    def layer(name: str) -> dict[str, Any]:
        parts = [
            dense(f"{name}.attention.self.{part}", width, width)
            for part in ("query", "key", "value")
        ]
        qkv = {field: np.concatenate([part[field] for part in parts], -1) for field in parts[0]}
        out = dense(f"{name}.attention.output.dense", width, width)
        return {
            "qkv": qkv,
            "out": out,
            "attention_norm": norm(f"{name}.attention.output"),
            "mlp_in": dense(f"{name}.intermediate.dense", width, hidden),
            "mlp_out": dense(f"{name}.output.dense", hidden, width),
            "mlp_norm": norm(f"{name}.output"),
        }

    embeddings = "embeddings.{}_embeddings.weight".format
    params: dict[str, Any] = {
        "embedding": tensor(embeddings("word"), config.vocabulary, width),
        "positions": tensor(embeddings("position"), config.positions, width),
        "types": tensor(embeddings("token_type"), config.token_types, width),
        "norm": norm("embeddings"),
    }
    for number in range(config.layers):
        params[f"layer_{number}"] = layer(f"encoder.layer.{number}")
    return params


def _architecture(path: Path) -> str:
    found = _json(path).get("model_type")
    if not isinstance(found, str) or found not in ARCHITECTURES:
        raise EncoderError(
            f"{path}: model_type is {found!r}; the supported architectures are "
            f"{', '.join(ARCHITECTURES)}"
        )
    return found


def _json(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except FileFault as error:
        raise EncoderError(f"{path}: {error}; {FETCH}") from error


def _mend(path: Path, missing: str) -> str:
    """Return advice about a missing file."""
    names = {entry.name for entry in path.iterdir()}
    if missing == WEIGHTS and f"{WEIGHTS}.index.json" in names:
        return "weights in several parts are not supported; save them in one file"
    if missing == WEIGHTS and any(name.endswith((".bin", ".pt", ".h5")) for name in names):
        return (
            "weights in pickles and other formats are not supported; most models have the file in "
            f"their newest revision: {FETCH}, or convert them with safetensors"
        )
    if missing == TOKENIZER and names & {"vocab.txt", "sentencepiece.bpe.model", "vocab.json"}:
        return (
            "write it with transformers: AutoTokenizer.from_pretrained(FOLDER)"
            ".save_pretrained(FOLDER)"
        )
    return FETCH


def _pooling(folder: Path) -> Pooling:
    """Return the pooling that sentence-transformers wrote, "mean" if it wrote none."""
    path = folder / POOLING
    if not path.exists():
        return "mean"
    modes = [name for name, value in _modes(_json(path)) if value is True]
    if modes == ["pooling_mode_cls_token"]:
        return "cls"
    if modes == ["pooling_mode_mean_tokens"]:
        return "mean"
    raise EncoderError(
        f"{path}: it pools by {' and '.join(modes) or 'nothing'}; give pooling='mean' or 'cls'"
    )


def _modes(fields: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    yield from ((name, value) for name, value in fields.items() if name.startswith("pooling_mode_"))
