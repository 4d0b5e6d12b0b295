"""A module is run: its errors are one line each, its devices as many as were asked for."""

import errno
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import pytest

from experiments import process_setup, runner
from experiments.config_files import ConfigError
from metaguide.data.catalogue import CatalogueError
from metaguide.data.episodes import EpisodeError
from metaguide.files import FolderHeld
from metaguide.training.checkpoint import CheckpointError
from metaguide.training.loop import TrainingDiverged


@pytest.mark.parametrize("name", ["ENOSPC", "EACCES", "EROFS", "EEXIST", "EISDIR"])
def test_what_a_disk_refuses_is_one_line(file, capsys, monkeypatch, name):
    """Fault: a full disk, or a folder that may not be written, is a traceback."""
    monkeypatch.setattr(runner, "enable_compilation_cache", lambda: None)

    def main(config, workdir):
        number = getattr(errno, name)
        raise OSError(number, os.strerror(number), "w/metrics.jsonl")

    with pytest.raises(SystemExit) as error:
        runner.run(main, default="", workdir="w", argv=["prog", f"--config={file}"])
    assert error.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: w/metrics.jsonl: {os.strerror(getattr(errno, name)).lower()}; ")
    assert said.count("\n") == 1


def test_an_error_that_says_nothing_of_a_disk_keeps_its_traceback(file, monkeypatch):
    """Fault: a file that our own code looks for in vain is shown as a fault of the disk."""
    monkeypatch.setattr(runner, "enable_compilation_cache", lambda: None)

    def main(config, workdir):
        open(workdir / "none" / "there")

    with pytest.raises(FileNotFoundError):
        runner.run(main, default="", workdir="w", argv=["prog", f"--config={file}"])


@pytest.mark.parametrize("kind", [ConfigError, CatalogueError, CheckpointError, TrainingDiverged])
def test_expected_errors_are_one_line_and_code_2(file, capsys, monkeypatch, kind):
    """Fault: what the user can fix drowns in a traceback, or the shell sees a success."""
    monkeypatch.setattr(runner, "enable_compilation_cache", lambda: None)

    def main(config, workdir):
        raise kind("first\n  second")

    with pytest.raises(SystemExit) as error:
        runner.run(main, default="", workdir="w", argv=["prog", f"--config={file}"])
    assert error.value.code == 2
    assert capsys.readouterr().err == "error: first second\n"


@pytest.mark.parametrize(
    ("error", "flag"), [(FolderHeld, "such as --workdir=FOLDER"), (EpisodeError, "see --help")]
)
def test_an_error_of_the_library_is_shown_with_the_flag(file, capsys, monkeypatch, error, flag):
    """Fault: the library knows no flag, and nobody says which one sets what its error names."""
    monkeypatch.setattr(runner, "enable_compilation_cache", lambda: None)

    def main(config, workdir):
        raise error("w: give another folder")

    with pytest.raises(SystemExit):
        runner.run(main, default="", workdir="w", argv=["prog", f"--config={file}"])
    said = capsys.readouterr().err
    assert re.fullmatch(f"error: w: give another folder; .*{flag}\n", said)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--processes=2"], "give all of --coordinator=HOST:PORT --processes=N --process=I"),
        (["--coordinator=localhost:1", "--process", "0"], "give all of --coordinator=HOST:PORT"),
        (["--coordinator=auto", "--processes=2"], "JAX finds the processes .*; give none"),
        (
            ["--coordinator=localhost", "--processes=2", "--process=1"],
            "coordinator 'localhost', process 1 of 2: give address:port",
        ),
        (
            ["--config.seeds", "2", "--coordinator=localhost:1", "--processes=2", "--process=2"],
            "process 2 of 2: give .* a number of its own below 2",
        ),
        (["--cpu_devices=0"], "0 CPU devices: there has to be at least one"),
        (["--cpu_devices", "3"], "too late for 3 CPU devices"),
    ],
)
def test_wrong_devices_or_processes_are_one_line(file, capsys, monkeypatch, words, said):
    """Faults: a flag without the others that it needs, or behind a value in a word of its own, is
    ignored, and each process trains alone; the library's traceback answers."""
    monkeypatch.setattr(runner, "enable_compilation_cache", lambda: None)
    assert jax.devices()  # as a module has that asks for them too early
    with pytest.raises(SystemExit) as error:
        runner.run(print, default="", workdir="w", argv=["prog", f"--config={file}", *words])
    out, err = capsys.readouterr()
    assert error.value.code == 2 and not out
    assert re.match(f"error: .*{said}", err) and len(err.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize(("flags", "devices"), [([], 1), (["--cpu_devices=3"], 3)])
def test_cpu_devices_are_as_many_as_asked_for(file, tmp_path, flags, devices):
    """Faults: the flag comes after something that asks JAX for its devices, as an import may; it
    changes what there is where it is not given."""
    program = (
        "import jax\n"
        "from experiments import runner\n"
        "from experiments.tables import omniglot, sinusoid\n"
        "from metaguide.parallel import tasks_mesh\n"
        "def main(config, workdir):\n"
        "    print(tasks_mesh().size)\n"
        f"runner.run(main, default={str(file)!r}, workdir='w')\n"
    )
    root = Path(runner.__file__).resolve().parent.parent
    done = subprocess.run(
        [sys.executable, "-c", program, *flags],
        env={"PATH": "", "PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(devices)]


def test_unexpected_errors_keep_their_traceback(file, monkeypatch):
    """Fault: a bug of ours is shown as the user's mistake."""
    monkeypatch.setattr(runner, "enable_compilation_cache", lambda: None)

    def main(config, workdir):
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        runner.run(main, default="", workdir="w", argv=["prog", f"--config={file}"])


def test_help_lists_every_field(file, capsys):
    """Fault: nobody can find out what there is to set."""
    runner.run(lambda *_: None, default=str(file), workdir="runs/x", argv=["prog", "--help"])
    out = capsys.readouterr().out
    assert "--config.adapt.episodes=50" in out and "runs/x" in out
    assert all(flag in out for flag in ("--cpu_devices=", "--coordinator=auto", "--process="))


def test_compilation_cache_honours_the_environment(tmp_path, monkeypatch):
    """Fault: the cache lands in the home folder of a user who said where it belongs."""
    names = ["jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs"]
    names.append("jax_persistent_cache_min_entry_size_bytes")
    before = {name: getattr(jax.config, name) for name in names}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    try:
        jax.config.update("jax_compilation_cache_dir", None)
        assert process_setup.enable_compilation_cache() == tmp_path / "metaguide" / "xla"
        jax.config.update("jax_compilation_cache_dir", str(tmp_path / "own"))
        assert process_setup.enable_compilation_cache() == tmp_path / "own"
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


@pytest.mark.slow
def test_command_line_end_to_end(file, tmp_path):
    """Faults: the process ends with a traceback or code 0; the second start finds no program in
    the cache."""
    program = (
        "import jax, jax.numpy as jnp\n"
        "from experiments import runner\n"
        "def main(config, workdir):\n"
        "    jax.jit(lambda x: jnp.sin(x) @ x.T)(jnp.ones((4, config.seeds)))\n"
        f"runner.run(main, default={str(file)!r}, workdir='w')\n"
    )
    root = Path(runner.__file__).resolve().parent.parent
    environment = {"PATH": "", "PYTHONPATH": str(root), "XDG_CACHE_HOME": str(tmp_path)}

    def start(flag):
        return subprocess.run(
            [sys.executable, "-c", program, flag],
            env={**environment, "JAX_PLATFORMS": "cpu", "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            cwd=tmp_path,
        )

    good, wrong = start("--config.seeds=3"), start("--config.seed=3")
    assert good.returncode == 0, good.stderr
    assert list((tmp_path / "metaguide" / "xla").glob("*lambda*"))
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: --config.seed: ") and "mean seeds?" in wrong.stderr
    assert len(wrong.stderr.splitlines()) == 1


def test_a_warning_is_a_line_of_its_own(monkeypatch):
    """Fault: a user reads the path of a module and a line of its code beside what is said."""
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    process_setup.warn_in_a_line()
    said = warnings.formatwarning(
        "2 texts are left out", UserWarning, "repeats.py", 44, "kept = {}"
    )
    assert said == "warning: 2 texts are left out\n"
