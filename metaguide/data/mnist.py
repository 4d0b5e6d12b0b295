"""MNIST and Fashion-MNIST, each with 70,000 pictures of 28 by 28 pixels in ten classes.

They come from the original IDX files, or through TensorFlow Datasets.
"""

import gzip
import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32, UInt8
from PIL import Image

from metaguide.data.tfds import DataSet, Examples, encoded, read_prepared
from metaguide.files import MIB, FileFault, read_regular, unpacked

FILES = {
    split: (f"{name}-images-idx3-ubyte.gz", f"{name}-labels-idx1-ubyte.gz")
    for split, name in {"train": "train", "test": "t10k"}.items()
}

_SITES = {
    "mnist": "https://storage.googleapis.com/cvdf-datasets/mnist/",
    "fashion_mnist": "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
}


MOST = 256 * MIB
"""The most bytes of a file, packed or not: 5 times the largest original."""

CLASSES, SIDE = 10, 28


class MnistError(ValueError):
    """The pictures cannot be provided as requested; the message names the file and the fix."""


class Pictures(NamedTuple):
    """Pictures and their classes.

    Attributes:
        image: uint8 [rows, height, width].
        label: int32 [rows].
    """

    image: UInt8[np.ndarray, "rows height width"]
    label: Int32[np.ndarray, " rows"]


def read_pictures(folder: Path | None, name: str, split: str) -> Pictures:
    """Read a split from the IDX files if they exist, otherwise through TensorFlow Datasets.

    Both give the same rows in different orders, since TensorFlow Datasets shuffles.

    Args:
        folder: the folder that METAGUIDE_DATA_DIR names. It holds the folder `name` with the IDX
            files, or the data set as TensorFlow Datasets prepared it or will prepare it. None:
            TensorFlow Datasets' own folder.
        name: "mnist" or "fashion_mnist"; any name with IDX files.
        split: "train" or "test".

    Returns:
        All pictures of the split.

    Raises:
        MnistError: the pictures can be read from neither source.
    """
    if folder is not None and not folder.is_dir():
        raise MnistError(
            f"{folder}: no such folder; set METAGUIDE_DATA_DIR to the one that holds {name}/"
        )
    if folder is not None and any(
        (folder / name / file).exists() for files in FILES.values() for file in files
    ):
        return read_files(folder / name, split)
    return read_tfds(folder, name, split)


def read_files(folder: Path, split: str) -> Pictures:
    """Read a split from the IDX files.

    Args:
        folder: folder that holds train-images-idx3-ubyte.gz and the like.
        split: "train" or "test".

    Returns:
        All pictures of the split, in the order of the files.

    Raises:
        MnistError: a file is missing, damaged or of another kind, or pictures and labels do not
            match.
    """
    return _pictures(*(folder / name for name in FILES[split]), where=f"{folder}: {split}")


def read_tfds(folder: Path | None, name: str, split: str, download: bool = True) -> Pictures:
    """Read a split through TensorFlow Datasets, without TensorFlow.

    Args:
        folder: TensorFlow Datasets' folder of all data sets; None: its default.
        name: "mnist" or "fashion_mnist".
        split: "train" or "test".
        download: whether to download and prepare a missing data set.

    Returns:
        All pictures of the split, in the order of TensorFlow Datasets, which shuffles.

    Raises:
        MnistError: `name` is unknown, or the data set is missing and `download` is False, or it
            cannot be downloaded or read.
    """
    put = (
        f"put {FILES['train'][0]} and so on into {name}/ in the folder that "
        "METAGUIDE_DATA_DIR names"
    )
    if name not in _SITES:
        raise MnistError(f"there are no pictures {name!r}; take {' or '.join(_SITES)}, or {put}.")

    def read(builder: Any, where: str) -> Pictures:
        examples = list(encoded(builder, split))
        image = np.stack([_decoded(example["image"]) for example in examples])
        return Pictures(image, np.array([example["label"] for example in examples], np.int32))

    urls = {file: _SITES[name] + file for files in FILES.values() for file in files}
    data_set = DataSet(name, name, urls, _generators, put, MnistError)
    return read_prepared(data_set, folder, read, download)


def read_idx(path: Path) -> np.ndarray:
    """Read an IDX file of bytes: two zeros, an 8, the number of axes, their lengths, the values.

    Raises:
        MnistError: the file does not exist, or does not have this layout.
    """
    try:
        packed = io.BytesIO(read_regular(path, MOST))
        content = unpacked(gzip.GzipFile(fileobj=packed), MOST)
    except FileNotFoundError as error:
        raise MnistError(f"{path}: no such file; put it there") from error
    except FileFault as error:
        raise MnistError(f"{path}: cannot be unpacked ({error}); get it again") from error
    return parse_idx(path, content)


def parse_idx(path: Path, content: bytes) -> np.ndarray:
    """Return the array of an IDX file's unpacked bytes; `path` is for messages.

    Raises:
        MnistError: they do not have the layout of `read_idx`.
    """
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise MnistError(f"{path}: does not begin like an IDX file of bytes; get it again")
    head = 4 + 4 * content[3]
    shape = np.frombuffer(content[4:head].ljust(head - 4, b"\0"), ">u4").tolist()
    size = math.prod(shape)  # Python integers, which do not overflow
    if len(content) != head + size:
        raise MnistError(
            f"{path}: {len(content)} bytes, where a file of shape {shape} has {head + size}; "
            "get it again"
        )
    if size == 0 or not 0 < len(shape) < 5:
        raise MnistError(
            f"{path}: of shape {shape}, which holds no pictures or labels; get it again"
        )
    return np.frombuffer(content, np.uint8, offset=head).reshape(shape)


def _pictures(images: Path, labels: Path, where: str) -> Pictures:
    image, label = read_idx(images), read_idx(labels)
    if image.ndim != 3 or label.ndim != 1 or len(image) != len(label):
        raise MnistError(
            f"{where} has pictures of shape {list(image.shape)} and labels of shape "
            f"{list(label.shape)}; get both files again"
        )
    if label.max() >= CLASSES:
        row = int((label >= CLASSES).argmax())
        raise MnistError(
            f"{labels}: the label of picture {row} is {label[row]}, and there are {CLASSES} "
            "classes, 0 to 9; get it again"
        )
    return Pictures(image, label.astype(np.int32))


def _generators(builder: Any, files: Mapping[str, Path]) -> dict[str, Examples]:
    """Replace TensorFlow Datasets' `_split_generators`, reading the original files."""
    del builder
    return {split: _examples(*(files[name] for name in names)) for split, names in FILES.items()}


def _examples(images: Path, labels: Path) -> Examples:
    pictures = _pictures(images, labels, where=f"{images}, {labels}:")
    for index, (image, label) in enumerate(zip(*pictures, strict=True)):
        # Given an array, TensorFlow Datasets would need TensorFlow to make the PNG.
        yield index, {"image": Image.fromarray(image), "label": int(label)}


def _decoded(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as image:
        if image.size != (SIDE, SIDE):  # checked before any pixel is unpacked
            raise ValueError(f"a picture of {image.width} by {image.height} pixels")
        return np.asarray(image.convert("L"))
