"""Pictures with classes: IDX files, as of MNIST, and folders of pictures, one for each class."""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from metaguide.data.importers.source import Place, Reject, Row, opened
from metaguide.data.importers.tables import Options, Reading
from metaguide.data.mnist import MnistError, parse_idx
from metaguide.data.rows import CatalogueError
from metaguide.files import MIB, FileFault, unpacked

MOST = 1024 * MIB
"""The most bytes of an IDX file, unpacked."""


def folders(files: Sequence[Path], options: Options) -> Reading:
    """Read folders of pictures; the name of a folder is the category of the pictures in it.

    Args:
        files: folders that hold a folder for each category.
        options: nothing counts.

    Raises:
        CatalogueError: there are no such folders.
    """
    del options
    for root in files:
        if not root.is_dir():
            raise CatalogueError(f"{root}: no folder; give one that holds a folder per category.")

    def rows() -> Iterator[Row | Reject]:
        for root in files:
            for folder in sorted(one for one in root.iterdir() if one.is_dir()):
                if folder.name.startswith("."):
                    continue
                for path in sorted(one for one in folder.rglob("*") if one.is_file()):
                    product = {
                        "id": path.relative_to(root).as_posix(),
                        "title": "",
                        "category": folder.name,
                        "image": path,
                    }
                    yield Row("products", product, Place(str(path), 0))

    return Reading(rows())


def idx(files: Sequence[Path], options: Options) -> Reading:
    """Read pictures and their classes from IDX files, packed or not.

    Args:
        files: a file of pictures, `...images-idx3-ubyte`, and one of labels, or several pairs.
        options: `columns`, the names of the classes; by default their numbers.

    Raises:
        CatalogueError: the files are not of this format, or not as many labels as pictures.
    """
    arrays = {path: _array(path) for path in files}
    pictures = [path for path in files if arrays[path].ndim == 3]
    labels = [path for path in files if arrays[path].ndim == 1]
    if not pictures or len(pictures) != len(labels) or len(pictures) + len(labels) < len(files):
        raise CatalogueError(
            f"{files[0]}: {len(pictures)} files of pictures and {len(labels)} of labels; give one "
            "file of labels for each file of pictures."
        )
    for these, those in zip(pictures, labels, strict=True):
        if len(arrays[these]) != len(arrays[those]):
            raise CatalogueError(
                f"{those}: {len(arrays[those])} labels, and {these} holds {len(arrays[these])} "
                "pictures; give the two of one set."
            )

    def rows() -> Iterator[Row | Reject]:
        for these, those in zip(pictures, labels, strict=True):
            pairs = zip(arrays[these], arrays[those], strict=True)
            for number, (picture, label) in enumerate(pairs, 1):
                place = Place(str(these), number)
                if options.columns and label >= len(options.columns):
                    yield Reject("products: a class without a name", place, f"class {label}")
                    continue
                named = options.columns[label] if options.columns else str(label)
                product = {"id": f"{these.name.split('-')[0]}-{number}", "title": ""}
                yield Row("products", {**product, "category": named, "image": _png(picture)}, place)

    return Reading(rows())


def _array(path: Path) -> np.ndarray:
    """Return the bytes of an IDX file, packed or not, in its shape."""
    try:
        with opened(path) as file:
            return parse_idx(path, unpacked(file, MOST))
    except FileFault as error:
        raise CatalogueError(f"{path}: {error}.") from error
    except MnistError as error:
        raise CatalogueError(f"{error}.") from error


def _png(picture: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, format="PNG")
    return stream.getvalue()
