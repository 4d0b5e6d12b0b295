"""Pictures that go with tables: learning curves, fits of sine waves, and scores against shots."""

import io
import re
from collections.abc import Collection, Mapping, Sequence
from itertools import cycle
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from experiments.reports.layout import last_steps, shots_name
from metaguide.evaluation.metrics import mean_halves
from metaguide.evaluation.results import Row
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


BASELINE = "best baseline"

SHOWN = ("prototypical", "logistic", "maml", "fine-tuning", "scratch")
"""The methods in the picture of adaptation; all of them at once would be unreadable."""


def adaptation(
    rows: Sequence[Row],
    domain: str,
    metrics: Mapping[str, str],
    baselines: Collection[str],
    path: Path,
) -> None:
    """Draw a guide's scores on a domain it has never seen, against the number of shots.

    Bands are 95% intervals over training seeds. A description of the picture states all its
    numbers.

    Args:
        rows: rows of all domains, methods and baselines.
        domain: the held-out domain.
        metrics: for each task, shown in its own panel, the metric to show.
        baselines: names of the methods that are baselines; the best one at each number of shots is
            drawn.
        path: path of the picture, an SVG.
    """
    panels = {
        task: _against_shots(rows, domain, task, metrics[task], baselines) for task in metrics
    }
    shots = sorted(
        {count for lines in panels.values() for line in lines.values() for count in line}
    )
    styles = dict(zip([*SHOWN, BASELINE], [*COLOURS[: len(SHOWN)], "#6b6e75"], strict=True))
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": domain, "font.size": 10}):
        figure = Figure(figsize=(4.2 * len(panels), 3.2), layout="constrained")
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for panel, (task, lines) in zip(axes, panels.items(), strict=True):
            for name, line in lines.items():
                places = [shots.index(count) for count in line]
                values = np.asarray([value for value, _ in line.values()])
                halves = np.asarray([half or 0.0 for _, half in line.values()])
                dashes = "--" if name == BASELINE else "-"
                panel.plot(places, values, dashes, color=styles[name], label=name, marker=".")
                panel.fill_between(
                    places, values - halves, values + halves, color=styles[name], alpha=0.1, lw=0
                )
            panel.set_title(f"{task} on {domain}")
            panel.set_xticks(range(len(shots)), [str(count) for count in shots])
            panel.set_xlabel("examples a class" if task == "classification" else "examples")
            panel.set_ylabel(metrics[task])
            panel.set_ylim(bottom=0)
            panel.spines[["top", "right"]].set_visible(False)
        handles = {h.get_label(): h for a in axes for h in a.get_legend_handles_labels()[0]}
        figure.legend(
            handles=list(handles.values()), frameon=False, loc="outside right center", fontsize=9
        )
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    words = f"<desc>{described(rows, domain, metrics, baselines)}</desc>"
    text = re.sub(r" *<metadata>.*?</metadata>\n", "", text, flags=re.DOTALL)
    end = text.index(">", text.index("<svg ")) + 1
    lines = (text[:end] + words + text[end:]).splitlines()
    with atomic_write(path) as file:
        file.write(("\n".join(line.rstrip() for line in lines) + "\n").encode())


def described(
    rows: Sequence[Row], domain: str, metrics: Mapping[str, str], baselines: Collection[str]
) -> str:
    """Return the numbers of the picture of adaptation in words, for those who cannot see it."""
    said = []
    for task, metric in metrics.items():
        lines = _against_shots(rows, domain, task, metric, baselines)
        for name, line in lines.items():
            values = ", ".join(
                f"{value:.3f} at {shots_name(count)}" for count, (value, _) in line.items()
            )
            said.append(f"{task} on {domain}, {metric}, {name}: {values}.")
    return " ".join(said)


def _against_shots(
    rows: Sequence[Row], domain: str, task: str, metric: str, baselines: Collection[str]
) -> dict[str, dict[int, tuple[float, float | None]]]:
    """Return (value, half-width over seeds) after the last step, keyed by method and by shots."""
    chosen = [
        row
        for row in last_steps(rows)
        if (row.domain, row.task, row.metric) == (domain, task, metric) and row.shots is not None
    ]
    chosen.sort(key=lambda row: row.shots or 0)
    lines: dict[str, dict[int, tuple[float, float | None]]] = {name: {} for name in SHOWN}
    best: dict[int, tuple[float, float | None]] = {}
    for row in chosen:
        shots = row.shots or 0
        if row.method in baselines:
            best[shots] = max(best.get(shots, (row.value, None)), (row.value, None), key=_value)
        elif row.method in lines:
            lines[row.method][shots] = (row.value, row.ci95_seeds)
    return {name: line for name, line in {**lines, BASELINE: best}.items() if line}


def _value(point: tuple[float, float | None]) -> float:
    return point[0]


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
