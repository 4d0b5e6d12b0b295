"""online_shopping_10_cats: 62,774 Chinese shop reviews of ten product categories.

ChineseNlpCorpus publishes the file as a zip of one CSV, `cat,label,review`, in UTF-8. Some of its
reviews contain a byte order mark, one is empty, and some occur twice.
"""

import csv
import io
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from metaguide.data.catalogue import CatalogueError, Domain, Review
from metaguide.data.texts import normalised
from metaguide.files import MIB, FileFault, read_regular, zip_members

_COLUMNS = ("cat", "label", "review")
_SENTIMENTS = {"1": "positive", "0": "negative"}


MOST = 256 * MIB
"""The most bytes of the file, packed or not: 15 times the original."""

PUBLISHED = 62_774
"""Number of reviews in the published file."""


class Dropped(NamedTuple):
    """Numbers of reviews that `drop_repeats` dropped: without a letter or symbol, and repeated."""

    empty: int
    repeated: int


def read_online_shopping(path: Path) -> dict[str, Domain]:
    """Read the reviews, each text once.

    The format has no count, so a CSV that was cut at the end of a line looks complete (in a zip,
    the checksum would tell). A warning is given if there are fewer reviews than in the published
    file.

    Args:
        path: the zip, or the CSV in it.

    Returns:
        One domain per category, keyed and sorted by name. A review's id is its category and its
        row among the category's rows in the file, "热水器-00012".

    Raises:
        CatalogueError: the file is missing or breaks this format; names line and column.
    """
    return drop_repeats(parse_online_shopping(path))[0]


def parse_online_shopping(path: Path) -> dict[str, Domain]:
    """Read all rows, repeated ones included; otherwise as `read_online_shopping`."""
    try:
        text = _content(path).decode()
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise CatalogueError(f"{path}:{line}: not UTF-8; download the file again.") from error
    rows = csv.DictReader(io.StringIO(text.replace("\ufeff", ""), newline=""), strict=True)
    reviews: dict[str, list[Review]] = {}
    try:
        missing = [name for name in _COLUMNS if name not in (rows.fieldnames or ())]
        if missing:
            raise CatalogueError(
                f"{path}:1: no column {missing[0]!r}; the first line must be {','.join(_COLUMNS)}."
            )
        for row in rows:
            where = f"{path}:{rows.line_num}"
            if None in row:
                raise CatalogueError(
                    f"{where}: more fields than columns; put a review that holds commas in quotes."
                )
            category, label, review = (row[name] for name in _COLUMNS)
            if not category or review is None:
                field = "review" if category else "cat"
                raise CatalogueError(f"{where}: field {field!r} is missing; fix or drop the line.")
            if label not in _SENTIMENTS:
                raise CatalogueError(
                    f"{where}: field 'label' is {label!r}; write 1 for positive, 0 for negative."
                )
            known = reviews.setdefault(category, [])
            known.append(
                Review(f"{category}-{len(known):05d}", review, sentiment=_SENTIMENTS[label])
            )
    except csv.Error as error:
        raise CatalogueError(
            f"{path}:{rows.reader.line_num}: broken CSV ({error}); download the file again."
        ) from error
    if not reviews:
        raise CatalogueError(f"{path}: no review in this file; download it again.")
    count = sum(map(len, reviews.values()))
    if count < PUBLISHED:
        warnings.warn(
            f"{path}: {count:,} reviews, and the published file has {PUBLISHED:,}: unless that is "
            "intended, it was cut; download it again",
            stacklevel=3,
        )
    return {name: Domain(name, reviews=tuple(reviews[name])) for name in sorted(reviews)}


def drop_repeats(domains: Mapping[str, Domain]) -> tuple[dict[str, Domain], Dropped]:
    """Drop reviews whose text, by `normalised`, occurs earlier in any domain.

    A text that occurs in two domains, or twice in one, could end up in both training and testing.

    Args:
        domains: the domains; their order decides which occurrence is the first.

    Returns:
        The domains with the remaining reviews, and how many were dropped.
    """
    seen: set[str] = set()
    empty = repeated = 0
    kept: dict[str, Domain] = {}
    for name, domain in domains.items():
        reviews = []
        for review in domain.reviews:
            key = normalised(review.text)
            if not key:
                empty += 1
            elif key in seen:
                repeated += 1
            else:
                seen.add(key)
                reviews.append(review)
        kept[name] = replace(domain, reviews=tuple(reviews))
    return kept, Dropped(empty, repeated)


def _content(path: Path) -> bytes:
    try:
        content = read_regular(path, MOST)
        if not zipfile.is_zipfile(io.BytesIO(content)):
            return content
        members = zip_members(content, MOST)
        names = [name for name in members if name.lower().endswith(".csv")]
        if len(names) != 1:
            raise CatalogueError(
                f"{path}: holds {len(names)} CSV files, not one; download it again."
            )
        return members[names[0]]()
    except FileNotFoundError as error:
        raise CatalogueError(
            f"{path}: no such file; set METAGUIDE_DATA_DIR to the folder that holds "
            "online_shopping_10_cats.zip."
        ) from error
    except FileFault as error:
        raise CatalogueError(f"{path}: cannot be read ({error}); download it again.") from error
