"""The baseline on words: what it counts, and that it is the regression which it says it is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from metaguide.data.ngrams import WORD, hashed_ngrams
from metaguide.learners import on_words, tf_idf
from metaguide.types import HASHES
from tests.test_learners_on_features import on_rows

TEXTS = (
    "a good phone and a good case", "bad bad battery", "good battery", "the case is bad",
    "the phone is the best", "broken case", "nice phone", "very bad phone",
)  # fmt: skip
LABEL = np.array([0, 1, 0, 1, 0, 1, 0, 1])
ASKED = ("best case", "bad good battery", "never seen", "is the phone broken")


def grams_of(texts):
    """Numbers of n-grams, always as many, so that one program does."""
    grams = hashed_ngrams(texts)
    return jnp.asarray(np.pad(grams, ((0, 0), (0, 64 - grams.shape[1]))))


def rows_of(texts, label, labelled=None):
    given = {"grams": grams_of(texts), "label": jnp.asarray(label, jnp.int32)}
    mask = np.ones(len(texts), bool) if labelled is None else labelled
    return {**given, "mask": jnp.asarray(mask)}


LEARNER = tf_idf(on_rows(2, 1)[0])
ADAPT = jax.jit(LEARNER.adapt)


def adapted_to(rows):
    return LEARNER, ADAPT({"params": {}}, rows, (), None)[0]


def logits(learner, adapted, texts):
    found = learner.predict(adapted, {"grams": grams_of(texts)}, ())
    return np.asarray(found["logits"])


def test_the_weights_are_those_of_scikit_learn():
    """Faults: another inverse document frequency, norm or count; runs of characters that are taken
    for words; weights of another word; another penalty or no bias."""
    learner, adapted = adapted_to(rows_of(TEXTS, LABEL))
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), token_pattern=WORD, binary=True).fit(TEXTS)

    def expected(texts):
        rows = vectorizer.transform(texts).toarray()
        return np.concatenate([rows, np.ones((len(texts), 1))], axis=1)

    # A softmax of two classes has two opposite weights, whose penalty is half of one's.
    known = LogisticRegression(C=2 / 0.1, fit_intercept=False, tol=1e-10, max_iter=10_000)
    known.fit(expected(TEXTS), LABEL)
    grams = grams_of(TEXTS)
    rows = np.asarray(on_words.weighted_words(grams, adapted[1][0]))
    inner = expected(TEXTS) @ expected(TEXTS).T
    np.testing.assert_allclose(rows @ rows.T, inner, atol=1e-5)
    for texts in (TEXTS, ASKED):
        found = logits(learner, adapted, texts)
        np.testing.assert_allclose(
            found[:, 1] - found[:, 0], known.decision_function(expected(texts)), atol=2e-3
        )


def test_only_what_counts_is_read():
    """Faults: words of masked examples, or labels of those, are read."""
    masked = np.arange(len(TEXTS)) < 4
    learner, alone = adapted_to(rows_of(TEXTS[:4], LABEL[:4]))
    for label in (LABEL, 1 - LABEL):
        rows = rows_of(TEXTS, np.where(masked, LABEL, label), masked)
        found = logits(*adapted_to(rows), ASKED)
        np.testing.assert_allclose(found, logits(learner, alone, ASKED), atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.text("ab c好坏", max_size=12), min_size=4, max_size=4))
def test_any_texts_have_finite_answers(texts):
    """Faults: a text without words, one without a known word, or a support without any, gives NaN;
    the padding of a text counts as its word."""
    learner, adapted = adapted_to(rows_of(texts, [0, 1, 0, 1]))
    found = logits(learner, adapted, [*texts, "", "unseen"])
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[-2], found[-1], atol=1e-6)


def test_a_support_of_many_words_keeps_those_of_most_examples(monkeypatch):
    """Faults: the rarest words are kept, or the order that `searchsorted` needs is lost."""
    monkeypatch.setattr(on_words, "MOST_WORDS", 3)
    grams = jnp.asarray([[2, 4, 8, 9], [2, 6, 8, 0], [2, 8, 10, 0], [6, 3, 0, 0]])
    vocabulary = on_words.vocabulary_of(grams, jnp.ones(4, bool))
    assert np.asarray(vocabulary.words).tolist() == [2, 6, 8]
    expected = 1 + np.log(5 / np.array([4, 3, 4]))
    np.testing.assert_allclose(vocabulary.rarity, expected, rtol=1e-6)
    few = on_words.vocabulary_of(grams[3:, :2], jnp.ones(1, bool))
    assert np.asarray(few.words).tolist() == [6, HASHES]


def test_a_model_without_ngrams_is_refused():
    """Fault: a KeyError in the middle of a trace."""
    rows = rows_of(TEXTS, LABEL)
    del rows["grams"]
    with pytest.raises(ValueError, match="reads n-grams, .* give it buckets"):
        adapted_to(rows)
