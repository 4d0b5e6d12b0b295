"""Questions about texts: SQuAD's JSON, and SubjQA's tables."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from metaguide.data.importers.records import read_csv
from metaguide.data.importers.source import Place, Reject, Row, made_id, opened
from metaguide.data.importers.tables import Options, Reading
from metaguide.data.rows import CatalogueError
from metaguide.files import MIB, unpacked

MOST = 512 * MIB
"""The most bytes of a file of SQuAD's format, which is one JSON object."""

UNANSWERABLE = "ANSWERNOTFOUND"
"""The words that SubjQA puts at the end of every review, to be marked if nothing answers."""


def squad(files: Sequence[Path], options: Options) -> Reading:
    """Read SQuAD's JSON, of version 1 or 2.

    Args:
        files: the files.
        options: only the encoding counts.

    Raises:
        CatalogueError: a file is not of this format.
    """
    found = {path: _articles(path, options) for path in files}

    def rows() -> Iterator[Row | Reject]:
        for path, articles in found.items():
            asked = 0
            for one in _each(articles, "paragraphs"):
                passage = one.get("context")
                for question in _each([one], "qas"):
                    asked += 1
                    yield _row(Place(str(path), asked), passage, question)

    return Reading(rows())


def subjqa(files: Sequence[Path], options: Options) -> Reading:
    """Read SubjQA's tables, such as `SubjQA/books/splits/test.csv`.

    The answer is the span of `human_ans_indices`: the words of `human_ans_spans` disagree with it
    in one row of ten. A review ends with `ANSWERNOTFOUND`, which is cut off.

    Args:
        files: the tables.
        options: only the encoding counts.

    Raises:
        CatalogueError: a table lacks a column.
    """
    tables = {path: read_csv(path, delimiter=",", encoding=options.encoding) for path in files}
    for path, table in tables.items():
        lacking = {"question", "review", "human_ans_indices"} - set(table.columns)
        if lacking:
            raise CatalogueError(f"{path}:1: no column {min(lacking)!r}; give a table of SubjQA.")

    def rows() -> Iterator[Row | Reject]:
        for table in tables.values():
            for record in table.records:
                if isinstance(record, Reject):
                    yield record
                    continue
                place, said, line = record
                text = said["review"].removesuffix(UNANSWERABLE)
                bounds = re.fullmatch(r"\((\d+), (\d+)\)", said["human_ans_indices"])
                if bounds is None:
                    yield Reject("questions: human_ans_indices that is no span", place, "", line)
                    continue
                answer = [int(bounds[1]), int(bounds[2])]
                words = said["review"][answer[0] : answer[1]]
                fields = {
                    "id": made_id(place),
                    "question": said["question"],
                    "text": text,
                    "answer": None if UNANSWERABLE in words else answer,
                }
                yield Row("questions", {k: v for k, v in fields.items() if v is not None}, place)

    return Reading(rows())


def _articles(path: Path, options: Options) -> Sequence[Any]:
    with opened(path, (".json",)) as file:
        try:
            text = unpacked(file, MOST).decode(options.encoding)
            found = json.loads(text.removeprefix("\ufeff"))
        # ValueError: damaged, too long, not in the encoding, or not JSON.
        except (ValueError, RecursionError) as error:
            raise CatalogueError(f"{path}: not JSON ({error}); download the file again.") from error
    articles = found.get("data") if isinstance(found, dict) else None
    if not isinstance(articles, list):
        raise CatalogueError(f"{path}: no list 'data'; give a file of SQuAD's format.")
    return articles


def _each(found: Sequence[Any], name: str) -> Iterator[Mapping[str, Any]]:
    """Yield the objects in the lists of a name."""
    for one in found:
        listed = one.get(name) if isinstance(one, Mapping) else None
        for each in listed if isinstance(listed, list) else []:
            if isinstance(each, Mapping):
                yield each


def _row(place: Place, passage: Any, question: Mapping[str, Any]) -> Row | Reject:
    fields = {
        "id": question.get("id", str(place.line)),
        "question": question.get("question"),
        "text": passage,
    }
    answers = []
    for one in question.get("answers") or []:
        start, words = (one.get(name) for name in ("answer_start", "text"))
        if not isinstance(passage, str) or not isinstance(start, int) or not words:
            return Reject("questions: an answer without text or start", place, repr(one))
        if passage[start : start + len(words)] != words:
            detail = f"{words!r} does not stand at character {start}"
            return Reject("questions: an answer that is not in its text", place, detail)
        answers.append([start, start + len(words)])
    answers = [list(span) for span in dict.fromkeys(map(tuple, answers))]
    if answers:
        fields["answers"] = answers
    return Row("questions", {k: v for k, v in fields.items() if v is not None}, place)
