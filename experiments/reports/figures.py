"""The report's plots, as SVG that takes its font and ink colour from the page around it.

Only numbers and names of metrics are drawn. Domains and methods, whose names may need glyphs that
no installed font has, appear in captions and legends, which the browser renders.
"""

import io
import re
from collections.abc import Mapping, Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments.reports.layout import Column, Grid, shots_name
from metaguide.evaluation.results import Row

_INK = "#010203"  # placeholder for the page's own ink
_COLOURS = (
    "#4477aa",
    "#e0566b",
    "#2c9a52",
    "#c9a227",
    "#3fb6d6",
    "#aa4499",
    "#ee7733",
    "#0f9a8a",
    "#7a72d0",
    "#8f9a2f",
)
_GREY = "#8c8f96"
_PANEL = (3.7, 2.8)  # inches: no wider than a phone's screen
_DASHES = ((4, 2), (1, 1.5), (6, 2, 1, 2), (2, 1), (8, 3), (3, 1, 1, 1))

Style = tuple[str, tuple[float, ...]]
"""Colour and dashes; without dashes the line is solid."""


def styles(methods: Sequence[str], baselines: Sequence[str]) -> dict[str, Style]:
    """Return a colour for each method and dashes for each baseline, for all figures of a page."""
    of_methods = {name: (_COLOURS[i % len(_COLOURS)], ()) for i, name in enumerate(methods)}
    of_baselines = {name: (_GREY, _DASHES[i % len(_DASHES)]) for i, name in enumerate(baselines)}
    return {**of_methods, **of_baselines}


def swatch(style: Style) -> str:
    """Return an SVG of a short line in the style of a method, for a legend."""
    colour, dashes = style
    drawn = f' stroke-dasharray="{" ".join(f"{2 * d:g}" for d in dashes)}"' if dashes else ""
    return (
        '<svg width="26" height="8" aria-hidden="true"><line x1="0" y1="4" x2="26" y2="4" '
        f'stroke="{colour}" stroke-width="3"{drawn}/></svg>'
    )


def curves(
    rows: Sequence[Row], domain: str | None, style: Mapping[str, Style], label: str
) -> list[str]:
    """Draw a metric against adaptation steps, a panel for each number of shots, with 95% bands.

    Each panel is a separate drawing, so that a page can put them next to or below each other. All
    have the same range.

    Args:
        rows: all steps of one task and metric.
        domain: the domain whose rows are drawn.
        style: style of every method and baseline; those without steps are level lines.
        label: alternative text of the figure.

    Returns:
        A list of SVGs, empty if no method takes a step.
    """
    mine = [row for row in rows if row.domain == domain and row.shots]
    shots = sorted({row.shots for row in mine if row.shots and row.steps})
    panels = {}
    with matplotlib.rc_context(_settings(label)):
        for count in shots:
            figure = Figure(figsize=_PANEL, layout="constrained")
            panels[count] = figure, _panel(figure.subplots(), mine, count, style)
        ends = [axes.get_ylim() for _, axes in panels.values()]
        drawn = []
        for count, (figure, axes) in panels.items():
            axes.set_ylim(min(low for low, _ in ends), max(high for _, high in ends))
            drawn.append(_svg(figure, f"{label}, {shots_name(count)}"))
    return drawn


def _panel(axes: Axes, rows: Sequence[Row], count: int, style: Mapping[str, Style]) -> Axes:
    last = max(row.steps or 0 for row in rows if row.shots == count)
    for method, (colour, dashes) in style.items():
        line = [row for row in rows if (row.shots, row.method) == (count, method)]
        line.sort(key=lambda row: row.steps or 0)
        if not line:
            continue
        if len(line) == 1:
            _level(axes, line[0], last, colour, dashes or (1, 1))
            continue
        steps = [row.steps or 0 for row in line]
        axes.plot(steps, [row.value for row in line], color=colour, linewidth=1.7)
        low = [row.value - (row.ci95 or 0) for row in line]
        high = [row.value + (row.ci95 or 0) for row in line]
        axes.fill_between(steps, low, high, color=colour, alpha=0.13, linewidth=0)
    axes.set_title(shots_name(count))
    axes.set_xlabel("adaptation steps")
    axes.set_ylabel(rows[0].metric)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlim(0, last)
    return axes


def bars(grid: Grid, domain: str | None, style: Mapping[str, Style], label: str) -> str:
    """Draw bars for the methods and baselines of one domain after the last step, by shots.

    Args:
        grid: the grid of one task and metric.
        domain: the domain whose columns are drawn.
        style: style of every method and baseline.
        label: alternative text of the figure.

    Returns:
        An SVG.
    """
    columns = [column for column in grid.columns if column.domain == domain]
    names = [*grid.methods, *grid.baselines]
    width = 0.84 / len(names)
    with matplotlib.rc_context(_settings(label)):
        figure = Figure(figsize=(4.6, 2.9), layout="constrained")
        axes = figure.subplots()
        for place, column in enumerate(columns):
            for index, name in enumerate(names):
                cell = grid.cells.get((name, column))
                if cell is None:
                    continue
                left = place + (index - (len(names) - 1) / 2) * width
                axes.bar(
                    left,
                    cell.row.value,
                    width * 0.9,
                    yerr=cell.row.ci95,
                    color=style[name][0],
                    alpha=0.5 if name in grid.baselines else 1.0,
                    error_kw={"elinewidth": 0.9, "ecolor": _INK},
                )
        axes.set_xticks(range(len(columns)), [_tick(column) for column in columns])
        axes.tick_params(axis="x", length=0)
        axes.set_ylabel(grid.metric)
        return _svg(figure, label)


def _tick(column: Column) -> str:
    return shots_name(column.shots) or "all"


def _level(axes: Axes, row: Row, last: int, colour: str, dashes: Sequence[float]) -> None:
    axes.plot([0, last], [row.value] * 2, color=colour, linewidth=1.3, dashes=tuple(dashes))


def _settings(label: str) -> dict:
    return {
        "svg.fonttype": "none",
        "svg.hashsalt": label,
        "font.size": 9.5,
        "axes.titlesize": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.axisbelow": True,
        "grid.alpha": 0.15,
        **{
            name: _INK
            for name in (
                "text.color",
                "axes.edgecolor",
                "axes.labelcolor",
                "xtick.color",
                "ytick.color",
                "grid.color",
            )
        },
    }


def _svg(figure: Figure, label: str) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    drawn = buffer.getvalue()
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn[drawn.index("<svg") :], flags=re.DOTALL)
    drawn = drawn.replace(_INK, "currentColor")
    drawn = re.sub(r"font: ([\d.]+px) [^;\"]+", r"font: \1 var(--sans)", drawn)
    return drawn.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
