"""The loop around a compiled step: resuming, progress, metrics, checkpoints, NaN detection."""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metaguide.files import MIB, FileFault, atomic_write, held, read_regular
from metaguide.parallel import ONE_FOLDER, check_agreed, is_first_process
from metaguide.training import checkpoint
from metaguide.training.interruption import Stopped, stopping_between_steps
from metaguide.training.progress import progress, say
from metaguide.training.state import TrainState
from metaguide.training.step import Step
from metaguide.types import Metrics

METRICS = "metrics.jsonl"
"""One line per logging of metrics: `{"step": ..., name: mean since the previous line}`."""

TIMES = "times.jsonl"
"""One line per start of the stage: first and last step, seconds, steps per second."""


MOST = 1024 * MIB
"""Limit on the bytes of metrics that are read."""


class TrainingDiverged(ValueError):
    """A loss or the gradient is not finite."""


class Schedule(NamedTuple):
    """How long a stage trains, and how often it logs and saves.

    Attributes:
        steps: total number of steps of the stage.
        log_every: number of steps between two lines of metrics.
        checkpoint_every: number of steps between two checkpoints.
        steps_per_call: number of steps in one call of the step, as in `make_step`; it divides the
            others.
    """

    steps: int
    log_every: int
    checkpoint_every: int
    steps_per_call: int = 1


def train(
    step: Step,
    state: TrainState,
    data: Mapping[str, Any],
    schedule: Schedule,
    workdir: Path | Sequence[Path],
    *,
    name: str,
    hint: str = "lower its learning rate",
    about: checkpoint.About | Sequence[checkpoint.About] = MappingProxyType({}),
    on_log: Callable[[int, Mapping[str, float]], None] | None = None,
    on_checkpoint: Callable[[TrainState], None] | None = None,
) -> TrainState:
    """Take the steps of a schedule, resuming from the newest checkpoint in `workdir`.

    If there are several processes, all have to call it with a `workdir` that all see; the first
    one logs.

    Metrics are logged as means since the previous line, at each multiple of `log_every` and of
    `checkpoint_every` and at the end, so a resumed run writes the same lines as an unbroken one.
    They are also logged when a signal ends the run (see `interruption`).

    Args:
        step: the step from `make_step`; donates its state.
        state: the initial state if `workdir` has no checkpoint.
        data: device arrays keyed by objective, an argument of each step.
        schedule: the number of steps, and how often metrics and states are saved.
        workdir: the stage's own folder; gets checkpoints, `metrics.jsonl`, `times.jsonl` and
            TensorBoard events. For parallel trainings, one folder each, in the order of the state's
            leading axis; each is identical to that of a single training and can be resumed as one.
        name: the stage's name in messages.
        hint: what to do if training diverges.
        about: the checkpoints' description of the training, such as its learner, seed and config;
            checkpoints of another training are rejected. For parallel trainings, one each.
        on_log: called with the step and the metrics of each line.
        on_checkpoint: called with each state just before it is saved; called again with the same
            state if the run is killed in between.

    Returns:
        The state after the last step.

    Raises:
        Stopped: a signal asked the process to end; the state was saved.
        TrainingDiverged: a loss or the gradient is not finite; the last good checkpoint is kept.
        FolderHeld: another process works in `workdir`.
        CheckpointError: the checkpoint in `workdir` is damaged, or of another model or training,
            or one cannot be written.
        DeviceError: processes see different checkpoints in `workdir`.
        ValueError: the steps between lines or checkpoints are not a multiple of `steps_per_call`.
    """
    _check_schedule(schedule)
    steps, log_every, checkpoint_every, steps_per_call = schedule
    alone = isinstance(workdir, Path)
    workdirs = [workdir] if alone else list(workdir)
    abouts = [about] * len(workdirs) if isinstance(about, Mapping) else list(about)
    folders = [one / checkpoint.FOLDER for one in workdirs]
    folder = folders[0]

    with ExitStack() as stack:
        for one in workdirs:
            if is_first_process():
                stack.enter_context(held(one))
        state = _resumed(state, folders, abouts, alone)
        start = int(np.ravel(jax.device_get(state.step))[0])
        if start % steps_per_call:
            raise ValueError(
                f"{folder}: step {start} is not a multiple of {steps_per_call} steps a call"
            )
        if start >= steps:
            say(f"{name}: already finished, {start} of {steps} steps in {folder}")
            return state
        if start:
            say(f"{name}: going on from step {start} of {steps}, {folder}")
        clock = _Clock(start, steps_per_call)
        for one in workdirs:
            stack.enter_context(_times(one, start, clock.reached))
        logs = [stack.enter_context(_log(one, start)) for one in workdirs]
        lines = _Lines(logs, clock, partial(_check_finite, name=name, folder=folder, hint=hint))
        show = stack.enter_context(progress(name, steps, start=start))
        asked = stack.enter_context(stopping_between_steps())

        def flush(window: Window | None) -> None:
            if window is not None and window.metrics:
                lines.write(window)
                if on_log is not None:
                    on_log(window.last, lines.means)

        def keep() -> None:
            if on_checkpoint is not None:
                on_checkpoint(state)
            for one, part, of in zip(folders, _parts(state, alone), abouts, strict=True):
                checkpoint.save(one, part, of)

        window: list[Metrics] = []
        waiting: Window | None = None
        for done in range(start + steps_per_call, steps + 1, steps_per_call):
            previous, clock.done = window[-1:], done
            state, metrics = step(state, data)
            window.append(metrics)
            # Read older metrics only now: the device already has its next step.
            jax.block_until_ready(previous)
            flush(waiting)
            waiting = None
            clock.tick(metrics)
            if done % checkpoint_every == 0 or done == steps:
                flush(Window(done, window))
                keep()
                window = []
            elif done % log_every == 0:
                waiting, window = Window(done, window), []
            show(done, f"loss {lines.means['loss']:.4g}" if lines.means else "")
            if (number := asked()) is not None and done < steps:
                if jax.process_count() > 1:  # the others may not have been asked, and save no more
                    raise Stopped(number, f"{name}: the last checkpoint in {folder} is kept")
                flush(waiting)
                flush(Window(done, window))
                if done % checkpoint_every:
                    keep()
                raise Stopped(number, f"{name}: step {done} is saved in {folder}")

    took, seconds = steps - start, time.perf_counter() - clock.begun
    rate = f" ({clock.rate():.1f} steps/s after the first)" if took > 1 else ""
    loss = f"loss {lines.means['loss']:.4g}"
    say(f"{name}: {took} step{'s' * (took > 1)} in {seconds:.1f} s{rate}, {loss}")
    return state


class Window(NamedTuple):
    """The metrics of some steps on end, on the devices.

    Attributes:
        last: number of the last of these steps.
        metrics: metrics of each call of the step.
    """

    last: int
    metrics: Sequence[Metrics]


class _Clock:
    """How far a run has come, and how fast; the first call, which compiles, does not count."""

    def __init__(self, start: int, steps_per_call: int) -> None:
        self.begun = self.first_done = time.perf_counter()
        self.start, self.done, self.steps_per_call = start, start, steps_per_call

    def tick(self, metrics: Metrics) -> None:
        """Wait for the end of the first call, given the metrics of a call."""
        if self.done == self.start + self.steps_per_call:
            jax.block_until_ready(metrics)
            self.first_done = time.perf_counter()

    def rate(self) -> float:
        """Return the steps per second."""
        counted = max(self.done - self.start - self.steps_per_call, 0)
        return counted / max(time.perf_counter() - self.first_done, 1e-9)

    def reached(self) -> tuple[int, float, float]:
        """Return (steps done, seconds of the first call, steps per second)."""
        return self.done, self.first_done - self.begun, self.rate()


class _Lines:
    """The lines of metrics of a run: checked, and written to the log of each training."""

    def __init__(
        self,
        logs: Sequence[Callable[[int, Mapping[str, float], float], None]],
        clock: _Clock,
        check: Callable[[Mapping[str, np.ndarray], int], None],
    ) -> None:
        self.logs, self.clock, self.check = logs, clock, check
        self.means: dict[str, float] = {}

    def write(self, window: Window) -> None:
        """Write the means over a window, for each training; `means` are those over all of them."""
        by_name = _joined(jax.device_get(window.metrics), len(self.logs))
        self.check(by_name, window.last)
        for number, write in enumerate(self.logs):
            values = {key: float(by_name[key][:, number].mean()) for key in sorted(by_name)}
            write(window.last, values, self.clock.rate())
        self.means = {key: float(by_name[key].mean()) for key in sorted(by_name)}


def _check_schedule(schedule: Schedule) -> None:
    """Raise a ValueError if the steps between lines or checkpoints are not whole calls."""
    for what in ("log_every", "checkpoint_every"):
        count = getattr(schedule, what)
        if count < 1 or count % schedule.steps_per_call:
            raise ValueError(
                f"{what} is {count}: make it a multiple of {schedule.steps_per_call} steps a call"
            )


def _resumed(
    state: TrainState, folders: Sequence[Path], abouts: Sequence[checkpoint.About], alone: bool
) -> TrainState:
    """Return the state of the newest step for which all trainings have a checkpoint, if any."""
    # If a run was killed while saving, some of its trainings are one checkpoint behind the others.
    found = [checkpoint.latest(one) for one in folders]
    newest = None if None in found else min(step for step in found if step is not None)
    check_agreed(
        newest,
        f"{folders[0]}: its newest checkpoint is {newest} here, and not so in all processes; "
        f"{ONE_FOLDER}",
    )
    if newest is None:
        return state
    parts = zip(folders, _parts(state, alone), abouts, strict=True)
    return _whole([checkpoint.restore(one, part, newest, of) for one, part, of in parts], alone)


@contextmanager
def _times(
    workdir: Path, start: int, reached: Callable[[], tuple[int, float, float]]
) -> Iterator[None]:
    """Add this start of the stage to `times.jsonl` when it ends, for whatever reason."""
    begun, path = time.perf_counter(), workdir / TIMES
    if path.exists() and not path.is_file():  # or all would be trained before the error
        raise checkpoint.CheckpointError(f"{path}: it is no regular file; move it away")
    try:
        yield
    finally:
        done, first, rate = reached()
        row = {
            "from": start,
            "to": done,
            "seconds": round(time.perf_counter() - begun, 3),
            "first_step_seconds": round(first, 3),
            "steps_per_second": round(rate, 3),
        }
        if is_first_process():
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


def _parts(state: TrainState, alone: bool) -> list[TrainState]:
    """Return the states of parallel trainings, each like that of a single training."""
    if alone:
        return [state]
    return [jax.tree.map(lambda leaf: leaf[i], state) for i in range(len(state.step))]


def _whole(states: Sequence[TrainState], alone: bool) -> TrainState:
    """Return one state of several trainings; inverse of `_parts`."""
    return states[0] if alone else jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)


def _joined(metrics: Sequence[Mapping[str, np.ndarray]], trainings: int) -> dict[str, np.ndarray]:
    """Return each metric [steps, trainings], from calls of one or several steps."""
    return {
        key: np.concatenate([np.reshape(one[key], (-1, trainings)) for one in metrics])
        for key in metrics[0]
    }


def _check_finite(
    metrics: Mapping[str, np.ndarray], last: int, name: str, folder: Path, hint: str
) -> None:
    """Raise a TrainingDiverged at the first non-finite step up to `last`."""
    losses = sorted(key for key in metrics if key.endswith("/loss"))
    wrong = {key: ~np.isfinite(metrics[key]) for key in (*losses, "loss", "gradient_norm")}
    steps = np.any(list(wrong.values()), axis=(0, 2))
    if not steps.any():
        return
    place = int(steps.argmax())
    culprits = [key.removesuffix("/loss") for key in losses if wrong[key][place].any()]
    if culprits:
        what = "the loss of " + ", ".join(culprits)
    else:
        what = "the weighted sum of the losses" if wrong["loss"][place].any() else "the gradient"
    if len(wrong["loss"][place]) > 1:
        number = int(np.any([one[place] for one in wrong.values()], axis=0).argmax())
        what += f" of training {number + 1} of {len(wrong['loss'][place])}"
    done, kept = last - len(steps) + 1 + place, checkpoint.latest(folder)
    good = "there is no checkpoint yet" if kept is None else f"last good one: {folder / str(kept)}"
    if done == 1:
        hint = f"look for NaN in the data and for labels that are no class, or {hint}"
    raise TrainingDiverged(f"{name}: {what} is not finite at step {done}; {good}; {hint}")


def metrics_in(workdir: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics of a stage, up to the first incomplete one.

    Args:
        workdir: the stage's work folder.

    Raises:
        CheckpointError: the file cannot be read.
    """
    path = workdir / METRICS
    try:
        lines = read_regular(path, MOST).splitlines()
    except FileNotFoundError:
        return []
    except FileFault as error:
        raise checkpoint.CheckpointError(f"{path}: {error}; move it away") from error
    rows = []
    for line in lines:
        try:
            row = json.loads(line)
            known = type(row["step"]) is int and "loss" in row
            if not known or not all(type(value) in (int, float) for value in row.values()):
                break
        # A killed run may leave half a line, and an editor may leave anything.
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
            break
        if rows and row["step"] <= rows[-1]["step"]:
            break
        rows.append(row)
    return rows


@contextmanager
def _log(workdir: Path, start: int) -> Iterator[Callable[[int, Mapping[str, float], float], None]]:
    """Open the logs of a stage and drop their entries after the step `start`.

    If there are several processes, the first one writes.
    """
    if not is_first_process():
        yield lambda done, metrics, rate: None
        return
    path = workdir / METRICS
    kept = [row for row in metrics_in(workdir) if row["step"] <= start]
    with atomic_write(path) as file:
        file.write("".join(json.dumps(row) + "\n" for row in kept).encode())

    from tensorboardX import SummaryWriter  # takes a while to import

    events = SummaryWriter(str(workdir), purge_step=start + 1 if start else None)
    try:
        with open(path, "a", encoding="utf-8") as file:

            def write(done: int, metrics: Mapping[str, float], rate: float) -> None:
                file.write(json.dumps({"step": done, **metrics}) + "\n")
                file.flush()
                for key, value in metrics.items():
                    events.add_scalar(key, value, done)
                if rate > 0:
                    events.add_scalar("steps_per_second", rate, done)

            yield write
    finally:
        events.close()
