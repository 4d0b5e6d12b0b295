"""What a process is set up with before it computes: devices, compiled programs, garbage."""

import gc
import os
from collections.abc import Sequence
from pathlib import Path

import jax

from experiments.command import device_flags
from experiments.config_files import ConfigError
from metaguide.parallel import AUTO, connect, use_cpu_devices


def set_up_devices(argv: Sequence[str]) -> None:
    """Do what a command line asks for of devices and processes, before JAX is asked for one.

    Args:
        argv: the whole command line, which `resolve` has found right.

    Raises:
        ConfigError: if some of the flags that join processes are missing.
        DeviceError: if there are no such devices, or the other processes cannot be joined.
    """
    values = device_flags()
    values.set_gnu_getopt(True)  # a value may stand in the next word
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


def collect_seldom() -> None:
    """Look for garbage in cycles a hundredth as often as Python does by default.

    Tracing makes millions of objects that live on; looking through them is a fifth of its time.
    """
    gc.freeze()
    gc.set_threshold(70_000)


def enable_compilation_cache() -> Path:
    """Keep compiled programs on disk, so that the next start of the same run need not compile.

    Returns:
        The folder: `JAX_COMPILATION_CACHE_DIR`, or `metaguide/xla` in the user's cache folder.
    """
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    given = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    folder = Path(given or Path(home) / "metaguide" / "xla")
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # The defaults skip what compiles in under a second: a start has hundreds of those.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return folder
