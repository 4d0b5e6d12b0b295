"""The command that is running, and several of it side by side on one device, a part for each."""

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.config_files import ConfigError
from metaguide.training.progress import say

LOG = "log.txt"
"""In the folder of a part: what its process printed."""


def command_line() -> str:
    """Return the command that is running, as one would type it."""
    module = getattr(sys.modules["__main__"], "__spec__", None)
    name = module.name if module else Path(sys.argv[0]).name
    return shlex.join(["python", "-m", name, *sys.argv[1:]])


def flags_of(**fields: object) -> tuple[str, ...]:
    """Return the flags that set these fields of the config."""
    return tuple(f"--config.{name}={value}" for name, value in fields.items())


def in_processes(parts: Mapping[str, Sequence[str]], workdir: Path, processes: int) -> None:
    """Run this very command once for each part, a few at a time, and wait for all of them.

    Each process has an equal share of a GPU's memory. What one compiles or reads from files, the
    device does not wait for: another one trains meanwhile.

    Args:
        parts: the flags by which the command does one part alone, by the name of its folder.
        workdir: of the command; what a part prints goes to `WORKDIR/NAME/log.txt`.
        processes: how many run at a time.

    Raises:
        ConfigError: some parts failed; names each with the last line of its log. The others are
            done.
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
            f"{len(failed)} of {len(parts)} parts failed: {'; '.join(failed)}; the whole text is "
            f"in {logs}. Started again, the command goes on with these"
        )


def last_line(path: Path) -> str:
    """Return the last line of a text that is not blank; "" where there is none."""
    lines = path.read_text("utf-8", errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
