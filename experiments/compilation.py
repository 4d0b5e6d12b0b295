"""Flags of XLA, which it reads once, before JAX has made its first device."""

import os
from importlib.metadata import version

KINDS = ("optimised", "fast")
"""Programs that run long are worth their compilation; those that run a few times are not."""


def fast() -> str:
    """Return the flags by which a CPU's programs are compiled in a third of the time.

    They are not optimised, and agree with those that are up to rounding.
    """
    flags = "--xla_backend_optimization_level=0"
    # XLA ends the process over a flag that it does not know; jaxlib 0.11 has fusion emitters only.
    if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11):
        flags += " --xla_cpu_use_fusion_emitters=false"
    return flags


def compile_as(kind: str) -> None:
    """Set the flags of this process for a kind of compilation, beside those that the user set."""
    if kind == "fast":
        os.environ["XLA_FLAGS"] = f"{fast()} {os.environ.get('XLA_FLAGS', '')}".strip()
