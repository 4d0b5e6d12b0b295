"""Atomic writing of files, and reading of untrusted files."""

import fcntl
import io
import json
import os
import shlex
import shutil
import socket
import stat
import sys
import tempfile
import uuid
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np

MIB = 2**20

LOCK = ".lock"
"""File in a held folder that names, for later processes, the process that holds or held it."""

OF, CRC32 = "of", "crc32"
"""Array in a file with the file's subject and the checksum of all other arrays."""


class FileFault(ValueError):
    """A file is not what it should be; readers add what that is and how to fix it."""


class FolderHeld(ValueError):
    """Another process works in a folder."""


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that gets its name when the `with` ends; after an error nothing has changed.

    Args:
        path: path of the file; its folder exists.

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


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Make a folder that gets its name when the `with` ends; after an error nothing has changed.

    Args:
        path: path of the folder. Its parent is created if missing; a folder of that name is
            replaced.

    Yields:
        The empty folder to fill, a hidden neighbour of `path`.
    """
    # Next to the target, so that the rename stays within one file system.
    target = path.resolve()
    mark = f".{target.name}.{uuid.uuid4().hex}"
    new, old = target.parent / f"{mark}.new", target.parent / f"{mark}.old"
    new.mkdir(parents=True)
    try:
        yield new
        try:
            if target.exists():
                os.replace(target, old)
            os.replace(new, target)
        except BaseException:
            if old.exists() and not target.exists():
                os.replace(old, target)
            raise
    finally:
        shutil.rmtree(new, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def would_be_lost(folder: Path, parts: Iterable[str], mark: str) -> str | None:
    """Return the name of something that replacing a folder would lose; None if there is nothing.

    Args:
        folder: a folder, or a path where there is none.
        parts: names of the files and folders that may be replaced.
        mark: the one of them without which the folder is another's.

    Raises:
        FileFault: it is no folder.
    """
    if not os.path.lexists(folder):
        return None
    if not folder.is_dir():
        raise FileFault("it is no folder")
    inside = {path.name for path in folder.iterdir() if not is_left_by_system(path.name)}
    others = sorted(inside - set(parts)) or (sorted(inside) if mark not in inside else [])
    return others[0] if others else None


def write_json(path: Path, content: Any) -> None:
    """Write plain JSON atomically; the folder is created if missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write((json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def read_json(path: Path, most: int = MIB) -> dict[str, Any]:
    """Return the object that a JSON file holds.

    Args:
        path: path of the file.
        most: largest size, in bytes.

    Raises:
        FileNotFoundError: the file does not exist.
        FileFault: it is not a JSON object, or larger than `most`.
    """
    try:
        found = json.loads(read_regular(path, most).decode())
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise FileFault(f"not JSON: {error}") from error
    if not isinstance(found, dict):
        raise FileFault(f"no JSON object but {found!r:.40}")
    return found


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Lock a folder against all other processes for the duration of the `with`.

    The system releases the lock even if the process is killed, so there is nothing to clean up.

    Args:
        folder: the folder; created if missing.

    Raises:
        FolderHeld: another process holds it; the message names that process.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # The file stays after the `with`: if it were deleted, two processes could each hold one.
    with open(folder / LOCK, "a+", encoding="utf-8", errors="replace") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise FolderHeld(
                f"{folder}: {file.read(500).strip() or 'another process'} works in it; wait for it "
                "to end, or give another folder"
            ) from None
        file.truncate(0)
        command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])[:300]
        file.write(f"process {os.getpid()} on {socket.gethostname()} ({command})\n")
        file.flush()
        yield


def read_regular(path: Path, most: int) -> bytes:
    """Return the content of a regular file.

    Args:
        path: path of the file, or of a link to it.
        most: largest size, in bytes.

    Raises:
        FileNotFoundError: the file does not exist.
        FileFault: it is longer than `most`, or a fault of `open_regular`.
    """
    with open_regular(path) as file:
        return _bounded(file.read(most + 1), most)


@contextmanager
def open_regular(path: Path) -> Iterator[IO[bytes]]:
    """Open a regular file for reading.

    Args:
        path: path of the file, or of a link to it.

    Yields:
        The file, open for reading bytes.

    Raises:
        FileNotFoundError: the file does not exist.
        FileFault: it is a folder, or a pipe or device, which may never end; or the system denies
            opening or reading it.
    """
    try:
        # open() would block on a pipe that nobody writes to, and fail on a folder.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise FileFault("it is no regular file")
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise FileFault("it is no regular file")
            yield file
    except FileNotFoundError:
        raise
    except OSError as error:
        raise FileFault(str(error)) from error


def unpacked(file: Any, most: int) -> bytes:
    """Return the content of a compressed stream; a small file may expand to gigabytes.

    Args:
        file: a file open for reading bytes, which decompresses them as they are read.
        most: largest decompressed size, in bytes.

    Raises:
        FileFault: it is longer than `most`, or damaged.
    """
    try:
        content = file.read(most + 1)
    # zlib.error, EOFError, BadZipFile, RuntimeError for an encrypted member, NotImplementedError
    # for a compression method that Python does not support.
    except Exception as error:
        raise FileFault(f"it cannot be unpacked: {error}") from error
    return _bounded(content, most)


def is_left_by_system(name: str) -> bool:
    """Return whether a file was left in a folder or archive by the macOS or Windows file manager.

    Args:
        name: name of the file, or its path in an archive.
    """
    *folders, last = PurePosixPath(name).parts or ("",)
    return (
        "__MACOSX" in (*folders, last)
        or last.startswith("._")
        or last in (".DS_Store", "Thumbs.db", "desktop.ini")
    )


def zip_members(content: bytes, most: int) -> dict[str, Callable[[], bytes]]:
    """Return a reader for each file in a zip, without folders and the files that macOS adds.

    Args:
        content: content of the zip.
        most: largest total decompressed size of the members, in bytes.

    Returns:
        Functions keyed by name, in the zip's order, that return the member's content or raise
        FileFault.

    Raises:
        FileFault: it is not a zip, is damaged, larger than `most`, or has a duplicate name.
    """
    try:
        archive = zipfile.ZipFile(io.BytesIO(content))
        members = [one for one in archive.infolist() if not one.is_dir()]
    # The library raises many kinds of errors on tampered bytes.
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


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], of: str = "") -> None:
    """Write arrays atomically as an npz file with a checksum.

    Args:
        path: path of the file; its folder is created if missing.
        arrays: arrays keyed by name.
        of: their subject, such as the cell of a table, which `read_arrays` compares.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {OF: np.array(of), CRC32: np.array(checksum({**arrays, OF: np.array(of)}))}
    with atomic_write(path) as file:
        np.savez_compressed(file, allow_pickle=False, **about, **arrays)


def read_arrays(path: Path, most: int, of: str | Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Return the arrays of an npz file; no pickle is read.

    Args:
        path: path of the file. An older file without a checksum is accepted.
        most: largest total size of the arrays, in bytes.
        of: the expected subject, or several names for it; anything if empty.

    Raises:
        FileNotFoundError: the file does not exist.
        FileFault: it is not an npz file, is damaged, of another subject, or larger than `most`.
    """
    content = io.BytesIO(read_regular(path, most))
    # The libraries raise a dozen kinds of errors on tampered bytes.
    try:
        with zipfile.ZipFile(content) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > most:
            raise FileFault(_too_long(most))
        with np.load(content, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        known = arrays.pop(CRC32, None)
        if known is not None and not fits(int(known), arrays):
            raise FileFault("its arrays are not those that were written")
        names = (of,) if isinstance(of, str) else of
        said = str(arrays.pop(OF)) if OF in arrays else None
        if names and said is not None and said not in names:
            raise FileFault(f"it is of {said}, and not of {names[0]}")
        return arrays
    except FileFault:
        raise
    except Exception as error:
        raise FileFault(f"no arrays, or damaged ones: {error or type(error).__name__}") from error


def checksum(arrays: Mapping[str, np.ndarray], layout: bool = True) -> int:
    """Return the CRC-32 of the names, dtypes, shapes and bytes of arrays, in the order of names.

    Args:
        arrays: arrays keyed by name.
        layout: whether dtypes and shapes count; False if they are known from elsewhere.
    """
    found = 0
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        about = f" {array.dtype.str} {np.shape(arrays[name])} " if layout else ""
        found = zlib.crc32(f"{name}{about}".encode(), found)
        found = zlib.crc32(array.tobytes(), found)
    return found


def fits(known: Any, arrays: Mapping[str, np.ndarray]) -> bool:
    """Return whether a file's checksum is that of the arrays, with layout or (older) without."""
    return known in (checksum(arrays), checksum(arrays, layout=False))


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
