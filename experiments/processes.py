"""The running command, and its parts run side by side as processes on one device."""

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.config_files import ConfigError
from metaguide.training.progress import say

LOG = "log.txt"
"""In the folder of a part: the output of its process."""


def command_line() -> str:
    """Return the running command, as one would type it."""
    module = getattr(sys.modules["__main__"], "__spec__", None)
    name = module.name if module else Path(sys.argv[0]).name
    return shlex.join(["python", "-m", name, *sys.argv[1:]])


def flags_of(**fields: object) -> tuple[str, ...]:
    """Return the flags that set these fields of the config."""
    return tuple(f"--config.{name}={value}" for name, value in fields.items())


def in_processes(parts: Mapping[str, Sequence[str]], workdir: Path, processes: int) -> None:
    """Run this same command once for each part, a few at a time, and wait for all of them.

    Each process has an equal share of a GPU's memory. While one compiles or reads files, another
    one trains, so the device does not wait.

    Args:
        parts: for each folder name, the flags with which the command runs that part alone.
        workdir: work folder of the command; the output of a part goes to `WORKDIR/NAME/log.txt`.
        processes: number of processes that run at a time.

    Raises:
        ConfigError: some parts failed; the message names each with the last line of its log. The
            others are done.
    """
    main = sys.modules["__main__"].__spec__
    command = [sys.executable, *(["-m", main.name] if main else [sys.argv[0]]), *sys.argv[1:]]
    share = f"{0.9 / processes:.3f}"
    environment = {"XLA_PYTHON_CLIENT_MEM_FRACTION": share, **os.environ}
    waiting, running, failed = dict(parts), {}, []
    try:
        while waiting or running:
            while waiting and len(running) < processes:
                name, flags = next(iter(waiting.items()))
                del waiting[name]
                folder = workdir / name
                folder.mkdir(parents=True, exist_ok=True)
                with open(folder / LOG, "ab") as log:
                    running[name] = subprocess.Popen(
                        [*command, *flags, "--config.processes=1", f"--workdir={workdir}"],
                        env=environment,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                    )
            for name, process in list(running.items()):
                try:
                    code = process.wait(timeout=0.2 / len(running))
                except subprocess.TimeoutExpired:
                    continue
                del running[name]
                last = last_line(workdir / name / LOG)
                say(f"{name}: {'done' if code == 0 else f'ended with {code}'}, {last}")
                if code:
                    failed.append(f"{name} ({last})")
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()
    if failed:
        logs = shlex.quote(str(workdir / "*" / "*" / LOG))
        raise ConfigError(
            f"{len(failed)} of {len(parts)} parts failed: {'; '.join(failed)}; the full logs are "
            f"in {logs}. Run the command again to retry these"
        )


def last_line(path: Path) -> str:
    """Return the last non-blank line of a text file; "" if there is none."""
    lines = path.read_text("utf-8", errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
