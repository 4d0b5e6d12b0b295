"""Run the notebooks and keep their outputs: `python -m experiments.notebooks`.

Each notebook runs top to bottom in an empty folder, with its default preset, and is written back
with its outputs and pictures. `--only=guide` selects one. Paths, times and machine-specific output
are left out, so that a run on another machine changes only the results.
"""

import argparse
import base64
import copy
import io
import os
import re
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from PIL import Image

from metaguide.files import atomic_write

ROOT = Path(__file__).resolve().parents[1]

SECONDS_A_CELL = 3600

_TIME = re.compile(r"\b[\d.]+ (?=s\b|steps/s\b)")
_PROGRESS = re.compile(r"\bstep \d+ of \d+")


def executed(
    notebook: NotebookNode, preset: str, folder: Path, env: Mapping[str, str]
) -> NotebookNode:
    """Run a notebook top to bottom and return it with its stripped outputs.

    Args:
        notebook: a notebook with one cell tagged `parameters` that sets `preset = "default"`. It is
            not modified.
        preset: the preset to use while it runs.
        folder: the folder to run in.
        env: environment variables of its process.

    Raises:
        CellExecutionError: a cell fails.
        ValueError: the notebook has no such cell.
    """
    found = copy.deepcopy(notebook)
    cells = [cell for cell in found.cells if "parameters" in cell.metadata.get("tags", ())]
    if len(cells) != 1 or cells[0].source.count('preset = "default"') != 1:
        raise ValueError('a notebook needs one cell tagged parameters with preset = "default"')
    (cell,) = cells
    written = cell.source
    cell.source = written.replace('preset = "default"', f'preset = "{preset}"')
    resources = {"metadata": {"path": str(folder)}}
    client = NotebookClient(
        found, timeout=SECONDS_A_CELL, kernel_name="python3", resources=resources
    )
    client.execute(env=dict(env))
    cell.source = written
    return stripped(found, folder)


def stripped(notebook: NotebookNode, folder: Path) -> NotebookNode:
    """Return a notebook without the machine-dependent parts of its outputs.

    Standard error (progress bars and warnings), progress lines, and HTML that has a plain-text
    alternative are removed. Paths, times and execution counts are normalised.
    """
    found = copy.deepcopy(notebook)
    found.metadata.pop("language_info", None)
    for cell in found.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.execution_count = None
            cell.outputs = [o for o in cell.outputs if not _is_passing(o)]
            for output in cell.outputs:
                _make_alike(output, folder)
    return found


def _is_passing(output: NotebookNode) -> bool:
    plain = output.get("data", {}).get("text/plain", "")
    return output.get("name") == "stderr" or _PROGRESS.search(plain) is not None


def _make_alike(output: NotebookNode, folder: Path) -> None:
    if "execution_count" in output:
        output.execution_count = None
    if "text" in output:
        output.text = _anonymous(output.text, folder)
    data = output.get("data", {})
    if "text/plain" in data:
        data.pop("text/html", None)
        data["text/plain"] = _anonymous(data["text/plain"], folder)
    if "image/png" in data:
        data["image/png"] = _small(data["image/png"])


def _small(png: str) -> str:
    """Return a picture reduced to 128 colours, a fraction of the bytes; both in base64."""
    image = Image.open(io.BytesIO(base64.b64decode(png)))
    if image.mode == "P":
        return png
    buffer = io.BytesIO()
    image.convert("RGB").quantize(128).save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def _anonymous(text: str, folder: Path) -> str:
    for place, name in ((folder.resolve(), "."), (ROOT, "metaguide"), (Path.home(), "~")):
        text = text.replace(str(place), name)
    return _TIME.sub("… ", text)


def main() -> None:
    """Run the notebooks and write them back."""
    parser = argparse.ArgumentParser(description="Run the notebooks and keep their outputs.")
    parser.add_argument("--only", default="", help="comma-separated names of notebooks")
    only = [name for name in parser.parse_args().only.split(",") if name]
    paths = {path.stem: path for path in sorted(ROOT.glob("notebooks/*.ipynb"))}
    if unknown := set(only) - set(paths):
        sys.exit(f"--only={min(unknown)}: there are {', '.join(paths)}")
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    env.pop("MPLBACKEND", None)
    for name in only or paths:
        with tempfile.TemporaryDirectory() as folder:
            notebook = nbformat.read(paths[name], as_version=4)
            found = executed(notebook, "default", Path(folder), env)
        with atomic_write(paths[name]) as file:
            file.write((nbformat.writes(found).rstrip() + "\n").encode())
        print(f"notebooks: wrote {paths[name].relative_to(ROOT)}")


if __name__ == "__main__":
    main()
