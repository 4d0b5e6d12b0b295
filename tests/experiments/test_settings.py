import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from ml_collections.config_dict import ConfigDict, FrozenConfigDict

from experiments import settings
from experiments.settings import ConfigError
from metaguide.data.catalogue import CatalogueError
from metaguide.data.episodes import EpisodeError
from metaguide.files import FolderHeld
from metaguide.training.checkpoint import CheckpointError
from metaguide.training.loop import TrainingDiverged

CONFIG = """
from ml_collections import config_dict


def get_config():
    return config_dict.ConfigDict({
        "preset": "default",
        "presets": {"full": {"seeds": 3, "adapt": {"episodes": 600}}, "bad": {"adapt": {"epis": 1}},
                    "worse": {"adapt": {"episodes": "many"}}},
        "seeds": 1,
        "init_from": config_dict.placeholder(str),
        "adapt": {"episodes": 50, "shots": (0, 1), "rate": 0.1, "curves": True},
        "pretrain": {"rate": 1e-3, "log_every": 10},
        "arms": {"zero-shot": 1},
    })
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "small.py"
    path.write_text(CONFIG)
    return path


def resolve(file, *flags):
    return settings.resolve(["prog", f"--config={file}", *flags], default="", workdir="runs/x")


def test_file_preset_and_overrides_in_their_order(file):
    """Fault: the preset overwrites what the user wrote on the command line, wherever it stands."""
    config, workdir = resolve(file)
    assert (config.seeds, config.adapt.episodes, workdir) == (1, 50, Path("runs/x-small"))
    config, _ = resolve(file, "--config.preset=full")
    assert (config.seeds, config.adapt.episodes, config.adapt.rate) == (3, 600, 0.1)
    config, workdir = resolve(
        file, "--config.adapt.episodes=7", "--config.preset=full", "--workdir=w"
    )
    assert (config.seeds, config.adapt.episodes, workdir) == (3, 7, Path("w"))
    assert "presets" not in config


def test_forms_of_a_flag(file):
    """Faults: a value in the next word, a single dash, a tuple, a switch or a placeholder is
    refused, or parsed as text."""
    config, _ = resolve(
        file,
        *["--config.adapt.rate", "1", "-config.seeds=2", "--config.adapt.shots=(0, 5, 10)"],
        *["--noconfig.adapt.curves", "--config.init_from=runs/a"],
    )
    assert (config.seeds, config.adapt.shots, config.adapt.curves) == (2, (0, 5, 10), False)
    assert config.init_from == "runs/a"
    assert isinstance(config.adapt.rate, float) and config.adapt.rate == 1.0


def test_resolved_config_cannot_change(file):
    """Fault: an experiment changes its own settings after they are written down."""
    config, _ = resolve(file)
    with pytest.raises(AttributeError):
        config.seeds = 4


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--config.adapt.episode=3", r"--config\.adapt\.episode: .*small\.py .*adapt\.episodes"),
        ("--config.episodes=3", r"did you mean adapt\.episodes\?"),
        ("--config.rate=3", r"did you mean adapt\.rate or pretrain\.rate\?"),
        ("--config.arms.zero-shot=3", r"config\.arms\.zero-shot: set it in a config file"),
        ("--config.zzz=3", r"no such field; it has adapt\.curves, .*pretrain\.rate, seeds"),
        ("--config.adapt=3", r"--config\.adapt is a section"),
        ("--config.adapt.episodes=many", r"config\.adapt\.episodes=many: .*int"),
        ("--config.adapt.rate=fast", r"config\.adapt\.rate=fast: .*float"),
        ("--config.preset=ful", r"--config\.preset=ful: .*there are bad, default, full, worse"),
        ("--config.preset=bad", r"preset 'bad': there is no field adapt\.epis; .*adapt\.episodes"),
        ("--config.preset=worse", r"preset 'worse': adapt\.episodes='many': .*int"),
        ("--workdirs=x", r"Unknown command line flag 'workdirs'. Did you mean: workdir"),
        ("--cpu_device=2", r"Unknown command line flag 'cpu_device'. Did you mean: cpu_devices"),
        ("--processes=two", r"--processes=two"),
        ("more", r"unexpected argument 'more'"),
        ("--config=nowhere.py", r"--config=nowhere\.py: no such file; there are "),
    ],
)
def test_wrong_flag_is_named_with_its_mend(file, flag, words):
    """Fault: a misspelt setting is ignored, or answered by the library's traceback."""
    with pytest.raises(ConfigError, match=words):
        resolve(file, flag)


@pytest.mark.parametrize("text", ["def get_config(:", "x = 1", "def get_config(): return {}"])
def test_broken_config_file_is_named(tmp_path, text):
    """Fault: an error in a user's config file does not say which file it is."""
    path = tmp_path / "broken.py"
    path.write_text(text)
    with pytest.raises(ConfigError, match="broken.py"):
        resolve(path)


def test_config_file_is_found_from_any_folder(file, tmp_path, monkeypatch):
    """Fault: the defaults are found only where the repository is the current folder."""
    monkeypatch.chdir(tmp_path)
    assert settings.find_config("small.py").samefile(file)
    assert settings.find_config("experiments/settings.py").samefile(settings.__file__)


def test_config_is_written_and_read_again(file, tmp_path):
    """Faults: tuples come back as lists, a half-written file stays, the folder is not made."""
    config, _ = resolve(file, "--config.init_from=a")
    workdir = tmp_path / "runs" / "one"
    settings.write_config(config, workdir)
    assert settings.read_config(workdir) == config
    assert [path.name for path in workdir.iterdir()] == ["config.json"]
    assert json.loads((workdir / "config.json").read_text())["adapt"]["shots"] == [0, 1]


def test_work_folder_of_another_config_is_refused(file, tmp_path):
    """Fault: a run goes on from checkpoints that were trained under other settings."""
    workdir = tmp_path / "w"
    settings.write_config(resolve(file)[0], workdir)
    (workdir / "seed0" / "checkpoints" / "10").mkdir(parents=True)
    before = (workdir / "config.json").read_text()
    changed, _ = resolve(file, "--config.adapt.shots=(0, 5)", "--config.pretrain.rate=0.1")
    words = (
        r"adapt\.shots was \[0, 1\], is \[0, 5\]; pretrain\.rate was 0\.001, is 0\.1; .*--workdir"
    )
    with pytest.raises(ConfigError, match=words):
        settings.write_config(changed, workdir)
    assert (workdir / "config.json").read_text() == before
    settings.write_config(changed, workdir, harmless=("adapt", "pretrain.rate"))
    assert settings.read_config(workdir).adapt.shots == (0, 5)


def test_harmless_fields_may_change(file, tmp_path):
    """Fault: a run cannot go on with lines of metrics at other steps, or with a preset whose name
    only says what its values say again."""
    settings.write_config(resolve(file)[0], tmp_path)
    same, _ = resolve(
        file,
        *["--config.preset=full", "--config.seeds=1", "--config.adapt.episodes=50"],
        "--config.pretrain.log_every=1",
    )
    settings.write_config(same, tmp_path)


def test_fields_that_only_one_side_has_differ(tmp_path):
    """Fault: a setting that is new in the code passes as equal to its absence."""
    settings.write_config(ConfigDict({"a": 1, "old": 2}), tmp_path)
    (tmp_path / "results.json").touch()
    with pytest.raises(ConfigError, match="new was absent, is 3; old was 2, is absent"):
        settings.write_config(ConfigDict({"a": 1, "new": 3}), tmp_path)


def test_a_folder_in_which_nothing_was_finished_is_free(file, tmp_path):
    """Fault: an error before any training leaves a folder that no other config may use."""
    settings.write_config(resolve(file)[0], tmp_path)
    (tmp_path / "seed0" / "checkpoints").mkdir(parents=True)
    (tmp_path / "seed0" / "metrics.jsonl").touch()
    changed, _ = resolve(file, "--config.seeds=2")
    settings.write_config(changed, tmp_path)
    assert settings.read_config(tmp_path).seeds == 2


def test_a_config_has_a_name_that_its_harmless_fields_do_not_change(file):
    """Faults: a checkpoint is refused for how often metrics were logged; or is taken by a run whose
    rate is another one, or whose number is a tuple of it."""
    name = settings.identity(resolve(file)[0])
    assert settings.identity(resolve(file, "--config.pretrain.log_every=7")[0]) == name
    assert settings.identity(resolve(file, "--config.pretrain.rate=0.2")[0]) != name
    assert settings.identity(ConfigDict({"a": 1})) != settings.identity(ConfigDict({"a": (1,)}))


@pytest.mark.slow
def test_a_folder_is_one_process_at_a_time(file, tmp_path):
    """Faults: two commands in one folder write over one another, or the second one ends in a
    traceback; the first one is not named; its folder stays locked when it was killed."""
    config, _ = resolve(file)
    program = (
        "import sys, time; from pathlib import Path; from metaguide.files import held\n"
        f"with held(Path({str(tmp_path)!r})): print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        words = f"{tmp_path}: process {other.pid} on .* works in it; "
        with pytest.raises(FolderHeld, match=words), settings.claimed(config, tmp_path):
            pass
        assert not (tmp_path / "config.json").exists()
        other.kill()
    with settings.claimed(config, tmp_path):
        assert settings.read_config(tmp_path) == config


@pytest.mark.parametrize(
    "content", ["", '{"a": ', "[]", "null", "5", "[" * 100_000, "\0\xff", None]
)
def test_missing_or_damaged_written_config(tmp_path, content):
    """Fault: a folder that is no run gives a traceback."""
    with pytest.raises(ConfigError, match="config.json: no such file"):
        settings.read_config(tmp_path)
    path = tmp_path / "config.json"
    path.mkdir() if content is None else path.write_text(content, "latin-1")
    for reads in (settings.read_config, lambda folder: settings.write_config(ConfigDict(), folder)):
        with pytest.raises(ConfigError, match="config.json: not a config"):
            reads(tmp_path)


def test_a_written_config_with_a_table_in_a_list_is_no_config(tmp_path):
    """Fault: what no config has is an error of the library."""
    (tmp_path / "config.json").write_text('{"a": [1, {}]}')
    with pytest.raises(ConfigError, match="config.json: not a config"):
        settings.read_config(tmp_path)


@pytest.mark.parametrize("name", ["ENOSPC", "EACCES", "EROFS", "EEXIST", "EISDIR"])
def test_what_a_disk_refuses_is_one_line(file, capsys, monkeypatch, name):
    """Fault: a full disk, or a folder that may not be written, is a traceback."""
    monkeypatch.setattr(settings, "enable_compilation_cache", lambda: None)

    def main(config, workdir):
        number = getattr(errno, name)
        raise OSError(number, os.strerror(number), "w/metrics.jsonl")

    with pytest.raises(SystemExit) as error:
        settings.run(main, default="", workdir="w", argv=["prog", f"--config={file}"])
    assert error.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: w/metrics.jsonl: {os.strerror(getattr(errno, name)).lower()}; ")
    assert said.count("\n") == 1


def test_an_error_that_says_nothing_of_a_disk_keeps_its_traceback(file, monkeypatch):
    """Fault: a file that our own code looks for in vain is shown as a fault of the disk."""
    monkeypatch.setattr(settings, "enable_compilation_cache", lambda: None)

    def main(config, workdir):
        open(workdir / "none" / "there")

    with pytest.raises(FileNotFoundError):
        settings.run(main, default="", workdir="w", argv=["prog", f"--config={file}"])


@pytest.mark.parametrize("kind", [ConfigError, CatalogueError, CheckpointError, TrainingDiverged])
def test_expected_errors_are_one_line_and_code_2(file, capsys, monkeypatch, kind):
    """Fault: what the user can mend drowns in a traceback, or the shell sees a success."""
    monkeypatch.setattr(settings, "enable_compilation_cache", lambda: None)

    def main(config, workdir):
        raise kind("first\n  second")

    with pytest.raises(SystemExit) as error:
        settings.run(main, default="", workdir="w", argv=["prog", f"--config={file}"])
    assert error.value.code == 2
    assert capsys.readouterr().err == "error: first second\n"


@pytest.mark.parametrize(
    ("error", "flag"), [(FolderHeld, "such as --workdir=FOLDER"), (EpisodeError, "see --help")]
)
def test_an_error_of_the_library_is_shown_with_the_flag(file, capsys, monkeypatch, error, flag):
    """Fault: the library knows no flag, and nobody says which one sets what its error names."""
    monkeypatch.setattr(settings, "enable_compilation_cache", lambda: None)

    def main(config, workdir):
        raise error("w: give another folder")

    with pytest.raises(SystemExit):
        settings.run(main, default="", workdir="w", argv=["prog", f"--config={file}"])
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
        (["--cpu_devices=0"], "0 CPU devices: there has to be one"),
        (["--cpu_devices", "3"], "too late for 3 CPU devices"),
    ],
)
def test_wrong_devices_or_processes_are_one_line(file, capsys, monkeypatch, words, said):
    """Faults: a flag without the others that it needs, or behind a value in a word of its own, is
    ignored, and each process trains alone; the library's traceback answers."""
    monkeypatch.setattr(settings, "enable_compilation_cache", lambda: None)
    assert jax.devices()  # as a module has that asks for them too early
    with pytest.raises(SystemExit) as error:
        settings.run(print, default="", workdir="w", argv=["prog", f"--config={file}", *words])
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
        "from experiments import settings\n"
        "from experiments.tables import omniglot, sinusoid\n"
        "from metaguide.parallel import tasks_mesh\n"
        "def main(config, workdir):\n"
        "    print(tasks_mesh().size)\n"
        f"settings.run(main, default={str(file)!r}, workdir='w')\n"
    )
    root = Path(settings.__file__).resolve().parent.parent
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
    monkeypatch.setattr(settings, "enable_compilation_cache", lambda: None)

    def main(config, workdir):
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        settings.run(main, default="", workdir="w", argv=["prog", f"--config={file}"])


def test_help_lists_every_field(file, capsys):
    """Fault: nobody can find out what there is to set."""
    settings.run(lambda *_: None, default=str(file), workdir="runs/x", argv=["prog", "--help"])
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
        assert settings.enable_compilation_cache() == tmp_path / "metaguide" / "xla"
        jax.config.update("jax_compilation_cache_dir", str(tmp_path / "own"))
        assert settings.enable_compilation_cache() == tmp_path / "own"
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


@pytest.mark.slow
def test_command_line_end_to_end(file, tmp_path):
    """Faults: the process ends with a traceback or code 0; the second start finds no program in
    the cache."""
    program = (
        "import jax, jax.numpy as jnp\n"
        "from experiments import settings\n"
        "def main(config, workdir):\n"
        "    jax.jit(lambda x: jnp.sin(x) @ x.T)(jnp.ones((4, config.seeds)))\n"
        f"settings.run(main, default={str(file)!r}, workdir='w')\n"
    )
    root = Path(settings.__file__).resolve().parent.parent
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


@pytest.mark.parametrize(
    "grid", ["abc", ("abc",), (), 0.1, (0.1, -1.0), (float("nan"),), (float("inf"),), (True,), (0,)]
)
def test_a_grid_that_is_not_of_positive_numbers_is_refused_at_once(grid):
    """Fault: `adapt.rates=abc` is accepted, and fails after the stages have trained."""
    with pytest.raises(settings.ConfigError, match=r"config\.adapt\.rates: .* positive number"):
        settings.check_positive("adapt.rates", grid)
    settings.check_positive("adapt.rates", (0.1, 1))


def test_the_grids_of_adapt_are_checked_before_anything_runs():
    """Fault: the check is there, and nothing calls it."""
    from experiments.adapt import arms_in

    config = settings.resolve(
        ["x", "--config.preset=tiny"], default="experiments/configs/guide_bazaar.py", workdir="u"
    )[0]
    for field in ("rates", "adam_rates", "penalties", "rule_factors"):
        changed = config.to_dict()
        changed["adapt"][field] = ("abc",)
        with pytest.raises(settings.ConfigError, match=f"config.adapt.{field}: 'abc'"):
            arms_in(FrozenConfigDict(changed))
