"""Rewrite the tables of experiments/results/README.md, and the README's picture.

`python -m experiments.tables.readme` fills every block between `<!-- table:NAME -->` and
`<!-- /table:NAME -->` from experiments/results/NAME.json, and draws adaptation.svg there. With
`--check` it changes nothing, and fails if a block or the picture is stale.
`<!-- table:NAME task=sentiment metric=macro_f1 shots=5 steps=1,10 -->` shows a part of the table,
with a column for each of these numbers of adaptation steps; `domain=all` shows one domain.
`across=tasks` makes one table whose columns are the tasks.
"""

import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from absl import app, flags

from experiments.reports.layout import (
    INTERVALS,
    Grid,
    column_name,
    diverged_name,
    falls_short,
    grid,
    interval_name,
    metrics_of,
    number,
    tasks_of,
)
from experiments.tables.pictures import adaptation, described
from metaguide.evaluation.baselines import BASELINES as OF_THE_GUIDE
from metaguide.evaluation.results import Results, ResultsError, Row, read
from metaguide.files import atomic_write

_CHECK = flags.DEFINE_bool("check", False, "Change nothing; exit with 1 if a table is stale.")

BASELINES = (
    *OF_THE_GUIDE,
    *("pretrained", "pixels", "tf-idf"),
    *("pixels, unit length", *(f"pixels: {one}label-spreading" for one in ("", "balanced "))),
    *("last item", "content, source IDF", "another person"),
)
"""Names of the baselines in all tables."""

CHOICES = ("task", "metric", "shots", "steps", "domain", "across")
"""Fields that a block may select by."""

RESULTS = Path(__file__).resolve().parents[1] / "results"

PICTURED = ("guide_bazaar", "toys", {"classification": "accuracy", "questions": "f1"})
"""The results, the held-out domain, and the metric of each task in the README's picture."""

_OPEN = re.compile(r"<!-- table:(?P<name>[\w.-]+)(?P<choice>(?: +\w+=[^\s>]+)*) *-->")


def fill(text: str, folder: Path) -> str:
    """Return the README's text with every table block regenerated.

    Args:
        text: Markdown with blocks.
        folder: the folder that contains NAME.json.

    Raises:
        ResultsError: a block is not closed or selects by an unknown field, or its results are
            missing or broken.
    """
    parts, place = [], 0
    while found := _OPEN.search(text, place):
        name = found["name"]
        closing = f"<!-- /table:{name} -->"
        end = text.find(closing, found.end())
        if end < 0:
            raise ResultsError(f"README: the block table:{name} is not closed; add {closing}")
        choice = dict(part.split("=", 1) for part in found["choice"].split())
        odd = set(choice) - set(CHOICES)
        if odd:
            known = ", ".join(f"{name}=" for name in CHOICES)
            raise ResultsError(f"README: table:{name}: {min(odd)}= is none of {known}")
        table = markdown(read(folder / f"{name}.json"), **choice)
        parts += [text[place : found.end()], "\n\n", table, "\n", closing]
        place = end + len(closing)
    return "".join([*parts, text[place:]])


def markdown(
    results: Results,
    task: str | None = None,
    metric: str | None = None,
    shots: str = "",
    steps: str = "",
    domain: str = "",
    across: str = "",
) -> str:
    """Return the results as Markdown, a table per task with its main metric, or the named one.

    Args:
        results: results of one table.
        task, metric: the task and the metric to show.
        shots: numbers of shots, such as "1,5"; all by default.
        steps: numbers of adaptation steps; only the last step by default.
        domain: the domain to show; all by default.
        across: "tasks" for one table whose columns are the tasks.

    Raises:
        ResultsError: there are no rows of that choice, or an argument is invalid.
    """
    wanted = _numbers("shots", shots)
    rows = [
        row
        for row in results.rows
        if (not wanted or row.shots in wanted) and domain in ("", row.domain)
    ]
    if not rows:
        raise ResultsError(f"README: there are no rows of shots={shots} domain={domain}")
    if across not in ("", "tasks"):
        raise ResultsError(f"README: across={across} is not across=tasks")
    if across:
        rows = [replace(row, task=row.table, domain=row.task, shots=None) for row in rows]
    counts, blocks = _numbers("steps", steps), []
    for name in [task] if task else tasks_of(rows):
        shown = metric or next(iter(metrics_of(rows, name)), "")
        blocks.append(_table(grid(rows, name, shown, baselines=BASELINES, steps=counts)))
    blocks.append(
        f"`{results.command}`, {results.made[:10]}, {_seeds(rows)}. {INTERVALS}. Bold: the best"
        " method of a column. Italic: baselines on the same examples.\n"
    )
    return "\n".join(blocks)


def _seeds(rows: Sequence[Row]) -> str:
    """Return how many seeds the methods have; the number may differ between methods."""
    counts = sorted({row.seeds or 1 for row in rows if row.method not in BASELINES})
    least, most = counts[0], counts[-1]
    return f"{most} seed{'s' * (most != 1)}" if least == most else f"{least} to {most} seeds"


def _numbers(name: str, text: str) -> list[int]:
    try:
        return [int(number) for number in text.split(",") if number]
    except ValueError:
        raise ResultsError(f"README: {name}={text} are not numbers, such as 1,5,10") from None


def _table(table: Grid) -> str:
    published = any(cell.row.published is not None for cell in table.cells.values())
    heads = [" ".join(filter(None, (c.domain, column_name(*c[1:])))) for c in table.columns]
    lines = [f"| {table.task}, {table.metric} | " + " | ".join(heads) + " |"]
    lines.append("|---" * (len(heads) + 1) + "|")
    for method in (*table.methods, *table.baselines):
        shown = []
        for column in table.columns:
            cell = table.cells.get((method, column))
            if cell is None:
                shown.append("")
                continue
            text = number(cell.row.value)
            text = f"**{text}**" if cell.best else text
            text = " ".join(filter(None, (text, interval_name(cell.row))))
            if falls_short(cell.row):
                text += ", not below 0"
            if said := diverged_name(cell.row):
                text += f", {said}"
            if published and cell.row.published is not None:
                text += f" (published {number(cell.row.published)})"
            shown.append(text)
        name = f"*{method}*" if method in table.baselines else method
        lines.append(f"| {name} | " + " | ".join(shown) + " |")
    return "\n".join(lines) + "\n"


def main(argv: list[str]) -> None:
    """Rewrite or check the tables and the picture; a check exits with 1 if one is stale."""
    del argv
    readme, picture = RESULTS / "README.md", RESULTS / "adaptation.svg"
    name, domain, metrics = PICTURED
    try:
        text = readme.read_text("utf-8")
        filled = fill(text, RESULTS)
        rows = read(RESULTS / f"{name}.json").rows
        drawn = picture.read_text("utf-8") if picture.is_file() else ""
    except (OSError, ResultsError) as error:
        sys.exit(str(error))
    stale = [
        path.name
        for path, fresh in (
            (readme, filled == text),
            (picture, described(rows, domain, metrics, BASELINES) in drawn),
        )
        if not fresh
    ]
    if not stale:
        print("experiments/results: README.md and adaptation.svg are those of the results")
        return
    if _CHECK.value:
        sys.exit(f"{' and '.join(stale)}: stale; run python -m experiments.tables.readme")
    with atomic_write(readme) as file:
        file.write(filled.encode())
    adaptation(rows, domain, metrics, BASELINES, picture)
    print(f"experiments/results: wrote {' and '.join(stale)}")


if __name__ == "__main__":
    app.run(main)
