"""The learner that reads only the words of texts: the baseline that a guide has to beat."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from metaguide.learners.on_features import check_positive, logistic_weights, on_features
from metaguide.types import HASHES, Batch, Learner, Params, Problem

MOST_WORDS = 2**15
"""The most words that have a weight; a support with more keeps those of most examples."""

Grams = Int[Array, "examples ngrams"]


class Vocabulary(NamedTuple):
    """The words of a support.

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
            raise ValueError("tf-idf reads n-grams, and this model has none; give it buckets")
        return batch["grams"]

    def fit(
        rule: Params, grams: Grams, label: Array, mask: Array, way: int
    ) -> tuple[Vocabulary, Array]:
        vocabulary = vocabulary_of(grams, mask)
        x = weighted_words(grams, vocabulary)
        return vocabulary, logistic_weights(x, label, mask, way, penalty, steps)

    def score(rule: Params, grams: Grams, fitted: tuple[Vocabulary, Array]) -> Array:
        vocabulary, weights = fitted
        place, value = _values(grams, vocabulary)
        return jnp.einsum("eg,egw->ew", value, weights[place]) + weights[-1]

    words_alone = problem._replace(encode=encode, features=lambda encoded: encoded)
    return on_features(words_alone, fit, score)


def vocabulary_of(grams: Grams, read: Bool[Array, " examples"]) -> Vocabulary:
    """Return the words and pairs of words of the examples that are read.

    Args:
        grams: numbers of the n-grams of each example, each once.
        read: which examples count.
    """
    counted = jnp.where(read[:, None], grams, 0)
    found = jnp.zeros(HASHES, jnp.int32).at[counted].add(1)
    # Even numbers are words, but 0, which is padding.
    found = jnp.where((jnp.arange(HASHES) % 2 == 0) & (jnp.arange(HASHES) > 0), found, 0)
    count, word = jax.lax.top_k(found, min(grams.size, MOST_WORDS))
    word = jnp.where(count > 0, word, HASHES)
    order = jnp.argsort(word)
    having, total = (1.0 + number.astype(jnp.float32) for number in (count, read.sum()))
    rarity = jnp.where(count > 0, 1.0 + jnp.log(total / having), 0.0)
    return Vocabulary(word[order], rarity[order])


def weighted_words(grams: Grams, vocabulary: Vocabulary) -> Float[Array, "examples words_and_one"]:
    """Return the examples as vectors of unit length, 0 without a known word, and then a one."""
    place, value = _values(grams, vocabulary)
    rows = jnp.zeros((len(grams), len(vocabulary.words)), value.dtype)
    rows = rows.at[jnp.arange(len(grams))[:, None], place].add(value)
    return jnp.pad(rows, ((0, 0), (0, 1)), constant_values=1.0)


def _values(grams: Grams, vocabulary: Vocabulary) -> tuple[Array, Array]:
    """Return the place of each n-gram in the vocabulary, and its value, 0 if it is not there."""
    place = jnp.searchsorted(vocabulary.words, grams)
    place = jnp.minimum(place, len(vocabulary.words) - 1)
    value = jnp.where(vocabulary.words[place] == grams, vocabulary.rarity[place], 0.0)
    norm = jnp.sqrt(jnp.square(value).sum(1, keepdims=True))
    return place, value / jnp.maximum(norm, 1e-6)
