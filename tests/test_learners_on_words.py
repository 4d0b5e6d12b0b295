"""Learners on words: what they count, and that they are the regressions which they say they are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from metaguide.data.ngrams import WORD, hashed_ngrams
from metaguide.learners import features_and_words, on_words, tf_idf
from metaguide.learners.on_features import logistic_weights, unit_centred
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


LEARNER, BOTH = (build(on_rows(2, 1)[0]) for build in (tf_idf, features_and_words))
ADAPT, ADAPT_BOTH = jax.jit(LEARNER.adapt), jax.jit(BOTH.adapt)


def adapted_to(rows):
    return LEARNER, ADAPT({"params": {}}, rows, (), None)[0]


def logits(learner, adapted, texts):
    found = learner.predict(adapted, {"grams": grams_of(texts)}, ())
    return np.asarray(found["logits"])


@pytest.mark.slow
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
    inner = expected(TEXTS)[:, :-1] @ expected(TEXTS)[:, :-1].T
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


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(st.lists(st.text("ab c好坏", max_size=12), min_size=4, max_size=4))
def test_any_texts_have_finite_answers(texts):
    """Faults: a text without words, one without a known word, or a support without any, gives NaN;
    the padding of a text counts as its word."""
    learner, adapted = adapted_to(rows_of(texts, [0, 1, 0, 1]))
    found = logits(learner, adapted, [*texts, "", "unseen"])
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[-2], found[-1], atol=1e-6)


@pytest.mark.slow
def test_a_support_of_many_words_keeps_those_of_most_examples(monkeypatch):
    """Faults: the rarest words are kept, or the order that `searchsorted` needs is lost."""
    monkeypatch.setattr(on_words, "MOST_WORDS", 3)
    grams = jnp.asarray([[2, 4, 8, 9], [2, 6, 8, 0], [2, 8, 10, 0], [6, 3, 0, 0]])
    vocabulary = on_words.vocabulary_of(grams, jnp.ones(4, bool), False)
    assert np.asarray(vocabulary.words).tolist() == [2, 6, 8]
    expected = 1 + np.log(5 / np.array([4, 3, 4]))
    np.testing.assert_allclose(vocabulary.rarity, expected, rtol=1e-6)
    few = on_words.vocabulary_of(grams[3:, :2], jnp.ones(1, bool), False)
    assert np.asarray(few.words).tolist() == [6, HASHES]


def test_a_model_without_ngrams_is_refused():
    """Fault: a KeyError in the middle of a trace."""
    rows = both_of(np.random.default_rng(0), TEXTS, LABEL)
    del rows["grams"]
    for adapt in (ADAPT, ADAPT_BOTH):
        with pytest.raises(ValueError, match="reads n-grams, .* give it buckets"):
            adapt({"params": {}}, rows, (), None)


def both_of(rng, texts, label, labelled=None):
    """Rows with features beside the n-grams."""
    features = rng.normal(size=(len(texts), 6)).astype(np.float32)
    return {**rows_of(texts, label, labelled), "x": jnp.asarray(features)}


def cosines(rows, known):
    """The cosine of each row with each known row, 0 where one of them is 0."""
    norms = [np.maximum(np.linalg.norm(one, axis=1), 1e-12) for one in (rows, known)]
    return rows @ known.T / np.outer(*norms)


@pytest.mark.parametrize("share", [0.5, 0.0, 1.0])
def test_features_and_words_count_by_their_shares(share, monkeypatch):
    """Faults: a share is not a share of the kernel; features are not centred, or at the mean of
    masked rows too; runs of characters are taken for words, or weighted by others' rarity; the
    weights of one part are applied to another."""
    monkeypatch.setattr(on_words, "SHARE", share)
    rng, masked = np.random.default_rng(0), np.arange(len(TEXTS)) < 6
    rows = both_of(rng, TEXTS, LABEL, masked)
    learner = features_and_words(on_rows(2, 1)[0])
    adapted, _ = jax.jit(learner.adapt)({"params": {}}, rows, (), None)
    asked = both_of(rng, ASKED, [0] * len(ASKED))
    found = np.asarray(learner.predict(adapted, asked, ())["logits"])

    def scaled(x):
        return x / np.sqrt(np.square(x).mean(1, keepdims=True))

    grams, parts = np.asarray(rows["grams"]), []
    for kind in (0, 1):
        kept = [{g for g in row if g and g % 2 == kind} for row in grams]
        words = sorted(set().union(*kept[:6]))
        count = np.array([sum(word in row for row in kept[:6]) for word in words])
        rarity = 1 + np.log(7 / (1 + count))
        several = [*kept, *({*row} for row in np.asarray(asked["grams"]).tolist())]
        parts.append(np.array([[word in row for word in words] for row in several]) * rarity)
    x = np.concatenate([scaled(np.asarray(one["x"])) for one in (rows, asked)])
    centred = x - x[:6].mean(0)
    kernel = share * cosines(centred, centred[:6]) + 1
    kernel += (1 - share) / 2 * sum(cosines(one, one[:6]) for one in parts)
    # The kernel's features are known to scikit-learn by its square root.
    values, axes = np.linalg.eigh(kernel[:6])
    root = axes * np.sqrt(np.maximum(values, 1e-9))
    known = LogisticRegression(C=2 / 0.01, fit_intercept=False, tol=1e-10, max_iter=10_000)
    known.fit(root, LABEL[:6])
    expected = kernel[len(TEXTS) :] @ axes @ (axes / np.maximum(values, 1e-9)).T @ root
    np.testing.assert_allclose(
        found[:, 1] - found[:, 0], known.decision_function(expected), atol=2e-2
    )


NAMES = ("phone case", "lamp battery")


def named(has_name):
    """`on_rows` of two classes whose names are `NAMES`."""
    vectors = jnp.asarray([[9.0, 0, 0, 0, 0, 0], [0, 9.0, 0, 0, 0, 0]])
    fields = {"grams": grams_of(NAMES)[:, :40]}  # names are shorter than texts
    read = vectors, jnp.asarray(has_name), fields
    return on_rows(2, 1)[0]._replace(names=lambda encoded, context: read)


def fitted(problem, rows, names=3):
    learner = features_and_words(problem, names=names)
    return learner, jax.jit(learner.adapt)({"params": {}}, rows, (), None)[0]


@pytest.mark.slow
def test_a_name_is_so_many_examples_in_features_and_words():
    """Faults: a name counts as several examples in the rarity of its words, moves the middle of the
    texts, or is not read; one that is missing is."""
    rows = both_of(np.random.default_rng(0), TEXTS, LABEL)
    _, (_, (without, _, _)) = fitted(on_rows(2, 1)[0], rows)
    _, (_, (found, _, _)) = fitted(named([True, False]), rows)
    every = jnp.concatenate([rows["grams"], grams_of(NAMES)])
    expected = on_words.vocabulary_of(every, jnp.arange(10) < 9, True)
    np.testing.assert_allclose(found.middle, without.middle, atol=1e-6)
    known = np.asarray(expected.words) < HASHES
    np.testing.assert_array_equal(found.vocabulary.words[: known.sum()], expected.words[known])
    np.testing.assert_allclose(found.vocabulary.rarity[: known.sum()], expected.rarity[known])

    # The name is moved to the mean of its class.
    mean = rows["x"][LABEL == 0].mean(0)
    x = jnp.concatenate([rows["x"], jnp.tile(mean, (3, 1))])
    words = on_words.weighted_words(every[jnp.array([*range(8), 8, 8, 8])], expected)
    parts = 0.5**0.5 * unit_centred(x, found.middle), 0.5 * words, jnp.ones((11, 1))
    label = jnp.array([*LABEL, 0, 0, 0])
    weights = logistic_weights(jnp.concatenate(parts, 1), label, jnp.ones(11, bool), 2, 0.01)
    np.testing.assert_allclose(found.of_features, 0.5**0.5 * weights[:6], atol=1e-4)
    np.testing.assert_allclose(found.bias, weights[-1:], atol=1e-4)


@pytest.mark.slow
def test_names_alone_tell_classes_apart_by_their_words():
    """Faults: an empty support gives NaN; words of a name do not count; padding is a word; texts
    are not centred at what is known of them, or names at their own mean."""
    nothing = both_of(np.random.default_rng(0), TEXTS[:4], LABEL[:4], np.zeros(4, bool))
    learner, adapted = fitted(named([True, True]), nothing)
    asked = {"grams": grams_of(["red case", "a lamp", "xyz"]), "x": jnp.zeros((3, 6))}
    logits = np.asarray(learner.predict(adapted, asked, ())["logits"])
    assert logits[0].argmax() == 0 and logits[1].argmax() == 1
    np.testing.assert_allclose(logits[2, 0], logits[2, 1], atol=1e-3)
    vectors, _, _ = named([True, True]).names((), ())
    unit = np.asarray(vectors) / np.sqrt(np.square(vectors).mean(1, keepdims=True))
    np.testing.assert_allclose(adapted[1].names.middle, unit.mean(0) / 2, rtol=1e-5)
    read = {**nothing, "unlabelled": jnp.arange(4) < 3}
    _, adapted = fitted(named([True, True]), read)
    x = np.asarray(nothing["x"])[:3]
    mean = (x / np.sqrt(np.square(x).mean(1, keepdims=True))).mean(0)
    np.testing.assert_allclose(adapted[1].names.middle, mean, rtol=1e-4, atol=1e-6)
    centred = unit - unit.mean(0)
    expected = 10 * centred / np.linalg.norm(centred, axis=1, keepdims=True)
    np.testing.assert_allclose(adapted[1].names.of_features.T, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_class_without_examples_keeps_the_probability_of_its_name():
    """Faults: an example of one class draws the texts of all others to it; with examples of all
    classes, or of none, probabilities are others than those of the regression, or of names."""
    rows = both_of(np.random.default_rng(0), TEXTS, LABEL)
    asked = both_of(np.random.default_rng(1), ASKED, [0] * len(ASKED))

    def chances(problem, masked):
        learner, adapted = fitted(problem, {**rows, "mask": jnp.asarray(masked)})
        return np.asarray(jax.nn.softmax(learner.predict(adapted, asked, ())["logits"]))

    both = named([True, True])
    nothing, everything = np.zeros(8, bool), np.ones(8, bool)
    np.testing.assert_allclose(
        chances(both, LABEL == 0), chances(both, nothing), rtol=1e-4, atol=1e-6
    )
    learner, adapted = fitted(both, rows)
    regression = adapted[1].examples.logits(asked["x"], asked["grams"])
    found = chances(both, everything)
    np.testing.assert_allclose(found, jax.nn.softmax(regression), rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_an_example_that_counts_twice_is_two():
    """Fault: weights of the regression change its minimum in another way than repeated rows do."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(6, 4)), jnp.float32)
    label, times = jnp.array([0, 1, 2, 0, 1, 2]), np.array([2, 1, 3, 0, 1, 1])
    rows = np.repeat(np.arange(6), times)
    once = logistic_weights(x, label, jnp.asarray(times, jnp.float32), 3, 0.1)
    ones = jnp.ones(len(rows), bool)
    np.testing.assert_allclose(
        once, logistic_weights(x[rows], label[rows], ones, 3, 0.1), atol=1e-3
    )


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(st.lists(st.text("ab c好坏", max_size=12), min_size=4, max_size=4))
def test_any_texts_beside_features_have_finite_answers(texts):
    """Faults: a text or a support without n-grams, or features of 0, give NaN."""
    rows = {**rows_of(texts, [0, 1, 0, 1]), "x": jnp.zeros((4, 3))}
    adapted, _ = ADAPT_BOTH({"params": {}}, rows, (), None)
    asked = {"grams": grams_of([*texts, ""]), "x": jnp.zeros((5, 3))}
    assert np.isfinite(BOTH.predict(adapted, asked, ())["logits"]).all()


@pytest.mark.slow
@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=20),
    st.lists(st.integers(-1, 41), min_size=1, max_size=5),
)
def test_places_are_those_of_a_binary_search(numbers, asked):
    """Faults: the last number, or one beyond it, is missed; equal numbers give another than the
    first."""
    ascending, rows = np.sort(numbers).astype(np.int32), np.array([asked], np.int32)
    found = on_words._first_not_below(jnp.asarray(ascending), jnp.asarray(rows))
    np.testing.assert_array_equal(found, np.searchsorted(ascending, rows))
