"""The examples in the docstrings of learners, the inner loop and learned optimizers."""

import contextlib
import doctest
import importlib
import inspect
import io
import warnings
from collections.abc import Iterator

import pytest

PACKAGES = ("metaguide.inner_loop", "metaguide.learners", "metaguide.optimizers")
"""Modules whose own docstring sets the names that the examples of their functions start from."""


def public_functions() -> Iterator[tuple[str, str]]:
    """Yield (package, name) of the functions that a user calls."""
    for package in PACKAGES:
        module = importlib.import_module(package)
        names = getattr(module, "__all__", [n for n in vars(module) if not n.startswith("_")])
        for name in names:
            found = getattr(module, name)
            if inspect.isfunction(found) and found.__module__.startswith(package):
                yield package, name


def run(text: str | None, names: dict, of: str) -> str:
    """Run the examples of a docstring with these names, and return what failed."""
    test = doctest.DocTestParser().get_doctest(inspect.cleandoc(text or ""), {}, of, of, 0)
    assert test.examples, f"{of} has no example"
    test.globs = names
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    said = io.StringIO()
    with contextlib.redirect_stdout(said), warnings.catch_warnings():
        warnings.simplefilter("error")
        runner.run(test, out=said.write, clear_globs=False)
    return said.getvalue()


@pytest.fixture(scope="module")
def names() -> dict[str, dict]:
    """What the docstring of each package leaves behind."""
    left: dict[str, dict] = {}
    for package in PACKAGES:
        left[package] = {}
        assert run(importlib.import_module(package).__doc__, left[package], package) == ""
    return left


@pytest.mark.parametrize(("package", "name"), list(public_functions()))
def test_the_example_of_a_public_function_runs(names, package: str, name: str):
    """Faults: a public function without an example; one that no longer does what it shows."""
    function = getattr(importlib.import_module(package), name)
    shown = {**names[package], name: function}
    if package == "metaguide.inner_loop":  # its functions stand beside one another
        shown = {**vars(importlib.import_module(package)), **shown}
    assert run(function.__doc__, shown, f"{package}.{name}") == ""
