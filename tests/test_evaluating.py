"""A guide on a shop's own labels: nothing that is asked was seen, and every figure is its own."""

import dataclasses
import json
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

import metaguide.evaluating
from metaguide import evaluation_report
from metaguide.data.catalogue import (
    CatalogueError,
    Domain,
    Interaction,
    Product,
    Question,
    Review,
)
from metaguide.data.encoding import Lengths, TextReader
from metaguide.data.tokenizer import Tokenizer
from metaguide.evaluating import Unsure, evaluate
from metaguide.guide import Guide
from metaguide.tasks import TASKS, Answer, Category, Reading, Sentiment
from tests.pretrained.conftest import write as write_encoder
from tests.test_cli import run


def review(number: int) -> Review:
    """Review number n: every fourth is negative, its text says so, and three stars are left out."""
    stars = 3.0 if number >= 90 else 1.0 if number % 4 == 0 else 5.0
    return Review(f"r{number}", f"{'bad' if stars == 1 else 'good'} {number}", stars=stars)


REVIEWS = tuple(map(review, range(100)))
BARE = tuple(Review(f"n{number}", f"good bare {number}") for number in range(30))
PRODUCTS = tuple(
    Product(f"p{number}", f"thing {number}", category=("a", "b", "c")[number % 3])
    for number in range(30)
)
DOMAIN = Domain("garden", PRODUCTS, (*REVIEWS, *BARE))


class Fake(Guide):
    """A guide that tells bad reviews from good ones after it saw two of each."""

    def __init__(self, vectors: Any = None) -> None:
        tasks = ("classification", "sentiment")
        vars(self).update(
            serving={task: SimpleNamespace(method="fake") for task in tasks},
            reading=SimpleNamespace(reader=SimpleNamespace(vectors=vectors)),
            calls=[],
            reads=[],
        )

    def adapt(self, domain: Any, shots: Any = 5, seed: Any = 0, support: Any = (),
              unlabelled: Any = 0) -> Any:  # fmt: skip
        """Remembers what it read."""
        vars(self)["reads"].append(domain)
        return self.adapted_to(domain, support)

    def adapted_to(self, domain: Any, support: Any) -> Any:
        """Remembers what it was given of a domain that it has read."""
        call = SimpleNamespace(domain=domain, support=list(support), asked=[])
        vars(self)["calls"].append(call)
        kind = {type(one) for one in support} or {Product, Review}
        tasks = {Product: "classification", Review: "sentiment"}

        def predict(batch: list[Any]) -> list[Any]:
            call.asked += batch
            if batch and isinstance(batch[0], Product):
                return [Category("a", {"a": 0.5, "b": 0.3, "c": 0.2}) for _ in batch]
            bad = [len(call.support) >= 4 and one.text.startswith("bad") for one in batch]
            return [
                Sentiment("negative" if is_bad else "positive", 0.05 if is_bad else
                          0.5 + int(one.id[1:]) / 1000, None)
                for is_bad, one in zip(bad, batch, strict=True)
            ]  # fmt: skip

        return SimpleNamespace(
            adapted={tasks[one]: None for one in kind},
            predict=predict,
            adapt=lambda support: self.adapted_to(domain, support),
        )


def test_a_repeat_of_what_is_held_back_is_held_back_too() -> None:
    """Catches a product of two categories whose second row tells the answer to the first, and an
    answer that is no class, which ends the evaluation."""
    again = tuple(
        dataclasses.replace(one, id=f"again {one.id}", category="other") for one in PRODUCTS
    )
    guide: Any = Fake()
    evaluate(guide, Domain("garden", (*PRODUCTS, *again)), (0,), draws=1, candidates=())
    for call in guide.calls:
        assert not any(one.category == "other" for one in call.domain.products)
    unknown = SimpleNamespace(predict=lambda batch: [Category("none", {}) for _ in batch])
    task, rng = TASKS["classification"], np.random.default_rng(0)
    assert task.labels is not None
    split = metaguide.evaluating._split(task, task.labels, Domain("d", PRODUCTS), 9, rng)
    assert not metaguide.evaluating._right(unknown, split).any()


def test_nothing_that_is_asked_was_seen() -> None:
    """Catches a query in a support or in the domain that adapts, draws that are all one, and
    queries that change with the number of shots."""
    guide: Any = Fake()
    evaluate(guide, DOMAIN, (0, 2, 5), draws=3, seed=1, candidates=())
    assert len(guide.calls) == 2 * (1 + 1 + 3 + 3)  # at first it reads the domain
    asked = {frozenset(one.id for one in call.asked if one.id[0] == "r") for call in guide.calls}
    assert len(asked - {frozenset()}) == 1
    for call in guide.calls:
        given = {one.id for one in call.support}
        queried = {one.id for one in call.asked if one.id[0] != "n"}
        assert not given & queried
        rows = (*call.domain.reviews, *call.domain.products)
        labelled = {one.id for one in rows if getattr(one, "category", None) or one.id[0] == "r"}
        part = "r" if any(one[0] == "r" for one in queried) else "p"
        assert not queried & {one for one in labelled if one[0] == part}
        assert given <= labelled
    supports = [frozenset(one.id for one in call.support) for call in guide.calls]
    # Without shots one; 5 of each category are all that are not held back; the others differ.
    assert len(set(supports)) == 1 + 3 + 1 + 2 * 3


def test_every_figure_is_its_own() -> None:
    """Catches accuracy of another cell, a majority of the pool instead of what is asked, and a
    difference to another baseline than the best."""
    guide: Any = Fake()
    products, reviews = evaluate(guide, DOMAIN, (0, 1, 5), draws=2, candidates=())
    assert (reviews.task, reviews.classes, reviews.asked) == ("sentiment", 2, 44)
    found = {(cell.method, cell.shots): cell.score.value for cell in reviews.cells}
    negative = 11  # half of 23, rounded down
    assert found["guide", 0] == found["guide", 1] == found["majority", 5] == 1 - negative / 44
    assert found["guide", 5] == 1 and found["tf-idf few-shot", 5] <= 1
    assert ("tf-idf few-shot", 0) not in found
    assert reviews.above[0][1].value == 0 and reviews.above[5][0] in ("majority", "tf-idf few-shot")
    best = max(found["majority", 5], found["tf-idf few-shot", 5])
    assert reviews.above[5][1].value == pytest.approx(1 - best)
    assert (products.task, products.classes, products.asked) == ("classification", 3, 15)
    assert {cell.score.value for cell in products.cells if cell.method == "guide"} == {1 / 3}
    assert reviews.served == {0: {"fake": 1}, 1: {"fake": 2}, 5: {"fake": 2}}
    assert "fake" not in {cell.method for cell in products.cells}


def test_the_least_sure_are_to_be_labelled_next() -> None:
    """Catches labelled examples that are asked for, or those that the guide knows best."""
    guide: Any = Fake()
    _, reviews = evaluate(guide, DOMAIN, (5,), draws=1, candidates=())
    assert [one.id for one in reviews.unsure] == [f"n{number}" for number in range(10)]
    assert reviews.unsure[3] == Unsure("n3", "good bare 3", "positive", 0.503)


def test_vectors_have_a_baseline_of_their_own() -> None:
    """Catches vectors that belong to other texts."""

    def vectors(texts: Any) -> Any:
        rows = [[1.0, 0.0] if text.startswith("bad") else [0.0, 1.0] for text in texts]
        return np.array(rows, np.float32)

    guide: Any = Fake(vectors)
    _, reviews = evaluate(guide, DOMAIN, (1,), draws=4, candidates=())
    found = {cell.method: cell.score.value for cell in reviews.cells}
    assert found["logistic on its vectors"] == 1


def test_a_peer_learns_from_the_same_examples() -> None:
    """Catches a peer that sees other examples than the guide, or the labels of what is asked; and
    an answer that is scored as that of another example."""
    seen = []

    def peer(texts: Any, classes: Any, asked: Any) -> Any:
        seen.append((tuple(texts), tuple(classes)))
        assert not {*texts} & {*asked}
        return ["negative" if text.startswith("bad") else "positive" for text in asked]

    guide: Any = Fake()
    shop = Domain("x", reviews=REVIEWS)
    (found,) = evaluate(guide, shop, (0, 1, 2), draws=3, candidates=(), peers={"peer": peer})
    supports = [tuple(one.text for one in call.support) for call in guide.calls if call.support]
    assert [texts for texts, _ in seen] == supports and len(seen) == 6
    for texts, classes in seen:
        assert all(
            (text[:3] == "bad") == (c == "negative") for text, c in zip(texts, classes, strict=True)
        )
    score = {(cell.method, cell.shots): cell.score.value for cell in found.cells}
    assert score["peer", 1] == score["peer", 2] == 1 and ("peer", 0) not in score


def test_of_a_large_shop_no_more_is_read_than_can_be(monkeypatch) -> None:
    """Catches a vector for each of a million reviews, of which some hundred are drawn or asked; a
    scale or a row of examples that were not read; and a domain that is read anew for each draw."""
    read = []

    def vectors(texts: Any) -> Any:
        read.extend(texts)
        rows = [[1.0, 0.0] if text.startswith("bad") else [0.0, 1.0] for text in texts]
        return np.array(rows, np.float32)

    monkeypatch.setattr(metaguide.evaluating, "MOST_POOL", 16)
    monkeypatch.setattr(metaguide.evaluating, "MOST_SCALED", 4)
    guide: Any = Fake(vectors)
    shop = Domain("x", reviews=REVIEWS)
    (reviews,) = evaluate(guide, shop, (1, 2), draws=9, queries=10, candidates=())
    given = {one.text for call in guide.calls for one in call.support}
    asked = {one.text for call in guide.calls for one in call.asked}
    assert len(asked) == reviews.asked == 10 and 10 < len(given) <= 16 < 45
    assert given | asked <= {*read} and len(read) <= 10 + 16
    found = {(cell.method, cell.shots): cell.score.value for cell in reviews.cells}
    assert found["logistic on its vectors", 1] == 1
    assert len(guide.reads) == 1


def test_a_domain_without_two_classes_is_an_error() -> None:
    """Catches an evaluation of nothing, and a class of one example that is asked and never seen."""
    guide: Any = Fake()
    lone = tuple(Product(f"p{n}", f"t{n}", category=c) for n, c in enumerate("ab"))
    for domain in (
        Domain("x", lone),
        Domain("x", reviews=tuple(one for one in REVIEWS if one.stars == 5)),
        Domain("x", reviews=BARE),
    ):
        with pytest.raises(
            CatalogueError,
            match="domain x: no two products .*of two products .* two texts; label some",
        ):
            evaluate(guide, domain)


def test_what_serves_is_what_was_chosen(monkeypatch) -> None:
    """Catches the accuracy of the guide's own method for that of the chosen one, or a choice that
    is not told."""

    def chosen(adapted: Any, candidates: Any) -> Any:
        def predict(batch: list[Any]) -> list[Any]:
            return [
                Sentiment("negative" if one.text.startswith("bad") else "positive", 0.5, None)
                for one in batch
            ]

        choice = {"sentiment": SimpleNamespace(method="-other")}
        return SimpleNamespace(adapted=adapted.adapted, predict=predict), choice

    monkeypatch.setattr(metaguide.evaluating, "best", chosen)
    (found,) = evaluate(cast(Any, Fake()), Domain("x", reviews=REVIEWS), (1,), draws=2)
    score = {cell.method: cell.score.value for cell in found.cells}
    assert score["guide"] == 1 > score["fake"] and found.served == {1: {"-other": 2}}
    assert [method for method, _ in evaluation_report._rows(found)][0] == "guide"
    cells = [cell._replace(method=f"-{cell.method}") for cell in found.cells]
    several = found._replace(cells=(*cells, *found.cells))
    assert [method for method, _ in evaluation_report._rows(several)][0] == "guide"


class Ranker(Fake):
    """A guide that ranks products by number, and remembers whom it was asked for."""

    def __init__(self) -> None:
        vars(self).update(serving={"recommendation": SimpleNamespace(method="fake")}, calls=CALLS)

    def adapt(self, domain: Any, shots: Any = 5, *rest: Any, **others: Any) -> Any:
        """Remembers what it was given."""
        call = SimpleNamespace(domain=domain, shots=shots, asked=[])
        CALLS.append(call)

        def predict(batch: list[Any]) -> list[Any]:
            call.asked += batch
            rows = [[n for n in range(6) if f"p{n}" not in one.products] for one in batch]
            return [
                SimpleNamespace(rows=np.array(r), scores=np.arange(len(r), 0.0, -1.0)) for r in rows
            ]

        return SimpleNamespace(adapted={"recommendation": None}, predict=predict)


CALLS: list[Any] = []


def test_the_last_product_of_a_user_is_held_back(monkeypatch) -> None:
    """Catches a product that is asked and was given, to the guide or as a user's history; a rank
    among products that the user has, shown to the guide or not; users of one product; another
    user's rank."""
    monkeypatch.setattr(metaguide.evaluating, "replace", replaced)
    taken = {"a": "510", "b": "02", "c": "3", "d": "4321"}
    events = tuple(
        Interaction(user, f"p{product}", float(time))
        for user, products in taken.items()
        for time, product in enumerate(products)
    )
    domain = Domain("home", PRODUCTS[:6], interactions=events)
    CALLS.clear()
    (found,) = evaluate(cast(Any, Ranker()), domain, (0, 2), candidates=())
    assert (found.task, found.metric, found.classes, found.asked) == (
        "recommendation", "NDCG@10", 6, 3
    )  # fmt: skip
    without, two = CALLS
    for call in CALLS:
        left = {(one.user, one.product) for one in call.domain.interactions}
        assert left == {(one.user, one.product) for one in events} - {
            ("a", "p0"), ("b", "p2"), ("d", "p1")
        }  # fmt: skip
    assert {one.user: one.products for one in without.asked} == {"a": (), "b": (), "d": ()}
    assert {one.user: one.products for one in two.asked} == {
        "a": ("p5", "p1"), "b": ("p0",), "d": ("p3", "p2")
    }  # fmt: skip
    score = {(cell.method, cell.shots): cell.score.value for cell in found.cells}
    # p0, p2 and p1 are ranked 1, 2 and 2 among what their users do not have.
    gain = [1 / np.log2(1 + rank) for rank in (1, 2, 2)]
    assert score["guide", 0] == score["guide", 2] == pytest.approx(sum(gain) / 3)
    assert ("content", 0) not in score and ("content", 2) in score
    assert found.above[2][1].value == pytest.approx(
        score["guide", 2] - max(score["content", 2], score["popularity", 2])
    )
    text = list(evaluation_report.as_text(found))
    assert text[0] == "recommendation: NDCG@10 on 3 users, 6 products, ± 95%"


def replaced(one: Any, **fields: Any) -> Any:
    """`dataclasses.replace`, but for a guide that is none."""
    return one if isinstance(one, Fake) else dataclasses.replace(one, **fields)


def question(number: int) -> Question:
    """Question number n about text n // 2, which answers every third with its number."""
    text = f"It is number {number // 2}. We like it."
    answer = None if number % 3 else (13, text.index("."))
    return Question(f"q{number}", f"which number {number}", text, answer)


ASKED = tuple(map(question, range(24)))


class Answerer(Fake):
    """A guide that finds every answer after it saw two questions, and before says "number"."""

    def __init__(self) -> None:
        texts = [text for one in ASKED for text in (one.question, one.text)]
        vars(self).update(
            serving={"questions": SimpleNamespace(method="fake")},
            reading=Reading(TextReader(Tokenizer.train(texts, 400)), Lengths(8, 64, 4), False, 8),
            calls=[],
        )

    def adapt(self, domain: Any, shots: Any = 5, seed: Any = 0, support: Any = (),
              unlabelled: Any = 0) -> Any:  # fmt: skip
        """Remembers what it was given."""
        call = SimpleNamespace(domain=domain, support=list(support), asked=[])
        vars(self)["calls"].append(call)

        def predict(batch: list[Any]) -> list[Any]:
            call.asked += batch
            spans = [one.answer if len(call.support) >= 2 else (6, 12) for one in batch]
            return [
                Answer(span, None if span is None else one.text[slice(*span)])
                for span, one in zip(spans, batch, strict=True)
            ]

        return SimpleNamespace(adapted={"questions": None}, predict=predict)


def test_a_text_that_is_asked_about_was_not_seen(monkeypatch) -> None:
    """Catches a text on both sides, the score of another question, supports that are all one, and
    an interval that takes two questions about a text for independent."""
    monkeypatch.setattr(metaguide.evaluating, "replace", replaced)
    guide: Any = Answerer()
    (found,) = evaluate(guide, Domain("home", questions=ASKED), (0, 1, 2), draws=3)
    assert (found.task, found.metric, found.classes, found.asked) == ("questions", "F1", 6, 12)
    assert len({frozenset(one.id for one in call.asked) for call in guide.calls}) == 1
    for call in guide.calls:
        texts = {one.text for one in call.asked}
        assert len(call.asked) == 12 and len(texts) == 6
        assert not texts & {one.text for one in (*call.support, *call.domain.questions)}
        assert len(call.domain.questions) == 12
    supports = [frozenset(one.id for one in call.support) for call in guide.calls]
    assert [len(one) for one in supports] == [0, 1, 1, 1, 2, 2, 2] and len(set(supports)) > 3
    score = {(cell.method, cell.shots): cell.score for cell in found.cells}
    without = np.mean([one.answer is None for one in guide.calls[0].asked])
    assert score["abstain", 0].value == score["abstain", 2].value == pytest.approx(without)
    assert score["guide", 0].value == 0 and score["guide", 2].value == 1
    assert 0 < score["best sentence", 0].value < 1 - without
    name, by = found.above[2]
    best = max(score[name, 2].value for name in ("abstain", "best sentence"))
    assert score[name, 2].value == best and by.value == pytest.approx(1 - best)
    assert found.served == {0: {"fake": 1}, 1: {"fake": 3}, 2: {"fake": 3}} and not found.unsure
    text = list(evaluation_report.as_text(found))
    assert text[0] == "questions: F1 on 12 questions held back, 6 texts, ± 95%"
    assert "questions adapted to" in text[1]


def test_questions_about_one_text_are_not_asked() -> None:
    """Catches a question that is asked about the text that the guide adapted to."""
    with pytest.raises(CatalogueError, match="no questions about two texts"):
        evaluate(cast(Any, Answerer()), Domain("home", questions=ASKED[:2]))


def test_a_page_has_all_figures_and_no_text_of_the_shop_is_markup() -> None:
    """Catches a text that runs as a script, a row of another method, a page that needs a network,
    and a picture that lacks a method."""
    guide: Any = Fake()
    (_, found) = evaluate(guide, DOMAIN, (0, 5), draws=2, candidates=())
    text = "<script>alert(1)</script> & more"
    found = found._replace(unsure=(Unsure("<b>", text, "positive", 0.51),))
    page = evaluation_report.as_page([found], "<garden>", "a & b")
    tags, rows = read_page(page)
    assert not tags & {"script", "link", "img", "b", "garden"}
    assert rows[0] == ["shots of each class", "0", "5"]
    methods = [row[0] for row in rows[1:-2]]
    assert methods[0] == "guide" and set(methods) == {cell.method for cell in found.cells}
    for cell in found.cells:
        (row,) = (row for row in rows if row[0] == cell.method)
        shown = row[1 + (0, 5).index(cell.shots)]
        assert shown.startswith(f"{cell.score.value:.3f}".removeprefix("0"))
        assert page[page.index("<svg") : page.index("</svg")].count(f">{cell.method}<") == 1
    assert rows[-1] == ["<b>", text, "positive", ".510"]
    for line in evaluation_report.findings(found):
        assert f"<li>{line}" in page
    assert json.loads(json.dumps(evaluation_report.as_json(found)))["unsure"][0]["text"] == text


def read_page(page: str) -> tuple[set[str], list[list[str]]]:
    """The tags of a page, and the texts of the rows of its tables."""
    tags, rows = set(), []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: Any) -> None:
            tags.add(tag)
            if tag == "tr":
                rows.append([])
            if tag in ("th", "td"):
                rows[-1].append("")

        def handle_data(self, data: str) -> None:
            if rows and rows[-1]:
                rows[-1][-1] += data.strip()

    Reader().feed(page.replace("</tbody>", "<tr>"))
    return tags, [row for row in rows if row]


@pytest.mark.slow
def test_the_command_prints_what_the_function_returns(tmp_path, monkeypatch, capsys) -> None:
    """Catches a column of another number of shots, and a bad option that is a traceback."""
    monkeypatch.chdir(tmp_path)
    write_encoder(tmp_path / "encoder", "bert")
    lines = [f"{'good' if n % 2 else 'bad'} phone {'the ' * n},{n % 2}" for n in range(16)]
    (tmp_path / "r.csv").write_text("\n".join(["text,sentiment", *lines]))
    assert run(monkeypatch, capsys, "import", "r.csv", "shop/phones")[0] == 0
    command = ["evaluate", "shop/phones", "--guide=encoder", "--length=20", "--draws=2"]
    code, out, err = run(monkeypatch, capsys, *command, "--shots=0,2", "--json", "--own-method")
    (found,) = json.loads(out)
    assert code == 0 and found["asked"] == 8, err
    code, out, err = run(monkeypatch, capsys, *command, "--shots=0,2", "--report=page.html")
    assert "page.html: the same as a page" in out and "<svg" in Path("page.html").read_text()
    assert code == 0 and out.startswith("sentiment: accuracy on 8 held back, 2 classes"), err
    values = {(cell["method"], cell["shots"]): cell["score"]["value"] for cell in found["cells"]}
    line = next(line for line in out.splitlines() if line.startswith("  guide"))
    assert f"{values['guide', 2]:.3f}".removeprefix("0") in line
    assert ("guide", 0) not in values
    for shots in ("", "a", "-1"):
        code, out, err = run(monkeypatch, capsys, *command, f"--shots={shots}")
        assert code == 1 and "write numbers, as in 0,1,5" in err and err.count("\n") == 1
