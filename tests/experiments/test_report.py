"""The report on made-up outcomes: what it shows, what it flags, and that it stands alone."""

import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from rich.console import Console

from experiments import report
from experiments.exhibits import exhibit
from experiments.report import print_tables, write_report
from experiments.settings import ConfigError
from experiments.tables.layout import Column, grid, number
from experiments.tables.readme import fill
from metaguide.training.results import (
    Results,
    ResultsError,
    Row,
    cells_to_rows,
    read,
    with_floors,
    write,
)

DOMAINS, SHOTS = ("phones", "热水器"), (0, 5)
SKILL = {"scratch": 0.5, "maml": 0.9, "fine-tuning": 0.2, "majority": 0.6}
FLOOR = ("majority",)


def made_up(episodes=6, queries=8):
    """Outcomes of three arms and a floor; fine-tuning is worse than from scratch."""
    rng = np.random.default_rng(0)
    rows, scores = [], {}
    ids = np.stack([rng.permutation(60)[:queries] for _ in range(episodes)])
    for arm, skill in SKILL.items():
        for domain in DOMAINS:
            for shots in SHOTS:
                places = 3 if shots and arm not in FLOOR else 1
                target = np.broadcast_to(ids % 2, (2, places, *ids.shape))
                right = rng.random(target.shape) < skill
                cell = {"table": "bazaar", "arm": arm, "domain": domain, "shots": shots}
                raw = {"mask": np.ones(ids.shape, bool), "id": ids, "target": target}
                raw["predicted"] = np.where(right, target, 1 - target)
                more, kept = cells_to_rows(raw, task="sentiment", draws=50, **cell)
                rows += more
                scores |= kept
                rank = np.where(right, 1, 40)
                raw = {"rank": rank, "mask": raw["mask"], "id": ids}
                more, kept = cells_to_rows(raw, task="recommendation", draws=50, **cell)
                rows += more
                scores |= kept
    head = {"command": "python -m experiments.guide", "config": {"way": 5}, "seeds": (0, 1)}
    return Results(rows=tuple(with_floors(rows, FLOOR)), scores=scores, made="2026-01-02", **head)


def showcase():
    """One thing of each kind, right and wrong, with characters that HTML must escape."""
    image = np.zeros((32, 32, 3), np.uint8)
    cup, pot = {"title": "cup <b>", "image": image}, {"title": "红壶", "image": None}
    return {
        "domain": "热水器",
        "products": [
            {
                **cup,
                "target": "cups",
                "predicted": "pots",
                "probabilities": {"cups": 0.4, "pots": 0.6},
            }
        ],
        "reviews": [
            {
                "text": "质量很好 & cheap",
                "target": "positive",
                "predicted": "positive",
                "positive": 0.97,
                "stars": 5.0,
                "predicted_stars": 4.4,
            }
        ],
        "questions": [
            {"question": "q1", "text": "ab<cd>ef", "answer": (2, 6), "predicted": (4, 8)},
            {"question": "q2", "text": "nothing here", "answer": None, "predicted": None},
        ],
        "recommendation": {
            "user": "u7",
            "history": [cup],
            "ranked": [pot, cup],
            "target": {"title": "红壶", "image": None},
            "rank": 1,
        },
    }


@pytest.fixture(scope="module")
def outcomes():
    return made_up()


@pytest.fixture(scope="module")
def page(outcomes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    path = write_report(outcomes, folder, showcase())
    assert [p.name for p in folder.iterdir()] == ["report.html"]
    return path.read_text("utf-8")


class Strict(HTMLParser):
    """Fails where an element is closed that is not the one open, or is left open."""

    void = frozenset({"meta", "img", "br", "hr", "link"})

    def __init__(self):
        super().__init__()
        self.open, self.text = [], []

    def handle_starttag(self, tag, attrs):
        """An element opens."""
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag):
        """It closes."""
        assert self.open and self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data):
        """Text between."""
        self.text.append(data)


def test_the_page_is_well_formed_and_stands_alone(page):
    """An element left open, text of users read as HTML, or a file that needs a network."""
    parser = Strict()
    parser.feed(page)
    assert parser.open == []
    assert "cup <b>" in "".join(parser.text) and "cup <b>" not in page
    links = re.findall(r"""(?:src|href|srcset)=["']([^"']+)""", page)
    assert links and all(link.startswith(("data:image/", "#")) for link in links)
    assert "@import" not in page and "url(http" not in page
    anchors = {link[1:] for link in links if link.startswith("#")}
    assert {"sentiment", "recommendation", "guide"} <= anchors
    assert all(f'id="{anchor}"' in page for anchor in anchors)


def test_figures_are_drawn_without_glyphs_that_are_missing(outcomes, tmp_path, recwarn):
    """Chinese names handed to a plotting font that lacks them; figures lost or one for all."""
    page = write_report(outcomes, tmp_path).read_text("utf-8")
    assert not [w for w in recwarn if "Glyph" in str(w.message)]
    # by task and domain: bars, and curves over steps
    assert page.count('<svg role="img"') == 2 * 2 * 2
    assert 'id="guide"' not in page


def test_negative_transfer_is_shown_with_its_paired_difference(outcomes, page):
    """An arm worse than from scratch that looks like any other."""
    laid = grid(outcomes.rows, "sentiment", "accuracy", scores=outcomes.scores, scratch="scratch")
    for domain in DOMAINS:
        column = Column(domain, 5)
        cell, base = laid.cells["fine-tuning", column], laid.cells["scratch", column]
        assert cell.against_scratch is not None
        value, half = cell.against_scratch
        assert value == pytest.approx(cell.row.value - base.row.value, abs=1e-6)
        assert half is not None and half > 0
        assert laid.cells["maml", column].against_scratch is None
        assert laid.cells["maml", column].best
        assert laid.cells["majority", column].against_scratch is None
    assert "▼ −" in page and 'class="negative"' in page


def test_tables_show_the_last_step_and_the_floors_apart(outcomes):
    """The first step or the best step in the table; a floor called the best arm."""
    laid = grid(outcomes.rows, "recommendation", "hr@10")
    assert laid.floors == FLOOR and "majority" not in laid.arms
    assert {cell.row.steps for (_, c), cell in laid.cells.items() if c.shots == 5} == {0, 2}
    assert laid.cells["maml", Column("phones", 5)].row.steps == 2
    assert not any(laid.cells["majority", column].best for column in laid.columns)


def test_showcase_marks_answers_and_the_next_product(page):
    """A span shifted by what HTML escapes, or the true next product not marked."""
    assert (
        'ab<u class="gold">&lt;c</u><mark><u class="gold">d&gt;</u></mark><mark>ef</mark>' in page
    )
    assert re.search(r'<li class="next">.*?红壶 ✓', page)
    assert "✗ pots" in page and "in truth cups" in page
    assert page.count("data:image/png;base64,") == 3


def test_what_has_no_picture_has_no_place_for_one():
    """Fault: a grey square, as if a picture had failed to load."""
    shown = showcase()
    with_pictures = exhibit(shown)
    assert 'class="card product pictured"' in with_pictures
    assert with_pictures.count('<ol class="items pictured">') == 2  # one of the ranked has one
    shown["products"][0]["image"] = None
    shown["recommendation"]["history"] = [{"title": "红壶", "image": None}]
    drawn = exhibit(shown)
    assert 'class="card product"' in drawn and '<ol class="items">' in drawn
    assert drawn.count('class="picture"') == drawn.count("<img") == 1


@pytest.mark.parametrize(
    "target, predicted, positive, said",
    [
        ("positive", "negative", 0.11, "✗ negative</span> * 89% sure; in truth positive"),
        ("positive", "positive", 0.97, "✓ positive</span> * 97% sure"),
        ("negative", "negative", 0.001, "✓ negative</span> * over 99% sure"),
        (None, "positive", 0.6, ">positive</span> * 60% sure"),
    ],
)
def test_a_review_says_how_sure_the_guide_is_of_its_answer(target, predicted, positive, said):
    """Fault: "it is positive positive with 11%"."""
    review = {"text": "so so", "target": target, "predicted": predicted, "positive": positive}
    drawn = exhibit({"reviews": [{**review, "stars": None, "predicted_stars": None}]})
    first, _, rest = said.partition(" * ")
    assert f'{first} <span class="small soft">{rest}</span>' in drawn


def test_right_answers_are_counted_and_wrong_ones_stay_shown():
    """Fault: four wrong answers and no word on how many were right."""
    shown = showcase()
    text = {"question": "q3", "text": "nothing here", "answer": [0, 7]}
    wrong = [{**text, "predicted": place} for place in (None, (8, 12))]
    shown["questions"] = [*shown["questions"], *wrong]
    drawn = exhibit(shown)
    assert "1 of 4 questions right, 1 in part" in drawn
    assert "0 of 1 products right" in drawn and "1 of 1 reviews right" in drawn
    assert "the next product is on place 1" in drawn
    assert drawn.count('class="card question"') == 4


def test_terminal_tables_hold_every_arm(outcomes):
    """A task or arm lost in the terminal."""
    console = Console(width=120, record=True, file=io.StringIO())
    print_tables(outcomes.rows, console=console)
    text = console.export_text()
    for word in (*SKILL, *DOMAINS, "sentiment: accuracy", "recommendation: ndcg@10", "▼"):
        assert word in text


def test_readme_blocks_follow_the_results(outcomes, tmp_path):
    """A stale table taken for fresh, text around the blocks changed, a block without an end."""
    head = {"command": outcomes.command, "config": {}, "seeds": [0, 1]}
    write(outcomes.rows, outcomes.scores, tmp_path, name="bazaar", **head)
    text = "before\n<!-- table:bazaar task=sentiment -->\nstale\n<!-- /table:bazaar -->\nafter\n"
    filled = fill(text, tmp_path)
    assert filled.startswith("before\n<!-- table:bazaar task=sentiment -->\n")
    assert filled.endswith("<!-- /table:bazaar -->\nafter\n")
    assert "stale" not in filled and "ndcg" not in filled
    assert "| sentiment, accuracy | phones 0 shots | phones 5 shots | 热水器 0 shots" in filled
    best = next(r for r in read(tmp_path / "bazaar.json").rows if r.arm == "maml")
    assert f"**{best.value:.3f}**".replace("**0.", "**.") in filled
    assert fill(filled, tmp_path) == filled
    for broken, message in (
        ("<!-- table:bazaar -->", "not closed"),
        ("<!-- table:gone -->\n<!-- /table:gone -->", "no results"),
        ("<!-- table:bazaar arm=x -->\n<!-- /table:bazaar -->", "arm= is none of"),
        ("<!-- table:bazaar task=qa -->\n<!-- /table:bazaar -->", "no rows of qa"),
    ):
        with pytest.raises(ResultsError, match=message):
            fill(broken, tmp_path)


def rows_of_waves():
    """An arm and a floor at 5 and 10 points after 1 and 10 steps; error = points + steps / 100."""
    return [
        Row(
            table="waves",
            arm=arm,
            domain="he",
            task="sinusoid",
            shots=shots,
            steps=steps,
            metric="mse",
            value=shots + steps / 100 + (arm == "pretrained"),
            published=0.67 if (arm, shots, steps) == ("maml", 5, 1) else None,
        )
        for arm in ("maml", "pretrained")
        for shots in (5, 10)
        for steps in (1, 10)
    ]


def test_readme_shows_chosen_shots_and_a_column_a_step(tmp_path):
    """Faults: the last step alone is shown, other shots are, a floor counts as an arm, the value in
    print stands by another number."""
    write(rows_of_waves(), {}, tmp_path, name="waves", command="x", config={}, seeds=[0])
    block = "<!-- table:waves metric=mse {} -->\n<!-- /table:waves -->"
    filled = fill(block.format("shots=5 steps=1,10"), tmp_path)
    assert "| sinusoid, mse | he 5 shots, 1 step | he 5 shots, 10 steps |" in filled
    assert "| maml | **5.010** (published .670) | **5.100** |" in filled
    assert "| *pretrained* | 6.010 | 6.100 |" in filled and "10 shots" not in filled
    filled = fill(block.format("shots=10 across=tasks"), tmp_path)
    assert "| waves, mse | sinusoid |" in filled and "| maml | **10.100** |" in filled
    for choice, message in (("steps=one", "not numbers"), ("across=arms", "is not across=tasks")):
        with pytest.raises(ResultsError, match=message):
            fill(block.format(choice), tmp_path)


def test_a_difference_that_is_not_below_0_says_so(tmp_path):
    """Faults: an interval that reaches 0 looks like a success, or a success like none; the row with
    the least difference is bold, as if it were an arm's own value."""
    fields = {"table": "t", "domain": "10-dim", "task": "quadratic", "shots": None, "steps": 100}
    fields |= {"metric": "lstm_minus", "ci95_seeds": None, "episodes": 9, "seeds": 5}
    rows = [
        Row(arm=arm, value=value, ci95=half, floor=None, published=None, **fields)
        for arm, value, half in (("sgd", -2.0, 0.3), ("adam", -0.2, 0.3), ("adamw", 1.0, 0.3))
    ]
    write(rows, {}, tmp_path, name="t", command="x", config={}, seeds=[0])
    filled = fill("<!-- table:t metric=lstm_minus -->\n<!-- /table:t -->", tmp_path)
    assert "| sgd | -2.000 (.300) |" in filled
    assert "| adam | -.200 (.300), not below 0 |" in filled
    assert "| adamw | 1.000 (.300), not below 0 |" in filled


def test_terminal_tables_have_a_column_a_step():
    """Fault: columns of several steps fall into one."""
    console = Console(width=120, record=True, file=io.StringIO())
    print_tables(rows_of_waves(), console=console, metric="mse", steps=(1, 10))
    text = console.export_text()
    assert "5 shots, 1 step" in text and "10 shots, 10 steps" in text and "5.010" in text


def test_a_huge_number_is_short():
    """Fault: a diverged mean fills the table with digits."""
    assert (number(2.4e30), number(874.4), number(0.5)) == ("2.4e+30", "874.400", ".500")


def test_a_report_is_made_again_from_the_results_of_a_run(tmp_path, capsys):
    """Faults: what makes a report is gone when its run has ended; a folder without results is a
    traceback."""
    made = made_up()
    head = {"command": made.command, "config": made.config, "seeds": made.seeds}
    write(made.rows, made.scores, tmp_path, **head)
    report.main(["x", str(tmp_path)])
    page = (tmp_path / "report.html").read_text()
    assert "Sentiment" in page and "report.html" in capsys.readouterr().out
    with pytest.raises(ResultsError, match="there are no results"):
        report.main(["x", str(tmp_path / "nothing")])
    with pytest.raises(ConfigError, match="usage: python -m experiments.report RUN"):
        report.main(["x"])
