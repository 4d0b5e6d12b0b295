"""Outcomes on disk, so that a restarted command does not score anything twice."""

import hashlib
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from metaguide.files import MIB, FileFault, read_arrays, write_arrays
from metaguide.methods import Adaptation
from metaguide.parallel import is_first_process
from metaguide.training.progress import say

MOST = 256 * MIB
"""Maximum bytes of the arrays of one outcome."""

Outcome = Mapping[Adaptation, Mapping[str, np.ndarray]]
"""The return value of `Evaluator.run`."""


def digest(*parts: Any) -> str:
    """Return a name for what an outcome depends on; different inputs have different names.

    Args:
        parts: pytrees of arrays, numbers and texts.
    """
    found = hashlib.sha256()
    leaves, structure = jax.tree.flatten(jax.device_get(parts))
    found.update(str(structure).encode())
    for leaf in leaves:
        array = isinstance(leaf, np.ndarray)
        found.update(f"{leaf.dtype}{leaf.shape}".encode() if array else repr(leaf).encode())
        found.update(np.ascontiguousarray(leaf).tobytes() if array else b";")
    return found.hexdigest()[:32]


def kept(
    path: Path, ways: Collection[Adaptation], score: Callable[[], Outcome]
) -> tuple[Outcome, float]:
    """Return an outcome and the seconds it took; it is read from its file, or scored and saved.

    If the file is damaged, the outcome is scored again and the file replaced.

    Args:
        path: the file, named after everything that the outcome depends on.
        ways: the adaptations whose outcomes it holds.
        score: function that computes the outcome if there is no such file.
    """
    try:
        found: dict[Adaptation, dict[str, np.ndarray]] = defaultdict(dict)
        named = {(way.adapts, way.by): way for way in ways}
        arrays = read_arrays(path, MOST, of=path.stem)
        seconds = float(arrays.pop("seconds"))
        for name, array in arrays.items():
            adapts, by, field = name.split("/")
            found[named[adapts, by]][field] = array
        if set(found) != set(ways):
            raise FileFault("some of it is lost")
        return found, seconds
    except FileNotFoundError:
        pass
    except (FileFault, LookupError, TypeError, ValueError) as error:
        say(f"{path}: scored again ({error})")
    begun = time.perf_counter()
    outcome = score()
    seconds = time.perf_counter() - begun
    if is_first_process():
        arrays = {
            f"{way.adapts}/{way.by}/{field}": array
            for way, fields in outcome.items()
            for field, array in fields.items()
        }
        write_arrays(path, {**arrays, "seconds": np.array(seconds)}, of=path.stem)
    return outcome, seconds
