"""A command line becomes a config: the file, a preset, what is given, and the errors of each."""

from pathlib import Path

import pytest

from experiments import command, config_files
from experiments.config_files import ConfigError


def resolve(file, *flags):
    return command.resolve(["prog", f"--config={file}", *flags], default="", workdir="runs/x")


def test_file_preset_and_overrides_in_their_order(file):
    """Fault: the preset overwrites what the user wrote on the command line, wherever it stands."""
    config, workdir = resolve(file)
    assert (config.seeds, config.adapt.episodes, workdir) == (1, 50, Path("runs/x-small"))
    config, _ = resolve(file, "--config.preset=full")
    assert (config.seeds, config.adapt.episodes, config.adapt.learning_rate) == (3, 600, 0.1)
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
        *[
            "--config.adapt.learning_rate",
            "1",
            "-config.seeds=2",
            "--config.adapt.shots=(0, 5, 10)",
        ],
        *["--noconfig.adapt.curves", "--config.init_from=runs/a"],
    )
    assert (config.seeds, config.adapt.shots, config.adapt.curves) == (2, (0, 5, 10), False)
    assert config.init_from == "runs/a"
    assert isinstance(config.adapt.learning_rate, float) and config.adapt.learning_rate == 1.0


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ("maml,imaml", ("maml", "imaml")),
        ("maml, imaml,", ("maml", "imaml")),
        ("('maml','imaml')", ("maml", "imaml")),
        ("maml", ("maml",)),
    ],
)
def test_words_with_commas_are_several(given, names):
    """Fault: "maml,imaml" is one name, though "5,10" is two numbers."""
    default = "experiments/configs/sinusoid.py"
    flags = ["prog", f"--config.learners={given}", "--config.test_shots=5,10"]
    config, _ = command.resolve(flags, default=default, workdir="x", late=True)
    assert (config.learners, config.test_shots) == (names, (5, 10))


def test_numbers_of_an_empty_tuple_stay_numbers():
    """Fault: "5,10" is two words where the config file has no value that shows the type, or two
    numbers where it shows that they are words."""
    flag = "--config.shots=5,1e-3"
    assert command._with_tuple(flag, {"shots": ()}) == flag
    assert command._with_tuple("--config.names=a,5", {"names": ()}) == "--config.names=('a', '5')"
    named = command._with_tuple("--config.names=1,5", {"names": ("a",)})
    assert named == "--config.names=('1', '5')"


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
        (
            "--config.learning_rate=3",
            r"did you mean adapt\.learning_rate or pretrain\.learning_rate\?",
        ),
        ("--config.methods.zero-shot=3", r"config\.methods\.zero-shot: set it in a config file"),
        (
            "--config.zzz=3",
            r"no such field; it has adapt\.curves, .*pretrain\.log_every, seeds",
        ),
        ("--config.adapt=3", r"--config\.adapt is a section"),
        ("--config.adapt.episodes=many", r"config\.adapt\.episodes=many: .*int"),
        ("--config.adapt.learning_rate=fast", r"config\.adapt\.learning_rate=fast: .*float"),
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
def test_wrong_flag_is_named_with_its_fix(file, flag, words):
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


def test_a_config_file_may_add_a_method_to_a_table(tmp_path, monkeypatch):
    """Fault: a method of one's own is refused by the ranges of the table's default config."""
    text = """
from experiments.configs import sinusoid
from experiments.ranges import one_of, several

RANGES = {"learners": several(one_of("maml", "mine"))}

def get_config():
    config = sinusoid.get_config()
    config.learners = ("maml", "mine")
    return config
"""
    default = "experiments/configs/sinusoid.py"
    own, foreign = tmp_path / "own.py", tmp_path / "foreign.py"
    own.write_text(text)
    foreign.write_text(text.replace("RANGES =", "OTHERS ="))
    config, _ = command.resolve(
        ["prog", f"--config={own}"], default=default, workdir="x", late=True
    )
    assert config.learners == ("maml", "mine")
    with pytest.raises(ConfigError, match="learners"):
        command.resolve(["prog", f"--config={foreign}"], default=default, workdir="x", late=True)


def test_config_file_is_found_from_any_folder(file, tmp_path, monkeypatch):
    """Fault: the defaults are found only where the repository is the current folder."""
    monkeypatch.chdir(tmp_path)
    assert config_files.find_config("small.py").samefile(file)
    assert config_files.find_config("experiments/command.py").samefile(command.__file__)
