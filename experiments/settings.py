"""How an experiment reads its command line: a config file, presets, overrides, the work folder."""

import errno
import gc
import json
import math
import os
import signal
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import jax
from ml_collections.config_dict import ConfigDict, FrozenConfigDict

from experiments.command import (
    ConfigError,
    asks_for_help,
    describe,
    device_flags,
    find_config,
    refuse,
    resolve,
)
from experiments.command import flat as _flat
from experiments.compilation import compile_as
from metaguide.data.catalogue import CatalogueError
from metaguide.data.episodes import EpisodeError
from metaguide.data.mnist import MnistError
from metaguide.data.omniglot import OmniglotError
from metaguide.data.tokenizer import TokenizerError
from metaguide.evaluation.results import ResultsError
from metaguide.files import FileFault, FolderHeld, held, read_json, write_json
from metaguide.optimizers import StoredError
from metaguide.parallel import (
    AUTO,
    ONE_FOLDER,
    DeviceError,
    check_agreed,
    connect,
    is_first_process,
    use_cpu_devices,
)
from metaguide.training.checkpoint import FOLDER, CheckpointError
from metaguide.training.interruption import Stopped, stopping_at_once
from metaguide.training.loop import TrainingDiverged

__all__ = [
    "CONFIG",
    "HARMLESS",
    "KEPT",
    "MENDABLE",
    "ConfigError",
    "check_config",
    "check_positive",
    "claimed",
    "collect_seldom",
    "describe",
    "enable_compilation_cache",
    "find_config",
    "identity",
    "read_config",
    "resolve",
    "run",
    "set_up_devices",
    "write_config",
]

HARMLESS = ("preset", "log_every", "checkpoint_every", "compilation")
"""Fields that may differ between two runs in one work folder; see `write_config`."""

KEPT = frozenset({"outcome.npz", "results.json"})
"""Files that a work folder is kept for, beside checkpoints."""

CONFIG = "config.json"
"""In a work folder: the config of its run."""

MENDABLE = (
    ConfigError,
    CatalogueError,
    CheckpointError,
    DeviceError,
    EpisodeError,
    FolderHeld,
    MnistError,
    OmniglotError,
    ResultsError,
    StoredError,
    TokenizerError,
    TrainingDiverged,
)
"""Errors whose message tells the user what to mend."""


FLAGS = {
    EpisodeError: "the config sets them, see --help",
    FolderHeld: "such as --workdir=FOLDER",
}
"""What sets the arguments that an error of the library names."""

OF_THE_SYSTEM = frozenset(
    getattr(errno, name)
    for name in ("ENOSPC", "EDQUOT", "EROFS", "EACCES", "EPERM", "EISDIR", "ENOTDIR", "EEXIST")
)
"""Errors that say something of a disk or its folders, and nothing of the program."""


def run(
    main: Callable[[FrozenConfigDict, Path], None],
    *,
    default: str,
    workdir: str,
    argv: Sequence[str] | None = None,
) -> None:
    """Runs an experiment module: `main(config, workdir)` under the command line's settings.

    An error that the user can mend (`MENDABLE`) is one line on stderr and exit code 2; every other
    one keeps its traceback.

    Args:
        main: gets the resolved config and the work folder.
        default: the config file where `--config` is not given; see `find_config`.
        workdir: the work folder where `--workdir` is not given.
        argv: the command line, program name first; that of the process by default.
    """
    own = argv is None
    if own:
        collect_seldom()
    argv = list(sys.argv if argv is None else argv)
    try:
        if asks_for_help(argv):
            print(describe(argv, default=default, workdir=workdir))
            return
        config, folder = resolve(argv, default=default, workdir=workdir, late=True)
        if own:
            compile_as(config.get("compilation", "optimised"))
        set_up_devices(argv)
        enable_compilation_cache()
        check_agreed(
            (config.to_json_best_effort(), str(folder)),
            "the processes have different configs or work folders; start the same command for "
            "each, but for --process",
        )
        with stopping_at_once():
            main(config, folder)
        check_agreed("done", "")  # the first process may still be writing what the others are not
    except MENDABLE as error:
        refuse(error, FLAGS.get(type(error), ""))
    except OSError as error:
        if error.errno not in OF_THE_SYSTEM:
            raise
        print(f"error: {_of_the_system(error)}", file=sys.stderr)
        sys.exit(2)
    except (Stopped, KeyboardInterrupt) as stop:
        number = stop.number if isinstance(stop, Stopped) else signal.SIGINT
        said = f"{stop}; " if str(stop) else ""
        where = f"{said}the same command goes on from the last checkpoint"
        print(f"stopped by {signal.Signals(number).name}: {where}", file=sys.stderr)
        sys.exit(128 + number)


def _of_the_system(error: OSError) -> str:
    """Returns what the system refused, where, and that nothing is lost by it, in one line."""
    where = " -> ".join(str(n) for n in (error.filename, error.filename2) if n is not None)
    return (
        f"{where + ': ' if where else ''}{(error.strerror or str(error)).lower()}; free space, "
        "allow it, move that file away or give another --workdir: what the run has kept is whole, "
        "and the same command goes on from there"
    )


def set_up_devices(argv: Sequence[str]) -> None:
    """Does what a command line asks for of devices and processes, before JAX is asked for one.

    Args:
        argv: the whole command line, which `resolve` has found right.

    Raises:
        ConfigError: if some of the flags that join processes are missing.
        DeviceError: if there are no such devices, or the other processes cannot be joined.
    """
    values = device_flags()
    values.set_gnu_getopt(True)  # a value may stand in the next word
    values(argv, known_only=True)
    if values.cpu_devices is not None:
        use_cpu_devices(values.cpu_devices)
    coordinator, processes, index = values.coordinator, values.processes, values.process
    numbered = processes is not None and index is not None
    if coordinator == AUTO or (coordinator and numbered):
        connect(coordinator, processes or 0, -1 if index is None else index)
    elif coordinator or processes is not None or index is not None:
        raise ConfigError(
            "give all of --coordinator=HOST:PORT --processes=N --process=I, "
            f"or --coordinator={AUTO} alone"
        )


def write_config(
    config: ConfigDict | FrozenConfigDict, workdir: Path, *, harmless: Sequence[str] = HARMLESS
) -> None:
    """Claims `workdir` for `config`, whose `config.json` it writes there, atomically.

    All of several processes have to call it; the first one writes.

    Args:
        config: a resolved config.
        workdir: made where it is missing.
        harmless: fields that may have changed since the folder's last run: a dotted name, the
            name of a section, or the last part of a name.

    Raises:
        ConfigError: if the folder holds a run under another config; names fields and mend.
    """
    check_config(config, workdir, harmless=harmless)
    if is_first_process():
        write_json(workdir / CONFIG, config.to_dict())


@contextmanager
def claimed(config: ConfigDict | FrozenConfigDict, workdir: Path) -> Iterator[None]:
    """Claims `workdir` for `config`, as `write_config` does, and for this process alone.

    Raises:
        ConfigError: as of `write_config`.
        FolderHeld: another process works in the folder.
    """
    with held(workdir) if is_first_process() else nullcontext():
        write_config(config, workdir)
        yield


def check_config(
    config: ConfigDict | FrozenConfigDict, workdir: Path, *, harmless: Sequence[str] = HARMLESS
) -> None:
    """Refuses a work folder with a run of another config, as `write_config` does.

    A folder in which nothing was finished, no checkpoint and no outcome, is free for any config.
    """
    path = workdir / CONFIG
    new = _flat(_through_json(config.to_dict()))
    old = _flat(_read(path)) if path.exists() else new
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
    """Returns a short name of all that a run depends on: other configs have other ones.

    Args:
        config: a resolved config.
        harmless: fields that make no difference, as of `write_config`.
    """
    fields = _flat(_through_json(config.to_dict()))
    kept = {name: value for name, value in fields.items() if not _is_among(name, harmless)}
    return f"{zlib.crc32(json.dumps(kept, sort_keys=True).encode()):08x}"


def _is_among(name: str, fields: Sequence[str]) -> bool:
    return any(name == f or name.startswith(f + ".") or name.endswith("." + f) for f in fields)


def _has_kept(workdir: Path) -> bool:
    """Returns whether anything in a work folder would be lost with it, or could be mixed up."""
    return any(
        KEPT.intersection(files) or (Path(folder).name == FOLDER and folders)
        for folder, folders, files in os.walk(workdir)
    )


def read_config(workdir: Path) -> FrozenConfigDict:
    """Returns the config that `write_config` left in `workdir`, sequences as tuples.

    Raises:
        ConfigError: if there is none, or it is damaged.
    """
    path = workdir / CONFIG
    try:
        return FrozenConfigDict(_tuples(_read(path)))
    except (TypeError, ValueError) as error:  # such as a table in a list, which no config has
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path}: not a config ({error}); delete that folder") from error


def collect_seldom() -> None:
    """Look for garbage in cycles a hundredth as often as Python does by default.

    Tracing makes millions of objects that live on; looking through them is a fifth of its time.
    """
    gc.freeze()
    gc.set_threshold(70_000)


def enable_compilation_cache() -> Path:
    """Keeps compiled programs on disk, so that the next start of the same run need not compile.

    Returns:
        The folder: `JAX_COMPILATION_CACHE_DIR`, or `metaguide/xla` in the user's cache folder.
    """
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    given = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    folder = Path(given or Path(home) / "metaguide" / "xla")
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # The defaults skip what compiles in under a second: a start has hundreds of those.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return folder


def _through_json(tree: Mapping[str, Any]) -> Any:
    return json.loads(json.dumps(tree))


def _show(flat: Mapping[str, Any], name: str) -> str:
    return json.dumps(flat[name], ensure_ascii=False) if name in flat else "absent"


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


def check_positive(field: str, values: Any) -> None:
    """Refuse a grid that is not one or more positive finite numbers.

    Args:
        field: of the config, for the message.
        values: what it holds.

    Raises:
        ConfigError: names the field, the value and the mend.
    """
    given = values if isinstance(values, tuple | list) else (values,)
    wrong = [
        value
        for value in given
        if isinstance(value, bool)
        or not isinstance(value, int | float)
        or not (math.isfinite(value) and value > 0)
    ]
    if wrong or not given or given is not values:
        raise ConfigError(
            f"config.{field}: {(wrong or [values])[0]!r} is not a positive number in a tuple; "
            f"give such as --config.{field}=(0.1,1.0)"
        )
