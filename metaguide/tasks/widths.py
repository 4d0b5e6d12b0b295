"""Widths of a served guide's arrays, of which there are few, since each is another program.

A batch is as wide as its longest text: it has a column for each n-gram of it, and each of its
passages a row for each window of the longest. The table of a training has one width; the batches
and supports of a served guide would have hundreds, and a user would wait for each to be compiled.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from metaguide.data.encoding import Table
from metaguide.data.ngrams import MOST
from metaguide.data.tokenizer import PAD
from metaguide.training.program import power_of_two

WINDOWS_AT_ONCE = 1024
"""The most windows of passages that are read at once, which bounds memory."""

LEAST_SUPPORT = 4
"""The smallest number of rows of a support, with padding."""


def in_few_widths(rows: Mapping[str, Any]) -> Table:
    """Pad n-grams and windows with zeros to one of a few widths.

    Args:
        rows: fields of texts or of questions and their passages; fields within a field, such as the
            names of classes, are padded too.

    Returns:
        The same fields, where n-grams have `MOST` columns and the number of windows is a power of
        two.
    """
    columns = {"grams": MOST}
    if (windows := _windows(rows)) is not None:
        columns |= dict.fromkeys(("tokens", "start", "end"), power_of_two(windows))
    return {
        name: in_few_widths(leaf)
        if isinstance(leaf, Mapping)
        else _wider(np.asarray(leaf), columns.get(name))  # those of a saved guide are on the device
        for name, leaf in rows.items()
    }


def by_windows(rows: Mapping[str, np.ndarray]) -> Iterator[tuple[np.ndarray, Table, int]]:
    """Yield rows in parts, those together whose passages have about as many windows.

    So no passage is padded to the windows of a far longer one.

    Args:
        rows: fields of texts or of questions and their passages.

    Yields:
        (numbers of the rows, their fields as of `in_few_widths`, the most rows to read at once).
    """
    rows = in_few_widths(rows)
    count = len(next(iter(rows.values())))
    if _windows(rows) is None:
        yield np.arange(count), rows, WINDOWS_AT_ONCE
        return
    windows = (rows["tokens"][..., 0] != PAD).sum(1)
    padded = np.array([power_of_two(int(own)) for own in windows])
    for width in np.unique(padded).tolist():
        places = np.flatnonzero(padded == width)
        part = {name: leaf[places] for name, leaf in rows.items()}
        # Without windows the axis is left out, as in rows of passages that are all as short.
        of_window = 0 if width == 1 else slice(width)
        part |= {name: part[name][:, of_window] for name in ("tokens", "start", "end")}
        yield places, part, max(1, WINDOWS_AT_ONCE // width)


def in_few_supports(rows: Table, masks: Sequence[str]) -> Table:
    """Pad a support to one of a few numbers of rows and to a few widths.

    Args:
        rows: fields of examples.
        masks: names of the fields that say which rows count; no row of padding does.

    Returns:
        The same fields, with a power of two of rows, `LEAST_SUPPORT` at least.
    """
    count = len(rows[masks[0]])
    room = max(LEAST_SUPPORT, power_of_two(count)) - count
    # The padding is copies of the last row, if there is one, which are valid input.
    mode = "edge" if count else "constant"
    padded = {
        name: np.pad(leaf, [(0, room)] + [(0, 0)] * (leaf.ndim - 1), mode=mode)
        for name, leaf in in_few_widths(rows).items()
    }
    for name in masks:
        padded[name][count:] = False
    return padded


def _windows(rows: Mapping[str, Any]) -> int | None:
    """Return the number of windows of passages; None if there is no axis of them."""
    return rows["tokens"].shape[1] if "tokens" in rows and rows["tokens"].ndim == 3 else None


def _wider(leaf: np.ndarray, columns: int | None) -> np.ndarray:
    """Return an array with this many columns, those behind its own 0; None leaves it as it is."""
    if columns is None or leaf.shape[1] >= columns:
        return leaf
    rest = [(0, 0)] * (leaf.ndim - 2)
    return np.pad(leaf, [(0, 0), (0, columns - leaf.shape[1]), *rest])
