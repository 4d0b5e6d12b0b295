"""Config files: how to find one, the config it returns, and the rules for its fields."""

import importlib.util
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections.config_dict import ConfigDict

from experiments.ranges import Range, Relation


class ConfigError(ValueError):
    """The command line or a config file is wrong."""


def find_config(name: str) -> Path:
    """Return the config file `name`, from the current folder or from the installed package.

    Args:
        name: a path, relative to the current folder or to the folder that contains `experiments`.

    Raises:
        ConfigError: neither has it; the message lists the files in the package.
    """
    package = Path(__file__).resolve().parent
    for candidate in (Path(name), package.parent / name):
        if candidate.is_file():
            return candidate
    files = sorted(package.glob("configs/**/*.py"))
    known = [str(file.relative_to(package.parent)) for file in files if file.stem != "__init__"]
    raise ConfigError(f"--config={name}: no such file; there are {', '.join(known) or 'none'}")


def split_config_flag(argv: Sequence[str], default: str) -> tuple[Path, list[str]]:
    """Return the path that `--config` gives (the last one wins), and `argv` without it."""
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


def module_at(path: Path) -> ModuleType:
    """Run a config file and return its module.

    Raises:
        ConfigError: it cannot be run.
    """
    try:
        spec = importlib.util.spec_from_file_location("config_file", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except Exception as error:
        raise _unreadable(path, error) from error
    return module


def config_in(module: ModuleType, path: Path) -> ConfigDict:
    """Return the config that a config file builds.

    Args:
        module: module of the file.
        path: path of the file, for messages.

    Raises:
        ConfigError: the file does not build a config.
    """
    try:
        config = module.get_config()
    except Exception as error:
        raise _unreadable(path, error) from error
    if not isinstance(config, ConfigDict):
        raise ConfigError(f"{path}: get_config() must return a ConfigDict, got {type(config)}")
    return config


def _unreadable(path: Path, error: Exception) -> ConfigError:
    return ConfigError(f"{path}: cannot be read as a config file: {error!r}")


def rules_of(module: ModuleType) -> tuple[Mapping[str, Range], tuple[Relation, ...]]:
    """Return RANGES and RELATIONS of a config file, or of the config file it builds on."""
    for one in built_on(module):
        if hasattr(one, "RANGES"):
            return one.RANGES, getattr(one, "RELATIONS", ())
    return {}, ()


def built_on(module: ModuleType) -> Iterator[ModuleType]:
    """Yield a config file's module, then those of the config files it imports."""
    yield module
    for one in vars(module).values():
        if isinstance(one, ModuleType) and hasattr(one, "get_config"):
            yield from built_on(one)


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a tree's leaves keyed by dotted name; an empty section is a leaf."""
    leaves = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            leaves |= flat(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves
