"""The IDX files of MNIST and its kin: pictures and labels, as the originals are laid out."""

import gzip
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, UInt8

FILES = {
    split: (f"{name}-images-idx3-ubyte.gz", f"{name}-labels-idx1-ubyte.gz")
    for split, name in {"train": "train", "test": "t10k"}.items()
}


class IdxError(ValueError):
    """An IDX file is missing, damaged or of another kind; the message names it and the mend."""


class Pictures(NamedTuple):
    """Pictures and their classes.

    Attributes:
        image: uint8 [rows, height, width].
        label: int32 [rows].
    """

    image: UInt8[np.ndarray, "rows height width"]
    label: Int32[np.ndarray, " rows"]


def read_pictures(folder: Path, split: str) -> Pictures:
    """Read one split of a folder, such as `mnist` or `fashion_mnist`.

    Args:
        folder: holds train-images-idx3-ubyte.gz and the like.
        split: "train" or "test".

    Returns:
        All its pictures.

    Raises:
        IdxError: a file is missing, damaged, or holds something else; or the two do not fit.
    """
    image, label = (read_idx(folder / name) for name in FILES[split])
    if image.ndim != 3 or label.ndim != 1 or len(image) != len(label):
        raise IdxError(
            f"{folder}: {split} has pictures of shape {list(image.shape)} and labels of shape "
            f"{list(label.shape)}; get both files anew"
        )
    return Pictures(image, label.astype(np.int32))


def read_idx(path: Path) -> np.ndarray:
    """Read a file of bytes: two zeros, 8 for bytes, the number of axes, their lengths, the values.

    Raises:
        IdxError: there is no such file, or it is not of that layout.
    """
    try:
        content = gzip.decompress(path.read_bytes())
    except FileNotFoundError as error:
        raise IdxError(f"{path}: no such file; put it there") from error
    except (OSError, EOFError, zlib.error) as error:
        raise IdxError(f"{path}: cannot be unpacked ({error}); get it anew") from error
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise IdxError(f"{path}: does not begin as an IDX file of bytes does; get it anew")
    head = 4 + 4 * content[3]
    shape = np.frombuffer(content[4:head].ljust(head - 4, b"\0"), ">u4").astype(np.int64)
    if len(content) != head + shape.prod():
        raise IdxError(
            f"{path}: {len(content)} bytes, where a file of shape {shape.tolist()} has "
            f"{head + shape.prod()}; get it anew"
        )
    return np.frombuffer(content, np.uint8, offset=head).reshape(shape)
