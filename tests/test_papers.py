"""What the papers promise: commands, links, sizes, examples, tables, and the same in Chinese."""

import importlib.util
import re
import tomllib
from pathlib import Path

import pytest

from experiments.tables import readme

ROOT = Path(__file__).resolve().parents[1]
PAPERS = sorted(
    path
    for pattern in ("*.md", "experiments/**/*.md", "metaguide/**/*.md")
    for path in ROOT.glob(pattern)
)
ENGLISH, CHINESE = (ROOT / name for name in ("README.md", "README.zh.md"))


def links(text: str) -> list[str]:
    """The targets of a text's links and pictures, in their order."""
    return re.findall(r"\]\(([^)\s]+)\)", text)


def commands(text: str) -> list[str]:
    """The lines of a text's indented blocks and of its fenced ones, in their order."""
    found, fenced = [], False
    for line in text.splitlines():
        fenced ^= line.startswith("```")
        if fenced or line.startswith("    "):
            found.append(line)
    return found


def anchors(text: str) -> set[str]:
    """The names that GitHub gives to the headings of a text."""
    titles = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_readme_is_one_page_with_a_picture_at_its_top():
    """Faults: it grows again; the picture is gone, or stands far below."""
    text = ENGLISH.read_text("utf-8")
    assert len(text.split()) <= 900
    above, _, _ = text.partition("## ")
    (picture,) = re.findall(r"!\[.+\]\(([^)]+)\)", above)
    assert (ROOT / picture).is_file()


def test_both_languages_have_the_same_commands_and_links():
    """Faults: a command, an example or a link is changed in one language alone."""
    english, chinese = (path.read_text("utf-8") for path in (ENGLISH, CHINESE))
    assert links(english)[0] == CHINESE.name and links(chinese)[0] == ENGLISH.name
    assert links(english)[1:] == links(chinese)[1:]
    assert commands(english) == commands(chinese)


@pytest.mark.parametrize("path", PAPERS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(path: Path):
    """Faults: a file or a heading that is linked was moved; a path of one machine got in."""
    text = path.read_text("utf-8")
    assert not re.search(r"/root/|/home/|/work/|/tmp/", text)
    for link in links(text):
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        target = path.parent / name if name else path
        assert target.exists(), f"{path.name} links to {link}"
        assert not anchor or anchor in anchors(target.read_text("utf-8")), link


@pytest.mark.parametrize("path", PAPERS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_modules_and_extras_in_commands_exist(path: Path):
    """Faults: a command names a module that was moved, or an extra that there is none of."""
    text = path.read_text("utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for module in re.findall(r"python -m (experiments[\w.]*)", text):
        assert importlib.util.find_spec(module), module
    for extras in re.findall(r"'\.\[([\w,]+)\]'", text):
        assert set(extras.split(",")) <= set(project["optional-dependencies"])


def test_each_notebook_has_a_badge():
    """Fault: a notebook that the README does not open in Colab, or a badge of one that is gone."""
    badges = re.findall(r"https://colab\S+/(notebooks/\w+\.ipynb)", ENGLISH.read_text("utf-8"))
    assert badges == list(dict.fromkeys(badges))
    assert {ROOT / badge for badge in badges} == set(ROOT.glob("notebooks/*.ipynb"))


@pytest.mark.slow
def test_tables_and_pictures_are_those_of_the_results():
    """Fault: results were replaced, and what is shown of them was not."""
    assert not readme.stale(readme.RESULTS)
