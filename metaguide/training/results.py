"""The tidy format of all tables: rows in JSON, and the score of every example beside them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from metaguide.files import whole
from metaguide.training.rows import (
    FIELDS,
    TASKS,
    ResultsError,
    Row,
    Scores,
    cells_to_rows,
    check,
    difference,
    key,
    with_floors,
)

__all__ = [
    "FIELDS",
    "TASKS",
    "Results",
    "ResultsError",
    "Row",
    "Scores",
    "cells_to_rows",
    "check",
    "difference",
    "key",
    "read",
    "with_floors",
    "write",
]


class Results(NamedTuple):
    """A file of results and the scores beside it.

    Attributes:
        command: what was run.
        config: its resolved configuration, plain JSON.
        seeds: the training seeds.
        made: date and time, ISO 8601, UTC.
        rows: the table.
        scores: by the key of a row; empty where no file of scores stands beside.
    """

    command: str
    config: Mapping[str, Any]
    seeds: tuple[int, ...]
    made: str
    rows: tuple[Row, ...]
    scores: Scores


def write(
    rows: Sequence[Row],
    scores: Scores,
    folder: Path,
    *,
    command: str,
    config: Mapping[str, Any],
    seeds: Sequence[int],
    name: str = "results",
    made: str | None = None,
) -> Path:
    """Write `folder/results.json` and, beside it, `episodes.npz`; each whole or not at all.

    Args:
        rows: the table.
        scores: by the key of a row; no file is written where there are none.
        folder: made where it does not exist.
        command, config, seeds: of the run; `config` is plain JSON.
        name: another name than "results" gives `NAME.json` and `NAME.episodes.npz`.
        made: ISO 8601; now where it is not given.

    Returns:
        The path of the JSON file.

    Raises:
        ResultsError: two rows share a key, scores belong to no row, or `config` is not JSON.
    """
    keys = [key(row) for row in rows]
    twice = {k for k in keys if keys.count(k) > 1} if len(set(keys)) < len(keys) else set()
    if twice:
        raise ResultsError(f"two rows are both {min(twice)}")
    stray = set(scores) - set(keys)
    if stray:
        raise ResultsError(f"scores of {min(stray)} belong to no row")
    head = {
        "command": command,
        "config": config,
        "seeds": list(seeds),
        "made": made or datetime.now(UTC).isoformat(timespec="seconds"),
    }
    try:
        text = json.dumps(head, ensure_ascii=False, allow_nan=False, indent=1)
    except (TypeError, ValueError) as error:
        raise ResultsError(f"config of {name}: {error}; give plain JSON values") from None
    lines = ",\n".join(json.dumps(asdict(row), ensure_ascii=False) for row in rows)
    text = text[: text.rindex("}")].rstrip() + ',\n "rows": [\n' + lines + "\n ]\n}\n"

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    if scores:
        flat = {f"{k}/{part}": array for k, cell in scores.items() for part, array in cell.items()}
        with whole(_beside(path)) as file:
            np.savez_compressed(file, allow_pickle=False, **flat)
    with whole(path) as file:
        file.write(text.encode())
    return path


def read(path: Path) -> Results:
    """Read what `write` wrote.

    Args:
        path: the folder of a `results.json`, or a JSON file of results.

    Raises:
        ResultsError: the file is missing, not JSON, or breaks the format; names file and row.
    """
    if path.is_dir():
        path = path / "results.json"
    try:
        found = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ResultsError(
            f"{path}: there are no results; run the command that makes them"
        ) from None
    except ValueError as error:
        raise ResultsError(f"{path}: not JSON: {error}") from None
    expected = {"command", "config", "seeds", "made", "rows"}
    if not isinstance(found, dict) or set(found) != expected:
        raise ResultsError(f"{path}: the fields are not {', '.join(sorted(expected))}")
    rows = []
    for number, fields_ in enumerate(found["rows"]):
        try:
            check(fields_)
        except ResultsError as error:
            raise ResultsError(f"{path}: row {number}: {error}") from None
        rows.append(Row(**fields_))
    scores: Scores = {}
    if _beside(path).exists():
        with np.load(_beside(path)) as arrays:
            for name in arrays.files:
                cell, part = name.rsplit("/", 1)
                scores.setdefault(cell, {})[part] = arrays[name]
    head = {name: found[name] for name in ("command", "config", "made")}
    return Results(seeds=tuple(found["seeds"]), rows=tuple(rows), scores=scores, **head)


def _beside(path: Path) -> Path:
    prefix = "" if path.stem == "results" else f"{path.stem}."
    return path.with_name(f"{prefix}episodes.npz")
