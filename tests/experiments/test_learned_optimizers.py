"""Training of learned optimizers from a config, tuned hand-made ones, and their table."""

import gzip
import json
import struct
from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections.config_dict import FrozenConfigDict

from experiments import command
from experiments.config_files import ConfigError
from experiments.hand_made import HAND_MADE, made_of, scheduled, tuned
from experiments.learn_optimizer import (
    best_of,
    cell_config,
    estimator_of,
    folder_of,
    keeper,
    rule_named,
    train_rule,
)
from experiments.learn_optimizer import main as learn
from experiments.optimizees import Setting, log10_of, score, setting_of
from experiments.reports.layout import falls_short
from experiments.tables import learned_optimizers as table
from metaguide.evaluation.results import read
from metaguide.optimizers import load, mlp
from metaguide.training.checkpoint import FOLDER, latest, restore_meta
from metaguide.training.state import TrainState
from metaguide.types import Optimizee

TINY = (
    "--config.preset=tiny",
    "--config.rules.mlp.hidden=2",
    "--config.quadratic.dim=2",
    "--config.quadratic.horizon=20",
)


@cache
def config_of(*flags, name="table"):
    path = f"experiments/configs/learned_optimizers/{name}.py"
    return command.resolve(["x", *TINY, *flags], default=path, workdir="unused")[0]


def squares(steps=1):
    """x² from x = 4, which gradient descent at a rate of .5 ends in one step."""
    optimizee = Optimizee(
        lambda data, key: ({"x": jnp.asarray(4.0)}, ()),
        lambda data, task, step: (),
        lambda params, batch: (jnp.square(params["x"]), ()),
    )
    return Setting(optimizee, dict.fromkeys(("train", "validation", "test"), ()), steps)


# ------------------------------------------------------------------------- made by hand


def test_the_best_rate_and_schedule_are_taken():
    """Faults: the first or the largest rate, the schedule of another one, a loss before the last
    step; a rate at which all diverges is the best because its loss is no number."""
    config = FrozenConfigDict(
        {
            "learning_rates": (0.1, 0.5, 1e30),
            "seed": 0,
            "validation_problems": 3,
            "least": 1e-9,
            "cap": 9.0,
        }
        | {"setting": {"chunk": 2}}
    )
    assert tuned(config, squares(), "sgd") == (0.5, "constant", -9.0)
    # The second step of the cosine has half the rate: x ← x (1 − 2 · .5) (1 − 2 · .25).
    found = score(squares(2), scheduled("sgd", 2), "test", seed=0, problems=1, chunk=1)
    np.testing.assert_allclose(found(made_of(0.25, "cosine")), [[16, 4, 2.25]])
    np.testing.assert_allclose(found(made_of(0.25, "constant")), [[16, 4, 1]])


@pytest.mark.parametrize("method", HAND_MADE)
def test_a_constant_schedule_is_optax_at_that_rate(method):
    """Fault: a method is another optimizer than its name says."""
    expected = {
        "sgd": optax.sgd(0.1),
        "nesterov": optax.sgd(0.1, momentum=0.9, nesterov=True),
        "rmsprop": optax.rmsprop(0.1),
        "adam": optax.adam(0.1),
        "adamw": optax.adamw(0.1),
    }[method]
    of_rate = scheduled(method, 5)
    ask = partial(score, squares(5), split="test", seed=0, problems=1, chunk=1)
    found = ask(of_rate)(made_of(0.1, "constant"))
    np.testing.assert_allclose(found, ask(lambda _: expected)(0), rtol=1e-5)


def test_losses_out_of_range_count_as_its_ends():
    """Faults: what diverged is left out of the mean or makes it no number; −∞ at a loss of 0."""
    losses = np.asarray([0.0, 1e-3, 10.0, np.inf, np.nan, 1e9], np.float32)
    np.testing.assert_allclose(log10_of(losses, 1e-6, 1e4), [-6, -3, 1, 4, 4, 4], rtol=1e-6)


# ------------------------------------------------------------------------- settings


def test_validation_and_test_are_other_pictures(tmp_path, monkeypatch):
    """Faults: a picture is in two splits, or label and picture part; the file's order is kept."""
    folder = tmp_path / "mnist"
    folder.mkdir()
    for split, first, count in (("train", 0, 100), ("t10k", 100, 50)):
        values = np.arange(first, first + count, dtype=np.uint8)
        for name, array in (
            (f"{split}-images-idx3-ubyte.gz", values[:, None, None]),
            (f"{split}-labels-idx1-ubyte.gz", values % 10),
        ):
            head = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
            (folder / name).write_bytes(gzip.compress(head + array.tobytes()))
    monkeypatch.setenv("METAGUIDE_DATA_DIR", str(tmp_path))
    data = setting_of(config_of().mnist).data
    seen = {split: part["image"][:, 0, 0] for split, part in data.items()}
    assert {split: len(part) for split, part in seen.items()} == {
        "train": 80,
        "validation": 20,
        "test": 50,
    }
    assert sorted(np.concatenate(list(seen.values()))) == list(range(150))
    assert all((part["image"][:, 0, 0] % 10 == part["label"]).all() for part in data.values())
    assert sorted(seen["train"]) != list(seen["train"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"widths": (), "activation": "relu"},
        {"widths": (3, 3), "activation": "tanh"},
        {"model": "convolutions", "widths": (2,)},
    ],
    ids=("logistic", "perceptron", "convolutions"),
)
def test_every_model_learns_its_pictures(changes, monkeypatch):
    """Faults: a model is not built as its section says, or what it minimises is not its loss."""
    images = np.random.default_rng(0).integers(0, 256, (20, 28, 28)).astype(np.uint8)
    data = {"image": images, "label": np.arange(20, dtype=np.int32) % 10}
    splits = dict.fromkeys(("train", "validation", "test"), data)
    monkeypatch.setattr("experiments.optimizees._pictures", lambda root, name: splits)
    section = config_of().mnist.to_dict() | changes | {"horizon": 20, "batch": 20}
    setting = setting_of(FrozenConfigDict(section))
    losses = score(setting, lambda rate: optax.adam(rate), "test", seed=0, problems=1, chunk=1)(
        0.03
    )
    np.testing.assert_allclose(losses[0, 0], np.log(10), rtol=1e-4)
    assert losses[0, -1] < 0.97 * losses[0, 0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"functions": "cubic"}, "functions='cubic': there are quadratic and pictures"),
        ({"variant": "code"}, "variant is 'code'; there are paper, released"),
        ({"functions": "pictures", "activation": "gelu"}, "activation='gelu': there are sigmoid"),
        ({"functions": "pictures", "model": "vit"}, "model='vit': there are perceptron and"),
    ],
)
def test_a_wrong_name_of_a_setting_is_one_clear_error(changes, message):
    """Fault: a KeyError, or the default in silence."""
    section = config_of().mnist.to_dict() | config_of().quadratic.to_dict() | changes
    with pytest.raises(ConfigError, match=message):
        setting_of(FrozenConfigDict(section))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"estimator": "reinforce"}, "'reinforce': there are truncated, full, evolution, persist"),
        ({"objective": "square"}, "objective='square': there are loss, log"),
        ({"estimator": "imitation"}, "teacher='': there are sgd, nesterov, rmsprop, adam, adamw"),
        ({"curvature": -1.0}, "curvature=-1.0: a bound on a norm is 0 or more"),
        ({"first_horizon": 21}, "first_horizon=21: a curriculum from 21 to 20 steps"),
    ],
)
def test_a_wrong_name_of_an_estimator_is_one_clear_error(changes, message):
    """Fault: a KeyError, or another estimator in silence."""
    section = config_of().quadratic
    own = FrozenConfigDict(section.train.mlp.to_dict() | changes)
    with pytest.raises(ConfigError, match=message):
        estimator_of(own, mlp(2), setting_of(section))


@pytest.mark.slow
def test_the_full_estimator_is_one_window():
    """Fault: "full" is truncated after `truncation` steps."""
    section = config_of().quadratic
    setting, key = setting_of(section), jax.random.key(0)
    rule = mlp(2)
    theta = rule.init(key)
    found = {}
    for estimator, truncation in (("full", 5), ("truncated", 20), ("truncated", 5)):
        own = section.train.mlp.to_dict() | {"estimator": estimator, "truncation": truncation}
        one = estimator_of(FrozenConfigDict(own), rule, setting)
        particle = one.start(theta, (), key, 0)
        found[estimator, truncation] = one.gradient(theta, (), particle, key, jnp.zeros(()))[0][0]
    assert found["full", 5] == found["truncated", 20] != found["truncated", 5]


# ------------------------------------------------------------------------- training


@pytest.mark.slow
def test_the_best_checkpoint_is_kept(tmp_path):
    """Faults: the last one is, or that of another step; scores of a run before are forgotten; a
    finished run is trained or scored again; the command or the rule is not kept."""
    config = config_of("--config.quadratic.train.mlp.log_every=4")
    trained = train_rule(config, "quadratic", "mlp", 0, tmp_path)
    folder = folder_of(tmp_path, "quadratic", "mlp", 0)
    scores = json.loads((folder / "validation.json").read_text("utf-8"))
    assert list(scores) == ["2", "4"]
    step, least = best_of(folder)
    assert least == min(scores.values()) and scores[str(step)] == least
    last = restore_meta(folder / FOLDER, {"rule": trained.theta})["rule"]
    same = jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), trained.theta, last))
    assert all(same) == (step == 4)
    losses = score(
        setting_of(config.quadratic),
        trained.rule.transform,
        "validation",
        seed=0,
        problems=config.validation_problems,
        chunk=2,
    )(trained.theta)[:, -1]
    np.testing.assert_allclose(log10_of(losses, config.least, config.cap).mean(), least, rtol=1e-4)
    before = (folder / "validation.json").stat().st_mtime_ns
    jax.tree.map(
        np.testing.assert_array_equal,
        train_rule(config, "quadratic", "mlp", 0, tmp_path).theta,
        trained.theta,
    )
    assert (folder / "validation.json").stat().st_mtime_ns == before


@pytest.mark.slow
def test_a_lesson_comes_first(tmp_path):
    """Faults: training begins at random after its warmup, the warmup's checkpoints are scored, its
    setting is the training's own, or it is taken again."""
    config = config_of().to_dict()
    own = config["quadratic"]["train"]["mlp"]
    taught = {
        "estimator": "imitation",
        "teacher": "sgd",
        "teacher_learning_rate": 0.1,
        "meta_steps": 6,
    }
    config["quadratic"]["train"]["mlp"] = own | {"learning_rate": 1e-9, "warmup": own | taught}
    trained = train_rule(FrozenConfigDict(config), "quadratic", "mlp", 0, tmp_path)
    folder = folder_of(tmp_path, "quadratic", "mlp", 0)
    learned = restore_meta(folder / "warmup" / FOLDER, {"rule": trained.theta})["rule"]
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-6), trained.theta, learned)
    random = trained.rule.init(jax.random.split(jax.random.key(0))[0])
    assert optax.tree.norm(optax.tree.sub(learned, random)) > 0.01
    assert latest(folder / "warmup" / FOLDER) == 6 and best_of(folder)[0] in (2, 4)
    assert not (folder / "warmup" / "validation.json").exists()


@pytest.mark.slow
def test_a_worse_checkpoint_does_not_replace_a_better_one(tmp_path):
    """Faults: the file is that of the last checkpoint, or of the worst."""
    config, rule = config_of(), rule_named(config_of(), "mlp")
    cell = cell_config(config, "quadratic", "mlp")
    keep = keeper(cell, setting_of(config.quadratic), rule, tmp_path)
    good = rule.init(jax.random.key(0))
    bad = jax.tree.map(lambda leaf: leaf + 50.0, good)
    for step, theta in enumerate((bad, good, bad)):
        params = {"meta": {"rule": theta}}
        keep(TrainState(jnp.asarray(step), params, (), jax.random.key(0), {}))
        kept = load(tmp_path).theta
        jax.tree.map(np.testing.assert_array_equal, kept, bad if step == 0 else good)
    assert best_of(tmp_path)[0] == 1


def test_a_cell_depends_on_its_own_method_alone():
    """Faults: another method's rate makes a cell unfinished; its own does not; a transfer is scored
    as in training; a hand-made method depends on a rule's training."""
    config = config_of()
    other = config_of(
        "--config.quadratic.train.lstm.learning_rate=1.0", "--config.rules.lstm.hidden=1"
    )
    same = [cell_config(one, "quadratic", "mlp", "longer") for one in (config, other)]
    assert same[0] == same[1] and same[0].setting.horizon == 200
    assert same[0].trained_on.horizon == 20
    assert cell_config(config, "quadratic", "lstm") != cell_config(other, "quadratic", "lstm")
    assert cell_config(config, "quadratic", "adam") == cell_config(other, "quadratic", "adam")
    assert "learning_rates" in cell_config(config, "quadratic", "adam")
    with pytest.raises(ConfigError, match="config.quadratic.transfer: there is no 'shorter'"):
        cell_config(config, "quadratic", "mlp", "shorter")


@pytest.mark.slow
def test_wrong_names_of_a_command_are_one_clear_error(tmp_path):
    """Fault: all is trained, or a KeyError."""
    with pytest.raises(
        ConfigError, match="config.learner: there is no 'adam'; there are hyper, lstm"
    ):
        learn(config_of("--config.learner=adam", name="lstm_quadratic"), tmp_path)
    with pytest.raises(ConfigError, match="config.problem: there is no 'x'; there are quadratic"):
        table.main(config_of("--config.problem=x"), tmp_path)
    with pytest.raises(ConfigError, match="config.learner: there is no 'gru'; there are lstm"):
        table.main(config_of("--config.learner=gru"), tmp_path)
    odd = config_of().to_dict()
    odd["rules"]["mlp"]["width"] = 3
    with pytest.raises(ConfigError, match="config.rules.mlp: mlp has no setting 'width'"):
        train_rule(FrozenConfigDict(odd), "quadratic", "mlp", 0, tmp_path)
    assert list(tmp_path.iterdir()) == []
    config = config_of("--config.quadratic.train.mlp.log_every=3")
    where = "config.quadratic.train.mlp"
    with pytest.raises(ConfigError, match=f"{where}.log_every is 3: make it a multiple of {where}"):
        train_rule(config, "quadratic", "mlp", 0, tmp_path)


# ------------------------------------------------------------------------- the table


def test_rows_of_finished_cells(tmp_path):
    """Faults: a mean of losses for one of their logarithms, the loss before the last step, the
    difference the wrong way round or not paired, seeds of methods that have none."""
    config = config_of()
    first = np.full((4, 1), 10.0)
    rng = np.random.default_rng(0)
    hard = rng.uniform(-3, 3, 4)
    losses = {
        "adam": [10 ** hard[:, None]],
        "mlp": [10 ** (hard - 1)[:, None], 10 ** (hard - 2)[:, None]],
    }
    for method, of_seeds in losses.items():
        for seed, last in enumerate(of_seeds):
            folder = tmp_path / "quadratic-trained" / method / f"seed{seed}"
            folder.mkdir(parents=True)
            np.savez(folder / "outcome.npz", loss=np.concatenate([first, first * 7, last], axis=1))
    rows, scores = table.rows_of(config, table.logarithms_in(config, tmp_path))
    found = {(row.method, row.metric): row for row in rows}
    assert {row.steps for row in rows} == {20} and {row.task for row in rows} == {"quadratic"}
    assert found["adam", "log10_loss"].value == pytest.approx(hard.mean())
    assert found["adam", "log10_loss"].seeds == 1
    assert found["mlp", "log10_loss"].value == pytest.approx(hard.mean() - 1.5)
    less = found["adam", "mlp_minus"]
    assert less.value == pytest.approx(-1.5) and less.seeds == 2
    # Apart from the seeds all differences are equal: what is left is the seeds' spread, of which
    # two seeds know little, with the one degree of freedom that they have.
    assert less.ci95_seeds == pytest.approx(12.706 * 0.5, rel=1e-3)
    assert less.ci95 == pytest.approx(less.ci95_seeds, rel=0.1)
    assert found["adam", "no_lower"].value == np.mean(hard >= 1)
    assert falls_short(less) and not falls_short(replace(less, ci95=0.6))
    assert falls_short(replace(less, value=-0.1, ci95=0.6))
    assert len(scores) == 2
    assert {row.diverged for row in rows} == {0}
    for bad in (np.nan, np.inf, 1e30):
        one = losses["mlp"][0].copy()
        one[2] = bad
        np.savez(folder / "outcome.npz", loss=np.concatenate([first, first * 7, one], axis=1))
        rows, _ = table.rows_of(config, table.logarithms_in(config, tmp_path))
        counts = {(row.method, row.metric): row.diverged for row in rows}
        assert counts["mlp", "log10_loss"] == counts["adam", "mlp_minus"] == 1
        assert counts["adam", "log10_loss"] == 0


@pytest.mark.slow
def test_the_table_runs_and_is_taken_up_again(tmp_path, capsys):
    """Faults: a method cannot be trained or scored on a problem, a number is missing, a second
    start computes again, cells of another config are mixed."""
    methods = ("lstm", "rnn", "hyper", "mlp", "sgd", "adam")
    config = config_of().to_dict() | {"problems": ("quadratic",), "learners": methods}
    config["quadratic"]["transfer"] = {"longer": {"horizon": 40}}
    config = FrozenConfigDict(config)
    table.main(config, tmp_path)
    rows = read(tmp_path).rows
    shown = [row for row in rows if row.metric == "log10_loss"]
    assert {(row.method, row.steps) for row in shown} == {(a, s) for a in methods for s in (20, 40)}
    assert (tmp_path / "descents.png").stat().st_size > 5000
    assert "log10_loss" in capsys.readouterr().out
    table.main(config, tmp_path)
    assert "steps/s" not in capsys.readouterr().out and read(tmp_path).rows == rows
    (tmp_path / "mnist-trained" / "gru" / "seed0").mkdir(parents=True)  # not of this table
    table.main(config, tmp_path)
    other = config.to_dict()
    other["quadratic"]["train"]["mlp"]["learning_rate"] = 1.0
    with pytest.raises(
        ConfigError, match=r"mlp/seed0 holds a run with another config: train.learning_rate"
    ):
        table.main(FrozenConfigDict(other), tmp_path)


@pytest.mark.slow
def test_a_single_rule_is_trained_by_its_own_command(tmp_path, capsys):
    """Faults: the command of the README does not run, or does not say what came of it."""
    flags = ("--config.learner=mlp", "--config.learning_rates=(0.01,0.1)")
    learn(config_of(*flags, name="lstm_quadratic"), tmp_path)
    shown = capsys.readouterr().out
    for part in ("mlp seed 0: mean log10 loss", "adam: ", "metaguide.optimizers.load("):
        assert part in shown
    rule, theta, command = load(folder_of(tmp_path, "quadratic", "mlp", 0))
    assert rule.name.startswith("mlp(hidden=2") and command
