"""What a command says before it imports anything heavy: help, mistakes, values out of range."""

import importlib
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from ml_collections.config_dict import FrozenConfigDict

from experiments import command, config_files, help_text, launch, runner
from experiments.config_files import ConfigError
from experiments.modules import COMMANDS
from experiments.ranges import range_of

ROOT = Path(runner.__file__).resolve().parents[1]
CONFIGS = [path for path in sorted(ROOT.glob("experiments/configs/**/*.py")) if path.stem[0] != "_"]


def own_config(path):
    return config_files.config_in(config_files.module_at(path), path)


@cache
def fields_of(default):
    """The fields of a config file that a command line can set, and what they may hold."""
    flat = config_files.flat(own_config(ROOT / default).to_dict())
    ranges, _ = config_files.rules_of(config_files.module_at(ROOT / default))
    return {
        name: value
        for name, value in flat.items()
        if not name.startswith("presets.") and all(map(str.isidentifier, name.split(".")))
    }, ranges


def started(*words, tmp_path, **environment):
    """Run a module in a process of its own; its code, output, and CPU seconds."""
    before = os.times()
    done = subprocess.run(
        [sys.executable, *words],
        env={"PATH": "", "PYTHONPATH": str(ROOT), "HOME": str(tmp_path), **environment},
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    after = os.times()
    seconds = sum(after[2:4]) - sum(before[2:4])
    return done, seconds


@pytest.mark.slow
@pytest.mark.parametrize("module", COMMANDS)
def test_help_and_mistakes_cost_no_heavy_import(module, tmp_path):
    """Faults: `--help` or a typo imports JAX and all else, twice; a command has other defaults."""
    for flag, code in (("--help", 0), ("--config.zzz=1", 2), ("--config=nope.py", 2)):
        done, seconds = started("-v", "-m", module, flag, tmp_path=tmp_path)
        assert done.returncode == code
        imported = set(re.findall(r"^import '?(\w+)", done.stderr, re.M))
        heavy = {"jax", "flax", "orbax", "metaguide", "matplotlib", "sklearn", "tensorflow"}
        assert "ml_collections" in imported and not heavy & imported
        assert seconds < 3
        assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_module_says_what_it_is_run_as_and_where(tmp_path):
    """Faults: help prints a literal MODULE; the table of commands and the module disagree."""
    for module, defaults in COMMANDS.items():
        done, _ = started("-m", module, "--help", tmp_path=tmp_path)
        assert done.stdout.startswith(f"usage: python -m {module} ")
        assert defaults.default in done.stdout and f"Default {defaults.workdir}\n" in done.stdout
        assert f'COMMANDS["{module}"]' in Path(
            importlib.util.find_spec(module).origin  # pyright: ignore
        ).read_text("utf-8")


@pytest.mark.parametrize(
    ("argv", "orig_argv", "module"),
    [
        (["-m", "--help"], ["python", "-m", "experiments.guide", "--help"], "experiments.guide"),
        (["-m"], ["python", "-X", "dev", "-Bmexperiments.guide"], "experiments.guide"),
        (["-m", "-m", "x"], ["python", "-m", "a-m.b", "-m", "x"], "a-m.b"),
        (["/x/guide.py"], ["python", "-m", "experiments.guide"], ""),
        (["-c"], ["python", "-c", "import experiments"], ""),
        ([""], ["python"], ""),
        ([], ["program"], ""),
    ],
)
def test_which_module_is_about_to_run(argv, orig_argv, module):
    """Fault: pytest, a notebook or a script that imports the package is taken for a command."""
    assert launch.module_run(argv, orig_argv) == module


def test_the_process_starts_anew_once_and_only_as_a_command(tmp_path, monkeypatch):
    """Faults: huge pages are left out; the process starts anew under pytest, or without an end."""
    started_anew = []
    monkeypatch.setattr(os, "execve", lambda *words: started_anew.append(words))
    monkeypatch.setattr(launch.platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    launch.begin()
    assert not started_anew
    monkeypatch.setattr(sys, "argv", ["-m", "--help"])
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "experiments.guide", "--help"])
    with pytest.raises(SystemExit) as stop:
        launch.begin()
    assert stop.value.code == 0
    ((program, words, environment),) = started_anew
    assert (program, words) == (sys.executable, sys.orig_argv)
    assert "hugetlb=1" in environment["GLIBC_TUNABLES"]
    monkeypatch.setenv("GLIBC_TUNABLES", environment["GLIBC_TUNABLES"])
    with pytest.raises(SystemExit):
        launch.begin()
    assert len(started_anew) == 1
    monkeypatch.delenv("GLIBC_TUNABLES")
    monkeypatch.setattr(launch.platform, "libc_ver", lambda: ("", ""))
    with pytest.raises(SystemExit):
        launch.begin()
    assert len(started_anew) == 1


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_field_has_its_words_in_the_help(path):
    """Faults: a field is listed without a word on it, or is not listed."""
    about = help_text.meanings(path)
    fields = [name for name in about if not name.startswith("presets.")]
    assert fields and not [name for name in fields if not about[name]]
    config = config_files.flat(config_files.config_in(config_files.module_at(path), path).to_dict())
    assert set(fields) == {name for name in config if not name.startswith("presets.")}
    if path.stem == "guide_bazaar":
        assert about["model.width"] == "width of the encoder, a multiple of heads"
        assert about["adapt.methods.maml"].startswith("Which tasks")
        assert about["text.vocabulary"].startswith("number of ids of the tokenizer")
        assert about["data.seed"] == "seed of the generated world"


def test_words_of_a_config_that_builds_on_another(tmp_path):
    """Fault: a user's config, made of one of ours, is listed without words."""
    path = tmp_path / "mine.py"
    path.write_text(
        "from experiments.configs import guide_bazaar\n\n\ndef get_config():\n"
        "    config = guide_bazaar.get_config()\n"
        "    config.seeds = 7  # so many\n"
        "    return config\n"
    )
    about = help_text.meanings(path)
    assert about["seeds"] == "so many" and about["model.heads"] == "number of attention heads"


def test_help_is_wrapped_to_the_terminal(monkeypatch):
    """Fault: a line is wider than the terminal, though words of it would fit in the next."""
    monkeypatch.setenv("COLUMNS", "80")
    text = help_text.describe(["x"], default="experiments/configs/sinusoid.py", workdir="runs/x")
    fields = text.split("their values:\n")[1].splitlines()
    assert len(fields) > 50 and all(len(line) <= 80 for line in fields)


@pytest.mark.slow
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_field_has_a_range_that_its_values_are_in(path):
    """Faults: a new field is not checked; a preset or a default would be refused."""
    flat = config_files.flat(own_config(path).to_dict())
    presets = ["default", *own_config(path).presets]
    modules = [m for m, one in COMMANDS.items() if not refusals(path, one, "default")]
    assert modules
    # A config with more fields than a module reads is a config of both that module and another.
    read = [fields_of(COMMANDS[module].default)[1] for module in modules]
    for name, value in flat.items():
        if name != "preset" and not name.startswith("presets.") and value != {}:
            assert any(range_of(name, ranges) is not None for ranges in read), name
    for module in modules:
        for preset in presets:
            assert not refusals(path, COMMANDS[module], preset)


def refusals(path, defaults, preset):
    try:
        argv = ["x", f"--config={path}", f"--config.preset={preset}"]
        command.resolve(argv, **defaults._asdict(), late=True)
    except ConfigError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
@pytest.mark.parametrize("module", COMMANDS)
def test_a_config_of_another_experiment_names_the_module_that_it_is_of(module, path):
    """Fault: `--config=sinusoid.py` with the guide ends in a traceback."""
    said = refusals(path, COMMANDS[module], "default")

    def kind(path):
        name = path.stem.split("_")[0]
        # A set of reviews, with the name it is known by; and two tables of products.
        name = {"arsc": "reviews", "product": path.stem}.get(name, name)
        return path.parent.name if path.parent.name != "configs" else name

    kinds = {kind(path)} | ({"guide"} if kind(path) == "universal" else set())
    if kind(Path(COMMANDS[module].default)) in kinds:
        assert not said
    else:
        assert re.search(r": a config of experiments\.\S+.*; run it there$", said)


def test_a_config_that_lacks_a_field_names_it(tmp_path):
    """Fault: a config of one's own without a section ends in a KeyError after the pre-training."""
    path = tmp_path / "mine.py"
    path.write_text(
        "from experiments.configs import guide_bazaar\n\n\ndef get_config():\n"
        "    config = guide_bazaar.get_config()\n    del config.adapt.episodes\n"
        "    return config\n"
    )
    said = refusals(path, COMMANDS["experiments.guide"], "default")
    assert said.startswith(f"{path}: lacks adapt.episodes")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            'config.data.update({"held_outt": ("toys",)})',
            "config.data.held_outt is .*data.held_out",
        ),
        ("config.multitask.stepps = 7", "config.multitask.stepps is .*multitask.steps"),
        ('config.adapt.update({"episode": 7})', "config.adapt.episode is no field of it.*episodes"),
    ],
)
def test_a_misspelt_field_of_a_file_is_no_field(tmp_path, line, said):
    """Fault: it is added beside the right one, which keeps its default in silence."""
    path = tmp_path / "mine.py"
    path.write_text(
        "from experiments.configs import guide_bazaar\n\n\ndef get_config():\n"
        f"    config = guide_bazaar.get_config()\n    {line}\n    return config\n"
    )
    assert re.search(said, refusals(path, COMMANDS["experiments.guide"], "default"))


def test_a_value_of_another_type_says_what_would_be_valid():
    """Fault: the error is Python's own."""
    defaults = COMMANDS["experiments.guide"]._asdict()
    with pytest.raises(ConfigError, match="multitask.steps=1e3: .*; give a whole number of at lea"):
        command.resolve(["x", "--config.multitask.steps=1e3"], **defaults)


@pytest.mark.parametrize("module", ["guide", "tables.universal"])
def test_a_run_of_all_stages_starts_from_none(module, tmp_path):
    """Fault: it trains from random parameters, under a config that names where to start."""
    config = own_config(ROOT / COMMANDS[f"experiments.{module}"].default)
    config.init_from = "runs/pretrain"
    main = importlib.import_module(f"experiments.{module}").main
    with pytest.raises(ConfigError, match="init_from=runs/pretrain: this module runs all stages"):
        main(FrozenConfigDict(config), tmp_path / "run")
    assert not (tmp_path / "run").exists()


BAD = {
    int: st.sampled_from([0, -1, -3, 2**31, 10**30]),
    float: st.sampled_from([-1.0, -0.001, float("nan"), float("inf"), float("-inf")]),
    tuple: st.sampled_from(["()", "(-1,)", "('x',)", "(1.5,)", "(0.1,True)", "nan"]),
    str: st.sampled_from(["nope", "True"]),
}
FREE = {"table", "init_from", "data.folder", "problem", "preset"}
"""Texts that may be any; the preset is checked before."""


def is_free(name):
    last = name.rsplit(".", 1)[-1]
    is_encoders = name in ("encoder.weights", "encoder.prefix", "encoder.cache")
    return name in FREE or is_encoders or ".rule_from." in name or last in ("domain", "teacher")


@pytest.mark.slow
@hypothesis_settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_bad_values_are_one_line_before_anything_is_made(data, tmp_path, capsys, monkeypatch):
    """Faults: a negative rate is taken; none, 0 or too many of something ends in a traceback, or
    after a work folder was made."""
    monkeypatch.setattr(runner, "enable_compilation_cache", lambda: None)
    module = data.draw(st.sampled_from(sorted(COMMANDS)))
    fields, ranges = fields_of(COMMANDS[module].default)
    kinds = {name: type(value) for name, value in fields.items() if not is_free(name)}
    name = data.draw(st.sampled_from(sorted(one for one in kinds if kinds[one] in BAD)))
    value = data.draw(BAD[kinds[name]])
    one = range_of(name, ranges)
    if kinds[name] is int and one.holds(value):  # 0 has a meaning here
        return
    if kinds[name] is tuple and "text" in one.words:
        return
    if value == "()" and "any number" in one.words or value == "(1.5,)" and one.holds((1.5,)):
        return
    argv = ["x", f"--config.{name}={value}", f"--workdir={tmp_path / 'w'}"]

    def main(config, workdir):
        raise AssertionError(f"{argv} was accepted")

    with pytest.raises(SystemExit) as stop:
        runner.run(main, **COMMANDS[module]._asdict(), argv=argv)
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.startswith("error: ") and len(said.splitlines()) == 1
    assert f"config.{name}" in said
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    ("module", "flag", "words"),
    [
        ("guide", "model.width=50", "config.model.width=50: give a multiple of config.model.heads"),
        (
            "guide",
            "pretrain.learning_rate=-1",
            "config.pretrain.learning_rate=-1.0: give a positive number",
        ),
        ("guide", "pretrain.steps=0", "config.pretrain.steps=0: give a whole number of at least 1"),
        ("guide", "episodes.way=11", "give no more than config.model.way, 10"),
        ("guide", "adapt.shots=(0,20)", "give no more than config.episodes.shots, 10"),
        ("metatrain", "metatrain.learner=nope", "give one of maml, first-order, anil"),
        (
            "adapt",
            "adapt.methods.maml=(1,)",
            "config.adapt.methods.maml=.*each one of classification",
        ),
        ("multitask", "multitask.weighting=x", "give one of fixed, uncertainty"),
        ("pretrain", "pretrain.mask_rate=1.5", "give a number from 0 to 1, not 0"),
        (
            "tables.sinusoid",
            "train_shots=0",
            "config.train_shots=0: give a whole number of at least 1",
        ),
        ("tables.sinusoid", "widths=()", "give a tuple of one or more values"),
        ("tables.sinusoid", "widths=(0,)", "each a whole number of at least 1"),
        ("tables.sinusoid", "maml.inner_steps=0", "config.maml.inner_steps=0: give a whole"),
        ("tables.sinusoid", "seeds=0", "config.seeds=0: give a whole number of at least 1"),
        ("tables.sinusoid", "test_tasks=0", "config.test_tasks=0"),
        ("tables.sinusoid", "steps_per_call=0", "config.steps_per_call=0"),
        ("tables.sinusoid", "steps_per_call=7", "give a multiple of config.steps_per_call, 7"),
        ("tables.sinusoid", "checkpoint_every=0", "config.checkpoint_every=0"),
        ("tables.sinusoid", "log_every=0", "config.log_every=0"),
        ("tables.sinusoid", "shown_steps=(1,99)", "give no more than config.test_steps, 10"),
        ("tables.omniglot", "split=finn", "give one of maml, vinyals"),
        (
            "tables.omniglot",
            "maml.way5.inner_learning_rate=0",
            "config.maml.way5.inner_learning_rate=0.0",
        ),
        ("learn_optimizer", "rules.lstm.hidden=0", "config.rules.lstm.hidden=0"),
        (
            "learn_optimizer",
            "quadratic.train.lstm.steps_per_call=3",
            "config.quadratic.train.lstm.steps_per_call, 3",
        ),
        ("tables.learned_optimizers", "learning_rates=(0.1,0)", "each a positive number"),
    ],
)
def test_values_that_were_accepted_or_gave_a_traceback(module, flag, words):
    """Fault: the setting is accepted, or its error is the library's."""
    defaults = COMMANDS[f"experiments.{module}"]
    with pytest.raises(ConfigError, match=words):
        command.resolve(["x", f"--config.{flag}"], **defaults._asdict(), late=True)


@pytest.mark.parametrize(
    ("module", "flag"),
    [
        ("guide", "multitask.shots=(0,1)"),
        ("guide", "metatrain.tasks_per_chunk=0"),
        ("guide", "pretrain.occlusion=0"),
        ("guide", "pretrain.weights.denoising=0"),
        ("guide", "metatrain.learners=()"),
        ("tables.sinusoid", "tasks_per_chunk=0"),
        ("tables.sinusoid", "imaml.damping=0"),
        ("tables.omniglot", "steps_per_call=0"),
        ("tables.omniglot", "seeds_at_once=0"),
        ("tables.omniglot", "test_chunk=0"),
        ("tables.omniglot", "way=0"),
        ("learn_optimizer", "quadratic.train.lstm.curvature=0"),
        ("learn_optimizer", "quadratic.train.lstm.first_horizon=0"),
    ],
)
def test_values_where_nothing_has_a_meaning_are_taken(module, flag):
    """Fault: 0 for "automatic", "none" or "all of them" is refused."""
    defaults = COMMANDS[f"experiments.{module}"]
    command.resolve(["x", f"--config.{flag}"], **defaults._asdict(), late=True)


def test_names_in_the_ranges_are_those_that_there_are():
    """Fault: a learner or a method that was added is refused on the command line."""
    from experiments.cells.config import IN_TABLES
    from experiments.configs import guide_bazaar, omniglot
    from experiments.configs import sinusoid as sinusoid_config
    from experiments.configs.learned_optimizers import table
    from experiments.hand_made import HAND_MADE
    from experiments.optimizees import ACTIVATIONS
    from experiments.tables.omniglot import NO_NORM, PRECISIONS
    from metaguide.methods import IN_GUIDE, META_TRAINED
    from metaguide.models.conv4 import CONVOLUTIONS, POOLINGS
    from metaguide.models.mlp import INITIALISERS
    from metaguide.optimizers.stored import RULES
    from metaguide.problems import STATISTICS
    from metaguide.problems.optimizees import VARIANTS

    def named(default, field, names):
        one = range_of(field, config_files.rules_of(config_files.module_at(ROOT / default))[0])
        assert set(one.words.split("one of ")[-1].split(", ")) == set(names), field

    assert set(guide_bazaar.METHODS) == set(IN_GUIDE)
    assert set(guide_bazaar.LEARNERS) == set(META_TRAINED)
    assert set(table.RULES) == set(RULES) and table.HAND_MADE == tuple(HAND_MADE)
    sinusoid = COMMANDS["experiments.tables.sinusoid"].default
    pictures = COMMANDS["experiments.tables.omniglot"].default
    optimizers = COMMANDS["experiments.tables.learned_optimizers"].default
    named(sinusoid, "initialisers", INITIALISERS)
    named(pictures, "statistics", (*STATISTICS, NO_NORM))
    named(pictures, "precision", PRECISIONS)
    named(pictures, "convolution", CONVOLUTIONS)
    named(pictures, "maml.way5.network", POOLINGS)
    named(optimizers, "mnist.activation", ACTIVATIONS)
    named(optimizers, "quadratic.variant", VARIANTS)
    learners = {*omniglot.LEARNERS, *omniglot.MORE_LEARNERS, *sinusoid_config.LEARNERS}
    assert learners == {*IN_TABLES, "pretrained"}
