"""The lines of a catalogue's files: their fields and the valid values of each.

`metaguide.data.catalogue` documents the meaning of the fields.
"""

import codecs
import difflib
import json
import math
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from metaguide.files import MIB, FileFault, open_regular

LONGEST_LINE = 64 * MIB
"""The most bytes of a line."""


class CatalogueError(ValueError):
    """Catalogue data that cannot be used; the message names the file, line, field and the fix."""


class Field(NamedTuple):
    """A field of a row; `convert` returns its value or raises ValueError with fault and fix."""

    convert: Callable[[Any], Any]
    required: bool = False


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"is {reprlib.repr(value)}; write a text in quotes")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError("holds half a surrogate pair; write the whole character") from error
    return value


def _words(value: Any) -> str:
    if not _string(value).strip():
        raise ValueError("is empty; name it, or leave the field out")
    return value


def _name(value: Any) -> str:
    if not _string(value):
        raise ValueError("is empty; give it at least one character")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"is {reprlib.repr(value)}; write a number without quotes")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"is {number}; write a finite number")
    return number


def _stars(value: Any) -> float:
    if not 1 <= (stars := _number(value)) <= 5:
        raise ValueError(f"is {value}, out of range; give a number from 1 to 5")
    return stars


def _sentiment(value: Any) -> str:
    if _string(value) not in ("positive", "negative"):
        raise ValueError(f"is {reprlib.repr(value)}; write 'positive' or 'negative'")
    return value


def _attributes(value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        raise ValueError(f"is {reprlib.repr(value)}; write an object of texts, as in {{'a': 'b'}}")
    for key, entry in value.items():
        try:
            _string(key)
            _string(entry)
        except ValueError as error:
            raise ValueError(f"has the entry {reprlib.repr(key)}, which {error}") from error
    return value


def _span(value: Any) -> tuple[int, int]:
    if not (isinstance(value, list) and [type(bound) for bound in value] == [int, int]):
        raise ValueError(f"is {reprlib.repr(value)}; write [start, end], two whole numbers")
    return value[0], value[1]


def _spans(value: Any) -> list[tuple[int, int]]:
    if not isinstance(value, list):
        raise ValueError(f"is {reprlib.repr(value)}; write a list of [start, end]")
    return [_span(entry) for entry in value]


def _inner_path(value: Any) -> str:
    path = PurePosixPath(_name(value))
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"is {reprlib.repr(value)}; give a path inside the domain's folder")
    return value


PRODUCT = {
    "id": Field(_name, required=True),
    "title": Field(_string, required=True),
    "description": Field(_string),
    "category": Field(_words),
    "attributes": Field(_attributes),
    "image": Field(_inner_path),
}
REVIEW = {
    "id": Field(_name, required=True),
    "text": Field(_string, required=True),
    "stars": Field(_stars),
    "sentiment": Field(_sentiment),
    "product": Field(_name),
}
QUESTION = {
    "id": Field(_name, required=True),
    "question": Field(_string, required=True),
    "text": Field(_string, required=True),
    "answer": Field(_span),
    "answers": Field(_spans),
    "product": Field(_name),
}
INTERACTION = {
    "user": Field(_name, required=True),
    "product": Field(_name, required=True),
    "time": Field(_number, required=True),
}
PARTS: Mapping[str, Mapping[str, Field]] = {
    "products": PRODUCT,
    "reviews": REVIEW,
    "questions": QUESTION,
    "interactions": INTERACTION,
}
"""The fields of the rows of each part of a domain."""


def checked_rows(
    rows: Iterable[tuple[str, Any]],
    fields: Mapping[str, Field],
    products: Set[str] | None = None,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Check rows one by one and against one another.

    Args:
        rows: (location, parsed JSON) of each row; the location is for messages.
        fields: the fields that a row may have, keyed by name.
        products: the ids that a row may name as its product; None to skip this check.

    Yields:
        (location, converted values keyed by field).

    Raises:
        CatalogueError: a row breaks the format, has the id of another row, or names an unknown
            product.
    """
    first: dict[str, str] = {}
    for where, row in rows:
        try:
            values = checked_row(row, fields)
        except ValueError as error:
            raise CatalogueError(f"{where}: {error}.") from error
        if "id" in fields and first.setdefault(values["id"], where) != where:
            raise CatalogueError(
                f"{where}: field 'id' is {values['id']!r}, which {first[values['id']]} has too; "
                "give each its own."
            )
        product = values.get("product")
        if products is not None and product is not None and product not in products:
            raise CatalogueError(
                f"{where}: field 'product' is {product!r}, which is not an id in products.jsonl; "
                "add the product there or fix the id."
            )
        yield where, values


def checked_row(row: Any, fields: Mapping[str, Field]) -> dict[str, Any]:
    """Check one row.

    Args:
        row: parsed JSON.
        fields: the fields that it may have, keyed by name.

    Returns:
        The converted values, keyed by field.

    Raises:
        ValueError: the row breaks the format; the message names the field and the fix.
    """
    if not isinstance(row, dict):
        raise ValueError('not a JSON object; write one as in {"id": "1", ...}')
    unknown = {name: value for name, value in row.items() if name not in fields}
    further = _further_attributes(unknown, fields) if unknown else {}
    values = {}
    for name, (convert, required) in fields.items():
        if row.get(name) is not None:
            try:
                values[name] = convert(row[name])
            except ValueError as error:
                raise ValueError(f"field {name!r} {error}") from error
        elif required:
            raise ValueError(f"field {name!r} is missing; add it")
    if further:
        known = values.get("attributes", {})
        for name in sorted(further.keys() & known.keys()):
            if known[name] != further[name]:
                raise ValueError(
                    f"field {name!r} is {further[name]!r} and the attribute of that name is "
                    f"{known[name]!r}; keep one of them"
                )
        values["attributes"] = {**known, **further}
    for one, other in (("stars", "sentiment"), ("answer", "answers")):
        if one in values and other in values:
            raise ValueError(f"fields {one!r} and {other!r} are both given; leave one out")
    if "answer" in values:
        _check_answer("answer", values["answer"], values["text"])
    for span in values.get("answers", ()):
        _check_answer("answers", span, values["text"])
    return values


def _check_answer(name: str, span: tuple[int, int], text: str) -> None:
    (start, end), length = span, len(text)
    if not 0 <= start < end <= length:
        raise ValueError(
            f"field {name!r} is [{start}, {end}], which is not a part of the text of {length} "
            f"characters; give 0 <= start < end <= {length}, or null for no answer"
        )
    if not text[start:end].strip():
        raise ValueError(
            f"field {name!r} is [{start}, {end}], which is only white space; give the characters "
            "of the answer, or null for no answer"
        )


def _further_attributes(unknown: Mapping[str, Any], fields: Mapping[str, Field]) -> dict[str, str]:
    """Return fields outside the format as attributes, if rows have attributes.

    A name that is close to that of a field is an error: a misspelt category is not an attribute.
    """
    further = {}
    for name, value in unknown.items():
        almost = difflib.get_close_matches(name, fields, n=1, cutoff=0.75)
        if "attributes" not in fields or almost:
            raise ValueError(f"unknown field {name!r}; {suggestion(name, fields)}")
        if value is None:
            continue
        try:
            _string(name)
            if isinstance(value, bool):
                further[name] = "yes" if value else "no"
            elif isinstance(value, int | float):
                _number(value)
                further[name] = str(value)
            elif isinstance(value, str):
                further[name] = _string(value)
            else:
                raise ValueError(
                    f"is {reprlib.repr(value)}; write a text or a number, which is read as an "
                    "attribute"
                )
        except ValueError as error:
            raise ValueError(f"field {name!r} {error}") from error
    return further


def read_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield (place, parsed JSON) of every line that is not blank.

    Raises:
        CatalogueError: the file cannot be read, or a line is not JSON in UTF-8.
    """
    try:
        with open_regular(path) as file:
            # Only the newline byte ends a line: texts may contain Unicode's other separators.
            lines = iter(lambda: file.readline(LONGEST_LINE + 1), b"")
            for number, line in enumerate(lines, start=1):
                where = f"{path}:{number}"
                if len(line) > LONGEST_LINE:
                    raise CatalogueError(
                        f"{where}: holds more than {LONGEST_LINE // MIB} MiB; write one object "
                        "per line."
                    )
                line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
                if line.strip():
                    yield where, _parsed(where, line)
    except (OSError, FileFault) as error:
        raise CatalogueError(
            f"{path}: cannot be read ({error}); make it a readable file."
        ) from error


def _parsed(where: str, line: bytes) -> Any:
    try:
        return json.loads(line.decode(), object_pairs_hook=_each_key_once)
    except UnicodeDecodeError as error:
        raise CatalogueError(
            f"{where}: not UTF-8 at byte {error.start + 1} of the line; save the file as UTF-8."
        ) from error
    except json.JSONDecodeError as error:
        raise CatalogueError(
            f"{where}: broken JSON at character {error.pos + 1} ({error.msg}); write one "
            "object per line."
        ) from error
    except (ValueError, RecursionError) as error:
        raise CatalogueError(
            f"{where}: broken JSON ({error}); write one object per line."
        ) from error


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(k for k in keys if keys.count(k) > 1)!r} occurs twice")
    return found


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return the end of a message on an unknown name: the closest known name, or all of them."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"the known ones are {', '.join(known)}"
