"""Flags of XLA. It reads them once, before JAX creates its first device."""

import os
from importlib.metadata import version

KINDS = ("optimised", "fast")
"""Optimised compilation pays off for programs that run long, but not for a few calls."""


def fast() -> str:
    """Return the flags that compile programs for a CPU in a third of the time.

    The programs are not optimised. Their results agree with optimised ones up to rounding.
    """
    flags = "--xla_backend_optimization_level=0"
    # XLA aborts the process on an unknown flag, and jaxlib 0.11 has only fusion emitters.
    if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11):
        flags += " --xla_cpu_use_fusion_emitters=false"
    return flags


def compile_as(kind: str) -> None:
    """Set this process's flags for a kind of compilation, in addition to those the user set."""
    if kind == "fast":
        os.environ["XLA_FLAGS"] = f"{fast()} {os.environ.get('XLA_FLAGS', '')}".strip()
