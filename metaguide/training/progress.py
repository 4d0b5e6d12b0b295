"""Progress of long work: a bar with the time left, or an occasional line."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from metaguide.parallel import is_first_process

PLAIN_LINE_SECONDS = 10.0
"""Seconds between two lines if there is no terminal to draw a bar on."""

PATIENCE_SECONDS = 3.0
"""Seconds that a call takes before `patience` draws a bar."""


def say(text: str) -> None:
    """Print one line unwrapped; if there are several processes, only the first one prints."""
    if not is_first_process():
        return
    Console().print(text, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def progress(
    name: str, total: int, unit: str = "step", start: int = 0
) -> Iterator[Callable[[int, str], None]]:
    """Show the progress of `name`: a bar on a terminal, elsewhere a line every ten seconds.

    The time left is estimated from the end of the first call, which includes compilation, and is
    shown from the second call on.

    Args:
        name: name of the work.
        total: total number of units.
        unit: name of the unit.
        start: number of units done before.

    Yields:
        (units done, note) -> None; the note is shown next to the bar.
    """
    console = Console(quiet=not is_first_process())
    if console.is_terminal and not console.is_dumb_terminal:
        bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            transient=True,
        )
        task = bar.add_task(name, total=total, completed=start, note="")
        with bar:
            yield lambda done, note: bar.update(task, completed=done, note=note)
        return

    told, first = time.perf_counter(), (0.0, total)

    def tell(done: int, note: str) -> None:
        nonlocal told, first
        now = time.perf_counter()
        first = min(first, (now, done), key=lambda one: one[1])
        if now - told < PLAIN_LINE_SECONDS or done == total:
            return
        told, (begun, before) = now, first
        said = [f"{unit} {done} of {total}"]
        if done > before:
            said.append(f"{math.ceil((now - begun) / (done - before) * (total - done))} s left")
        say(f"{name}: {', '.join([*said, note] if note else said)}")

    yield tell


@contextmanager
def patience(name: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar on standard error, if that is a terminal, once the work has taken long.

    Args:
        name: name of the work.
        total: total number of units.

    Yields:
        (units done) -> None.
    """
    console = Console(stderr=True, quiet=not is_first_process())
    if not console.is_terminal or console.is_dumb_terminal:
        yield lambda done: None
        return
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    bar = Progress(*columns, TimeRemainingColumn(), console=console, transient=True)
    task, begun, shown = bar.add_task(name, total=total), time.perf_counter(), False

    def tell(done: int) -> None:
        nonlocal shown
        if not shown and done < total and time.perf_counter() - begun > PATIENCE_SECONDS:
            bar.start()
            shown = True
        bar.update(task, completed=done)

    try:
        yield tell
    finally:
        if shown:
            bar.stop()
