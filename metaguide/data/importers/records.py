"""Records of tables: CSV, tab-separated, JSON lines and Parquet, each line as a mapping."""

import csv
import json
import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from metaguide.data.importers.source import (
    ENDS_EARLY,
    Line,
    Place,
    Reject,
    opened,
    read_lines,
)
from metaguide.data.rows import CatalogueError
from metaguide.files import MIB

Record = tuple[Place, Mapping[str, Any], str]
"""A record's place, its values keyed by column, and the line that it was read from."""

DELIMITERS = (",", "\t", ";", "|")

MOST_LINES = 1000
"""The most lines of one record of a CSV, since a text in quotes may hold line breaks; and how many
lines of JSON tell the columns."""

_MOST_PEEKED = 16 * MIB
"""How many characters of JSON are read ahead at most."""

BROKEN_QUOTES = (
    "quotes that are not closed or go on, or a field of more than 131,072 characters; if quotes "
    "are part of the texts, say so"
)

_DELIMITER_LINE = re.compile(r'\ufeff?"?sep=(.)"?[\r\n]*')

_PEEKED = 20
"""How many lines without a header tell the delimiter."""

_BATCH = 4096


class Table(NamedTuple):
    """A table that is read line by line.

    Attributes:
        columns: names of the columns; of JSON lines, those of the first lines.
        records: its records, and what cannot be read as one.
    """

    columns: tuple[str, ...]
    records: Iterator[Record | Reject]


def read_csv(
    path: Path,
    *,
    columns: Sequence[str] = (),
    delimiter: str = "",
    is_quoted: bool = True,
    encoding: str = "utf-8",
) -> Table:
    """Read a table of text.

    A record that breaks the format costs its first line only: reading goes on at the second.

    Args:
        path: path of the file.
        columns: names of the columns, of a file without a header.
        delimiter: what separates the fields; by default the one that a line "sep=;" before the
            header names, as Excel writes it, or the one that parts the first line best.
        is_quoted: whether a field in double quotes may hold delimiters and line breaks.
        encoding: the file's encoding.

    Raises:
        CatalogueError: the file has no first line, or two columns of one name.
    """
    lines = _Lines(read_lines(path, encoding, (".csv", ".tsv", ".txt")))
    first = lines.take()
    if first and not first.fault and (said := _DELIMITER_LINE.fullmatch(first.text)):
        delimiter = delimiter or said[1]
        first = lines.take()
    if first is None or first.fault:
        fault = first.fault if first else "is empty"
        raise CatalogueError(f"{path}: {fault}; or give another file.")
    if "\r" in first.text.removesuffix("\n").removesuffix("\r"):
        raise CatalogueError(
            f"{path}:1: a carriage return alone ends a line; save it with the usual line ends."
        )
    if not delimiter:
        delimiter = _delimiter(first, lines, len(columns), is_quoted)
    if columns:
        lines.give_back([first])
    else:
        found = _header(first.text, delimiter, is_quoted)
        if found is None:
            raise CatalogueError(f"{path}:1: broken quotes in the header; mend them.")
        named = enumerate((name.strip("\ufeff ") for name in found), 1)
        columns = [name or f"column {number}" for number, name in named]
    repeated = {name for name in columns if list(columns).count(name) > 1}
    if repeated:
        raise CatalogueError(
            f"{path}:1: two columns are named {min(repeated)!r}; give each its own name."
        )
    return Table(tuple(columns), _csv_records(path, lines, tuple(columns), delimiter, is_quoted))


def _delimiter(first: Line, lines: "_Lines", columns: int, is_quoted: bool) -> str:
    """Return the delimiter of a table: of those that give as many columns, or of the first line.

    Args:
        first: the first line.
        lines: the lines that follow.
        columns: number of columns of a file without a header; 0 if the first line is the header.
        is_quoted: as in `read_csv`.
    """
    peeked = [first]
    while columns and len(peeked) < _PEEKED and (line := lines.take()) is not None:
        peeked.append(line)
    lines.give_back(peeked[1:])

    def parts(one: str) -> tuple[int, int]:
        counts = [len(_header(line.text, one, is_quoted) or ()) for line in peeked]
        return counts.count(columns), counts[0]

    # Commas stand in texts as well.
    return max(DELIMITERS if not columns else reversed(DELIMITERS), key=parts)


def _header(text: str, delimiter: str, is_quoted: bool) -> list[str] | None:
    """Return the fields of a first line; None if its quotes are broken."""
    try:
        return _fields(text, delimiter, is_quoted)
    except csv.Error:
        return None


class _Lines:
    """Lines of which some can be given back."""

    def __init__(self, lines: Iterator[Line]):
        self._lines, self._again = lines, deque[Line]()

    def take(self) -> Line | None:
        """Return the next line, None at the end."""
        return self._again.popleft() if self._again else next(self._lines, None)

    def give_back(self, lines: Sequence[Line]) -> None:
        """Make these the next lines."""
        self._again.extendleft(reversed(lines))


def _csv_records(
    path: Path, lines: _Lines, columns: tuple[str, ...], delimiter: str, is_quoted: bool
) -> Iterator[Record | Reject]:
    while (first := lines.take()) is not None:
        place = Place(str(path), first.number)
        if first.fault:
            yield Reject(first.fault, place, raw=first.text)
            continue
        if not first.text.strip("\r\n"):
            continue
        taken, fields = _whole_record(first, lines, delimiter, is_quoted)
        if fields is not None and len(fields) == len(columns):
            yield place, dict(zip(columns, fields, strict=True)), "".join(one.text for one in taken)
            continue
        lines.give_back(taken[1:])
        if fields is None:
            yield Reject(BROKEN_QUOTES, place, raw=first.text)
        else:
            counts = f"it has {len(fields)} fields, and there are {len(columns)} columns"
            yield Reject("more or fewer fields than columns", place, counts, first.text)


def _whole_record(
    first: Line, lines: _Lines, delimiter: str, is_quoted: bool
) -> tuple[list[Line], list[str] | None]:
    """Return the lines of one record and its fields, None if they cannot be told apart."""
    taken = [first]
    try:
        fields = _fields(first.text, delimiter, is_quoted)
        while fields is None and len(taken) < MOST_LINES:
            further = lines.take()
            if further is None:
                break
            taken.append(further)
            if further.fault:
                break
            if '"' in further.text:
                fields = _fields("".join(one.text for one in taken), delimiter, is_quoted)
    except csv.Error:
        return taken, None
    return taken, fields


def _fields(text: str, delimiter: str, is_quoted: bool) -> list[str] | None:
    """Return the fields of a record; None if a quote is open at its end.

    Raises:
        csv.Error: no line that follows could make it a record.
    """
    text = text.removesuffix("\n").removesuffix("\r")
    if not is_quoted or '"' not in text:
        return text.split(delimiter)
    try:
        return next(csv.reader([text], delimiter=delimiter, strict=True))
    except csv.Error as error:
        if "unexpected end of data" in str(error):
            return None
        raise


def read_json_lines(path: Path, *, encoding: str = "utf-8") -> Table:
    """Read a table of one JSON object a line; the arguments are those of `read_csv`."""

    def records() -> Iterator[Record | Reject]:
        for line in read_lines(path, encoding, (".jsonl", ".ndjson", ".json")):
            place = Place(str(path), line.number)
            if line.fault:
                yield Reject(line.fault, place, raw=line.text)
                continue
            if not line.text.strip():
                continue
            try:
                found = json.loads(line.text)
            except (ValueError, RecursionError) as error:
                yield Reject("broken JSON", place, str(error), line.text)
                continue
            if isinstance(found, dict):
                yield place, found, line.text
            else:
                yield Reject("no JSON object", place, "", line.text)

    return _peeked(path, records())


def read_parquet(path: Path) -> Table:
    """Read a Parquet file, a batch of rows at a time.

    Raises:
        CatalogueError: it is no Parquet file.
    """
    from pyarrow import ArrowException, parquet  # takes a while to import

    with opened(path):
        pass
    try:
        file = parquet.ParquetFile(path)
    except (ArrowException, OSError) as error:
        raise CatalogueError(f"{path}: no Parquet file ({error}); write it again.") from error

    def records() -> Iterator[Record | Reject]:
        number = 0
        try:
            for batch in file.iter_batches(_BATCH):
                for values in batch.to_pylist():
                    number += 1
                    yield Place(str(path), number), values, ""
        except (ArrowException, OSError, ValueError) as error:
            yield Reject(ENDS_EARLY, Place(str(path), number + 1), str(error))

    return Table(tuple(file.schema_arrow.names), records())


def read_frame(frame: Any) -> Table:
    """Read a data frame of pandas or Polars, or any other table that Arrow reads.

    Raises:
        TypeError: it is none.
    """
    import pyarrow

    table = pyarrow.table(frame)

    def records() -> Iterator[Record | Reject]:
        number = 0
        for batch in table.to_batches(_BATCH):
            for values in batch.to_pylist():
                number += 1
                yield Place("table", number), values, ""

    return Table(tuple(table.column_names), records())


def _peeked(path: Path, records: Iterator[Record | Reject]) -> Table:
    """Return a table whose columns are those of its first records, any of which may lack some."""
    before: list[Record | Reject] = []
    columns: dict[str, None] = {}
    size = 0
    for one in records:
        before.append(one)
        if not isinstance(one, Reject):
            columns |= dict.fromkeys(map(str, one[1]))
            size += len(one[2])
        if len(before) == MOST_LINES or size > _MOST_PEEKED:
            break
    if not columns:
        said = before[0].reason if before and isinstance(before[0], Reject) else "it is empty"
        raise CatalogueError(f"{path}: no line can be read ({said}); give a file of this format.")
    return Table(tuple(columns), chain(before, records))
