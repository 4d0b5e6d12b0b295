"""The pretrained encoder that a config names, and its vectors."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32
from ml_collections.config_dict import FrozenConfigDict

from experiments.config_files import ConfigError
from metaguide.pretrained import CutTexts, PretrainedEncoder, Vectors, load_encoder, vector_reader
from metaguide.training.progress import progress, say

AT_ONCE = 200
"""Texts between two signs of progress."""

VECTORS = "vectors"
"""Subfolder of a work folder that keeps vectors."""


class Pretrained(NamedTuple):
    """A pretrained encoder and what makes its vectors.

    Attributes:
        encoder: the encoder.
        vectors: texts -> float32 [texts, width], kept on disk.
    """

    encoder: PretrainedEncoder
    vectors: Vectors


def read_encoder(section: FrozenConfigDict, folder: Path) -> Pretrained | None:
    """Read the pretrained encoder of a config's section `encoder`; None if it names none.

    Args:
        section: has `weights`, `prefix`, `length` and `cache`, and may have `pooling`.
        folder: work folder, which keeps the vectors if `cache` is empty.

    Raises:
        ConfigError: the folder holds no such encoder, or a field is out of range.
    """
    encoder = load_of(section, section.length)
    if encoder is None:
        return None
    return Pretrained(encoder, vectors_of(encoder, section.cache or folder / VECTORS))


def vectors_of(encoder: PretrainedEncoder, folder: Path | str) -> Vectors:
    """Return what makes an encoder's vectors and keeps them in a folder; it shows its progress.

    Of many texts it says once how many are cut.
    """
    read = vector_reader(encoder, folder)

    def vectors(texts: Sequence[str]) -> Float32[np.ndarray, "texts width"]:
        if len(texts) <= AT_ONCE:
            return read(texts)
        if cut := int((~encoder.reads_to_the_end(texts)).sum()):
            say(str(CutTexts(cut, len(texts), encoder.length)))
        found = []
        with progress("vectors", len(texts), unit="text") as show, warnings.catch_warnings():
            warnings.simplefilter("ignore", CutTexts)
            for start in range(0, len(texts), AT_ONCE):
                found.append(read(texts[start : start + AT_ONCE]))
                show(min(start + AT_ONCE, len(texts)), "")
        return np.concatenate(found)

    return vectors


def load_of(section: FrozenConfigDict, length: int | None = None) -> PretrainedEncoder | None:
    """Read the pretrained encoder of a config's section without its vectors.

    Args:
        section: as in `read_encoder`.
        length: the most tokens of a text; by default the number of the encoder's positions.

    Raises:
        ConfigError: as in `read_encoder`.
    """
    if not section.weights:
        return None
    pooling: Any = section.get("pooling") or None
    try:
        return load_encoder(section.weights, prefix=section.prefix, pooling=pooling, length=length)
    except ValueError as error:
        raise ConfigError(f"config.encoder: {error}") from error
