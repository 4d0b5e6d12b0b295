"""Files that are whole or not there, and files that are not trusted."""

import io
import os
import stat
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
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


def _bounded(content: bytes, most: int) -> bytes:
    if len(content) > most:
        raise FileFault(_too_long(most))
    return content


def _too_long(most: int) -> str:
    return f"it holds more than {most / MIB:.4g} MiB"
