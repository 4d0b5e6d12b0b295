"""Pictures of scores against the number of shots: what is drawn, and what is said of it."""

import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiments.tables import readme
from experiments.tables.against_shots import BASELINE, Panel, Picture, described, draw, lines_of
from metaguide.evaluation.results import Row

PANEL = Panel("toys", "sentiment", "accuracy")
PICTURE = Picture((PANEL,), ("ridge", "maml"))


def row(method: str, shots: int | None, value: float, **fields: Any) -> Row:
    given = {"domain": "toys", "task": "sentiment", "metric": "accuracy", "ci95": 0.1, **fields}
    return Row(table="t", method=method, shots=shots, value=value, **given)


ROWS = [
    row("ridge", 5, 0.8, ci95_seeds=0.2),
    row("ridge", 0, 0.7),
    row("maml", 5, 0.5, steps=1),
    row("maml", 5, 0.6, steps=3),
    row("majority", 0, 0.3, ci95=0.01),
    row("majority", 5, 0.2),
    row("tf-idf", 5, 0.4, ci95=0.02),
    row("anil", 5, 0.99),
    row("ridge", None, 0.98),
    row("ridge", 5, 0.97, metric="macro_f1"),
    row("ridge", 5, 0.96, domain="books"),
    row("ridge", 5, 0.95, task="classification"),
]


def test_a_line_is_of_its_panel() -> None:
    """Catches a row of another domain, task, metric or method, one without shots, an earlier step,
    shots out of order, a baseline that is not the best at its shots, and another's interval."""
    found = lines_of(ROWS, PANEL, PICTURE, ("majority", "tf-idf"))
    assert found == {
        "ridge": {0: (0.7, 0.1), 5: (0.8, 0.1)},
        "maml": {5: (0.6, 0.1)},
        BASELINE: {0: (0.3, 0.01), 5: (0.4, 0.02)},
    }
    assert list(found["ridge"]) == [0, 5]
    over_seeds = lines_of(ROWS, PANEL, PICTURE._replace(over_seeds=True), ("majority",))
    assert over_seeds["ridge"] == {0: (0.7, None), 5: (0.8, 0.2)}


def test_the_best_baseline_of_a_loss_is_the_smallest() -> None:
    """Catches a picture in which the worst baseline is the one to beat."""
    panel = PANEL._replace(metric="mse")
    rows = [replace(one, metric="mse") for one in ROWS if one.metric == "accuracy"]
    found = lines_of(rows, panel, PICTURE, ("majority", "tf-idf"))
    assert found[BASELINE][5] == (0.2, 0.1)


def test_a_picture_says_its_numbers(tmp_path: Path) -> None:
    """Catches a picture that only those who see it can read, a line that is not drawn, a file that
    is no SVG, and one that differs each time it is drawn."""
    paths = [tmp_path / "a" / "one.svg", tmp_path / "b" / "one.svg"]
    for path in paths:
        path.parent.mkdir()
        draw(ROWS, PICTURE, ("majority", "tf-idf"), path)
    text = paths[0].read_text("utf-8")
    assert text == paths[1].read_text("utf-8")
    said = described(ROWS, PICTURE, ("majority", "tf-idf"))
    assert "on toys, accuracy, ridge: 0.700 ± 0.100 at 0 shots, 0.800 ± 0.100 at 5 shots." in said
    wider = [replace(one, ci95=5 * (one.ci95 or 0)) for one in ROWS]
    assert described(wider, PICTURE, ("majority", "tf-idf")) != said  # its bands are drawn anew
    root = ElementTree.fromstring(text)
    assert root[0].tag.endswith("desc") and root[0].text == said
    for name in ("ridge", "maml", BASELINE, "reviews of each class"):
        assert f">{name}</text>" in text


def test_every_picture_of_the_results_is_shown() -> None:
    """Catches a picture that no page shows, or that shows nothing of its results."""
    shown = (readme.RESULTS / "README.md").read_text("utf-8")
    for (name, results), picture in readme.PICTURES.items():
        assert f"({name}.svg)" in shown
        rows = readme.read(readme.RESULTS / f"{results}.json").rows
        for panel in picture.panels:
            assert lines_of(rows, panel, picture, readme.BASELINES), (name, panel)
