"""Importing a million reviews into a catalogue, and reading it: ours, and pandas on the same files.

python -m experiments.benchmarks.import_tables --rounds=1 --output=import.json

A step reads a table of reviews and writes `reviews.jsonl`. Ours checks every field, counts
repeated texts and ids, and streams; pandas reads the table into memory, renames the columns and
writes them. The workload `catalogue` reads what was imported: ours as `metaguide adapt` does, with
every field checked, pandas as JSON lines. pandas is timed where it is installed. The column of
products and the limit have no meaning here: there are none.
"""

import functools
import importlib.util
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from experiments.benchmarks.measure import ONLY, OUTPUT, ROUNDS, System, Workload, report, start

ROWS = flags.DEFINE_integer("rows", 1_000_000, "reviews of a table", lower_bound=1)

COLUMNS = {"id": "key", "text": "comment", "stars": "rating"}
"""The columns of the tables, keyed by field."""

TABLES = ("csv", "jsonl", "parquet")

CATALOGUE = "catalogue"
"""The workload that reads a domain."""


def write_table(path: Path, rows: int) -> None:
    """Write reviews of 5 to 60 words of a small vocabulary, no two alike."""
    rng = np.random.default_rng(0)
    words = np.array([f"word{number}" for number in range(5000)] + ["good,", 'the "best"'])
    texts = [" ".join(words[rng.integers(0, len(words), rng.integers(5, 60))]) for _ in range(1000)]
    records = (
        (f"r{row}", f"{texts[row % 1000]} {row}", int(1 + row % 5), "unread") for row in range(rows)
    )
    names = (*COLUMNS.values(), "other")
    if path.suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        columns = map(list, zip(*records, strict=True))
        parquet.write_table(pyarrow.table(dict(zip(names, columns, strict=True))), path)
        return
    with open(path, "w", encoding="utf-8", newline="") as file:
        if path.suffix == ".jsonl":
            for record in records:
                file.write(json.dumps(dict(zip(names, record, strict=True))) + "\n")
            return
        import csv

        writer = csv.writer(file)
        writer.writerow(names)
        writer.writerows(records)


def build_metaguide(path: Path) -> Callable[[], Any]:
    """Return a function that imports a table."""
    from metaguide.data.importers import FORMATS, Options, format_of, import_domain

    importer, options = FORMATS[format_of(path)].importer, Options(mapping=COLUMNS)
    folder = path.parent / f"{path.suffix[1:]}-metaguide"

    def run() -> None:
        import_domain(importer, [path], folder, options, replace=True)

    return run


def build_pandas(path: Path) -> Callable[[], Any]:
    """Return a function that reads a table by pandas and writes its three columns."""
    import pandas  # pyright: ignore[reportMissingImports]

    readers: dict[str, Callable[[Path], Any]] = {
        ".csv": pandas.read_csv,
        ".jsonl": functools.partial(pandas.read_json, lines=True),
        ".parquet": pandas.read_parquet,
    }
    target = path.parent / f"{path.suffix[1:]}-pandas.jsonl"

    def run() -> None:
        frame = readers[path.suffix](path)[list(COLUMNS.values())]
        frame.columns = list(COLUMNS)
        frame.to_json(target, orient="records", lines=True, force_ascii=False)

    return run


def build_reader(folder: Path) -> Callable[[], Any]:
    """Return a function that reads a domain."""
    from metaguide.data.catalogue import read_domain

    return lambda: read_domain(folder)


def build_pandas_reader(folder: Path) -> Callable[[], Any]:
    """Return a function that reads the reviews of a domain by pandas."""
    import pandas  # pyright: ignore[reportMissingImports]

    return lambda: pandas.read_json(folder / "reviews.jsonl", lines=True)


def main() -> None:
    """Write the tables, measure, print the table and write the rows."""
    folder = Path(tempfile.mkdtemp())
    workloads = []
    try:
        for name in ONLY.value or (*TABLES, CATALOGUE):
            path = folder / f"reviews.{'csv' if name == CATALOGUE else name}"
            write_table(path, ROWS.value)
            builds = {"metaguide": build_metaguide, "pandas": build_pandas}
            if name == CATALOGUE:
                build_metaguide(path)()  # imports what is read
                path = folder / "csv-metaguide"
                builds = {"metaguide": build_reader, "pandas": build_pandas_reader}
            if not importlib.util.find_spec("pandas"):
                del builds["pandas"]
            systems = [System(of, functools.partial(one, path)) for of, one in builds.items()]
            workloads.append(Workload(name, systems))
        report(workloads, ROUNDS.value, OUTPUT.value)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    start(main)
