"""Programs that are compiled once, in whichever thread asks first, and before they are needed."""

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import jax


class Program:
    """A jitted function that several threads may call, and one may compile before its first call.

    `jax.jit` alone traces and compiles anew in every thread that calls it before the first one is
    done; here they wait for it.
    """

    def __init__(self, function: Callable[..., Any], donate_argnums: tuple[int, ...] = ()):
        self._function = jax.jit(function, donate_argnums=donate_argnums)
        self._lock = threading.Lock()
        self._compiled = False

    def compile(self, *args: Any) -> None:
        """Compile for arguments like these; they are neither changed nor donated."""
        with self._lock:
            if not self._compiled:
                # JAX keeps what it compiled with the function, so that the call finds it.
                self._function.lower(*args).compile()
                self._compiled = True

    def __call__(self, *args: Any) -> Any:
        """Call the function; other shapes than the first ones compile as those of any jit do."""
        self.compile(*args)
        return self._function(*args)

    def compilations(self) -> int:
        """Return for how many kinds of arguments the calls so far have been compiled."""
        return self._function._cache_size()  # pyright: ignore[reportAttributeAccessIssue]


@contextmanager
def beside(jobs: Iterable[Callable[[], Any]]) -> Iterator[None]:
    """Run jobs one after another in a thread of their own, beside the body of a `with`.

    Meant for compiling what is needed later. A job that fails is left to the body, which meets
    the same error where it needs the job's result; what has not begun when the body ends is
    dropped.

    Args:
        jobs: called without arguments, in this order.
    """
    pool = ThreadPoolExecutor(1, thread_name_prefix="beside")
    try:
        for job in jobs:
            pool.submit(job)
        yield
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
