"""Rewrite the tables of experiments/results/README.md, and the pictures beside it.

`python -m experiments.tables.readme` fills every block between `<!-- table:NAME -->` and
`<!-- /table:NAME -->` from experiments/results/NAME.json, and draws the pictures of `PICTURES`
there. With `--check` it changes nothing, and fails if a block or a picture is stale.
`<!-- table:NAME task=sentiment metric=macro_f1 shots=5 steps=1,10 -->` shows a part of the table,
with a column for each of these numbers of adaptation steps; `domain=all` shows one domain.
`across=tasks` makes one table whose columns are the tasks.
"""

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
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
    tasks_of,
)
from experiments.tables.against_shots import Panel, Picture, described, draw
from metaguide.evaluation.baselines import BASELINES as OF_THE_GUIDE
from metaguide.evaluation.results import Results, ResultsError, Row, read
from metaguide.evaluation.rows import decimal
from metaguide.files import atomic_write

_CHECK = flags.DEFINE_bool("check", False, "Change nothing; exit with 1 if a table is stale.")

BASELINES = (
    *OF_THE_GUIDE,
    *("pretrained", "pixels", "tf-idf", "tf-idf own", "tf-idf shared"),
    *("pixels, unit length", *(f"pixels: {one}label-spreading" for one in ("", "balanced "))),
    *("last item", "content, source IDF", "another person"),
)
"""Names of the baselines in all tables."""

CHOICES = ("task", "metric", "shots", "steps", "domain", "across")
"""Fields that a block may select by."""

RESULTS = Path(__file__).resolve().parents[1] / "results"

_ALONE, _TUNED = "encoder alone", "fine-tuned encoder"
_REVIEWS = Picture(
    (Panel("all", "sentiment", "accuracy"), Panel("all", "sentiment", "macro_f1")),
    (
        *("n-grams", "encoder", "encoder + n-grams", _ALONE, f"{_ALONE}, unlabelled"),
        *(_TUNED, f"{_TUNED} + n-grams"),
    ),
)
_TITLES = ("encoder", "n-grams, learned", "encoder + n-grams, learned")
_PHOTOS = (
    *("untrained: ridge", "denoising: prototypes", "denoising: ridge"),
    *("denoising: balanced label-spreading", "denoising + prototypical: prototypes"),
    "denoising + anil: descent",
)
_SHOPS = ("text", "text + numbers", "adapted, 100 users", "adapted, all users", "in-domain")
_ADAPTED = ("prototypical", "logistic", "maml", "fine-tuning", "scratch")

PICTURES = {
    ("adaptation", "guide_bazaar"): Picture(
        (Panel("toys", "classification", "accuracy"), Panel("toys", "questions", "f1")),
        ("named-ridge", "maml", "fine-tuning"),
        over_seeds=True,
    ),
    ("guide_reviews_zh", "guide_reviews_zh"): Picture(
        (
            Panel("unseen categories", "classification", "accuracy"),
            Panel("unseen categories", "classification", "accuracy_unseen"),
        ),
        (*_ADAPTED, "ridge", "vectors+words", "zero-shot"),
    ),
    ("reviews_zh", "reviews_zh"): _REVIEWS,
    ("reviews_en", "reviews_en"): _REVIEWS,
    ("products", "products"): Picture(
        (
            Panel("home appliances", "products", "accuracy"),
            Panel("electronics", "products", "accuracy"),
        ),
        _TITLES,
    ),
    ("product_categories", "product_categories"): Picture(
        (
            Panel("held-out shops", "classification", "accuracy"),
            Panel("held-out shops", "classification", "accuracy_new"),
        ),
        ("n-grams", "encoder", "encoder + n-grams", "n-grams alone", "encoder alone"),
    ),
    ("product_images", "product_images"): Picture(
        (Panel("all splits", "photos", "accuracy"),), _PHOTOS
    ),
    ("questions", "questions"): Picture(
        (Panel("books", "questions", "f1"), Panel("movies", "questions", "f1")),
        ("reader", "reader, likeliest", "nearest sentence"),
    ),
    ("recommendation", "recommendation"): Picture(
        tuple(Panel(shop, "recommendation", "ndcg@10") for shop in ("Beauty", "Sports", "Toys")),
        _SHOPS,
    ),
    ("universal", "universal"): Picture(
        (
            Panel("kitchen", "classification", "accuracy"),
            Panel("books", "sentiment", "accuracy"),
            Panel("books", "questions", "f1"),
            Panel("toys", "recommendation", "ndcg@10"),
        ),
        ("universal", "one task", "one shop"),
    ),
}
"""(name of the picture, name of its results) -> what it shows."""

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
            text = decimal(cell.row.value)
            text = f"**{text}**" if cell.best else text
            text = " ".join(filter(None, (text, interval_name(cell.row))))
            if falls_short(cell.row):
                text += ", not below 0"
            if said := diverged_name(cell.row):
                text += f", {said}"
            if published and cell.row.published is not None:
                text += f" (published {decimal(cell.row.published)})"
            shown.append(text)
        name = f"*{method}*" if method in table.baselines else method
        lines.append(f"| {name} | " + " | ".join(shown) + " |")
    return "\n".join(lines) + "\n"


def stale(folder: Path) -> dict[str, Callable[[], None]]:
    """Return what writes each file of a folder of results anew, for the files that are stale.

    Args:
        folder: the folder of README.md, the results and the pictures.

    Raises:
        ResultsError: results are missing or broken, or a block of the README is.
    """
    found: dict[str, Callable[[], None]] = {}
    readme = folder / "README.md"
    text = readme.read_text("utf-8")
    filled = fill(text, folder)
    if filled != text:
        found[readme.name] = lambda: _write(readme, filled)
    for (name, results), picture in PICTURES.items():
        rows, path = read(folder / f"{results}.json").rows, folder / f"{name}.svg"
        drawn = path.read_text("utf-8") if path.is_file() else ""
        if described(rows, picture, BASELINES) not in drawn:
            found[path.name] = partial(draw, rows, picture, BASELINES, path)
    return found


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as file:
        file.write(text.encode())


def main(argv: list[str]) -> None:
    """Rewrite or check the tables and the pictures; a check exits with 1 if one is stale."""
    del argv
    try:
        found = stale(RESULTS)
    except (OSError, ResultsError) as error:
        sys.exit(str(error))
    names = ", ".join(found)
    if not found:
        print("experiments/results: README.md and the pictures are those of the results")
        return
    if _CHECK.value:
        sys.exit(f"{names}: stale; run python -m experiments.tables.readme")
    for write in found.values():
        write()
    print(f"experiments/results: wrote {names}")


if __name__ == "__main__":
    app.run(main)
