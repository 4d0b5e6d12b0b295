"""The sentence that is nearest to a question."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metaguide.data.catalogue import Question
from metaguide.data.sentences import sentences
from metaguide.tasks.nearest_sentences import cosines, sentence_rows

TEXTS = st.text("ab. ", max_size=16)


def letters(texts: Sequence[str]) -> np.ndarray:
    """How often a text has each of three letters."""
    return np.array([[text.count(one) for one in "abc"] for text in texts], float)


@given(st.lists(st.tuples(TEXTS, TEXTS), max_size=5))
def test_a_sentence_is_the_nearest_of_its_text(pairs: list[tuple[str, str]]) -> None:
    """Catches a sentence of another text, the cosine of another pair, and a text without any that
    shifts those after it."""
    questions = [Question(str(n), asked, text) for n, (asked, text) in enumerate(pairs)]
    rows = sentence_rows(questions, cosines(letters))
    for one, begin, end, near in zip(questions, *rows.values(), strict=True):
        spans = sentences(one.text)
        if not spans:
            assert (begin, end, near) == (0, 0, 0)
            continue
        (asked,) = letters([one.question])
        told = letters([one.text[a:b] for a, b in spans])
        norms = np.linalg.norm(told, axis=1) * np.linalg.norm(asked)
        expected = told @ asked / np.where(norms > 0, norms, 1)
        assert near == pytest.approx(expected.max(), abs=1e-6)
        assert expected[spans.index((begin, end))] == pytest.approx(expected.max(), abs=1e-6)


def test_a_vector_that_is_not_finite_is_seen() -> None:
    """Catches NaN that passes for a low cosine."""
    rows = sentence_rows(
        [Question("0", "a", "b. c.")], cosines(lambda texts: np.full((len(texts), 2), np.nan))
    )
    assert np.isnan(rows["near"]).all()
