"""Pictures of scores against the number of shots, with their numbers in words."""

import io
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.reports.layout import last_steps, shots_name
from experiments.tables.pictures import COLOURS
from metaguide.evaluation.results import LOWER_IS_BETTER, Row
from metaguide.files import atomic_write

BASELINE = "best baseline"

SHOTS = {
    "classification": "examples of each class",
    "sentiment": "reviews of each class",
    "questions": "questions",
    "recommendation": "products that a user took",
    "photos": "photos of each product",
    "products": "titles of each product",
    "products, all titles read": "titles of each product",
}
"""What the shots of a task are."""

Line = Mapping[int, tuple[float, float | None]]
"""Number of shots -> value, and half-width of its interval."""


class Panel(NamedTuple):
    """What one panel shows: a metric of a task on a domain."""

    domain: str
    task: str
    metric: str


class Picture(NamedTuple):
    """A picture of a table.

    Attributes:
        panels: from left to right.
        methods: the methods to draw, at most eight, in the order of the legend.
        over_seeds: whether intervals are over training seeds instead of examples and episodes.
    """

    panels: tuple[Panel, ...]
    methods: tuple[str, ...]
    over_seeds: bool = False


def draw(rows: Sequence[Row], picture: Picture, baselines: Collection[str], path: Path) -> None:
    """Draw a picture as an SVG, with a description that states all its numbers.

    A band is the 95% interval of a line. The baseline that is best at a number of shots is dashed.

    Args:
        rows: rows of all domains, methods and baselines.
        picture: what to draw.
        baselines: names of the methods that are baselines.
        path: path of the picture.
    """
    styles = {**dict(zip(picture.methods, COLOURS, strict=False)), BASELINE: "#6b6e75"}
    with matplotlib.rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": path.stem, "font.size": 10}
    ):
        legend = 0.4 + 0.08 * max(map(len, styles))  # inches, for a font of 9 points
        width = 3.6 * len(picture.panels) + legend
        figure = Figure(figsize=(width, 3.2), layout="constrained")
        axes = figure.subplots(1, len(picture.panels), squeeze=False)[0]
        for place, panel in zip(axes, picture.panels, strict=True):
            _draw_panel(place, panel, lines_of(rows, panel, picture, baselines), styles)
        handles = {h.get_label(): h for a in axes for h in a.get_legend_handles_labels()[0]}
        figure.legend(
            handles=[handles[name] for name in styles if name in handles],
            frameon=False,
            loc="outside right center",
            fontsize=9,
        )
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    words = f"<desc>{described(rows, picture, baselines)}</desc>"
    text = re.sub(r" *<metadata>.*?</metadata>\n", "", text, flags=re.DOTALL)
    end = text.index(">", text.index("<svg ")) + 1
    lines = (text[:end] + words + text[end:]).splitlines()
    with atomic_write(path) as file:
        file.write(("\n".join(line.rstrip() for line in lines) + "\n").encode())


def _draw_panel(
    place: Axes, panel: Panel, lines: Mapping[str, Line], styles: Mapping[str, str]
) -> None:
    shots = sorted({count for line in lines.values() for count in line})
    for name, line in lines.items():
        places = [shots.index(count) for count in line]
        values = np.asarray([value for value, _ in line.values()])
        halves = np.asarray([half or 0.0 for _, half in line.values()])
        dashes = "--" if name == BASELINE else "-"
        place.plot(places, values, dashes, color=styles[name], label=name, marker=".")
        place.fill_between(
            places, values - halves, values + halves, color=styles[name], alpha=0.1, lw=0
        )
    place.set_title(f"{panel.task}, {panel.domain}")
    place.set_xticks(range(len(shots)), [str(count) for count in shots])
    place.set_xlabel(SHOTS.get(panel.task, "examples"))
    place.set_ylabel(panel.metric)
    low, high = place.get_ylim()
    if low < high / 2:
        place.set_ylim(bottom=0)
    place.spines[["top", "right"]].set_visible(False)


def described(rows: Sequence[Row], picture: Picture, baselines: Collection[str]) -> str:
    """Return the numbers of a picture in words, for those who cannot see it."""
    said = []
    for panel in picture.panels:
        for name, line in lines_of(rows, panel, picture, baselines).items():
            values = ", ".join(
                f"{value:.3f}{'' if half is None else f' ± {half:.3f}'} at {shots_name(count)}"
                for count, (value, half) in line.items()
            )
            said.append(f"{panel.task} on {panel.domain}, {panel.metric}, {name}: {values}.")
    return " ".join(said)


def lines_of(
    rows: Sequence[Row], panel: Panel, picture: Picture, baselines: Collection[str]
) -> dict[str, Line]:
    """Return the lines of a panel after the last step, keyed by method; the best baseline last.

    Methods without a number of shots, and those that the picture does not name, are left out.
    """
    chosen = [
        row
        for row in last_steps(rows)
        if (row.domain, row.task, row.metric) == panel and row.shots is not None
    ]
    chosen.sort(key=lambda row: row.shots or 0)
    lines: dict[str, dict[int, tuple[float, float | None]]] = {name: {} for name in picture.methods}
    best: dict[int, tuple[float, float | None]] = {}
    for row in chosen:
        shots = row.shots or 0
        point = row.value, row.ci95_seeds if picture.over_seeds else row.ci95
        if row.method in baselines:
            better = min if panel.metric in LOWER_IS_BETTER else max
            best[shots] = better(best.get(shots, point), point, key=lambda one: one[0])
        elif row.method in lines:
            lines[row.method][shots] = point
    return {name: line for name, line in {**lines, BASELINE: best}.items() if line}
