"""Layout of rows as a table: methods in rows, baselines below, domains and shots in columns."""

from collections.abc import Collection, Sequence
from typing import NamedTuple

from metaguide.evaluation.baselines import BASELINES
from metaguide.evaluation.results import LOWER_IS_BETTER, ResultsError, Row, Scores, difference, key
from metaguide.evaluation.rows import decimal
from metaguide.tasks import TASKS

MINUS = "_minus"
"""Suffix of a metric METHOD_minus: the loss of METHOD minus that of the row's method, paired. It is
a success only if its complete interval is below 0."""


class Column(NamedTuple):
    """One domain at one number of shots, and at one number of steps if several are shown."""

    domain: str | None
    shots: int | None
    steps: int | None = None


class Cell(NamedTuple):
    """One number of a table, after the last adaptation step.

    Attributes:
        row: the row it shows.
        best: whether no method in the column is better; baselines do not count as methods.
        against_scratch: (difference, half-width) to the method from scratch in the same column,
            paired over examples, if this method is worse (negative transfer). The half-width is
            None if no scores of single examples are stored.
    """

    row: Row
    best: bool = False
    against_scratch: tuple[float, float | None] | None = None


class Grid(NamedTuple):
    """The table of one task and metric; `cells` is keyed by (method, column) and may be sparse."""

    task: str
    metric: str
    columns: tuple[Column, ...]
    methods: tuple[str, ...]
    baselines: tuple[str, ...]
    cells: dict[tuple[str, Column], Cell]


def tasks_of(rows: Sequence[Row]) -> list[str]:
    """Return the tasks of the rows: the guide's four in their order, then others as they appear."""
    found = list(dict.fromkeys(row.task for row in rows))
    return [task for task in TASKS if task in found] + [t for t in found if t not in TASKS]


def metrics_of(rows: Sequence[Row], task: str) -> list[str]:
    """Return the metrics of a task to show, main metric first."""
    found = list(dict.fromkeys(row.metric for row in rows if row.task == task))
    shown = TASKS[task].scoring.metrics if task in TASKS else found
    return [name for name in shown if name in found]


def last_steps(rows: Sequence[Row]) -> list[Row]:
    """Return the row after the most steps, for each method, domain, task, shots and metric."""
    last: dict[tuple, Row] = {}
    for row in rows:
        cell = (row.table, row.method, row.domain, row.task, row.shots, row.metric)
        if cell not in last or (row.steps or 0) >= (last[cell].steps or 0):
            last[cell] = row
    return list(last.values())


def grid(
    rows: Sequence[Row],
    task: str,
    metric: str,
    *,
    scores: Scores | None = None,
    scratch: str | None = None,
    baselines: Collection[str] = BASELINES,
    steps: Collection[int] = (),
) -> Grid:
    """Lay out the rows of one task and metric.

    Args:
        rows: rows of any tasks, metrics and steps.
        task, metric: the task and the metric to show.
        scores: scores of single examples, for the differences to the method from scratch.
        scratch: name of the method from scratch; if None, negative transfer is not marked.
        baselines: names of the methods that are baselines.
        steps: numbers of adaptation steps, a column each; if empty, only the last step.

    Raises:
        ResultsError: there is no such row, two rows fall into one cell, or two methods in a column
            were scored on different examples.
    """
    among = [row for row in rows if row.steps in steps] if steps else last_steps(rows)
    chosen = [row for row in among if (row.task, row.metric) == (task, metric)]
    if not chosen:
        raise ResultsError(f"there are no rows of {task}, {metric}")
    by_cell: dict[tuple[str, Column], Row] = {}
    for row in chosen:
        place = (row.method, Column(row.domain, row.shots, row.steps if steps else None))
        if place in by_cell:
            raise ResultsError(f"two tables have {key(row)}; lay out one table at a time")
        by_cell[place] = row
    columns = sorted(
        {column for _, column in by_cell},
        key=lambda c: (c.domain or "", -1 if c.shots is None else c.shots, c.steps or 0),
    )
    names = list(dict.fromkeys(row.method for row in chosen))
    methods = tuple(name for name in names if name not in baselines)
    sign = -1.0 if metric in LOWER_IS_BETTER else 1.0
    cells = {}
    for (method, column), row in by_cell.items():
        rated = method in methods and not metric.endswith(MINUS) and not row.diverged
        rivals = (by_cell.get((one, column)) for one in methods)
        values = (sign * one.value for one in rivals if one is not None and not one.diverged)
        best = rated and sign * row.value >= max(values)
        against = None
        base = by_cell.get((scratch, column)) if scratch and method in methods else None
        if base is not None and method != scratch and sign * (row.value - base.value) < 0:
            ours, theirs = ((scores or {}).get(key(r)) for r in (row, base))
            against = (row.value - base.value, None)
            if ours is not None and theirs is not None:
                paired = difference(ours, theirs)
                against = (paired.value, paired.half)
        cells[method, column] = Cell(row, best, against)
    known = tuple(name for name in names if name in baselines)
    return Grid(task, metric, tuple(columns), methods, known, cells)


def falls_short(row: Row) -> bool:
    """Return whether a row is a difference whose interval is not entirely below 0."""
    return row.metric.endswith(MINUS) and (row.ci95 is None or row.value + row.ci95 >= 0)


def interval_name(row: Row) -> str:
    """Return "± .120 (.070)": half-widths of the 95% intervals over training seeds and examples.

    The half-width over seeds comes first, because training is the larger source of uncertainty.
    With a single seed there is only the part in parentheses.
    """
    parts = [] if row.ci95_seeds is None else [f"± {decimal(row.ci95_seeds)}"]
    return " ".join(parts if row.ci95 is None else [*parts, f"({decimal(row.ci95)})"])


INTERVALS = (
    "±: half-width of the 95% interval over training seeds; in parentheses over examples and "
    "episodes"
)
"""Explanation of what `interval_name` shows."""


def diverged_name(row: Row) -> str:
    """Return "2 of 50 episodes diverged", or "" if none did."""
    if not row.diverged:
        return ""
    count = (row.episodes or 0) * (row.seeds or 1)
    return f"{row.diverged} of {count} episodes diverged"


def column_name(shots: int | None, steps: int | None) -> str:
    """Return "5 shots" or "5 shots, 10 steps"; "" if neither applies."""
    after = "" if steps is None else f"{steps} step" if steps == 1 else f"{steps} steps"
    return ", ".join(filter(None, (shots_name(shots), after)))


def shots_name(shots: int | None) -> str:
    """Return "5 shots" or "1 shot"; "" if shots do not apply."""
    if shots is None:
        return ""
    return f"{shots} shot" if shots == 1 else f"{shots} shots"
