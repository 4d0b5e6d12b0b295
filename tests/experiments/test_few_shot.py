import json
import os
import shutil
from functools import cache

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections.config_dict import FrozenConfigDict

from experiments import command, runner
from experiments.cells.cell import way_back
from experiments.cells.config import (
    inner_optimizer,
    learners_in,
    method_of,
    read_by,
    settings_of,
)
from experiments.cells.outcomes import (
    check_cells,
    keep_outcome,
    outcome_of,
    outcomes_in,
)
from experiments.config_files import ConfigError
from experiments.run_folder import OUTCOME
from experiments.tables import omniglot as omniglot_table
from experiments.tables import sinusoid as sinusoid_table
from metaguide.data import omniglot
from metaguide.evaluation.results import read
from metaguide.inner_loop import Unrolled
from metaguide.methods import Settings
from metaguide.models.mlp import MLP
from metaguide.problems import regression


@cache
def config_of(name, *flags):
    return command.resolve(
        ["x", *flags], default=f"experiments/configs/{name}.py", workdir="unused"
    )[0]


def test_every_learner_of_the_configs_is_built():
    """Faults: a section lacks a field that its learner needs, or a method has no learner."""
    problem = regression(MLP((4,)))._replace(way=3)
    for name in config_of("sinusoid").learners:
        if name != "pretrained":
            given = settings_of(name, config_of("sinusoid")[name], 2)
            method_of(name).train(problem, given)
    for name in learners_in(config_of("omniglot")):
        for way in (5, 20):
            own = omniglot_table.own_section(config_of("omniglot"), name, way)
            method_of(name).train(problem, settings_of(name, own, 2, features=4))


def test_what_a_method_needs_comes_out_of_its_section():
    """Faults: a field of the config is not passed on, or one that the method does not need is,
    such as the mode that ANIL's section shares with MAML's."""
    own = FrozenConfigDict({"inner_learning_rate": 0.3, "mode": "remat", "batch": 3, "hidden": 9})
    found = settings_of("maml", own, 4, features=7)
    assert found == Settings(steps=4, learning_rate=0.3, mode=Unrolled(remat=True), features=7)
    assert settings_of("anil", own, 4) == Settings(steps=4, learning_rate=0.3)
    assert settings_of("relation", own, 0, 7) == Settings(steps=0, hidden=9, features=7)


def test_wrong_names_are_one_clear_error():
    """Fault: a slip of the flag ends in a KeyError, or in the default."""
    with pytest.raises(ConfigError, match="no method 'mam'; there are maml, first-order"):
        settings_of("mam", FrozenConfigDict(), 1)
    with pytest.raises(ConfigError, match=r"config.reptile: .*inner"):
        settings_of("reptile", FrozenConfigDict({"batch": 3}), 1)
    with pytest.raises(ConfigError, match="config.r2d2: lacks scale"):
        settings_of("r2d2", FrozenConfigDict({"penalty": 1.0}), 1)
    with pytest.raises(ConfigError, match="inner is 'adma'; there are sgd, adam, annealed"):
        inner_optimizer(FrozenConfigDict({"inner": "adma"}))


def test_the_way_back_ends_at_the_start():
    """Faults: the rate of the way does not fall to 0; the rule takes the rate of the parameters."""
    rule = way_back(0.5, 2)
    params = {"meta": {"params": {"w": jnp.ones(2)}, "rule": {"nu": jnp.ones(2)}}, "weighting": {}}
    state, moved = rule.init(params), []
    for _ in range(3):
        updates, state = rule.update(params, state, params)
        moved.append((updates["meta"]["params"]["w"][0], updates["meta"]["rule"]["nu"][0]))
    np.testing.assert_allclose(moved, [(-0.5, -1), (-0.25, -1), (0, -1)])


def test_an_outcome_is_computed_once_and_belongs_to_its_config(tmp_path, capsys):
    """Faults: a finished cell is trained again; the section of another method makes it unfinished;
    its own section may change without a word; what is half-written counts."""
    config = {"learners": ("a",), "more_learners": ("b",), "seeds": 1, "steps": 3}
    config |= {"a": {"rate": 1}, "b": {"rate": 1}}
    calls = []

    def compute():
        calls.append(1)
        return {"x": np.arange(3)}

    def outcome(**changes):
        changed = FrozenConfigDict({**config, **changes})
        return outcome_of(tmp_path / "5w1s" / "a" / "seed0", read_by(changed, "a"), compute)

    def check(**changes):
        changed = FrozenConfigDict({**config, **changes})
        check_cells(tmp_path, lambda group, method: {"5w1s": read_by(changed, method)}[group])

    np.testing.assert_array_equal(outcome()["x"], [0, 1, 2])
    assert capsys.readouterr().out == ""
    outcome(b={"rate": 2}, seeds=5)
    assert len(calls) == 1
    assert "seed0: scored before; delete outcome.npz" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"a\.rate was 1, is 2"):
        outcome(a={"rate": 2})
    (tmp_path / "5w1s" / "a" / "seed1").mkdir()
    (tmp_path / "5w1s" / "a" / "seed1" / "tmp.npz.part").write_bytes(b"half")
    assert outcomes_in(tmp_path, "5w1s/a", 3)["x"].shape == (1, 3)
    assert outcomes_in(tmp_path, "5w1s/b", 3) == {}
    check(b={"rate": 2})
    with pytest.raises(ConfigError, match="seed0 holds a run with another config: steps was 3"):
        check(steps=4)


@pytest.mark.parametrize("damage", ["empty", "half", "text", "array", "bit", "other", "lost"])
def test_a_damaged_outcome_is_one_line(tmp_path, damage):
    """Faults: it is a traceback; or the table is made of it, or of another cell's."""
    cell, other = (tmp_path / "5w1s" / method / "seed0" / OUTCOME for method in ("a", "b"))
    for path in (cell, other):
        keep_outcome(path.parent, {"x": np.arange(300), "y": np.ones(3)})
    content = cell.read_bytes()
    changed = bytearray(content)
    changed[len(content) // 3] ^= 1
    if damage == "array":
        with open(cell, "wb") as file:
            np.save(file, np.ones(3))
    elif damage == "lost":
        with np.load(cell) as arrays:
            np.savez(cell, **{name: arrays[name] for name in arrays.files if name != "y"})
    else:
        cell.write_bytes(
            {
                "empty": b"",
                "half": content[: len(content) // 2],
                "text": b"text",
                "bit": bytes(changed),
                "other": other.read_bytes(),
            }[damage]
        )
    words = f"{cell}: .*; delete this file, and the cell is scored again"
    with pytest.raises(ConfigError, match=words):
        outcomes_in(tmp_path, "5w1s/a", 1)
    with pytest.raises(ConfigError, match=words):
        outcome_of(cell.parent, FrozenConfigDict(), dict)


def test_seeds_of_another_table_are_one_line(tmp_path):
    """Fault: seeds with other arrays than the first one's are a KeyError."""
    for seed, name in enumerate("xxy"):
        keep_outcome(tmp_path / "5w1s" / "a" / f"seed{seed}", {name: np.ones(3)})
    assert outcomes_in(tmp_path, "5w1s/a", 2)["x"].shape == (2, 3)
    with pytest.raises(ConfigError, match="5w1s/a: .* do not have the same arrays: x, y; delete"):
        outcomes_in(tmp_path, "5w1s/a", 3)


OUTCOME_CONFIG = {"steps": 3, "seeds": 1, "log_every": 2, "a": {"rate": 0.1, "widths": (4, 4)}}


def an_outcome(workdir, seed=0, **changes):
    """The file of a finished cell."""
    folder = workdir / "5w1s" / "a" / f"seed{seed}"
    arrays = {"mse5": np.arange(600.0).reshape(2, 3, 100), "rate5": np.asarray(0.5)}
    outcome_of(folder, FrozenConfigDict({**OUTCOME_CONFIG, **changes}), lambda: arrays)
    return folder / OUTCOME


def rewritten(path, change):
    with np.load(path) as arrays:
        found = {name: arrays[name] for name in arrays.files}
    np.savez(path, **change(found))


def without(*names):
    return lambda found: {name: leaf for name, leaf in found.items() if name not in names}


SPOILT = {
    "a pickle": lambda path: np.savez(path, mse5=np.array([{}], dtype=object)),
    "another value": lambda path: rewritten(path, lambda f: {**f, "mse5": f["mse5"] + 1}),
    "another type": lambda path: rewritten(path, lambda f: {**f, "mse5": f["mse5"].view("i8")}),
    "another shape": lambda path: rewritten(
        path, lambda f: {**f, "mse5": f["mse5"].reshape(3, 2, 100)}
    ),
    "without the array and the checksum": lambda path: rewritten(path, without("mse5", "crc32")),
    "texts": lambda path: np.savez(path, mse5=np.array([["a"]])),
    "no values": lambda path: np.savez(path, mse5=np.zeros((2, 0, 3))),
    "of another table": lambda path: np.savez(path, accuracy=np.ones((2, 3, 100))),
    "of another seed": lambda path: shutil.copy(an_outcome(path.parents[3], seed=1), path),
    "of another config": lambda path: shutil.copy(
        an_outcome(path.parents[3] / "other", steps=4), path
    ),
    "a checksum that is a text": lambda path: rewritten(
        path, lambda f: {**f, "crc32": np.array("x")}
    ),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
}


@pytest.mark.parametrize("how", SPOILT)
def test_an_outcome_of_something_else_is_one_clear_error(tmp_path, how):
    """Faults: a traceback of a library, or another result, from an outcome that is damaged, or that
    is of another cell, table or config; a pipe hangs."""
    path = an_outcome(tmp_path)
    SPOILT[how](path)
    with pytest.raises(ConfigError, match="delete this file, and the cell is scored") as error:
        outcomes_in(tmp_path, "5w1s/a", 1, ["mse5"])
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


def test_an_outcome_is_read_where_it_was_moved_or_is_older(tmp_path):
    """Faults: a work folder that was moved is refused, or one whose harmless fields have changed,
    or an outcome from before there were checksums; outcomes of other shapes are stacked."""
    an_outcome(tmp_path / "first")
    (tmp_path / "first").rename(tmp_path / "second")
    path = tmp_path / "second" / "5w1s" / "a" / "seed0" / OUTCOME
    again = FrozenConfigDict({**OUTCOME_CONFIG, "log_every": 7, "seeds": 9})
    found = outcome_of(path.parent, again, lambda: pytest.fail("it is there already"))
    assert set(found) == {"mse5", "rate5"} and found["mse5"].sum() == np.arange(600).sum()
    rewritten(path, without("of", "crc32"))
    assert set(outcomes_in(tmp_path / "second", "5w1s/a", 3, ["mse5"])) == {"mse5", "rate5"}
    other = an_outcome(tmp_path / "second", seed=1)
    rewritten(other, without("of", "crc32", "rate5"))
    found = outcomes_in(tmp_path / "second", "5w1s/a", 3, ["mse5"])
    assert set(found) == {"mse5"} and found["mse5"].shape == (2, 2, 3, 100)
    np.savez(other, mse5=np.ones((2, 3, 99)))
    with pytest.raises(
        ConfigError, match=r"seed1.*\[2, 3, 99\], and another seed's has shape \[2, 3, 1"
    ):
        outcomes_in(tmp_path / "second", "5w1s/a", 3, ["mse5"])


def test_rows_of_waves(tmp_path):
    """Faults: the mean hides that tasks diverged; a task that is not a number is not counted; the
    row after 5 steps is that after 10; the published value stands by another row."""
    config = config_of("sinusoid", "--config.preset=tiny")
    errors = np.tile(np.arange(11.0)[None, :, None], (2, 1, 8))
    spoiled = errors.copy()
    spoiled[0, 10, :2] = (np.nan, 26.0)
    for seed in range(2):
        for method, values in (("maml", errors), ("pretrained", spoiled)):
            folder = tmp_path / "he" / method / f"seed{seed}"
            folder.mkdir(parents=True)
            np.savez(folder / "outcome.npz", mse5=values[seed], mse10=values[seed])
    rows, scores = sinusoid_table.rows_of(config, tmp_path)
    found = {(r.method, r.shots, r.steps, r.metric): r for r in rows}
    assert found["maml", 5, 5, "mse"].value == 5 and found["maml", 5, 5, "mse"].published == 0.38
    assert found["maml", 10, 5, "mse"].published is None
    assert ("pretrained", 5, 10, "mse") not in found
    assert found["pretrained", 5, 10, "diverged"].value == pytest.approx(1 / 8)
    assert found["pretrained", 5, 10, "mse_median"].value == 10
    assert {row.diverged for row in rows if row.method == "maml"} == {0}
    assert found["pretrained", 5, 10, "diverged"].diverged == 1  # 26 is a number
    assert found["pretrained", 5, 5, "diverged"].diverged == 0
    assert len(scores) == sum(row.metric == "mse" for row in rows)


def test_medians_and_steps_that_are_no_numbers(tmp_path):
    """Faults: an infinite median is printed as a number; rows after more steps than were taken end
    in an IndexError, when all is trained."""
    assert sinusoid_table.median(np.asarray([1, np.inf, np.inf, np.nan])) == np.inf
    flags = ("--config.preset=tiny", "--config.test_steps=3")
    with pytest.raises(ConfigError, match="no row comes after more than config.test_steps=3"):
        sinusoid_table.main(config_of("sinusoid", *flags), tmp_path)


@pytest.mark.slow
def test_the_table_of_waves_runs(tmp_path, capsys):
    """Faults: a method cannot be trained or scored; the table is not collected from several
    commands; a second start trains again; a picture is not drawn."""
    flags = ("--config.preset=tiny", "--config.initialisers=('truncated',)", "--config.seeds=1")
    for method in ("maml", "reptile", "imaml", "pretrained"):
        sinusoid_table.main(config_of("sinusoid", *flags, f"--config.learner={method}"), tmp_path)
    results = read(tmp_path / "results.json")
    assert {row.method for row in results.rows} == {"maml", "reptile", "imaml", "pretrained"}
    assert {row.steps for row in results.rows} == {1, 5, 10, 64}
    assert (tmp_path / "curves.png").stat().st_size > 1000
    assert (tmp_path / "fits.png").stat().st_size > 1000
    capsys.readouterr()
    sinusoid_table.main(config_of("sinusoid", *flags, "--config.learner=maml"), tmp_path)
    assert "steps in" not in capsys.readouterr().out


@cache
def characters():
    """As many as Omniglot has, each a block of its own with noise."""
    rng = np.random.default_rng(0)
    block = rng.integers(0, 2, (1623, 1, 7, 7)).repeat(4, 2).repeat(4, 3)
    noise = rng.random((1623, 20, 28, 28)) < 0.1
    images = ((block ^ noise) * 255).astype(np.uint8)
    names = tuple(f"A/character{number:04}" for number in range(1623))
    return omniglot.Drawings(names, images)


@pytest.fixture
def drawn(monkeypatch):
    monkeypatch.setattr(omniglot, "read_drawings", lambda folder: characters())


def test_rows_of_characters_count_what_diverged(tmp_path):
    """Faults: a method that diverged looks like one that was wrong; steps before the last count; an
    outcome from before it was kept has a count; it is a row of its own."""
    config = config_of("omniglot", "--config.preset=tiny", "--config.seeds=2")
    right = np.ones((3, 4, 5), bool)
    finite = right.copy()
    finite[0], finite[2, 1:3, 2:] = False, False
    kept = {"accuracy": right & finite, "accuracy_finite": finite, "accuracy_inductive": right}
    for seed in range(2):
        for method, arrays in (("maml", kept), ("pixels", {"accuracy": right[:1]})):
            folder = tmp_path / "5w1s" / method / f"seed{seed}"
            folder.mkdir(parents=True)
            np.savez(folder / "outcome.npz", **arrays)
    rows, scores = omniglot_table.rows_of(config, tmp_path)
    found = {(row.method, row.metric): row for row in rows}
    assert found["maml", "accuracy"].diverged == 4
    assert found["maml", "accuracy"].value == pytest.approx((2 + 2 * 2 / 5) / 4)
    assert found["maml", "accuracy_inductive"].diverged is None
    assert found["pixels", "accuracy"].diverged is None
    assert len(rows) == len(scores) == 3


@pytest.mark.slow
def test_the_table_of_omniglot_runs(tmp_path, drawn):
    """Faults: a method cannot be trained or scored, the two kinds of statistics are one, the
    baseline is not asked the same queries, a metric learner trained at more ways is asked at as
    many."""
    flags = ("--config.preset=tiny", "--config.test_episodes=8")
    # One of each kind; the waves have imaml, and all are built in a test above.
    methods = ("maml", "maml++", "reptile", "prototypical", "relation")
    for method in methods:
        omniglot_table.main(config_of("omniglot", *flags, f"--config.learner={method}"), tmp_path)
    rows = read(tmp_path / "results.json").rows
    found = {(row.method, row.metric): row for row in rows}
    assert found["maml", "accuracy"].published == 0.987
    assert found["reptile", "accuracy_inductive"].published == 0.9539
    assert {method for method, _ in found} == {*methods, "pixels"}
    assert found["pixels", "accuracy"].value > 0.9
    assert found["maml", "accuracy"].baseline == found["pixels", "accuracy"].value
    assert found["maml", "accuracy"].task == "5w1s" and found["maml", "accuracy"].steps == 3
    assert json.loads((tmp_path / "5w1s/maml/seed0/config.json").read_text())["steps"] == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--config.learner=mam", "config.learner: there is no 'mam'; there are maml"),
        ("--config.split=finn", "config.split=finn: there are maml and vinyals"),
        ("--config.convolution=fft", "config.convolution=fft: there are patches, xla"),
        ("--config.dtype=float16", "config.dtype=float16: there are float32 and bfloat16"),
        ("--config.statistics=own", "config.statistics=own: there are transductive"),
        ("--config.parallel=pjit", "parallel is 'pjit'; there are jit and pmap"),
        ("--config.tasks_per_chunk=3", "32 tasks a step do not divide into chunks of 3"),
        ("--config.way=500", "500-way episodes need 500 classes; there are 423; lower way"),
        ("--config.shot=20", "20-shot episodes with 20 queries need 40 drawings"),
        ("--config.way=-1", "there must be at least 1 way"),
        ("--config.precision=half", "config.precision is 'half'; there are default, tensorfloat32"),
        ("--config.maml.way5.mode=exact", "mode is 'exact'; there are unrolled, remat, mixed"),
        (
            "--config.steps_per_call=2",
            "config.log_every is 1: make it a multiple of config.steps_per_call",
        ),
    ],
)
def test_a_wrong_flag_of_omniglot_is_one_clear_error(tmp_path, drawn, flag, message):
    """Fault: it ends in a traceback from inside a trace, or in a run of something else."""
    flags = ("--config.preset=tiny", "--config.learner=maml")
    flags = (*flags, flag) if "learner" not in flag else (flags[0], flag)
    with pytest.raises(runner.USER_ERRORS, match=message):
        omniglot_table.main(config_of("omniglot", *flags), tmp_path)


@pytest.mark.slow
def test_seeds_at_once_are_those_alone(tmp_path, drawn):
    """Faults: seeds trained in one program get another one's start or episodes, or are scored with
    another one's parameters; learners that are named twice are rows twice."""
    flags = ["--config.preset=tiny", "--config.seeds=2", "--config.learner=maml"]
    flags += [
        '--config.learners=("maml",)',
        "--config.test_episodes=4",
        "--config.maml.way5.meta_batch_size=2",
    ]
    found = {}
    for at_once in (1, 2):
        config = config_of("omniglot", *flags, f"--config.seeds_at_once={at_once}")
        omniglot_table.main(config, tmp_path / str(at_once))
        for seed in range(2):
            folder = tmp_path / str(at_once) / "5w1s" / "maml" / f"seed{seed}"
            rows = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
            found[at_once, seed] = [row["loss"] for row in rows]
    np.testing.assert_allclose(found[1, 0], found[2, 0], rtol=1e-4)
    np.testing.assert_allclose(found[1, 1], found[2, 1], rtol=1e-4)
    assert found[1, 0] != found[1, 1]
    rows = read(tmp_path / "2").rows
    assert len([row for row in rows if row.method == "maml" and row.metric == "accuracy"]) == 1
