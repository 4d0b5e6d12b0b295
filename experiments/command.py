"""A command line and its config file, read without JAX: fields, presets, overrides, help."""

import ast
import difflib
import importlib.util
import io
import re
import shutil
import sys
import textwrap
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from absl import flags
from ml_collections import config_flags
from ml_collections.config_dict import ConfigDict, FrozenConfigDict

from experiments.launch import COMMANDS, Command
from experiments.ranges import Range, Relation, faults, lacking

HELP = {"-h", "--help", "-help", "--helpfull", "--helpshort"}

USAGE = """usage: python -m {module} [--config=FILE]
           [--config.FIELD=VALUE ...] [--workdir=FOLDER]

  --config   a file with get_config(), default
             {default}
  --workdir  where the run is kept; started again there, it goes on.
             Default {workdir}

  --cpu_devices=N  devices that JAX makes of the CPU's cores; they share the
             tasks of a step

  --coordinator=HOST:PORT --processes=N --process=I
             start the same command N times, each with its number I from 0 and
             all with one work folder that all see: they share the tasks over
             the devices of all. Process 0 listens at HOST:PORT, writes the
             files and prints.
  --coordinator=auto
             the same on a TPU pod, under SLURM or Open MPI, which know N and I
             by themselves

fields of {config} and their values:"""

SAME = "the same"
"""What a field means whose meaning is that of the one before it, in one section."""

COLUMN = 40
"""Where what a field means begins, behind values that leave room for it."""


class ConfigError(ValueError):
    """The command line or a config file is wrong."""


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
        error: what the user can mend.
        flags: by which, where the error does not say it.
    """
    said = " ".join(str(error).split())
    print(f"error: {said}; {flags}" if flags else f"error: {said}", file=sys.stderr)
    sys.exit(2)


def resolve(
    argv: Sequence[str], *, default: str, workdir: str, late: bool = False
) -> tuple[FrozenConfigDict, Path]:
    """Reads a command line: the file's values, the preset's over them, explicit ones over both.

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
    path, rest = _split_config_flag(argv, default)
    config = _config_in(_module_at(path), path)
    ranges, relations = _rules_of(_module_at(find_config(default))) if default else ({}, ())
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
    """Returns the flags of devices and processes, without values."""
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


def describe(argv: Sequence[str], *, default: str, workdir: str, module: str = "") -> str:
    """Returns the help text of a command line: the flags, and all fields of its config file.

    Args:
        argv: program name, then the command line.
        default: the config file where `--config` is not given.
        workdir: the work folder where `--workdir` is not given.
        module: as `python -m` calls it; the one that runs by default.
    """
    path, _ = _split_config_flag(argv, default)
    about = meanings(path)
    if not module:
        main = sys.modules["__main__"].__spec__
        module = main.name if main else argv[0]
    usage = USAGE.format(config=path, default=default, workdir=workdir, module=module)
    width = max(60, shutil.get_terminal_size((100, 24)).columns)
    lines, before = [], ("", "")
    for name, value in flat(_config_in(_module_at(path), path).to_dict()).items():
        if name.startswith("presets."):
            continue
        section = name.rpartition(".")[0], about[name]
        words = SAME if section == before and about[name] else about[name]
        lines.append(_line(f"--config.{name}={value}", words, width))
        before = section
    return "\n".join([usage, *lines])


def _line(field: str, meaning: str, width: int) -> str:
    """Return a field and what it means, beside it or on lines below it."""
    first = textwrap.wrap(
        field,
        width,
        initial_indent="  ",
        subsequent_indent="      ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    margin = " " * COLUMN
    words = textwrap.wrap(meaning, width, initial_indent=margin, subsequent_indent=margin)
    if words and len(first[-1]) < COLUMN - 1:
        words[0] = first.pop().ljust(COLUMN) + words[0].lstrip()
    return "\n".join([*first, *words])


def meanings(path: Path) -> dict[str, str]:
    """Returns what each field of a config file means, by its dotted name; "" where nobody says.

    The comments in the file, and in the config files that it builds on, are where it stands: at the
    end of the line of a field or on the lines above it. What is said of a section goes for its
    fields where nothing is said of any. What is said of a field goes for all of its name without
    words of their own, so that sections alike are commented once.

    Args:
        path: of the config file.
    """
    module = _module_at(path)
    said: dict[str, str] = {}
    for file in (Path(str(one.__file__)) for one in _built_on(module)):
        for name, words in _comments(file).items():
            said.setdefault(name, words)
    by_last: dict[str, str] = {}
    for name, words in said.items():
        by_last.setdefault(name.rsplit(".", 1)[-1], words)

    def ends(name: str) -> list[str]:
        parts = name.split(".")
        return [".".join(parts[first:]) for first in range(len(parts))]

    def of(name: str) -> str:
        sections = [name.rsplit(".", depth)[0] for depth in range(1, name.count(".") + 1)]
        alike = [one for one in sections if not any(other.startswith(f"{one}.") for other in said)]
        places = [*ends(name), *(end for one in alike for end in ends(one))]
        found = next((said[place] for place in places if place in said), "")
        return found or by_last.get(name.rsplit(".", 1)[-1], "")

    return {name: of(name) for name in flat(_config_in(module, path).to_dict())}


def _comments(path: Path) -> dict[str, str]:
    """Return the comments on the fields of a config file.

    By the dotted name of a field where `config` is assigned, by that of a key where a dictionary
    stands elsewhere; those of presets, which are no fields of a run, are left out.
    """
    with tokenize.open(path) as file:
        source = file.read()
    lines, comments = source.splitlines(), {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            comments[token.start[0]] = token.string.lstrip("# ").rstrip()

    def alone(line: int) -> bool:
        return line in comments and lines[line - 1].lstrip().startswith("#")

    def about(line: int) -> str:
        if line in comments:
            return comments[line]
        first = line
        while alone(first - 1):
            first -= 1
        return " ".join(comments[one] for one in range(first, line))

    found: dict[str, str] = {}

    def note(name: str, line: int, value: ast.AST) -> None:
        if words := about(line):
            found.setdefault(name, words)
        note_keys(f"{name}.", value)

    def note_keys(prefix: str, value: ast.AST) -> None:
        if not isinstance(value, ast.Dict):
            for inner in ast.iter_child_nodes(value):
                begins = lines[getattr(inner, "lineno", 1) - 1].lstrip()
                if isinstance(inner, ast.keyword) and inner.arg and begins.startswith(inner.arg):
                    note(f"{prefix}{inner.arg}", inner.lineno, inner.value)
                else:
                    note_keys(prefix, inner)
            return
        for key, own in zip(value.keys, value.values, strict=True):
            if isinstance(key, ast.Constant):
                note(f"{prefix}{key.value}", key.lineno, own)

    # What stands outside of functions is no config: RANGES.
    functions = [one for one in ast.parse(source).body if isinstance(one, ast.FunctionDef)]
    for node in (node for function in functions for node in ast.walk(function)):
        if isinstance(node, ast.Return | ast.AugAssign) and node.value is not None:
            note_keys("", node.value)
        if isinstance(node, ast.Assign):
            name = _field_of(node.targets[0])
            if not name:
                note_keys("", node.value)
            elif name != "presets":
                note(name, node.lineno, node.value)
    return found


def _field_of(target: ast.expr) -> str:
    """Return the dotted name of a field that is assigned to, "" where it is none of `config`."""
    parts = []
    while not isinstance(target, ast.Name):
        if isinstance(target, ast.Attribute):
            parts.append(target.attr)
        elif isinstance(target, ast.Subscript) and isinstance(target.slice, ast.Constant):
            parts.append(str(target.slice.value))
        else:
            return ""
        target = target.value
    return ".".join(reversed(parts)) if target.id == "config" else ""


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


def _module_at(path: Path) -> ModuleType:
    try:
        spec = importlib.util.spec_from_file_location("config_file", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except Exception as error:
        raise _unreadable(path, error) from error
    return module


def _config_in(module: ModuleType, path: Path) -> ConfigDict:
    try:
        config = module.get_config()
    except Exception as error:
        raise _unreadable(path, error) from error
    if not isinstance(config, ConfigDict):
        raise ConfigError(f"{path}: get_config() must return a ConfigDict, got {type(config)}")
    return config


def _unreadable(path: Path, error: Exception) -> ConfigError:
    return ConfigError(f"{path}: cannot be read as a config file: {error!r}")


def _rules_of(module: ModuleType) -> tuple[Mapping[str, Range], tuple[Relation, ...]]:
    """Return RANGES and RELATIONS of a config file, or of the one that it builds on."""
    for one in _built_on(module):
        if hasattr(one, "RANGES"):
            return one.RANGES, getattr(one, "RELATIONS", ())
    return {}, ()


def _built_on(module: ModuleType) -> Iterator[ModuleType]:
    """Yield a config file's module, and those of the config files that it imports."""
    yield module
    for one in vars(module).values():
        if isinstance(one, ModuleType) and hasattr(one, "get_config"):
            yield from _built_on(one)


def _check_kind(fields: Mapping[str, Any], path: Path, ranges: Mapping[str, Range]) -> None:
    """Raises a ConfigError where a config has not the fields that an experiment reads."""
    missing = lacking(fields, ranges)
    if not missing:
        return
    fitting = []
    for module, command in COMMANDS.items():
        rules, _ = _rules_of(_module_at(find_config(command.default)))
        if not lacking(fields, rules):
            fitting.append(module)
    if fitting:
        raise ConfigError(f"{path}: a config of {', '.join(fitting)}; run it there")
    some = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if missing[3:] else "")
    raise ConfigError(f"{path}: lacks {some}; take them from a config of this module, see --help")


def _check_names(argv: Sequence[str], config: ConfigDict, path: Path) -> None:
    """Raises a ConfigError for the first `--config.name` that is not a field, with the nearest."""
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
    """Returns the overrides of the preset in use, by dotted name."""
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


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns a tree's leaves by dotted name; an empty section is a leaf."""
    leaves = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            leaves |= flat(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves
