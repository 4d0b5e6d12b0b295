import os
import signal
import subprocess
import sys
import textwrap
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import runner
from metaguide.objectives.weighting import fixed
from metaguide.training import checkpoint
from metaguide.training.interruption import Stopped, stopping_at_once, stopping_between_steps
from metaguide.training.loop import Schedule, train
from metaguide.training.step import init_state, make_step

STEPS = 9
WEIGHTS, OPTIMIZER = fixed({"near": 1.0}), optax.adam(0.1)


def noisy(meta, data, key, progress):
    return jnp.mean((jax.random.choice(key, data, (4,)) - meta["w"]) ** 2), {}


def go(workdir, number=None, at=0):
    """Train; at the line of step `at` the process is asked to end."""

    def on_log(done, metrics):
        if done == at and number is not None:
            os.kill(os.getpid(), number)

    gradients = {"near": jax.value_and_grad(noisy, has_aux=True)}
    return train(
        make_step(gradients, WEIGHTS, OPTIMIZER, STEPS),
        init_state({"w": jnp.ones(4)}, WEIGHTS, OPTIMIZER, jax.random.key(5)),
        {"near": jnp.arange(16.0)},
        Schedule(STEPS, 2, 100),
        workdir,
        name="pretrain",
        on_log=on_log,
    )


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_asked_to_end_saves_and_goes_on_to_the_same_end(tmp_path, number):
    """Faults: steps since the last checkpoint are lost; what was saved is not what the step left;
    the process's own handlers are not put back."""
    before = [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)]
    whole = go(tmp_path / "whole")
    with pytest.raises(Stopped, match=r"pretrain: step \d is saved in .*checkpoints") as stopped:
        go(tmp_path / "broken", number, at=4)
    assert stopped.value.number == number
    saved = checkpoint.latest(tmp_path / "broken" / checkpoint.FOLDER)
    assert saved is not None and 4 <= saved < STEPS
    resumed = go(tmp_path / "broken")
    np.testing.assert_array_equal(whole.params["meta"]["w"], resumed.params["meta"]["w"])
    assert before == [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)]


@pytest.mark.slow
def test_a_second_signal_ends_at_once():
    """Fault: a run that takes long to come to its next step cannot be ended."""
    code = """
        import os, signal, time
        from metaguide.training.interruption import stopping_between_steps
        with stopping_between_steps() as asked:
            os.kill(os.getpid(), signal.SIGTERM)
            print(int(asked()), flush=True)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
    """
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=50
    )
    assert (ran.returncode, ran.stdout.split()) == (-signal.SIGTERM, [str(int(signal.SIGTERM))])


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["TERM", "INT"]
)
def test_a_command_that_a_signal_ends_says_so_and_exits_with_its_code(
    tmp_path, capsys, number, code
):
    """Faults: a traceback, no word, or the exit code of success."""

    def main(config, workdir):
        os.kill(os.getpid(), number)

    argv = ["x", f"--workdir={tmp_path}"]
    with pytest.raises(SystemExit) as ended:
        runner.run(main, default="experiments/configs/sinusoid.py", workdir="", argv=argv)
    assert ended.value.code == code
    said = capsys.readouterr().err
    assert said.startswith(f"stopped by {signal.Signals(number).name}: the same command resumes")


def test_other_threads_are_left_alone():
    """Fault: a handler is set where Python allows none, and a thread cannot train."""
    seen = []

    def body():
        with stopping_at_once(), stopping_between_steps() as asked:
            seen.append(asked())

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert seen == [None]
