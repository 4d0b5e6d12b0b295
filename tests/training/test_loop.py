import functools
import json
import os
import re
import shutil
import struct

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorboardX.proto.event_pb2 import Event

from metaguide.files import FolderHeld, held
from metaguide.objectives.weighting import uncertainty
from metaguide.training import checkpoint, loop, progress
from metaguide.training.checkpoint import CheckpointError
from metaguide.training.loop import Schedule, TrainingDiverged, train
from metaguide.training.step import init_state, make_step

STEPS = 6


def noisy(meta, data, key, progress):
    batch = jax.random.choice(key, data, (4,))
    return jnp.mean((batch - meta["w"]) ** 2) + 0.1, {"progress": progress}


WEIGHTS, OPTIMIZER = uncertainty(["near", "far"]), optax.adam(0.1)


@functools.cache
def step_of(objective):
    gradients = {
        name: jax.value_and_grad(loss, has_aux=True)
        for name, loss in {"near": objective, "far": noisy}.items()
    }
    return make_step(gradients, WEIGHTS, OPTIMIZER, STEPS)


def stage(objective=noisy):
    """A step with dropout-like draws, learned weights and a stateful optimizer; its start; data."""
    step = step_of(objective)
    state = init_state({"w": jnp.ones(3)}, WEIGHTS, OPTIMIZER, jax.random.key(5))
    rows = jax.random.normal(jax.random.key(1), (16, 3))
    return step, state, {"near": rows, "far": rows + 2.0}


def go(workdir, step, state, data, *, steps=STEPS, on_log=None):
    return train(
        step,
        state,
        data,
        Schedule(steps, 2, 3),
        workdir,
        name="pretrain",
        on_log=on_log,
    )


def bits(state):
    state = state._replace(key=jax.random.key_data(state.key))
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)]


class Killed(Exception):
    pass


def killed_at(step):
    def on_log(done, metrics):
        if done == step:
            raise Killed

    return on_log


@pytest.mark.slow
def test_resumed_stage_is_the_unbroken_one_to_the_bit(tmp_path, capsys):
    """Faults: the key, the optimizer or the step counter is not kept; lines after the checkpoint
    stand twice; the windows of the means start elsewhere; it does not say that it goes on."""
    whole = go(tmp_path / "whole", *stage())
    with pytest.raises(Killed):
        go(tmp_path / "broken", *stage(), on_log=killed_at(4))
    assert '"step": 4' in (tmp_path / "broken" / loop.METRICS).read_text()
    with open(tmp_path / "broken" / loop.METRICS, "a") as file:
        file.write('{"step": 5, "lo')  # what a kill in the middle of a write leaves
    capsys.readouterr()
    resumed = go(tmp_path / "broken", *stage())
    assert "going on from step 3 of 6" in capsys.readouterr().out
    assert bits(resumed) == bits(whole)
    lines = (tmp_path / "whole" / loop.METRICS).read_text()
    assert (tmp_path / "broken" / loop.METRICS).read_text() == lines
    assert [json.loads(line)["step"] for line in lines.splitlines()] == [2, 3, 4, 6]


@pytest.mark.usefixtures("room_for_programs")
@pytest.mark.slow
def test_stage_compiles_once(tmp_path):
    """Fault: logging, a checkpoint or the restored state brings arrays of another kind to the step,
    which compiles again."""
    traced = []

    def counted(meta, data, key, progress):
        traced.append(1)
        return noisy(meta, data, key, progress)

    step, state, data = stage(counted)
    with pytest.raises(Killed):
        go(tmp_path, step, state, data, on_log=killed_at(4))
    assert (len(traced), step.compilations()) == (1, 1)
    step = step_of.__wrapped__(counted)  # as a new process has it
    go(tmp_path, step, *stage(counted)[1:])
    assert (len(traced), step.compilations()) == (2, 1)


def test_lines_are_means_over_all_steps_since_the_line_before(tmp_path):
    """Fault: a line shows one step's loss, or misses the steps around a checkpoint."""
    step, state, data = stage()
    losses = []
    for _ in range(STEPS):
        state, metrics = step(state, data)
        losses.append(float(metrics["near/loss"]))
    go(tmp_path, *stage())
    lines = [json.loads(line) for line in (tmp_path / loop.METRICS).read_text().splitlines()]
    wanted = [np.mean(losses[:2]), losses[2], losses[3], np.mean(losses[4:])]
    np.testing.assert_allclose([line["near/loss"] for line in lines], wanted, rtol=1e-6)


def read_events(file):
    """A record: its length in 8 bytes, a checksum in 4, the event, a checksum in 4."""
    content = file.read_bytes()
    while content:
        end = 12 + struct.unpack_from("<Q", content)[0]
        yield Event.FromString(content[12:end])
        content = content[end + 4 :]


@pytest.mark.parametrize(
    "odd",
    ["5", "[]", "null", '"text"', '{"loss": 1}', '{"step": "2"}', "{", "\0\xff", "[" * 100_000],
)
def test_a_line_that_is_none_of_metrics_ends_what_is_kept(tmp_path, odd):
    """Faults: what an editor or a damaged disk left among the lines is a traceback when the stage
    goes on, or stays among them; a folder of that name is one."""
    step, state, data = stage()
    path = tmp_path / loop.METRICS
    lines = ['{"step": 2, "loss": 1.0}', odd, '{"step": 3, "loss": 1.0}']
    path.write_bytes("\n".join(lines).encode("latin-1"))
    assert loop.metrics_in(tmp_path) == [{"step": 2, "loss": 1.0}]
    path.unlink()
    path.mkdir()
    with pytest.raises(CheckpointError, match=f"{path}: it is no regular file; move it away"):
        go(tmp_path, step, state, data)


@pytest.mark.parametrize(
    "odd",
    [
        b"text",
        b"{}",
        b'{"step": 4.0, "loss": 1.0}',
        b'{"step": true, "loss": 1.0}',
        b'{"step": 4}',
        b'{"step": 4, "loss": "1"}',
        b'{"step": 4, "loss": [1]}',
        b'{"step": 2, "loss": 1.0}',
        b'{"step": 4, "lo',
        b"\xff\xfe",
        b"",
    ],
)
def test_what_stands_behind_a_line_that_is_none_is_not_kept(tmp_path, odd):
    """Faults: a value that is no number is kept, and drawn; a step stands twice; a line behind the
    odd one is kept."""
    good = b'{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.75, "a/b": 3}\n'
    path = tmp_path / loop.METRICS
    path.write_bytes(good + odd + b'\n{"step": 5, "loss": 1.5}\n')
    with loop._log(tmp_path, 5) as write:
        write(6, {"loss": 0.5}, 0.0)
    assert path.read_bytes() == good + b'{"step": 6, "loss": 0.5}\n'


@pytest.mark.slow
@given(st.lists(st.binary(max_size=12) | st.just(b'{"step": 4, "loss": 1.5}'), max_size=6))
def test_whatever_bytes_are_no_metrics(tmp_path_factory, lines):
    """Fault: some bytes are an error of another kind, or a row without its numbers."""
    folder = tmp_path_factory.getbasetemp()
    (folder / loop.METRICS).write_bytes(b"\n".join(lines))
    assert loop.metrics_in(folder) in ([], [{"step": 4, "loss": 1.5}])


@pytest.mark.parametrize("name", [loop.METRICS, loop.TIMES])
@pytest.mark.parametrize("put", [os.mkdir, os.mkfifo], ids=["folder", "pipe"])
def test_logs_that_are_no_files_are_one_error(tmp_path, name, put):
    """Faults: a folder in their place is an IsADirectoryError, after all training or before; a
    pipe hangs."""
    put(tmp_path / name)
    with pytest.raises(CheckpointError, match=f"{name}: it is no regular file; move it away"):
        go(tmp_path, *stage())
    assert checkpoint.latest(tmp_path / checkpoint.FOLDER) is None


def test_tensorboard_gets_the_same_numbers(tmp_path):
    """Fault: the events are empty, or of other steps than the lines."""
    go(tmp_path, *stage())
    events = [
        (event.step, value.tag, value.simple_value)
        for file in tmp_path.glob("events.out.tfevents.*")
        for event in read_events(file)
        for value in event.summary.value
        if value.tag != "steps_per_second"
    ]
    lines = [json.loads(line) for line in (tmp_path / loop.METRICS).read_text().splitlines()]
    wanted = {(line["step"], tag): x for line in lines for tag, x in line.items() if tag != "step"}
    assert {(step, tag) for step, tag, _ in events} == set(wanted)
    for step, tag, x in events:
        np.testing.assert_allclose(x, wanted[step, tag], rtol=1e-6)


def test_finished_stage_returns_at_once(tmp_path, capsys):
    """Fault: a finished stage is trained past its end, or touches its files."""
    step, state, data = stage()
    finished = go(tmp_path, step, state, data)
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    capsys.readouterr()

    def never(state, data):
        raise AssertionError("a step was taken")

    again = go(tmp_path, never, stage()[1], data)
    assert bits(again) == bits(finished)
    assert re.fullmatch("pretrain: already finished, 6 of 6 steps.*\n", capsys.readouterr().out)
    assert files == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def broken_loss(meta, data, key, progress):
    loss, metrics = noisy(meta, data, key, progress)
    return jnp.where(progress * STEPS > 3.5, jnp.nan, loss), metrics


def broken_gradient(meta, data, key, progress):
    loss, metrics = noisy(meta, data, key, progress)
    late = jnp.where(progress * STEPS > 3.5, 0.0, 1.0)
    return loss + jnp.sqrt(jnp.sum(meta["w"] ** 2) * late), metrics  # d sqrt(x) at 0 is inf


@pytest.mark.parametrize(
    ("objective", "what"), [(broken_loss, "the loss of near"), (broken_gradient, "the gradient")]
)
def test_divergence_names_what_and_keeps_the_last_good(tmp_path, objective, what):
    """Faults: NaN trains on, is saved over the good checkpoint, or is blamed on another step."""
    with pytest.raises(TrainingDiverged) as error:
        go(tmp_path, *stage(objective))
    folder = tmp_path / checkpoint.FOLDER
    message = str(error.value)
    assert message.startswith(f"pretrain: {what} is not finite at step 5;")
    assert str(folder / "3") in message and "lower its learning rate" in message
    assert checkpoint.latest(folder) == 3
    assert "NaN" not in (tmp_path / loop.METRICS).read_text()


def test_divergence_at_the_first_step_asks_for_the_data(tmp_path):
    """Fault: NaN in the data is blamed on the learning rate."""
    step, state, data = stage()
    with pytest.raises(TrainingDiverged, match="at step 1; .*look for NaN in the data"):
        go(tmp_path, step, state, {**data, "near": data["near"].at[:].set(jnp.nan)})


def test_output_without_a_terminal_is_plain_lines(tmp_path, capsys, monkeypatch):
    """Fault: a log file fills with the bar's control codes, or a long stage stays silent."""
    monkeypatch.setattr(progress, "PLAIN_LINE_SECONDS", 0.0)
    go(tmp_path, *stage())
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == STEPS and "\x1b" not in "".join(lines)
    assert re.fullmatch(r"pretrain: step 4 of 6, \d+ s left, loss \S+", lines[3])
    assert re.fullmatch(
        r"pretrain: 6 steps in .* s \(.* steps/s after the first\), loss \S+", lines[5]
    )


def test_bar_on_a_terminal_shows_the_time_left(tmp_path, capsys, monkeypatch):
    """Fault: on a terminal there is no bar, or it is left standing beside the stage's last line."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    go(tmp_path, *stage())
    out = capsys.readouterr().out
    assert "\x1b" in out and re.search(r"\d:\d\d", out)
    assert "6 steps in" in out.splitlines()[-1]


def test_each_start_records_its_time(tmp_path):
    """Fault: the time of a stage in two sittings is lost, or counted from the wrong step."""
    with pytest.raises(Killed):
        go(tmp_path, *stage(), on_log=killed_at(4))
    go(tmp_path, *stage())
    times = [json.loads(line) for line in (tmp_path / loop.TIMES).read_text().splitlines()]
    assert [(line["from"], line["to"]) for line in times] == [(0, 5), (3, 6)]
    assert all(0 < line["first_step_seconds"] <= line["seconds"] for line in times)


@pytest.mark.slow
def test_several_steps_a_call_write_the_lines_of_single_steps(tmp_path):
    """Faults: a call counts as one step, the means are of the last steps of calls alone, a stage
    that is resumed goes on elsewhere, or the divergence of a step inside a call is not named."""
    one, state, data = stage()
    go(tmp_path / "one", one, state, data)
    gradients = {name: jax.value_and_grad(noisy, has_aux=True) for name in ("near", "far")}
    many = make_step(gradients, WEIGHTS, OPTIMIZER, STEPS, steps_per_call=3)

    def by_threes(workdir, on_log=None):
        return train(
            many,
            stage()[1],
            data,
            Schedule(STEPS, 3, 3, steps_per_call=3),
            workdir,
            name="pretrain",
            on_log=on_log,
        )

    whole = by_threes(tmp_path / "many")
    lines = [json.loads(line) for line in (tmp_path / "many" / loop.METRICS).open()]
    assert [line["step"] for line in lines] == [3, 6]
    expected = {}
    for line in (tmp_path / "one" / loop.METRICS).open():
        row = json.loads(line)
        expected[row["step"]] = row["loss"]
    np.testing.assert_allclose(lines[0]["loss"], (2 * expected[2] + expected[3]) / 3, rtol=1e-5)
    with pytest.raises(Killed):
        by_threes(tmp_path / "broken", killed_at(6))
    assert bits(by_threes(tmp_path / "broken")) == bits(whole)


def test_lines_between_calls_are_an_error(tmp_path):
    """Fault: a line that falls inside a call is never written."""
    step, state, data = stage()
    with pytest.raises(ValueError, match="log_every is 2: make it a multiple of 3"):
        train(
            step,
            state,
            data,
            Schedule(STEPS, 2, 3, steps_per_call=3),
            tmp_path,
            name="pretrain",
        )
    assert not list(tmp_path.iterdir())


def side_by_side(folders, on_log=None, objective=noisy):
    """Two trainings of `stage`, from keys of their own, as one program; or one where one folder."""
    gradients = {
        name: jax.value_and_grad(loss, has_aux=True)
        for name, loss in {"near": objective, "far": noisy}.items()
    }
    step = make_step(gradients, WEIGHTS, OPTIMIZER, STEPS, seeds=len(folders))
    _, state, data = stage()
    keys = jax.random.split(jax.random.key(5), len(folders))
    states = [jax.tree.map(jnp.copy, state._replace(key=key)) for key in keys]
    return train(
        step,
        jax.tree.map(lambda *leaves: jnp.stack(leaves), *states),
        data,
        Schedule(STEPS, 2, 3),
        folders,
        name="pretrain",
        about=[{"number": number} for number in range(len(folders))],
        on_log=on_log,
    )


@pytest.mark.slow
def test_trainings_side_by_side_keep_folders_of_their_own(tmp_path):
    """Faults: a folder gets another training's lines or checkpoint; one that goes on alone, or from
    checkpoints of which a kill left one behind the other, ends elsewhere."""
    folders = [tmp_path / "a", tmp_path / "b"]
    whole = side_by_side(folders)
    lines = [(folder / loop.METRICS).read_text() for folder in folders]
    assert lines[0] != lines[1]
    for number, folder in enumerate(folders):
        part = jax.tree.map(lambda leaf, number=number: leaf[number], whole)
        kept = checkpoint.restore(folder / checkpoint.FOLDER, stage()[1])
        assert bits(kept) == bits(part)
        again = train(
            stage()[0],
            stage()[1]._replace(key=jax.random.split(jax.random.key(5), 2)[number]),
            stage()[2],
            Schedule(STEPS, 2, 3),
            tmp_path / f"alone{number}",
            name="pretrain",
        )
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5),
            again._replace(key=()),
            part._replace(key=()),
        )
    shutil.rmtree(folders[1] / checkpoint.FOLDER / "6")
    resumed = side_by_side(folders)
    assert bits(resumed) == bits(whole)
    assert [(folder / loop.METRICS).read_text() for folder in folders] == lines


@pytest.mark.slow
def test_a_folder_of_another_training_is_refused(tmp_path):
    """Faults: of trainings side by side one goes on from the other's checkpoint; a stage whose
    folder another process trains in waits, or writes into it."""
    folders = [tmp_path / "a", tmp_path / "b"]
    side_by_side(folders)
    for folder in folders:
        shutil.rmtree(folder / checkpoint.FOLDER / "6")
    shutil.rmtree(folders[1] / checkpoint.FOLDER)
    shutil.copytree(folders[0] / checkpoint.FOLDER, folders[1] / checkpoint.FOLDER)
    with pytest.raises(CheckpointError, match=f"{folders[1]}.*number is 0 in the .* and 1 in this"):
        side_by_side(folders)
    with held(folders[1]), pytest.raises(FolderHeld, match=f"{folders[1]}: process"):
        side_by_side(folders)


def test_a_training_that_diverges_is_named(tmp_path):
    """Fault: of trainings side by side nothing says which one is not finite."""

    def second(meta, data, key, progress):
        loss, metrics = noisy(meta, data, key, progress)
        chosen = jax.random.key_data(key)[0] != jax.random.key_data(first)[0]
        return jnp.where(chosen & (progress * STEPS > 1.5), jnp.nan, loss), metrics

    first = jax.random.fold_in(jax.random.fold_in(jax.random.split(jax.random.key(5), 2)[0], 2), 1)
    with pytest.raises(TrainingDiverged, match="the loss of near of training 2 of 2 is not finite"):
        side_by_side([tmp_path / "a", tmp_path / "b"], objective=second)
