"""Files as importers read them: one line at a time, packed or not, whatever they hold."""

import codecs
import gzip
import io
import re
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, count
from pathlib import Path
from typing import Any, NamedTuple

from metaguide.data.rows import CatalogueError
from metaguide.files import MIB, FileFault, is_left_by_system

LONGEST_LINE = 16 * MIB
"""The most characters of a line."""

_LARGEST_EXPANSION = 200
"""A packed file may expand to so many times its size; texts expand to 5 to 30 times."""

_ALWAYS_EXPANDED = 64 * MIB
"""Any packed file may expand to so many bytes."""


class Place(NamedTuple):
    """Where a row stands.

    Attributes:
        file: path of the file.
        line: line or row, counted from 1; 0 for the file as a whole.
    """

    file: str
    line: int

    def __str__(self) -> str:
        """Return "file:line"."""
        return f"{self.file}:{self.line}" if self.line else self.file


class Row(NamedTuple):
    """A row for a catalogue.

    Attributes:
        part: the part of a domain that it belongs to, such as "reviews".
        values: its fields, as a line of the catalogue's files has them.
        place: where it stands.
        remarks: what its conversion took for granted.
        may_repeat: whether later rows of its id say the same again, as every review of a table
            names its product.
    """

    part: str
    values: dict
    place: Place
    remarks: tuple[str, ...] = ()
    may_repeat: bool = False


class Reject(NamedTuple):
    """A line, or a part of it, that cannot be read.

    Attributes:
        reason: what is wrong, the same words for all such lines.
        place: where it stands.
        detail: what this line holds instead, and the mend; "" if the reason says all.
        raw: the line.
    """

    reason: str
    place: Place
    detail: str = ""
    raw: str = ""


class Line(NamedTuple):
    """A line of a text file.

    Attributes:
        number: counted from 1.
        text: the line with its line break; undecodable bytes are lone surrogates.
        fault: why it cannot be used; "" if it can.
    """

    number: int
    text: str
    fault: str = ""


TOO_LONG = f"a line of more than {LONGEST_LINE / MIB:g} MiB"
_MARKS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
"""Byte order marks, and the encodings that they tell."""

_NO_ACCIDENT = 8
"""From so many characters on that are not ASCII, valid UTF-8 is no accident."""

_DAMAGE = (OSError, EOFError, ValueError, NotImplementedError, zipfile.BadZipFile, zlib.error)
"""What unpacking and decoding raise on tampered bytes."""

ENDS_EARLY = "the file is damaged or ends early"


def made_id(place: Place) -> str:
    """Return the id of a row that has none: the name of its file, and its line."""
    return f"{name_of(Path(place.file))}-{place.line}"


def name_of(path: Path) -> str:
    """Return the name of a file without endings that name a format.

    Others stay: `books.train` and `books.test` are two files.
    """
    return _FORMAT.sub("", path.name)


def names_of(paths: Sequence[Path]) -> list[str]:
    """Return a name of its own for each file: those after the first of one name have a number."""
    found: dict[str, None] = {}
    for path in paths:
        name = name_of(path)
        numbered = chain([name], (f"{name}.{number}" for number in count(2)))
        found[next(one for one in numbered if one not in found)] = None
    return list(found)


_FORMAT = re.compile(r"(\.(csv|tsv|txt|jsonl?|ndjson|parquet))?(\.(gz|zip))?$", re.IGNORECASE)


def within(files: Iterable[Path]) -> list[Path]:
    """Return files, and in the place of a folder those in it."""
    return [path for one in files for path in (sorted(one.iterdir()) if one.is_dir() else [one])]


def read_lines(
    path: Path, encoding: str = "utf-8", suffixes: tuple[str, ...] = (), is_guess: bool = False
) -> Iterator[Line]:
    """Yield the lines of a file, of one packed by gzip, or of a member of a zip.

    Lines end at a newline only, since texts hold Unicode's other separators. A file that is
    damaged or cut yields a last line without text, whose fault says so.

    Args:
        path: path of the file. For a zip it may go on inside, as in `shop.zip/reviews.csv`, and
            must if several members have one of the suffixes.
        encoding: the encoding; a byte order mark of UTF-8 or UTF-16 overrides it.
        suffixes: how the member of a zip may end; any if empty.
        is_guess: whether nobody gave the encoding, so that a file in UTF-8 is read as such.

    Raises:
        CatalogueError: it cannot be opened, or is in UTF-8 where another encoding is given.
    """
    with opened(path, suffixes) as file:
        start = _beginning(file)
        marked = next((name for mark, name in _MARKS.items() if start.startswith(mark)), "")
        if not marked and _is_unlike(start, encoding):
            if not is_guess:
                raise CatalogueError(
                    f"{path}: is in UTF-8, not {encoding}; leave the encoding out."
                )
            marked = "utf-8"
        yield from _decoded(file, marked or encoding)


@contextmanager
def opened(path: Path, suffixes: tuple[str, ...] = ()) -> Iterator[io.BufferedReader]:
    """Open a file for reading its unpacked bytes; the arguments are those of `read_lines`."""
    archive, member = _inside(path)
    try:
        mode = archive.stat().st_mode
    except OSError as error:
        raise CatalogueError(
            f"{archive}: cannot be read ({error.strerror}); give a file that exists."
        ) from error
    if not stat.S_ISREG(mode):
        raise CatalogueError(f"{archive}: is no regular file; give one.")
    with open(archive, "rb") as file:
        start = file.read(4)
        file.seek(0)
        if start[:2] == b"\x1f\x8b":
            with gzip.open(file) as unpacked:
                yield io.BufferedReader(_Bounded(unpacked, file.tell), MIB)
        elif start == b"PK\x03\x04" and not path.name.endswith((".parquet", ".xlsx")):
            try:
                with zipfile.ZipFile(file) as packed:
                    info = _member(archive, packed, member, suffixes)
                    with packed.open(info) as unpacked:
                        bounded = _Bounded(unpacked, lambda: info.compress_size)
                        yield io.BufferedReader(bounded, MIB)
            except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
                raise CatalogueError(
                    f"{archive}: cannot be unpacked ({error}); pack it again."
                ) from error
        else:
            yield file


class _Bounded(io.RawIOBase):
    """A packed stream that ends with a fault where it expands beyond all measure."""

    def __init__(self, unpacked: Any, consumed: Callable[[], int]):
        self.unpacked, self.consumed, self.made = unpacked, consumed, 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read into a buffer.

        Raises:
            FileFault: the stream expands too far.
        """
        # `read` would lose what comes before the damage.
        content = self.unpacked.read1(len(buffer))
        self.made += len(content)
        if self.made > max(_ALWAYS_EXPANDED, _LARGEST_EXPANSION * self.consumed()):
            raise FileFault(f"it expands to more than {_LARGEST_EXPANSION} times its size")
        buffer[: len(content)] = content
        return len(content)


def _inside(path: Path) -> tuple[Path, str]:
    """Return the path of a file, and the member of it that the path goes on to if it is a zip."""
    for parent in path.parents:
        if parent.suffix.lower() == ".zip" and parent.is_file():
            return parent, path.relative_to(parent).as_posix()
    return path, ""


def _member(
    path: Path, packed: zipfile.ZipFile, name: str, suffixes: tuple[str, ...]
) -> zipfile.ZipInfo:
    """Return the member of a zip to read."""
    members = {
        one.filename: one
        for one in packed.infolist()
        if not one.is_dir() and not is_left_by_system(one.filename)
    }
    if name:
        if name not in members:
            raise CatalogueError(f"{path}: holds no {name!r}; it holds {_listed(members)}.")
        return members[name]
    fitting = [one for one in members if one.lower().endswith(suffixes or ("",))]
    if len(fitting) != 1:
        raise CatalogueError(
            f"{path}: holds {_listed(fitting or members)}; name the one to read, as in "
            "archive.zip/name."
        )
    return members[fitting[0]]


def _listed(names: Iterable[str]) -> str:
    known = list(names)
    return ", ".join(known[:5]) + (f" and {len(known) - 5} more" if len(known) > 5 else "")


def is_marked(path: Path) -> bool:
    """Return whether a file begins with a byte order mark; of a zip, whether its only member does.

    Args:
        path: as in `read_lines`.
    """
    try:
        with opened(path) as file:
            return _beginning(file).startswith(tuple(_MARKS))
    except CatalogueError:
        return False


def _beginning(file: io.BufferedReader) -> bytes:
    """Return the first bytes of a file without reading on; b"" if it is damaged."""
    try:
        return file.peek(MIB)
    except _DAMAGE:
        return b""


def _is_unlike(start: bytes, encoding: str) -> bool:
    """Return whether a file is in UTF-8 though another encoding is given.

    Other encodings of texts that are not ASCII are hardly ever valid UTF-8.
    """
    if codecs.lookup(encoding).name in ("utf-8", "utf-8-sig") or start.isascii():
        return False
    try:
        decoded = codecs.getincrementaldecoder("utf-8")().decode(start)
    except UnicodeDecodeError:
        return False
    return sum(not character.isascii() for character in decoded) >= _NO_ACCIDENT


def _decoded(file: io.BufferedReader, encoding: str) -> Iterator[Line]:
    number = 0
    fault = f"not in {encoding}; say in which encoding it is, such as gb18030"
    try:
        errors = "strict" if "16" in encoding or "32" in encoding else "surrogateescape"
        with io.TextIOWrapper(file, encoding=encoding, errors=errors, newline="\n") as reader:
            while line := reader.readline(LONGEST_LINE):
                number += 1
                if len(line) == LONGEST_LINE and not line.endswith("\n"):
                    while (more := reader.readline(MIB)) and not more.endswith("\n"):
                        pass
                    yield Line(number, line[:1000], TOO_LONG)
                elif line.isascii() or _is_text(line):
                    yield Line(number, line)
                else:
                    yield Line(number, line, fault)
    except _DAMAGE as error:
        yield Line(number + 1, "", f"{ENDS_EARLY} ({error or type(error).__name__})")


def _is_text(line: str) -> bool:
    try:
        line.encode()
    except UnicodeEncodeError:
        return False
    return True
