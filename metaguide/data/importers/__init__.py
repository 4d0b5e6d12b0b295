"""Importers: the files of a shop or of a public data set as a domain of a catalogue.

A format is a function (files, options) -> rows; `import_domain` writes them, and counts what it
cannot read. A new format takes a file here and an entry in `FORMATS`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from metaguide.data.importers import tables
from metaguide.data.importers.amazon import amazon
from metaguide.data.importers.importing import Group, Importer, Summary, import_domain
from metaguide.data.importers.movielens import movielens
from metaguide.data.importers.pictures import folders, idx
from metaguide.data.importers.questions import squad, subjqa
from metaguide.data.importers.recbole import recbole
from metaguide.data.importers.source import Place, Reject, Row
from metaguide.data.importers.tables import Options, Reading
from metaguide.data.rows import CatalogueError

__all__ = [
    "FORMATS",
    "Format",
    "Group",
    "Options",
    "Place",
    "Reading",
    "Reject",
    "Row",
    "Summary",
    "format_of",
    "import_domain",
]


class Format(NamedTuple):
    """A format that can be imported.

    Attributes:
        summary: what it is, in a line.
        importer: its importer.
        suffixes: the ends of names of files that are taken to be of it.
    """

    summary: str
    importer: Importer
    suffixes: tuple[str, ...] = ()


def _in_turn(read: Callable[[Path, Options], Reading], **fixed: Any) -> Importer:
    """Return the importer that reads each file by itself, with some options fixed.

    Options that are given count more than `fixed`.
    """

    def importer(files: Sequence[Path], options: Options) -> Reading:
        unsaid = Options()
        free = {k: v for k, v in fixed.items() if getattr(options, k) == getattr(unsaid, k)}
        readings = [read(path, replace(options, **free)) for path in files]

        def rows() -> Iterator[Row | Reject]:
            for reading in readings:
                yield from reading.rows

        unread = {column: None for reading in readings for column in reading.unread}
        return Reading(rows(), readings[0].mapping, tuple(unread))

    return importer


_PRICERUNNER = ("id", "title", "vendor", "cluster", "label", "category_id", "category")

FORMATS: Mapping[str, Format] = {
    "csv": Format("a table with a header, and a mapping", _in_turn(tables.csv), (".csv", ".txt")),
    "tsv": Format("the same, separated by tabs", _in_turn(tables.csv, delimiter="\t"), (".tsv",)),
    "jsonl": Format(
        "one JSON object a line, and a mapping", _in_turn(tables.json_lines), (".jsonl", ".ndjson")
    ),
    "parquet": Format("Parquet, and a mapping", _in_turn(tables.parquet), (".parquet",)),
    "amazon": Format("Amazon Reviews 2014, 2018 or 2023: reviews and metadata", amazon),
    "recbole": Format("RecBole's atomic files", recbole, (".item", ".inter")),
    "movielens": Format("MovieLens: movies and ratings", movielens),
    "squad": Format("SQuAD's JSON", squad),
    "subjqa": Format("SubjQA's tables", subjqa),
    "pricerunner": Format(
        "PriceRunner's products of several shops",
        _in_turn(
            tables.csv,
            columns=_PRICERUNNER,
            delimiter=",",
            mapping={name: name for name in ("id", "title", "category")},
        ),
    ),
    "fdu-mtl": Format(
        "FDU-MTL's reviews: label, tab, text",
        _in_turn(tables.csv, columns=("sentiment", "text"), delimiter="\t", is_quoted=False),
    ),
    "arsc": Format(
        "ARSC's reviews: text, tab, label",
        _in_turn(tables.csv, columns=("text", "sentiment"), delimiter="\t", is_quoted=False),
    ),
    "idx": Format("IDX files, as of MNIST: pictures and labels", idx),
    "folders": Format("a folder of pictures for each category", folders),
}
"""The formats, keyed by name."""


def format_of(path: Path) -> str:
    """Return the name of the format that a file's name tells.

    Raises:
        CatalogueError: it tells none.
    """
    name = path.name.lower().removesuffix(".gz").removesuffix(".zip")
    for known, one in FORMATS.items():
        if one.suffixes and name.endswith(one.suffixes):
            return known
    raise CatalogueError(
        f"{path}: its name does not tell the format; say which: {', '.join(FORMATS)}."
    )
