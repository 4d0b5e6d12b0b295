"""Programs that are compiled once, in whichever thread asks first, and before they are needed."""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np


class Once:
    """Runs something a single time, for the thread that asks first; those that ask later wait."""

    def __init__(self):
        self._lock = threading.Lock()
        self._done = False

    def __call__(self, action: Callable[[], Any]) -> None:
        """Run the action, unless one has come to its end before."""
        with self._lock:
            if not self._done:
                action()
                self._done = True


class Program:
    """A jitted function that several threads may call, and one may compile before its first call.

    `jax.jit` alone traces and compiles anew in every thread that calls it before the first one is
    done; here they wait for it.
    """

    def __init__(self, function: Callable[..., Any]):
        self._function = jax.jit(function)
        self._once = Once()

    def compile(self, *args: Any) -> None:
        """Compile for arguments like these."""
        self._once(lambda: self._function.lower(*args).compile())

    def __call__(self, *args: Any) -> Any:
        """Call the function; other shapes than the first ones compile as those of any jit do."""
        self.compile(*args)
        return self._function(*args)

    def compilations(self) -> int:
        """Return for how many kinds of arguments the calls so far have been compiled."""
        return compilations(self._function)


SIZES = (4, 16, 64, 256)
"""Rows that `in_pieces` pads to, so that any number of rows compiles a few programs."""


def padded_size(count: int, sizes: Sequence[int] = SIZES) -> int:
    """Return the smallest of rising sizes that has room for `count`; the largest where none has."""
    return next((size for size in sizes if size >= count), sizes[-1])


def in_pieces(
    call: Callable[[Any], Mapping[str, Any]], rows: Any, most: int = SIZES[-1]
) -> dict[str, np.ndarray]:
    """Call a jitted function on rows, a piece at a time, each padded to one of a few sizes.

    Args:
        call: rows -> a dict of arrays; the leading axis of both is rows, and no row reads another.
        rows: a pytree of numpy arrays, at least one row.
        most: rows of a piece.

    Returns:
        What `call` returns for all rows, on the host.
    """
    count, pieces = len(jax.tree.leaves(rows)[0]), []
    for start in range(0, count, most):
        piece = jax.tree.map(lambda leaf, s=start: np.asarray(leaf[s : s + most]), rows)
        real = min(most, count - start)
        room = min(most, padded_size(real)) - real
        # A copy of the last row is a row that the function can read.
        piece = jax.tree.map(
            lambda leaf, r=room: np.pad(leaf, [(0, r)] + [(0, 0)] * (leaf.ndim - 1), mode="edge"),
            piece,
        )
        found = jax.device_get(call(piece))
        pieces.append({name: leaf[:real] for name, leaf in found.items()})
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}


def compile_all(calls: Iterable[tuple[Any, tuple]]) -> None:
    """Compile jitted functions ahead of these calls of them; no argument is donated.

    Tracing is Python, and compiling or loading from the cache is not: each function is compiled
    in a thread while the next is traced.

    Args:
        calls: (jitted function, arguments); JAX keeps what it compiles with the function.
    """
    # One thread: a program's compilation uses all cores already, and takes a GiB of memory.
    with ThreadPoolExecutor(1) as pool:
        under_way = [pool.submit(function.lower(*args).compile) for function, args in calls]
    for one in under_way:
        one.result()


def compilations(function: Any) -> int:
    """Return for how many kinds of arguments the calls of a jitted function have been compiled."""
    return function._cache_size()


@contextmanager
def in_background(jobs: Iterable[Callable[[], Any]]) -> Iterator[None]:
    """Run jobs one after another in a thread of their own, beside the body of a `with`.

    Meant for compiling what is needed later. A job that fails is left to the body, which meets
    the same error where it needs the job's result; what has not begun when the body ends, or finds
    no `has_room`, is dropped.

    Args:
        jobs: called without arguments, in this order.
    """
    pool = ThreadPoolExecutor(1, thread_name_prefix="beside")
    try:
        for job in jobs:
            pool.submit(lambda job=job: job() if has_room() else None)
        yield
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def has_room() -> bool:
    """Return whether this process holds less than two thirds of the maps that Linux allows it.

    A compiled program holds some hundreds, as long as its function lives; LLVM ends the process
    that has none left.
    """
    most = Path("/proc/sys/vm/max_map_count")
    if not most.exists():
        return True
    with open("/proc/self/maps", encoding="utf-8") as maps:
        return sum(1 for _ in maps) < int(most.read_text()) * 2 // 3
