"""The console command: what it prints, and that every error is one line with its mend."""

import json
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from metaguide import cli
from metaguide.pretrained import CutTexts, UnknownTexts

PRODUCTS = "sku,name,cat,price\n" + "".join(
    f"{n},Thing {n},{('Tools', 'Watering')[n % 2]},{n}.50 €\n" for n in range(12)
)


def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, *arguments: object
) -> tuple[int, str, str]:
    """Runs the command; returns its exit code and what it printed on both streams."""
    monkeypatch.setattr(sys, "argv", ["metaguide", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return int(end.value.code or 0), *capsys.readouterr()


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a shop's export, as the working directory."""
    (tmp_path / "my.csv").write_text(PRODUCTS + "broken\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


MAP = "--map=id:sku,title:name,category:cat,attributes.price:price"


def test_import_says_what_it_read_and_what_it_did_not(shop, monkeypatch, capsys) -> None:
    """Catches a summary that leaves out what was rejected, or the next command."""
    code, out, err = run(monkeypatch, capsys, "import", "my.csv", "my_shop/garden", MAP)
    assert (code, err) == (0, "")
    assert "products            12" in out
    assert "1 more or fewer fields than columns (first at my.csv:14" in out
    assert "next: metaguide check my_shop" in out
    code, out, _ = run(
        monkeypatch, capsys, "import", "my.csv", MAP, "--output=my_shop/other", "--json"
    )
    found = json.loads(out)
    assert code == 0 and found["read"] == {"products": 12}
    (reject,) = found["rejected"].values()
    assert reject["first"] == {"file": "my.csv", "line": 14} and reject["count"] == 1


def test_import_and_help_load_no_jax(shop) -> None:
    """Catches a command that reads files alone, and waits seconds for JAX."""
    program = (
        "import atexit, sys; atexit.register(lambda: print(sorted({'jax', 'flax', 'scipy'} & "
        "set(sys.modules)))); from metaguide import cli; cli.main()"
    )
    for arguments in (("--help",), ("import", "my.csv", "my_shop/garden", MAP)):
        command = [sys.executable, "-c", program, *arguments]
        ran = subprocess.run(command, capture_output=True, text=True, cwd=shop)
        assert (ran.returncode, ran.stderr) == (0, "") and ran.stdout.endswith("\n[]\n")


def test_what_is_asked_for_comes_with_its_option(shop, monkeypatch, capsys) -> None:
    """Catches advice that names no option, and a reason without the value that was found."""
    (shop / "o.csv").write_text("user,product,time\nu,p,5.3.2024\n")
    code, _, err = run(monkeypatch, capsys, "import", "o.csv", "my_shop/garden")
    assert code == 1 and "'5.3.2024'" in err
    assert "say how times are written (--time-format=%d.%m.%Y)" in err
    (shop / "r.csv").write_text("text,stars\ngood,好评\nbad,\n")
    code, out, _ = run(monkeypatch, capsys, "import", "r.csv", "my_shop/garden")
    assert code == 0 and "map the column to sentiment instead" in out
    code, _, err = run(monkeypatch, capsys, "import", "r.csv", "my_shop/garden")
    assert code == 1 and "ask for these to be replaced (--replace)" in err
    code, _, err = run(monkeypatch, capsys, "evaluate", "my_shop", "--guide=nowhere")
    assert code == 1 and "my_shop: holds domains, but is none" in err and "my_shop/garden" in err


def test_check_says_what_a_shop_allows(shop, monkeypatch, capsys) -> None:
    """Catches a task that is promised without examples, or a class that is too small, unsaid."""
    run(monkeypatch, capsys, "import", "my.csv", "my_shop/garden", MAP)
    (shop / "r.csv").write_text("text,stars\ngood,5\nbad,1\nso,\n")
    run(monkeypatch, capsys, "import", "r.csv", "my_shop/garden")
    for folder in ("my_shop", "my_shop/garden"):
        code, out, _ = run(monkeypatch, capsys, "check", folder)
        lines = [" ".join(line.split()) for line in out.splitlines()]
        assert code == 0 and lines[:6] == [
            "garden: 12 products, 3 reviews",
            "classification yes Tools 6, Watering 6",
            "sentiment yes negative 1, positive 1; 2 of 2 classes have fewer than 5 examples: "
            "'negative', 'positive'",
            "questions no needs questions",
            "recommendation no needs interactions",
            "reviews without a label, which adaptation may read as such: 1",
        ]
    code, out, _ = run(monkeypatch, capsys, "check", "my_shop", "--json")
    (domain,) = json.loads(out)["domains"]
    assert domain["rows"]["reviews"] == 3
    assert domain["tasks"]["classification"]["counts"] == {"Tools": 6, "Watering": 6}
    (shop / "bare.csv").write_text("text\nso\n")
    run(monkeypatch, capsys, "import", "bare.csv", "bare/garden", "--map=text:text")
    _, out, _ = run(monkeypatch, capsys, "check", "bare")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert lines[1:3] == [
        "classification no needs products with a category",
        "sentiment no needs reviews with stars or a sentiment",
    ]
    (shop / "my_shop" / "garden" / "reviews.jsonl").write_text("{}\n")
    code, out, err = run(monkeypatch, capsys, "check", "my_shop")
    assert code == 1 and "reviews.jsonl:1: field 'id' is missing" in err


ERRORS = [
    (["import", "my.csv"], "give the files and the domain's folder"),
    (["import", "my.xyz", "a"], "its name does not tell the format; say which: csv"),
    (["import", "my.csv", "a", "--format=excel"], "there is no format 'excel'; there are csv"),
    (["import", "my.csv", "a", "--map=title=name"], "write FIELD:COLUMN, as in title:name"),
    (["import", "my.csv", "a", "--map=title:name,title:cat"], "--map has title twice"),
    (["import", "my.csv", "a", "--map=title:nmae"], "no column 'nmae' for title; the columns are"),
    (["import", "my.csv", "a", "--map=titel:name"], "did you mean 'title'"),
    (["import", "my.csv", "a"], "nothing says what a row is"),
    (["import", "none.csv", "a"], "none.csv: cannot be read"),
    (["import", "my.csv", "a", MAP, "--strict"], "my.csv:14: .*nothing was imported"),
    (["import", "my.csv", "a", MAP, "--encoding=x"], "encoding is 'x'"),
    (["import", "my.csv", "a", MAP, "--encoding=hex"], "encoding is 'hex'"),
    (["adapt", "a", "--guide=g", "--output=o", "--shots=20000"], "--shots is 20000; give at most"),
    (["adapt", "a", "--guide=g", "--output=my_other"], "my_other/mine: .*would be lost"),
    (["evaluate", "a", "--guide=g", "--report=no/r.html"], "there is no folder no; make it"),
    (["serve", "g", "--save-to=my_other"], "my_other/mine: .*would be lost"),
    (["check", "nowhere"], "nowhere: cannot be read"),
    (["check", "my_empty"], "my_empty: holds no domain; make one"),
]


@pytest.mark.parametrize(("arguments", "words"), ERRORS)
def test_every_error_is_one_line(shop, monkeypatch, capsys, arguments, words) -> None:
    """Catches a traceback, an exit code of 0, or a folder that an error leaves behind."""
    (shop / "my_empty").mkdir()
    (shop / "my_other").mkdir()
    (shop / "my_other" / "mine").write_text("of the user")
    code, out, err = run(monkeypatch, capsys, *arguments)
    assert code == 1 and out == "" and err.startswith("metaguide: ") and err.count("\n") == 1
    assert re.search(words, err), err
    assert sorted(path.name for path in shop.iterdir()) == ["my.csv", "my_empty", "my_other"]


def test_notes_of_many_batches_are_one() -> None:
    """Catches a note that speaks of the first batch alone, and notes of two kinds that are one."""

    class Kind(UserWarning):
        pass

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for said in (
            CutTexts(29, 256, 128),
            UnknownTexts(1, 256),
            "the same",
            CutTexts(1, 44, 128),
            "the same",
            Kind("one"),
            Kind("two"),
        ):
            warnings.warn(said, stacklevel=1)
    cut, unknown, *others = cli._notes(caught)
    assert cut == "30 of 300 texts are longer than 128 tokens; the rest is not read"
    assert unknown.startswith("1 of 256 texts are mostly of pieces")
    assert others == [
        "the same",
        "one (the first of 2 such notes)",
    ]


def test_help_has_an_example_of_each_command(monkeypatch, capsys) -> None:
    """Catches a command without help, or help without an example to copy."""
    code, out, _ = run(monkeypatch, capsys, "--help")
    assert code == 0 and "import" in out and "check" in out
    for command in ("import", "check"):
        code, out, _ = run(monkeypatch, capsys, command, "--help")
        assert code == 0 and f"metaguide {command} " in out
