"""Hashed n-grams: the same for the same text, distinct, bounded, and indifferent to the batch."""

import subprocess
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer

from metaguide.data.ngrams import hashed_ngrams, inverse_document_frequency, plain
from metaguide.types import HASHES

TEXTS = st.lists(st.text(max_size=30), min_size=1, max_size=5)


@given(TEXTS, st.integers(1, 40))
def test_rows_hold_distinct_numbers_before_their_padding(texts, most):
    """Faults: a number out of range, an n-gram counted twice, padding between n-grams, too many."""
    found = hashed_ngrams(texts, most)
    assert found.shape[0] == len(texts) and found.shape[1] <= most and found.dtype == np.int32
    assert found.min(initial=0) >= 0 and found.max(initial=0) < HASHES
    for row in found:
        used = row[row != 0]
        assert len(set(used)) == len(used) and (row[: len(used)] != 0).all()
        assert 1 not in used


@given(TEXTS)
def test_runs_of_characters_are_those_of_scikit_learn(texts):
    """Fault: runs that are kept by word are others than those of the whole text."""
    analyzer = CountVectorizer(ngram_range=(2, 4), preprocessor=plain, analyzer="char_wb")
    runs = analyzer.build_analyzer()
    for text in texts:
        hashes = (zlib.crc32(run.encode("utf-8", "surrogatepass")) for run in runs(text))
        row = hashed_ngrams([text], 10_000)[0]
        assert row[row % 2 == 1].tolist() == list(
            dict.fromkeys(3 + 2 * (one % (HASHES // 2 - 1)) for one in hashes)
        )


def test_words_have_even_numbers_and_characters_odd_ones():
    """Fault: a score of words reads runs of characters, or the other way round."""
    row = hashed_ngrams(["good phone"])[0]
    words, characters = row[row % 2 == 0], row[row % 2 == 1]
    assert len(words) == len(("good", "phone", "good phone"))
    # " good ": 5 runs of 2, 4 of 3, 3 of 4; " phone ": 6, 5 and 4.
    assert len(characters) == 5 + 4 + 3 + 6 + 5 + 4
    assert (row[: len(words)] % 2 == 0).all()


def test_few_of_many_words_share_a_number():
    """Fault: part of the numbers is never used, so that words collide."""
    rows = hashed_ngrams([f"word{number}" for number in range(5000)])
    assert len(set(rows[:, 0].tolist())) > 0.97 * 5000


@given(TEXTS)
def test_a_text_has_the_same_ngrams_in_every_batch(texts):
    """Fault: a row depends on the texts next to it, or on their order."""
    together = hashed_ngrams(texts)
    for text, row in zip(texts, together, strict=True):
        alone = hashed_ngrams([text])[0]
        np.testing.assert_array_equal(row[: len(alone)], alone)
        assert not row[len(alone) :].any()


def test_words_pairs_and_characters_count_and_case_does_not():
    """Faults: word order is lost, Chinese is one word, case makes another word, or a shared stem
    shares nothing."""

    def shared(one, other):
        first, second = (set(row[row != 0]) for row in hashed_ngrams([one, other]))
        return len(first & second) / len(first | second)

    assert shared("not good, bad", "not bad, good") < 1
    assert shared("Good Phone", "good phone") == 1
    assert shared("手机很好", "手机不好") > 0.2
    assert shared("charger", "charging") > 0 == shared("charger", "xyz")


@pytest.mark.parametrize(
    ("written", "same"),
    [("ＢＣＤ－２１６ｗ 冰箱", "bcd-216W 冰箱"), ("ﾘﾝｺﾞジュース", "リンゴジュース"), ("①号", "1号")],
)
def test_the_width_of_letters_does_not_count(written, same):
    """Fault: a title as Chinese and Japanese exports write it shares little with its other form."""
    np.testing.assert_array_equal(hashed_ngrams([written]), hashed_ngrams([same]))


def test_a_character_of_japanese_is_a_word():
    """Fault: a Japanese sentence is one word, so that no two sentences share any."""
    rows = hashed_ngrams(["すごくおいしかったです", "おいしかったので また買います"]).tolist()
    first, second = ({number for number in row if number and number % 2 == 0} for row in rows)
    # The six characters of おいしかった, and the pairs of neighbours among them.
    assert len(first & second) >= 6 + 5


@pytest.mark.slow
def test_another_process_makes_the_same_numbers():
    """Fault: Python's own hash, which differs from process to process."""
    read = "from metaguide.data.ngrams import hashed_ngrams as h"
    code = f"{read}; print(h(['a phone 手机']).tolist())"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == str(hashed_ngrams(["a phone 手机"]).tolist())


def test_a_number_that_cannot_be_is_named():
    """Fault: no n-grams, in silence."""
    with pytest.raises(ValueError, match="most is 0; give at least 1"):
        hashed_ngrams(["a"], 0)


def test_rarity_is_scikit_learns():
    """Fault: another smoothing, which would part the baselines' TF-IDF from that of the methods."""
    texts = ["good thing", "bad thing", "late"]
    words = TfidfVectorizer().fit(texts)
    having = np.array([sum(word in text for text in texts) for word in words.vocabulary_])
    ours = inverse_document_frequency(having, len(texts))
    assert ours == pytest.approx(words.idf_[list(words.vocabulary_.values())])
