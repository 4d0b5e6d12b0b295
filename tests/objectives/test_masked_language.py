"""Masking of whole words, and the loss of guessing them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from sklearn.metrics import log_loss

from metaguide.objectives.masked_language import gather_chosen, mask_words, masked_language_loss

MASK, VOCABULARY, SPECIALS, LENGTH, BATCH = 4, 50, 5, 24, 4


def batch_of(texts: list[list[int]], length: int = LENGTH):
    """Texts given as tokens per word, with [CLS] before and [PAD] behind."""
    tokens = np.zeros((len(texts), length), np.int32)
    words = np.full((len(texts), length), -1, np.int32)
    rng = np.random.default_rng(0)
    for at, sizes in enumerate(texts):
        tokens[at, 0] = 2
        numbers = np.repeat(np.arange(len(sizes)), sizes)[: length - 1]
        words[at, 1 : len(numbers) + 1] = numbers
        tokens[at, 1 : len(numbers) + 1] = rng.integers(SPECIALS, VOCABULARY, len(numbers))
    return jnp.asarray(tokens), jnp.asarray(words)


mask = jax.jit(
    partial(mask_words, mask_id=MASK, vocabulary=VOCABULARY),
    static_argnames=("mask_rate", "variant"),
)


TEXTS = st.lists(st.lists(st.integers(1, 4), max_size=LENGTH), min_size=BATCH, max_size=BATCH)


@given(TEXTS, st.integers(0, 2**31 - 1))
@settings(max_examples=100, deadline=None)
def test_whole_words_in_the_right_number(texts, seed):
    """Fault: half of a word hidden, specials hidden, a text without any, or too many."""
    tokens, words = batch_of(texts)
    inputs, chosen = map(np.asarray, mask(jax.random.key(seed), tokens, words))
    tokens, words = np.asarray(tokens), np.asarray(words)
    assert not chosen[words < 0].any()
    np.testing.assert_array_equal(inputs, np.where(chosen, MASK, tokens))
    for at in range(len(texts)):
        hidden, shown = set(words[at][chosen[at]]), set(words[at][~chosen[at]])
        assert not hidden & shown
        number = len(set(words[at]) - {-1})
        assert len(hidden) == (max(1, round(0.15 * number)) if number else 0)


def test_every_word_has_the_same_chance():
    """Fault: the first words, or long ones, are drawn more often than others."""
    sizes = [1, 3, 1, 2, 1, 1, 4, 1, 2, 1]
    tokens, words = batch_of([sizes] * 4000)
    _, chosen = mask(jax.random.key(0), tokens, words)
    firsts = np.cumsum([0, *sizes[:-1]]) + 1
    share = np.asarray(chosen)[:, firsts].mean(0)
    # round(0.15 · 10) is 2 words of 10: a share of 0.2 each, five standard errors wide.
    np.testing.assert_allclose(share, 0.2, atol=5 * np.sqrt(0.2 * 0.8 / 4000))


def test_share_of_words_is_the_rate():
    """Fault: the rate is taken of tokens, or of the padded length."""
    tokens, words = batch_of([[1, 2] * 40, [3] * 30], 130)
    for rate in (0.15, 0.5, 1.0):
        _, chosen = mask(jax.random.key(1), tokens, words, mask_rate=rate)
        for at, number in ((0, 80), (1, 30)):
            hidden = set(np.asarray(words[at])[np.asarray(chosen[at])].tolist())
            assert abs(len(hidden) - rate * number) <= 0.5


def test_specials_are_never_chosen_even_with_a_word_index():
    """Fault: an UNK or SEP that carries a word index is hidden, or counts as a word."""
    tokens = jnp.full((1, 8), 3, jnp.int32).at[0, 5].set(9)
    words = jnp.arange(8, dtype=jnp.int32)[None]
    _, chosen = mask(jax.random.key(0), tokens, words)
    np.testing.assert_array_equal(chosen[0], np.arange(8) == 5)


def test_the_variant_80_10_10():
    """Fault: wrong proportions, or random tokens that are specials or out of the vocabulary."""
    tokens = jnp.full((400, LENGTH), 7, jnp.int32)
    words = jnp.tile(jnp.arange(LENGTH, dtype=jnp.int32), (400, 1))
    inputs, chosen = mask(jax.random.key(3), tokens, words, mask_rate=1.0, variant="80-10-10")
    assert bool(chosen.all())
    got = np.asarray(inputs).ravel()
    random = (got != MASK) & (got != 7)
    error = 5 * np.sqrt(0.25 / got.size)
    assert abs((got == MASK).mean() - 0.8) < error
    assert abs(random.mean() - 0.1 * (1 - 1 / 45)) < error
    assert abs((got == 7).mean() - (0.1 + 0.1 / 45)) < error
    assert set(got[random]) == set(range(SPECIALS, VOCABULARY)) - {7}


def test_what_is_not_chosen_stays():
    """Fault: 80-10-10 spoils positions that carry no loss."""
    tokens, words = batch_of([[2] * 8] * 50)
    inputs, chosen = mask(jax.random.key(5), tokens, words, variant="80-10-10")
    assert bool(jnp.where(chosen, True, inputs == tokens).all())


@pytest.mark.slow
def test_the_key_decides_and_jit_changes_nothing():
    """Fault: a constant key inside, or compiled and plain masks that differ."""
    tokens, words = batch_of([[2, 1, 3, 1] * 2] * 10)
    one, again = mask(jax.random.key(0), tokens, words), mask(jax.random.key(0), tokens, words)
    other = mask(jax.random.key(1), tokens, words)
    plain = mask_words(jax.random.key(0), tokens, words, mask_id=MASK, vocabulary=VOCABULARY)
    for a, b, c, d in zip(one, again, plain, other, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, c)
        assert (np.asarray(a) != np.asarray(d)).any()
    assert (np.asarray(one[1])[0] != np.asarray(one[1])[1:]).any()


def test_bad_settings_are_named():
    """Fault: a wrong variant or rate is taken in silence."""
    tokens, words = batch_of([[1]])
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="mask_rate 1.5"):
        mask_words(key, tokens, words, mask_rate=1.5, mask_id=MASK, vocabulary=9)
    with pytest.raises((ValueError, TypeCheckError), match="80-10"):
        mask_words(key, tokens, words, mask_id=MASK, vocabulary=9, variant="80-10")  # type: ignore
    with pytest.raises(ValueError, match="vocabulary of 5"):
        mask_words(key, tokens, words, mask_id=MASK, vocabulary=5)


GATHER = jax.jit(gather_chosen, static_argnums=1)


@pytest.mark.slow
@given(
    st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=3, max_size=3),
    st.sampled_from([1, 5, 18, 25]),
)
@settings(max_examples=80, deadline=None)
def test_gathering_lists_what_was_chosen(rows, limit):
    """Fault: positions lost below the limit, padding marked valid, or a surplus not counted."""
    chosen = np.array(rows)
    indices, valid, dropped = map(np.asarray, GATHER(jnp.asarray(chosen), limit))
    expected = np.flatnonzero(chosen)
    np.testing.assert_array_equal(indices[valid], expected[:limit])
    assert (indices[~valid] == 0).all() and indices.shape == (limit,)
    assert dropped == max(len(expected) - limit, 0)


@pytest.mark.slow
def test_loss_is_sklearns_log_loss():
    """Fault: a wrong normaliser, or positions that do not count being counted."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(30, 7)).astype(np.float32)
    targets = rng.integers(0, 7, 30).astype(np.int32)
    where = rng.random(30) < 0.6
    loss, metrics = masked_language_loss(*map(jnp.asarray, (logits, targets, where)))
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = log_loss(targets[where], probabilities[where], labels=range(7))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    accuracy = (logits.argmax(1) == targets)[where].mean()
    np.testing.assert_allclose(metrics["accuracy"], accuracy, rtol=1e-6)


@pytest.mark.slow
def test_nothing_hidden_costs_nothing():
    """Fault: the mean over nothing is NaN, in the loss or in its gradient."""
    args = jnp.ones((3, 7)), jnp.zeros(3, jnp.int32), jnp.zeros(3, bool)
    (loss, metrics), gradient = jax.value_and_grad(masked_language_loss, has_aux=True)(*args)
    assert loss == 0 and metrics["accuracy"] == 0
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.slow
def test_gathered_positions_give_the_loss_of_all_positions():
    """Fault: the flat index is not row · length + column, so other tokens are guessed."""
    tokens, words = batch_of([[1, 2, 1, 3, 2], [2, 2, 2], [], [4, 4]])
    _, chosen = mask(jax.random.key(2), tokens, words, mask_rate=0.5)
    logits = np.random.default_rng(0).normal(size=(tokens.size, VOCABULARY)).astype(np.float32)
    targets = np.asarray(tokens).ravel()
    indices, valid, _ = map(np.asarray, GATHER(chosen, 40))
    few, _ = masked_language_loss(*map(jnp.asarray, (logits[indices], targets[indices], valid)))
    whole, _ = masked_language_loss(*map(jnp.asarray, (logits, targets)), chosen.reshape(-1))
    np.testing.assert_allclose(few, whole, rtol=1e-6)
