"""The notebooks: paired with their scripts, without outputs, and they run top to bottom."""

import ast
import importlib.util
import os
from pathlib import Path

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted(ROOT.glob("notebooks/*.ipynb"))


def reduced(notebook, preset):
    """The notebook with another preset in its cell of parameters."""
    (cell,) = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", ())]
    assert cell.source.count('preset = "default"') == 1
    cell.source = cell.source.replace('preset = "default"', f'preset = "{preset}"')
    return notebook


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_its_script(path):
    """Faults: one of the pair was edited and the other was not; outputs were saved."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    script = jupytext.read(path.with_suffix(".py"))

    def cells(of):
        return [(cell.cell_type, cell.source, cell.metadata.get("tags", [])) for cell in of.cells]

    assert cells(notebook) == cells(script), f"run: jupytext --sync {path.relative_to(ROOT)}"
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None


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
    notebook = reduced(nbformat.read(path, as_version=4), "tiny")
    # One device: the eight of the tests cost compilation time and show nothing here.
    fast = os.environ["METAGUIDE_TESTS_XLA_FLAGS"]
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": fast, "PYTHONPATH": str(ROOT)}
    env.pop("MPLBACKEND", None)
    client = NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    )
    client.execute(env=env)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    pictures = [o for o in outputs if "image/png" in o.get("data", {})]
    assert len(pictures) == 2, "each notebook draws two"
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
    # A wheel that lies beside it is taken.
    (tmp_path / "metaguide-0.2.0-py3-none-any.whl").write_bytes(b"")
    ran = []
    monkeypatch.setattr("subprocess.run", lambda command, check: ran.append(command[-1]))
    exec(install, names)
    assert ran == ["metaguide-0.2.0-py3-none-any.whl"]


WHEELS = [f"metaguide-{v}-py3-none-any.whl" for v in ("0.9.0", "0.10.0", "0.10.0rc1", "0.2.0")]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.parametrize(
    ("files", "taken"),
    [
        ({"pyproject.toml": '[project]\nname = "metaguide"'}, "."),
        ({"../pyproject.toml": '[project]\nname = "metaguide"'}, ".."),
        ({"pyproject.toml": '[project]\nname = "other"'}, None),
        ({"../pyproject.toml": '[project]\nname = "other"', WHEELS[0]: ""}, WHEELS[0]),
        ({"pyproject.toml": "[tool.ruff]"}, None),
        ({"pyproject.toml": "project = 3"}, None),
        ({"pyproject.toml": "not toml"}, None),
        (dict.fromkeys(WHEELS, ""), WHEELS[1]),
        (dict.fromkeys([*WHEELS, "metaguide-9-py3-none-any (1).whl"], ""), WHEELS[1]),
        ({"metaguide-9.whl": "", "metaguide-guide-9-py3-none-any.whl": ""}, None),
    ],
)
def test_what_is_installed_is_metaguide_and_the_newest(path, tmp_path, monkeypatch, files, taken):
    """Faults: any project in the folder above is installed; the first wheel by name is, an old one;
    a file that is no wheel ends in a traceback."""
    notebook = nbformat.read(path, as_version=4)
    first, install = [cell.source for cell in notebook.cells if cell.cell_type == "code"][:2]
    folder = tmp_path / "inner"
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    ran, names = [], {}
    monkeypatch.setattr("subprocess.run", lambda command, check: ran.append(command[-1]))
    exec(first, names)
    if taken is None:
        with pytest.raises(RuntimeError, match="not installed"):
            exec(install, names)
    else:
        exec(install, names)
    assert ran == ([taken] if taken else [])
