"""Importers: the files of a shop or of a public data set as a domain of a catalogue.

A format is a function (files, options) -> rows; `import_domain` writes them, and counts what it
cannot read. A new format takes a file here and an entry in `FORMATS`.
"""

from collections.abc import Callable, Mapping, Sequence
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
from metaguide.data.importers.records import Table
from metaguide.data.importers.source import Place, Reject, Row, names_of
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
        table: (file, options) -> its table and the options that count for it; None if its files
            are no tables that a mapping describes.
    """

    summary: str
    importer: Importer
    suffixes: tuple[str, ...] = ()
    table: Callable[[Path, Options], tuple[Table, Options]] | None = None


def _table_format(
    summary: str,
    read: Callable[[Path, Options], Table],
    *suffixes: str,
    **fixed: Any,
) -> Format:
    """Return the format of tables, each read by itself; options that are given replace `fixed`."""

    def table(path: Path, options: Options) -> tuple[Table, Options]:
        usual = Options()
        unsaid = {k: v for k, v in fixed.items() if getattr(options, k) == getattr(usual, k)}
        options = replace(options, **unsaid)
        return read(path, options), options

    def importer(files: Sequence[Path], options: Options) -> Reading:
        return tables.joined(
            [
                tables.mapped(path, *table(path, options), name)
                for path, name in zip(files, names_of(files), strict=True)
            ]
        )

    return Format(summary, importer, suffixes, table)


FORMATS: Mapping[str, Format] = {
    "csv": _table_format("a table with a header, and a mapping", tables.csv, ".csv", ".txt"),
    "tsv": _table_format("the same, separated by tabs", tables.tsv, ".tsv"),
    "jsonl": _table_format(
        "one JSON object a line, and a mapping", tables.json_lines, ".jsonl", ".ndjson"
    ),
    "parquet": _table_format("Parquet, and a mapping", tables.parquet, ".parquet"),
    "amazon": Format("Amazon Reviews 2014, 2018 or 2023: reviews and metadata", amazon),
    "recbole": Format("RecBole's atomic files", recbole, (".item", ".inter")),
    "movielens": Format("MovieLens: movies and ratings", movielens),
    "squad": Format("SQuAD's JSON", squad),
    "subjqa": Format("SubjQA's tables", subjqa),
    "pricerunner": _table_format(
        "PriceRunner's products of several shops",
        tables.csv,
        columns=("id", "title", "vendor", "cluster", "label", "category_id", "category"),
        delimiter=",",
        mapping={name: name for name in ("id", "title", "category")},
    ),
    "fdu-mtl": _table_format(
        "FDU-MTL's reviews: label, tab, text",
        tables.tsv,
        columns=("sentiment", "text"),
        is_quoted=False,
    ),
    "arsc": _table_format(
        "ARSC's reviews: text, tab, label",
        tables.tsv,
        columns=("text", "sentiment"),
        is_quoted=False,
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
    if name.endswith((".xlsx", ".xls", ".ods", ".numbers")):
        raise CatalogueError(f"{path}: is a spreadsheet; save it as CSV, in UTF-8.")
    raise CatalogueError(
        f"{path}: its name does not tell the format; say which: {', '.join(FORMATS)}."
    )
