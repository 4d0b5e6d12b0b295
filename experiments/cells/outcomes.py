"""Outcomes of cells on disk: computed once, checked, and collected for a table."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from ml_collections.config_dict import FrozenConfigDict

from experiments.cells.config import HARMLESS
from experiments.config_files import ConfigError
from experiments.processes import command_line
from experiments.run_folder import CONFIG, check_config, identity, read_config, write_config
from metaguide.evaluation.results import Row, Scores, write
from metaguide.files import MIB, FileFault, read_arrays, write_arrays
from metaguide.parallel import ONE_FOLDER, check_agreed, is_first_process

OUTCOME = "outcome.npz"
"""In the folder of a cell: arrays [observations, episodes, queries] by name."""

MOST = 1024 * MIB
"""Bytes of the arrays of an outcome."""


def outcome_of(
    folder: Path,
    config: FrozenConfigDict,
    compute: Callable[[], Mapping[str, np.ndarray]],
) -> dict[str, np.ndarray]:
    """Return the outcome of a cell, computed where its folder has none yet, and keep it there.

    Args:
        folder: of the cell and seed.
        config: what the cell depends on; it must be what it was in this folder.
        compute: trains and scores.
    """
    if not is_finished(folder, config):
        found = dict(compute())
        keep_outcome(folder, found)
        return found
    return _outcome_in(folder)


def is_finished(folder: Path, config: FrozenConfigDict) -> bool:
    """Return whether a cell's folder has its outcome; the folder is made, and made the config's.

    Args:
        folder: of the cell and seed.
        config: what the cell depends on; it must be what it was in this folder.

    Raises:
        ConfigError: the folder is of another config, or its outcome is damaged.
    """
    write_config(config, folder, harmless=HARMLESS)
    known = bool(_outcome_in(folder))
    # Training takes all processes: none may skip it alone.
    check_agreed(known, f"{folder / OUTCOME} is there for some processes only; {ONE_FOLDER}")
    return known


def keep_outcome(folder: Path, found: Mapping[str, np.ndarray]) -> None:
    """Write a cell's outcome into its folder; of several processes the first one does."""
    if is_first_process():
        write_arrays(folder / OUTCOME, found, of=_names_of(folder)[0])


def _outcome_in(folder: Path, needed: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Return the outcome in the folder of a cell and seed; {} where there is none."""
    path = folder / OUTCOME
    try:
        found = read_arrays(path, MOST, of=_names_of(folder))
        for name in needed:
            if name not in found:
                raise FileFault(f"it has no {name!r}: it is of another table, or lost it")
            if found[name].dtype.kind not in "biuf" or not found[name].size:
                raise FileFault(f"its {name!r} holds no numbers")
        return found
    except FileNotFoundError:
        return {}
    except FileFault as error:
        raise ConfigError(
            f"{path}: {error}; delete this file, and the cell is scored anew"
        ) from error


def _names_of(folder: Path) -> tuple[str, ...]:
    """Return what the outcome of a cell and seed is called: "GROUP/METHOD/seedN, config ID".

    Outcomes of some days are called by the first part of it alone.
    """
    cell = "/".join(folder.absolute().parts[-3:])
    if not (folder / CONFIG).exists():
        return (cell,)
    return f"{cell}, config {identity(read_config(folder), harmless=HARMLESS)}", cell


def check_cells(workdir: Path, config_of: Callable[[str, str], FrozenConfigDict | None]) -> None:
    """Refuse a work folder that has cells of another config: one table would mix the two.

    Args:
        workdir: of the table; a seed of a cell is in `WORKDIR/GROUP/METHOD/seedN`.
        config_of: (group, method) -> what the cell depends on; None where it has no part in the
            table.

    Raises:
        ConfigError: names a cell's folder, the fields and the fix.
    """
    for folder in sorted(workdir.glob("*/*/seed*")):
        _, group, method, _ = folder.parts[-4:]
        if (cell := config_of(group, method)) is not None:
            check_config(cell, folder, harmless=HARMLESS)


def outcomes_in(
    workdir: Path, cell: str, seeds: int, needed: Sequence[str] = ()
) -> dict[str, np.ndarray]:
    """Return the outcomes of a cell's first seeds, stacked; {} where none is finished.

    Args:
        workdir: of the table.
        cell: the cell's name.
        seeds: how many are looked for; those that are finished count.
        needed: names of arrays that the table cannot do without; of the others those are returned
            that all seeds have. By default all are needed.

    Raises:
        ConfigError: an outcome is damaged, of another cell, table or config, or has other arrays or
            shapes than those of the other seeds.
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
                    f"{folder / OUTCOME}: its {name!r} is of shape {list(one[name].shape)}, and "
                    f"another seed's of {list(first[name].shape)}; delete this file, and the cell "
                    "is scored anew"
                )
    return {name: np.stack([one[name] for one in found.values()]) for name in names}


def write_table(
    config: FrozenConfigDict, workdir: Path, rows: Sequence[Row], scores: Scores
) -> Path:
    """Write the rows of all finished cells to the table's work folder; return the file."""
    return write(
        rows,
        scores,
        workdir,
        command=command_line(),
        config=config.to_dict(),
        seeds=range(config.seeds),
    )
