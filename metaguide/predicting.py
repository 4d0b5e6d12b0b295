"""Predictions for tables: files of a shop, or data frames, whose rows are the examples."""

import codecs
import csv
import io
import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from metaguide.data.catalogue import (
    MOST,
    CatalogueError,
    Interaction,
    Product,
    Question,
    Review,
)
from metaguide.data.histories import History, each_once
from metaguide.data.importers import FORMATS, Options, Reject, format_of
from metaguide.data.importers.records import Record, Table, read_frame
from metaguide.data.importers.source import is_marked
from metaguide.data.importers.tables import Plan, planned
from metaguide.data.rows import PARTS, checked_row
from metaguide.data.viewed import as_viewed
from metaguide.files import atomic_write, read_regular
from metaguide.guide import AdaptedGuide
from metaguide.tasks import TASKS

AT_ONCE = 4096
"""Number of rows that are asked together."""

PREDICTED = "predicted_"
"""Starts the names of the columns that hold answers."""

NOT_READ = "not_read"
"""Name of the column that says why a row has no answer."""

_LABELS = ("category", "stars", "sentiment", "answer")
"""The fields that are not read, since they are what is asked."""

_EXAMPLES: Mapping[str, Callable[..., Any]] = {
    "products": Product,
    "reviews": Review,
    "questions": Question,
    "interactions": Interaction,
}


class Predicted(NamedTuple):
    """What `predict_file` did.

    Attributes:
        task: name of the task that answered.
        answered: number of rows, or of users, that have an answer.
        unread: number of rows that have none.
        first: why the first of them cannot be read, and where it stands; "" if there is none.
    """

    task: str
    answered: int
    unread: int
    first: str


class _Source(NamedTuple):
    """A table of examples.

    Attributes:
        table: the table.
        plan: what its columns hold.
        part: the part of a domain that its rows are asked as.
    """

    table: Table
    plan: Plan
    part: str


def read_examples(
    source: Any, mapping: Mapping[str, str] | None = None, options: Options | None = None
) -> list[Any]:
    """Read a table as examples for `predict`: products, reviews, questions or histories.

    What a row is follows from the columns that are mapped, as in an import: with `question` a
    question, with `text` a review, with `title` a product. With `user`, `product` and `time` the
    rows are what users took, and each user is a history.

    Args:
        source: a file of a table (CSV, TSV, JSON lines, Parquet), or a data frame of pandas or
            Polars.
        mapping: names of columns, keyed by field; by default each column named like a field holds
            it.
        options: how values are written, if not as usual.

    Returns:
        The examples, in the order of rows or of users' first rows.

    Raises:
        CatalogueError: the table or a row of it cannot be read.
    """
    options = options or Options()
    opened = _opened(source, replace(options, mapping=mapping) if mapping else options, "")
    if opened.part == "interactions":
        examples, faults = _histories(opened)
    else:
        examples, faults = [], []
        for record in opened.table.records:
            one = _example(record, opened)
            (faults if isinstance(one, Reject) else examples).append(one)
            if faults:
                break
    if faults:
        raise CatalogueError(f"{_said(faults[0])}; mend the row or leave it out.")
    return examples


def predict_file(
    guide: AdaptedGuide,
    source: Path,
    target: Path,
    options: Options | None = None,
    *,
    format: str = "",
    top: int = 10,
    tell: Callable[[int], None] = lambda rows: None,
) -> Predicted:
    """Answer every row of a file, and write the rows with their answers.

    The columns of the source stay; those of the answers begin with `PREDICTED`, and take the place
    of earlier answers. A row that cannot be read has no answer, but the reason in `NOT_READ`. For
    what users took, the target has a row for each user and rank instead. Memory does not grow with
    the file, except by users and by the vectors that a cache keeps. A CSV begins with a byte order
    mark if the source does, or is in another encoding than UTF-8: a spreadsheet wrote it, and would
    misread the answers without one.

    Args:
        guide: the adapted guide.
        source: a file of a table.
        target: the file to write, `.csv`, `.tsv` or `.jsonl`; it appears when it is complete.
        options: how the source is read; by default each column named like a field holds it.
        format: the source's format; by default its name tells.
        top: number of products that are ranked for each user.
        tell: called now and then with the number of rows that are done.

    Returns:
        What was answered.

    Raises:
        CatalogueError: the source or every row of it cannot be read, its rows are of a task that
            the guide does not answer, or the target cannot be written.
    """
    options = options or Options()
    if options.descriptions is None:
        known = {one.id: one.description for one in guide.domain.products}
        options = replace(options, descriptions=lambda id: known.get(id, ""))
    opened = _opened(source, options, format)
    task = next(one for one in TASKS.values() if one.part == opened.part)
    if task.name not in guide.adapted:
        why = "; ".join(guide.notes.get(task.name, ())) or "the domain has no examples of it"
        raise CatalogueError(f"{source}: asks {task.name}, which this guide cannot answer: {why}.")
    of_users = opened.part == "interactions"
    own = ("user",) if of_users else opened.table.columns
    added = tuple(f"{PREDICTED}{name}" for name in task.columns)
    answered, faults, first = 0, 0, ""
    answers_in = (*added, *(() if of_users else (NOT_READ,)))
    kept = tuple(name for name in own if name not in answers_in)
    marked = target.suffix.lower() == ".csv" and _is_of_spreadsheet(source, options)
    with _rows_to(target, (*kept, *answers_in), marked) as write:
        if of_users:
            found, rejects = _histories(opened, {one.id for one in guide.domain.products})
            for users in _batches(found):
                for ranking in guide.predict(users, top=top):
                    for cells in task.cells(ranking):
                        write({"user": ranking.user, **dict(zip(added, cells, strict=True))})
                answered += len(users)
                tell(answered)
            return _done(source, Predicted(task.name, answered, len(rejects), _said(*rejects[:1])))
        for records in _batches(opened.table.records):
            examples = [_example(record, opened) for record in records]
            answers = iter(guide.predict([one for one in examples if not isinstance(one, Reject)]))
            for record, example in zip(records, examples, strict=True):
                row = {} if isinstance(record, Reject) else dict(record[1])
                row = {name: value for name, value in row.items() if name not in answers_in}
                if isinstance(example, Reject):
                    faults, first = faults + 1, first or _said(example)
                    write({**row, NOT_READ: _said(example)})
                else:
                    (cells,) = task.cells(next(answers))
                    write({**row, **dict(zip(added, cells, strict=True))})
            answered += len(examples)
            tell(answered)
        return _done(source, Predicted(task.name, answered - faults, faults, first))


def _done(source: Path, done: Predicted) -> Predicted:
    """Return what was done.

    Raises:
        CatalogueError: no row has an answer.
    """
    if done.unread and not done.answered:
        raise CatalogueError(f"{source}: no row can be read, the first at {done.first}.")
    return done


def _is_of_spreadsheet(source: Path, options: Options) -> bool:
    """Return whether a table is one that spreadsheets write: with a mark, or not in UTF-8."""
    return codecs.lookup(options.encoding).name != "utf-8" or is_marked(source)


def _opened(source: Any, options: Options, format: str) -> _Source:
    """Open a file or a data frame, and tell what its rows are."""
    if isinstance(source, str | Path):
        path = Path(source)
        opener = FORMATS[format or format_of(path)].table
        if opener is None:
            raise CatalogueError(f"{path}: no table; give CSV, TSV, JSON lines or Parquet.")
        table, options = opener(path, options)
    else:
        path, table = Path("table"), read_frame(source)
    plan = planned(path, table.columns, options)
    read = {name: column for name, column in plan.mapping.items() if name not in _LABELS}
    plan = planned(path, table.columns, replace(options, mapping=read))
    part = next(part for part in ("questions", "reviews", *PARTS) if part in plan.parts)
    return _Source(table, plan, part)


def _example(record: Record | Reject, opened: _Source) -> Any:
    """Return the example that a record asks, or why it cannot be read."""
    if isinstance(record, Reject):
        return record
    row = dict(zip(opened.plan.parts, opened.plan.rows(record), strict=True))[opened.part]
    if isinstance(row, Reject):
        return row
    fields = dict(row.values)
    picture = fields.pop("image", None)
    try:
        fields = checked_row(fields, PARTS[opened.part])
        if picture is not None:
            fields["image"] = np.asarray(as_viewed(read_regular(picture, MOST)))
    # Pillow's decoders raise many kinds of errors for a damaged file.
    except Exception as error:
        return Reject(f"{opened.part}: a field that cannot be read", row.place, str(error))
    return _EXAMPLES[opened.part](**fields)


def _histories(
    opened: _Source, known: Set[str] | None = None
) -> tuple[list[History], list[Reject]]:
    """Return what each user took, and the rows that cannot be read.

    A user all of whose products are unknown took nothing, unless that is so of all users.

    Args:
        opened: the table.
        known: ids of the products that can be read; any if None.
    """
    taken: dict[str, list[tuple[float, str]]] = {}
    faults: list[Reject] = []
    for record in opened.table.records:
        event = _example(record, opened)
        if isinstance(event, Interaction) and known is not None and event.product not in known:
            place = record[0] if not isinstance(record, Reject) else record.place
            reason = "a product that the guide does not know"
            taken.setdefault(event.user, [])
            event = Reject(f"interactions: {reason}", place, repr(event.product))
        if isinstance(event, Reject):
            faults.append(event)
        else:
            taken.setdefault(event.user, []).append((event.time, event.product))
    histories = [
        History(user, each_once(product for _, product in sorted(events, key=lambda one: one[0])))
        for user, events in taken.items()
    ]
    return histories if any(taken.values()) else [], faults


def _said(*faults: Reject) -> str:
    """Return where a fault is and what it is; "" without one."""
    return "".join(
        f"{one.place}: {one.reason}" + (f" ({one.detail})" if one.detail else "") for one in faults
    )


def _batches(rows: Iterable[Any]) -> Iterator[list[Any]]:
    rows = iter(rows)
    while batch := list(islice(rows, AT_ONCE)):
        yield batch


@contextmanager
def _rows_to(
    target: Path, columns: Sequence[str], marked: bool
) -> Iterator[Callable[[Mapping[str, Any]], Any]]:
    """Open a table for writing, row by row; it gets its name when the `with` ends.

    Args:
        target: the table.
        columns: names of its columns.
        marked: whether it begins with a byte order mark.
    """
    suffix = target.suffix.lower()
    if suffix not in (".csv", ".tsv", ".jsonl"):
        raise CatalogueError(f"{target}: name it .csv, .tsv or .jsonl.")
    try:
        with atomic_write(target) as binary:
            encoding = "utf-8-sig" if marked else "utf-8"
            file = io.TextIOWrapper(binary, encoding=encoding, newline="")
            if suffix == ".jsonl":
                encode = json.JSONEncoder(ensure_ascii=False, default=str).encode
                yield lambda row: file.write(encode(row) + "\n")
            else:
                mark = "\t" if suffix == ".tsv" else ","
                rows = csv.DictWriter(file, columns, delimiter=mark, extrasaction="ignore")
                rows.writeheader()
                known, further = frozenset(columns), dict[str, None]()

                def write(row: Mapping[str, Any]) -> None:
                    further.update(dict.fromkeys(row.keys() - known))
                    rows.writerow(row)

                yield write
                if further:
                    named = ", ".join(map(repr, further))
                    warnings.warn(
                        f"{target} lacks {named}, of which the first rows told nothing; name it "
                        ".jsonl to keep every field",
                        stacklevel=2,
                    )
            file.flush()
            file.detach()
    except OSError as error:
        raise CatalogueError(
            f"{target}: cannot be written ({error.strerror}); make room or give another file."
        ) from error
