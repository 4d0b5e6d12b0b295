"""Answers for tables: every row keeps its columns, and gets its answer or the reason why not."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

import metaguide
from metaguide import predicting
from metaguide.data.catalogue import CatalogueError, Domain, Product, Question, Review
from metaguide.data.histories import History
from metaguide.data.importers import Options
from metaguide.guide import AdaptedGuide
from metaguide.predicting import predict_file, read_examples
from metaguide.tasks import Answer, Category, Sentiment
from metaguide.tasks.recommendation import Ranking
from tests.pretrained.conftest import write as write_encoder

ROWS = [
    {"key": "a", "comment": "good", "note": "x", "stars": "7 of 5"},
    {"key": "b", "comment": "", "note": "y", "stars": "2"},
    {"key": "c", "comment": 'bad, "bad"\nbad', "note": "z", "stars": ""},
    {"key": "d", "comment": "gut", "note": "", "stars": "5"},
]
MAPPING = {"id": "key", "text": "comment"}


class Echo(AdaptedGuide):
    """A guide whose answers say what was asked."""

    def __init__(self) -> None:
        vars(self).update(
            domain=Domain("garden", (Product("p1", "Hose"), Product("p2", "Rake"))),
            notes={"questions": ("this guide was not trained on questions",)},
            adapted={"classification": None, "sentiment": None, "recommendation": None},
            sizes=[],
        )

    def predict(self, batch: list[Any], top: int | None = None) -> list[Any]:
        """Answers with the text, or with the products that a user took."""
        vars(self)["sizes"].append(len(batch))
        return [self._answer(one, top) for one in batch]

    def _answer(self, one: Any, top: int | None) -> Any:
        if isinstance(one, Review):
            assert one.label is None
            return Sentiment(one.text, 0.25, None)
        if isinstance(one, Product):
            return Category(one.title, {one.title: 0.5, "other": 0.5})
        catalogue = tuple(product.id for product in self.domain.products)
        rows = np.array([catalogue.index(p) for p in one.products][:top])
        return Ranking(one.user, np.ones(len(rows), np.float32), "history", catalogue, rows)


def written(path: Path, rows: list[dict]) -> Path:
    """Writes rows in the format that the path's name tells."""
    if path.suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with open(path, "w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, list(rows[0]))
            table.writeheader()
            table.writerows(rows)
    return path


def table(path: Path) -> list[dict]:
    """Reads what was written."""
    with open(path, newline="", encoding="utf-8") as file:
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in file]
        return list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","))


@pytest.mark.parametrize("target", ["out.csv", "out.tsv", "out.jsonl"])
@pytest.mark.parametrize("source", ["in.csv", "in.jsonl", "in.parquet"])
def test_each_row_gets_its_own_answer(tmp_path, monkeypatch, source, target) -> None:
    """Catches answers that move to other rows when one is not read, columns that are lost, labels
    that stand in the way, and batches that are held all at once."""
    monkeypatch.setattr(predicting, "AT_ONCE", 2)
    guide: Any = Echo()
    file = written(tmp_path / source, ROWS)
    done = predict_file(guide, file, tmp_path / target, Options(mapping=MAPPING))
    found = table(tmp_path / target)
    assert [row["comment"] for row in found] == [row["comment"] for row in ROWS]
    assert [row["note"] for row in found] == [row["note"] for row in ROWS]
    said = [row.get("predicted_sentiment") or None for row in found]
    assert said == ["good", None, ROWS[2]["comment"], "gut"]
    assert "reviews: no text" in found[1]["not_read"] and not found[0].get("not_read")
    assert (done.task, done.answered, done.unread) == ("sentiment", 3, 1)
    assert done.first.startswith(f"{file}:") and guide.sizes == [1, 2]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "gb18030"])
def test_answers_open_where_the_table_was_written(tmp_path, encoding) -> None:
    """Catches Chinese that a spreadsheet shows as other characters, for want of a mark; and a mark
    before the first column's name in a table of a program."""
    source, target = tmp_path / "r.csv", tmp_path / "a.csv"
    source.write_text("评论,text\n一,房间很大\n", encoding=encoding)
    predict_file(Echo(), source, target, Options(encoding=encoding.replace("-sig", "")))
    assert target.read_bytes().startswith(b"\xef\xbb\xbf") == (encoding != "utf-8")
    ((row,),) = [list(csv.DictReader(target.open(encoding="utf-8-sig")))]
    assert row["评论"] == "一" and row["predicted_sentiment"] == "房间很大"
    predict_file(Echo(), target, tmp_path / "again.csv")
    assert (tmp_path / "again.csv").read_bytes() == target.read_bytes()


def test_a_table_without_a_readable_row_is_an_error(tmp_path) -> None:
    """Catches an empty table of answers that passes for success."""
    source = tmp_path / "orders.csv"
    source.write_text("user,product,time\nu1,p1,5.3.2024\nu1,p2,6.3.2024\n", encoding="utf-8")
    with pytest.raises(CatalogueError, match=r"no row can be read, the first at .*orders.csv:2"):
        predict_file(Echo(), source, tmp_path / "a.csv")
    assert not (tmp_path / "a.csv").exists()
    done = predict_file(Echo(), source, tmp_path / "a.csv", Options(time_format="%d.%m.%Y"))
    assert (done.answered, done.unread) == (1, 0)


def test_answers_are_answered_again(tmp_path) -> None:
    """Catches an answer or a reason of before that stays, twice the same columns, a column without
    a name that is lost, and a field of a later row that ends it all."""
    source = tmp_path / "r.csv"
    source.write_text(",text,,predicted_sentiment,not_read\na,good,b,old,old\n", encoding="utf-8")
    for target in (tmp_path / "once.csv", tmp_path / "twice.csv"):
        predict_file(Echo(), source, target)
        ((row,),) = [list(csv.DictReader(target.open(encoding="utf-8")))]
        assert row["predicted_sentiment"] == "good" and not row["not_read"]
        assert [row[name] for name in list(row)[:3]] == ["a", "good", "b"] and len(row) == 7
        source = target
    lines = tmp_path / "r.jsonl"
    lines.write_text('{"text": "a"}\n' * 1000 + '{"text": "b", "user": "u"}\n', encoding="utf-8")
    with pytest.warns(UserWarning, match="lacks 'user', .*name it .jsonl"):
        predict_file(Echo(), lines, tmp_path / "lines.csv")
    assert len((tmp_path / "lines.csv").read_text().splitlines()) == 1002


def test_products_and_users_are_answered(tmp_path) -> None:
    """Catches a category without its probability, a history out of order, or a user without an
    answer whose products are all unknown."""
    guide: Any = Echo()
    file = written(tmp_path / "p.csv", [{"title": "Hose", "category": ""}])
    predict_file(guide, file, tmp_path / "out.csv")
    assert table(tmp_path / "out.csv") == [
        {"title": "Hose", "category": "", "predicted_category": "Hose",
         "predicted_probability": "0.5", "not_read": ""}
    ]  # fmt: skip
    rows = [("u", "p2", 3), ("v", "p1", 1), ("u", "p1", 2), ("u", "p9", 4), ("w", "p9", 5)]
    events = [{"user": user, "product": product, "time": time} for user, product, time in rows]
    done = predict_file(guide, written(tmp_path / "u.csv", events), tmp_path / "out.jsonl", top=2)
    assert [(row["user"], row["predicted_rank"], row["predicted_product"])
            for row in table(tmp_path / "out.jsonl")] == [
        ("u", 1, "p1"), ("u", 2, "p2"), ("v", 1, "p1")
    ]  # fmt: skip
    assert (done.answered, done.unread) == (3, 2) and "does not know" in done.first
    with pytest.raises(CatalogueError, match="no row can be read"):
        predict_file(guide, written(tmp_path / "w.csv", events[3:]), tmp_path / "none.jsonl")


def test_a_question_may_name_a_product_in_the_place_of_a_text(tmp_path) -> None:
    """Catches a question about a product that has to repeat its description, and one about a
    product without a description that is asked about nothing."""
    guide = Echo()
    products = (Product("p1", "Hose", "Ten metres."), Product("p2", "Rake"))
    vars(guide).update(domain=Domain("garden", products), adapted={"questions": None})
    vars(guide)["_answer"] = lambda one, top: Answer((0, len(one.text)), one.text)
    rows = [{"question": "How long?", "product": id} for id in ("p1", "p2", "p3")]
    done = predict_file(guide, written(tmp_path / "a.csv", rows), tmp_path / "b.jsonl")
    first, *others = map(json.loads, (tmp_path / "b.jsonl").read_text().splitlines())
    assert first["predicted_answer"] == "Ten metres." and (done.answered, done.unread) == (1, 2)
    assert all("unknown or has no description" in one["not_read"] for one in others)


def test_answers_of_questions_are_columns() -> None:
    """Catches a span that is lost, or a question without an answer that fails."""
    from metaguide.tasks import QUESTIONS

    assert QUESTIONS.columns == ("answer", "start", "end")
    assert QUESTIONS.cells(Answer((3, 5), "ab")) == [("ab", 3, 5)]
    assert QUESTIONS.cells(Answer(None, None)) == [(None, None, None)]


BAD = [
    ("in.csv", "out.xlsx", {}, "name it .csv, .tsv or .jsonl"),
    ("in.doc", "out.csv", {}, "its name does not tell the format"),
    ("none.csv", "out.csv", {}, "cannot be read"),
    ("in.csv", "no/folder/out.csv", {}, "cannot be written"),
    ("in.csv", "out.csv", {"text": "nothing"}, "no column 'nothing' for text"),
    (
        "in.csv",
        "out.csv",
        {"question": "key", "text": "comment"},
        "asks questions, which .* not",
    ),
]


@pytest.mark.parametrize(("source", "target", "mapping", "words"), BAD)
def test_what_cannot_be_answered_is_one_error(tmp_path, source, target, mapping, words) -> None:
    """Catches a traceback, or a table that is left half written."""
    guide: Any = Echo()
    written(tmp_path / "in.csv", ROWS)
    with pytest.raises(CatalogueError, match=words):
        options = Options(mapping=mapping or MAPPING)
        predict_file(guide, tmp_path / source, tmp_path / target, options)
    assert [path.name for path in tmp_path.iterdir()] == ["in.csv"]


def test_a_guide_that_fails_leaves_no_table(tmp_path, monkeypatch) -> None:
    """Catches half a table that passes for all of it."""

    def fail(self: Any, batch: Any, top: Any = None) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(Echo, "predict", fail)
    guide: Any = Echo()
    with pytest.raises(RuntimeError):
        predict_file(guide, written(tmp_path / "a.csv", ROWS), tmp_path / "b.csv",
                     Options(mapping=MAPPING))  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


def test_examples_are_read_from_files_and_frames(tmp_path) -> None:
    """Catches a row that is skipped in silence, or a frame that is read as another type."""
    rows = [row for row in ROWS if row["comment"]]
    for source in (written(tmp_path / "a.csv", rows), pyarrow.Table.from_pylist(rows)):
        found = read_examples(source, MAPPING)
        assert found == [Review(row["key"], row["comment"]) for row in rows]
    with pytest.raises(CatalogueError, match="table:2: reviews: no text; mend the row"):
        read_examples(pyarrow.Table.from_pylist(ROWS), MAPPING)
    asked = pyarrow.table({"question": ["Why?"], "text": ["So."]})
    assert read_examples(asked) == [Question("table-1", "Why?", "So.")]
    events = pyarrow.table({"user": ["u", "u"], "product": ["b", "a"], "time": [2, 1]})
    assert read_examples(events) == [History("u", ("a", "b"))]
    named = pyarrow.table({"title": ["Hose"], "attributes.colour": ["red"]})
    mapping = {"title": "title", "attributes.colour": "attributes.colour"}
    assert read_examples(named, mapping) == [
        Product("table-1", "Hose", attributes={"colour": "red"})
    ]


@pytest.mark.slow
def test_an_export_becomes_answers_by_three_commands(tmp_path, monkeypatch, capsys) -> None:
    """Catches a command that does not fit the one before, or answers that are not the guide's."""
    from tests.test_cli import run

    monkeypatch.chdir(tmp_path)
    write_encoder(tmp_path / "encoder", "bert")
    reviews = [("good phone", 1), ("bad phone", 0), ("the screen is good", 1), ("not good", 0)]
    lines = [f"{text},{label}" for text, label in reviews]
    (tmp_path / "r.csv").write_text("\n".join(["text,sentiment", *lines]))
    assert run(monkeypatch, capsys, "import", "r.csv", "shop/phones")[0] == 0
    where = "--guide=encoder", "--length=20", "--output=phones.guide"
    code, out, err = run(monkeypatch, capsys, "adapt", "shop/phones", *where, "--shots=1")
    assert code == 0 and "sentiment       by soft-k-means, adapted to 2 examples" in out, err
    asked = "--input=r.csv", "--output=answers.csv"
    code, out, err = run(monkeypatch, capsys, "predict", "phones.guide", *asked)
    assert code == 0 and "answers.csv: 4 of sentiment" in out and "unclosed" not in out, err
    guide = metaguide.load("phones.guide")
    assert isinstance(guide, AdaptedGuide)
    expected = guide.predict(read_examples("r.csv"))
    found = [row["predicted_sentiment"] for row in table(tmp_path / "answers.csv")]
    assert found == [one.sentiment for one in expected] and len(set(found)) == 2
    for arguments, words in [
        (["predict", "encoder", *asked], "encoder: is not adapted to a domain; adapt it"),
        (["predict", "phones.guide", "--input=x.csv", "--output=y.csv"], "x.csv: cannot be read"),
        (["adapt", "shop/none", *where], "none: cannot be read"),
        (["adapt", "shop/phones", *where, "--encoder=encoder"], "is an encoder itself; leave"),
        (["adapt", "shop/phones", "--guide=phones.guide", "--output=x"], "is adapted already"),
        (["adapt", "shop/phones", "--guide=shop", "--output=x"], "no such file; give the folder"),
    ]:
        code, out, err = run(monkeypatch, capsys, *arguments)
        assert code == 1 and out == "" and err.count("\n") == 1 and words in err, err
