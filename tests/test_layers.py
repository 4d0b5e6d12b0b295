"""Who may know whom: imports run downward, each outside library stands in its own room, and the
library says nothing of the experiments' command line."""

import ast
import re
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

BELOW: Mapping[str, frozenset[str]] = {
    room: frozenset(below.split())
    for room, below in {
        "types": "",
        "files": "",
        "scoring": "",
        "ties": "",
        "padding": "",
        "parallel": "types",
        "data": "types files scoring",
        "models": "types",
        "pretrained": "types files data models",
        "objectives": "types ties",
        "inner_loop": "types",
        "optimizers": "types files inner_loop",
        "learners": "types padding inner_loop",
        "problems": "types ties data models objectives",
        "methods": "types inner_loop optimizers learners",
        "training": "types files parallel data objectives inner_loop optimizers learners problems",
        "evaluation": "types files scoring parallel data training",
        "tasks": "types ties padding scoring data models objectives optimizers methods training "
        "evaluation",
        "overview": "data tasks",
        "run_config": "files methods tasks training",
        "saved": "files data models optimizers pretrained training tasks run_config",
        "web": "scoring data methods training tasks guide",
    }.items()
}
"""The rooms of metaguide, from the bottom, and those that each may import besides itself."""

FACES = frozenset(
    "__init__ __main__ choosing cli evaluating evaluation_report exporting guide predicting".split()
)
"""The modules on top of metaguide: they may import every room below, and only web imports them."""

HOMES: Mapping[str, frozenset[str]] = {
    library: frozenset(rooms.split())
    for library, rooms in {
        "tensorflow": "",
        "tensorflow_datasets": "data",
        "orbax": "training",
        "flax.linen": "models optimizers learners",
        "absl": "experiments",
        "ml_collections": "experiments",
        "fastapi": "web",
        "pydantic": "web",
        "starlette": "web",
        "uvicorn": "web experiments",  # a benchmark serves too
        "onnx": "exporting",
        "onnxruntime": "exporting experiments",  # a benchmark compares itself
        "metaguide.exporting": "exporting cli",  # an extra as well
        "metaguide.web": "web cli experiments",  # an extra: nothing else needs it
    }.items()
}
"""Libraries that may stand in some rooms only."""

OUTSIDE: Mapping[str, frozenset[str]] = {
    "inner_loop": frozenset({"chex", "jax", "jaxtyping", "numpy", "optax"}),
    "optimizers": frozenset({"flax", "jax", "jaxtyping", "numpy", "optax"}),
    "learners": frozenset({"chex", "flax", "jax", "jaxtyping", "numpy", "optax"}),
}
"""Rooms that may import these libraries only, besides Python's own."""


EXPERIMENTS_OWN: Mapping[str, str] = {
    r"\bconfig\.(?!json\b)": "a field of a config",
    r"(?<![\w-])--[a-z]": "a flag",
    r"\bConfigDict\b": "a ConfigDict",
    r"(?<!\w)(config|stage|serving)\.json\b": "a file of the experiments",
}
"""What no text of the library names but a docstring, with what it is."""

COMMAND = "metaguide/cli.py"
"""The module that has flags of its own, and may name them."""

NAMES_SUCH_FILES: Mapping[str, str] = {
    "metaguide/run_config.py": r"(config|stage|serving)\.json",  # earlier run folders had them
    "metaguide/pretrained/folder.py": r"config\.json",  # a Hugging Face folder has one
}
"""The modules that may name files as the experiments call theirs, and which."""


parsed = cache(ast.parse)
"""Several tests read every module."""


def imported(source: str, package: str) -> Iterator[tuple[int, str]]:
    """Yields (line, dotted name) of all that a module imports, wherever in it that stands."""
    for node in ast.walk(parsed(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            packages = package.split(".")
            base = packages[: len(packages) - node.level + 1] if node.level else []
            base += [node.module] if node.module else []
            yield from ((node.lineno, ".".join([*base, alias.name])) for alias in node.names)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            # `import flax` makes `flax.linen` reachable without a second import.
            if (node.value.id, node.attr) == ("flax", "linen"):
                yield node.lineno, "flax.linen"
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield node.lineno, node.args[0].value


def fault(room: str, name: str) -> str | None:
    """Says why `room` may not import the dotted `name`; None where it may."""
    top, _, rest = name.partition(".")
    if top == "experiments" and room != "experiments":
        return "metaguide never imports experiments"
    if top == "metaguide" and room not in FACES | {"experiments"}:
        target = rest.split(".")[0]
        # `from metaguide import load` names no room: it comes out of the face.
        target = target if target in BELOW else "guide"
        if target != room and target not in BELOW[room]:
            return f"{room} may import {', '.join(sorted(BELOW[room])) or 'no room'}, not {target}"
    for library, rooms in HOMES.items():
        if f"{name}.".startswith(f"{library}.") and room not in rooms:
            return f"{library} belongs to {', '.join(sorted(rooms)) or 'no room'}"
    if room in OUTSIDE and top not in OUTSIDE[room] | sys.stdlib_module_names | {"metaguide"}:
        return f"{room} may import {', '.join(sorted(OUTSIDE[room]))}, not {top}"
    return None


def violations(modules: Mapping[str, str]) -> list[str]:
    """Lists all imports against the direction, one clear line each.

    Args:
        modules: sources by path from the root of the repository.
    """
    found = []
    for path, source in sorted(modules.items()):
        parts = Path(path).with_suffix("").parts
        room = "experiments" if parts[0] == "experiments" else parts[1]
        if room not in {*BELOW, *FACES, "experiments"}:
            found.append(f"{path}: {room} is no room of metaguide; give it a place in this test")
            continue
        for line, name in imported(source, ".".join(parts[:-1])):
            if reason := fault(room, name):
                found.append(f"{path}:{line}: imports {name}, but {reason}")
    return found


def circles(modules: Mapping[str, str]) -> list[str]:
    """Lists the modules that import themselves by way of others, with the first way round.

    Args:
        modules: sources by path from the root of the repository.
    """
    known = {name_of(path): (path, source) for path, source in modules.items()}
    below = {}
    for name, (path, source) in known.items():
        package = name if path.endswith("__init__.py") else name.rpartition(".")[0]
        below[name] = {nearest(one, known) for _, one in imported(source, package)} - {"", name}
    found = []
    for name in sorted(known):
        ways, seen = [[name]], set()
        for way in ways:  # which grows
            for one in below[way[-1]] - seen:
                seen.add(one)
                ways.append([*way, one])
        if name in seen:
            found.append(" -> ".join(next(way for way in ways[1:] if way[-1] == name)))
    return found


def name_of(path: str) -> str:
    """The dotted name of a module by its path."""
    return ".".join(Path(path).with_suffix("").parts).removesuffix(".__init__")


def nearest(name: str, known: Mapping[str, object]) -> str:
    """The module that a dotted name stands for: itself, or what it is a part of; "" for others'."""
    while name and name not in known:
        name = name.rpartition(".")[0]
    return name


def texts(source: str) -> Iterator[tuple[int, str]]:
    """Yields (line, text) of all that a module may say, which its docstrings are no part of."""
    tree = parsed(source)
    # A text that is a statement of its own: of a module, class or function, or of an assignment.
    docstrings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if node not in docstrings:
                yield node.lineno, node.value


def named(modules: Mapping[str, str]) -> list[str]:
    """Lists where modules of the library name what belongs to the experiments, a line each.

    Args:
        modules: sources by path from the root of the repository.
    """
    found = []
    for path, source in sorted(modules.items()):
        is_library = path.startswith("metaguide/") and path != COMMAND
        for line, text in texts(source) if is_library else ():
            for pattern, what in EXPERIMENTS_OWN.items():
                if not (match := re.search(pattern, text)):
                    continue
                allowed = NAMES_SUCH_FILES.get(path, "(?!)")
                if not re.fullmatch(allowed, match.group()):
                    said = text[max(0, match.start() - 20) : match.end() + 20]
                    found.append(f"{path}:{line}: {said!r} names {what}; name an argument")
    return found


def all_modules() -> dict[str, str]:
    """The sources of both packages, by path from the root of the repository."""
    paths = [path for top in ("metaguide", "experiments") for path in (ROOT / top).rglob("*.py")]
    assert any(path.name == "types.py" for path in paths)
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in paths}


def test_imports_run_downward() -> None:
    """Catches an import upward or sideways, and a library outside its room."""
    found = violations(all_modules())
    assert not found, "\n".join(found)


def test_no_modules_import_one_another() -> None:
    """Catches two modules that need one another, even where one hides it in a function."""
    found = circles(all_modules())
    assert not found, "\n".join(found)


def test_a_circle_is_found() -> None:
    """Catches a checker that sees no circle, or one of three modules as none, or a line as one."""
    modules = {
        "experiments/__init__.py": "from experiments.a import x",
        "experiments/a.py": "def f():\n    from experiments import b",
        "experiments/b.py": "from .c import y",
        "experiments/c.py": "import metaguide.d",
        "metaguide/d.py": "",
    }
    assert circles(modules) == []
    back = "experiments.{} -> experiments.{} -> experiments.{} -> experiments.{}"
    found = circles({**modules, "experiments/c.py": "from experiments.a import f"})
    assert found == [back.format(*names) for names in ("abca", "bcab", "cabc")]


def test_the_library_names_no_flag_and_no_config() -> None:
    """Catches a message of the library that speaks of a command line that its user does not have,
    and a module that reads what the experiments keep for themselves."""
    found = named(all_modules())
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("path", "source", "what"),
    [
        ("data/a.py", "raise E('lower config.way')", "a field of a config"),
        ("data/a.py", "raise E(f'{n} classes; lower config.{name}')", "a field of a config"),
        ("files.py", "raise E('wait, or '\n 'give a new --workdir')", "a flag"),
        ("files.py", 'def f():\n    """Say."""\n    return "--config.seeds"', "a flag"),
        ("guide.py", "CONFIG = 'config.json'", "a file of the experiments"),
        ("guide.py", "read(run / 'serving.json')", "a file of the experiments"),
        ("guide.py", "raise E('give a ConfigDict')", "a ConfigDict"),
        ("run_config.py", "raise E('lower config.way')", "a field of a config"),
        ("pretrained/folder.py", "NAME = 'stage.json'", "a file of the experiments"),
    ],
)
def test_what_belongs_to_the_experiments_is_found(path: str, source: str, what: str) -> None:
    """Catches a checker that passes everything, or sees only some ways to write a text."""
    found = named({f"metaguide/{path}": source})
    assert found and all(one.startswith(f"metaguide/{path}:") for one in found)
    assert any(what in one for one in found)


def test_what_the_library_may_say_passes() -> None:
    """Catches a checker that refuses docstrings, names of Python, or what the experiments say."""
    allowed = {
        "metaguide/guide.py": '"""Takes no --flag and no config.field."""\nconfig.way = 3',
        "metaguide/a.py": 'W = 3\n"""Not config.width."""\nraise E("run_config.json - a--b")',
        "metaguide/run_config.py": "EARLIER = 'config.json'",
        "experiments/a.py": "raise E('lower config.way, or give a new --workdir')",
    }
    assert named(allowed) == []


@pytest.mark.parametrize(
    ("path", "source", "reason"),
    [
        ("models/a.py", "import metaguide.data.catalogue", "models may import types, not data"),
        ("models/a.py", "from metaguide import data", "not data"),
        ("models/a.py", "from ..data import catalogue", "not data"),
        ("models/a.py", "from .. import data", "not data"),
        ("models/a/b.py", "from ...objectives.tasks import span_loss", "not objectives"),
        ("objectives/a.py", "def f():\n    import metaguide.models", "not models"),
        ("data/a.py", "from metaguide.problems import classification", "not problems"),
        ("types.py", "from metaguide import parallel", "types may import no room, not parallel"),
        ("inner_loop.py", "from metaguide import learners", "not learners"),
        ("learners/a.py", "from metaguide.models.guide import GuideModel", "not models"),
        ("learners/a.py", "import sklearn", "learners may import chex, flax"),
        ("inner_loop.py", "import flax", "inner_loop may import chex, jax"),
        ("problems.py", "from metaguide.training import step", "not training"),
        ("training/a.py", "from metaguide.models import guide", "not models"),
        ("training/a.py", "from metaguide import load", "not guide"),
        ("training/a.py", "import metaguide", "not guide"),
        ("training/a.py", "import experiments.guide", "metaguide never imports experiments"),
        ("guide.py", "from experiments import guide", "metaguide never imports experiments"),
        ("data/a.py", "import tensorflow as tf", "tensorflow belongs to no room"),
        ("guide.py", "from tensorflow import keras", "tensorflow belongs to no room"),
        ("data/a.py", "__import__('tensorflow')", "tensorflow belongs to no room"),
        ("data/a.py", "importlib.import_module('orbax.checkpoint')", "orbax belongs to training"),
        ("models/a.py", "import orbax.checkpoint as ocp", "orbax belongs to training"),
        ("training/a.py", "import tensorflow_datasets", "tensorflow_datasets belongs to data"),
        ("problems.py", "from flax import linen as nn", "flax.linen belongs to learners, models"),
        ("problems.py", "import flax\nflax.linen.Dense(3)", "flax.linen belongs to"),
        ("training/a.py", "from flax.linen import Module", "flax.linen belongs to"),
        ("guide.py", "from ml_collections import ConfigDict", "ml_collections belongs to exp"),
        ("training/a.py", "from absl import logging", "absl belongs to experiments"),
        ("guide.py", "import uvicorn", "uvicorn belongs to experiments, web"),
        ("data/a.py", "from pydantic import BaseModel", "pydantic belongs to web"),
        ("guide.py", "from metaguide.web import serve", "metaguide.web belongs to cli, exp"),
        ("__init__.py", "from . import web", "metaguide.web belongs to cli, experiments, web"),
        ("saved.py", "import onnx", "onnx belongs to exporting"),
        (
            "guide.py",
            "from metaguide.exporting import export",
            "metaguide.exporting belongs to cli",
        ),
        ("web/a.py", "from metaguide.models.guide import GuideModel", "not models"),
        ("helpers.py", "", "helpers is no room of metaguide"),
    ],
)
def test_violation_is_found(path: str, source: str, reason: str) -> None:
    """Catches a checker that passes everything, or sees only some ways to import."""
    found = violations({f"metaguide/{path}": source})
    assert len(found) == 1
    assert found[0].startswith(f"metaguide/{path}:") and reason in found[0]


def test_downward_imports_pass() -> None:
    """Catches a checker that refuses what the direction allows."""
    allowed = {
        "metaguide/__init__.py": "from metaguide.guide import load\nfrom . import training",
        "metaguide/guide.py": "from metaguide.training import checkpoint\nimport metaguide.models",
        "metaguide/types.py": "import jax",
        "metaguide/models/guide.py": "from flax import linen as nn\nfrom .transformer import A",
        "metaguide/models/__init__.py": "from . import transformer",
        "metaguide/data/omniglot.py": "import tensorflow_datasets as tfds",
        "metaguide/optimizers/lstm.py": "from metaguide import inner_loop\nimport flax.linen",
        "metaguide/learners/maml.py": "import optax\nimport functools\nfrom ..inner_loop import x",
        "metaguide/problems.py": "from metaguide import data, models, objectives, types",
        "metaguide/training/checkpoint.py": "import orbax\nfrom metaguide import parallel",
        "metaguide/web/app.py": "import fastapi\nfrom metaguide.guide import asked",
        "experiments/guide.py": "import metaguide\nfrom absl import app\nimport ml_collections",
    }
    assert violations(allowed) == []
