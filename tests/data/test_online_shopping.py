"""The reader of online_shopping_10_cats: what it keeps, drops and refuses."""

import os
import warnings
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from metaguide.data import online_shopping
from metaguide.data.catalogue import CatalogueError, Review, read_domain, write_domain
from metaguide.data.online_shopping import (
    Dropped,
    drop_repeats,
    parse_online_shopping,
    read_online_shopping,
)
from metaguide.data.texts import normalised

ROWS = [
    "热水器,1,\ufeff很好用。",
    '热水器,0,"漏水, 还有 ""异味""\n不买了"',
    "热水器,1,",
    "热水器,0,？？！",
    "热水器,1,很 好用！",  # the first again, but for space and punctuation
    "书籍,1,\ufeff好书",
    "书籍,0,很好用",  # that of the other category
    "书籍,0,好书 ABC１",
    "书籍,0,好书ａｂｃ1",  # full-width and small letters
]


def lay(path: Path, rows: list[str], header: str = "cat,label,review") -> Path:
    path.write_text("\n".join([header, *rows]), encoding="utf-8")
    return path


def test_reads_csv_and_zip(tmp_path: Path) -> None:
    """Catches a byte order mark left in, quotes misread, ids that move when rows are dropped."""
    plain = lay(tmp_path / "reviews.csv", ROWS)
    with zipfile.ZipFile(tmp_path / "reviews.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(plain, "folder/reviews.csv")
    expected = {
        "书籍": (
            Review("书籍-00000", "好书", sentiment="positive"),
            Review("书籍-00001", "很好用", sentiment="negative"),
            Review("书籍-00002", "好书 ABC１", sentiment="negative"),
        ),
        "热水器": (Review("热水器-00001", '漏水, 还有 "异味"\n不买了', sentiment="negative"),),
    }
    for path in (plain, tmp_path / "reviews.zip"):
        domains = read_online_shopping(path)
        assert list(domains) == sorted(expected)
        for name, reviews in expected.items():
            assert domains[name].name == name
            assert domains[name].reviews == reviews
            assert domains[name].products == domains[name].questions == ()


def test_counts_what_it_drops(tmp_path: Path) -> None:
    """Catches repeats kept within or across categories, and empty texts taken for repeats."""
    raw = parse_online_shopping(lay(tmp_path / "reviews.csv", ROWS))
    assert [len(domain.reviews) for domain in raw.values()] == [4, 5]
    kept, dropped = drop_repeats(raw)
    assert dropped == Dropped(empty=2, repeated=3)
    assert drop_repeats(kept) == (kept, Dropped(0, 0))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("很好，很快！", "很好很快", True),
        ("ＡＢＣ", "abc", True),
        ("a\u3000b\tc\n", "abc", True),
        ("\ufeffabc\u200b", "abc", True),
        ("好👍", "好", False),
        ("不好", "好", False),
        ("5", "4", False),
    ],
)
def test_what_is_the_same_text(one: str, other: str, same: bool) -> None:
    """Catches a normal form that tells copies apart, or throws away what carries meaning."""
    assert (normalised(one) == normalised(other)) == same


@pytest.mark.parametrize(
    ("rows", "header", "words"),
    [
        (["热水器,1"], "cat,label", r"reviews.csv:1: no column 'review'; the first line must be"),
        ([], "", r"reviews.csv:1: no column 'cat'"),
        ([], "cat,label,review", r"reviews.csv: no review"),
        (["a,1,x", "a,2,y"], None, r"reviews.csv:3: field 'label' is '2'; write 1 for positive"),
        (["a,1,x", "a,,y"], None, r"reviews.csv:3: field 'label' is ''; write 1"),
        (["a,1,x", "a,1"], None, r"reviews.csv:3: field 'review' is missing; fix or drop"),
        (["a,1,x", ",1,y"], None, r"reviews.csv:3: field 'cat' is missing; fix or drop"),
        (["a,1,x", "a,1,y,z"], None, r"reviews.csv:3: more fields than columns; put .* in quotes"),
        (["a,1,x", 'a,1,"y" z'], None, r"reviews.csv:3: broken CSV .*; download"),
    ],
)
def test_bad_rows_are_named(
    tmp_path: Path, rows: list[str], header: str | None, words: str
) -> None:
    """Catches a bad row that passes or is cut, or a message without line, column and fix."""
    path = lay(tmp_path / "reviews.csv", rows, "cat,label,review" if header is None else header)
    with pytest.raises(CatalogueError, match=words):
        read_online_shopping(path)


def test_bad_files_are_named(tmp_path: Path) -> None:
    """Catches a missing, damaged or foreign file that ends in another library's error."""
    with pytest.raises(CatalogueError, match="no such file; set METAGUIDE_DATA_DIR"):
        read_online_shopping(tmp_path / "none.zip")
    with pytest.raises(CatalogueError, match="cannot be read"):
        read_online_shopping(tmp_path)
    (tmp_path / "latin.csv").write_bytes(b"cat,label,review\na,1,x\nb,1,\xe9t\xe9\n")
    with pytest.raises(CatalogueError, match=r"latin.csv:3: not UTF-8; download"):
        read_online_shopping(tmp_path / "latin.csv")
    with zipfile.ZipFile(tmp_path / "empty.zip", "w") as archive:
        archive.writestr("readme.txt", "nothing")
    with pytest.raises(CatalogueError, match="holds 0 CSV files"):
        read_online_shopping(tmp_path / "empty.zip")
    with zipfile.ZipFile(tmp_path / "hurt.zip", "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("reviews.csv", "cat,label,review\na,1,good\n")
    hurt = (tmp_path / "hurt.zip").read_bytes().replace(b"a,1,good", b"a,1,bad!", 1)
    (tmp_path / "hurt.zip").write_bytes(hurt)
    with pytest.raises(CatalogueError, match="cannot be read.*download"):
        read_online_shopping(tmp_path / "hurt.zip")


def test_a_zip_that_macos_packed_again_is_read(tmp_path: Path) -> None:
    """Catches what macOS adds taken for reviews, or for a second file of them."""
    text = "cat,label,review\na,1,good\n"
    members = {
        "reviews/": "",
        "reviews/reviews.csv": text,
        "reviews/.DS_Store": "x",
        "__MACOSX/reviews/._reviews.csv": "x",
        "reviews/._reviews.csv": "x",
    }
    with zipfile.ZipFile(tmp_path / "again.zip", "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.warns(UserWarning, match="1 reviews"):
        assert [r.text for r in read_online_shopping(tmp_path / "again.zip")["a"].reviews] == [
            "good"
        ]
    with zipfile.ZipFile(tmp_path / "again.zip", "a") as archive:
        archive.writestr("reviews/more.csv", text)
    with pytest.raises(CatalogueError, match="holds 2 CSV files, not one"):
        read_online_shopping(tmp_path / "again.zip")


@pytest.mark.parametrize("packed", [False, True])
def test_a_cut_file_is_not_taken_for_the_whole(tmp_path: Path, monkeypatch, packed: bool) -> None:
    """Catches a file that was cut at the end of a line, read as fewer reviews without a word."""
    monkeypatch.setattr(online_shopping, "PUBLISHED", 5)
    path = lay(tmp_path / "reviews.csv", [f"a,1,good {row}" for row in range(5)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_online_shopping(path)
    path.write_text("\n".join(path.read_text().splitlines()[:4]) + "\n")
    if packed:
        with zipfile.ZipFile(tmp_path / "reviews.zip", "w") as archive:
            archive.write(path, "reviews.csv")
        path = tmp_path / "reviews.zip"
    with pytest.warns(
        UserWarning, match=rf"{path}: 3 reviews, and the published file has 5: .*cut"
    ):
        read_online_shopping(path)


@pytest.fixture
def published_file() -> Path:
    """The file as published, where the person who runs the tests has it."""
    folder = os.environ.get("METAGUIDE_DATA_DIR")
    if not folder:
        pytest.skip("METAGUIDE_DATA_DIR does not name a folder with online_shopping_10_cats.zip")
    return Path(folder) / "online_shopping_10_cats.zip"


@pytest.mark.slow
def test_published_file(published_file: Path, tmp_path: Path) -> None:
    """Catches rows lost or doubled in the whole file, against its published counts."""
    raw = parse_online_shopping(published_file)
    assert sum(len(domain.reviews) for domain in raw.values()) == 62_774
    assert Counter(r.sentiment for r in raw["热水器"].reviews) == {"positive": 475, "negative": 100}
    kept, dropped = drop_repeats(raw)
    assert dropped == Dropped(empty=3, repeated=235)
    assert len(kept) == 10
    texts = [review.text for domain in kept.values() for review in domain.reviews]
    assert len(texts) == len({normalised(text) for text in texts}) == 62_774 - sum(dropped)
    assert not any("\ufeff" in text for text in texts)
    write_domain(kept["热水器"], tmp_path / "热水器")
    assert read_domain(tmp_path / "热水器") == kept["热水器"]
