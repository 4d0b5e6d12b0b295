"""The folder of a run holds one config at a time, and one process."""

import json
import subprocess
import sys

import pytest
from ml_collections.config_dict import ConfigDict

from experiments import command, run_folder
from experiments.config_files import ConfigError
from metaguide.files import FolderHeld


def resolve(file, *flags):
    return command.resolve(["prog", f"--config={file}", *flags], default="", workdir="runs/x")


def test_config_is_written_and_read_again(file, tmp_path):
    """Faults: tuples come back as lists, a half-written file stays, the folder is not made."""
    config, _ = resolve(file, "--config.init_from=a")
    workdir = tmp_path / "runs" / "one"
    run_folder.write_config(config, workdir)
    assert run_folder.read_config(workdir) == config
    assert [path.name for path in workdir.iterdir()] == ["config.json"]
    assert json.loads((workdir / "config.json").read_text())["adapt"]["shots"] == [0, 1]


def test_work_folder_of_another_config_is_refused(file, tmp_path):
    """Fault: a run goes on from checkpoints that were trained under other settings."""
    workdir = tmp_path / "w"
    run_folder.write_config(resolve(file)[0], workdir)
    (workdir / "seed0" / "checkpoints" / "10").mkdir(parents=True)
    before = (workdir / "config.json").read_text()
    changed, _ = resolve(file, "--config.adapt.shots=(0, 5)", "--config.pretrain.learning_rate=0.1")
    words = (
        r"adapt\.shots was \[0, 1\], is \[0, 5\]; "
        r"pretrain\.learning_rate was 0\.001, is 0\.1; .*--workdir"
    )
    with pytest.raises(ConfigError, match=words):
        run_folder.write_config(changed, workdir)
    assert (workdir / "config.json").read_text() == before
    run_folder.write_config(changed, workdir, harmless=("adapt", "pretrain.learning_rate"))
    assert run_folder.read_config(workdir).adapt.shots == (0, 5)


def test_harmless_fields_may_change(file, tmp_path):
    """Fault: a run cannot go on with lines of metrics at other steps, or with a preset whose name
    only says what its values say again."""
    run_folder.write_config(resolve(file)[0], tmp_path)
    same, _ = resolve(
        file,
        *["--config.preset=full", "--config.seeds=1", "--config.adapt.episodes=50"],
        "--config.pretrain.log_every=1",
    )
    run_folder.write_config(same, tmp_path)


def test_fields_that_only_one_side_has_differ(tmp_path):
    """Fault: a setting that is new in the code passes as equal to its absence."""
    run_folder.write_config(ConfigDict({"a": 1, "old": 2}), tmp_path)
    (tmp_path / "results.json").touch()
    with pytest.raises(ConfigError, match="new was absent, is 3; old was 2, is absent"):
        run_folder.write_config(ConfigDict({"a": 1, "new": 3}), tmp_path)


def test_a_folder_in_which_nothing_was_finished_is_free(file, tmp_path):
    """Fault: an error before any training leaves a folder that no other config may use."""
    run_folder.write_config(resolve(file)[0], tmp_path)
    (tmp_path / "seed0" / "checkpoints").mkdir(parents=True)
    (tmp_path / "seed0" / "metrics.jsonl").touch()
    changed, _ = resolve(file, "--config.seeds=2")
    run_folder.write_config(changed, tmp_path)
    assert run_folder.read_config(tmp_path).seeds == 2


def test_a_config_has_a_name_that_its_harmless_fields_do_not_change(file):
    """Faults: a checkpoint is refused for how often metrics were logged; or is taken by a run whose
    rate is another one, or whose number is a tuple of it."""
    name = run_folder.identity(resolve(file)[0])
    assert run_folder.identity(resolve(file, "--config.pretrain.log_every=7")[0]) == name
    assert run_folder.identity(resolve(file, "--config.pretrain.learning_rate=0.2")[0]) != name
    assert run_folder.identity(ConfigDict({"a": 1})) != run_folder.identity(ConfigDict({"a": (1,)}))


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
        with pytest.raises(FolderHeld, match=words), run_folder.claimed(config, tmp_path):
            pass
        assert not (tmp_path / "config.json").exists()
        other.kill()
    with run_folder.claimed(config, tmp_path):
        assert run_folder.read_config(tmp_path) == config


@pytest.mark.parametrize(
    "content", ["", '{"a": ', "[]", "null", "5", "[" * 100_000, "\0\xff", None]
)
def test_missing_or_damaged_written_config(tmp_path, content):
    """Fault: a folder that is no run gives a traceback."""
    with pytest.raises(ConfigError, match="config.json: no such file"):
        run_folder.read_config(tmp_path)
    path = tmp_path / "config.json"
    path.mkdir() if content is None else path.write_text(content, "latin-1")
    for reads in (
        run_folder.read_config,
        lambda folder: run_folder.write_config(ConfigDict(), folder),
    ):
        with pytest.raises(ConfigError, match="config.json: not a config"):
            reads(tmp_path)


def test_a_written_config_with_a_table_in_a_list_is_no_config(tmp_path):
    """Fault: what no config has is an error of the library."""
    (tmp_path / "config.json").write_text('{"a": [1, {}]}')
    with pytest.raises(ConfigError, match="config.json: not a config"):
        run_folder.read_config(tmp_path)
