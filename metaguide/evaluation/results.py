"""The tidy format of all tables: rows in JSON, and every example's score in a second file."""

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, NotRequired, TypedDict

import numpy as np

from metaguide.evaluation.rows import (
    FIELDS,
    LOWER_IS_BETTER,
    ResultsError,
    Row,
    Scores,
    cells_to_rows,
    check,
    difference,
    difference_over_seeds,
    key,
    with_baselines,
)
from metaguide.files import (
    MIB,
    FileFault,
    atomic_write,
    checksum,
    fits,
    read_arrays,
    read_json,
    write_arrays,
)

__all__ = [
    "FIELDS",
    "LOWER_IS_BETTER",
    "Results",
    "ResultsError",
    "Row",
    "Scores",
    "Tuning",
    "cells_to_rows",
    "check",
    "difference",
    "difference_over_seeds",
    "key",
    "read",
    "with_baselines",
    "write",
]


MOST = 1024 * MIB
"""Bytes of a file of results, or of all scores beside it."""

_LARGEST = float(np.finfo(np.float64).max)

VERSION = 2
"""Of the files; those of version 1 say `arm`, `floor` and `methods`, and are read on."""

_ANEW = "write it anew by the command that made it"


class TunedBy(TypedDict):
    """The basis for choosing a rate: a metric, and its value on the validation domains."""

    metric: str
    score: float


class Tuning(TypedDict):
    """The choice of validation for one method on one task, and the method's cost.

    `learning_rate` is None if nothing is tuned. `diverged` is the share of non-finite validation
    outcomes. `seconds` is the time to adapt to and answer one test episode, without compilation;
    None if no outcome was timed. `training_seconds` is present if measured.
    """

    task: str
    method: str
    learning_rate: float | None
    tuned_by: TunedBy
    diverged: float
    seconds: float | None
    training_seconds: NotRequired[float]


class Results(NamedTuple):
    """A file of results and the file of scores next to it.

    Attributes:
        command: the command that was run.
        config: its resolved configuration, plain JSON.
        seeds: the training seeds.
        made: date and time, ISO 8601, UTC.
        rows: the table.
        scores: scores keyed by row key; empty if there is no file of scores.
        tunings: the choices of validation; empty in files older than this field.
        classes: each domain's class names, in the order of the predicted class indices; empty in
            files older than this field.
    """

    command: str
    config: Mapping[str, Any]
    seeds: tuple[int, ...]
    made: str
    rows: tuple[Row, ...]
    scores: Scores
    tunings: tuple[Tuning, ...] = ()
    classes: Mapping[str, Sequence[str]] = MappingProxyType({})


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
    tunings: Sequence[Tuning] = (),
    classes: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> Path:
    """Write `folder/results.json` and `folder/episodes.npz`, each atomically.

    Args:
        rows: the table.
        scores: scores keyed by row key; without any, no file of scores is left.
        folder: the folder; created if missing.
        command, config, seeds: those of the run; `config` is plain JSON.
        name: a name other than "results" gives `NAME.json` and `NAME.episodes.npz`.
        made: date and time, ISO 8601; now by default.
        tunings: one per task and method; the field is omitted if there are none.
        classes: class names keyed by domain; the field is omitted if there are none.

    Returns:
        The path of the JSON file.

    Raises:
        ResultsError: two rows share a key, scores belong to no row, a tuning or class name is
            invalid, or `config` is not JSON.
    """
    keys = [key(row) for row in rows]
    twice = {k for k in keys if keys.count(k) > 1} if len(set(keys)) < len(keys) else set()
    if twice:
        raise ResultsError(f"two rows are both {min(twice)}")
    stray = set(scores) - set(keys)
    if stray:
        raise ResultsError(f"scores of {min(stray)} belong to no row")
    head: dict[str, Any] = {
        "version": VERSION,
        "command": command,
        "config": config,
        "seeds": list(seeds),
        "made": made or datetime.now(UTC).isoformat(timespec="seconds"),
    }
    optional = {name: found for name, found in _plain(tunings, classes).items() if found}
    _check_optional(optional)
    head |= {"classes": optional["classes"]} if classes else {}
    flat = {f"{k}/{part}": array for k, cell in scores.items() for part, array in cell.items()}
    head["crc32"] = {"rows": _checksum([asdict(row) for row in rows])}
    head["crc32"] |= {name: _checksum(found) for name, found in optional.items()}
    head["crc32"] |= {"arrays": checksum(flat)} if scores else {}
    try:
        text = json.dumps(head, ensure_ascii=False, allow_nan=False, indent=1)
    except (TypeError, ValueError) as error:
        raise ResultsError(f"config of {name}: {error}; give plain JSON values") from None
    listed = {"tunings": optional["tunings"]} if tunings else {}
    listed["rows"] = [asdict(row) for row in rows]
    text = text[: text.rindex("}")].rstrip()
    for field, entries in listed.items():
        lines = ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in entries)
        text += f',\n "{field}": [\n{lines}\n ]'
    text += "\n}\n"

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    if scores:
        write_arrays(_beside(path), flat)
    else:
        _beside(path).unlink(missing_ok=True)  # those of the results that stood here
    with atomic_write(path) as file:
        file.write(text.encode())
    return path


def read(path: Path) -> Results:
    """Read what `write` wrote.

    Args:
        path: the folder of a `results.json`, or a JSON file of results.

    Raises:
        ResultsError: the file is missing, is not JSON, or violates the format; the message names
            the file and the row.
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
    # Files from before there were checksums, tunings or names of classes have none.
    version = found.pop("version", 1)
    if version not in (1, VERSION):
        raise ResultsError(
            f"{path}: it is of version {version!r:.80}, and this metaguide reads 1 to {VERSION}; "
            "update metaguide"
        )
    listed = "methods" if version == 1 else "tunings"
    optional = {"crc32", listed, "classes"}
    if set(found) - optional != set(expected):
        raise ResultsError(f"{path}: the fields are not {', '.join(sorted(expected))}")
    for name, type_ in expected.items():
        if not isinstance(found[name], type_):
            raise ResultsError(f"{path}: field {name!r} is {found[name]!r:.80}; {_ANEW}")
    if not all(type(seed) is int for seed in found["seeds"]):
        raise ResultsError(f"{path}: field 'seeds' is {found['seeds']!r:.80}; {_ANEW}")
    sums = found.get("crc32", {})
    if not isinstance(sums, dict):
        raise ResultsError(f"{path}: field 'crc32' is {sums!r:.80}; {_ANEW}")
    for name in ("rows", listed, "classes"):
        if name in sums and sums[name] != _checksum(found.get(name)):
            raise ResultsError(f"{path}: its {name} are not those that were written; {_ANEW}")
    if version == 1:
        found = _renewed(found)
    try:
        _check_optional({name: found[name] for name in ("tunings", "classes") if name in found})
    except ResultsError as error:
        raise ResultsError(f"{path}: {error}; {_ANEW}") from None
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
    return Results(
        seeds=tuple(found["seeds"]),
        rows=tuple(rows),
        scores=scores,
        tunings=tuple(found.get("tunings", ())),
        classes=found.get("classes", {}),
        **head,
    )


def _renewed(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a file of version 1 under the current names."""
    names = {"arm": "method", "floor": "baseline", "rate": "learning_rate"}

    def renewed(entries: Any) -> Any:
        if not isinstance(entries, list):
            return entries
        return [
            {names.get(name, name): value for name, value in entry.items()}
            if isinstance(entry, dict)
            else entry
            for entry in entries
        ]

    rest = {name: field for name, field in found.items() if name != "methods"}
    listed = {"tunings": renewed(found["methods"])} if "methods" in found else {}
    return {**rest, "rows": renewed(found["rows"]), **listed}


def _plain(
    tunings: Sequence[Tuning], classes: Mapping[str, Sequence[str]]
) -> dict[str, list[Any] | dict[str, Any]]:
    """Return the optional fields as the plain JSON that they are read back as."""
    return {
        "tunings": [dict(tuning) for tuning in tunings],
        "classes": {domain: list(names) for domain, names in classes.items()},
    }


def _check_optional(found: Mapping[str, Any]) -> None:
    """Check tunings and class names; ResultsError names the first invalid one."""
    classes = found.get("classes", {})
    names = classes.values() if isinstance(classes, dict) else (None,)
    if not all(isinstance(n, list) and all(isinstance(one, str) for one in n) for n in names):
        raise ResultsError(f"field 'classes' is {classes!r:.80}, not lists of names by domain")
    tunings = found.get("tunings", [])
    if not isinstance(tunings, list):
        raise ResultsError(f"field 'tunings' is {tunings!r:.80}, not a list")
    for number, tuning in enumerate(tunings):
        if fault := _fault(tuning):
            raise ResultsError(f"tuning {number}: {fault}")
    pairs = [(tuning["task"], tuning["method"]) for tuning in tunings]
    if len(set(pairs)) < len(pairs):
        task, method = next(pair for pair in pairs if pairs.count(pair) > 1)
        raise ResultsError(f"two tunings are both of {method} on {task}")


def _fault(tuning: Any) -> str:
    """Return what is wrong with an entry of `tunings`, or "" if nothing is."""
    if not isinstance(tuning, dict):
        return f"{tuning!r:.80} has no fields"
    odd = (set(tuning) ^ set(Tuning.__annotations__)) - {"training_seconds"}
    if odd:
        return f"unknown or missing: {', '.join(sorted(odd))}"
    by = tuning["tuned_by"]
    tuned = isinstance(by, dict) and set(by) == set(TunedBy.__annotations__)
    right = {
        "task": _is_name(tuning["task"]),
        "method": _is_name(tuning["method"]),
        "learning_rate": tuning["learning_rate"] is None
        or _is_number(tuning["learning_rate"], 0.0),
        "tuned_by": tuned and _is_name(by["metric"]) and _is_number(by["score"]),
        "diverged": _is_number(tuning["diverged"], 0.0, 1.0),
        "seconds": tuning["seconds"] is None or _is_number(tuning["seconds"], 0.0),
        "training_seconds": _is_number(tuning.get("training_seconds", 0), 0.0),
    }
    wrong = next((field for field, is_right in right.items() if not is_right), None)
    return "" if wrong is None else f"field {wrong!r} is {tuning[wrong]!r:.80}"


def _is_name(found: Any) -> bool:
    return isinstance(found, str) and bool(found)


def _is_number(found: Any, least: float = -_LARGEST, most: float = _LARGEST) -> bool:
    """Return whether this is a number in the range; NaN and infinity, which Python reads, fail."""
    return type(found) in (int, float) and least <= found <= most


def _scores(path: Path, keys: set[str], sums: Mapping[str, Any]) -> Scores:
    """Read the scores of single examples next to a file of results; {} if there are none."""
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
        # Files made before 30 November 2026 have no values of single seeds.
        if set(arrays) - {"by_seed", "once"} != parts:
            raise ResultsError(f"{path}: {cell} has {', '.join(sorted(arrays))}; {_ANEW}")
        shape, seeds = arrays["id"].shape, arrays.get("by_seed", np.zeros(1))
        leaves = [arrays[part] for part in parts]
        fit = seeds.ndim == 1 and all(leaf.shape[-2:] == shape for leaf in leaves)
        if len(shape) != 2 or not fit:
            raise ResultsError(f"{path}: {cell} has arrays that do not fit; {_ANEW}")
    return scores


def _checksum(content: Any) -> int:
    """Return CRC-32 of plain JSON."""
    return zlib.crc32(json.dumps(content, sort_keys=True, ensure_ascii=False).encode())


def _beside(path: Path) -> Path:
    prefix = "" if path.stem == "results" else f"{path.stem}."
    return path.with_name(f"{prefix}episodes.npz")
