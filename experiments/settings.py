"""How an experiment reads its command line: a config file, presets, overrides, the work folder."""

import difflib
import errno
import gc
import importlib.util
import json
import math
import os
import platform
import re
import signal
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import jax
from absl import flags
from ml_collections import config_flags
from ml_collections.config_dict import ConfigDict, FrozenConfigDict

from metaguide.data.catalogue import CatalogueError
from metaguide.data.episodes import EpisodeError
from metaguide.data.mnist import MnistError
from metaguide.data.omniglot import OmniglotError
from metaguide.data.tokenizer import TokenizerError
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
from metaguide.training.results import ResultsError

HARMLESS = ("preset", "log_every", "checkpoint_every")
"""Fields that may differ between two runs in one work folder; see `write_config`."""

KEPT = frozenset({"outcome.npz", "results.json"})
"""Files that a work folder is kept for, beside checkpoints."""

CONFIG = "config.json"
"""In a work folder: the config of its run."""

USAGE = """usage: python -m MODULE [--config=FILE] [--config.FIELD=VALUE ...] [--workdir=FOLDER]

  --config   a file with get_config(), default {config}
  --workdir  where the run is kept; started again there, it goes on. Default {workdir}

  --cpu_devices=N  devices that JAX makes of the CPU's cores; they share the tasks of a step

  --coordinator=HOST:PORT --processes=N --process=I
             start the same command N times, each with its number I from 0 and all with one work
             folder that all see: they share the tasks over the devices of all. Process 0 listens
             at HOST:PORT, writes the files and prints.
  --coordinator=auto
             the same on a TPU pod, under SLURM or Open MPI, which know N and I by themselves

fields of {config} and their values:"""


class ConfigError(ValueError):
    """The command line or a config file is wrong."""


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
    if argv is None:
        use_huge_pages()
        collect_seldom()
    argv = list(sys.argv if argv is None else argv)
    try:
        if {"-h", "--help", "-help", "--helpfull", "--helpshort"} & set(argv):
            print(describe(argv, default=default, workdir=workdir))
            return
        config, folder = resolve(argv, default=default, workdir=workdir)
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
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        sys.exit(2)
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


def resolve(argv: Sequence[str], *, default: str, workdir: str) -> tuple[FrozenConfigDict, Path]:
    """Reads a command line: the file's values, the preset's over them, explicit ones over both.

    A config file has `preset`, the name of the preset in use, and `presets`, overrides by name of
    the preset; `"default"` needs no entry there. Overrides are nested or dotted.

    The flags of devices and processes are checked and left to `set_up_devices`.

    Args:
        argv: program name, then `--config=FILE`, `--config.a.b=value`, `--workdir=FOLDER`.
        default: the config file where `--config` is not given.
        workdir: the work folder where `--workdir` is not given.

    Returns:
        The config without `presets`, immutable; the work folder.

    Raises:
        ConfigError: if a file, a field, a value or a preset is wrong.
    """
    path, rest = _split_config_flag(argv, default)
    config = _load(path)
    _check_names(rest, config, path)

    values = _device_flags()
    folder = flags.DEFINE_string("workdir", "", "where the run is kept", flag_values=values)
    config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=rest)
    try:
        positional = values(rest)[1:]
    except (flags.Error, ValueError, TypeError) as error:
        raise ConfigError(f"{path}: {error}") from error
    if positional:
        raise ConfigError(f"unexpected argument {positional[0]!r}; flags are --name=value")
    overrides = config_flags.get_override_values(values["config"])

    for name, value in _preset(config, path).items():
        _assign(config, name, value, f"{path}: preset {config.preset!r}")
    for name, value in overrides.items():
        _assign(config, name, value, "--config")
    fields = config.to_dict()
    fields.pop("presets", None)
    return FrozenConfigDict(fields), Path(folder.value or _workdir(workdir, path, default))


def set_up_devices(argv: Sequence[str]) -> None:
    """Does what a command line asks for of devices and processes, before JAX is asked for one.

    Args:
        argv: the whole command line, which `resolve` has found right.

    Raises:
        ConfigError: if some of the flags that join processes are missing.
        DeviceError: if there are no such devices, or the other processes cannot be joined.
    """
    values = _device_flags()
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


def _device_flags() -> flags.FlagValues:
    values = flags.FlagValues()
    for name, help in {
        "cpu_devices": "devices that JAX makes of the CPU",
        "processes": "how many run this command together",
        "process": "number of this one of them, from 0",
    }.items():
        flags.DEFINE_integer(name, None, help, flag_values=values)
    flags.DEFINE_string("coordinator", "", "where process 0 listens", flag_values=values)
    return values


def _workdir(workdir: str, config: Path, default: str) -> Path:
    """Return the default work folder, another one for each config file but the default."""
    folder, name = Path(workdir), config.stem
    if name == Path(default).stem:
        return folder
    return folder.with_name(name if name.startswith(folder.name) else f"{folder.name}-{name}")


def describe(argv: Sequence[str], *, default: str, workdir: str) -> str:
    """Returns the help text of a command line: the flags, and all fields of its config file."""
    path, _ = _split_config_flag(argv, default)
    fields = _flat(_load(path).to_dict())
    lines = [f"  --config.{name}={value}" for name, value in fields.items()]
    main = sys.modules["__main__"].__spec__
    usage = USAGE.format(config=path, workdir=workdir)
    return "\n".join([usage.replace("MODULE", main.name if main else argv[0]), *lines])


def find_config(name: str) -> Path:
    """Returns the config file `name`: beside the current folder, or in the installed package.

    Args:
        name: a path, relative to the current folder or to the folder that holds `experiments`.

    Raises:
        ConfigError: if neither has it; names the files that the package has.
    """
    package = Path(__file__).resolve().parent
    for candidate in (Path(name), package.parent / name):
        if candidate.is_file():
            return candidate
    files = sorted(package.glob("configs/**/*.py"))
    known = [str(file.relative_to(package.parent)) for file in files if file.stem != "__init__"]
    raise ConfigError(f"--config={name}: no such file; there are {', '.join(known) or 'none'}")


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
    return FrozenConfigDict(_tuples(_read(workdir / CONFIG)))


def use_huge_pages() -> None:
    """Start the running command anew with memory in huge pages, where glibc knows how.

    A step allocates and frees hundreds of MiB; in pages of 4 KiB the kernel's work for them is a
    fifth to a quarter of the step on a CPU. At most four arenas, since each keeps what its threads
    have freed. glibc reads the settings at start only.
    """
    known = platform.libc_ver()[0] == "glibc"
    if known and "GLIBC_TUNABLES" not in os.environ:
        tuned = {**os.environ, "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.arena_max=4"}
        os.execve(sys.executable, sys.orig_argv, tuned)


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


def _split_config_flag(argv: Sequence[str], default: str) -> tuple[Path, list[str]]:
    """Returns the path that `--config` gives (the last one wins), and `argv` without it."""
    given, rest = default, list(argv[:1])
    words = iter(argv[1:])
    for word in words:
        if re.fullmatch("--?config", word):
            given = next(words, "")
        elif re.match("--?config=", word):
            given = word.split("=", 1)[1]
        else:
            rest.append(word)
    return find_config(given), rest


def _load(path: Path) -> ConfigDict:
    try:
        spec = importlib.util.spec_from_file_location("config_file", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        config = module.get_config()
    except Exception as error:
        raise ConfigError(f"{path}: cannot be read as a config file: {error!r}") from error
    if not isinstance(config, ConfigDict):
        raise ConfigError(f"{path}: get_config() must return a ConfigDict, got {type(config)}")
    return config


def _check_names(argv: Sequence[str], config: ConfigDict, path: Path) -> None:
    """Raises a ConfigError for the first `--config.name` that is not a field, with the nearest."""
    fields = [name for name in _flat(config.to_dict()) if not name.startswith("presets.")]
    sections = {name.rsplit(".", depth)[0] for name in fields for depth in range(1, 5)}
    for word in argv[1:]:
        match = re.match(r"--?(?:no)?config\.([^=]*)", word)
        if match is None:
            continue
        name = match[1]
        if name in fields:
            if all(part.isidentifier() for part in name.split(".")):
                continue
            raise ConfigError(f"--config.{name}: set it in a config file")
        if name in sections:
            raise ConfigError(f"--config.{name} is a section of {path}; set one of its fields")
        raise ConfigError(f"--config.{name}: {path} has no such field{_nearest(name, fields)}")


def _nearest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    if not close:  # the right field under a wrong or missing section
        last = {one: one.rsplit(".", 1)[-1] for one in known}
        match = difflib.get_close_matches(name.rsplit(".", 1)[-1], list(last.values()), n=1)
        close = [one for one in known if last[one] in match][:3]
    return f"; did you mean {' or '.join(close)}?" if close else f"; it has {', '.join(known)}"


def _preset(config: ConfigDict, path: Path) -> Mapping[str, Any]:
    """Returns the overrides of the preset in use, by dotted name."""
    fields = config.to_dict()
    name, presets = fields.get("preset", "default"), fields.get("presets", {})
    if name not in presets and name != "default":
        names = sorted({"default", *presets})
        raise ConfigError(
            f"--config.preset={name}: {path} has no such preset; there are {', '.join(names)}"
        )
    return _flat(presets.get(name, {}))


def _assign(config: ConfigDict, name: str, value: Any, where: str) -> None:
    fields = _flat(config.to_dict())
    if name not in fields:
        raise ConfigError(f"{where}: there is no field {name}{_nearest(name, list(fields))}")
    try:
        config.update_from_flattened_dict({name: value})
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {name}={value!r}: {error}") from error


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


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
