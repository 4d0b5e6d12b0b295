"""The guide from end to end, tiny: what it leaves behind, and that it goes on where it stopped."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ml_collections.config_dict import FrozenConfigDict

import metaguide
from experiments import comparison
from experiments import guide as end_to_end
from experiments.config_files import ConfigError
from experiments.configs import guide_bazaar
from metaguide import run_config
from metaguide.data.catalogue import read_domain
from metaguide.evaluation import results
from metaguide.methods import NOTHING, adaptation_of
from metaguide.tasks import TASKS


def guide(folder):
    """Run the command as a user does, with the methods that share most of their programs."""
    flags = (
        "--config.preset=tiny",
        f"--workdir={folder}",
        "--config.metatrain.learners=('prototypical',)",
        "--config.adapt.shots=(0,1)",
        "--config.adapt.learning_rates=(0.1,)",
        "--config.adapt.penalties=(1.0,)",
    )
    # One device, as a user has; and what runs once is compiled fast, as in the other tests.
    fast = os.environ["METAGUIDE_TESTS_XLA_FLAGS"]
    environment = {**os.environ, "XLA_FLAGS": fast, "JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        [sys.executable, "-m", "experiments.guide", *flags],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("guide")
    return folder, guide(folder)


@pytest.mark.slow
def test_the_guide_leaves_its_table_its_episodes_and_its_report(run):
    """A row without its fields, a method on other examples than its baseline, or no report."""
    workdir, said = run
    assert "1 seed(s), 4 episodes per cell" in said
    found = results.read(workdir / "results.json")
    raw = json.loads((workdir / "results.json").read_text("utf-8"))["rows"]
    assert all(tuple(row) == results.FIELDS for row in raw)
    assert {row.task for row in found.rows} == set(TASKS)
    assert {row.domain for row in found.rows} == {"home_appliances", "toys"}
    assert {"scratch", "zero-shot", "fine-tuning", "head-only", "ridge", "prototypical"} <= {
        row.method for row in found.rows
    }
    cell = "bazaar/{}/toys/sentiment/1/{}/accuracy"
    ours, baseline = (
        found.scores[cell.format(method, steps)]["id"]
        for method, steps in (("fine-tuning", 2), ("tf-idf zero-shot", "-"))
    )
    assert np.array_equal(ours, baseline)
    assert {method["task"] for method in found.tunings} == set(TASKS)
    assert all(method["seconds"] for method in found.tunings)
    assert set(found.classes) == {"home_appliances", "toys"}
    report = (workdir / "report.html").read_text("utf-8")
    assert "What validation chose, and what it costs" in report and " taken for " in report
    assert "home_appliances" in report and 'http-equiv="refresh"' not in report
    assert not list(workdir.rglob("*.part"))


@pytest.mark.slow
def test_started_again_it_trains_nothing_and_finds_the_same(run):
    """A finished stage that is trained anew, or passed over in silence; another table."""
    folder, _ = run
    before = results.read(folder / "results.json").rows
    lines = (folder / "seed0" / "multitask" / "metrics.jsonl").read_bytes()
    said = guide(folder)
    assert "pretrain: already finished" in said and "multitask: already finished" in said
    assert (folder / "seed0" / "multitask" / "metrics.jsonl").read_bytes() == lines
    assert results.read(folder / "results.json").rows == before


@pytest.mark.slow
def test_the_run_loads_and_serves_by_validation(run):
    """A serving method that was chosen on the test domains, or a run that cannot be loaded."""
    workdir, _ = run
    config = run_config.read(workdir)
    assert set(config.serving) == set(TASKS) and (config.stage, config.seed) == ("", 0)
    domain = read_domain(workdir / "bazaar" / "toys")
    adapted = metaguide.load(workdir).adapt(domain, shots=1)
    assert len(adapted.predict(domain.products[:2])) == 2


@pytest.mark.slow
def test_the_lines_of_the_readme_run(run, capsys, monkeypatch, tmp_path):
    """Fault: the first Python that a reader copies fails on the run that the README makes."""
    workdir, _ = run
    text = (Path(__file__).resolve().parents[2] / "README.md").read_text("utf-8")
    _, after = text.split("```python\n", 1)
    code, _, _ = after.partition("```")
    assert code.count("runs/guide") == 2
    monkeypatch.chdir(tmp_path)  # the lines save a guide
    exec(code.replace("runs/guide", str(workdir)), {})
    assert "Sentiment(sentiment=" in capsys.readouterr().out


def test_ways_of_the_methods_leave_out_rows_that_repeat():
    """Zero-shot many times under other names, or prototypes without a support."""
    assert comparison._adaptation_in("fine-tuning", "sentiment", 0) is None
    assert comparison._adaptation_in("zero-shot", "sentiment", 5) is None
    assert comparison._adaptation_in("zero-shot", "recommendation", 5) == NOTHING
    assert comparison._adaptation_in("maml", "sentiment", 0) == NOTHING
    assert (
        comparison._adaptation_in("lstm", "sentiment", 0) is None
    )  # whose parameters are those of multi-task
    assert comparison._adaptation_in("maml+lstm", "sentiment", 0) is None  # and these those of MAML
    assert comparison._adaptation_in("prototypical", "sentiment", 0) is None
    assert comparison._adaptation_in("ridge", "sentiment", 5) == adaptation_of("ridge")


def test_training_lets_go_of_what_is_done(monkeypatch, tmp_path):
    """Faults: the programs of all stages are held to the end, more than a process can map; a stage
    starts from the parameters of another seed or stage; a method adapts those of another."""

    def train_stage(stage, meta, *, config, split, workdir, seed):
        assert workdir == tmp_path / str(seed) / stage
        return f"{meta} {stage}"

    monkeypatch.setattr(end_to_end, "train_stage", train_stage)
    monkeypatch.setattr(end_to_end, "random_start", lambda split, seed: f"seed {seed}")
    config = guide_bazaar.get_config()
    config.metatrain.learners = ("maml+lstm", "maml", "lstm")
    named = ("maml+lstm", "maml", "lstm", "ridge", "zero-shot", "scratch")
    config.adapt.methods = dict.fromkeys(named, ("sentiment",))
    names = ("pretrain", "multitask", "metatrain-maml", "metatrain-lstm", "metatrain-maml+lstm")
    stages, folders = (
        {name: name for name in names},
        {seed: tmp_path / str(seed) for seed in (3, 4)},
    )
    methods = comparison.methods_in(FrozenConfigDict(config))
    trained = end_to_end.train(FrozenConfigDict(config), None, methods, stages, folders)
    assert not stages
    for method, stage in (("maml", "metatrain-maml"), ("lstm", "metatrain-lstm")):
        expected = [f"seed {seed} pretrain multitask {stage}" for seed in folders]
        assert trained[method] == (expected, stage)
    after_maml = [
        f"seed {seed} pretrain multitask metatrain-maml metatrain-maml+lstm" for seed in folders
    ]
    assert trained["maml+lstm"] == (after_maml, "metatrain-maml+lstm")
    assert trained["ridge"] == (
        [f"seed {seed} pretrain multitask" for seed in folders],
        "multitask",
    )
    assert trained["scratch"] == (["seed 3", "seed 4"], "")
    assert trained["ridge"][0][0] is trained["zero-shot"][0][0]


def test_the_methods_of_a_run_are_those_that_are_trained_and_have_a_task():
    """Faults: a method runs that nothing trained, or that serves no task; one that there
    is not is passed over in silence; one comes before what it starts from, or without it."""
    config = guide_bazaar.get_config()
    config.metatrain.learners = ("lstm",)
    config.adapt.methods = {"zero-shot": ("sentiment",), "scratch": (), "lstm": ("sentiment",)}
    config.adapt.methods["maml"] = ("sentiment",)
    assert set(comparison.methods_in(FrozenConfigDict(config))) == {"zero-shot", "lstm"}
    config.metatrain.learners = ("ltsm",)
    with pytest.raises(ConfigError, match="metatrain.learners: .*'ltsm'; there are maml, .*lstm"):
        comparison.methods_in(FrozenConfigDict(config))
    config.metatrain.learners, config.adapt.methods["maml+lstm"] = ("maml+lstm",), ("sentiment",)
    with pytest.raises(ConfigError, match="maml.lstm starts from the parameters of maml; add it"):
        comparison.methods_in(FrozenConfigDict(config))
    config.metatrain.learners = ("maml+lstm", "maml")
    methods = comparison.methods_in(FrozenConfigDict(config))
    assert methods.index("maml") < methods.index("maml+lstm")
    config.metatrain.learners, config.adapt.methods = (), {"addam": ("sentiment",)}
    with pytest.raises(ConfigError, match="adapt.methods: .*'addam'; there are scratch, "):
        comparison.methods_in(FrozenConfigDict(config))
