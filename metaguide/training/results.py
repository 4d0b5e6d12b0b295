"""The tidy format of all tables: rows in JSON, and the score of every example beside them."""

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from metaguide.files import (
    MIB,
    FileFault,
    checksum,
    fits,
    read_arrays,
    read_json,
    whole,
    write_arrays,
)
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


MOST = 1024 * MIB
"""Bytes of a file of results, or of all scores beside it."""

_ANEW = "write it anew by the command that made it"


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
        scores: by the key of a row; no file is left where there are none.
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
    flat = {f"{k}/{part}": array for k, cell in scores.items() for part, array in cell.items()}
    head["crc32"] = {"rows": _checksum([asdict(row) for row in rows])}
    head["crc32"] |= {"arrays": checksum(flat)} if scores else {}
    try:
        text = json.dumps(head, ensure_ascii=False, allow_nan=False, indent=1)
    except (TypeError, ValueError) as error:
        raise ResultsError(f"config of {name}: {error}; give plain JSON values") from None
    lines = ",\n".join(json.dumps(asdict(row), ensure_ascii=False) for row in rows)
    text = text[: text.rindex("}")].rstrip() + ',\n "rows": [\n' + lines + "\n ]\n}\n"

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    if scores:
        write_arrays(_beside(path), flat)
    else:
        _beside(path).unlink(missing_ok=True)  # those of the results that stood here
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
        found = read_json(path, MOST)
    except FileNotFoundError:
        raise ResultsError(
            f"{path}: there are no results; run the command that makes them"
        ) from None
    except FileFault as error:
        raise ResultsError(f"{path}: {error}; {_ANEW}") from None
    expected = {"command": str, "config": dict, "seeds": list, "made": str, "rows": list}
    # Files from before there were checksums have none.
    if set(found) - {"crc32"} != set(expected):
        raise ResultsError(f"{path}: the fields are not {', '.join(sorted(expected))}")
    for name, type_ in expected.items():
        if not isinstance(found[name], type_):
            raise ResultsError(f"{path}: field {name!r} is {found[name]!r:.80}; {_ANEW}")
    if not all(type(seed) is int for seed in found["seeds"]):
        raise ResultsError(f"{path}: field 'seeds' is {found['seeds']!r:.80}; {_ANEW}")
    sums = found.get("crc32", {})
    if not isinstance(sums, dict) or sums.get("rows", _checksum(found["rows"])) != _checksum(
        found["rows"]
    ):
        raise ResultsError(f"{path}: its rows are not those that were written; {_ANEW}")
    rows = []
    for number, fields_ in enumerate(found["rows"]):
        if not isinstance(fields_, dict):
            raise ResultsError(f"{path}: row {number}: {fields_!r:.80} is no row; {_ANEW}")
        try:
            check(fields_)
            rows.append(Row(**fields_))
        except ResultsError as error:
            raise ResultsError(f"{path}: row {number}: {error}") from None
    keys = [key(row) for row in rows]
    if len(set(keys)) < len(keys):
        twice = next(k for k in keys if keys.count(k) > 1)
        raise ResultsError(f"{path}: two rows are both {twice}; {_ANEW}")
    head = {name: found[name] for name in ("command", "config", "made")}
    scores = _scores(_beside(path), set(keys), sums)
    return Results(seeds=tuple(found["seeds"]), rows=tuple(rows), scores=scores, **head)


def _scores(path: Path, keys: set[str], sums: Mapping[str, Any]) -> Scores:
    """Read the scores of single examples beside a file of results; {} where there are none."""
    try:
        flat = read_arrays(path, MOST)
    except FileNotFoundError:
        return {}
    except FileFault as error:
        raise ResultsError(f"{path}: cannot be read ({error}); {_ANEW}") from None
    # Files of version 0.1 have none, and those of some days after it a checksum of the names.
    by_names = "scores" in sums and sums["scores"] != _checksum(sorted(flat))
    if by_names or ("arrays" in sums and not fits(sums["arrays"], flat)):
        raise ResultsError(f"{path}: it is not of the results beside it; {_ANEW}")
    scores: Scores = {}
    for name, array in flat.items():
        cell, _, part = name.rpartition("/")
        if cell not in keys:
            raise ResultsError(f"{path}: {name!r} belongs to no row; {_ANEW}")
        if array.dtype.kind not in "iuf":
            raise ResultsError(f"{path}: {name!r} is {array.dtype}, no numbers; {_ANEW}")
        scores.setdefault(cell, {})[part] = array
    for cell, arrays in scores.items():
        parts = {"predicted", "target", "id"} if "predicted" in arrays else {"score", "id"}
        if set(arrays) != parts:
            raise ResultsError(f"{path}: {cell} has {', '.join(sorted(arrays))}; {_ANEW}")
        shape = arrays["id"].shape
        if len(shape) != 2 or any(leaf.shape[-2:] != shape for leaf in arrays.values()):
            raise ResultsError(f"{path}: {cell} has arrays that do not fit; {_ANEW}")
    return scores


def _checksum(content: Any) -> int:
    """Return CRC-32 of plain JSON."""
    return zlib.crc32(json.dumps(content, sort_keys=True, ensure_ascii=False).encode())


def _beside(path: Path) -> Path:
    prefix = "" if path.stem == "results" else f"{path.stem}."
    return path.with_name(f"{prefix}episodes.npz")
