"""Scores of answers against the official definition, and where words are not separated."""

import re
import string
import unicodedata
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metaguide.scoring import answer_scores, answer_words


def official(text: str) -> str:
    """The normalisation of SQuAD as its paper's script words it."""
    text = "".join(char for char in text.lower() if char not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


PHRASES = st.lists(
    st.sampled_from(
        ["the", "The", "a", "An", "phone", "Phone.", "1.5", "kg", "-", "the-phone", "x_y"]
    )
).map(" ".join)


@given(PHRASES, PHRASES)
def test_english_is_scored_as_squad_scores_it(said, gold):
    """Faults: an article, a capital or a full stop costs points; words are counted as a set."""
    said_words, gold_words = official(said).split(), official(gold).split()
    if not said_words or not gold_words:
        return
    em, f1 = answer_scores(said, [gold])
    assert em == (said_words == gold_words)
    common = (Counter(said_words) & Counter(gold_words)).total()
    assert f1 == pytest.approx(2 * common / (len(said_words) + len(gold_words)))


@pytest.mark.parametrize(
    "said, gold, em, f1",
    [
        ("the phone", "phone", 1, 1),
        ("Phone!", "the phone", 1, 1),
        ("a red phone", "phone", 0, 2 / 3),
        ("好耐用", "好耐用", 1, 1),
        ("电池好耐用", "好耐用", 0, 6 / 8),
        ("好耐用。", "好 耐用", 1, 1),
        ("バッテリーがいい", "いい", 0, 4 / 10),
        ("8GB内存", "8GB", 0, 2 / 4),
        ("한국어", "한국어를", 0, 0),
        ("３９９元", "399元", 1, 1),
        (unicodedata.normalize("NFD", "café"), "café", 1, 1),
        ("$", "$", 1, 1),
        ("$", "£", 0, 0),
        ("the", "", 0, 0),
    ],
)
def test_scores_of_known_answers(said, gold, em, f1):
    """Faults: Chinese or Japanese is one word; full-width punctuation counts; an answer of
    punctuation alone is the same as any other."""
    assert answer_scores(said, [gold]) == (em, pytest.approx(f1))


def test_the_best_of_several_answers_counts():
    """Faults: only the first is compared; no answer is one of several."""
    assert answer_scores("nine hours", ["a day", "nine hours"]) == (1, 1)
    assert answer_scores("nine", ["a day", "nine hours"]) == (0, pytest.approx(2 / 3))
    assert answer_scores("", []) == (1, 1)
    assert answer_scores("nine", []) == answer_scores("", ["nine"]) == (0, 0)


def test_no_character_that_counts_is_lost():
    """Fault: a text that has a character keeps no word."""
    for text in ("a", "The", "...", "好", "ﾊﾞ", "々"):
        assert answer_words(text)
