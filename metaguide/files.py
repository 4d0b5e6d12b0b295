"""Files that are whole or not there, and files that are not trusted."""

import fcntl
import io
import json
import os
import shlex
import socket
import stat
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np

MIB = 2**20

LOCK = ".lock"
"""In a folder that a process holds, or held: which one, for those that come after it."""

OF, CRC32 = "of", "crc32"
"""Among the arrays of a file: what it is of, and the checksum of all the others."""


class FileFault(ValueError):
    """A file cannot be read as what it should be; readers say of what kind, and how to fix it."""


class FolderHeld(ValueError):
    """Another process works in a folder."""


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
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


def write_json(path: Path, content: Any) -> None:
    """Write plain JSON, whole or not at all; the folder is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write((json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def read_json(path: Path, most: int = MIB) -> dict[str, Any]:
    """Return the object that a JSON file holds.

    Args:
        path: of the file.
        most: bytes that are read.

    Raises:
        FileNotFoundError: it is not there.
        FileFault: it is no such file, or larger than `most`.
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
    """Hold a folder against all other processes while the `with` lasts, however it ends.

    The system lets go of it even where the process is killed, so that nobody has to clean up.

    Args:
        folder: made where it is missing.

    Raises:
        FolderHeld: another process holds it; names that one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # Kept when the `with` ends: where it was deleted, two processes could hold a file each.
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
        path: of the file, or a link to it.
        most: bytes that are read.

    Raises:
        FileNotFoundError: it is not there.
        FileFault: it is a folder, a pipe or a device, which may never end; it is longer than
            `most`; or the system does not let it be read.
    """
    try:
        # A pipe that nobody writes to would let open() wait, and a folder is no file for it.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise FileFault("it is no regular file")
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
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


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], of: str = "") -> None:
    """Write arrays as an npz file with a checksum, whole or not at all.

    Args:
        path: of the file; its folder is made where it is missing.
        arrays: by name.
        of: what they are of, such as the cell of a table, which `read_arrays` compares.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {OF: np.array(of), CRC32: np.array(checksum({**arrays, OF: np.array(of)}))}
    with atomic_write(path) as file:
        np.savez_compressed(file, allow_pickle=False, **about, **arrays)


def read_arrays(path: Path, most: int, of: str | Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Return the arrays of an npz file; no pickle is read.

    Args:
        path: of the file. One without a checksum was written before there were any, and is taken
            as it is.
        most: bytes that all arrays take together.
        of: what they have to be of, or one of several names for it; anything where empty.

    Raises:
        FileNotFoundError: it is not there.
        FileFault: it is no such file, damaged, of something else, or larger than `most`.
    """
    content = io.BytesIO(read_regular(path, most))
    # Of bytes that somebody has changed the libraries raise errors of a dozen kinds.
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
    """Return CRC-32 over the names, dtypes, shapes and bytes of arrays, in the order of the names.

    Args:
        arrays: by name.
        layout: whether dtypes and shapes count; where something else says what they are, not.
    """
    found = 0
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        about = f" {array.dtype.str} {np.shape(arrays[name])} " if layout else ""
        found = zlib.crc32(f"{name}{about}".encode(), found)
        found = zlib.crc32(array.tobytes(), found)
    return found


def fits(known: Any, arrays: Mapping[str, np.ndarray]) -> bool:
    """Return whether a checksum from a file is that of arrays, with their layout or, as before."""
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
