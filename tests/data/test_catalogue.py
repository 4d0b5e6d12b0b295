"""The catalogue's reader refuses each kind of bad input by name; its writer is its inverse."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import metaguide.data.rows
from metaguide.data.catalogue import (
    CatalogueError,
    Domain,
    Interaction,
    Product,
    Question,
    Review,
    read_catalogue,
    read_domain,
    write_domain,
)

PRODUCT = {"id": "p1", "title": "Aster 5 phone"}
REVIEW = {"id": "r1", "text": "Holds a day.", "stars": 4}
QUESTION = {"id": "q1", "question": "How long?", "text": "Holds a day.", "answer": [6, 11]}
INTERACTION = {"user": "u1", "product": "p1", "time": 3}
WHOLE = {
    "products": [PRODUCT],
    "reviews": [REVIEW],
    "questions": [QUESTION],
    "interactions": [INTERACTION],
}


def lay(folder: Path, **parts: list) -> Path:
    """Writes the parts as JSON lines, without the writer under test."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, rows in parts.items():
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        (folder / f"{part}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


def refusal(folder: Path, *words: str) -> None:
    with pytest.raises(CatalogueError) as caught:
        read_domain(folder)
    message = str(caught.value)
    assert "\n" not in message and message.endswith((".", "?."))
    for word in words:
        assert word in message


def test_reads_what_the_docstring_describes(tmp_path: Path) -> None:
    """Catches a field that is dropped, renamed or left in its JSON type."""
    folder = lay(
        tmp_path / "phones",
        products=[
            "",
            {
                **PRODUCT,
                "description": "Six inches.",
                "category": "phone",
                "attributes": {"colour": "red"},
                "image": "images/p1.png",
            },
            {"id": "p2", "title": "屏", "category": None},
        ],
        reviews=[{**REVIEW, "product": "p1"}, {"id": "r2", "text": "差", "sentiment": "negative"}],
        questions=[{**QUESTION, "product": "p2"}, {**QUESTION, "id": "q2", "answer": None}],
        interactions=[INTERACTION, INTERACTION],
    )
    (folder / "images").mkdir()
    Image.new("L", (64, 48), 200).save(folder / "images" / "p1.png")
    grey = np.full((32, 32, 3), 200, np.uint8)
    assert read_catalogue(tmp_path) == {
        "phones": Domain(
            "phones",
            (
                Product("p1", "Aster 5 phone", "Six inches.", "phone", {"colour": "red"}, grey),
                Product("p2", "屏"),
            ),
            (Review("r1", "Holds a day.", 4.0, None, "p1"), Review("r2", "差", None, "negative")),
            (
                Question("q1", "How long?", "Holds a day.", (6, 11), "p2"),
                Question("q2", "How long?", "Holds a day."),
            ),
            (Interaction("u1", "p1", 3.0), Interaction("u1", "p1", 3.0)),
        )
    }


def test_any_part_may_be_missing(tmp_path: Path) -> None:
    """Catches a reader that wants all files, or an order other than by name."""
    lay(tmp_path / "b", reviews=[REVIEW])
    lay(tmp_path / "a", products=[PRODUCT])
    lay(tmp_path / ".hidden", products=["broken"])
    (tmp_path / "notes.txt").write_text("not a domain")
    catalogue = read_catalogue(tmp_path)
    assert list(catalogue) == ["a", "b"]
    assert catalogue["b"] == Domain("b", reviews=(Review("r1", "Holds a day.", 4.0),))


@pytest.mark.parametrize(
    ("stars", "sentiment", "label"),
    [(5, None, 1), (3.5, None, 1), (3, None, None), (2.5, None, 0), (1, None, 0)]
    + [(None, "positive", 1), (None, "negative", 0)],
)
def test_label_of_a_review(stars: float | None, sentiment: str | None, label: int | None) -> None:
    """Catches a threshold on the wrong side of three stars, or a sentiment that is ignored."""
    stars = None if stars is None else float(stars)
    assert Review("r", "text", stars=stars, sentiment=sentiment).label == label


def test_further_fields_of_a_product_are_attributes(tmp_path):
    """Faults: a price is an error; a number or a flag is lost; attributes of the row are lost."""
    row = {**PRODUCT, "price": 12.5, "brand": "Aster", "new": True, "size": None, "count": 3}
    (product,) = read_domain(lay(tmp_path, products=[row])).products
    assert product.attributes == {"price": "12.5", "brand": "Aster", "new": "yes", "count": "3"}
    both = {**PRODUCT, "price": 5, "attributes": {"colour": "red", "price": "5"}}
    (product,) = read_domain(lay(tmp_path / "b", products=[both])).products
    assert product.attributes == {"colour": "red", "price": "5"}


BAD_ROWS = [
    ("products", {**PRODUCT, "tittle": "x"}, ["unknown field 'tittle'", "did you mean 'title'?"]),
    ("products", {**PRODUCT, "price": [1]}, ["field 'price' is [1]", "a text or a number"]),
    ("products", {**PRODUCT, "price": "\ud83d"}, ["field 'price'", "surrogate"]),
    ("products", {**PRODUCT, "categories": "a"}, ["unknown field 'categories'", "'category'"]),
    (
        "products",
        {**PRODUCT, "price": 5, "attributes": {"price": "6"}},
        ["field 'price' is '5'", "attribute of that name is '6'", "keep one"],
    ),
    ("reviews", {**REVIEW, "zzz": 1}, ["unknown field 'zzz'", "id, text, stars"]),
    ("products", {"id": "p2"}, ["field 'title' is missing", "add it"]),
    ("products", {**PRODUCT, "id": ""}, ["field 'id' is empty", "give"]),
    ("products", {**PRODUCT, "id": 17}, ["field 'id' is 17", "text in quotes"]),
    ("products", {**PRODUCT, "attributes": ["red"]}, ["field 'attributes'", "object of texts"]),
    ("products", {**PRODUCT, "attributes": {"ram": 8}}, ["field 'attributes'", "'ram'", "quotes"]),
    ("products", {**PRODUCT, "image": "../p.png"}, ["field 'image'", "inside the domain's folder"]),
    (
        "products",
        {**PRODUCT, "id": "p2", "image": "images/no.png"},
        ["field 'image' names 'images/no.png'", "no such file", "add it"],
    ),
    ("products", PRODUCT, ["field 'id' is 'p1'", "products.jsonl:1 has too", "its own"]),
    ("products", '{"id": "\\ud83d", "title": "x"}', ["field 'id'", "surrogate", "whole character"]),
    ("products", ["p2"], ["not a JSON object", "write one"]),
    ("products", '{"id": "p2", "title": }', ["broken JSON at character 23", "one object per line"]),
    ("products", "[" * 100_000, ["broken JSON", "one object per line"]),
    ("reviews", {**REVIEW, "stars": 0}, ["field 'stars' is 0, out of range", "from 1 to 5"]),
    ("reviews", {**REVIEW, "stars": 5.01}, ["field 'stars' is 5.01, out of range", "from 1 to 5"]),
    ("reviews", {**REVIEW, "stars": "4"}, ["field 'stars' is '4'", "number without quotes"]),
    ("reviews", {**REVIEW, "stars": True}, ["field 'stars' is True", "number without quotes"]),
    ("reviews", {**REVIEW, "stars": float("nan")}, ["field 'stars' is nan", "finite number"]),
    ("reviews", {**REVIEW, "stars": 10**400}, ["field 'stars' is inf", "finite number"]),
    (
        "reviews",
        {"id": "r2", "text": "x", "sentiment": "good"},
        ["field 'sentiment' is 'good'", "write 'positive' or 'negative'"],
    ),
    (
        "reviews",
        {**REVIEW, "sentiment": "positive"},
        ["'stars' and 'sentiment' are both given", "leave one out"],
    ),
    ("reviews", {**REVIEW, "id": "r2", "product": "p9"}, ["field 'product' is 'p9'", "add the"]),
    ("reviews", REVIEW, ["field 'id' is 'r1'", "reviews.jsonl:1 has too"]),
    ("questions", {**QUESTION, "answer": [6, 13]}, ["field 'answer' is [6, 13]", "end <= 12"]),
    ("questions", {**QUESTION, "answer": [-1, 3]}, ["field 'answer' is [-1, 3]", "0 <= start"]),
    ("questions", {**QUESTION, "answer": [4, 4]}, ["field 'answer' is [4, 4]", "start < end"]),
    (
        "questions",
        {**QUESTION, "answer": [5, 6]},
        ["field 'answer' is [5, 6]", "only white space"],
    ),
    ("questions", {**QUESTION, "answers": [[0, 5]]}, ["'answer' and 'answers'", "leave one out"]),
    (
        "questions",
        {**QUESTION, "answer": None, "answers": [[0, 5], [6, 13]]},
        ["field 'answers' is [6, 13]", "end <= 12"],
    ),
    (
        "questions",
        {**QUESTION, "answer": None, "answers": [0, 5]},
        ["field 'answers'", "two whole numbers"],
    ),
    ("questions", {**QUESTION, "answer": [6]}, ["field 'answer' is [6]", "two whole numbers"]),
    ("questions", {**QUESTION, "answer": [0, True]}, ["field 'answer'", "two whole numbers"]),
    ("questions", {**QUESTION, "answer": "Holds"}, ["field 'answer'", "two whole numbers"]),
    ("questions", {**QUESTION, "id": "q2", "product": "p9"}, ["field 'product' is 'p9'", "add"]),
    ("interactions", {**INTERACTION, "product": "p9"}, ["field 'product' is 'p9'", "add the"]),
    ("interactions", {"user": "u1", "product": "p1"}, ["field 'time' is missing", "add it"]),
    ("interactions", {**INTERACTION, "time": float("inf")}, ["field 'time' is inf", "finite"]),
]


@pytest.mark.parametrize(("part", "row", "words"), BAD_ROWS)
def test_bad_row_is_named(tmp_path: Path, part: str, row: object, words: list[str]) -> None:
    """Catches a bad row that passes, or a message without its line, its field or the fix."""
    parts = {**WHOLE, part: [*WHOLE[part], row]}
    refusal(lay(tmp_path / "phones", **parts), f"phones/{part}.jsonl:2: ", *words)


def test_broken_utf8_names_the_line(tmp_path: Path) -> None:
    """Catches text decoded with replacement characters, or decoded before lines are counted."""
    folder = lay(tmp_path / "phones", products=[PRODUCT])
    (folder / "reviews.jsonl").write_bytes(
        json.dumps(REVIEW).encode() + b'\n\n{"id": "r2", "text": "\xff\xfe", "stars": 1}'
    )
    refusal(folder, "reviews.jsonl:3: not UTF-8 at byte 23", "save the file as UTF-8")


def test_windows_text_and_unicode_separators_are_read(tmp_path: Path) -> None:
    """Catches a byte order mark, CRLF or a line separator inside a text that breaks a line."""
    folder = lay(tmp_path / "phones")
    line = json.dumps({**REVIEW, "text": "one\u2028two\x85three"}, ensure_ascii=False)
    (folder / "reviews.jsonl").write_bytes(b"\xef\xbb\xbf" + line.encode() + b"\r\n\r\n")
    assert [review.text for review in read_domain(folder).reviews] == ["one\u2028two\x85three"]


@pytest.mark.parametrize("cut", [0, 8, 60])
def test_broken_image_is_named(tmp_path: Path, cut: int) -> None:
    """Catches a damaged picture that ends in Pillow's own error, or is read half."""
    folder = lay(tmp_path / "phones", products=[PRODUCT, {**PRODUCT, "id": "p2", "image": "p.png"}])
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(noise).save(folder / "p.png")
    (folder / "p.png").write_bytes((folder / "p.png").read_bytes()[:cut])
    refusal(
        folder,
        "products.jsonl:2: field 'image' names 'p.png'",
        "not a readable picture",
        "save it again",
    )


def test_broken_folders_are_named(tmp_path: Path) -> None:
    """Catches folders that read as empty catalogues, and errors of the operating system."""
    with pytest.raises(CatalogueError, match=r"nowhere: cannot be read .*give a folder"):
        read_catalogue(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(CatalogueError, match=r"file: cannot be read .*give a folder"):
        read_catalogue(tmp_path / "file")
    with pytest.raises(CatalogueError, match="no domain in this catalogue; add a folder"):
        read_catalogue(tmp_path)
    with pytest.raises(CatalogueError, match="folder of one domain; give the folder above"):
        read_catalogue(lay(tmp_path / "phones", products=[PRODUCT]))
    (tmp_path / "phones" / "reviews.jsonl").mkdir()
    refusal(tmp_path / "phones", "reviews.jsonl: cannot be read", "readable file")


def test_empty_domain_is_named(tmp_path: Path) -> None:
    """Catches an empty domain, of empty files too, that fails only when episodes are drawn."""
    refusal(lay(tmp_path / "a"), "a: the domain is empty", "at least one line")
    refusal(lay(tmp_path / "b", products=[""], reviews=[]), "b: the domain is empty")
    refusal(lay(tmp_path / "c", interactions=[INTERACTION]), "interactions.jsonl:1", "'p1'", "add")


def test_misspelt_file_is_named(tmp_path: Path) -> None:
    """Catches a part that is passed over in silence since its file is misspelt."""
    folder = lay(tmp_path / "phones", products=[PRODUCT], review=[REVIEW])
    refusal(folder, "review.jsonl: unknown file", "did you mean 'reviews.jsonl'?")


@pytest.mark.parametrize("name", ["a\0b", "circle/a.png", "x" * 300])
def test_a_name_that_no_path_may_have_is_an_error(tmp_path: Path, name: str) -> None:
    """Catches an error of the path in the place of one that names line and field."""
    folder = lay(tmp_path / "phones", products=[{**PRODUCT, "image": name}])
    (folder / "circle").symlink_to(folder / "circle")
    refusal(folder, "products.jsonl:1: field 'image' names", "not a readable picture")


def test_what_a_system_leaves_in_a_folder_is_no_part_of_it(tmp_path: Path) -> None:
    """Catches a catalogue that macOS packed or copied refused for `._products.jsonl`."""
    folder = lay(tmp_path / "phones", products=[PRODUCT])
    domain = read_domain(folder)
    for name in ("._products.jsonl", ".DS_Store", "Thumbs.db"):
        (folder / name).write_bytes(b"\0\5\x16\7")
    (tmp_path / "__MACOSX" / "phones").mkdir(parents=True)
    (tmp_path / "__MACOSX" / "phones" / "._products.jsonl").write_bytes(b"x")
    assert read_catalogue(tmp_path) == {"phones": domain}
    write_domain(domain, folder)
    assert read_domain(folder) == domain


TEXT = st.text(max_size=12) | st.sampled_from(
    ["热水器很好", 'a "b"\r\nc', "\u2028\x00\x85", "👩‍🚀"]
)
NAME = st.text(min_size=1, max_size=6) | st.sampled_from(["热/水", "..", "a\nb", "CON", "x" * 300])
PICTURE = st.none() | st.integers(0, 9).map(
    lambda seed: np.random.default_rng(seed).integers(0, 256, (32, 32, 3), np.uint8)
)


@st.composite
def domains(draw: st.DrawFn) -> Domain:
    ids = draw(st.lists(NAME, max_size=3, unique=True))
    product = st.sampled_from(ids) if ids else st.nothing()
    maybe_product = st.none() | product
    products = tuple(
        draw(
            st.builds(
                Product,
                id=st.just(id),
                title=TEXT,
                description=TEXT,
                category=st.none() | TEXT.filter(str.strip),
                attributes=st.dictionaries(TEXT, TEXT, max_size=2),
                image=PICTURE,
            )
        )
        for id in ids
    )
    review = st.one_of(
        st.builds(Review, id=NAME, text=TEXT, stars=st.floats(1, 5), product=maybe_product),
        st.builds(
            Review,
            id=NAME,
            text=TEXT,
            sentiment=st.sampled_from(["positive", "negative"]),
            product=maybe_product,
        ),
    )
    question = TEXT.flatmap(
        lambda text: st.builds(
            lambda answers, **fields: Question(
                **fields,
                text=text,
                answer=answers[0] if answers else None,
                others=tuple(answers[1:]),
            ),
            st.lists(
                st.tuples(st.integers(0, len(text)), st.integers(0, len(text)))
                .map(lambda span: (min(span), max(span)))
                .filter(lambda span: text[slice(*span)].strip()),
                max_size=3 if text.strip() else 0,
            ),
            id=NAME,
            question=TEXT,
            product=maybe_product,
        )
    )
    interaction = st.builds(
        Interaction,
        user=NAME,
        product=product,
        time=st.floats(allow_nan=False, allow_infinity=False),
    )
    return Domain(
        name=draw(st.sampled_from(["phones", "热水器", "a b"])),
        products=products,
        reviews=tuple(draw(st.lists(review, max_size=3, unique_by=lambda r: r.id))),
        questions=tuple(draw(st.lists(question, max_size=3, unique_by=lambda q: q.id))),
        interactions=tuple(draw(st.lists(interaction, max_size=3))) if ids else (),
    )


# The run-time type checker draws on `random` where a strategy builds a checked dataclass.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisDeprecationWarning")
@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much],
)
@given(domain=domains().filter(lambda d: d.products or d.reviews or d.questions))
def test_write_then_read_is_identity(tmp_path: Path, domain: Domain) -> None:
    """Catches text, spans, numbers or pictures that change on the way to disk and back."""
    write_domain(domain, tmp_path / domain.name)
    assert read_domain(tmp_path / domain.name) == domain


def some_domain() -> Domain:
    picture = np.arange(32 * 32 * 3, dtype=np.uint32).astype(np.uint8).reshape(32, 32, 3)
    return Domain(
        "phones",
        products=(Product("p1", "phone", image=picture),),
        reviews=(Review("r1", "good", stars=4.0, product="p1"),),
    )


def test_writing_replaces_the_older_domain(tmp_path: Path) -> None:
    """Catches parts and pictures of the older domain left in the newer one, and litter beside."""
    folder = tmp_path / "shop" / "phones"
    write_domain(some_domain(), folder)
    assert sorted(path.name for path in folder.iterdir()) == [
        "images",
        "products.jsonl",
        "reviews.jsonl",
    ]
    newer = Domain("phones", products=(Product("p2", "other"),))
    write_domain(newer, folder)
    assert read_catalogue(tmp_path / "shop") == {"phones": newer}
    assert [path.name for path in folder.iterdir()] == ["products.jsonl"]
    assert [path.name for path in folder.parent.iterdir()] == ["phones"]


@pytest.mark.parametrize("failing", [1, 2])
def test_failed_writing_leaves_the_older_domain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    """Catches a write that loses the older domain, or leaves half a folder, when a rename fails."""
    folder = tmp_path / "phones"
    write_domain(some_domain(), folder)
    rename, calls = os.replace, []

    def replace_failing(source: Path, target: Path) -> None:
        calls.append(source)
        if len(calls) == failing:
            raise OSError(28, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(os, "replace", replace_failing)
    with pytest.raises(CatalogueError, match=r"phones: cannot be written .*No space.*make room"):
        write_domain(Domain("phones", reviews=(Review("r", "x", stars=1.0),)), folder)
    assert len(calls) >= failing
    assert read_catalogue(tmp_path) == {"phones": some_domain()}
    assert [path.name for path in tmp_path.iterdir()] == ["phones"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(reviews=(Review("r1", "x", stars=6.0),)), r"reviews.jsonl:1: field 'stars' is 6.0"),
        (dict(reviews=(Review("r1", "x", stars=1.0, product="p9"),)), r"'product' is 'p9'"),
        (dict(reviews=(Review("r1", "x", stars=1.0),) * 2), r"reviews.jsonl:2: field 'id' is 'r1'"),
        (dict(questions=(Question("q", "x", "abc", (2, 4)),)), r"questions.jsonl:1: .*\[2, 4\]"),
        (
            dict(products=(Product("p1", "x", image=np.zeros((32, 32), np.uint8)),)),
            r"products.jsonl:1: field 'image' is uint8 \[32, 32\]; give uint8 \[32, 32, 3\]",
        ),
        (
            dict(products=(Product("p1", "x", image=np.zeros((32, 32, 3), np.float32)),)),
            r"field 'image' is float32",
        ),
        (dict(products=(), reviews=()), "the domain is empty"),
        (dict(name="books"), "named 'books'; give a folder of that name"),
    ],
)
def test_writer_refuses_what_the_reader_would(tmp_path: Path, change: dict, words: str) -> None:
    """Catches a domain written that cannot be read again, or half of it left on disk."""
    with pytest.raises(CatalogueError, match=words):
        write_domain(replace(some_domain(), **change), tmp_path / "phones")
    assert list(tmp_path.iterdir()) == []


def test_writer_deletes_nothing_but_a_domain(tmp_path: Path) -> None:
    """Catches a writer that replaces a folder of other things, such as a whole catalogue."""
    folder = lay(tmp_path / "phones", notes=["mine"])
    with pytest.raises(CatalogueError, match=r"notes.jsonl: this is not part of a domain.*move it"):
        write_domain(some_domain(), folder)
    assert (folder / "notes.jsonl").exists()


def test_writing_through_a_link_keeps_the_link(tmp_path: Path) -> None:
    """Catches a symbolic link to a domain that is replaced by a folder, its target left old."""
    (tmp_path / "store").mkdir()
    (tmp_path / "phones").symlink_to(tmp_path / "store", target_is_directory=True)
    write_domain(some_domain(), tmp_path / "phones")
    assert (tmp_path / "phones").is_symlink()
    assert read_domain(tmp_path / "phones") == some_domain()


def test_products_differ_by_their_pictures() -> None:
    """Catches an equality that passes over pictures, on which the tests above stand."""
    product = some_domain().products[0]
    assert product.image is not None
    changed = product.image.copy()
    changed[3, 4, 1] ^= 1
    assert product == replace(product, image=product.image.copy())
    assert product != replace(product, image=changed)
    assert product != replace(product, image=None)
    assert product != "phone"


def test_a_line_without_an_end_is_one_error(tmp_path, monkeypatch):
    """Faults: a file of one endless line fills the memory; a line that is just not too long is
    refused; the line is not named."""
    lines = [json.dumps({"id": f"r{n}", "text": "x" * n}) for n in (1, 40)]
    folder = lay(tmp_path / "garden", reviews=lines)
    monkeypatch.setattr(metaguide.data.rows, "LONGEST_LINE", len(lines[1]) + 1)
    assert len(read_domain(folder).reviews) == 2
    monkeypatch.setattr(metaguide.data.rows, "LONGEST_LINE", len(lines[1]) - 1)
    refusal(folder, "reviews.jsonl:2", "holds more than", "one object per line")
