"""Two processes with a CPU device each train, are killed and go on together, as one process would.

The children are the command line of the sine waves, or that of a stage of the guide, but that the
first ones stand still after a step, until they are killed.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

from experiments import runner
from experiments.cells.cell import train_cell
from experiments.cells.outcomes import OUTCOME
from experiments.command import resolve
from experiments.tables import sinusoid
from metaguide import run_config
from metaguide.objectives.weighting import fixed
from metaguide.parallel import tasks_mesh
from metaguide.training import checkpoint, loop
from metaguide.training.step import init_state

ROOT = Path(runner.__file__).resolve().parents[1]
SECONDS = 180  # far more than a start takes on a busy machine
KILLED, KEPT, STEPS = 6, 4, 12
FLAGS = (
    *("--config.learner=maml", '--config.initialisers=("he",)', "--config.seeds=1"),
    *(
        "--config.meta_batch_size=4",
        f"--config.steps={STEPS}",
        "--config.steps_per_call=1",
        "--config.log_every=2",
    ),
    *(f"--config.checkpoint_every={KEPT}", "--config.test_tasks=4", "--config.test_shots=(5,)"),
    *("--config.test_steps=1", "--config.shown_steps=(1,)"),
)
CELL = Path("he", "maml", "seed0")

SINE_WAVES, STAGE = "experiments.tables.sinusoid", "experiments.multitask"

OTHERS = "classification", "questions", "recommendation"
SMALL = (
    *("--config.preset=tiny", "--config.model.image=false", "--config.model.layers=0"),
    *(f"--config.multitask.weights.{task}=0" for task in OTHERS),
    *(f"--config.multitask.steps={STEPS}", "--config.multitask.learning_rate=0.05"),
    *("--config.log_every=2", f"--config.checkpoint_every={KEPT}"),
)
"""Flags of a stage that trains sentiment alone, on n-grams."""

CHILD = """
import importlib, os, sys, time
from pathlib import Path
from experiments import runner, stages, training
from experiments.modules import COMMANDS

def stand_still(done, metrics):
    if done == int(os.environ["STAND_STILL_AT"]):
        Path(os.environ["STANDS"]).touch()
        time.sleep(600)

def train(step, state, *args, **kwargs):
    Path(os.environ["DEVICES"]).write_text(str(len(state.step.sharding.device_set)))
    return trained(step, state, *args, **kwargs, on_log=stand_still)

trained = training.train
training.train = stages.train = train
module = os.environ["MODULE"]
main = importlib.import_module(module).main
runner.run(main, **COMMANDS[module]._asdict(), argv=sys.argv)
"""


def free_port():
    with socket.socket() as server:
        server.bind(("localhost", 0))
        return server.getsockname()[1]


@contextlib.contextmanager
def processes(folder, *flags, of_each=((), ()), stand_still_at=0, module=SINE_WAVES):
    """Start one or two; end them, whatever happened.

    Args:
        folder: gets out0, err0 and so on, what they print; stands0 and stands1 where they stand;
            devices0 and devices1, on how many devices they train.
        flags: of both.
        of_each: flags of each; a single one is not joined to others.
        stand_still_at: a step after which metrics are logged.
        module: the module that runs.

    Yields:
        The processes.
    """
    folder.mkdir(exist_ok=True)
    environment = {
        **os.environ,
        "XLA_FLAGS": os.environ["METAGUIDE_TESTS_XLA_FLAGS"]
        + " --xla_force_host_platform_device_count=1",
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "XDG_CACHE_HOME": str(folder.parent / "cache"),
        "STAND_STILL_AT": str(stand_still_at),
        "MODULE": module,
    }
    joined = ["--coordinator", f"localhost:{free_port()}", f"--processes={len(of_each)}"]
    children = []
    with contextlib.ExitStack() as files:
        try:
            for index, own in enumerate(of_each):
                out, err = (
                    files.enter_context(open(folder / f"{name}{index}", "w"))
                    for name in ("out", "err")
                )
                place = [*joined, f"--process={index}"] if len(of_each) > 1 else []
                children.append(
                    subprocess.Popen(
                        [sys.executable, "-c", CHILD, *place, *flags, *own],
                        env={
                            **environment,
                            "STANDS": str(folder / f"stands{index}"),
                            "DEVICES": str(folder / f"devices{index}"),
                        },
                        stdout=out,
                        stderr=err,
                        cwd=folder,
                    )
                )
            yield children
        finally:
            for child in children:
                child.kill()
                child.wait()


def wait_until(done, folder, what):
    """Wait for a condition; fail with what the children said where it does not come true."""
    until = time.monotonic() + SECONDS
    while not done():
        if time.monotonic() > until:
            said = {path.name: path.read_text()[-2000:] for path in sorted(folder.glob("err?"))}
            raise AssertionError(f"{what}: not after {SECONDS} s; the processes said {said}")
        time.sleep(0.05)


def run_to_the_end(folder, *flags, **settings):
    """Return the exit codes of all."""
    with processes(folder, *flags, **settings) as children:
        ended = lambda: all(child.poll() is not None for child in children)  # noqa: E731
        wait_until(ended, folder, "the processes end")
        return [child.returncode for child in children]


def run_until_killed(folder, *flags, **settings):
    """Kill both where they stand still after a step; fail if one ended before."""
    with processes(folder, *flags, stand_still_at=KILLED, **settings) as children:
        stand = [folder / f"stands{index}" for index in range(2)]
        wait_until(
            lambda: (
                all(path.exists() for path in stand)
                or any(child.poll() is not None for child in children)
            ),
            folder,
            f"both processes reach step {KILLED}",
        )
        codes = [child.poll() for child in children]
    assert codes == [None, None], (folder / "err0").read_text() + (folder / "err1").read_text()


def printed(folder, index):
    """What a process printed, without the line of the library that connects it."""
    lines = (folder / f"out{index}").read_text().splitlines()
    return [line for line in lines if not line.startswith("[Gloo]")]


def single_process(folder):
    """Train the same cell on two devices of this process; return its last state."""
    command = ["prog", "--config=experiments/configs/sinusoid.py", *FLAGS]
    config, _ = resolve(command, default="", workdir="runs")
    cell, mesh = sinusoid.cell_of(config, "maml", "he"), tasks_mesh(jax.devices()[:2])
    train_cell(cell, config, [folder], [0], mesh)
    meta = cell.learner.init(jax.random.key(0))
    like = init_state(meta, fixed({"episodes": 1.0}), cell.optimizer, jax.random.key(1000))
    return like, checkpoint.restore(folder / checkpoint.FOLDER, like)


def checksums(folder):
    """Return the names of the arrays whose checksums stand in the last checkpoint."""
    written = folder / checkpoint.FOLDER / str(STEPS) / "default" / "_METADATA"
    return set(json.loads(written.read_text())["custom_metadata"]["crc32"])


def numbers(state):
    state = state._replace(key=jax.random.key_data(state.key))
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), state)


@pytest.mark.slow
def test_two_processes_go_on_together_and_equal_one(tmp_path):
    """Faults: a process trains alone, or on the other's tasks; both write the checkpoint, or only
    one takes part and the other waits for ever; a resumed process starts from step 0, or with
    another state than the other; lines of metrics stand twice; both print; the processes wait for
    each other at the end."""
    work, first, second = (tmp_path / name for name in ("work", "first", "second"))
    flags = (*FLAGS, f"--workdir={work}")
    run_until_killed(first, *flags)
    assert checkpoint.latest(work / CELL / checkpoint.FOLDER) == KEPT

    codes = run_to_the_end(second, *flags)
    assert codes == [0, 0], (second / "err0").read_text() + (second / "err1").read_text()
    assert f"going on from step {KEPT} of {STEPS}" in printed(second, 0)[0]
    assert printed(first, 1) == printed(second, 1) == []
    assert [(second / f"devices{index}").read_text() for index in range(2)] == ["2", "2"]

    rows = [json.loads(line) for line in (work / CELL / loop.METRICS).read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(2, STEPS + 1, 2))
    times = [json.loads(line) for line in (work / CELL / loop.TIMES).read_text().splitlines()]
    assert [(row["from"], row["to"]) for row in times] == [(KEPT, STEPS)]
    assert len(list((work / CELL).glob("events.out.tfevents.*"))) == 2  # one a start
    assert (work / CELL / OUTCOME).exists() and (work / "results.json").exists()

    like, one = single_process(tmp_path / "one")
    names = [checksums(folder) for folder in (work / CELL, tmp_path / "one")]
    assert names[0] == names[1] and "params.meta.params.body.layer0.kernel" in names[0]
    two = checkpoint.restore(work / CELL / checkpoint.FOLDER, like)
    one, two = numbers(one), numbers(two)
    away = optax.tree.norm(optax.tree.sub(one, numbers(like)).params)
    assert away > 1e-3  # it has learned something
    # On x86, with jaxlib 0.10, to the bit.
    assert optax.tree.norm(optax.tree.sub(two, one)) <= 1e-5 * optax.tree.norm(one)
    found = (tmp_path / "one" / loop.METRICS).read_text()
    wanted = [json.loads(line) for line in found.splitlines()]
    for a, b in zip(rows, wanted, strict=True):
        np.testing.assert_allclose(list(a.values()), list(b.values()), rtol=1e-4)


@pytest.mark.slow
def test_a_stage_of_the_guide_goes_on_in_two_processes_and_equals_one(tmp_path):
    """Faults: both processes make the shop or write the folder, and one finds what the other
    replaces; a stage trains on one process's tasks; it does not go on where it was killed."""
    work, first, second, one = (tmp_path / name for name in ("work", "first", "second", "one"))
    run_until_killed(first, *SMALL, f"--workdir={work}", module=STAGE)
    assert checkpoint.latest(work / checkpoint.FOLDER) == KEPT
    codes = run_to_the_end(second, *SMALL, f"--workdir={work}", module=STAGE)
    assert codes == [0, 0], (second / "err0").read_text() + (second / "err1").read_text()
    assert f"going on from step {KEPT} of {STEPS}" in printed(second, 0)[0]
    assert printed(first, 1) == printed(second, 1) == []
    assert [(second / f"devices{index}").read_text() for index in range(2)] == ["2", "2"]
    assert run_config.read(work).stage == "multitask"

    alone = (f"--workdir={one / 'work'}", "--cpu_devices=2")
    assert run_to_the_end(one, *SMALL, *alone, of_each=((),), module=STAGE) == [0]
    assert (one / "devices0").read_text() == "2"
    both, alone = loop.metrics_in(work), loop.metrics_in(one / "work")
    assert [row["step"] for row in both] == list(range(2, STEPS + 1, 2))
    for a, b in zip(both, alone, strict=True):
        np.testing.assert_allclose(list(a.values()), list(b.values()), rtol=1e-4)


@pytest.mark.slow
def test_processes_that_disagree_all_end_with_one_line(tmp_path):
    """Faults: a process with another config trains along, or ends alone, and the others wait for
    it."""
    codes = run_to_the_end(
        tmp_path / "apart", *FLAGS, of_each=((), ("--config.learning_rate=0.1",))
    )
    said = [(tmp_path / "apart" / f"err{index}").read_text() for index in range(2)]
    assert codes == [2, 2], said
    assert said[0] == said[1] and len(said[0].splitlines()) == 1
    assert said[0].startswith("error: the processes have different configs or work folders")
    assert not list(tmp_path.rglob("config.json"))
