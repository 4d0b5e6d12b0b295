"""Tables of a shop's own, of which a mapping says which column is which field of a catalogue.

What a row holds follows from the fields that are mapped: with `title` it is a product, with `text`
a review, with `question` a question about `text`, and with `user` an interaction. A question that
has no text is one about the description of its `product`. A row may be several at once, as in an
export of orders: then `product` is the product's id and `id` that of the review or question.
Without a mapping, a `title` beside a `text` is a review's headline, which is not read, unless
another column tells of the product.
"""

import difflib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from metaguide.data.importers import values
from metaguide.data.importers.records import (
    Record,
    Table,
    read_csv,
    read_json_lines,
    read_parquet,
)
from metaguide.data.importers.source import Place, Reject, Row, name_of
from metaguide.data.importers.values import Value
from metaguide.data.rows import CatalogueError

FIELDS = (
    "id",
    "title",
    "description",
    "category",
    "image",
    "text",
    "stars",
    "sentiment",
    "question",
    "answer",
    "user",
    "product",
    "time",
)
"""The fields that columns may be mapped to, besides `attributes.NAME`."""

ATTRIBUTE = "attributes."

CONVERSIONS: Mapping[str, Callable[[Any], Value]] = {
    "id": values.plain,
    "product": values.plain,
    "user": values.plain,
    "stars": values.stars,
    "sentiment": values.sentiment,
    "time": values.time,
}
"""The conversions of fields that are not texts, as a table without options has them."""

_REQUIRED = {
    "products": ("title",),
    "reviews": ("text",),
    "questions": ("question", "text"),
    "interactions": ("user", "product", "time"),
}

NO_TITLE = "products: no title"

_OF_PRODUCT = ("title", "description", "category", "image")
_OF_REVIEW = ("text", "stars", "sentiment")
_NAMES = ("user", "product", "category")


@dataclass(frozen=True)
class Options:
    """How a shop's files are to be read; what is not said is found out or usual.

    Attributes:
        mapping: names of columns, keyed by the field that they hold. By default each column named
            like a field holds it. In JSON, "a.b" is the field "b" of the object "a".
        columns: names of the columns, of a file without a header.
        delimiter: what separates fields of a table of text.
        is_quoted: whether a field of such a table may stand in double quotes.
        encoding: encoding of a file of text.
        time_format: how times are written, as in `datetime.strptime`.
        most_stars: the best rating.
        positive: the words for a positive sentiment, in lower case.
        negative: the words for a negative one.
        descriptions: id of a product -> its description, "" if it has none. It is the text of
            questions about the product that have none; by default these cannot be read.

    Raises:
        ValueError: an option cannot be used; the message says what to give.
    """

    mapping: Mapping[str, str] = field(default_factory=dict)
    columns: tuple[str, ...] = ()
    delimiter: str = ""
    is_quoted: bool = True
    encoding: str = "utf-8"
    time_format: str = ""
    most_stars: float = 5.0
    positive: tuple[str, ...] = ()
    negative: tuple[str, ...] = ()
    descriptions: Callable[[str], str] | None = None

    def __post_init__(self) -> None:
        """Check every option."""
        for name in self.mapping:
            if name not in FIELDS and not re.fullmatch(rf"{re.escape(ATTRIBUTE)}.+", name):
                close = difflib.get_close_matches(name, FIELDS, n=1)
                known = f"map {', '.join(FIELDS)} or {ATTRIBUTE}NAME"
                known = f"did you mean {close[0]!r}?" if close else known
                raise ValueError(f"there is no field {name!r}; {known}")
        try:
            "".encode(self.encoding)
        except LookupError as error:
            raise ValueError(
                f"encoding is {self.encoding!r}; give one such as 'gb18030'"
            ) from error
        if len(self.delimiter) > 1:
            raise ValueError(f"delimiter is {self.delimiter!r}; give one character")
        if not self.most_stars > 0:
            raise ValueError(f"most_stars is {self.most_stars}; give a number above 0")
        if bool(self.positive) != bool(self.negative):
            raise ValueError("positive and negative words are given together or not at all")


class Reading(NamedTuple):
    """What an importer makes of its files.

    Attributes:
        rows: rows for a catalogue, and lines that cannot be read.
        mapping: the columns that were read, keyed by field; empty for formats that fix them.
        unread: the columns that were not.
    """

    rows: Iterator[Row | Reject]
    mapping: Mapping[str, str] = {}
    unread: tuple[str, ...] = ()


def csv(path: Path, options: Options) -> Table:
    """Open a table of text with a delimiter."""
    return read_csv(
        path,
        columns=options.columns,
        delimiter=options.delimiter,
        is_quoted=options.is_quoted,
        encoding=options.encoding,
    )


def tsv(path: Path, options: Options) -> Table:
    """Open a table of text whose columns are parted by tabs."""
    return csv(path, replace(options, delimiter=options.delimiter or "\t"))


def json_lines(path: Path, options: Options) -> Table:
    """Open a table of one JSON object a line."""
    return read_json_lines(path, encoding=options.encoding)


def parquet(path: Path, options: Options) -> Table:
    """Open a Parquet file."""
    del options
    return read_parquet(path)


class Plan(NamedTuple):
    """What the columns of a table hold.

    Attributes:
        mapping: the columns that are read, keyed by field.
        parts: the parts of a domain that each row belongs to.
        unread: the columns that are not read.
        rows: record -> its rows, one for each part.
    """

    mapping: Mapping[str, str]
    parts: tuple[str, ...]
    unread: tuple[str, ...]
    rows: Callable[[Record], Iterator[Row | Reject]]


def planned(path: Path, columns: Sequence[str], options: Options, stem: str = "") -> Plan:
    """Return what the columns of a table hold.

    Args:
        path: path of the table's file.
        columns: names of its columns.
        options: the mapping, and how values are written.
        stem: begins the ids of rows that have none; by default the name of the file.

    Raises:
        CatalogueError: the table has no column that is mapped, or too few are mapped to tell what
            a row is.
    """
    mapping = options.mapping or _by_name(columns)
    for name, column in mapping.items():
        outer, dot, _ = column.partition(".")
        if column not in columns and not (dot and outer in columns):
            lower = {one.lower(): one for one in columns}
            near = difflib.get_close_matches(column.lower(), lower, 1, 0.8)
            raise CatalogueError(
                f"{path}: no column {column!r} for {name}; the columns are {_listed(columns)}."
                + (f" Did you mean {lower[near[0]]!r}?" if near else "")
                + " If the first line is no header, name the columns."
            )
    parts = _parts(mapping, options.descriptions is not None)
    if not parts:
        raise CatalogueError(
            f"{path}: nothing says what a row is, of the columns {_listed(columns)}; map one to "
            "title (of products), to text (of reviews), to user, product and time, or to question "
            "and text, the passage that holds the answer, or product, whose description holds it."
        )
    convert = _conversions(path, options)
    known = {"id", "product"}.union(*(_FIELDS_OF[part] for part in parts))
    has_attributes = "products" in parts
    mapping = {
        name: column
        for name, column in mapping.items()
        if name in known or (has_attributes and name.startswith(ATTRIBUTE))
    }
    used = {column.split(".")[0] for column in mapping.values()}
    unread = tuple(one for one in columns if one not in used)
    rows = partial(
        _rows,
        stem=stem or name_of(path),
        mapping=mapping,
        parts=parts,
        convert=convert,
        descriptions=options.descriptions,
    )
    return Plan(mapping, parts, unread, rows)


def mapped(path: Path, table: Table, options: Options, stem: str = "") -> Reading:
    """Return the rows of a table; the other arguments and the errors are those of `planned`.

    A row without a title below one of the same product is no reject: exports of shops give each
    variant and each further picture of a product a row of its own.
    """
    plan = planned(path, table.columns, options, stem)
    id_column = plan.mapping.get("product", plan.mapping.get("id", ""))

    def rows() -> Iterator[Row | Reject]:
        product = None
        for record in table.records:
            if isinstance(record, Reject):
                yield record
                continue
            for row in plan.rows(record):
                if isinstance(row, Row) and row.part == "products":
                    product = row.values["id"]
                elif isinstance(row, Reject) and row.reason == NO_TITLE and product is not None:
                    if _plain_or_none(_at(record[1], id_column)) == product:
                        row = Row("products", {"id": product}, row.place, may_repeat=True)
                yield row

    return Reading(rows(), plan.mapping, plan.unread)


def _plain_or_none(value: Any) -> str | None:
    """Return an id as a catalogue has it; None if there is none, or it cannot be read."""
    try:
        return values.plain(value).value
    except ValueError:
        return None


def joined(readings: Sequence[Reading]) -> Reading:
    """Return several readings as one: the rows of each in turn, and the first one's mapping."""

    def rows() -> Iterator[Row | Reject]:
        for reading in readings:
            yield from reading.rows

    unread = {column: None for reading in readings for column in reading.unread}
    return Reading(rows(), readings[0].mapping, tuple(unread))


def _by_name(columns: Sequence[str]) -> dict[str, str]:
    """Return the columns that are named like fields, keyed by field."""
    named = {column.strip().lower(): column for column in reversed(columns)}
    found = {name: named[name] for name in FIELDS if name in named}
    if "text" in found and not found.keys() & {"product", *_OF_PRODUCT[1:]}:
        found.pop("title", None)  # a headline
    if found.keys() & {"title", "text", "question", "user"} == {"title"} and "id" in found:
        found.pop("product", None)  # some other name of a product
    return found


def _parts(mapping: Mapping[str, str], has_descriptions: bool) -> tuple[str, ...]:
    """Return the parts of a domain that a row of such a mapping belongs to."""
    asks = "question" in mapping
    has_passage = "text" in mapping or (has_descriptions and "product" in mapping)
    having = {
        "products": "title" in mapping,
        "reviews": "text" in mapping and not asks,
        "questions": asks and has_passage,
        "interactions": {"user", "product", "time"} <= mapping.keys(),
    }
    return tuple(part for part, has in having.items() if has)


def _rows(
    record: Record,
    stem: str,
    mapping: Mapping[str, str],
    parts: tuple[str, ...],
    convert: Mapping[str, Callable[[Any], Value]],
    descriptions: Callable[[str], str] | None,
) -> Iterator[Row | Reject]:
    """Yield the rows of a catalogue that one record of a table holds."""
    place, found, line = record
    raw = {name: _at(found, column) for name, column in mapping.items()}
    raw = {name: value for name, value in raw.items() if not values.is_empty(value)}
    nothing = [name for name in _NAMES if values.is_nothing(raw.get(name))]
    said = [f"{name}: {raw.pop(name)!r} is read as an empty field" for name in nothing]
    made = f"{stem}-{place.line}"
    of_product = raw.get("product")
    if "products" in parts:
        alone = len(parts) == 1
        if of_product is None:
            of_product = raw.get("id", made) if alone else raw.get("title")
    for part in parts:
        if part == "questions" and "text" not in raw and descriptions and of_product is not None:
            # After the row's own product, which may be the one.
            raw["text"] = descriptions(_plain_or_none(of_product) or "")
            convert = {**convert, "text": Value}  # it was converted with its product
            if not raw["text"]:
                reason = "questions: no text, and its product is unknown or has no description"
                yield Reject(reason, place, f"product is {of_product!r}", line)
                continue
        fields = _fields_of(part, raw)
        if part == "products":
            fields["id"] = made if of_product is None else of_product
        elif of_product is not None:
            fields["product"] = of_product
        if part in ("reviews", "questions"):
            fields["id"] = raw.get("id", made)
        row = converted(part, fields, place, line, convert, part == "products" and len(parts) > 1)
        if isinstance(row, Row):
            remarks = list(said)
            if "\n" in line.rstrip("\r\n"):
                # So it should be where a text has line breaks, and not where a quote was lost.
                remarks.append(f"{part}: of several lines")
            row = row._replace(remarks=(*row.remarks, *remarks))
        yield row


_FIELDS_OF: Mapping[str, tuple[str, ...]] = {
    "products": _OF_PRODUCT,
    "reviews": _OF_REVIEW,
    "questions": ("question", "text", "answer"),
    "interactions": ("user", "time"),
}
"""The fields of a row of each part, besides its id, its product and attributes."""


def _fields_of(part: str, raw: Mapping[str, Any]) -> dict[str, Any]:
    fields = {name: raw[name] for name in _FIELDS_OF[part] if name in raw}
    if part == "products":
        fields |= {name: value for name, value in raw.items() if name.startswith(ATTRIBUTE)}
    return fields


def converted(
    part: str,
    fields: Mapping[str, Any],
    place: Place,
    line: str,
    convert: Mapping[str, Callable[[Any], Value]] = CONVERSIONS,
    may_repeat: bool = False,
) -> Row | Reject:
    """Return a row as a catalogue has it.

    Args:
        part: the part that it belongs to.
        fields: its fields as the shop writes them; `attributes.NAME` is an attribute.
        place: where it stands.
        line: the line that holds it.
        convert: how fields are converted, keyed by name; the others are texts.
        may_repeat: as in `Row`.
    """
    row: dict[str, Any] = {}
    attributes: dict[str, str] = {}
    remarks: list[str] = []
    for name, value in fields.items():
        if values.is_empty(value):
            continue
        is_attribute = name.startswith(ATTRIBUTE)
        try:
            if name == "answer":
                found = values.span(value, row.get("text", ""), fields.get("text", ""))
            elif is_attribute:
                found = _attribute(name, value)
            else:
                found = convert.get(name, values.text)(value)
        except ValueError as error:
            if not is_attribute:
                reason = f"{part}: {name} that cannot be read"
                return Reject(reason, place, f"{name} {error}", line)
            found = Value(None, "cannot be read, left out")
        if found.remark:
            remarks.append(f"{part}, {name}: {found.remark}")
        if found.value is not None and is_attribute:
            attributes[name.removeprefix(ATTRIBUTE)] = found.value
        elif found.value is not None:
            row[name] = found.value
    for name in _REQUIRED[part]:
        if name not in row:
            return Reject(f"{part}: no {name}", place, raw=line)
    if "stars" in row and "sentiment" in row:
        del row["stars"]
        remarks.append("reviews: of stars and sentiment, the sentiment is stored")
    if attributes:
        row["attributes"] = attributes
    return Row(part, row, place, tuple(remarks), may_repeat)


def _conversions(path: Path, options: Options) -> Mapping[str, Callable[[Any], Value]]:
    """Return the conversions of a table's fields, as its options say."""
    return {
        **CONVERSIONS,
        "stars": lambda value: values.stars(value, options.most_stars),
        "sentiment": lambda value: values.sentiment(value, options.positive, options.negative),
        "time": lambda value: values.time(value, options.time_format),
        "image": lambda value: Value(path.parent / values.plain(value).value),
    }


def _attribute(name: str, value: Any) -> Value:
    if isinstance(value, bool):
        return Value("yes" if value else "no")
    if isinstance(value, list | tuple):
        return Value(", ".join(filter(None, (values.text(one).value for one in value))) or None)
    if name == f"{ATTRIBUTE}price" and isinstance(value, str):
        try:
            return values.price(value)
        except ValueError:
            return Value(
                values.text(value).value, "is no single price, and is kept as it is written"
            )
    return values.text(value)


def _at(record: Mapping[str, Any], column: str) -> Any:
    """Return a column of a record; with dots, a field of an object in it."""
    if column in record:
        return record[column]
    found: Any = record
    for name in column.split("."):
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def _listed(columns: Sequence[str]) -> str:
    known = ", ".join(repr(column) for column in columns[:12])
    return known + (f" and {len(columns) - 12} more" if len(columns) > 12 else "")
