"""Parsing of a command line without JAX: config file, presets, overrides and work folder."""

import difflib
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from absl import flags
from ml_collections import config_flags
from ml_collections.config_dict import ConfigDict, FrozenConfigDict

from experiments.config_files import (
    ConfigError,
    config_in,
    find_config,
    flat,
    module_at,
    rules_of,
    split_config_flag,
)
from experiments.help_text import describe
from experiments.modules import COMMANDS, Command
from experiments.ranges import Range, faults, lacking, range_of

HELP = {"-h", "--help", "-help", "--helpfull", "--helpshort"}


def answer(module: str, command: Command) -> None:
    """Answer a command line that asks for help or is invalid and exit; otherwise return.

    Args:
        module: name of the module as given to `python -m`.
        command: the module's defaults.
    """
    argv = [module, *sys.argv[1:]]
    try:
        if asks_for_help(argv):
            print(describe(argv, **command._asdict(), module=module))
            sys.exit(0)
        resolve(argv, **command._asdict(), late=True)
    except ConfigError as error:
        refuse(error)


def asks_for_help(argv: Sequence[str]) -> bool:
    """Return whether a command line asks for help."""
    return bool(HELP & set(argv))


def refuse(error: Exception, flags: str = "") -> NoReturn:
    """Exit with code 2 and print the error as one line on stderr.

    Args:
        error: an error that the user can fix.
        flags: the flags that fix it, if the error does not name them.
    """
    said = " ".join(str(error).split())
    print(f"error: {said}; {flags}" if flags else f"error: {said}", file=sys.stderr)
    sys.exit(2)


def resolve(
    argv: Sequence[str], *, default: str, workdir: str, late: bool = False
) -> tuple[FrozenConfigDict, Path]:
    """Resolve a command line: the preset overrides the file, and explicit flags override both.

    A config file has a field `preset`, the name of the preset in use, and a field `presets`, the
    overrides of each preset by name; `"default"` needs no entry. Overrides are nested or dotted.

    The flags for devices and processes are only checked here; `set_up_devices` applies them.

    Args:
        argv: program name, then `--config=FILE`, `--config.a.b=value`, `--workdir=FOLDER`.
        default: config file to use if `--config` is not given.
        workdir: work folder to use if `--workdir` is not given.
        late: whether to also check what the reading code refuses itself; see `Range`.

    Returns:
        The immutable config without `presets`, and the work folder.

    Raises:
        ConfigError: a file, field, value or preset is wrong, or the file belongs to another
            experiment than `default` does.
    """
    path, rest = split_config_flag(argv, default)
    module = module_at(path)
    config = config_in(module, path)
    ranges, relations = rules_of(module_at(find_config(default))) if default else ({}, ())
    found = flat(config.to_dict())
    _check_kind(found, path, ranges)
    if ranges:
        # A file that adds a method or a source says itself what its fields may be.
        own, _ = rules_of(module)
        ranges = {**own, **{name: one for name, one in ranges.items() if name not in own}}
        _check_known(found, path, ranges)
    _check_names(rest, config, path)
    rest = [_with_tuple(one, found) for one in rest]

    values = device_flags()
    folder = flags.DEFINE_string("workdir", "", "where the run is kept", flag_values=values)
    config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=rest)
    try:
        positional = values(rest)[1:]
    except (flags.Error, ValueError, TypeError) as error:
        given = re.search(r"--config\.([\w.]+)", str(error))
        one = range_of(given[1], ranges) if given else None
        hint = f"; give {one.words}" if one else ""
        raise ConfigError(f"{path}: {error}{hint}") from error
    if positional:
        raise ConfigError(f"unexpected argument {positional[0]!r}; flags are --name=value")
    overrides = config_flags.get_override_values(values["config"])

    for name, value in _preset(config, path).items():
        _assign(config, name, value, f"{path}: preset {config.preset!r}")
    for name, value in overrides.items():
        _assign(config, name, value, "--config")
    fields = config.to_dict()
    fields.pop("presets", None)
    for fault in faults(flat(fields), ranges, relations, late):
        given = fault.split("=", 1)[0] in overrides
        raise ConfigError(f"--config.{fault}" if given else f"{path}: config.{fault}")
    return FrozenConfigDict(fields), Path(folder.value or _workdir(workdir, path, default))


def _with_tuple(flag: str, found: Mapping[str, Any]) -> str:
    """Return a flag whose value is a list of words, as `--config.learners=maml,anil`, as a tuple.

    Args:
        flag: a word of the command line.
        found: values of the config file, keyed by dotted name.
    """
    given = re.fullmatch(r"--?config\.([^=]+)=([^('\"\[]*,[^('\"\[]*)", flag)
    value = found.get(given[1]) if given else None
    if not given or not isinstance(value, tuple) or not all(isinstance(x, str) for x in value):
        return flag
    words = tuple(word.strip() for word in given[2].split(",") if word.strip())
    if not value and all(re.fullmatch(r"[-+]?[\d.]+(e[-+]?\d+)?", word) for word in words):
        return flag  # the file does not show whether these numbers are words
    return f"--config.{given[1]}={words!r}"


def device_flags() -> flags.FlagValues:
    """Return the flags for devices and processes, without values."""
    values = flags.FlagValues()
    for name, help in {
        "cpu_devices": "number of devices that JAX makes of the CPU",
        "processes": "number of processes that run this command together",
        "process": "index of this process, from 0",
    }.items():
        flags.DEFINE_integer(name, None, help, flag_values=values)
    flags.DEFINE_string("coordinator", "", "where process 0 listens", flag_values=values)
    return values


def _workdir(workdir: str, config: Path, default: str) -> Path:
    """Return the default work folder, a different one for each non-default config file."""
    folder, name = Path(workdir), config.stem
    if name == Path(default).stem:
        return folder
    return folder.with_name(name if name.startswith(folder.name) else f"{folder.name}-{name}")


def _check_kind(fields: Mapping[str, Any], path: Path, ranges: Mapping[str, Range]) -> None:
    """Raise a ConfigError if a config lacks fields that an experiment reads."""
    missing = lacking(fields, ranges)
    if not missing:
        return
    fitting = []
    for module, command in COMMANDS.items():
        rules, _ = rules_of(module_at(find_config(command.default)))
        if not lacking(fields, rules):
            fitting.append(module)
    if fitting:
        raise ConfigError(f"{path}: a config of {', '.join(fitting)}; run it there")
    some = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if missing[3:] else "")
    raise ConfigError(f"{path}: lacks {some}; take them from a config of this module, see --help")


def _check_known(fields: Mapping[str, Any], path: Path, ranges: Mapping[str, Range]) -> None:
    """Raise a ConfigError for the first field that no experiment reads, with suggestions.

    `config.data.update(...)` adds a misspelt field and leaves the right one as it was.
    """
    for name, value in fields.items():
        is_read = name.partition(".")[0] in ("preset", "presets") or isinstance(value, Mapping)
        if not is_read and range_of(name, ranges) is None:
            known = [one for one in ranges if "*" not in one]
            raise ConfigError(f"{path}: config.{name} is no field of it{_nearest(name, known)}")


def _check_names(argv: Sequence[str], config: ConfigDict, path: Path) -> None:
    """Raise a ConfigError for the first `--config.name` that is not a field, with suggestions."""
    fields = [name for name in flat(config.to_dict()) if not name.startswith("presets.")]
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
    if not close:  # maybe the right field under a wrong or missing section
        last = {one: one.rsplit(".", 1)[-1] for one in known}
        match = difflib.get_close_matches(name.rsplit(".", 1)[-1], list(last.values()), n=1)
        close = [one for one in known if last[one] in match][:3]
    return f"; did you mean {' or '.join(close)}?" if close else f"; it has {', '.join(known)}"


def _preset(config: ConfigDict, path: Path) -> Mapping[str, Any]:
    """Return the overrides of the preset in use, keyed by dotted name."""
    fields = config.to_dict()
    name, presets = fields.get("preset", "default"), fields.get("presets", {})
    if name not in presets and name != "default":
        names = sorted({"default", *presets})
        raise ConfigError(
            f"--config.preset={name}: {path} has no such preset; there are {', '.join(names)}"
        )
    return flat(presets.get(name, {}))


def _assign(config: ConfigDict, name: str, value: Any, where: str) -> None:
    fields = flat(config.to_dict())
    if name not in fields:
        raise ConfigError(f"{where}: there is no field {name}{_nearest(name, list(fields))}")
    try:
        config.update_from_flattened_dict({name: value})
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {name}={value!r}: {error}") from error
