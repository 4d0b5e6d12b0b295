"""Amazon Reviews of 2014, 2018 and 2023 (McAuley et al.): reviews, and metadata of products.

The files of metadata and of reviews may be given in any order, packed by gzip or not. A review is
an interaction as well. Its text is the review's, or its title if it has no text.
"""

import ast
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from metaguide.data.importers import values
from metaguide.data.importers.source import Line, Place, Reject, Row, made_id, read_lines
from metaguide.data.importers.tables import Options, Reading, converted
from metaguide.data.rows import CatalogueError

SUFFIXES = (".jsonl", ".json")

_REVIEWS = {
    "text": ("text", "reviewText"),
    "title": ("title", "summary"),
    "stars": ("rating", "overall"),
    "product": ("parent_asin", "asin"),
    "user": ("user_id", "reviewerID"),
    "time": ("timestamp", "unixReviewTime"),
}
"""Names of the fields of a review in 2023, and before."""


def amazon(files: Sequence[Path], options: Options) -> Reading:
    """Read files of reviews and of metadata.

    Args:
        files: the files.
        options: only the encoding counts.

    Raises:
        CatalogueError: a file holds neither reviews nor metadata.
    """
    first = {path: _first(path, options) for path in files}
    ordered = sorted(files, key=lambda path: _is_review(first[path]))

    def rows() -> Iterator[Row | Reject]:
        for path in ordered:
            for line in read_lines(path, options.encoding, SUFFIXES):
                if line.fault or line.text.strip():
                    yield from _rows(path, line)

    return Reading(rows())


def _first(path: Path, options: Options) -> Mapping[str, Any]:
    """Return the first line of a file that can be read."""
    for line in read_lines(path, options.encoding, SUFFIXES):
        found = None if line.fault else _parsed(line.text)
        if found is not None and not found.keys().isdisjoint(_REVIEWS["product"]):
            return found
        if line.number > 100:
            break
    raise CatalogueError(
        f"{path}: no line of Amazon's reviews or metadata; give a file such as reviews.jsonl.gz or "
        "meta.jsonl.gz."
    )


def _parsed(text: str) -> dict[str, Any] | None:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        if not text.startswith("{'"):
            return None
        # The metadata of 2014 are Python's literals.
        try:
            with warnings.catch_warnings(action="ignore", category=SyntaxWarning):
                warnings.simplefilter("ignore", DeprecationWarning)
                found = ast.literal_eval(text.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return None
    return found if isinstance(found, dict) else None


def _is_review(found: Mapping[str, Any]) -> bool:
    return any(name in found for name in (*_REVIEWS["user"], "reviewText", "overall"))


def _rows(path: Path, line: Line) -> Iterator[Row | Reject]:
    place = Place(str(path), line.number)
    found = None if line.fault else _parsed(line.text)
    if found is None:
        yield Reject(line.fault or "broken JSON", place, raw=line.text)
        return
    if _is_review(found):
        said = {name: _either(found, names) for name, names in _REVIEWS.items()}
        text = said["title"] if values.is_empty(said["text"]) else said["text"]
        product = {"product": said["product"]}
        review = {"id": made_id(place), "text": text, **product}
        parts = {
            "reviews": {**review, "stars": said["stars"]},
            "interactions": {"user": said["user"], **product, "time": said["time"]},
        }
    else:
        parts = {"products": _product(found)}
    for part, fields in parts.items():
        yield converted(part, fields, place, line.text)


def _either(found: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((found[name] for name in names if not values.is_empty(found.get(name))), None)


def _product(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a product.

    Its category is the second of its path, below that of the whole file.
    """
    path = found.get("categories") or found.get("category")
    path = path[0] if isinstance(path, list) and path and isinstance(path[0], list) else path
    path = path if isinstance(path, list) else []
    description = found.get("description")
    if isinstance(description, list):
        description = " ".join(map(str, description))
    return {
        "id": _either(found, _REVIEWS["product"]),
        "title": found.get("title"),
        "description": description,
        "category": next(iter(path[1:2] or path), None),
        "attributes.price": found.get("price"),
        "attributes.brand": _either(found, ("store", "brand")),
    }
