"""The tables of a run in the terminal."""

from collections.abc import Collection, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from experiments.reports.layout import (
    Cell,
    column_name,
    diverged_name,
    falls_short,
    grid,
    interval_name,
    metrics_of,
    tasks_of,
)
from metaguide.evaluation.baselines import BASELINES
from metaguide.evaluation.results import Row
from metaguide.evaluation.rows import decimal


def print_tables(
    rows: Sequence[Row],
    *,
    scratch: str | None = "scratch",
    baselines: Collection[str] = BASELINES,
    console: Console | None = None,
    metric: str | None = None,
    steps: Collection[int] = (),
) -> None:
    """Print a table for each task, with domains and methods in rows and shots in columns.

    Bold marks the best method and italics the baselines. Red with an arrow marks a method below the
    one from scratch; red without an arrow marks a difference that is not below 0.

    Args:
        rows: rows of one table, of any tasks, metrics and steps.
        scratch: the method from scratch.
        baselines: names of the methods that are baselines.
        console: the console to print to.
        metric: the metric to print; by default the main one of each task.
        steps: numbers of adaptation steps, a column each; by default only the last step.
    """
    console = console or Console()
    for task in tasks_of(rows):
        shown = metric or metrics_of(rows, task)[0]
        laid = grid(rows, task, shown, scratch=scratch, baselines=baselines, steps=steps)
        across = list(dict.fromkeys(column[1:] for column in laid.columns))
        over = "± 95% over seeds (over examples)"
        table = Table(title=f"{task}: {shown}, {over}", title_justify="left", box=SIMPLE_HEAD)
        table.padding, table.pad_edge = (0, 1, 0, 0), False
        table.add_column("method", no_wrap=True)
        for kind in across:
            # In a narrow terminal the interval wraps below its number, and nothing is truncated.
            table.add_column(column_name(*kind), justify="right", overflow="fold")
        for domain in dict.fromkeys(column.domain for column in laid.columns):
            mine = {column[1:]: column for column in laid.columns if column.domain == domain}
            table.add_section()
            table.add_row(Text(domain or "", "bold underline"))
            for method in (*laid.methods, *laid.baselines):
                cells = [laid.cells.get((method, mine[k])) if k in mine else None for k in across]
                if any(cells):
                    is_baseline = method in laid.baselines
                    name = Text(f"  {method}", "italic dim" if is_baseline else "")
                    table.add_row(name, *(_rich(cell, is_baseline) for cell in cells))
        # A log file has no width.
        whole = console.measure(table, options=console.options.update(width=10_000)).maximum
        width = None if console.is_terminal else max(console.width, whole)
        console.print(table, width=width, crop=False)


def _rich(cell: Cell | None, is_baseline: bool) -> Text:
    if cell is None:
        return Text("")
    text = " ".join(filter(None, (decimal(cell.row.value), interval_name(cell.row))))
    if said := diverged_name(cell.row):
        return Text(f"{text}, {said}", "red")
    if cell.against_scratch:
        return Text(f"▼ {text}", "red")
    if falls_short(cell.row):
        return Text(text, "red")
    return Text(text, "bold" if cell.best else "italic dim" if is_baseline else "")
