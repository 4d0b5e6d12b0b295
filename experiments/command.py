"""A command line, read without JAX: the config file, presets, overrides, the work folder."""

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
from experiments.ranges import Range, faults, lacking

HELP = {"-h", "--help", "-help", "--helpfull", "--helpshort"}


def answer(module: str, command: Command) -> None:
    """Answer a command line that asks for help or is wrong, and end the process; else return.

    Args:
        module: as `python -m` calls it.
        command: its defaults.
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
    """End the process with exit code 2 and the error as one line on stderr.

    Args:
        error: what the user can fix.
        flags: by which, where the error does not say it.
    """
    said = " ".join(str(error).split())
    print(f"error: {said}; {flags}" if flags else f"error: {said}", file=sys.stderr)
    sys.exit(2)


def resolve(
    argv: Sequence[str], *, default: str, workdir: str, late: bool = False
) -> tuple[FrozenConfigDict, Path]:
    """Read a command line: the file's values, the preset's over them, explicit ones over both.

    A config file has `preset`, the name of the preset in use, and `presets`, overrides by name of
    the preset; `"default"` needs no entry there. Overrides are nested or dotted.

    The flags of devices and processes are checked and left to `set_up_devices`.

    Args:
        argv: program name, then `--config=FILE`, `--config.a.b=value`, `--workdir=FOLDER`.
        default: the config file where `--config` is not given.
        workdir: the work folder where `--workdir` is not given.
        late: whether to check, too, what is refused by what reads it; see `Range`.

    Returns:
        The config without `presets`, immutable; the work folder.

    Raises:
        ConfigError: if a file, a field, a value or a preset is wrong, or the file is of an
            experiment other than that of `default`.
    """
    path, rest = split_config_flag(argv, default)
    config = config_in(module_at(path), path)
    ranges, relations = rules_of(module_at(find_config(default))) if default else ({}, ())
    _check_kind(flat(config.to_dict()), path, ranges)
    _check_names(rest, config, path)

    values = device_flags()
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
    for fault in faults(flat(fields), ranges, relations, late):
        given = fault.split("=", 1)[0] in overrides
        raise ConfigError(f"--config.{fault}" if given else f"{path}: config.{fault}")
    return FrozenConfigDict(fields), Path(folder.value or _workdir(workdir, path, default))


def device_flags() -> flags.FlagValues:
    """Return the flags of devices and processes, without values."""
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


def _check_kind(fields: Mapping[str, Any], path: Path, ranges: Mapping[str, Range]) -> None:
    """Raise a ConfigError where a config has not the fields that an experiment reads."""
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


def _check_names(argv: Sequence[str], config: ConfigDict, path: Path) -> None:
    """Raise a ConfigError for the first `--config.name` that is not a field, with the nearest."""
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
    if not close:  # the right field under a wrong or missing section
        last = {one: one.rsplit(".", 1)[-1] for one in known}
        match = difflib.get_close_matches(name.rsplit(".", 1)[-1], list(last.values()), n=1)
        close = [one for one in known if last[one] in match][:3]
    return f"; did you mean {' or '.join(close)}?" if close else f"; it has {', '.join(known)}"


def _preset(config: ConfigDict, path: Path) -> Mapping[str, Any]:
    """Return the overrides of the preset in use, by dotted name."""
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
