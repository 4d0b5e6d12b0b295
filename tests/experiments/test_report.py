"""The report on made-up outcomes: what it shows, what it flags, and that it stands alone."""

import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from rich.console import Console

from experiments import report
from experiments.config_files import ConfigError
from experiments.exhibits import exhibit
from experiments.reports.confusions import confusions
from experiments.reports.figures import curves, styles
from experiments.reports.layout import Column, grid
from experiments.reports.page import _header, _seeds, write_report
from experiments.reports.terminal import print_tables
from experiments.reports.verdicts import duration, verdict
from experiments.tables.readme import fill
from metaguide.evaluation.results import (
    Results,
    ResultsError,
    Row,
    cells_to_rows,
    read,
    with_baselines,
    write,
)
from metaguide.evaluation.rows import decimal
from metaguide.tasks import CLASSIFICATION, RECOMMENDATION, SENTIMENT

METHODS = (
    {
        "task": "sentiment",
        "method": "fine-tuning",
        "learning_rate": 0.3,
        "tuned_by": {"metric": "accuracy", "score": 0.7},
        "diverged": 0.0,
        "seconds": 0.0304,
    },
    {
        "task": "sentiment",
        "method": "maml",
        "learning_rate": None,
        "tuned_by": {"metric": "accuracy", "score": 0.9},
        "diverged": 0.25,
        "seconds": None,
    },
)
"""What validation chose, for methods of `made_up`."""

DOMAINS, SHOTS = ("phones", "热水器"), (0, 5)
SKILL = {"scratch": 0.5, "maml": 0.9, "fine-tuning": 0.2, "majority": 0.6}
BASELINE = ("majority",)


def made_up(episodes=6, queries=8):
    """Outcomes of three methods and a baseline; fine-tuning is worse than from scratch."""
    rng = np.random.default_rng(0)
    rows, scores = [], {}
    ids = np.stack([rng.permutation(60)[:queries] for _ in range(episodes)])
    for method, skill in SKILL.items():
        for domain in DOMAINS:
            for shots in SHOTS:
                places = 3 if shots and method not in BASELINE else 1
                target = np.broadcast_to(ids % 2, (2, places, *ids.shape))
                right = rng.random(target.shape) < skill
                cell = {"table": "bazaar", "method": method, "domain": domain, "shots": shots}
                raw = {"mask": np.ones(ids.shape, bool), "id": ids, "target": target}
                raw["predicted"] = np.where(right, target, 1 - target)
                more, kept = cells_to_rows(raw, scoring=SENTIMENT.scoring, draws=50, **cell)
                rows += more
                scores |= kept
                rank = np.where(right, 1, 40)
                raw = {"rank": rank, "mask": raw["mask"], "id": ids}
                more, kept = cells_to_rows(raw, scoring=RECOMMENDATION.scoring, draws=50, **cell)
                rows += more
                scores |= kept
    head = {"command": "python -m experiments.guide", "config": {"way": 5}, "seeds": (0, 1)}
    return Results(
        rows=tuple(with_baselines(rows, BASELINE)), scores=scores, made="2026-01-02", **head
    )


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


def test_the_header_says_how_many_episodes_each_task_has(outcomes):
    """Fault: the rankings of recommendation are said to be the episodes of all tasks."""
    rows = [
        replace(one, episodes=2000 if one.task == "recommendation" else 50) for one in outcomes.rows
    ]
    said = _header(outcomes._replace(rows=tuple(rows)))
    assert "50 (Sentiment)" in said and "2000 (Recommendation)" in said
    alike = [replace(one, episodes=50) for one in rows]
    assert "<dd>50</dd>" in _header(outcomes._replace(rows=tuple(alike)))


def test_the_verdict_comes_first_and_the_guide_at_work_before_the_tables(page):
    """Faults: which method to use stands nowhere, and the guide at work below all tables; a lone
    seed 0 reads as no seed."""
    places = [page.index(f'id="{name}"') for name in ("verdict", "guide", "sentiment")]
    assert places == sorted(places)
    links = re.findall('<a href="#([a-z]+)">', page[page.index("<nav>") : page.index("</nav>")])
    assert links == ["verdict", "guide", "sentiment", "recommendation"]
    assert "<dt>training seeds</dt><dd>2 (0, 1)</dd>" in page
    assert (_seeds((0,)), _seeds((0, 1, 2))) == ("1 (seed 0)", "3 (0, 1, 2)")


class Around(Strict):
    """Notes the classes of the elements that tables and drawings stand in."""

    def __init__(self):
        super().__init__()
        self.classes, self.around = [], {"table": [], "svg": []}

    def handle_starttag(self, tag, attrs):
        """An element opens."""
        super().handle_starttag(tag, attrs)
        if tag in self.around:
            self.around[tag].append(self.classes[-1])
        if tag not in self.void:
            self.classes.append(dict(attrs).get("class", ""))

    def handle_endtag(self, tag):
        """It closes."""
        super().handle_endtag(tag)
        self.classes.pop()


@pytest.mark.slow
def test_a_narrow_screen_cuts_nothing_off(outcomes, tmp_path):
    """Faults: a table outside what scrolls and shows it, panels in one drawing that is wider than a
    phone, navigation that runs out of sight."""
    parser = Around()
    page = write_report(outcomes._replace(tunings=METHODS), tmp_path).read_text("utf-8")
    parser.feed(page)
    assert len(parser.around["table"]) > 4 and set(parser.around["table"]) == {"scroll"}
    assert {"panels", ""} <= set(parser.around["svg"])
    widths = [float(w) for w in re.findall(r'<svg role="img"[^>]* width="([\d.]+)pt"', page)]
    assert widths and max(widths) < 400
    assert re.search(r"nav .page {[^}]*flex-wrap: wrap", page)
    assert re.search(r"\.scroll {[^}]*linear-gradient[^}]* local", page)
    assert 'class="scroll" role="region" tabindex="0"' in page


def test_panels_of_several_shots_are_drawings_of_their_own_in_one_range():
    """Faults: panels cannot be set below each other; each has a range of its own, so that 1 shot
    looks as good as 10."""
    rows = rows_of_waves()
    drawn = curves(rows, "he", styles(["maml", "pretrained"], []), "waves")
    assert len(drawn) == 2 and "5 shots" in drawn[0] and "10 shots" in drawn[1]
    ticks = [re.findall(r">(\d+)</text>", one.split('id="matplotlib.axis_2"')[1]) for one in drawn]
    assert ticks[0] == ticks[1] and len(ticks[0]) > 2
    assert curves(rows, "elsewhere", {}, "waves") == []


def test_figures_are_drawn_without_glyphs_that_are_missing(outcomes, tmp_path, recwarn):
    """Chinese names handed to a plotting font that lacks them; figures lost or one for all."""
    page = write_report(outcomes, tmp_path).read_text("utf-8")
    assert not [w for w in recwarn if "Glyph" in str(w.message)]
    # by task and domain: bars, and curves over steps
    assert page.count('<svg role="img"') == 2 * 2 * 2
    assert 'id="guide"' not in page


def test_negative_transfer_is_shown_with_its_paired_difference(outcomes, page):
    """A method worse than from scratch that looks like any other."""
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


def test_tables_show_the_last_step_and_the_baselines_apart(outcomes):
    """The first step or the best step in the table; a baseline called the best method."""
    laid = grid(outcomes.rows, "recommendation", "hr@10")
    assert laid.baselines == BASELINE and "majority" not in laid.methods
    assert {cell.row.steps for (_, c), cell in laid.cells.items() if c.shots == 5} == {0, 2}
    assert laid.cells["maml", Column("phones", 5)].row.steps == 2
    assert not any(laid.cells["majority", column].best for column in laid.columns)


def test_the_best_of_the_methods_that_did_not_diverge_is_marked(outcomes):
    """Fault: where the highest value is of a method that diverged, no method is marked."""
    higher = [
        replace(row, method="wild", value=2.0, diverged=1)
        for row in outcomes.rows
        if row.method == "maml"
    ]
    laid = grid((*outcomes.rows, *higher), "recommendation", "hr@10")
    for column in laid.columns:
        assert not laid.cells["wild", column].best
        assert any(cell.best for (_, at), cell in laid.cells.items() if at == column)


def test_showcase_marks_answers_and_the_next_product(page):
    """A span shifted by what HTML escapes, or the true next product not marked."""
    assert (
        'ab<u class="gold">&lt;c</u><mark><u class="gold">d&gt;</u></mark><mark>ef</mark>' in page
    )
    assert re.search(r'<li class="next">.*?红壶 ✓', page)
    assert "✗ pots" in page and "actually cups" in page
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
        ("positive", "negative", 0.11, "✗ negative</span> * 89% sure; actually positive"),
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
    assert "the next product is ranked 1" in drawn
    assert drawn.count('class="card question"') == 4


def scored(skills, domains=("toys",), shots=(5,), episodes=20, queries=10, **more):
    """Sentiment of methods right in shares of the same examples; by method, or (method, domain)."""
    rows, scores = [], {}
    ids = np.random.default_rng(0).permutation(episodes * queries).reshape(episodes, queries)
    raw = {"mask": np.ones(ids.shape, bool), "id": ids, "target": ids % 2}
    lost = more.pop("lost", {})
    for method in dict.fromkeys(one if isinstance(one, str) else one[0] for one in skills):
        for domain in domains:
            skill = skills.get((method, domain), skills.get(method))
            # Which ones a method is right about has nothing to do with the method before it.
            chance = np.random.default_rng(len(rows)).permutation(ids.size).reshape(ids.shape)
            right = chance < round(skill * ids.size)
            predicted = np.where(right, ids % 2, 1 - ids % 2)[None, None]
            finite = np.ones(predicted.shape, bool)
            finite[:, :, : lost.get(method, 0)] = False
            outcome = raw | {"predicted": np.where(finite, predicted, -1), "finite": finite}
            for count in (0,) if method == "zero-shot" else shots:
                cell = {"table": "bazaar", "method": method, "domain": domain, "shots": count}
                found, kept = cells_to_rows(
                    outcome, scoring=SENTIMENT.scoring, draws=50, steps=[None], **cell
                )
                rows += found
                scores |= kept
    head = {"command": "x", "config": {}, "seeds": (0,), "made": "2026-01-02"}
    return Results(rows=tuple(with_baselines(rows, BASELINES)), scores=scores, **head, **more)


BASELINES = ("majority", "tf-idf")


def chosen(**scores):
    """What validation chose on sentiment, by method: (score, seconds)."""
    return tuple(
        {
            "task": "sentiment",
            "method": method,
            "learning_rate": 0.1,
            "tuned_by": {"metric": "accuracy", "score": score},
            "diverged": 0.0,
            "seconds": seconds,
        }
        for method, (score, seconds) in scores.items()
    )


def concluded(results):
    """The verdict, and the sentences that it goes on with as one text."""
    found = verdict(results, "sentiment", baselines=BASELINES)
    return found, " ".join(found.more)


def test_a_method_above_all_baselines_is_recommended_with_what_it_beats_and_costs():
    """Faults: the reader has to find the best method in the tables; a method that the held-out
    domains like better takes the place of validation's choice; scratch, which does not serve, is
    chosen."""
    skills = {"maml": 0.9, "ridge": 0.95, "scratch": 0.3, "zero-shot": 0.6}
    tunings = chosen(scratch=(0.99, 0.001), maml=(0.8, 0.021), ridge=(0.7, 0.004))
    baselines = {"majority": 0.5, "tf-idf": 0.6}
    found, more = concluded(scored(skills | baselines, tunings=tunings))
    assert (found.method, found.warning, found.use) == ("maml", "", "Use maml.")
    why = "Validation chose maml, tuned to 0.1, with accuracy .800 on its domains"
    assert f"{why}, behind scratch, which does not serve." in more
    assert re.search(r"The accuracy of maml is \.900 \(\.\d+\) on toys at 5 shots\.", more)
    assert "It beats majority, tf-idf, scratch and zero-shot on toys." in more
    assert "maml costs 21 ms per episode; scratch, the cheapest, 1.0 ms." in more
    assert "no proof" not in more


def test_a_method_that_is_no_better_than_a_baseline_beyond_the_interval_is_not_recommended():
    """Fault: a lead within the interval, or a tie, that reads as a success."""
    skills = {"maml": 0.52, "majority": 0.5}
    found, more = concluded(scored(skills, tunings=chosen(maml=(0.9, 0.02))))
    assert found.use == "No method is shown to be above majority; use that."
    assert found.warning == ""
    assert "No difference is shown from majority on toys." in more and "It beats" not in more
    tie = scored({"maml": 0.5, "majority": 0.5})
    found, _ = concluded(tie)
    assert found.use == "No method is above majority; use that." and found.warning == ""


def test_validations_choice_below_the_best_baseline_is_said_first(tmp_path):
    """Fault: the reader is told to use what a baseline without training beats."""
    skills = {"maml": 0.3, "ridge": 0.25, "majority": 0.6, "tf-idf": 0.5}
    results = scored(skills, tunings=chosen(ridge=(0.9, 0.01), maml=(0.8, 0.02)))
    found, more = concluded(results)
    assert found.method == "ridge"
    assert found.warning == (
        "Validation chose ridge, but it is below the best baseline: .250 against .600 of majority "
        "on toys."
    )
    assert found.use == "No method is above majority; use that."
    assert "It is below majority and tf-idf on toys." in more
    assert "ridge costs 10 ms per episode; no method costs less." in more
    page = write_report(results, tmp_path, baselines=BASELINES).read_text("utf-8")
    assert page.index(found.warning) < page.index(found.use) < page.index("It is below majority")
    # A method above the baseline that was not chosen is no advice: the test domains chose it.
    better = scored(skills | {"maml": 0.95}, tunings=results.tunings)
    found, more = concluded(better)
    assert found.use == "Use majority: ridge is not above it."
    assert "Above the best baseline: maml on toys. Only the held-out domains show this." in more


def test_domains_on_which_a_baseline_is_as_good_are_told_apart():
    """Fault: one domain stands for all."""
    skills = {"maml": 0.9, "majority": 0.5, ("majority", "books"): 0.99}
    found, more = concluded(scored(skills, ("toys", "books"), tunings=chosen(maml=(0.9, None))))
    assert found.use == "Use maml on toys, and majority on books."
    assert "It beats majority on toys." in more and "It is below majority on books." in more
    assert "What maml costs was not measured." in more


def test_a_file_from_before_methods_were_recorded_has_a_verdict_that_says_so(tmp_path):
    """Faults: no report of older results; the best method on the held-out domains passes for what
    validation chose; costs that nobody measured."""
    skills = {"maml": 0.9, "ridge": 0.95, "scratch": 0.99, "majority": 0.5}
    found, more = concluded(scored(skills))
    assert (found.method, found.use) == ("ridge", "Use ridge.")
    assert "What validation chose is not recorded here" in more and "flatters" in more
    assert "cost" not in more
    page = write_report(scored(skills), tmp_path, baselines=BASELINES).read_text("utf-8")
    assert "What validation chose, and what it costs" not in page
    # Without the scores of single examples either, the values decide, and that is said.
    found, more = concluded(scored(skills)._replace(scores={}))
    assert found.use == "Use ridge."
    assert "It scores above majority on toys." in more and "It beats" not in more
    assert "no proof" in more


def test_a_method_that_diverged_says_so_and_comes_after_those_that_did_not():
    """Faults: what is not finite goes unsaid in the verdict; a diverged method is called best."""
    skills = {"maml": 0.9, "ridge": 0.8, "majority": 0.5}
    found, _ = concluded(scored(skills, lost={"maml": 1}))
    assert found.method == "ridge"
    tunings = chosen(maml=(0.9, 0.02), ridge=(0.7, 0.01))
    tunings[0]["diverged"] = 0.25
    found, _ = concluded(scored(skills, tunings=tunings))
    assert found.method == "ridge"
    found, more = concluded(scored(skills, lost={"maml": 1}, tunings=tunings[:1]))
    assert found.method == "maml" and "1 of 20 episodes diverged on toys." in more
    assert "25% of its validation outcomes were not finite." in more


def test_a_single_episode_of_one_seed_has_no_interval_and_proves_nothing():
    """Fault: a difference without an interval counts as one beyond it, or ends the report."""
    found, more = concluded(scored({"maml": 0.9, "majority": 0.5}, episodes=1))
    assert "It scores above majority on toys." in more and "no proof" in more
    assert "The accuracy of maml is .900 on toys at 5 shots." in more


def test_baselines_alone_have_a_verdict(tmp_path):
    """Fault: a table without any method ends the report."""
    results = scored({"majority": 0.5, "tf-idf": 0.7})
    found, _ = concluded(results)
    assert found.method is None
    assert found.use == "Baselines alone were scored here; the best is tf-idf."
    assert "best is tf-idf" in write_report(results, tmp_path, baselines=BASELINES).read_text(
        "utf-8"
    )


def test_zero_shot_is_paired_on_the_examples_that_both_have():
    """Fault: examples that count once without shots are paired with others, or not at all."""
    results = scored({"maml": 0.9, "zero-shot": 0.6, "majority": 0.5})
    # As in a table where examples recur: without shots the later ones are left out.
    for name, cell in results.scores.items():
        if "/zero-shot/" in name and "score" in cell:
            cell["id"][5:] = -1
            cell["score"][5:] = np.nan
    _, more = concluded(results)
    assert "zero-shot on toys." in more and "no proof" not in more


def test_an_error_is_better_where_it_is_lower(tmp_path):
    """Fault: the method with the largest error is recommended; no baselines, and it has no end."""
    results = Results("x", {}, (0,), "", tuple(rows_of_waves()), {})
    found = verdict(results, "sinusoid", baselines=("pretrained",))
    assert (found.method, found.use, found.warning) == ("maml", "Use maml.", "")
    found = verdict(results, "sinusoid", baselines=())
    assert found.use == "Use maml." and "no baseline to hold it against" in " ".join(found.more)


def test_a_duration_has_two_digits_and_its_unit():
    """Fault: 0.0004 s, or 999.9 ms beside 1 s."""
    said = [duration(s) for s in (0.0004, 0.0031, 0.14, 0.9996, 2.54, 75.2)]
    assert said == ["0.4 ms", "3.1 ms", "140 ms", "1.0 s", "2.5 s", "75 s"]


def test_confusions_are_counted_over_seeds_and_episodes_and_named(tmp_path):
    """Faults: true and predicted classes change places, a class has the name of another, padding or
    what diverged counts as a class."""
    ids, mask = np.arange(6).reshape(2, 3), np.ones((2, 3), bool)
    mask[1, 2] = False
    target = np.array([[0, 0, 2], [2, 2, 0]])
    one, two = np.array([[2, 0, 2], [0, -1, 0]]), np.array([[2, 2, 2], [2, 2, 2]])
    raw = {"mask": mask, "id": ids, "target": target, "predicted": np.stack([one, two])[:, None]}
    cell = {"table": "t", "method": "maml", "domain": "kitchen", "shots": 5}
    rows, scores = cells_to_rows(
        raw, scoring=CLASSIFICATION.scoring, steps=[None], draws=20, **cell
    )
    classes = {"kitchen": ["blender <b>", "fork", "kettle"]}
    results = Results("x", {}, (0, 1), "", tuple(rows), scores, classes=classes)
    (found,) = confusions(results, "classification", "maml")
    assert (found.domain, found.shots, found.names) == ("kitchen", 5, ("blender <b>", "kettle"))
    assert found.counts.tolist() == [[1, 3], [1, 4]] and found.nothing.tolist() == [0, 1]
    assert found.frequent(5) == [("blender <b>", "kettle", 3, 4), ("kettle", "blender <b>", 1, 6)]
    assert found.right == 5 and found.asked.tolist() == [4, 6]
    page = write_report(results, tmp_path).read_text("utf-8")
    assert "blender &lt;b&gt; taken for kettle: 3 of 4" in page
    assert "kitchen, 5 shots: 5 of 10 right" in page and "<th>not finite</th>" in page
    (nameless,) = confusions(results._replace(classes={}), "classification", "maml")
    assert nameless.names == ("class 0", "class 2")
    assert confusions(results, "questions", "maml") == []
    assert confusions(scored({"maml": 0.5}), "sentiment", "maml")[0].names == (
        "negative",
        "positive",
    )


@pytest.mark.slow
def test_what_validation_chose_is_a_table_of_rates_scores_and_costs(outcomes, tmp_path):
    """Fault: tuned rates and costs are nowhere in the report."""
    page = write_report(outcomes._replace(tunings=METHODS), tmp_path).read_text("utf-8")
    table = page[page.index("What validation chose, and what it costs") :]
    table = table[: table.index("</table>")]
    lines = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", line) for line in table.split("<tr>")[1:]]
    assert lines[1] == ["<strong>fine-tuning</strong>", "0.3", ".700", "30 ms", "0%"]
    assert lines[2] == ["maml", "–", ".900", "–", "25%"]
    assert lines[0] == ["method", "tuned to", "accuracy there", "per episode", "not finite there"]


def test_names_are_escaped_wherever_the_report_says_them(tmp_path):
    """Fault: the name of a method, a domain or a class is read as HTML."""
    evil = "<script>&\"'"
    skills = {evil: 0.4, "zero-shot": 0.3, "majority": 0.6, "tf-idf": 0.5}
    results = scored(skills, (evil,), tunings=chosen(**{evil: (0.9, 0.01)}))
    results = results._replace(seeds=(), classes={evil: [evil, evil]})
    parser = Strict()
    parser.feed(page := write_report(results, tmp_path, baselines=BASELINES).read_text("utf-8"))
    assert parser.open == [] and "<script" not in page
    assert evil in "".join(parser.text)


def test_terminal_tables_hold_every_method(outcomes):
    """A task or method lost in the terminal."""
    console = Console(width=120, record=True, file=io.StringIO())
    print_tables(outcomes.rows, console=console)
    text = console.export_text()
    for word in (*SKILL, *DOMAINS, "sentiment: accuracy", "recommendation: ndcg@10", "▼"):
        assert word in text


@pytest.mark.parametrize("terminal", [True, False])
def test_narrow_terminal_tables_lose_no_digit(outcomes, terminal):
    """Fault: where a table is wider than the terminal, or than a log's 80 columns, its numbers and
    intervals end in "…"."""
    console = Console(width=40, record=True, file=io.StringIO(), force_terminal=terminal)
    print_tables(outcomes.rows, console=console)
    text = console.export_text()
    assert "…" not in text
    shown = [row for row in outcomes.rows if row.metric == "accuracy" and row.task == "sentiment"]
    last = max(row.steps or 0 for row in shown)
    for row in shown:
        if (row.steps or 0) == last:
            assert decimal(row.value) in text


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
    best = next(r for r in read(tmp_path / "bazaar.json").rows if r.method == "maml")
    assert f"**{best.value:.3f}**".replace("**0.", "**.") in filled
    assert fill(filled, tmp_path) == filled
    for broken, message in (
        ("<!-- table:bazaar -->", "not closed"),
        ("<!-- table:gone -->\n<!-- /table:gone -->", "no results"),
        ("<!-- table:bazaar method=x -->\n<!-- /table:bazaar -->", "method= is none of"),
        ("<!-- table:bazaar task=qa -->\n<!-- /table:bazaar -->", "no rows of qa"),
    ):
        with pytest.raises(ResultsError, match=message):
            fill(broken, tmp_path)


def rows_of_waves():
    """A method and a baseline at 5 and 10 points after 1 and 10 steps: points + steps / 100."""
    return [
        Row(
            table="waves",
            method=method,
            domain="he",
            task="sinusoid",
            shots=shots,
            steps=steps,
            metric="mse",
            value=shots + steps / 100 + (method == "pretrained"),
            published=0.67 if (method, shots, steps) == ("maml", 5, 1) else None,
        )
        for method in ("maml", "pretrained")
        for shots in (5, 10)
        for steps in (1, 10)
    ]


def test_readme_shows_chosen_shots_and_a_column_a_step(tmp_path):
    """Faults: the last step alone is shown, other shots are, a baseline counts as a method, the
    value in print stands by another number."""
    write(rows_of_waves(), {}, tmp_path, name="waves", command="x", config={}, seeds=[0])
    block = "<!-- table:waves metric=mse {} -->\n<!-- /table:waves -->"
    filled = fill(block.format("shots=5 steps=1,10"), tmp_path)
    assert "| sinusoid, mse | he 5 shots, 1 step | he 5 shots, 10 steps |" in filled
    assert "| maml | **5.010** (published .670) | **5.100** |" in filled
    assert "| *pretrained* | 6.010 | 6.100 |" in filled and "10 shots" not in filled
    filled = fill(block.format("shots=10 across=tasks"), tmp_path)
    assert "| waves, mse | sinusoid |" in filled and "| maml | **10.100** |" in filled
    assert "| maml | **10.100** |" in fill(block.format("shots=10 domain=he"), tmp_path)
    for choice, message in (
        ("steps=one", "not numbers"),
        ("domain=she", "no rows of .*domain=she"),
        ("across=methods", "is not across=tasks"),
    ):
        with pytest.raises(ResultsError, match=message):
            fill(block.format(choice), tmp_path)


def test_a_difference_that_is_not_below_0_says_so(tmp_path):
    """Faults: an interval that reaches 0 looks like a success, or a success like none; the row with
    the least difference is bold, as if it were a method's own value."""
    fields = {"table": "t", "domain": "10-dim", "task": "quadratic", "shots": None, "steps": 100}
    fields |= {"metric": "lstm_minus", "ci95_seeds": None, "episodes": 9, "seeds": 5}
    rows = [
        Row(method=method, value=value, ci95=half, baseline=None, published=None, **fields)
        for method, value, half in (("sgd", -2.0, 0.3), ("adam", -0.2, 0.3), ("adamw", 1.0, 0.3))
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
    assert (decimal(2.4e30), decimal(874.4), decimal(0.5)) == ("2.4e+30", "874.400", ".500")


@pytest.mark.slow
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
