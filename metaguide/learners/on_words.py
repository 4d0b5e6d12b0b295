"""Learners that read the n-grams of texts: alone, the baseline to beat, or beside the features."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from metaguide.learners.on_features import (
    Features,
    check_positive,
    logistic_weights,
    mean_feature,
    on_features,
    unit_centred,
    with_names,
)
from metaguide.padding import one_after_another
from metaguide.types import HASHES, OUT, Batch, Learner, Params, Problem

MOST_WORDS = 2**15
"""The most words that have a weight; a support with more keeps those of most examples. With runs of
characters there are twice as many n-grams."""

SHARE = 0.5
"""How much features count in `features_and_words`; words and characters share the rest."""

SURE, WORDS_OF_NAMES = 10.0, 0.1
"""How sure a name makes of its class, and how much its words count beside its features."""

NAME_WORDS = 64
"""Number of n-grams of a name, on average, that have a weight."""

NO_NGRAMS = "{} reads n-grams, and this model has none; give it buckets"
"""Message for batches without n-grams."""

Grams = Int[Array, "examples ngrams"]


class Vocabulary(NamedTuple):
    """The n-grams of a support: words and pairs of words, and runs of characters if they are read.

    Attributes:
        words: their numbers, ascending; `HASHES` in places that are left.
        rarity: inverse document frequency of each, 0 in places that are left.
    """

    words: Int[Array, " words"]
    rarity: Float[Array, " words"]


def tf_idf(problem: Problem, penalty: float | Array = 0.1, steps: int = 200) -> Learner:
    """Classify by a logistic regression on the words of a text, weighted by TF-IDF.

    x_w = r_w / ‖r‖ for each word or pair of words w of a text, however often it is there, with
    r_w = 1 + log((1 + N) / (1 + N_w)) if N_w of N examples have it, and one more column of ones for
    the bias. Only the support is read.

    Args:
        problem: a problem with classes, whose batches have the field `grams`, numbers of n-grams as
            `metaguide.data.ngrams.hashed_ngrams` returns them. Neither its encoder nor its head is
            used.
        penalty: λ > 0 of the regression; .1 is scikit-learn's C = 10.
        steps: number of descent steps of the regression.

    Returns:
        A learner whose `adapted` is (meta-parameters, (`Vocabulary`, weights
        [words + 1, way])).

    Raises:
        ValueError: the problem has no classes, its batches have no n-grams, or λ is a number that
            is not positive.

    Salton, Buckley: Term-weighting Approaches in Automatic Text Retrieval, 1988.

    >>> texts = {"grams": jnp.asarray([[2, 4], [2, 6]] * 2)}
    >>> learner = tf_idf(pictures)
    >>> adapted, _ = jax.jit(learner.adapt)(learner.init(key), {**batch, **texts}, (), key)
    >>> print(learner.predict(adapted, texts, ())["logits"].argmax(-1))
    [0 1 0 1]
    """
    check_positive(penalty=penalty)

    def encode(params: Params, batch: Batch, context: Any, key: Any) -> Grams:
        if "grams" not in batch:
            raise ValueError(NO_NGRAMS.format("tf-idf"))
        return batch["grams"]

    def fit(
        rule: Params, grams: Grams, label: Array, mask: Array, way: int
    ) -> tuple[Vocabulary, Array]:
        vocabulary = vocabulary_of(grams, mask, characters=False)
        x = jnp.pad(weighted_words(grams, vocabulary), ((0, 0), (0, 1)), constant_values=1.0)
        return vocabulary, logistic_weights(x, label, mask, way, penalty, steps)

    def score(rule: Params, grams: Grams, fitted: tuple[Vocabulary, Array]) -> Array:
        vocabulary, weights = fitted
        return _scored(grams, vocabulary, weights) + weights[-1]

    words_alone = problem._replace(encode=encode, features=lambda encoded: encoded)
    return on_features(words_alone, fit, score)


class Fitted(NamedTuple):
    """Weights of features and n-grams.

    Attributes:
        middle: the mean that features are centred at.
        vocabulary: the n-grams.
        of_features, of_words, bias: the weights of features, of n-grams, and of the constant.
    """

    middle: Float[Array, " width"]
    vocabulary: Vocabulary
    of_features: Float[Array, "width way"]
    of_words: Float[Array, "words way"]
    bias: Float[Array, "1 way"]

    def logits(self, features: Features, grams: Grams) -> Float[Array, "examples way"]:
        """Return the logits of examples."""
        by_features = unit_centred(features, self.middle) @ self.of_features
        return by_features + _scored(grams, self.vocabulary, self.of_words) + self.bias


class Known(NamedTuple):
    """What `features_and_words` knows of the classes.

    Attributes:
        examples: what tells apart those that have examples.
        names: what tells all apart by their names; None if names are not read.
        has_examples: which have examples.
    """

    examples: Fitted
    names: Fitted | None
    has_examples: Bool[Array, " way"]


def features_and_words(
    problem: Problem, penalty: float | Array = 0.01, names: int = 0, steps: int = 200
) -> Learner:
    """Classify by a logistic regression on the features and the n-grams of an example together.

    xᵀx′ = ½ cos(f, f′) + ¼ cos(w, w′) + ¼ cos(c, c′) + 1, with f the features, centred at the mean
    of the examples, w the words of a text and c its runs of characters, weighted as in `tf_idf`: an
    encoder knows that a fridge is like a freezer; n-grams know the one model number from the other.

    A class that has a name and no example is compared by its name: p_n ∝ exp(10 s_n) with s_n =
    cos(f, f_n) + ½ .1 (cos(w, w_n) + cos(c, c_n)) over all classes, and the probability of those
    that have examples is divided among them by the regression. Examples are more like each other
    than like any name, so that one regression on both would take almost everything for a class
    with examples. Texts are centred at the mean of the unlabelled examples, and names at their own;
    without any, both at half of the mean of the names.

    Args:
        problem: a problem with classes, whose batches have the field `grams` as in `tf_idf`; its
            head is not used.
        penalty: λ > 0 of the regression. A larger one is right as often, and less sure of it than
            it could be.
        names: as in `prototypical`; 0 if they are not read at all.
        steps: number of descent steps of the regression.

    Returns:
        A learner whose `adapted` is (meta-parameters, `Known`).

    Raises:
        ValueError: as in `tf_idf`.

    >>> texts = {"grams": jnp.asarray([[2, 4], [2, 6]] * 2)}
    >>> learner = features_and_words(pictures)
    >>> adapted, _ = jax.jit(learner.adapt)(learner.init(key), {**batch, **texts}, (), key)
    >>> print(learner.predict(adapted, {**batch, **texts}, ())["logits"].argmax(-1))
    [0 1 0 1]
    """
    check_positive(penalty=penalty)
    weight_of_features, weight_of_words = SHARE**0.5, (0.5 - SHARE / 2) ** 0.5

    def fit(
        rule: Params,
        features: Features,
        label: Array,
        mask: Array,
        way: int,
        unlabelled: Array | None,
        grams: Int[Array, "texts ngrams"] | None,
        named: tuple[Array, Array, Batch] | None,
    ) -> Known:
        if grams is None:
            raise ValueError(NO_NGRAMS.format("vectors+words"))
        middle, times = mean_feature(features, mask), mask.astype(features.dtype)
        most = grams.size
        has_examples = ((label[:, None] == jnp.arange(way)) & mask[:, None]).any(0)
        by_names = None
        if names and named is not None:
            of_names, has_name, fields = named
            others = jnp.zeros_like(mask) if unlabelled is None else unlabelled & ~mask
            by_names = _by_names(features, others, of_names, has_name, fields["grams"])
            # Where a class has no example, its name is none of the regression's either.
            beside = has_name & has_examples
            features, label, counts = with_names(features, label, mask, of_names, beside, 1)
            often = jnp.where(jnp.arange(len(counts)) < len(mask), 1.0, float(names))
            mask, times = counts, jnp.where(counts, often, 0.0).astype(features.dtype)
            most += way * NAME_WORDS
            grams = one_after_another(grams, fields["grams"])
        vocabulary = vocabulary_of(grams, mask, characters=True, most=most)
        words = weighted_words(grams, vocabulary).astype(features.dtype)
        parts = (
            weight_of_features * unit_centred(features, middle),
            weight_of_words * words,
            jnp.ones_like(features[:, :1]),
        )
        ends = features.shape[1], features.shape[1] + words.shape[1]
        weights = logistic_weights(jnp.concatenate(parts, 1), label, times, way, penalty, steps)
        of_features, of_words, bias = jnp.split(weights, ends)
        of_features, of_words = weight_of_features * of_features, weight_of_words * of_words
        by_examples = Fitted(middle, vocabulary, of_features, of_words, bias)
        return Known(by_examples, by_names, has_examples)

    def score(rule: Params, features: Features, known: Known, grams: Any) -> Array:
        by_examples = known.examples.logits(features, grams)
        if known.names is None:
            return by_examples
        by_names = jax.nn.log_softmax(known.names.logits(features, grams))
        has = known.has_examples
        among = jax.nn.log_softmax(jnp.where(has, by_examples, OUT))
        together = jnp.where(has, jnp.exp(by_names), 0.0).sum(-1, keepdims=True)
        return jnp.where(has, among + jnp.log(jnp.maximum(together, 1e-30)), by_names)

    return on_features(problem, fit, score, reads_unlabelled=True, beside="grams")


def _by_names(
    features: Float[Array, "texts width"],
    others: Bool[Array, " texts"],
    of_names: Float[Array, "way width"],
    has_name: Bool[Array, " way"],
    grams: Int[Array, "way ngrams"],
) -> Fitted:
    """Return what tells classes apart by their names.

    Args:
        features: of texts.
        others: which of them have no label.
        of_names, grams: features and n-grams of the names.
        has_name: which classes have one.
    """
    centre = mean_feature(of_names, has_name)
    middle = jnp.where(others.any(), mean_feature(features, others), 0.5 * centre)
    centre = jnp.where(others.any(), centre, 0.5 * centre)
    most = len(grams) * NAME_WORDS
    vocabulary = vocabulary_of(grams, has_name, characters=True, most=most)
    words = weighted_words(grams, vocabulary).astype(features.dtype)
    of_features = SURE * unit_centred(of_names, centre).T
    bias = jnp.where(has_name, 0.0, OUT).astype(features.dtype)[None]
    return Fitted(middle, vocabulary, of_features, SURE * WORDS_OF_NAMES / 2 * words.T, bias)


def vocabulary_of(
    grams: Grams, read: Bool[Array, " examples"], characters: bool, most: int | None = None
) -> Vocabulary:
    """Return the n-grams of the examples that are read.

    Args:
        grams: numbers of the n-grams of each example, each once.
        read: which examples count.
        characters: whether runs of characters, which have odd numbers, are n-grams too.
        most: the most that are kept, those of most examples; by default as many as there may be.
    """
    counted = jnp.where(read[:, None], grams, 0)
    found = jnp.zeros(HASHES, jnp.int32).at[counted].add(1).at[0].set(0)  # 0 is padding
    if not characters:
        found = found.at[1::2].set(0)
    most = grams.size if most is None else min(most, grams.size)
    count, word = jax.lax.top_k(found, min(most, MOST_WORDS << characters))
    word = jnp.where(count > 0, word, HASHES)
    order = jnp.argsort(word)
    having, total = (1.0 + number.astype(jnp.float32) for number in (count, read.sum()))
    rarity = jnp.where(count > 0, 1.0 + jnp.log(total / having), 0.0)
    return Vocabulary(word[order], rarity[order])


def weighted_words(grams: Grams, vocabulary: Vocabulary) -> Float[Array, "examples words"]:
    """Return the examples as vectors in which words have unit length, and so have characters.

    Of an example without a known one, that part is 0.
    """
    place, value = _values(grams, vocabulary)
    rows = jnp.zeros((len(grams), len(vocabulary.words)), value.dtype)
    return rows.at[jnp.arange(len(grams))[:, None], place].add(value)


def _scored(grams: Grams, vocabulary: Vocabulary, weights: Array) -> Float[Array, "examples way"]:
    """Return `weighted_words(grams, vocabulary) @ weights`, which may have more rows."""
    place, value = _values(grams, vocabulary)
    return jnp.einsum("eg,egw->ew", value.astype(weights.dtype), weights[place])


def _values(grams: Grams, vocabulary: Vocabulary) -> tuple[Array, Array]:
    """Return the place of each n-gram in the vocabulary, and its value, 0 if it is not there."""
    place = _first_not_below(vocabulary.words, grams)
    place = jnp.minimum(place, len(vocabulary.words) - 1)
    value = jnp.where(vocabulary.words[place] == grams, vocabulary.rarity[place], 0.0)
    is_run, square = grams % 2 == 1, jnp.square(value)
    of_runs = jnp.where(is_run, square, 0).sum(1, keepdims=True)
    of_words = jnp.where(is_run, 0, square).sum(1, keepdims=True)
    norm = jnp.sqrt(jnp.where(is_run, of_runs, of_words))
    return place, value / jnp.maximum(norm, 1e-6)


def _first_not_below(ascending: Int[Array, " numbers"], asked: Grams) -> Grams:
    """Return how many of the numbers are smaller than each of those asked for.

    `jnp.searchsorted` does the same by a loop, which an exported guide must not have.
    """
    count, found = len(ascending), jnp.zeros_like(asked)
    for bit in reversed(range(count.bit_length())):
        ahead = found + (1 << bit)
        below = ascending[jnp.minimum(ahead, count) - 1] < asked
        found = jnp.where((ahead <= count) & below, ahead, found)
    return found
