"""Setup of a process before it computes: devices, compilation cache, garbage collection."""

import gc
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import jax

from experiments.command import device_flags
from experiments.config_files import ConfigError
from metaguide.parallel import AUTO, connect, use_cpu_devices


def set_up_devices(argv: Sequence[str]) -> None:
    """Set up devices and processes as the command line asks, before JAX initialises them.

    Args:
        argv: the complete command line, already checked by `resolve`.

    Raises:
        ConfigError: some of the flags that join processes are missing.
        DeviceError: there are no such devices, or the other processes cannot be joined.
    """
    values = device_flags()
    values.set_gnu_getopt(True)  # a value may be the next argument
    values(argv, known_only=True)
    if values.cpu_devices is not None:
        use_cpu_devices(values.cpu_devices)
    coordinator, processes, index = values.coordinator, values.processes, values.process
    numbered = processes is not None and index is not None
    if coordinator == AUTO or (coordinator and numbered):
        connect(coordinator, processes or 0, -1 if index is None else index)
    elif coordinator or processes is not None or index is not None:
        raise ConfigError(
            "give all of --coordinator=HOST:PORT --processes=N --process=I, "
            f"or --coordinator={AUTO} alone"
        )


def warn_in_a_line() -> None:
    """Make Python show a warning to the user as one line, without the code that gave it."""
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"


def collect_seldom() -> None:
    """Make Python collect garbage a hundred times less often than by default.

    Tracing creates millions of long-lived objects; scanning them takes a fifth of its time.
    """
    gc.freeze()
    gc.set_threshold(70_000)


def enable_compilation_cache() -> Path:
    """Keep compiled programs on disk, so that the next start of the same run skips compilation.

    Returns:
        The folder: `JAX_COMPILATION_CACHE_DIR`, or `metaguide/xla` in the user's cache folder.
    """
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    given = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    folder = Path(given or Path(home) / "metaguide" / "xla")
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # The defaults do not store programs that compile in under a second; a start has hundreds.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return folder
