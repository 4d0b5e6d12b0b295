"""Outcomes of cells on disk: computed once, checked, and collected for a table.

The outcome of a cell is arrays [observations, episodes, queries], keyed by name.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from ml_collections.config_dict import FrozenConfigDict

from experiments.cells.config import HARMLESS
from experiments.config_files import ConfigError
from experiments.run_folder import (
    CONFIG,
    MOST,
    OUTCOME,
    check_config,
    identity,
    read_config,
    write_config,
    write_results,
)
from metaguide.evaluation.results import Row, Scores
from metaguide.files import FileFault, read_arrays, write_arrays
from metaguide.parallel import ONE_FOLDER, check_agreed, is_first_process


def outcome_of(
    folder: Path,
    config: FrozenConfigDict,
    compute: Callable[[], Mapping[str, np.ndarray]],
) -> dict[str, np.ndarray]:
    """Return the outcome of a cell; if its folder has none yet, compute it and save it there.

    Args:
        folder: folder of the cell and seed.
        config: what the cell depends on; it must agree with earlier runs in this folder.
        compute: function that trains and scores.
    """
    if not is_finished(folder, config):
        found = dict(compute())
        keep_outcome(folder, found)
        return found
    return _outcome_in(folder)


def is_finished(folder: Path, config: FrozenConfigDict) -> bool:
    """Return whether a cell's folder has its outcome; create and claim the folder for the config.

    A finished cell is printed: a change of the code does not make it unfinished.

    Args:
        folder: folder of the cell and seed.
        config: what the cell depends on; it must agree with earlier runs in this folder.

    Raises:
        ConfigError: the folder belongs to another config, or its outcome is damaged.
    """
    write_config(config, folder, harmless=HARMLESS)
    known = bool(_outcome_in(folder))
    # Training needs all processes, so none may skip it alone.
    check_agreed(known, f"only some processes find {folder / OUTCOME}; {ONE_FOLDER}")
    if known and is_first_process():
        print(f"{folder}: scored before; delete {OUTCOME} there to train and score it anew")
    return known


def keep_outcome(folder: Path, found: Mapping[str, np.ndarray]) -> None:
    """Write a cell's outcome to its folder; with several processes, only the first one writes."""
    if is_first_process():
        write_arrays(folder / OUTCOME, found, of=_names_of(folder)[0])


def _outcome_in(folder: Path, needed: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Return the outcome in the folder of a cell and seed; {} if there is none."""
    path = folder / OUTCOME
    try:
        found = read_arrays(path, MOST, of=_names_of(folder))
        for name in needed:
            if name not in found:
                raise FileFault(f"it has no {name!r}: it belongs to another table, or is damaged")
            if found[name].dtype.kind not in "biuf" or not found[name].size:
                raise FileFault(f"its {name!r} holds no numbers")
        return found
    except FileNotFoundError:
        return {}
    except FileFault as error:
        raise ConfigError(
            f"{path}: {error}; delete this file, and the cell is scored again"
        ) from error


def _names_of(folder: Path) -> tuple[str, ...]:
    """Return the names of the outcome of a cell and seed: "GROUP/METHOD/seedN, config ID".

    Older outcomes are named by the first part alone.
    """
    cell = "/".join(folder.absolute().parts[-3:])
    if not (folder / CONFIG).exists():
        return (cell,)
    return f"{cell}, config {identity(read_config(folder), harmless=HARMLESS)}", cell


def check_cells(workdir: Path, config_of: Callable[[str, str], FrozenConfigDict | None]) -> None:
    """Refuse a work folder with cells of another config, since the table would mix the two.

    Args:
        workdir: work folder of the table; a seed of a cell is in `WORKDIR/GROUP/METHOD/seedN`.
        config_of: (group, method) -> what the cell depends on; None if it is not part of the table.

    Raises:
        ConfigError: there are such cells; the message names the folder, the fields and the fix.
    """
    for folder in sorted(workdir.glob("*/*/seed*")):
        _, group, method, _ = folder.parts[-4:]
        if (cell := config_of(group, method)) is not None:
            check_config(cell, folder, harmless=HARMLESS)


def outcomes_in(
    workdir: Path, cell: str, seeds: int, needed: Sequence[str] = ()
) -> dict[str, np.ndarray]:
    """Return the stacked outcomes of a cell's first seeds; {} if none is finished.

    Args:
        workdir: work folder of the table.
        cell: the cell's name.
        seeds: number of seeds to look for; only finished ones are used.
        needed: names of arrays that the table requires. Other arrays are returned if all seeds have
            them. By default all arrays are required.

    Raises:
        ConfigError: an outcome is damaged, belongs to another cell, table or config, or its arrays
            or shapes differ from those of the other seeds.
    """
    folders = [workdir / cell / f"seed{seed}" for seed in range(seeds)]
    of_seeds = {folder: _outcome_in(folder, needed) for folder in folders}
    found = {folder: one for folder, one in of_seeds.items() if one}
    if not found:
        return {}
    first = next(iter(found.values()))
    lacking = {name for one in found.values() for name in {*first} ^ {*one}}
    if lacking and not needed:
        raise ConfigError(
            f"{workdir / cell}: the outcomes of its seeds do not have the same arrays: "
            f"{', '.join(sorted(lacking))}; delete the {OUTCOME} that lacks them"
        )
    names = [name for name in first if name not in lacking]
    for folder, one in found.items():
        for name in names:
            if one[name].shape != first[name].shape:
                raise ConfigError(
                    f"{folder / OUTCOME}: its {name!r} has shape {list(one[name].shape)}, and "
                    f"another seed's has shape {list(first[name].shape)}; delete this file, "
                    "and the cell is scored again"
                )
    return {name: np.stack([one[name] for one in found.values()]) for name in names}


def write_table(
    config: FrozenConfigDict, workdir: Path, rows: Sequence[Row], scores: Scores
) -> Path:
    """Write the rows of all finished cells to the table's work folder; return the file."""
    return write_results(config, workdir, rows, scores, range(config.seeds))
