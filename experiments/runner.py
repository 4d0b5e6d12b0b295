"""Running of a module under its command line's settings, with one-line errors for the user."""

import errno
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from ml_collections.config_dict import FrozenConfigDict

from experiments.command import asks_for_help, refuse, resolve
from experiments.compilation import compile_as
from experiments.config_files import ConfigError
from experiments.help_text import describe
from experiments.process_setup import (
    collect_seldom,
    enable_compilation_cache,
    set_up_devices,
    warn_in_a_line,
)
from metaguide.data.catalogue import CatalogueError
from metaguide.data.episodes import EpisodeError
from metaguide.data.mnist import MnistError
from metaguide.data.omniglot import OmniglotError
from metaguide.data.tokenizer import TokenizerError
from metaguide.evaluation.results import ResultsError
from metaguide.files import FolderHeld
from metaguide.optimizers import StoredError
from metaguide.parallel import DeviceError, check_agreed
from metaguide.training.checkpoint import CheckpointError
from metaguide.training.interruption import Stopped, stopping_at_once
from metaguide.training.loop import TrainingDiverged

USER_ERRORS = (
    ConfigError,
    CatalogueError,
    CheckpointError,
    DeviceError,
    EpisodeError,
    FolderHeld,
    MnistError,
    OmniglotError,
    ResultsError,
    StoredError,
    TokenizerError,
    TrainingDiverged,
)
"""Errors whose message tells the user what to fix."""

FLAGS = {
    EpisodeError: "the config sets them, see --help",
    FolderHeld: "such as --workdir=FOLDER",
}
"""For errors of the library that name an argument: the flag that sets it."""

OF_THE_SYSTEM = frozenset(
    getattr(errno, name)
    for name in ("ENOSPC", "EDQUOT", "EROFS", "EACCES", "EPERM", "EISDIR", "ENOTDIR", "EEXIST")
)
"""Errors that concern a disk or its folders rather than the program."""


def run(
    main: Callable[[FrozenConfigDict, Path], None],
    *,
    default: str,
    workdir: str,
    argv: Sequence[str] | None = None,
) -> None:
    """Run an experiment module: `main(config, workdir)` under the command line's settings.

    An error that the user can fix (`USER_ERRORS`) is printed as one line on stderr, with exit code
    2. Any other error keeps its traceback.

    Args:
        main: called with the resolved config and the work folder.
        default: config file to use if `--config` is not given; see `find_config`.
        workdir: work folder to use if `--workdir` is not given.
        argv: the command line, program name first; by default that of the process.
    """
    own = argv is None
    if own:
        collect_seldom()
        warn_in_a_line()
    argv = list(sys.argv if argv is None else argv)
    try:
        if asks_for_help(argv):
            print(describe(argv, default=default, workdir=workdir))
            return
        config, folder = resolve(argv, default=default, workdir=workdir, late=True)
        if own:
            compile_as(config.get("compilation", "optimised"))
        set_up_devices(argv)
        enable_compilation_cache()
        check_agreed(
            (config.to_json_best_effort(), str(folder)),
            "the processes have different configs or work folders; start all of them with the same "
            "command, except for --process",
        )
        with stopping_at_once():
            main(config, folder)
        check_agreed("done", "")  # the first process may still be writing files
    except USER_ERRORS as error:
        refuse(error, FLAGS.get(type(error), ""))
    except OSError as error:
        if error.errno not in OF_THE_SYSTEM:
            raise
        print(f"error: {_of_the_system(error)}", file=sys.stderr)
        sys.exit(2)
    except (Stopped, KeyboardInterrupt) as stop:
        number = stop.number if isinstance(stop, Stopped) else signal.SIGINT
        said = f"{stop}; " if str(stop) else ""
        where = f"{said}the same command resumes from the last checkpoint"
        print(f"stopped by {signal.Signals(number).name}: {where}", file=sys.stderr)
        sys.exit(128 + number)


def _of_the_system(error: OSError) -> str:
    """Return one line on what the system refused and where, and that nothing is lost."""
    where = " -> ".join(str(n) for n in (error.filename, error.filename2) if n is not None)
    return (
        f"{where + ': ' if where else ''}{(error.strerror or str(error)).lower()}; free space, "
        "grant access, move that file away or give another --workdir. What the run has saved is "
        "intact, and the same command resumes from there"
    )
