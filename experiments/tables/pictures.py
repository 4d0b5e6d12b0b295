"""Pictures that go with tables: learning curves, descents, and fits of sine waves."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from metaguide.evaluation.metrics import mean_halves
from metaguide.files import atomic_write
from metaguide.training.loop import metrics_in

COLOURS = ("#4477aa", "#e0566b", "#2c9a52", "#c9a227", "#3fb6d6", "#aa4499", "#ee7733", "#7a72d0")


def learning_curves(workdir: Path, panels: Mapping[str, Sequence[str]], seeds: int) -> Path | None:
    """Draw the training loss against the step, a panel for each group of cells.

    Args:
        workdir: work folder of the table; `curves.png` is written to it.
        panels: cells of each panel, keyed by its title; those that are not trained are left out.
        seeds: number of seeds of each cell to look for. The line is their mean, and the band goes
            from the smallest to the largest.

    Returns:
        Path of the picture; None if nothing has been trained.
    """
    drawn = {
        title: {cell: curve for cell in cells if (curve := _curve(workdir / cell, seeds))}
        for title, cells in panels.items()
    }
    drawn = {title: curves for title, curves in drawn.items() if curves}
    if not drawn:
        return None
    figure = Figure(figsize=(4.4 * len(drawn), 3.4), layout="constrained")
    axes = figure.subplots(1, len(drawn), squeeze=False)[0]
    for panel, (title, curves) in zip(axes, drawn.items(), strict=True):
        for colour, (cell, (steps, losses)) in zip(cycle(COLOURS), curves.items(), strict=False):
            panel.plot(steps, losses.mean(0), color=colour, label=cell.rsplit("/", 1)[-1])
            panel.fill_between(steps, losses.min(0), losses.max(0), color=colour, alpha=0.15)
        panel.set_yscale("log")
        panel.set_title(title)
        panel.set_xlabel("meta-training step")
        panel.legend(frameon=False, fontsize="small")
    axes[0].set_ylabel("loss")
    return _saved(figure, workdir / "curves.png")


def descents(panels: Mapping[str, Mapping[str, np.ndarray]], path: Path) -> Path | None:
    """Draw loss curves, a panel for each group; bands are 95% intervals of the mean.

    Args:
        panels: for each panel title and method, log10 of the losses [descents, steps + 1].
        path: path of the picture.

    Returns:
        The path; None if there is nothing to draw.
    """
    drawn = {title: methods for title, methods in panels.items() if methods}
    if not drawn:
        return None
    columns = min(len(drawn), 4)
    lines = -(-len(drawn) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.2 * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    colours = dict(
        zip({method: 0 for methods in drawn.values() for method in methods}, cycle(COLOURS))
    )
    for panel, (title, methods) in zip(axes, drawn.items(), strict=False):
        for method, values in methods.items():
            mean, steps = values.mean(0), np.arange(values.shape[1])
            half = mean_halves(values)
            panel.plot(steps, 10**mean, color=colours[method], label=method)
            if half is not None:
                panel.fill_between(
                    steps,
                    10 ** (mean - half),
                    10 ** (mean + half),
                    color=colours[method],
                    alpha=0.15,
                )
        panel.set_yscale("log")
        panel.set_title(title)
        panel.set_xlabel("step")
    axes[0].legend(frameon=False, fontsize="small")
    axes[0].set_ylabel("loss")
    for panel in axes[len(drawn) :]:
        panel.set_axis_off()
    return _saved(figure, path)


def fits(outcomes: Mapping[str, Mapping[str, np.ndarray]], path: Path) -> Path:
    """Draw sine waves before and after adaptation, with methods in rows and waves in columns.

    Args:
        outcomes: for each method `fit_support` [waves, points, 2] and `fit_query` [waves, grid, 2]
            (x and y), and `fit_predicted` [waves, steps + 1, grid].
        path: path of the picture.

    Returns:
        The path.
    """
    waves = len(next(iter(outcomes.values()))["fit_support"])
    size = (3.2 * waves, 2.2 * len(outcomes))
    figure = Figure(figsize=size, layout="constrained")
    rows = figure.subplots(len(outcomes), waves, squeeze=False, sharex=True)
    for row, (method, found) in zip(rows, outcomes.items(), strict=True):
        for wave, panel in enumerate(row):
            x, y = found["fit_query"][wave].T
            order = np.argsort(x)
            panel.plot(x[order], y[order], color="#8c8f96", linewidth=3, label="the wave")
            for name, step, colour in (
                ("before", 0, COLOURS[0]),
                ("after 1 step", 1, COLOURS[3]),
                ("after the last step", -1, COLOURS[1]),
            ):
                fit = found["fit_predicted"][wave, step][order]
                panel.plot(x[order], fit, color=colour, linewidth=1.2, label=name)
            panel.plot(*found["fit_support"][wave].T, "ko", markersize=4, label="support")
            panel.set_ylim(-6, 6)
        row[0].set_ylabel(method)
    rows[0][0].legend(frameon=False, fontsize="x-small", ncols=2)
    return _saved(figure, path)


def _curve(cell: Path, seeds: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Return steps [lines] and losses [seeds, lines], as far as all seeds have come."""
    found = []
    for seed in range(seeds):
        if rows := metrics_in(cell / f"seed{seed}"):
            found.append([(row["step"], row["loss"]) for row in rows])
    lines = min(map(len, found), default=0)
    if not lines:
        return None
    both = np.asarray([rows[:lines] for rows in found])
    return both[0, :, 0], both[..., 1]


def _saved(figure: Figure, path: Path) -> Path:
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=120)
    return path
