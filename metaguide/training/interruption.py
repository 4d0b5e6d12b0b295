"""Signals that ask a run to end: it saves at the next step; a second signal ends it at once."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

ENDING = (signal.SIGTERM, signal.SIGINT)
"""The signals of preempted machines and of Ctrl-C."""


class Stopped(BaseException):
    """A signal has ended the run.

    It is not an `Exception`, so code that handles errors and continues does not catch it.

    Attributes:
        number: number of the signal; a process that it ends exits with 128 + number.
    """

    def __init__(self, number: int, where: str = ""):
        super().__init__(where)
        self.number = number


@contextmanager
def stopping_at_once() -> Iterator[None]:
    """Raise `Stopped` when a signal asks the run to end; in the main thread only."""

    def stop(number: int, frame: FrameType | None) -> None:
        del frame
        raise Stopped(number)

    with _handled(stop):
        yield


@contextmanager
def stopping_between_steps() -> Iterator[Callable[[], int | None]]:
    """Hold a signal back until the body asks for it; a second one ends the process at once.

    Yields:
        () -> the number of the received signal, or None if there is none yet. Always None outside
        the main thread, as signals do not reach other threads.
    """
    come: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        del frame
        if come:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        come.append(number)

    with _handled(note):
        yield lambda: come[0] if come else None


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[int, Any] = {number: signal.signal(number, handler) for number in ENDING}
    try:
        yield
    finally:
        for number, old in before.items():
            # None: the handler was not set from Python and cannot be restored.
            signal.signal(number, signal.SIG_DFL if old is None else old)
