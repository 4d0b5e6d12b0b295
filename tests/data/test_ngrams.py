"""Hashed n-grams: the same for the same text, distinct, bounded, and indifferent to the batch."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metaguide.data.ngrams import hashed_ngrams

TEXTS = st.lists(st.text(max_size=30), min_size=1, max_size=5)


@given(TEXTS, st.integers(4, 5000), st.integers(1, 40))
def test_rows_hold_distinct_buckets_before_their_padding(texts, buckets, most):
    """Faults: a bucket out of range, an n-gram counted twice, padding between n-grams, too many."""
    found = hashed_ngrams(texts, buckets, most)
    assert found.shape[0] == len(texts) and found.shape[1] <= most and found.dtype == np.int32
    assert found.min(initial=0) >= 0 and found.max(initial=0) < buckets
    for row in found:
        used = row[row != 0]
        assert len(set(used)) == len(used) and (row[: len(used)] != 0).all()


@given(TEXTS)
def test_a_text_has_the_same_ngrams_in_every_batch(texts):
    """Fault: a row depends on the texts next to it, or on their order."""
    together = hashed_ngrams(texts, 1000)
    for text, row in zip(texts, together, strict=True):
        alone = hashed_ngrams([text], 1000)[0]
        np.testing.assert_array_equal(row[: len(alone)], alone)
        assert not row[len(alone) :].any()


def test_words_pairs_and_characters_count_and_case_does_not():
    """Faults: word order is lost, Chinese is one word, case makes another word, or a shared stem
    shares nothing."""

    def shared(one, other):
        first, second = (set(row[row != 0]) for row in hashed_ngrams([one, other], 2**20))
        return len(first & second) / len(first | second)

    assert shared("not good, bad", "not bad, good") < 1
    assert shared("Good Phone", "good phone") == 1
    assert shared("手机很好", "手机不好") > 0.2
    assert shared("charger", "charging") > 0 == shared("charger", "xyz")


def test_another_process_makes_the_same_buckets():
    """Fault: Python's own hash, which differs from process to process."""
    read = "from metaguide.data.ngrams import hashed_ngrams as h"
    code = f"{read}; print(h(['a phone 手机'], 99).tolist())"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == str(hashed_ngrams(["a phone 手机"], 99).tolist())


def test_sizes_that_cannot_be_are_named():
    """Fault: a division by zero, or no n-grams in silence."""
    with pytest.raises(ValueError, match="buckets is 3; give at least 4"):
        hashed_ngrams(["a"], 3)
    with pytest.raises(ValueError, match="most is 0; give at least 1"):
        hashed_ngrams(["a"], 9, 0)
