"""Omniglot: 1,623 handwritten characters of 50 alphabets, each drawn by 20 people.

The pictures come from `omniglot_28x28.zip`, the 1-bit version of 28 by 28 pixels that few-shot code
uses, which includes Vinyals' split, or from the original through TensorFlow Datasets.
"""

import io
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from metaguide.data.tfds import DataSet, Examples, encoded, read_prepared
from metaguide.files import MIB, FileFault, is_left_by_system, read_regular, zip_members

ARCHIVE = "omniglot_28x28.zip"
DRAWINGS = 20
SIZE = 28
SPLITS = ("train", "validation", "test")

_MAML_SPLIT = (1100, 100, 423)
_PICTURE = re.compile(r"omniglot/images/([^/]+/[^/]+)/[^/.][^/]*\.png")
_SPLIT = re.compile(r"omniglot/splits/vinyals/(train|val|test)\.txt")
_CLASS = re.compile(r"([^/]+/[^/]+)/rot(000|090|180|270)")
_ANEW = "get it again"
_PUT = f"put {ARCHIVE} into the folder that METAGUIDE_DATA_DIR names"

_ORIGINAL = re.compile(
    r"images_\w+/(?P<alphabet>[^/]+)/character(?P<character>\d+)/(?P<file>(?P<label>\d+)_\d+\.png)"
)
_ORIGINAL_SIZE = 105
_ORIGINAL_URLS = {
    split: f"https://github.com/brendenlake/omniglot/raw/master/python/images_{name}.zip"
    for split, name in {
        "train": "background",
        "test": "evaluation",
        "small1": "background_small1",
        "small2": "background_small2",
    }.items()
}


MOST_ALL = 256 * MIB
"""The most bytes of an archive, packed or not, or of a folder's files: 50 times the original."""


class OmniglotError(ValueError):
    """Omniglot cannot be provided as requested; the message names the file and the fix."""


class Drawings(NamedTuple):
    """All drawings of some characters.

    Attributes:
        names: name "Alphabet/characterNN" of each character, sorted.
        images: uint8 [characters, 20, 28, 28]; ink is 255, paper 0.
    """

    names: tuple[str, ...]
    images: UInt8[np.ndarray, "characters 20 28 28"]


def read_drawings(folder: Path | None) -> Drawings:
    """Read Omniglot from the archive if it exists, otherwise through TensorFlow Datasets.

    Args:
        folder: the folder that METAGUIDE_DATA_DIR names. It holds `omniglot_28x28.zip`, the folder
            `omniglot` unzipped from it, or the data set as TensorFlow Datasets prepared it or will
            prepare it. None: TensorFlow Datasets' own folder.

    Returns:
        The drawings of all characters.

    Raises:
        OmniglotError: none of these can be read.
    """
    archive = _archive(folder)
    return read_tfds(folder) if archive is None else read_archive(archive)


def read_archive(path: Path) -> Drawings:
    """Read the archive's pictures.

    Args:
        path: the zip, or the folder `omniglot` unzipped from it.

    Returns:
        The drawings in the order of their file names. Their pixels are 0 or 255.

    Raises:
        OmniglotError: the archive is missing, damaged or has another layout; names the member.
    """
    images = defaultdict(list)
    for found, content in _members(path, _PICTURE):
        images[found[1]].append(_ink(content, f"{path}: {found[0]}", SIZE))
    return _drawings(images, str(path))


def read_tfds(folder: Path | None, download: bool = True) -> Drawings:
    """Read Omniglot through TensorFlow Datasets, without TensorFlow.

    The original's 105 by 105 pixels are resized to 28 by 28 in greyscale with the Lanczos filter,
    as is common with torchvision; the archive's pixels have one bit. The drawings of a character
    come in the order of TensorFlow Datasets, which shuffles, not in that of the archive.

    Args:
        folder: TensorFlow Datasets' folder of all data sets; None: its default.
        download: whether to download and prepare a missing data set.

    Returns:
        The drawings of the background characters (TensorFlow Datasets' split "train") and the
        evaluation ones ("test") together.

    Raises:
        OmniglotError: the data set is missing and `download` is False, or it cannot be downloaded
            or read.
    """

    def read(builder: Any, where: str) -> Drawings:
        images = defaultdict(list)
        alphabets = builder.info.features["alphabet"]
        for split in ("train", "test"):
            for example in encoded(builder, split):
                alphabet = alphabets.int2str(example["alphabet"])
                name = f"{alphabet}/character{example['alphabet_char_id'] + 1:02d}"
                images[name].append(_ink(example["image"], f"{where}: {name}", _ORIGINAL_SIZE))
        return _drawings(images, where)

    data_set = DataSet("omniglot", "Omniglot", _ORIGINAL_URLS, _generators, _PUT, OmniglotError)
    return read_prepared(data_set, folder, read, download)


def random_split(characters: int, seed: int) -> dict[str, Int[np.ndarray, " some"]]:
    """Draw MAML's split: 1,100 characters for training, 100 for validation, 423 for testing.

    Args:
        characters: number of characters, 1,623.
        seed: seed of the split.

    Returns:
        The characters' indices for "train", "validation" and "test".

    Raises:
        OmniglotError: `characters` is not 1,623.
    """
    if characters != sum(_MAML_SPLIT):
        raise OmniglotError(
            f"MAML's split is of all {sum(_MAML_SPLIT)} characters, and there are {characters}; "
            f"{_ANEW}, or use the split of Vinyals."
        )
    order = np.random.default_rng(seed).permutation(characters).astype(np.int32)
    parts = np.split(order, np.cumsum(_MAML_SPLIT)[:-1])
    return dict(zip(SPLITS, parts, strict=True))


def vinyals_split(
    folder: Path | None, names: Sequence[str]
) -> dict[str, Int[np.ndarray, "classes 2"]]:
    """Read the split of Vinyals et al., whose classes are characters rotated by a fixed angle.

    Args:
        folder: as in `read_drawings`; it must hold the archive, which includes the split.
        names: the characters' names, `Drawings.names`.

    Returns:
        For "train", "validation" and "test", one row per class: the character's index into `names`
        and its quarter turns, 0 to 3. `table(drawings, *classes.T)` makes a table of it.

    Raises:
        OmniglotError: the archive or the split is missing, or a line does not name a character.
    """
    path = _archive(folder)
    if path is None:
        raise OmniglotError(
            "the split of Vinyals is part of the archive; TensorFlow Datasets has none; "
            f"{_PUT}, or use the random split."
        )
    places = {name: place for place, name in enumerate(names)}
    parts: dict[str, np.ndarray] = {}
    for found, content in _members(path, _SPLIT):
        classes = []
        for number, line in enumerate(content.decode(errors="replace").splitlines(), 1):
            if not line.strip():
                continue
            known = _CLASS.fullmatch(line.strip())
            if known is None or known[1] not in places:
                why = "no character/rotDDD" if known is None else "no such character is there"
                raise OmniglotError(f"{path}: {found[0]}:{number}: {line!r}: {why}; {_ANEW}.")
            classes.append((places[known[1]], int(known[2]) // 90))
        parts[found[1]] = np.array(classes, np.int32).reshape(-1, 2)
    for name in ("train", "val", "test"):
        if name not in parts:
            raise OmniglotError(f"{path}: no omniglot/splits/vinyals/{name}.txt; {_ANEW}.")
    return dict(zip(SPLITS, (parts[name] for name in ("train", "val", "test")), strict=True))


def table(
    drawings: Drawings,
    characters: Int[np.ndarray, " classes"],
    turns: Int[np.ndarray, " classes"] | None = None,
) -> dict[str, np.ndarray]:
    """Build a table of some classes for `balanced_sampler`, in one domain.

    Each picture is stored once.

    Args:
        drawings: drawings of all characters.
        characters: the character of each class, as an index into `drawings`.
        turns: the quarter turns of each class; None for random turns in each episode, as in MAML.

    Returns:
        `image` uint8 [1, characters, 20, 28, 28]; `character` int32 [1, classes], indices into it;
        and `turns` int32 [1, classes], -1 for random turns.
    """
    stored, place = np.unique(characters, return_inverse=True)
    fixed = np.full(len(characters), -1) if turns is None else turns
    return {
        "image": drawings.images[stored][None],
        "character": place.astype(np.int32)[None],
        "turns": fixed.astype(np.int32)[None],
    }


def _archive(folder: Path | None) -> Path | None:
    if folder is None:
        return None
    if not folder.is_dir():
        raise OmniglotError(
            f"{folder}: no such folder; set METAGUIDE_DATA_DIR to the one that holds {ARCHIVE}."
        )
    if (folder / ARCHIVE).exists():
        return folder / ARCHIVE
    # TensorFlow Datasets' folder is also called `omniglot`.
    return folder / "omniglot" if (folder / "omniglot" / "images").is_dir() else None


def _members(path: Path, pattern: re.Pattern[str]) -> Iterator[tuple[re.Match[str], bytes]]:
    """Yield each member whose name matches, with its content, sorted by name."""
    where = str(path)
    try:
        if path.is_dir():
            left = MOST_ALL
            for file in sorted(path.rglob("*")):
                name = f"omniglot/{file.relative_to(path).as_posix()}"
                found = pattern.fullmatch(name)
                if found and not is_left_by_system(name):
                    where = f"{path}: {name}"
                    content = read_regular(file, left)
                    left -= len(content)
                    yield found, content
            return
        members = zip_members(read_regular(path, MOST_ALL), MOST_ALL)
        for name in sorted(members):
            if found := pattern.fullmatch(name):
                where = f"{path}: {name}"
                yield found, members[name]()
    except FileNotFoundError as error:
        raise OmniglotError(
            f"{where}: no such file; {_PUT}. If that folder has none, TensorFlow Datasets "
            "downloads Omniglot."
        ) from error
    except (OSError, FileFault) as error:
        raise OmniglotError(f"{where}: cannot be read ({error}); {_ANEW}.") from error


def _ink(content: bytes, where: str, size: int) -> UInt8[np.ndarray, "28 28"]:
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.size != (size, size):  # checked before any pixel is unpacked
                raise OmniglotError(
                    f"{where}: {image.width}x{image.height}, not {size}x{size}; {_ANEW}."
                )
            grey = image.convert("L")
    except OmniglotError:
        raise
    except Exception as error:  # Pillow raises many kinds of errors for a broken PNG
        raise OmniglotError(f"{where}: broken picture ({error}); {_ANEW}.") from error
    if size != SIZE:
        grey = grey.resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    return 255 - np.asarray(grey)


def _drawings(images: Mapping[str, Sequence[np.ndarray]], where: str) -> Drawings:
    if not images:
        raise OmniglotError(f"{where}: no picture of a character in it; {_ANEW}.")
    for name, some in images.items():
        if len(some) != DRAWINGS:
            raise OmniglotError(
                f"{where}: {name} has {len(some)} drawings, not {DRAWINGS}; {_ANEW}."
            )
    names = tuple(sorted(images))
    return Drawings(names, np.stack([np.stack(images[name]) for name in names]))


def _generators(builder: Any, archives: Mapping[str, Path]) -> dict[str, Examples]:
    """Replace TensorFlow Datasets' `_split_generators`, reading the original zips."""
    alphabets, labels = set(), {}
    for path in archives.values():
        for found in map(_ORIGINAL.fullmatch, _original(path)):
            if found:
                alphabets.add(found["alphabet"])
                labels[int(found["label"])] = _label(found)
    builder.info.features["alphabet"].names = sorted(alphabets)
    builder.info.features["label"].names = [labels[number] for number in sorted(labels)]
    return {split: _examples(path) for split, path in archives.items()}


def _original(path: Path) -> Mapping[str, Callable[[], bytes]]:
    return zip_members(read_regular(path, MOST_ALL), MOST_ALL)


def _examples(path: Path) -> Examples:
    members = _original(path)
    for found in map(_ORIGINAL.fullmatch, members):
        if found:
            # The original keys, since they determine the order of the examples.
            yield (
                f"{_label(found)}_{found['file']}",
                {
                    "image": io.BytesIO(members[found[0]]()),
                    "alphabet": found["alphabet"],
                    "alphabet_char_id": int(found["character"]) - 1,
                    "label": _label(found),
                },
            )


def _label(found: re.Match[str]) -> str:
    return f"{found['alphabet']}_{int(found['character']) - 1}"
