"""What `pip install metaguide` brings: the package alone, at work on its base dependencies."""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import metaguide

ROOT = Path(__file__).resolve().parents[1]

SCRIPT = """
import importlib.util
import sys
import time

for missing in ("experiments", "tokenizers", "PIL", "sklearn", "ml_collections", "beartype"):
    assert importlib.util.find_spec(missing) is None, missing

import flax, jax, optax

start = time.perf_counter()
import metaguide

print(f"import metaguide: {time.perf_counter() - start:.3f} s")
assert time.perf_counter() - start < 1 / 3
assert metaguide.__file__.startswith(sys.argv[1])

import jax.numpy as jnp
from metaguide.data.sinusoid import wave_sampler, waves
from metaguide.learners import maml
from metaguide.models.mlp import MLP
from metaguide.problems import regression

rule, theta, _ = metaguide.optimizers.pretrained("lstm")
optimizer = rule.transform(theta)


def loss(params):
    return jnp.sum(params["w"] ** 2)


params = {"w": jnp.ones(3)}
before, gradient = jax.value_and_grad(loss)(params)
updates, _ = optimizer.update(gradient, optimizer.init(params), params)
assert loss(optax.apply_updates(params, updates)) < before

learner = maml(regression(MLP((8,))), optax.sgd(0.01), steps=1)
meta = learner.init(jax.random.key(0))
episode = wave_sampler(shots=5, queries=5)(waves(), 0, 5, jax.random.key(1))


def objective(meta):
    return learner.objective(meta, episode, jax.random.key(2), 0.0)[0]


before, gradient = jax.value_and_grad(objective)(meta)
assert objective(jax.tree.map(lambda p, g: p - 1e-3 * g, meta, gradient)) < before

try:
    from metaguide import load
except ImportError as error:
    assert "run pip install 'metaguide[guide]'" in str(error), error
else:
    raise AssertionError("load needs the extra")
print("done")
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of the working tree, built in a copy: what `build/` holds gets into a wheel."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree / name)
    for name in ("metaguide", "experiments"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    command += ["--quiet", "--disable-pip-version-check", "-w", str(out), str(tree)]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (path,) = out.glob("*.whl")
    return path


def closure(requirements: list[str]) -> Iterator[metadata.Distribution]:
    """Yield the distributions that these requirements bring, with those of their extras."""
    seen: set[tuple[str, str]] = set()
    waiting = [Requirement(line) for line in requirements]
    while waiting:
        needed = waiting.pop()
        name = re.sub(r"[-_.]+", "-", needed.name).lower()
        for extra in {"", *needed.extras} - {e for n, e in seen if n == name}:
            seen.add((name, extra))
            distribution = metadata.distribution(name)
            yield distribution
            waiting += [
                requirement
                for requirement in map(Requirement, distribution.requires or ())
                if not requirement.marker or requirement.marker.evaluate({"extra": extra})
            ]


@pytest.mark.slow
def test_wheel_holds_metaguide_alone(wheel: Path):
    """Faults: `experiments` lands in site-packages; an optimizer or the page is missing."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    tops = {name.split("/")[0] for name in names}
    assert tops == {"metaguide", f"metaguide-{version}.dist-info"}
    assert "metaguide/py.typed" in names
    static = list((ROOT / "metaguide" / "web" / "static").iterdir())
    assert static
    for path in (*(ROOT / "metaguide").rglob("*.npz"), *static):
        assert path.relative_to(ROOT).as_posix() in names


@pytest.mark.slow
def test_base_install_restores_an_optimizer_and_trains(wheel: Path, tmp_path: Path):
    """Faults: a learner or an optimizer needs a library of an extra; `import metaguide` is slow.

    The environment is a folder with the wheel and with links to what its base dependencies
    brought, and the interpreter, isolated and without its site-packages, sees nothing else: an
    install from an index, without the network.
    """
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
        (about,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
    requires = metadata.PathDistribution(tmp_path / about.split("/")[0]).requires or []
    base = [line for line in requires if "extra ==" not in line]
    for distribution in closure(base):
        for file in distribution.files or ():
            top = file.parts[0]
            if top.endswith(".pth") or top in ("..", "__pycache__"):
                continue
            link = tmp_path / top
            if not link.exists():
                link.symlink_to(Path(str(distribution.locate_file(top))).resolve())
    start = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
    command = [sys.executable, "-I", "-S", "-c", start + SCRIPT, str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.endswith("done\n")


def test_an_unknown_name_and_a_missing_library_are_told_apart(monkeypatch: pytest.MonkeyPatch):
    """Faults: a misspelt name asks for the extra; a module of ours that is missing does."""
    with pytest.raises(AttributeError, match="no attribute 'lood'"):
        _ = metaguide.lood  # pyright: ignore[reportAttributeAccessIssue]
    for name, error in (
        ("tokenizers", "pip install 'metaguide\\[guide\\]'"),
        ("metaguide.x", "^$"),
    ):

        def missing(home: str, name: str = name) -> None:
            raise ModuleNotFoundError("", name=name)

        monkeypatch.delitem(metaguide.__dict__, "load", raising=False)
        with monkeypatch.context() as patch:
            patch.setattr("importlib.import_module", missing)
            with pytest.raises(ImportError, match=error):
                _ = metaguide.load
