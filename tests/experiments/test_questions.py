"""The table of questions: what is drawn, what is chosen, and how it is scored."""

import csv
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_collections.config_dict import FrozenConfigDict
from sklearn.metrics import roc_auc_score

import metaguide
from experiments import command
from experiments.config_files import ConfigError
from experiments.configs import questions as configs
from experiments.modules import COMMANDS
from experiments.sources.subjqa import read_questions
from experiments.tables import questions, span_reader
from experiments.tables.questions import Asked, Said, Worth
from experiments.tables.span_reader import Scored
from experiments.tables.tuned_encoder import TunedGuide
from metaguide.data.catalogue import Domain, Question
from metaguide.evaluation.results import read
from metaguide.pretrained import load_encoder
from tests.pretrained.conftest import write as write_encoder

SHOPS = ("books", "electronics", "grocery", "movies")


def lay(folder: Path, each: int = 6) -> None:
    """Write SubjQA as small: a part for training of two shops, and two answers to each question.

    As in the published files, somebody else's answers to a question of "dev" are in "train".
    """
    with zipfile.ZipFile(folder / "subjqa.zip", "w") as packed:
        for shop in SHOPS:
            for part in ("train", "dev", "test"):
                if part == "train" and shop in ("books", "movies"):
                    continue
                file = io.StringIO()
                rows = csv.writer(file)
                rows.writerow(["question", "review", "human_ans_indices"])
                for number in range(each):
                    text = f"the {shop} {part} {number} is good . not bad " + "the screen " * number
                    words = text.index("good"), text.index("bad") + 3
                    review = text + "ANSWERNOTFOUND"
                    none = len(text), len(review)
                    for span in (words, words if number % 3 else none):
                        rows.writerow(["is the phone good", review, f"({span[0]}, {span[1]})"])
                if part == "train":
                    review = f"the {shop} dev 0 is good . not bad ANSWERNOTFOUND"
                    rows.writerow(["is the phone good", review, "(17, 21)"])
                packed.writestr(f"SubjQA/{shop}/splits/{part}.csv", file.getvalue())


def config_of(**fields: Any) -> FrozenConfigDict:
    config: Any = configs.get_config()
    config.update_from_flattened_dict(fields)
    return FrozenConfigDict(config)


def resolved(argv: list[str]) -> FrozenConfigDict:
    defaults = COMMANDS["experiments.tables.questions"]._asdict()
    return command.resolve(argv, **defaults, late=True)[0]


# ------------------------------------------------------------------------------ what is read


def test_everyone_who_answered_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a second answer that is left out, one of another question, and a review that is read
    with the mark of no answer."""
    lay(tmp_path)
    monkeypatch.setenv("METAGUIDE_DATA_DIR", str(tmp_path))
    found = read_questions()
    assert {name: tuple(parts) for name, parts in found.items()} == {
        "books": ("dev", "test"),
        "electronics": ("dev", "test", "train"),
        "grocery": ("dev", "test", "train"),
        "movies": ("dev", "test"),
    }
    asked = questions.asked_of(found["books"]["test"])
    assert len(asked.questions) == 6 and asked.row.tolist() == [n // 2 for n in range(12)]
    assert asked.golds[:4] == ["good . not bad", None, "good . not bad", "good . not bad"]
    assert not any("ANSWERNOTFOUND" in one.text for one in asked.questions)
    assert asked.answerable.sum() == 10 and len(asked.answered) == 12
    few = questions.asked_of(found["books"]["test"], 2)
    assert few.row.tolist() == [0, 0, 1, 1] and few.questions == asked.questions[:2]


# ------------------------------------------------------------------------------ the reader


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> TunedGuide:
    folder = tmp_path_factory.mktemp("encoder")
    write_encoder(folder, "bert")
    config = config_of(**{"encoder.length": 12, "reader.layers": 1, "max_answer_tokens": 3})
    return span_reader.reader_of(config, load_encoder(folder))


def long_question(number: int, answer: str | None) -> Question:
    text = "the phone is the phone is the phone is good the screen is not the screen is bad"
    span = None if answer is None else (text.index(answer), text.index(answer) + len(answer))
    return Question(str(number), "good", text, span)


def test_a_window_that_is_drawn_holds_its_answer(reader: TunedGuide) -> None:
    """Catches windows of another question, an answer that is never read, a share of windows with
    the answer other than half and what chance adds, and a target that is not the answer."""
    asked = [long_question(0, "good"), long_question(1, None), long_question(2, "bad")]
    data: Any = span_reader.windows_of(reader, asked)
    assert data["count"].min() > 2 and len(data["tokens"]) == data["count"].sum()
    keys = jax.random.split(jax.random.key(0), 3000)
    rows = np.asarray(
        jax.vmap(lambda key: span_reader.drawn_windows(jax.tree.map(jnp.asarray, data), key, 1))(
            keys
        )
    ).ravel()
    of_question = np.repeat(np.arange(3), data["count"])
    np.testing.assert_allclose(np.bincount(of_question[rows]) / len(rows), 1 / 3, atol=0.04)
    for number, one in enumerate(asked):
        mine = rows[of_question[rows] == number]
        holding = data["start"][mine] > 0
        count, own = data["count"][number], (data["start"][of_question == number] > 0).sum()
        share = 0.5 + 0.5 * own / count if one.answer else 0.0
        assert holding.mean() == pytest.approx(share, abs=0.07)
        assert set(mine) == set(np.flatnonzero(of_question == number))
        for row in mine[holding][:5]:
            first, last = data["start"][row], data["end"][row]
            said = data["tokens"][row, first : last + 1].tolist()
            words = reader.encoder.guide_tokenizer.encode([one.golds[0]], 8).tokens[0]
            assert said == [token for token in words.tolist() if token > 4]


def test_the_likeliest_spans_are_those_of_all_windows() -> None:
    """Catches a span across the question, one that is too long or ends before it begins, the score
    of the lesser window, and no answer by the greatest of the windows."""
    rng = np.random.default_rng(0)
    start, end = rng.normal(size=(2, 2, 7))
    offsets = np.full((2, 7, 2), -1)
    offsets[0, 3:6] = [(0, 2), (3, 5), (6, 8)]
    offsets[1, 2:5] = [(3, 5), (6, 8), (9, 11)]
    found = span_reader._likeliest(start, end, offsets, 2, 50)
    every: dict[tuple[int, int], float] = {}
    for row in range(2):
        for first in range(7):
            for last in range(first, min(first + 2, 7)):
                if offsets[row, first, 0] >= 0 and offsets[row, last, 0] >= 0:
                    span = int(offsets[row, first, 0]), int(offsets[row, last, 1])
                    score = start[row, first] + end[row, last]
                    every[span] = max(score, every.get(span, -np.inf))
    assert dict(zip(found.spans, found.scores, strict=True)) == pytest.approx(every)
    assert list(found.scores) == sorted(found.scores, reverse=True) and len(every) == 7
    assert found.none == pytest.approx(min(start[:, 0] + end[:, 0]))
    few = span_reader._likeliest(start, end, offsets, 2, 3)
    assert few.spans == found.spans[:3]


# ------------------------------------------------------------------------------ answers


def test_the_consensus_is_what_the_others_share() -> None:
    """Catches the likeliest answer for the one of the largest expected F1, and the odds of one
    answer for those of any."""
    text = "very good phone and cheap"
    asked = Asked([Question("0", "how?", text)], [], np.zeros(0, int), [])
    spans = ((20, 25), (0, 9), (5, 9), (5, 15))
    said = Scored(0.5, spans, np.log([0.4, 0.2, 0.2, 0.2]))
    assert questions.likeliest(asked, [said]).answers == ["cheap"]
    found = questions.consensus(asked, [said])
    assert found.answers == ["good"]
    assert found.sure[0] == pytest.approx(-0.5)


def test_a_sentence_is_the_nearest_of_its_own_text() -> None:
    """Catches the sentence of another text, and one that is nearest to another question."""
    texts = "The case is red. The screen is big.", "Nothing here."
    asked = Asked(
        [Question(str(n), "big screen", text) for n, text in enumerate(texts)],
        [], np.zeros(0, int), [],
    )  # fmt: skip
    found = questions.best_sentences(asked, questions.near_by_tfidf([asked]))
    assert found.answers == ["The screen is big.", "Nothing here."]
    assert found.sure[0] > 0 == found.sure[1]


# ------------------------------------------------------------------------------ thresholds


def worths(draw: Any) -> Worth:
    count = draw(st.integers(1, 8))
    some = st.lists(st.integers(0, 4), min_size=count, max_size=count)
    sure, score, is_none = (np.array(draw(some)) for _ in range(3))
    withheld = (is_none > 2).astype(float)
    return Worth(sure / 2, np.where(withheld > 0, 0.0, score / 4), withheld)


@given(st.data())
def test_a_threshold_is_as_good_as_any(data: Any) -> None:
    """Catches a sum over the wrong side of a threshold, a weight that is not of a mean, and ties
    that are parted."""
    parts = [(float(data.draw(st.integers(1, 3))), data.draw(st.composite(worths)())) for _ in "ab"]
    found = questions.threshold_of(parts)

    def total(threshold: float) -> float:
        return sum(weight * one.at(threshold).mean() for weight, one in parts)

    levels = np.concatenate([one.sure for _, one in parts])
    tried = [-np.inf, np.inf, *(levels - 0.1), *(levels + 0.1)]
    assert total(found) == pytest.approx(max(map(total, tried)))
    assert found not in levels


def test_what_the_sources_count_as_is_chosen_where_it_pays() -> None:
    """Catches a choice that does not read what it is scored by: where the sources agree, they are
    worth more than a few questions; where each is the contrary of the others, less."""
    rng = np.random.default_rng(0)
    sure = rng.normal(size=200)

    def shop(sign: float, noise: float) -> Worth:
        right = sign * sure + noise * rng.normal(size=200) > 0
        return Worth(sign * sure if noise else sure, right.astype(float), (~right).astype(float))

    config = config_of(shots=(0, 20), **{"threshold.seen": (0.01, 1e4), "threshold.episodes": 20})
    rows = [np.arange(200)] * 3
    alike = [shop(1.0, 1.0) for _ in range(3)]
    assert questions.learn_seen(config, alike, rows) == {20: 1e4}
    moved = [one._replace(sure=one.sure + 9 * place) for place, one in enumerate(alike)]
    assert questions.learn_seen(config, moved, rows) == {20: 0.01}


def test_shots_are_questions_with_all_their_answers() -> None:
    """Catches answers that are drawn apart from those of the same question."""
    row = np.repeat(np.arange(10), 2)
    given = questions.drawn(row, 3, np.random.default_rng(0))
    assert given.sum() == 6 and len(set(row[given])) == 3
    assert not questions.drawn(row, 0, np.random.default_rng(0)).any()


# ------------------------------------------------------------------------------ scores


@given(st.data())
def test_auc_is_that_of_scikit_learn(data: Any) -> None:
    """Catches ties that count as wins, and weights of the other class."""
    count = data.draw(st.integers(2, 12))
    some = st.lists(st.integers(0, 3), min_size=count, max_size=count)
    sure, weights = np.array(data.draw(some), float), np.array(data.draw(some)) + 1.0
    label = np.array(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)))
    found = questions.auc(sure, label, weights[None])[0]
    if label.all() or not label.any():
        assert np.isnan(found)
    else:
        assert found == pytest.approx(roc_auc_score(label, sure, sample_weight=weights))
        assert questions.auc(np.full(count, np.nan), label, weights[None])[0] == 0.5


def test_every_figure_is_of_its_own_answers() -> None:
    """Catches a mean over answers without words, a gain over something else than no answer, a
    threshold of other shots, and people who agree with themselves."""
    asked = Asked(
        [Question(str(n), "?", "x") for n in range(3)], [],
        np.array([0, 0, 1, 1, 2]), ["x b", "b c", None, "d", None],
    )  # fmt: skip
    said = Said(["b", "d", "e"], np.array([2.0, 1.0, 0.0]))
    em, f1 = ([questions.worth(asked, said, metric)] for metric in (0, 1))
    outcome = questions.Outcome(em, f1, {0: np.array([[1.5]]), 5: np.array([[0.5, -1.0]])})
    found = {name: one.of_seeds[0] for name, one in questions.measured(asked, outcome).items()}
    two_thirds = 2 / 3
    assert found["f1_answerable", None] == pytest.approx((2 * two_thirds + 1) / 3)
    assert found["em_answerable", None] == pytest.approx(1 / 3)
    assert found["auc", None] == pytest.approx((2 + 2 + 0.5 + 1) / 6)
    assert found["f1", 0] == pytest.approx((2 * two_thirds + 1 + 0 + 1) / 5)
    answered = (2 * two_thirds + 0 + 1 + 1) / 5
    assert found["f1", 5] == pytest.approx((answered + (2 * two_thirds + 0 + 1 + 0) / 5) / 2)
    assert found["gain", 0] == pytest.approx(found["f1", 0] - 2 / 5)
    assert questions.agreement(asked) is None  # only one question was answered twice
    both = asked._replace(row=np.array([0, 0, 1, 1, 1]), golds=["x b", "b c", "d", "d", None])
    people = questions.agreement(both)
    assert people is not None and people.of_seeds[0] == pytest.approx((0.5 + 0.5 + 1 + 1) / 4)


# ------------------------------------------------------------------------------ the whole table


@pytest.mark.slow
def test_a_table_is_made_and_its_reader_is_a_guide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches a held-out answer that teaches, a method or metric that is missing, a run that
    trains anew what is trained, and a folder that is no guide."""
    lay(tmp_path)
    monkeypatch.setenv("METAGUIDE_DATA_DIR", str(tmp_path))
    write_encoder(tmp_path / "encoder", "bert")
    taught: list[str] = []
    windows_of = span_reader.windows_of

    def noting(reader: Any, answered: Any) -> Any:
        taught.extend(one.text for one in answered)
        return windows_of(reader, answered)

    monkeypatch.setattr(questions, "windows_of", noting)
    run = tmp_path / "run"
    argv = [
        "x", "--config=experiments/configs/questions.py", "--config.preset=tiny",
        f"--config.encoder.weights={tmp_path / 'encoder'}", "--config.encoder.length=20",
    ]  # fmt: skip
    for _ in range(2):
        questions.main(resolved(argv), run)
    assert "already finished" in capsys.readouterr().out
    assert taught and not any("books" in text or "movies" in text for text in taught)
    assert not any("dev" in text for text in taught) and any("test" in text for text in taught)
    rows = read(run).rows
    found = {(one.method, one.domain, one.metric, one.shots) for one in rows}
    for domain in ("books", "movies", "all"):
        for method in ("best sentence", "nearest sentence", "reader", "reader, likeliest"):
            for metric in ("f1_answerable", "em_answerable", "auc"):
                assert (method, domain, metric, None) in found
            for shots in (0, 2):
                assert {(method, domain, one, shots) for one in ("f1", "em", "gain")} <= found
        assert ("abstain", domain, "f1", 0) in found
        assert ("another person", domain, "f1_answerable", None) in found
    choices = json.loads((run / "choices.json").read_text())
    assert choices["reader"][0]["sources count as"].keys() == {"2"}

    guide = metaguide.load(run / "reader0")
    asked = Question("q", "is it good", "it is good")
    (answer,) = guide.adapt(Domain("home", questions=(asked,)), 0).predict([asked])
    assert answer.text is None or answer.text in asked.text


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ("held_out=('toys',)", "config.held_out names 'toys'; SubjQA has books, electronics"),
        ("held_out=('books','movies','grocery')", "fewer than two domains to learn from"),
        ("shots=(0,6)", "the part 'dev' of books has 4 questions; give fewer"),
    ],
)
def test_a_table_that_cannot_be_made_is_an_error(
    field: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a typo that trains for an hour."""
    lay(tmp_path)
    monkeypatch.setenv("METAGUIDE_DATA_DIR", str(tmp_path))
    argv = ["x", "--config=experiments/configs/questions.py", "--config.preset=tiny"]
    with pytest.raises(ConfigError, match=said):
        questions.main(resolved([*argv, f"--config.{field}"]), tmp_path / "run")
