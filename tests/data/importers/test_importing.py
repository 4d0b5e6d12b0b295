"""What an import writes into a domain: whole parts, all at once, and a word on everything else."""

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from metaguide.data.catalogue import REJECTS, CatalogueError, read_domain, write_domain
from metaguide.data.importers import FORMATS, Options, Summary, importing
from metaguide.data.importers.importing import import_domain

PRODUCTS = "id,title,category\n1,Hose,Watering\n2,Rake,Tools\n"
REVIEWS = "text,stars,product\ngood,5,1\nbad,1,2\ngood,5,3\n"


def of_csv(folder: Path, name: str, content: str, domain: Path, **how: bool) -> Summary:
    """Imports a CSV of some content."""
    (folder / name).write_text(content, encoding="utf-8")
    return import_domain(FORMATS["csv"].importer, [folder / name], domain, **how)


def content(folder: Path) -> dict[str, bytes]:
    """All files in a folder, by path."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_parts_are_added_one_after_the_other(tmp_path: Path) -> None:
    """Catches products that vanish when reviews come, or a product whose id is not found again."""
    garden = tmp_path / "shop" / "garden"
    of_csv(tmp_path, "p.csv", PRODUCTS, garden)
    summary = of_csv(tmp_path, "r.csv", REVIEWS, garden)
    domain = read_domain(garden)
    assert [one.title for one in domain.products] == ["Hose", "Rake"]
    assert [one.product for one in domain.reviews] == ["1", "2", None]
    assert {name: group.count for name, group in summary.remarks.items()} == {
        "reviews: a product that is not among the products, left out": 1,
        "reviews: the text of an earlier one, which a guide reads once": 1,
    }
    assert summary.remarks["reviews: a product that is not among the products, left out"].first == (
        str(tmp_path / "r.csv"),
        4,
    )
    assert not list(garden.parent.glob(".*")), "something is left behind"


def test_what_is_there_is_replaced_only_on_request(tmp_path: Path) -> None:
    """Catches a part of a domain that is overwritten without a word."""
    garden = tmp_path / "garden"
    of_csv(tmp_path, "p.csv", PRODUCTS, garden)
    before = content(garden)
    with pytest.raises(CatalogueError, match="has products already; .*to be replaced"):
        of_csv(tmp_path, "q.csv", "id,title\n3,Spade\n", garden)
    assert content(garden) == before
    summary = of_csv(tmp_path, "q.csv", "id,title\n3,Spade\n", garden, replace=True)
    assert (summary.read, summary.replaced) == ({"products": 1}, {"products": 2})
    assert [one.id for one in read_domain(garden).products] == ["3"]


@pytest.mark.parametrize("kind", ["at once", "later"])
def test_a_question_without_a_text_is_about_the_description_of_its_product(
    tmp_path: Path, kind: str
) -> None:
    """Catches a question that needs its product's description written out again, one that is asked
    about nothing, a description that is read as HTML twice, and one that is not yet written."""
    products = "id,title,description\n1,Hose,Ten metres &amp;lt;b&amp;gt; long.\n2,Rake,\n"
    questions = (
        "id,question,answer,product,text\na,How long?,Ten metres,1,\nb,How wide?,,1,\n"
        "c,Wide?,,2,\nd,Wide?,,3,\ne,Wide?,,,\nf,Wide?,wide,1,It is wide.\n"
    )
    garden = tmp_path / "garden"
    if kind == "later":
        of_csv(tmp_path, "p.csv", products, garden)
        summary = of_csv(tmp_path, "q.csv", questions, garden)
    else:
        files = [tmp_path / "p.csv", tmp_path / "q.csv"]
        for file, text in zip(files, (products, questions), strict=True):
            file.write_text(text)
        summary = import_domain(FORMATS["csv"].importer, files, garden)
    read = {one.id: (one.text, one.golds) for one in read_domain(garden).questions}
    assert read == {
        "a": ("Ten metres &lt;b&gt; long.", ("Ten metres",)),
        "b": ("Ten metres &lt;b&gt; long.", ()),
        "f": ("It is wide.", ("wide",)),
    }
    counts = {reason: group.count for reason, group in summary.rejected.items()}
    assert counts == {
        "questions: no text, and its product is unknown or has no description": 2,
        "questions: no text": 1,
    }


def test_a_damaged_product_is_named_where_its_description_is_asked(tmp_path: Path) -> None:
    """Catches a traceback for a line of the domain that is no product."""
    garden = tmp_path / "garden"
    of_csv(tmp_path, "p.csv", PRODUCTS, garden)
    with (garden / "products.jsonl").open("a") as file:
        file.write("[]\n")
    with pytest.raises(CatalogueError, match="products.jsonl:3: no product; mend or delete"):
        of_csv(tmp_path, "q.csv", "id,question,product\na,How long?,1\n", garden)


def test_descriptions_are_known_as_products_are_read(tmp_path: Path) -> None:
    """Catches a row whose question is about its own product, and products that are read after the
    first question, or that replace those of before."""
    text = (
        "id,title,description,question,product\na,Hose,Ten metres.,How long?,1\n"
        "b,Rake,Five tines.,How many?,2\n"
    )
    garden = tmp_path / "garden"
    of_csv(tmp_path, "a.csv", text, garden)
    texts = {one.id: one.text for one in read_domain(garden).questions}
    assert texts == {"a": "Ten metres.", "b": "Five tines."}
    changed = text.replace("Ten", "Twenty")
    of_csv(tmp_path, "a.csv", changed, garden, replace=True)
    assert {one.text for one in read_domain(garden).questions} == {"Twenty metres.", "Five tines."}


def test_what_names_a_product_is_linked_anew(tmp_path: Path) -> None:
    """Catches links that are lost where reviews alone are replaced, and a domain that nothing can
    read where products are replaced and a purchase or review names one that is gone."""
    garden = tmp_path / "garden"
    of_csv(tmp_path, "p.csv", PRODUCTS, garden)
    bought = "user,product,time\nann,1,1\nann,2,2\n"
    of_csv(tmp_path, "i.csv", bought, garden)
    of_csv(tmp_path, "r.csv", REVIEWS, garden)
    of_csv(tmp_path, "r.csv", REVIEWS, garden, replace=True)
    assert [one.product for one in read_domain(garden).reviews] == ["1", "2", None]
    (garden / ".DS_Store").write_text("of a file manager")

    summary = of_csv(tmp_path, "p.csv", "id,title\n2,Rake\n", garden, replace=True)
    domain = read_domain(garden)
    assert [one.product for one in domain.reviews] == [None, "2", None]
    assert [(one.user, one.product) for one in domain.interactions] == [("ann", "2")]
    assert (summary.read, summary.replaced) == ({"products": 1}, {"products": 2})
    ((reason, group),) = summary.rejected.items()
    assert "not among the products" in reason and group.first == (
        str(garden / "interactions.jsonl"),
        1,
    )
    with pytest.raises(CatalogueError, match="interactions.jsonl:1: .*nothing was imported"):
        of_csv(tmp_path, "p.csv", "id,title\n3,Spade\n", garden, replace=True, strict=True)
    of_csv(tmp_path, "p.csv", "id,title\n3,Spade\n", garden, replace=True)
    assert not read_domain(garden).interactions


def test_rejects_of_an_earlier_import_stay(tmp_path: Path) -> None:
    """Catches rejects that a summary points to and that the next import deletes; a blank line,
    which a catalogue may have, that ends the next import."""
    garden = tmp_path / "garden"
    of_csv(tmp_path, "p.csv", PRODUCTS + "3,,Tools\n", garden)
    (garden / "products.jsonl").write_text((garden / "products.jsonl").read_text() + "\n")
    of_csv(tmp_path, "r.csv", "text,stars\ngood,5\n", garden)
    assert (garden / REJECTS).read_text().count("p.csv") == 1
    of_csv(tmp_path, "i.csv", "user,product,time\nann,1,1\nann,9,2\n", garden)
    assert [("p.csv" in one, "i.csv" in one) for one in (garden / REJECTS).open()] == [
        (True, False),
        (False, True),
    ]


def test_rejects_are_written_with_file_and_line(tmp_path: Path) -> None:
    """Catches a reject that nobody finds again, and rejects that make a domain unreadable."""
    garden = tmp_path / "garden"
    summary = of_csv(tmp_path, "p.csv", PRODUCTS + "1,Again,Tools\n,,\nx\n", garden)
    rejects = [json.loads(line) for line in (garden / REJECTS).read_text().splitlines()]
    file = str(tmp_path / "p.csv")
    assert [(one["file"], one["line"], one["reason"]) for one in rejects] == [
        (file, 4, "products: the id of an earlier row"),
        (file, 5, "products: no title"),
        (file, 6, "more or fewer fields than columns"),
    ]
    assert "Again" in rejects[0]["raw"] and rejects[2]["raw"] == "x\n"
    assert summary.rejects == 3 and summary.read == {"products": 2}
    domain = read_domain(garden)
    write_domain(domain, garden)
    assert read_domain(garden) == domain


def test_strict_stops_at_the_first_reject(tmp_path: Path) -> None:
    """Catches a strict import that leaves a part of the rows."""
    with pytest.raises(CatalogueError, match=r"p.csv:4: .*\(it has 1 fields.*; nothing was"):
        of_csv(tmp_path, "p.csv", PRODUCTS + "x\n", tmp_path / "garden", strict=True)
    assert not (tmp_path / "garden").exists() and not list(tmp_path.glob(".*"))


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    """Catches a folder whose other files are lost when it is replaced."""
    for name in ("letters", ".hidden"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "letter.txt").write_text("x")
        with pytest.raises(CatalogueError, match="no part of a domain|start with a dot"):
            of_csv(tmp_path, "p.csv", PRODUCTS, tmp_path / name)
        assert (tmp_path / name / "letter.txt").exists()
    with pytest.raises(CatalogueError, match="is a file"):
        of_csv(tmp_path, "p.csv", PRODUCTS, tmp_path / "p.csv")
    with pytest.raises(CatalogueError, match="cannot be read .*give a file that exists"):
        import_domain(FORMATS["csv"].importer, [tmp_path / "none.csv"], tmp_path / "garden")


def test_a_full_disk_leaves_the_domain_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a domain of which a half is new."""
    garden = tmp_path / "garden"
    of_csv(tmp_path, "p.csv", PRODUCTS, garden)
    before = content(garden)
    real = os.replace

    def replace(source: str, target: str) -> None:
        if str(source).endswith(".new"):
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(CatalogueError, match="cannot be written .*No space left.*make room"):
        of_csv(tmp_path, "r.csv", REVIEWS, garden)
    assert content(garden) == before and not list(tmp_path.glob(".*"))


def test_pictures_are_copied_and_kept(tmp_path: Path) -> None:
    """Catches a picture that stays outside, is lost with the next import, or fails its product."""
    garden = tmp_path / "garden"
    Image.new("RGB", (40, 40), "red").save(tmp_path / "hose.jpg")
    rows = "id,title,image\n1,Hose,hose.jpg\n2,Rake,none.jpg\n3,Spade,p.csv\n4,Saw,\n"
    summary = of_csv(tmp_path, "p.csv", rows, garden)
    of_csv(tmp_path, "r.csv", REVIEWS, garden)
    assert [one.image is not None for one in read_domain(garden).products] == [True] + [False] * 3
    assert {name: group.count for name, group in summary.remarks.items()} == {
        "products, image: a picture that is left out, no such file": 1,
        "products, image: a picture that is left out, not readable": 1,
    }


def test_reviews_without_a_label_are_kept(tmp_path: Path) -> None:
    """Catches reviews that adaptation could read without a label, refused for the lack of one."""
    garden = tmp_path / "garden"
    of_csv(tmp_path, "r.csv", "text,sentiment\ngood,1\nso,\nwell,neutral\n", garden)
    assert [one.label for one in read_domain(garden).reviews] == [1, None, None]


def test_texts_that_were_seen_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a text that is forgotten when hashes are merged, or known before it is added."""
    monkeypatch.setattr(importing._Seen, "_AT_ONCE", 7)
    seen = importing._Seen()
    for number in range(100):
        assert str(number) not in seen
        seen.add(str(number))
        assert all(str(one) in seen for one in range(number + 1))


BAD_OPTIONS = [
    ({"mapping": {"titel": "name"}}, "no field 'titel'; did you mean 'title'"),
    ({"mapping": {"attributes.": "name"}}, "no field 'attributes.'"),
    ({"encoding": "latin-one"}, "encoding is 'latin-one'"),
    ({"delimiter": ",,"}, "give one character"),
    ({"most_stars": 0.0}, "give a number above 0"),
    ({"positive": ("2",)}, "given together or not at all"),
]


@pytest.mark.parametrize(("options", "words"), BAD_OPTIONS)
def test_options_that_cannot_be_used_are_errors(options: dict, words: str) -> None:
    """Catches an option that is passed over, or fails in the middle of a file."""
    with pytest.raises(ValueError, match=words):
        Options(**options)
