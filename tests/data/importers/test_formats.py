"""Each format: what it reads, and that no line of it is lost in silence."""

import csv
import gzip
import io
import json
import random
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pyarrow import parquet

from metaguide.data.catalogue import REJECTS, CatalogueError, read_domain
from metaguide.data.importers import FORMATS, Options, Summary, format_of, import_domain
from metaguide.data.importers.source import Place, made_id


def imported(format: str, files: list[Path], folder: Path, **options: Any) -> Summary:
    """Imports files of a format, in the place of what the folder holds."""
    return import_domain(FORMATS[format].importer, files, folder, Options(**options), replace=True)


def write(path: Path, *lines: Any) -> Path:
    """Writes lines, those that are no texts as JSON."""
    texts = [one if isinstance(one, str) else json.dumps(one, ensure_ascii=False) for one in lines]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return path


ORDERS = [
    {"id": "r1", "text": 'Works, "well"', "stars": "5", "product": "p1", "title": "A hose"},
    {"id": "r2", "text": "Two\nlines", "stars": "1", "product": "p2", "title": "盆栽土"},
    {"id": "r3", "text": "Again", "stars": "2", "product": "p1", "title": "A hose"},
]
ORDERS = [{**one, "user": f"u{n}", "time": str(1_700_000_000 + n)} for n, one in enumerate(ORDERS)]


def as_csv(path: Path, rows: list[dict], delimiter: str = ",", encoding: str = "utf-8") -> Path:
    """Writes a table of text."""
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, list(rows[0]), delimiter=delimiter, lineterminator="\r\n")
    writer.writeheader()
    writer.writerows(rows)
    path.write_bytes(stream.getvalue().encode(encoding))
    return path


def as_parquet(path: Path, rows: list[dict]) -> Path:
    """Writes Parquet."""
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


TABLES: Mapping[str, Callable[[Path], Path]] = {
    "csv": lambda folder: as_csv(folder / "a.csv", ORDERS),
    "tsv": lambda folder: as_csv(folder / "a.tsv", ORDERS, "\t"),
    "jsonl": lambda folder: write(folder / "a.jsonl", *ORDERS),
    "parquet": lambda folder: as_parquet(folder / "a.parquet", ORDERS),
}


@pytest.mark.parametrize("format", TABLES)
def test_a_row_of_a_table_may_be_a_product_a_review_and_a_purchase(
    tmp_path: Path, format: str
) -> None:
    """Catches a part that is not read, a product that is written twice, or a link that is lost."""
    file = TABLES[format](tmp_path)
    summary = imported(format, [file], tmp_path / "shop" / "garden")
    domain = read_domain(tmp_path / "shop" / "garden")
    assert summary.read == {"products": 2, "reviews": 3, "interactions": 3} and not summary.rejected
    assert [(one.id, one.title) for one in domain.products] == [("p1", "A hose"), ("p2", "盆栽土")]
    assert [(one.id, one.text, one.stars, one.product) for one in domain.reviews] == [
        (one["id"], one["text"], float(one["stars"]), one["product"]) for one in ORDERS
    ]
    assert [(one.user, one.time) for one in domain.interactions] == [
        (one["user"], float(one["time"])) for one in ORDERS
    ]
    assert "products: named again by a later row" in summary.remarks


def test_further_rows_of_a_product_without_a_title_are_its_variants(tmp_path: Path) -> None:
    """Catches variants in the export of a shop as rejects, a row whose title is lost as a variant
    of the product above, and a variant that overwrites its product."""
    lines = (
        "Handle,Title,Body (HTML),Type,Variant SKU,Variant Price,Image Src",
        "hose,Garden hose,<p>Ten metres.</p>,Watering,H-10,19.90,",
        "hose,,,,H-20,29.90,",
        "hose,,,,,,",
        "rake,Leaf rake,,Tools,R-1,12.00,",
        "spade,,,Tools,S-1,15.00,",
        "hose,,,,H-30,39.90,",
        ",,,,X-1,1.00,",
    )
    file = write(tmp_path / "a.csv", "\n".join(lines))
    mapping = {"id": "Handle", "title": "Title", "description": "Body (HTML)", "category": "Type"}
    mapping |= {"attributes.price": "Variant Price"}
    summary = imported("csv", [file], tmp_path / "a", mapping=mapping)
    hose, rake = read_domain(tmp_path / "a").products
    assert (hose.id, hose.description, hose.attributes) == (
        "hose",
        "Ten metres.",
        {"price": "19.90"},
    )
    assert rake.id == "rake"
    assert summary.remarks["products: named again by a later row"].count == 2
    assert summary.rejected["products: no title"].count == 3


@pytest.mark.parametrize("said", ["sep=;", '"sep=;"', "sep=~"])
def test_the_line_that_names_the_delimiter_is_no_header(tmp_path: Path, said: str) -> None:
    """Catches Excel's line before the header as the header, a number of a line that is one less,
    and a title of many commas that chooses the delimiter."""
    mark = said.strip('"')[-1]
    lines = [said, mark.join(["title, short, of the product", "kind"]), f"Hose{mark}garden", "Rake"]
    file = write(tmp_path / "a.csv", "\r\n".join(lines))
    mapping = {"title": "title, short, of the product", "category": "kind"}
    summary = imported("csv", [file], tmp_path / "a", mapping=mapping)
    (product,) = read_domain(tmp_path / "a").products
    assert (product.title, product.category) == ("Hose", "garden")
    assert [str(one.first).endswith("a.csv:4") for one in summary.rejected.values()] == [True]


@pytest.mark.parametrize("delimiter", [";", "|", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252", "gb18030"])
def test_tables_of_other_programs_are_read(tmp_path: Path, delimiter: str, encoding: str) -> None:
    """Catches Excel's byte order mark in the first column's name, or a delimiter not found."""
    rows = [{"text": "Grün, teuer & gut", "stars": "4,5"}]
    file = as_csv(tmp_path / "a.csv", rows, delimiter, encoding)
    said = "utf-8" if encoding.startswith("utf") else encoding
    imported("csv", [file], tmp_path / "garden", encoding=said)
    (review,) = read_domain(tmp_path / "garden").reviews
    assert (review.id, review.text, review.stars) == ("a-2", "Grün, teuer & gut", 4.5)


def test_a_column_that_no_row_has_a_field_for_is_said_to_be_unread(tmp_path: Path) -> None:
    """Catches users of reviews that are said to be read, though only purchases have users."""
    file = as_csv(tmp_path / "a.csv", [{"text": "good", "who": "u1", "price": "3"}])
    mapping = {"text": "text", "user": "who", "attributes.price": "price"}
    summary = imported("csv", [file], tmp_path / "garden", mapping=mapping)
    assert summary.mapping == {"text": "text"} and summary.unread == ("who", "price")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_mark_tells_the_encoding_whatever_is_said(tmp_path: Path, encoding: str) -> None:
    """Catches a file with a byte order mark that is read in the encoding of the shop's others."""
    file = as_csv(tmp_path / "a.csv", [{"text": "房间很大", "stars": "5"}], encoding=encoding)
    imported("csv", [file], tmp_path / "garden", encoding="gb18030")
    (review,) = read_domain(tmp_path / "garden").reviews
    assert review.text == "房间很大"


@pytest.mark.parametrize("encoding", ["gb18030", "cp1252", "big5"])
def test_text_in_utf_8_is_not_read_as_another(tmp_path: Path, encoding: str) -> None:
    """Catches reviews that are stored as other characters without a word."""
    file = as_csv(tmp_path / "a.csv", [{"text": "房间很大，早餐丰富", "stars": "5"}])
    with pytest.raises(CatalogueError, match=f"a.csv: is in UTF-8, not {encoding}; leave"):
        imported("csv", [file], tmp_path / "garden", encoding=encoding)
    other = as_csv(tmp_path / "b.csv", [{"text": "联通联通联通联通", "stars": "5"}], ",", "gb18030")
    imported("csv", [other], tmp_path / "other", encoding="gb18030")
    assert read_domain(tmp_path / "other").reviews[0].text == "联通联通联通联通"


def test_a_mapping_says_which_column_is_which_field(tmp_path: Path) -> None:
    """Catches a column that is read by its own name, or an attribute that is dropped in silence."""
    file = write(
        tmp_path / "a.jsonl", {"sku": 7, "t": {"en": "Hose"}, "cat": "Watering", "p": "$3", "id": 1}
    )
    mapping = {"id": "sku", "title": "t.en", "category": "cat", "attributes.price": "p"}
    summary = imported("jsonl", [file], tmp_path / "garden", mapping=mapping)
    (product,) = read_domain(tmp_path / "garden").products
    assert (product.id, product.title, product.category) == ("7", "Hose", "Watering")
    assert product.attributes == {"price": "3 $"}
    assert summary.unread == ("id",) and summary.mapping == mapping


def test_what_is_said_twice_or_not_at_all_is_said(tmp_path: Path) -> None:
    """Catches a product that is lost for its price, a price or a list that is lost, a label of the
    two that goes unsaid, and a byte order mark that hides the first line."""
    rows = (
        {
            "title": "Hose",
            "attributes.price": "¥99-199",
            "attributes.new": True,
            "attributes.tags": ["red", 5, ""],
        },
        {"title": "Rake", "attributes.tags": {"colour": "red"}},
    )
    file = write(tmp_path / "p.jsonl", "\ufeff" + json.dumps(rows[0]), rows[1])
    mapping = {name: name for name in rows[0]}
    summary = imported("jsonl", [file], tmp_path / "garden", mapping=mapping)
    products = read_domain(tmp_path / "garden").products
    assert [(one.title, dict(one.attributes)) for one in products] == [
        ("Hose", {"price": "¥99-199", "new": "yes", "tags": "red, 5"}),
        ("Rake", {}),
    ]
    assert set(summary.remarks) == {
        "products, attributes.price: is no single price, and is kept as it is written",
        "products, attributes.tags: cannot be read, left out",
    }
    file = write(tmp_path / "r.jsonl", {"text": "so", "stars": 1, "sentiment": "positive"})
    summary = imported("jsonl", [file], tmp_path / "reviews")
    (review,) = read_domain(tmp_path / "reviews").reviews
    assert (review.stars, review.sentiment) == (None, "positive")
    assert "reviews: of stars and sentiment, the sentiment is stored" in summary.remarks


def test_words_for_nothing_are_no_names(tmp_path: Path) -> None:
    """Catches all guests as one user who takes everything, or a category that is called NULL."""
    lines = ["user,product,time", "NULL,hose,1", "u1,N/A,2", "u1,hose,3", "null,hose,4"]
    file = write(tmp_path / "orders.csv", *lines)
    write(tmp_path / "shop" / "products.jsonl", {"id": "hose", "title": "Hose"})
    summary = import_domain(FORMATS["csv"].importer, [file], tmp_path / "shop", Options())
    (event,) = read_domain(tmp_path / "shop").interactions
    assert (event.user, event.product) == ("u1", "hose")
    rejected = {reason: group.count for reason, group in summary.rejected.items()}
    assert rejected == {"interactions: no user": 2, "interactions: no product": 1}
    file = write(tmp_path / "p.csv", "title,category", "Hose,none", "Rake,tools")
    summary = imported("csv", [file], tmp_path / "garden")
    assert [one.category for one in read_domain(tmp_path / "garden").products] == [None, "tools"]
    assert "category: 'none' is read as an empty field" in summary.remarks


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_of_a_file_without_a_header_gives_its_columns(
    tmp_path: Path, delimiter: str
) -> None:
    """Catches commas of the first row's texts that part it, so that a row is read as another."""
    rows = [
        ["1", "Hose", '"Long, strong, green, soft"'],
        ["2", '"Rake, steel"', "plain"],
        ["3", "a|b", "c"],
    ]
    rows = rows[: 2 if delimiter == "|" else 3]
    if delimiter != ",":
        rows = [[field.strip('"') for field in row] for row in rows]
    file = write(tmp_path / "a.csv", *(delimiter.join(row) for row in rows))
    imported("csv", [file], tmp_path / "a", columns=("id", "title", "description"))
    found = [(one.id, one.title, one.description) for one in read_domain(tmp_path / "a").products]
    assert found == [tuple(field.strip('"') for field in row) for row in rows]


def test_quotes_that_enclose_nothing_are_part_of_the_text(tmp_path: Path) -> None:
    """Catches a row that is lost for inches, or a quote that is dropped from a name."""
    file = write(tmp_path / "a.tsv", "id\ttitle", '1\t"Pro" hose', '2\tRake 5" wide', '3\t"w')
    imported("tsv", [file], tmp_path / "a", is_quoted=False)
    titles = [one.title for one in read_domain(tmp_path / "a").products]
    assert titles == ['"Pro" hose', 'Rake 5" wide', '"w']
    summary = imported("tsv", [file], tmp_path / "b")
    assert any("if quotes are part of the texts, say so" in one for one in summary.rejected)


BAD_TABLES = [
    (["a.b,text"], {"mapping": {"title": "c.d"}}, "no column 'c.d' for title"),
    (["Body.HTML,text"], {"mapping": {"title": "Body.Html"}}, "Did you mean 'Body.HTML'"),
    (["user,time,question"], {}, "or to question and text, the passage that holds the answer, or"),
    (["name,stars", "a,1"], {}, "nothing says what a row is, of the columns 'name', 'stars'"),
    (["text,stars", "a,1"], {"mapping": {"text": "review"}}, "no column 'review' for text"),
    (["text,text", "a,1"], {}, "a.csv:1: two columns are named 'text'"),
    (["", ""], {}, "nothing says what a row is"),
    (['"text,stars', "a,1"], {}, "broken quotes in the header"),
    (["text,stars"], {}, "nothing in it can be imported .it has no rows"),
    (["text,stars", ",1", ",2"], {}, "reviews: no text, 2, the first at .*a.csv:2"),
]


@pytest.mark.parametrize(("lines", "options", "words"), BAD_TABLES)
def test_a_table_that_is_no_table_is_one_error(
    tmp_path: Path, lines: list[str], options: dict, words: str
) -> None:
    """Catches a folder half written, or a traceback, for a file that cannot be used."""
    with pytest.raises(CatalogueError, match=words):
        imported("csv", [write(tmp_path / "a.csv", *lines)], tmp_path / "shop" / "x", **options)
    assert sorted(path.name for path in tmp_path.rglob("*")) in (["a.csv"], ["a.csv", "shop"])


def test_a_broken_record_costs_its_own_line(tmp_path: Path) -> None:
    """Catches an open quote that swallows the lines behind it."""
    lines = ["text,stars", '"open,1', "a,2", 'b "x",3', "c", '"d"e,4', '"f\ng",5', "h,1,2", "i,1"]
    summary = imported("csv", [write(tmp_path / "a.csv", *lines)], tmp_path / "garden")
    read = [review.text for review in read_domain(tmp_path / "garden").reviews]
    assert read == ["a", 'b "x"', "f\ng", "i"]
    rejects = [json.loads(line) for line in (tmp_path / "garden" / REJECTS).open(encoding="utf-8")]
    assert [one["line"] for one in rejects] == [2, 5, 6, 9]
    assert summary.rejects == 4


def test_amazon_is_read_in_both_layouts(tmp_path: Path) -> None:
    """Catches a field of one layout that is not known, or reviews read before their products."""
    old = [
        {"asin": "B1", "reviewerID": "A", "overall": 5.0, "reviewText": "Good", "summary": "s",
         "unixReviewTime": 1400000000, "image": ["x"]},
        {"asin": "B1", "reviewerID": "B", "overall": 2.0, "summary": "Only this",
         "unixReviewTime": 1400000001},
    ]  # fmt: skip
    literal = str({"asin": "B1", "title": "O'Hara", "categories": [["Shop", "Hoses", "Long"]],
                   "price": 3.5, "brand": "X"})  # fmt: skip
    imported("amazon", [write(tmp_path / "r.json", *old), write(tmp_path / "meta.json", literal)],
             tmp_path / "old")  # fmt: skip
    domain = read_domain(tmp_path / "old")
    (product,) = domain.products
    assert (product.id, product.title, product.category) == ("B1", "O'Hara", "Hoses")
    assert product.attributes == {"price": "3.5", "brand": "X"}
    assert [(one.text, one.stars, one.product) for one in domain.reviews] == [
        ("Good", 5, "B1"),
        ("Only this", 2, "B1"),
    ]
    new = {"rating": 4.0, "title": "t", "text": "Fine<br />so far", "asin": "B2-red",
           "parent_asin": "B2", "user_id": "A", "timestamp": 1588687728923}  # fmt: skip
    meta = {"main_category": "All", "title": "Hose", "categories": [], "parent_asin": "B2",
            "description": ["One.", "Two."], "price": None, "store": "S"}  # fmt: skip
    (tmp_path / "r.jsonl.gz").write_bytes(gzip.compress(json.dumps(new).encode()))
    summary = imported("amazon", [tmp_path / "r.jsonl.gz", write(tmp_path / "m.jsonl", meta)],
                       tmp_path / "new")  # fmt: skip
    domain = read_domain(tmp_path / "new")
    assert summary.read == {"products": 1, "reviews": 1, "interactions": 1}
    assert domain.products[0].description == "One. Two." and domain.products[0].category is None
    assert domain.reviews[0].text == "Fine\nso far"
    assert domain.interactions[0].time == 1588687728.923
    with pytest.raises(CatalogueError, match="no line of Amazon's reviews"):
        imported("amazon", [write(tmp_path / "x.jsonl", {"a": 1})], tmp_path / "x")


def test_recbole_is_read_by_its_types(tmp_path: Path) -> None:
    """Catches a type that stays in a name, or a title that is taken from the categories."""
    header = "item_id:token\tclass:token_seq\tmovie_title:token_seq\ty:float"
    item = write(tmp_path / "a.item", header, '1\tWar Drama\tA "film"\t1.5')
    header = "user_id:token\titem_id:token\trating:float\ttimestamp:float"
    rows = "u\t1\t3\t1400000000", "v\t9\t3\t1400000000"
    inter = write(tmp_path / "a.inter", header, *rows)
    for files in ([inter, item], [tmp_path]):
        summary = imported("recbole", files, tmp_path / "shop" / "a")
        domain = read_domain(tmp_path / "shop" / "a")
        assert [(one.id, one.title, one.category) for one in domain.products] == [
            ("1", 'A "film"', "War Drama")
        ]
        assert [one.user for one in domain.interactions] == ["u"]
        assert "interactions: a product that is not among the products" in summary.rejected
    with pytest.raises(CatalogueError, match=r"no \.item file"):
        imported("recbole", [inter], tmp_path / "b")
    with pytest.raises(CatalogueError, match="has no type"):
        imported("recbole", [write(tmp_path / "b.item", "item_id\ttitle", "1\tA")], tmp_path / "b")


def test_movielens_that_was_saved_anew_is_read(tmp_path: Path) -> None:
    """Catches a copy in UTF-8, which is not how the old files are published, that is refused."""
    folder = tmp_path / "ml"
    folder.mkdir()
    (folder / "movies.dat").write_text("1::Été, l' éèàçùâê::Comedy|Drama\n", encoding="utf-8")
    (folder / "ratings.dat").write_text("7::1::5::1400000000\n", encoding="utf-8")
    imported("movielens", [folder], tmp_path / "shop")
    (film,) = read_domain(tmp_path / "shop").products
    assert film.title == "Été, l' éèàçùâê"


@pytest.mark.parametrize("size", ["latest", "1m", "100k"])
def test_movielens_is_read_in_every_size(tmp_path: Path, size: str) -> None:
    """Catches a separator, an encoding or a genre of another size."""
    folder = tmp_path / "ml"
    if size == "latest":
        write(folder / "movies.csv", "movieId,title,genres", '1,"Été, l\'",Comedy|Drama')
        write(folder / "ratings.csv", "userId,movieId,rating,timestamp", "7,1,0.5,1400000000")
    elif size == "1m":
        (folder).mkdir()
        (folder / "movies.dat").write_bytes("1::Été, l'::Comedy|Drama\n".encode("latin-1"))
        write(folder / "ratings.dat", "7::1::5::1400000000")
    else:
        (folder).mkdir()
        flags = ["0"] * 5 + ["1"] + ["0"] * 13
        line = "|".join(["1", "Été, l'", "01-Jan-1995", "", "url", *flags])
        (folder / "u.item").write_bytes(f"{line}\n".encode("latin-1"))
        write(folder / "u.data", "7\t1\t5\t1400000000")
    imported("movielens", [folder], tmp_path / "films")
    domain = read_domain(tmp_path / "films")
    assert [(p.id, p.title, p.category) for p in domain.products] == [("1", "Été, l'", "Comedy")]
    assert [(i.user, i.product, i.time) for i in domain.interactions] == [("7", "1", 1.4e9)]
    with pytest.raises(CatalogueError, match="no movies.csv or movies.dat or u.item"):
        imported("movielens", [tmp_path], tmp_path / "x")


def test_squad_is_read_with_all_its_answers(tmp_path: Path) -> None:
    """Catches a span that is shifted, an answer that is lost, an unanswerable question dropped."""
    passage = "Holds a day. A day and a half."
    asked = [
        {"id": "1", "question": "How long?", "answers": [{"text": "a day", "answer_start": 6},
         {"text": "a half", "answer_start": 23}, {"text": "a day", "answer_start": 6}]},
        {"id": "2", "question": "Why?", "answers": [], "is_impossible": True},
        {"id": "3", "question": "Who?", "answers": [{"text": "nobody", "answer_start": 0}]},
    ]  # fmt: skip
    file = write(
        tmp_path / "a.json", {"data": [{"paragraphs": [{"context": passage, "qas": asked}]}]}
    )
    summary = imported("squad", [file], tmp_path / "q")
    questions = read_domain(tmp_path / "q").questions
    assert [one.golds for one in questions] == [("a day", "a half"), ()]
    assert list(summary.rejected) == ["questions: an answer that is not in its text"]
    marked = tmp_path / "marked.json"
    marked.write_bytes("\ufeff".encode() + file.read_bytes())
    assert imported("squad", [marked], tmp_path / "q").read == summary.read
    (tmp_path / "cut.json").write_bytes(gzip.compress(file.read_bytes())[:40])
    for damaged in ("cut.json", "none.json"):
        with pytest.raises(CatalogueError, match=f"{damaged}: (not JSON|cannot be read)"):
            imported("squad", [tmp_path / damaged], tmp_path / "b")
    for content in ("[]", "{", '{"data": 1}'):
        with pytest.raises(CatalogueError, match="not JSON|no list 'data'"):
            imported("squad", [write(tmp_path / "b.json", content)], tmp_path / "b")


def test_subjqa_is_read_by_its_spans(tmp_path: Path) -> None:
    """Catches words of the annotation that replace its span, or the mark of no answer in a text."""
    rows = [
        {"question": "Good?", "review": "Very good. ANSWERNOTFOUND", "human_ans_spans": "wrong",
         "human_ans_indices": "(5, 9)"},
        {"question": "Bad?", "review": "Very good. ANSWERNOTFOUND",
         "human_ans_spans": "ANSWERNOTFOUND", "human_ans_indices": "(11, 25)"},
        {"question": "So?", "review": "x", "human_ans_spans": "", "human_ans_indices": "none"},
    ]  # fmt: skip
    summary = imported("subjqa", [as_csv(tmp_path / "test.csv", rows)], tmp_path / "q")
    questions = read_domain(tmp_path / "q").questions
    assert [(one.text, one.golds) for one in questions] == [
        ("Very good. ", ("good",)),
        ("Very good. ", ()),
    ]
    assert summary.rejects == 1


def test_presets_of_public_tables(tmp_path: Path) -> None:
    """Catches a column of a headless table that is read as another one."""
    line = "3,apple iphone 8,1,7,Apple iPhone 8,2612,Mobile Phones"
    imported("pricerunner", [write(tmp_path / "p.csv", line)], tmp_path / "p")
    (product,) = read_domain(tmp_path / "p").products
    assert (product.id, product.title, product.category) == ("3", "apple iphone 8", "Mobile Phones")
    clusters = {"id": "id", "title": "title", "category": "cluster"}
    imported("pricerunner", [tmp_path / "p.csv"], tmp_path / "p", mapping=clusters)
    assert read_domain(tmp_path / "p").products[0].category == "7"
    for format, lines in {"fdu-mtl": ["1\tso \"good", "0\tbad"],
                          "arsc": ["so \"good\t1", "bad\t-1"]}.items():  # fmt: skip
        imported(format, [write(tmp_path / "books.train", *lines)], tmp_path / "s")
        reviews = read_domain(tmp_path / "s").reviews
        assert [(one.text, one.label) for one in reviews] == [('so "good', 1), ("bad", 0)]


def test_rows_without_ids_of_two_files_are_two(tmp_path: Path) -> None:
    """Catches made ids that are one for the same lines of `books.train` and `books.test`."""
    names = ("books.task.train", "books.task.test", "books.task.test.csv.gz", "more.csv")
    for name in names[:2]:
        write(tmp_path / name, "1\tgood " + name, "0\tbad " + name)
    summary = imported("fdu-mtl", [tmp_path / name for name in names[:2]], tmp_path / "shop")
    assert summary.read == {"reviews": 4} and not summary.rejects
    assert [made_id(Place(f"a/{name}", 7)) for name in names] == [
        "books.task.train-7",
        "books.task.test-7",
        "books.task.test-7",
        "more-7",
    ]

    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "r.csv", "text,stars", f"good in {folder},5")
    same = [tmp_path / folder / "r.csv" for folder in ("x", "y")]
    assert not imported("csv", same, tmp_path / "both").rejects
    assert [one.id for one in read_domain(tmp_path / "both").reviews] == ["r-2", "r.2-2"]


def test_lines_of_json_may_lack_fields(tmp_path: Path) -> None:
    """Catches labels that are lost, without a word, because the first line has none."""
    lines = write(tmp_path / "r.jsonl", '{"text": "so so"}', '{"text": "good", "stars": 5}')
    summary = imported("jsonl", [lines], tmp_path / "shop")
    assert [one.stars for one in read_domain(tmp_path / "shop").reviews] == [None, 5]
    assert set(summary.mapping) == {"text", "stars"}


def test_columns_that_tell_less_than_their_names(tmp_path: Path) -> None:
    """Catches a kind of product that replaces its id, and headlines that become products."""
    products = write(tmp_path / "p.csv", "id,title,product", "1,Green hose,hose", "2,Red hose,hose")
    summary = imported("csv", [products], tmp_path / "p")
    assert [one.id for one in read_domain(tmp_path / "p").products] == ["1", "2"]
    assert summary.unread == ("product",)
    reviews = write(tmp_path / "r.csv", "id,title,text,stars", "7,Great!,I like it,5")
    summary = imported("csv", [reviews], tmp_path / "r")
    assert summary.read == {"reviews": 1} and summary.unread == ("title",)
    both = write(tmp_path / "b.csv", "product,title,text", "1,Green hose,I like it")
    assert imported("csv", [both], tmp_path / "b").read == {"products": 1, "reviews": 1}


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (
            "g.csv",
            "标题,类别\n".encode("gb18030"),
            "not in utf-8; say in which encoding it is, such as gb",
        ),
        ("m.csv", b"text,stars\rgood,5\r", "m.csv:1: a carriage return alone"),
        ("s.xlsx", b"PK", "s.xlsx: is a spreadsheet; save it as CSV"),
    ],
)
def test_what_a_shop_may_export_says_the_mend(
    tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    """Catches a file of Excel in China, of an old Mac or of a spreadsheet without a word on it."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CatalogueError, match=words):
        imported(format_of(tmp_path / name), [tmp_path / name], tmp_path / "shop")


def test_pictures_are_read_from_idx_and_from_folders(tmp_path: Path) -> None:
    """Catches pictures whose classes are those of others, or that are changed on the way."""
    picture = np.random.default_rng(0).integers(0, 256, (2, 32, 32), np.uint8)
    header = b"\0\0\x08\3" + np.array(picture.shape, ">u4").tobytes()
    (tmp_path / "a-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + picture.tobytes()))
    (tmp_path / "a-labels-idx1-ubyte").write_bytes(b"\0\0\x08\1\0\0\0\2\1\0")
    files = [tmp_path / "a-images-idx3-ubyte.gz", tmp_path / "a-labels-idx1-ubyte"]
    imported("idx", files, tmp_path / "i", columns=("shirt", "shoe"))
    products = read_domain(tmp_path / "i").products
    assert [one.category for one in products] == ["shoe", "shirt"]
    for product, expected in zip(products, picture, strict=True):
        assert product.image is not None
        np.testing.assert_array_equal(product.image, expected[..., None].repeat(3, -1))
    (tmp_path / "a-labels-idx1-ubyte").write_bytes(b"\0\0\x08\1\0\0\0\1\1")
    with pytest.raises(CatalogueError, match="1 labels, and .* holds 2 pictures"):
        imported("idx", files, tmp_path / "i")
    for name in ("shoe/b.png", "shoe/c.png", "shirt/a.png"):
        (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture[0]).save(tmp_path / "root" / name)
    (tmp_path / "root" / "shoe" / "c.png").write_bytes(b"x")
    summary = imported("folders", [tmp_path / "root"], tmp_path / "f")
    products = read_domain(tmp_path / "f").products
    assert [(one.id, one.category, one.image is None) for one in products] == [
        ("shirt/a.png", "shirt", False),
        ("shoe/b.png", "shoe", False),
        ("shoe/c.png", "shoe", True),
    ]
    assert "products, image: a picture that is left out, not readable" in summary.remarks


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0\ufeff&<"), min_size=1).filter(
    lambda text: text == text.strip() != ""
)


@pytest.mark.slow
@settings(max_examples=40)
@given(st.lists(st.fixed_dictionaries({"text": TEXT, "stars": st.integers(1, 5)}), min_size=1))
def test_any_reviews_survive_any_table(tmp_path_factory: Any, rows: list[dict]) -> None:
    """Catches a character that splits a record, or a text that is read as another one."""
    folder = tmp_path_factory.mktemp("tables")
    rows = [{**row, "text": row["text"].replace("\r", " ").strip() or "x"} for row in rows]
    files = {
        "csv": as_csv(folder / "a.csv", [{k: str(v) for k, v in row.items()} for row in rows]),
        "jsonl": write(folder / "a.jsonl", *rows),
        "parquet": as_parquet(folder / "a.parquet", rows),
    }
    for format, file in files.items():
        imported(format, [file], folder / "shop")
        reviews = read_domain(folder / "shop").reviews
        assert [(one.text, one.stars) for one in reviews] == [
            (row["text"], row["stars"]) for row in rows
        ]


LINES: Mapping[str, tuple[str, Callable[[int], str]]] = {
    "csv": ("text,stars,product", lambda n: f'"tok{n}e, a",{1 + n % 5},p{n}'),
    "tsv": ("text\tstars", lambda n: f"tok{n}e\t{1 + n % 5}"),
    "jsonl": ("", lambda n: json.dumps({"text": f"tok{n}e", "stars": 1 + n % 5})),
    "fdu-mtl": ("", lambda n: f"{n % 2}\ttok{n}e"),
    "arsc": ("", lambda n: f"tok{n}e\t{n % 2 * 2 - 1}"),
    "pricerunner": ("", lambda n: f"{n},tok{n}e,1,2,label,4,Phones"),
    "amazon": (
        "",
        lambda n: json.dumps(
            {"asin": f"B{n}", "title": f"tok{n}e"}
            if n % 2
            else {"asin": "B1", "reviewText": f"tok{n}e", "overall": 4, "reviewerID": "u",
                  "unixReviewTime": 1}
        ),
    ),
    "recbole": ("item_id:token\ttitle:token_seq", lambda n: f"{n}\ttok{n}e"),
    "subjqa": ("question,review,human_ans_indices", lambda n: f'a?,tok{n}e,"(0, 3)"'),
    "movielens": ("movieId,title,genres", lambda n: f"{n},tok{n}e,Drama"),
}  # fmt: skip
"""A header, and line number n, in whose text "tok{n}e" stands, of each format of lines."""

NAMES = {"recbole": "a.item", "movielens": "movies.csv"}

EVERY = {"id": "id", "title": "title", "category": "category", "description": "label"}
EVERY |= {f"attributes.{name}": name for name in ("vendor", "cluster", "category_id")}
MAPPED: Mapping[str, Any] = {"pricerunner": {"mapping": EVERY}}
"""An open quote may make lines a part of any column; in a test each has to be read."""

MUTATED = 3000
"""Lines of each format; 100,000 were tried by hand."""


def mutated(line: str, rng: random.Random) -> bytes:
    """Changes, drops or adds up to three characters, anywhere but in the token of the line."""
    content = bytearray(line.encode())
    begin = content.index(b"tok")
    end = content.index(b"e", begin)
    for _ in range(rng.randint(0, 3)):
        place = rng.randrange(len(content) + 1)
        if begin <= place <= end:
            continue
        new = rng.choice([b'"', b",", b"\t", b"\xff", b"", b"\0", b"{", "é".encode(), b"\\", b"9"])
        content[place : place + rng.randint(0, 1)] = new
        moved = content.find(b"tok")
        begin, end = moved, content.index(b"e", moved)
    return bytes(content)


@pytest.mark.slow
@pytest.mark.parametrize("format", LINES)
def test_no_mutated_line_is_lost_in_silence(tmp_path: Path, format: str) -> None:
    """Catches a line that is neither read nor rejected, and any error but CatalogueError."""
    header, line = LINES[format]
    rng = random.Random(0)
    lines = [mutated(line(n), rng) for n in range(MUTATED)]
    start = [header.encode()] if header else [line(MUTATED + 1).encode()]
    file = tmp_path / NAMES.get(format, "a.txt")
    file.write_bytes(b"\n".join([*start, *lines]))
    files = [file]
    if format == "movielens":
        files.append(write(tmp_path / "ratings.csv", "userId,movieId,rating,timestamp"))
    summary = imported(format, files, tmp_path / "shop", **MAPPED.get(format, {}))
    read_domain(tmp_path / "shop")
    found = "".join(
        path.read_text(encoding="utf-8") for path in (tmp_path / "shop").glob("*.jsonl")
    )
    tokens = set(re.findall(r"tok\d+e", found))
    lost = [n for n in range(MUTATED) if f"tok{n}e" not in tokens]
    assert not lost, (len(lost), lines[lost[0]])
    assert 0 < summary.rejects < MUTATED


@pytest.mark.parametrize("format", ["csv", "jsonl", "subjqa", "fdu-mtl"])
def test_damaged_archives_say_where_they_end(tmp_path: Path, format: str) -> None:
    """Catches the first half of a file that passes for all of it."""
    header, line = LINES[format]
    text = "\n".join([*([header] if header else []), *(line(n) for n in range(2000))]).encode()
    packed = gzip.compress(text)
    (tmp_path / "cut.gz").write_bytes(packed[: len(packed) // 2])
    summary = imported(format, [tmp_path / "cut.gz"], tmp_path / "shop")
    (reason,) = [one for one in summary.rejected if "damaged or ends early" in one]
    assert summary.rejected[reason].count == 1 and summary.rejected[reason].first.line > 100
    with pytest.raises(CatalogueError, match="cut.gz:.*damaged or ends early.*nothing was"):
        import_domain(FORMATS[format].importer, [tmp_path / "cut.gz"], tmp_path / "x", strict=True)
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_archives_that_expand_beyond_measure_end(tmp_path: Path) -> None:
    """Catches a gigabyte that comes out of a megabyte."""
    bomb = b"text,stars\n" + b"good,5\n" * 3 + (b" " * 2**20 + b"\n") * 150
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(bomb))
    with zipfile.ZipFile(tmp_path / "b.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("b.csv", bomb)
    for name in ("a.csv.gz", "b.zip"):
        summary = imported("csv", [tmp_path / name], tmp_path / "shop")
        assert summary.read == {"reviews": 3}
        assert any("expands to more than 200 times" in reason for reason in summary.rejected)


def test_a_line_without_end_is_not_held(tmp_path: Path) -> None:
    """Catches a line of gigabytes that is read into memory, or lines behind it that are lost."""
    long = "x" * (17 * 2**20)
    file = write(tmp_path / "a.csv", "text,stars", "a,1", f"{long},1", "b,5")
    summary = imported("csv", [file], tmp_path / "shop")
    assert [one.text for one in read_domain(tmp_path / "shop").reviews] == ["a", "b"]
    assert list(summary.rejected) == ["a line of more than 16 MiB"]
    assert (tmp_path / "shop" / REJECTS).stat().st_size < 10_000


def test_a_member_of_a_zip_is_named_by_the_path(tmp_path: Path) -> None:
    """Catches another member that is read, or an archive of several that is read by chance."""
    with zipfile.ZipFile(tmp_path / "shop.zip", "w") as archive:
        archive.writestr("a/books.csv", "text,stars\nbook,1\n")
        archive.writestr("a/garden.csv", "text,stars\ngarden,1\n")
        archive.writestr("__MACOSX/a/._garden.csv", "x")
    imported("csv", [tmp_path / "shop.zip" / "a" / "garden.csv"], tmp_path / "g")
    assert [one.text for one in read_domain(tmp_path / "g").reviews] == ["garden"]
    with pytest.raises(CatalogueError, match="holds a/books.csv, a/garden.csv; name the one"):
        imported("csv", [tmp_path / "shop.zip"], tmp_path / "x")
    with pytest.raises(CatalogueError, match="holds no 'a/toys.csv'; it holds"):
        imported("csv", [tmp_path / "shop.zip" / "a" / "toys.csv"], tmp_path / "x")
