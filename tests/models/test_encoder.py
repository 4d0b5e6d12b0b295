"""The channels of an encoder besides tokens: n-grams and vectors of a pretrained encoder."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metaguide.models.encoder import SKETCH, Adapter, Encoder, NgramBag, transformer
from metaguide.models.guide import init_params
from metaguide.tasks import guide_model
from metaguide.types import HASHES

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)


def test_a_bag_is_the_sum_of_its_embeddings_over_the_root_of_their_number():
    """Faults: padding counts, a text without n-grams is NaN, the number of n-grams scales it."""
    bag = NgramBag(7, 3)
    table = jnp.asarray(RNG.normal(size=(7, 3)), jnp.float32)
    grams = jnp.array([[1, 4, 0], [5, 0, 0], [0, 0, 0]], jnp.int32)
    params = {"embedding": table, "term_weight": jnp.ones(7), "polarity": jnp.zeros(HASHES)}
    found = bag.apply({"params": params}, grams)
    expected = [(table[1] + table[4]) / np.sqrt(2), table[5], np.zeros(3)]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert not np.any(bag.init(KEY, grams)["params"]["embedding"])
    # There are 6 embeddings beside padding's, and n-grams share them.
    shared = bag.apply({"params": params}, jnp.where(grams == 0, 0, grams + 6000))
    np.testing.assert_allclose(shared, expected, rtol=1e-6)


@pytest.mark.slow
@settings(deadline=None)
@given(st.lists(st.integers(1, HASHES - 1), max_size=20, unique=True), st.integers(0, 2**31))
def test_a_polarity_is_the_sum_of_the_words_over_the_root_of_their_number(grams, seed):
    """Faults: runs of characters or padding count; two words share a value; no words give NaN."""
    values = np.random.default_rng(seed).normal(size=HASHES).astype(np.float32)
    params = {"embedding": jnp.zeros((7, 3)), "term_weight": jnp.ones(7), "polarity": values}
    row = jnp.asarray([[*grams, *([0] * (20 - len(grams)))]], jnp.int32)
    found = NgramBag(7, 3).apply({"params": params}, row, method="polarity")
    words = [gram for gram in grams if gram % 2 == 0]
    expected = values[words].sum() / np.sqrt(max(1, len(words)))
    np.testing.assert_allclose(found, [expected], rtol=1e-4, atol=1e-5)


DROPS = NgramBag(40, 40)
ALONE = {"embedding": jnp.eye(40), "term_weight": jnp.zeros(40), "polarity": jnp.zeros(HASHES)}
"""Every n-gram has a channel of its own, so that one sees which of them are read."""


def dropped(grams, key):
    """The vectors of a bag of n-grams with dropout."""
    rngs = {"dropout": key}
    return DROPS.apply({"params": ALONE}, grams, deterministic=False, rngs=rngs)


def test_ngrams_are_dropped_in_training_only_and_the_rest_keeps_its_scale():
    """Faults: evaluation drops n-grams, or needs a key to say that it does not; training drops
    none, all texts' alike, or more or fewer than the share; padding is kept; those that are left
    are scaled by how many there were, so that a text shrinks."""
    grams = np.tile(np.pad(np.arange(1, 31), (0, 6)), (50, 1)).astype(np.int32)
    whole = DROPS.apply({"params": ALONE}, jnp.asarray(grams[:1]))
    np.testing.assert_allclose(whole[0, 1:31], 1 / np.sqrt(30), rtol=1e-6)
    keys = jax.random.split(KEY, 20)
    found = jax.jit(jax.vmap(dropped, (None, 0)))(jnp.asarray(grams), keys)
    rows = np.asarray(found).reshape(-1, 40)
    assert not rows[:, 0].any() and not rows[:, 31:].any()
    kept = rows[:, 1:31] > 0
    np.testing.assert_allclose(kept.mean(0), 0.5, atol=0.08)
    assert len({tuple(row) for row in kept}) > 990
    left = kept.sum(-1, keepdims=True)
    assert left.min() > 0
    np.testing.assert_allclose(rows[:, 1:31], kept / np.sqrt(left), rtol=1e-5)


def test_a_text_all_of_whose_ngrams_are_dropped_is_zero():
    """Fault: the vector of a text of which nothing is left is NaN."""
    rows = np.asarray(dropped(jnp.full((200, 1), 3, jnp.int32), KEY))
    assert np.isfinite(rows).all() and {0.0, 1.0} == set(rows[:, 3].tolist())
    assert not np.delete(rows, 3, axis=1).any()


BUCKETS = 2**17
SKETCHES = NgramBag(BUCKETS, 1)


@jax.jit
def sketched(grams, term_weight):
    """The sketches of texts by a bag with these logarithms of term weights."""
    params = {"embedding": jnp.zeros((BUCKETS, 1)), "term_weight": term_weight}
    params["polarity"] = jnp.zeros(HASHES)
    return SKETCHES.apply({"params": params}, grams, method="sketch")


texts = st.lists(st.integers(1, BUCKETS - 1), max_size=24, unique=True)


@settings(max_examples=60, deadline=None)
@given(texts, st.randoms(use_true_random=False), st.integers(0, 2**31))
def test_a_sketch_is_a_unit_vector_of_a_set(grams, order, seed):
    """Faults: the sketch depends on the order or on the padding; padding is an n-gram; a text
    without words is no 0, or NaN; long texts, or heavy words, have longer sketches; the weights
    are read as they are and not as logarithms, or are those of other n-grams."""
    weights = jnp.asarray(np.random.default_rng(seed).normal(0, 2, BUCKETS), jnp.float32)
    shuffled = [*grams, *([0] * (32 - len(grams)))]
    order.shuffle(shuffled)
    rows = np.array([[*grams, *([0] * (32 - len(grams)))], shuffled], np.int32)
    first, again = np.asarray(sketched(jnp.asarray(rows), weights))
    np.testing.assert_allclose(first, again, atol=1e-5)
    if not grams:
        assert not first.any()
    # N-grams in the same place may cancel each other, but hardly all of them.
    elif len(grams) == 1 or first.any():
        np.testing.assert_allclose(np.linalg.norm(first), 1, atol=1e-3)
    assert (first != 0).sum() <= len(grams)
    if (first != 0).sum() == len(grams):  # No two are in the same place.
        exact = np.exp(np.asarray(weights, float)[grams])
        expected = np.sort(exact / np.linalg.norm(exact))
        np.testing.assert_allclose(np.sort(np.abs(first[first != 0])), expected, rtol=1e-3)


@pytest.mark.parametrize("spread", [0.0, 0.5])
def test_products_of_sketches_are_the_cosines_of_weighted_ngrams(spread):
    """Faults: n-grams have no signs, so that long texts resemble each other; few places or signs
    are used; the weights are not read, are read as they are and not as logarithms, or are those of
    other n-grams."""
    rng, pairs, size = np.random.default_rng(0), 2000, 30
    logs = rng.normal(0, spread, BUCKETS)
    grams, exact = np.zeros((2, pairs, size), np.int32), np.zeros(pairs)
    spreads = np.zeros(pairs)
    for pair in range(pairs):
        common = rng.integers(0, size)
        own = 1 + rng.choice(BUCKETS - 1, 2 * size, replace=False)
        left, right = own[:size], np.concatenate([own[:common], own[size : 2 * size - common]])
        grams[:, pair] = left, right
        x, y = (np.exp(logs[one]) / np.linalg.norm(np.exp(logs[one])) for one in (left, right))
        both = x[:common] @ y[:common]
        # The variance of the product of two sketches before each is scaled to norm 1.
        variance = 1 + both**2 - 2 * (x[:common] ** 2 @ y[:common] ** 2)
        exact[pair], spreads[pair] = both, np.sqrt(variance / SKETCH)
    one, other = (np.asarray(sketched(jnp.asarray(side), jnp.asarray(logs, jnp.float32)))
                  for side in grams)  # fmt: skip
    error = ((one * other).sum(-1) - exact) / spreads
    assert abs(error.mean()) < 4 / np.sqrt(pairs)
    # One or two of 2,000 pairs, of almost equal texts, are beyond 5 under a random hash too.
    ordered = np.sort(np.abs(error))
    assert 0.5 < error.std() < 1.1 and ordered[-3] < 5 and ordered[-1] < 7


def test_every_place_and_both_signs_of_a_sketch_are_used():
    """Faults: n-grams that follow each other share a place or a sign, such as the lowest bit of the
    bucket; some place of the sketch is never used."""
    single = np.arange(1, 1 + 64 * SKETCH, dtype=np.int32)[:, None]
    for step in (1, 2, 256):
        grams = jnp.asarray(single * step % BUCKETS)
        rows = np.asarray(sketched(grams, jnp.zeros(BUCKETS)))
        rows = rows[np.asarray(grams[:, 0]) > 0]
        place, sign = np.abs(rows).argmax(-1), np.sign(rows.sum(-1))
        assert len(set(place)) == SKETCH, step
        assert abs(sign.mean()) < 0.1, step
        assert abs((sign[1:] * sign[:-1]).mean()) < 0.95, step


def test_term_weights_have_the_gradient_of_finite_differences():
    """Faults: what trains the weights of n-grams is cut, wrong, or NaN for a text of nothing, or
    beyond the bounds of the weights."""
    with jax.enable_x64(True):
        bag, rng = NgramBag(12, 1, jnp.float64), np.random.default_rng(0)
        grams = jnp.asarray([[1, 2, 3, 0], [4, 2, 6, 7], [8, 9, 0, 0], [0, 0, 0, 0]], jnp.int32)
        mixing = jnp.asarray(rng.normal(size=(4, SKETCH)))
        start = jnp.asarray(rng.normal(0, 0.5, 12))

        @jax.jit
        def loss(weights):
            params = {"embedding": jnp.zeros((12, 1)), "term_weight": weights}
            params["polarity"] = jnp.zeros(HASHES)
            found = bag.apply({"params": params}, grams, method="sketch")
            return (mixing * found).sum() + (found[0] * found[1]).sum()

        gradient = np.asarray(jax.jit(jax.grad(loss))(start))
        assert gradient.dtype == np.float64
        steps = 1e-5 * np.eye(12)
        expected = [(loss(start + one) - loss(start - one)) / 2e-5 for one in steps]
        np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=1e-8)
        assert (np.abs(gradient[1:5]) > 1e-3).all() and not gradient[[0, 5, 10, 11]].any()
        beyond = jax.jit(jax.value_and_grad(loss))(jnp.full(12, 1e4))
        assert all(np.isfinite(leaf).all() for leaf in beyond)


def test_one_bucket_is_refused():
    """Fault: a division by zero, far from here: padding has the only embedding."""
    with pytest.raises(ValueError, match="buckets is 1; give at least 2"):
        transformer(20, 8, buckets=1)


def test_an_adapter_of_the_same_width_starts_as_a_standardisation():
    """Faults: a random projection hides what the encoder knows; the scale of an encoder remains."""
    vector = jnp.asarray(50 + 3 * RNG.normal(size=(4, 16)), jnp.float32)
    adapter = Adapter(16)
    found = adapter.apply(adapter.init(KEY, vector), vector.astype(jnp.float16))
    centred = vector - vector.mean(-1, keepdims=True)
    np.testing.assert_allclose(found, centred / centred.std(-1, keepdims=True), atol=0.05)
    assert Adapter(5).init_with_output(KEY, vector)[0].shape == (4, 5)


@pytest.fixture(scope="module")
def three_channels():
    """A guide that reads tokens, n-grams and vectors, and its parameters, none of them 0."""
    model = guide_model(transformer(50, 8, 1, 2, 6, channels=(), buckets=9, pretrained=4), way=3)
    params = init_params(model, KEY)
    shaped = jax.tree.map(lambda leaf: leaf + 0.1 * RNG.normal(size=leaf.shape), params)
    return model, jax.tree.map(jnp.asarray, shaped)


@pytest.mark.slow
def test_every_channel_reaches_the_vector_and_none_is_needed(three_channels):
    """Faults: a channel is read and forgotten; a batch without it fails or counts it as zeros."""
    model, params = three_channels
    tokens = jnp.array([[2, 5, 6]], jnp.int32)
    channels = {
        "grams": jnp.array([[3, 4]], jnp.int32),
        "vector": jnp.asarray(RNG.normal(size=(1, 4)), jnp.float32),
    }

    def vector(**given):
        return np.asarray(model.apply({"params": params}, **given, method="encode").vector)

    whole = vector(tokens=tokens, **channels)
    for name in channels:
        rest = {"tokens": tokens, **channels}
        rest.pop(name)
        assert np.abs(vector(**rest) - whole).max() > 1e-3, name
    assert np.isfinite(vector(**channels)).all()


@pytest.mark.slow
def test_an_encoding_has_the_sketch_of_its_ngrams_and_drops_none_of_them(three_channels):
    """Faults: a key drops words out of the sketch, which compares names with texts; a key does not
    reach the n-grams of the vector; without n-grams there is a sketch; a sketch is of tokens."""
    model, params = three_channels
    tokens = jnp.array([[2, 5, 6], [2, 7, 0]], jnp.int32)
    grams = jnp.array([[3, 4, 5, 6, 7, 8], [1, 2, 0, 0, 0, 0]], jnp.int32)

    def encoded(key=None, **given):
        rngs = None if key is None else {"dropout": key}
        rest = {"deterministic": key is None, "rngs": rngs, "method": "encode"}
        return model.apply({"params": params}, **given, **rest)

    bag = NgramBag(9, 8)
    expected = bag.apply({"params": params["grams"]}, grams, method="sketch")
    plain = encoded(grams=grams)
    np.testing.assert_allclose(plain.lexical, expected, rtol=1e-6)
    np.testing.assert_allclose(encoded(KEY, grams=grams).lexical, expected, rtol=1e-6)
    np.testing.assert_allclose(encoded(tokens=tokens, grams=grams).lexical, expected, rtol=1e-6)
    assert encoded(tokens=tokens).lexical is None
    first, second = (encoded(jax.random.key(seed), grams=grams).vector for seed in (1, 2))
    assert np.abs(first - second).max() > 1e-2
    np.testing.assert_array_equal(encoded(grams=grams).vector, plain.vector)


@pytest.mark.slow
def test_training_knows_half_of_the_texts_by_their_ngrams_alone():
    """Faults: states are never or always left out, or for all texts of a batch together; they are
    left out where there are no n-grams, or when nothing is trained."""
    text = transformer(50, 8, 1, 2, 6, dropout=0.0, channels=(), buckets=9)
    model = guide_model(text, way=3)
    params = init_params(model, KEY)
    bag = {**params["grams"], "embedding": jnp.asarray(RNG.normal(size=(9, 8)))}
    params = {**params, "grams": bag}
    tokens = jnp.tile(jnp.array([[2, 5, 6]], jnp.int32), (400, 1))
    # One n-gram 60 times: however many are dropped, the bag alone is the same once normalised.
    grams = jnp.full((400, 60), 3, jnp.int32)

    @partial(jax.jit, static_argnames="trains")
    def encoded(tokens, grams, trains):
        rngs = {"dropout": jax.random.key(3)} if trains else None
        rest = {"deterministic": not trains, "rngs": rngs, "method": "encode"}
        return model.apply({"params": params}, tokens, grams=grams, **rest).vector

    alone = encoded(None, grams, False)
    left_out = np.isclose(encoded(tokens, grams, True), alone, atol=1e-4).all(1)
    assert abs(left_out.mean() - 0.5) < 0.1
    assert not np.isclose(encoded(tokens, grams, False), alone, atol=1e-2).all(1).any()
    by_tokens = encoded(tokens, None, False)
    np.testing.assert_allclose(encoded(tokens, None, True), by_tokens, atol=1e-6)


def test_adaptation_moves_the_adapter_and_holds_the_table_of_ngrams(three_channels):
    """Fault: each inner step writes a table that is larger than the rest of the guide."""
    model, params = three_channels
    assert model.encoder.groups(pictures=False) == ("text", "pretrained", "fusion")
    assert {"text", "grams", "pretrained", "fusion"} <= set(params)


def test_without_a_transformer_there_are_no_states_and_nothing_that_reads_them():
    """Faults: parameters that nothing reads; a head of questions without states to read."""
    model = guide_model(Encoder(None, 0, 4, 0, pretrained=4))
    params = init_params(model, KEY)
    assert set(params) == {"pretrained", "fusion", "classification", "sentiment", "recommendation"}
    encoded = model.apply({"params": params}, vector=jnp.ones((2, 4)), method="encode")
    assert encoded.states is None and encoded.vector.shape == (2, 4)
