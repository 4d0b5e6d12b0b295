"""The help of a command: its flags, and the meaning of every field of its config file."""

import ast
import io
import shutil
import sys
import textwrap
import tokenize
from collections.abc import Sequence
from pathlib import Path

from experiments.config_files import built_on, config_in, flat, module_at, split_config_flag

USAGE = """usage: python -m {module} [--config=FILE]
           [--config.FIELD=VALUE ...] [--workdir=FOLDER]

  --config   a file with get_config(), default
             {default}
  --workdir  where the run is kept; started again there, it resumes.
             Default {workdir}

  --cpu_devices=N  number of devices that JAX makes of the CPU's cores; they
             share the tasks of a step

  --coordinator=HOST:PORT --processes=N --process=I
             start the same command N times, each with its own index I from 0
             and all with one shared work folder. The tasks are divided over
             the devices of all processes. Process 0 listens at HOST:PORT,
             writes the files and prints.
  --coordinator=auto
             the same on a TPU pod, or under SLURM or Open MPI, which provide
             N and I

fields of {config} and their values:"""

SAME = "the same"
"""Shown for a field whose meaning is that of the previous field in the same section."""

COLUMN = 40
"""Column at which the meaning of a field begins, if its value leaves room."""


def describe(argv: Sequence[str], *, default: str, workdir: str, module: str = "") -> str:
    """Return the help text of a command line: the flags, and all fields of its config file.

    Args:
        argv: program name, then the command line.
        default: config file to use if `--config` is not given.
        workdir: work folder to use if `--workdir` is not given.
        module: name of the module as given to `python -m`; by default the running one.
    """
    path, _ = split_config_flag(argv, default)
    about = meanings(path)
    if not module:
        main = sys.modules["__main__"].__spec__
        module = main.name if main else argv[0]
    usage = USAGE.format(config=path, default=default, workdir=workdir, module=module)
    width = max(60, shutil.get_terminal_size((100, 24)).columns)
    lines, before = [], ("", "")
    for name, value in flat(config_in(module_at(path), path).to_dict()).items():
        if name.startswith("presets."):
            continue
        section = name.rpartition(".")[0], about[name]
        words = SAME if section == before and about[name] else about[name]
        lines.append(_line(f"--config.{name}={value}", words, width))
        before = section
    return "\n".join([usage, *lines])


def _line(field: str, meaning: str, width: int) -> str:
    """Return a field and its meaning, on the same line or on lines below."""
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
    """Return the meaning of each field of a config file, keyed by dotted name; "" if unknown.

    Meanings are taken from the comments in the file and in the config files it builds on: at the
    end of a field's line or on the lines above it. The comment on a section applies to its fields
    if none of them has one. The comment on a field applies to all fields of the same name without
    one of their own, so that similar sections need comments only once.

    Args:
        path: path of the config file.
    """
    module = module_at(path)
    said: dict[str, str] = {}
    for file in (Path(str(one.__file__)) for one in built_on(module)):
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

    return {name: of(name) for name in flat(config_in(module, path).to_dict())}


def _comments(path: Path) -> dict[str, str]:
    """Return the comments on the fields of a config file.

    They are keyed by the dotted name of a field in assignments to `config`, and by the dotted key
    in dictionaries elsewhere. Comments in presets are left out, since those are not fields of a
    run.
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

    # Dictionaries outside of functions, such as RANGES, are not configs.
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
    """Return the dotted name of the field assigned to; "" if it is not a field of `config`."""
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
