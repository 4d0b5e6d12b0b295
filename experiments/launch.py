"""What a command does before any heavy import: huge pages, `--help` and usage errors."""

import os
import platform
import re
import sys

from experiments.modules import COMMANDS


def begin() -> None:
    """Begin a command, if the process is `python -m MODULE` with a module of `COMMANDS`.

    Importing the package calls this function, before the module itself is imported. An invalid
    command line and `--help` are therefore answered quickly, and the process restarts while it is
    small. In any other process that imports the package this function does nothing.
    """
    module = module_run(sys.argv, sys.orig_argv)
    if module not in COMMANDS:
        return
    use_huge_pages()
    from experiments.command import answer

    answer(module, COMMANDS[module])


def module_run(argv: list[str], orig_argv: list[str]) -> str:
    """Return the module that `python -m` is about to run, or "" if there is none.

    Args:
        argv: arguments of the process; the first is "-m" while Python looks for the module.
        orig_argv: arguments of the process, including those of the interpreter.
    """
    if argv[:1] != ["-m"]:
        return ""
    word = orig_argv[len(orig_argv) - len(argv)]  # the one before the module's own arguments
    return re.sub("^-[^-]*?m", "", word)


def use_huge_pages() -> None:
    """Restart the running command with huge pages for memory, if glibc supports them.

    A step allocates and frees hundreds of MiB. With pages of 4 KiB the kernel's work for them takes
    a fifth to a quarter of a step on a CPU. There are at most four arenas, since each keeps what
    its threads have freed. glibc reads these settings only at start.
    """
    known = platform.libc_ver()[0] == "glibc"
    if known and "GLIBC_TUNABLES" not in os.environ:
        tuned = {**os.environ, "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.arena_max=4"}
        os.execve(sys.executable, sys.orig_argv, tuned)
