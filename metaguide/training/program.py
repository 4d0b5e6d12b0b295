"""Programs that are compiled once, by the first thread that asks, before they are needed."""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np


class Once:
    """Runs an action a single time, in the first thread that asks; later threads wait."""

    def __init__(self):
        self._lock = threading.Lock()
        self._done = False

    def __call__(self, action: Callable[[], Any]) -> None:
        """Run the action, unless one has already completed."""
        with self._lock:
            if not self._done:
                action()
                self._done = True


class Program:
    """A jitted function that several threads may call and that can be compiled in advance.

    `jax.jit` alone traces and compiles again in every thread that calls it before the first one
    finishes; here the other threads wait.
    """

    def __init__(self, function: Callable[..., Any]):
        self._function = jax.jit(function)
        self._once = Once()

    def compile(self, *args: Any) -> None:
        """Compile for arguments like these."""
        self._once(lambda: self._function.lower(*args).compile())

    def __call__(self, *args: Any) -> Any:
        """Call the function; new shapes are compiled as in any jitted function."""
        self.compile(*args)
        return self._function(*args)

    def compilations(self) -> int:
        """Return the number of argument signatures compiled by the calls so far."""
        return compilations(self._function)


SIZES = (4, 16, 64, 256)
"""Numbers of rows that `in_pieces` pads to, so that it compiles only a few programs."""


def padded_size(count: int, sizes: Sequence[int] = SIZES) -> int:
    """Return the smallest of the ascending sizes that is at least `count`, else the largest."""
    return next((size for size in sizes if size >= count), sizes[-1])


def power_of_two(count: int) -> int:
    """Return the smallest power of two that is at least `count`."""
    return 1 << max(0, count - 1).bit_length()


def in_pieces(
    call: Callable[[Any], Mapping[str, Any]],
    rows: Any,
    most: int = SIZES[-1],
    sizes: Sequence[int] = SIZES,
) -> dict[str, np.ndarray]:
    """Call a jitted function on rows, a piece at a time, each padded to one of a few sizes.

    Args:
        call: rows -> a dict of arrays; the leading axis of both is rows, and no row reads another.
        rows: a pytree of numpy arrays, at least one row.
        most: largest number of rows in a piece.
        sizes: numbers of rows that pieces are padded to, if they are less than `most`; ascending.

    Returns:
        The output of `call` for all rows, on the host.
    """
    count, pieces = len(jax.tree.leaves(rows)[0]), []
    for start in range(0, count, most):
        piece = jax.tree.map(lambda leaf, s=start: np.asarray(leaf[s : s + most]), rows)
        real = min(most, count - start)
        room = min(most, padded_size(real, sizes)) - real
        # Pad with copies of the last row, which are valid input.
        piece = jax.tree.map(
            lambda leaf, r=room: np.pad(leaf, [(0, r)] + [(0, 0)] * (leaf.ndim - 1), mode="edge"),
            piece,
        )
        found = jax.device_get(call(piece))
        pieces.append({name: leaf[:real] for name, leaf in found.items()})
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}


def compile_all(calls: Iterable[tuple[Any, tuple]]) -> None:
    """Compile jitted functions ahead of these calls; no argument is donated.

    Tracing runs in Python, but compiling or loading from the cache does not: each function is
    compiled in a thread while the next one is traced.

    Args:
        calls: (jitted function, arguments); JAX caches the compiled program with the function.
    """
    # One thread: compiling one program already uses all cores, and takes a GiB of memory.
    with ThreadPoolExecutor(1) as pool:
        under_way = [pool.submit(function.lower(*args).compile) for function, args in calls]
    for one in under_way:
        one.result()


def compilations(function: Any) -> int:
    """Return the number of argument signatures for which a jitted function has been compiled."""
    return function._cache_size()


@contextmanager
def in_background(jobs: Iterable[Callable[[], Any]]) -> Iterator[None]:
    """Run jobs one after another in a background thread during the body of a `with`.

    Meant for compiling programs that are needed later. A job that fails is ignored; the body meets
    the same error when it needs the job's result. Jobs that have not begun when the body ends, or
    when there is no `has_room`, are dropped.

    Args:
        jobs: functions to call without arguments, in this order.
    """
    pool = ThreadPoolExecutor(1, thread_name_prefix="beside")
    try:
        for job in jobs:
            pool.submit(lambda job=job: job() if has_room() else None)
        yield
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def has_room() -> bool:
    """Return whether this process uses less than two thirds of its memory maps allowed by Linux.

    A compiled program holds some hundreds of them as long as its function lives; LLVM ends a
    process that runs out of them.
    """
    most = Path("/proc/sys/vm/max_map_count")
    if not most.exists():
        return True
    with open("/proc/self/maps", encoding="utf-8") as maps:
        return sum(1 for _ in maps) < int(most.read_text()) * 2 // 3
