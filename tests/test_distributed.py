"""Two processes with a CPU device each train, are killed and go on together, as one process would.

The children are the command line of the sine waves, but that the first ones stand still after a
step, until they are killed.
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

CHILD = """
import os, sys, time
from pathlib import Path
from experiments import runner, training
from experiments.tables import sinusoid

def stand_still(done, metrics):
    if done == int(os.environ["STAND_STILL_AT"]):
        Path(os.environ["STANDS"]).touch()
        time.sleep(600)

def train(step, state, *args, **kwargs):
    Path(os.environ["DEVICES"]).write_text(str(len(state.step.sharding.device_set)))
    return trained(step, state, *args, **kwargs, on_log=stand_still)

trained, training.train = training.train, train
runner.run(
    sinusoid.main, default="experiments/configs/sinusoid.py", workdir="runs", argv=sys.argv
)
"""


def free_port():
    with socket.socket() as server:
        server.bind(("localhost", 0))
        return server.getsockname()[1]


@contextlib.contextmanager
def two_processes(folder, *flags, of_each=((), ()), stand_still_at=0):
    """Start both; end them, whatever happened.

    Args:
        folder: gets out0, err0 and so on, what they print; stands0 and stands1 where they stand;
            devices0 and devices1, on how many devices they train.
        flags: of both.
        of_each: flags of one.
        stand_still_at: a step after which metrics are logged.

    Yields:
        The processes.
    """
    folder.mkdir(exist_ok=True)
    address = f"--coordinator=localhost:{free_port()}"
    environment = {
        **os.environ,
        "XLA_FLAGS": os.environ["METAGUIDE_TESTS_XLA_FLAGS"]
        + " --xla_force_host_platform_device_count=1",
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "XDG_CACHE_HOME": str(folder.parent / "cache"),
        "STAND_STILL_AT": str(stand_still_at),
    }
    children = []
    with contextlib.ExitStack() as files:
        try:
            for index in range(2):
                out, err = (
                    files.enter_context(open(folder / f"{name}{index}", "w"))
                    for name in ("out", "err")
                )
                command = [sys.executable, "-c", CHILD, address, "--processes=2"]
                children.append(
                    subprocess.Popen(
                        [*command, f"--process={index}", *flags, *of_each[index]],
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


def run_to_the_end(folder, *flags, of_each=((), ())):
    """Return the exit codes of both."""
    with two_processes(folder, *flags, of_each=of_each) as children:
        ended = lambda: all(child.poll() is not None for child in children)  # noqa: E731
        wait_until(ended, folder, "both processes end")
        return [child.returncode for child in children]


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
    with two_processes(first, *flags, stand_still_at=KILLED) as children:
        stand = [first / f"stands{index}" for index in range(2)]
        wait_until(
            lambda: (
                all(path.exists() for path in stand)
                or any(child.poll() is not None for child in children)
            ),
            first,
            f"both processes reach step {KILLED}",
        )
        codes = [child.poll() for child in children]
    assert codes == [None, None], (first / "err0").read_text() + (first / "err1").read_text()
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
