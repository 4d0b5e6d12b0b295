"""What a command does before anything heavy is imported: huge pages, help, and its mistakes."""

import os
import platform
import re
import sys

from experiments.modules import COMMANDS


def begin() -> None:
    """Begin a command, where the process is `python -m MODULE` with a module of `COMMANDS`.

    The package's import calls it, which comes before that of the module: a wrong command line and
    `--help` are answered in the time that takes, and the process starts anew while it is small. It
    does nothing in every other process that imports the package.
    """
    module = module_run(sys.argv, sys.orig_argv)
    if module not in COMMANDS:
        return
    use_huge_pages()
    from experiments.command import answer

    answer(module, COMMANDS[module])


def module_run(argv: list[str], orig_argv: list[str]) -> str:
    """Return the module that `python -m` is about to run, "" where it is not about to.

    Args:
        argv: of the process; its first word is "-m" while Python looks for the module.
        orig_argv: of the process, with the interpreter's own words.
    """
    if argv[:1] != ["-m"]:
        return ""
    word = orig_argv[len(orig_argv) - len(argv)]  # the one before those for the module
    return re.sub("^-[^-]*?m", "", word)


def use_huge_pages() -> None:
    """Start the running command anew with memory in huge pages, where glibc knows how.

    A step allocates and frees hundreds of MiB; in pages of 4 KiB the kernel's work for them is a
    fifth to a quarter of the step on a CPU. At most four arenas, since each keeps what its threads
    have freed. glibc reads the settings at start only.
    """
    known = platform.libc_ver()[0] == "glibc"
    if known and "GLIBC_TUNABLES" not in os.environ:
        tuned = {**os.environ, "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.arena_max=4"}
        os.execve(sys.executable, sys.orig_argv, tuned)
