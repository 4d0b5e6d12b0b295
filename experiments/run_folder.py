"""The folder of a run: which config it belongs to, and which process works in it."""

import json
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections.config_dict import ConfigDict, FrozenConfigDict

from experiments.config_files import ConfigError, flat
from experiments.processes import command_line
from metaguide.evaluation.results import Row, Scores, write
from metaguide.files import MIB, FileFault, held, read_arrays, read_json, write_arrays, write_json
from metaguide.parallel import ONE_FOLDER, check_agreed, is_first_process
from metaguide.training.checkpoint import FOLDER
from metaguide.training.progress import say

HARMLESS = ("preset", "log_every", "checkpoint_every", "compilation")
"""Fields that may differ between two runs in one work folder; see `write_config`."""

OUTCOME = "outcome.npz"
"""File with the arrays of a part of a run that is finished."""

KEPT = frozenset({OUTCOME, "results.json"})
"""Files, in addition to checkpoints, that make a work folder worth keeping."""

SAID = "said"
"""Name, beside the arrays of a finished part, of the JSON that says what was chosen in it."""

MOST = 1024 * MIB
"""Maximum bytes of the arrays of a finished part."""

CONFIG = "config.json"
"""File in a work folder with the config of its run."""


def write_config(
    config: ConfigDict | FrozenConfigDict, workdir: Path, *, harmless: Sequence[str] = HARMLESS
) -> None:
    """Claim `workdir` for `config` by atomically writing `config.json` there.

    If there are several processes, all must call this function; the first one writes.

    Args:
        config: a resolved config.
        workdir: the work folder; created if missing.
        harmless: fields that may have changed since the folder's last run: dotted names, names of
            sections, or last parts of names.

    Raises:
        ConfigError: the folder holds a run with another config; the message names the fields and
            the fix.
    """
    check_config(config, workdir, harmless=harmless)
    if is_first_process():
        write_json(workdir / CONFIG, config.to_dict())


@contextmanager
def claimed(
    config: ConfigDict | FrozenConfigDict, workdir: Path, *, harmless: Sequence[str] = HARMLESS
) -> Iterator[None]:
    """Claim `workdir` for `config`, as `write_config` does, and for this process alone.

    Raises:
        ConfigError: as for `write_config`.
        FolderHeld: another process works in the folder.
    """
    with held(workdir) if is_first_process() else nullcontext():
        write_config(config, workdir, harmless=harmless)
        yield


def finished(
    folder: Path,
    about: str,
    compute: Callable[[], tuple[Mapping[str, np.ndarray], Any]],
    *,
    quietly: bool = False,
) -> tuple[dict[str, np.ndarray], Any]:
    """Return what a part of a run found; compute it only if its folder does not hold it yet.

    A run that is started again goes on from the first part that was not finished.

    Args:
        folder: folder of the part, inside a work folder that is `claimed`.
        about: what the part depends on besides the config, such as a checksum of the data.
        compute: () -> arrays keyed by name, and what is said of them, as plain JSON.
        quietly: whether not to say that the part was finished before.

    Raises:
        ConfigError: what the folder holds is about something else, or damaged.
    """
    path = folder / OUTCOME
    try:
        found = read_arrays(path, MOST, of=about)
        if SAID not in found:
            raise FileFault("it does not say what was chosen")
        if not quietly:
            say(f"{folder}: finished before")
    except FileNotFoundError:
        arrays, said = compute()
        found = {**arrays, SAID: np.array(json.dumps(said, ensure_ascii=False))}
        write_arrays(path, found, of=about)
    except FileFault as error:
        raise ConfigError(f"{path}: {error}; give a new --workdir, or delete that file") from error
    return {name: one for name, one in found.items() if name != SAID}, json.loads(str(found[SAID]))


def write_results(
    config: ConfigDict | FrozenConfigDict,
    workdir: Path,
    rows: Sequence[Row],
    scores: Scores,
    seeds: Sequence[int],
    **more: Any,
) -> Path:
    """Write the results of a run, with its command and its config; return the JSON file.

    Args:
        config: the resolved config.
        workdir: the work folder.
        rows, scores, seeds: as in `metaguide.evaluation.results.write`.
        more: other fields of it, such as `tunings`.
    """
    head = {"command": command_line(), "config": config.to_dict(), "seeds": seeds}
    return write(rows, scores, workdir, **head, **more)


def check_config(
    config: ConfigDict | FrozenConfigDict, workdir: Path, *, harmless: Sequence[str] = HARMLESS
) -> None:
    """Refuse a work folder with a run of another config, as `write_config` does.

    A folder in which nothing was finished, neither a checkpoint nor an outcome, accepts any config.
    """
    path = workdir / CONFIG
    new = flat(_through_json(config.to_dict()))
    old = flat(_read(path)) if path.exists() else new
    differing = [
        f"{name} was {_show(old, name)}, is {_show(new, name)}"
        for name in sorted({*old, *new})
        if _show(old, name) != _show(new, name) and not _is_among(name, harmless)
    ]
    check_agreed(differing, f"{path} is not the same for all processes; {ONE_FOLDER}")
    if differing and _has_kept(workdir):
        raise ConfigError(
            f"{workdir} holds a run with another config: {'; '.join(differing)}; "
            "give a new --workdir, or delete that folder"
        )


def identity(config: ConfigDict | FrozenConfigDict, *, harmless: Sequence[str] = HARMLESS) -> str:
    """Return a short name for everything a run depends on; different configs differ in it.

    Args:
        config: a resolved config.
        harmless: fields that make no difference, as for `write_config`.
    """
    fields = flat(_through_json(config.to_dict()))
    kept = {name: value for name, value in fields.items() if not _is_among(name, harmless)}
    return f"{zlib.crc32(json.dumps(kept, sort_keys=True).encode()):08x}"


def read_config(workdir: Path) -> FrozenConfigDict:
    """Return the config that `write_config` wrote to `workdir`, with sequences as tuples.

    Raises:
        ConfigError: there is none, or it is damaged.
    """
    path = workdir / CONFIG
    try:
        return FrozenConfigDict(_tuples(_read(path)))
    except (TypeError, ValueError) as error:  # such as a dict in a list, which no config has
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path}: not a config ({error}); delete that folder") from error


def _is_among(name: str, fields: Sequence[str]) -> bool:
    return any(name == f or name.startswith(f + ".") or name.endswith("." + f) for f in fields)


def _has_kept(workdir: Path) -> bool:
    """Return whether a work folder has anything that could be lost, or mixed with another run."""
    return any(
        KEPT.intersection(files) or (Path(folder).name == FOLDER and folders)
        for folder, folders, files in os.walk(workdir)
    )


def _through_json(tree: Mapping[str, Any]) -> Any:
    return json.loads(json.dumps(tree))


def _show(fields: Mapping[str, Any], name: str) -> str:
    return json.dumps(fields[name], ensure_ascii=False) if name in fields else "absent"


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; give the work folder of a run") from None
    except FileFault as error:
        raise ConfigError(f"{path}: not a config ({error}); delete that folder") from error


def _tuples(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _tuples(one) for key, one in value.items()}
    return tuple(_tuples(one) for one in value) if isinstance(value, list) else value
