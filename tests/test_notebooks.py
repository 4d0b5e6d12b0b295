"""The notebooks: paired with their scripts, with outputs, and they run top to bottom."""

import ast
import importlib.util
import os
import re
import sys
from pathlib import Path

import jupytext
import nbformat
import pytest

from experiments.notebooks import executed, stripped

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted(ROOT.glob("notebooks/*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_its_script(path):
    """Faults: one of the pair was edited and the other was not; outputs were lost, are of another
    run than `experiments.notebooks` makes, or say where and how fast they were made."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    script = jupytext.read(path.with_suffix(".py"))

    def cells(of):
        return [(cell.cell_type, cell.source, cell.metadata.get("tags", [])) for cell in of.cells]

    assert cells(notebook) == cells(script), f"run: jupytext --sync {path.relative_to(ROOT)}"
    assert notebook == stripped(notebook, ROOT), "run: python -m experiments.notebooks"
    assert len(pictures(notebook)) == 2, "run: python -m experiments.notebooks"
    assert path.stat().st_size < 200_000
    for output in pictures(notebook):
        del output.data["image/png"]  # whose letters may spell anything
    assert not re.search(r"/root|/home|/tmp|/work|/Users", nbformat.writes(notebook))


def pictures(notebook):
    """The PNGs among a notebook's outputs."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return [output for output in outputs if "image/png" in output.get("data", {})]


def test_what_depends_on_the_machine_is_stripped(tmp_path):
    """Faults: a path, a time, a bar or a number of execution is committed; the input changes."""
    outputs = [
        nbformat.v4.new_output("stream", name="stdout", text=f"{tmp_path}/a: 12 s, loss 1.5\n"),
        nbformat.v4.new_output("stream", name="stderr", text="a bar"),
        nbformat.v4.new_output("display_data", data={"text/plain": "x: step 3 of 9, 2 s left"}),
        nbformat.v4.new_output(
            "execute_result",
            data={"text/plain": f"'{ROOT}/b', 2.5 steps/s", "text/html": "the same"},
            execution_count=3,
        ),
    ]
    cell = nbformat.v4.new_code_cell("x", outputs=outputs, execution_count=3)
    notebook = nbformat.v4.new_notebook(cells=[cell])
    (found,) = stripped(notebook, tmp_path).cells
    assert found.execution_count is None and cell.execution_count == 3
    assert [output.output_type for output in found.outputs] == ["stream", "execute_result"]
    assert found.outputs[0].text == "./a: … s, loss 1.5\n"
    assert found.outputs[1].data == {"text/plain": "'metaguide/b', … steps/s"}
    assert found.outputs[1].execution_count is None


def test_every_script_has_a_notebook():
    """Fault: a script that no notebook is made of, or no notebook at all."""
    scripts = [path.stem for path in sorted(ROOT.glob("notebooks/*.py"))]
    assert [path.stem for path in NOTEBOOKS] == scripts != []


def test_learner_of_ones_own_is_short_and_leaves_the_library_alone():
    """Faults: more than 40 lines, or other than the text says; the library is patched."""
    notebook = nbformat.read(ROOT / "notebooks/prototype_a_meta_learner.ipynb", as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    own = [cell.source for cell in code if "learner" in cell.metadata.get("tags", ())]
    lines = [line for source in own for line in source.splitlines() if line.strip()]
    assert 0 < len(lines) <= 40
    assert sum(f"{len(lines)} lines" in cell.source for cell in notebook.cells) == 2
    nodes = [node for cell in code for node in ast.walk(ast.parse(cell.source))]
    assert all(isinstance(n.ctx, ast.Load) for n in nodes if isinstance(n, ast.Attribute))
    assert not any(isinstance(n, ast.Name) and n.id == "setattr" for n in nodes)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_top_to_bottom(path, tmp_path):
    """Faults: a cell fails, needs one that comes later, or draws nothing."""
    # One device: the eight of the tests cost compilation time and show nothing here.
    fast = os.environ["METAGUIDE_TESTS_XLA_FLAGS"]
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": fast, "PYTHONPATH": str(ROOT)}
    env.pop("MPLBACKEND", None)
    notebook = executed(nbformat.read(path, as_version=4), "tiny", tmp_path, env)
    assert len(pictures(notebook)) == 2, "each notebook draws two"
    assert 'preset = "default"' in str(notebook)
    assert (tmp_path / "runs").is_dir()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.parametrize("installed", [True, False], ids=["installed", "missing"])
def test_the_first_cells_run_alone_in_an_empty_folder(path, tmp_path, monkeypatch, installed):
    """Fault: a notebook that was uploaded alone fails in its first cell, over a folder `..`."""
    notebook = nbformat.read(path, as_version=4)
    first, install = [cell.source for cell in notebook.cells if cell.cell_type == "code"][:2]
    monkeypatch.chdir(tmp_path)
    find = importlib.util.find_spec
    if not installed:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    names = {}
    exec(first, names)
    assert names["source"] == ""
    if installed:
        exec(install, names)
        return
    with pytest.raises(RuntimeError, match="not installed: say where it is, as `source` above"):
        exec(install, names)
    assert find("metaguide") is not None


CLONE = {"pyproject.toml": '[project]\nname = "metaguide"'}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.parametrize(
    ("files", "source", "taken"),
    [
        (CLONE, "", "."),
        ({f"../{name}": text for name, text in CLONE.items()}, "", ".."),
        ({f"metaguide-clone/{name}": text for name, text in CLONE.items()}, "", "metaguide-clone"),
        ({f"other/{name}": text for name, text in CLONE.items()}, "other", "other"),
        (CLONE, "https://an.address/metaguide", "metaguide-clone"),
        ({"pyproject.toml": '[project]\nname = "other"'}, "", None),
        ({"../pyproject.toml": '[project]\nname = "other"'}, "", None),
        ({"pyproject.toml": "[tool.ruff]"}, "", None),
        ({"pyproject.toml": "project = 3"}, "", None),
        ({"pyproject.toml": "not toml"}, "", None),
        ({"metaguide-0.2.0-py3-none-any.whl": ""}, "", None),  # it has no experiments
    ],
)
def test_what_is_installed_is_a_clone(path, tmp_path, monkeypatch, files, source, taken):
    """Faults: any project in the folder above is installed; a file that is no project ends in a
    traceback; an address is not cloned, or is where a clone was named; experiments are not found.
    """
    notebook = nbformat.read(path, as_version=4)
    first, install = [cell.source for cell in notebook.cells if cell.cell_type == "code"][:2]
    folder = tmp_path / "inner"
    folder.mkdir()
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "path", [*sys.path])
    ran, names = [], {}
    monkeypatch.setattr("subprocess.run", lambda command, check: ran.append(command))
    exec(first, names)
    names["source"] = source
    if taken is None:
        with pytest.raises(RuntimeError, match="not installed"):
            exec(install, names)
        assert ran == []
        return
    exec(install, names)
    *cloned, installed = ran
    assert installed[-1] == f"{(folder / taken).resolve()}[guide]"
    assert sys.path[0] == str((folder / taken).resolve())
    assert [command[:2] for command in cloned] == [["git", "clone"]] * source.startswith("https")
