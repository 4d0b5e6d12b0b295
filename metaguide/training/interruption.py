"""Signals that ask a run to end: it saves at the next step, and a second one ends it at once."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

ENDING = (signal.SIGTERM, signal.SIGINT)
"""What machines that are taken back send, and Ctrl-C."""


class Stopped(BaseException):
    """A signal has ended the run.

    No `Exception`: what handles errors and goes on does not catch it.

    Attributes:
        number: of the signal; a process that it ends exits with 128 + number.
    """

    def __init__(self, number: int, where: str = ""):
        super().__init__(where)
        self.number = number


@contextmanager
def stopping_at_once() -> Iterator[None]:
    """Raise `Stopped` where a signal asks the run to end, in the main thread alone."""

    def stop(number: int, frame: FrameType | None) -> None:
        del frame
        raise Stopped(number)

    with _handled(stop):
        yield


@contextmanager
def stopping_between_steps() -> Iterator[Callable[[], int | None]]:
    """Hold a signal back until the body asks for it; a second one ends the process at once.

    Yields:
        () -> the number of the signal that has come; None before, and in any thread but the main
        one, which signals do not reach.
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
            # None: it was set by what is not Python, and cannot be put back.
            signal.signal(number, signal.SIG_DFL if old is None else old)
