"""Files that are whole or not there, and files that are not trusted."""

import io
import json
import os
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np

MIB = 2**20


class FileFault(ValueError):
    """A file cannot be read as what it should be; readers say of what kind, and how to mend it."""


@contextmanager
def whole(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that takes its name when the `with` ends; after an error nothing has changed.

    Args:
        path: of the file; its folder is there.

    Yields:
        The file, open for writing bytes.
    """
    descriptor, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
        os.chmod(part, 0o644)
        os.replace(part, path)
    except BaseException:
        os.unlink(part)
        raise


def read_regular(path: Path, most: int) -> bytes:
    """Return the content of a regular file.

    Args:
        path: of the file, or a link to it.
        most: bytes that are read.

    Raises:
        FileNotFoundError: it is not there.
        FileFault: it is a folder, a pipe or a device, which may never end; it is longer than
            `most`; or the system does not let it be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise FileFault("it is no regular file")
            content = file.read(most + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise FileFault(str(error)) from error
    return _bounded(content, most)


def unpacked(file: Any, most: int) -> bytes:
    """Return the content of a packed stream, of which a small file may hold gigabytes.

    Args:
        file: open for reading bytes; it unpacks them as they are read.
        most: bytes that are unpacked.

    Raises:
        FileFault: it is longer than `most`, or damaged.
    """
    try:
        content = file.read(most + 1)
    # zlib.error, EOFError, BadZipFile, RuntimeError of an encrypted member, NotImplementedError
    # of a way to pack that Python does not know.
    except Exception as error:
        raise FileFault(f"it cannot be unpacked: {error}") from error
    return _bounded(content, most)


def is_left_by_system(name: str) -> bool:
    """Return whether a file is macOS's or Windows' own, left in a folder or archive by its viewer.

    Args:
        name: of the file, or its path in an archive.
    """
    *folders, last = PurePosixPath(name).parts or ("",)
    return (
        "__MACOSX" in (*folders, last)
        or last.startswith("._")
        or last in (".DS_Store", "Thumbs.db", "desktop.ini")
    )


def zip_members(content: bytes, most: int) -> dict[str, Callable[[], bytes]]:
    """Return what reads each file in a zip, without the folders and the files that macOS adds.

    Args:
        content: of the zip.
        most: bytes that all members unpack to together.

    Returns:
        By name, in the order of the zip: what returns the member's content, or raises FileFault.

    Raises:
        FileFault: it is no zip, damaged, larger than `most`, or has a name twice.
    """
    try:
        archive = zipfile.ZipFile(io.BytesIO(content))
        members = [one for one in archive.infolist() if not one.is_dir()]
    # Of bytes that somebody has changed the library raises errors of many kinds.
    except Exception as error:
        raise FileFault(f"no zip, or a damaged one: {error or type(error).__name__}") from error
    if sum(member.file_size for member in members) > most:
        raise FileFault(_too_long(most))
    kept: dict[str, Callable[[], bytes]] = {}
    for member in members:
        if is_left_by_system(member.filename):
            continue
        if member.filename in kept:
            raise FileFault(f"it has two members {member.filename!r}")
        kept[member.filename] = partial(_member, archive, member)
    return kept


def read_json(path: Path, most: int) -> Any:
    """Return what a JSON file holds.

    Args:
        path: of the file.
        most: bytes that are read.

    Raises:
        FileNotFoundError: it is not there.
        FileFault: it is no regular file, longer than `most`, or not JSON.
    """
    content = read_regular(path, most)
    try:
        return json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise FileFault(f"not JSON: {error}") from error


def checksum(arrays: Mapping[str, np.ndarray]) -> int:
    """Return CRC-32 over the names, dtypes, shapes and bytes of arrays, in whatever order."""
    found = 0
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        found = zlib.crc32(f"{name} {array.dtype.str} {array.shape} ".encode(), found)
        found = zlib.crc32(array.tobytes(), found)
    return found


def read_arrays(path: Path, most: int) -> dict[str, np.ndarray]:
    """Return the arrays of an npz file; no pickle is read.

    Args:
        path: of the file.
        most: bytes that all arrays take together.

    Raises:
        FileNotFoundError: it is not there.
        FileFault: it is no such file, damaged, or larger than `most`.
    """
    content = io.BytesIO(read_regular(path, most))
    # Of bytes that somebody has changed the libraries raise errors of a dozen kinds.
    try:
        with zipfile.ZipFile(content) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > most:
            raise FileFault(_too_long(most))
        with np.load(content, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except FileFault:
        raise
    except Exception as error:
        raise FileFault(f"no arrays, or damaged ones: {error or type(error).__name__}") from error


def _member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    try:
        file = archive.open(member)
    except Exception as error:  # as many kinds as in `unpacked`
        raise FileFault(f"it cannot be unpacked: {error}") from error
    with file:
        return unpacked(file, member.file_size)


def _bounded(content: bytes, most: int) -> bytes:
    if len(content) > most:
        raise FileFault(_too_long(most))
    return content


def _too_long(most: int) -> str:
    return f"it holds more than {most / MIB:.4g} MiB"
