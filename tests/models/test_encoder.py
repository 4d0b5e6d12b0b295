"""The channels of an encoder besides tokens: n-grams and vectors of a pretrained encoder."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaguide.models.encoder import Adapter, Encoder, NgramBag, transformer
from metaguide.models.guide import init_params
from metaguide.tasks import guide_model

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)


def test_a_bag_is_the_sum_of_its_embeddings_over_the_root_of_their_number():
    """Faults: padding counts, a text without n-grams is NaN, the number of n-grams scales it."""
    bag = NgramBag(7, 3)
    table = jnp.asarray(RNG.normal(size=(7, 3)), jnp.float32)
    grams = jnp.array([[1, 4, 0], [5, 0, 0], [0, 0, 0]], jnp.int32)
    params = {"embedding": table, "term_weight": jnp.ones(7)}
    found = bag.apply({"params": params}, grams)
    expected = [(table[1] + table[4]) / np.sqrt(2), table[5], np.zeros(3)]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert not np.any(bag.init(KEY, grams)["params"]["embedding"])


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
