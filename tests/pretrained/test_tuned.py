"""A pretrained encoder as a guide's encoder of texts: what trains of it, and its tokens."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from metaguide.data.catalogue import Question
from metaguide.data.tokenizer import CLS, MASK, PAD, SEP, SPECIALS, TextTokenizer
from metaguide.learners import maml
from metaguide.models.encoder import FROZEN
from metaguide.models.guide import GuideModel, init_params
from metaguide.models.tuned import ALPHA, Tuning
from metaguide.objectives import pretraining
from metaguide.pretrained import load_encoder, tuned_encoder, tuned_params
from metaguide.tasks import SENTIMENT
from metaguide.tasks.question_answering import question_rows
from metaguide.tasks.sentiment import sentiment
from tests.pretrained.conftest import TEXTS, VARIANTS

KEY = jax.random.key(0)
LORA, NONE, ALL = Tuning("lora", 2), Tuning("last", layers=0), "all"
TUNINGS = {
    "lora": LORA,
    "none": NONE,
    "every": Tuning("last", layers=2),
    ALL: Tuning("all"),
}


def model_on(encoder):
    """A guide with one head: the others would take most of the time to compile."""
    return GuideModel(encoder, {"sentiment": SENTIMENT.head}, 3)


@pytest.fixture(scope="module")
def encoder(folders):
    return load_encoder(folders("bert"))


@pytest.fixture(scope="module")
def guides(encoder):
    """What returns the model of a tuning and its parameters at the start."""

    @cache
    def guide(name: str):
        model = model_on(tuned_encoder(encoder, TUNINGS[name], 0.1))
        return model, init_params(model, KEY, tuned_params(encoder, TUNINGS[name]))

    return guide


@pytest.fixture(scope="module")
def tokens(encoder):
    return jnp.asarray(encoder.guide_tokenizer.encode(TEXTS, 12).tokens)


def states(guide, tokens):
    model, params = guide
    return jax.jit(lambda p: model.apply({"params": p}, tokens, method="text_states"))(params)


def moved(before, after):
    """The groups whose parameters differ."""
    return {
        name
        for name in before
        if any(
            (a != b).any()
            for a, b in zip(*map(jax.tree.leaves, (before[name], after[name])), strict=True)
        )
    }


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_states_at_the_start_are_those_of_the_pretrained_encoder(folders, variant):
    """Faults: embeddings in the order of other ids, positions or token types of another variant,
    another mask, a lost prefix, a cut at another token, and weights that are random."""
    encoder = load_encoder(folders(variant), prefix="good ", length=9)
    model = model_on(tuned_encoder(encoder, NONE))
    params = init_params(model, KEY, tuned_params(encoder, NONE))
    texts = [text for text in TEXTS if "</s>" not in text]
    rows = jnp.asarray(encoder.guide_tokenizer.encode(texts, 9).tokens)
    with pytest.warns(UserWarning, match="longer than 9 tokens"):
        expected, counts = encoder.states(texts, np.float32)
    found = np.asarray(states((model, params), rows))
    assert (rows != PAD).sum(1).tolist() == counts.tolist()
    np.testing.assert_allclose(found[np.asarray(rows) != PAD], expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*longer than 12 tokens")
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_a_vector_is_pooled_as_the_pretrained_encoder_does(guides, encoder, tokens, pooling):
    """Faults: padding in the mean, or a mean where the encoder reads the first token."""
    model, params = guides("none")
    model = model_on(replace(model.encoder, pooling=pooling))
    found = jax.jit(lambda p: model.apply({"params": p}, tokens, method="text_vector"))(params)
    expected = replace(encoder, pooling=pooling, length=12).encode(TEXTS)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.slow
def test_every_tuning_begins_as_the_frozen_encoder_to_the_bit(guides, tokens):
    """Faults: LoRA's second factor does not start at 0, or its shift is added where it should not
    be; a layer is left out, or computed twice."""
    expected = states(guides("none"), tokens)
    for name in TUNINGS:
        np.testing.assert_array_equal(states(guides(name), tokens), expected, err_msg=name)


@pytest.mark.slow
def test_what_trains_is_the_body_and_what_does_not_is_a_group_of_its_own(guides):
    """Faults: an inner loop adapts what is frozen, or nothing of what trains; a group is named that
    has no parameters."""
    parts = {"lora": {"frozen", "text"}, "none": {"frozen"}, "every": {"frozen", "text"}}
    for name, expected in {**parts, ALL: {"text"}}.items():
        model, params = guides(name)
        assert {"frozen", "text"} & set(params) == expected
        body = sentiment(model).body
        assert set(body) == (expected - {FROZEN}) | {"fusion"}
    layers = guides("every")[1]
    assert set(layers["text"]) == {"layer_0", "layer_1"}
    assert set(layers[FROZEN]) == {"embedding", "positions", "types", "norm"}
    size = sum(leaf.size for leaf in jax.tree.leaves(guides("lora")[1]["text"]))
    assert size == 2 * 2 * 2 * 2 * 16  # layers, projections, factors, rank, width


@pytest.mark.slow
def test_last_with_all_layers_is_all_but_the_embeddings(guides, tokens):
    """Faults: a layer's gradient is stopped, or the embeddings' is not."""
    slopes = {}
    for name in ("every", ALL):
        model, params = guides(name)

        def loss(params, model=model):
            found = model.apply({"params": params}, tokens, method="text_states")
            return jnp.square(found[:, 0]).mean()

        slopes[name] = jax.jit(jax.grad(loss))(params)
    whole, every = slopes[ALL]["text"]["bert"], slopes["every"]
    for layer in ("layer_0", "layer_1"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
            every["text"][layer],
            whole[layer],
        )
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(every[FROZEN]))
    assert all((whole[name] != 0).any() for name in ("embedding", "positions", "types"))


@pytest.mark.slow
def test_factors_add_their_product_to_the_kernels_of_queries_and_values(guides, tokens):
    """Faults: the factors of queries and values change places, reach the keys, or are scaled or
    transposed wrongly; those of one layer are used in another."""
    (model, params), (frozen, weights) = guides("lora"), guides("none")
    random = np.random.default_rng(0)
    factors = jax.tree.map(
        lambda leaf: random.standard_normal(leaf.shape).astype(np.float32) / 8, params["text"]
    )
    merged = dict(weights[FROZEN])
    for name, of in factors.items():
        products = [
            a @ b * ALPHA / 2 for a, b in zip(np.split(of["down"], 2, 1), of["up"], strict=True)
        ]
        more = np.concatenate([products[0], np.zeros((16, 16)), products[1]], axis=1)
        qkv = merged[name]["qkv"]
        kernel = qkv["kernel"] + jnp.asarray(more, jnp.float32)
        merged[name] = {**merged[name], "qkv": {**qkv, "kernel": kernel}}
    found = states((model, {**params, "text": factors}), tokens)
    expected = states((frozen, {**weights, FROZEN: merged}), tokens)
    read = np.asarray(tokens) != PAD
    np.testing.assert_allclose(found[read], expected[read], atol=2e-5)
    assert np.abs(found - states(guides("none"), tokens)).max() > 0.1


@pytest.mark.slow
def test_the_gradient_of_the_factors_is_that_of_finite_differences(guides, tokens):
    """Faults: the gradient of a factor is stopped, or computed by a wrong rule."""
    with jax.enable_x64(True):
        model, params = guides("lora")
        wide = replace(model.encoder.text, dtype=jnp.float64)
        base = replace(model.encoder.frozen, dtype=jnp.float64)
        model = model_on(replace(model.encoder, text=wide, frozen=base, dtype=jnp.float64))
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), params)
        keys = iter(jax.random.split(jax.random.key(1), 100))
        drawn = lambda leaf: jax.random.normal(next(keys), leaf.shape, leaf.dtype)  # noqa: E731
        factors = jax.tree.map(lambda leaf: 0.3 * drawn(leaf), params["text"])
        target = jax.random.normal(jax.random.key(2), (*tokens.shape, 16), jnp.float64)

        @jax.jit
        def loss(factors):
            given = {"params": {**params, "text": factors}}
            return jnp.mean(model.apply(given, tokens, method="text_states") * target)

        slope, size = jax.jit(jax.grad(loss))(factors), 1e-6
        for _ in range(3):
            way = jax.tree.map(drawn, factors)
            dots = jax.tree.map(jnp.vdot, slope, way)
            up, down = (
                loss(jax.tree.map(lambda p, w, s=s: p + s * w, factors, way)) for s in (size, -size)
            )
            difference = (up - down) / (2 * size)
            np.testing.assert_allclose(sum(jax.tree.leaves(dots)), difference, rtol=1e-6)


@pytest.mark.slow
def test_an_inner_loop_changes_only_what_trains(guides, tokens):
    """Faults: MAML adapts the frozen weights; dropout or a stop keeps what trains from adapting."""
    model, params = guides("lora")
    learner = maml(sentiment(model), optax.sgd(0.1), 2)
    support = {
        "tokens": tokens,
        "label": jnp.array([0, 1, 1, 0]),
        "stars": jnp.zeros(4),
        "mask": jnp.ones(4, bool),
    }
    adapted, _ = jax.jit(learner.adapt)({"params": params}, support, (), KEY)
    assert moved(params, adapted) == {"text", "fusion", "sentiment"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["masked_language", "text_text"])
def test_pretraining_goes_on_from_the_weights(guides, encoder, name):
    """Faults: the logits compare states with something else than the embeddings; the frozen weights
    get a gradient; without dropout both views of a text are the same."""
    model, params = guides("lora")
    rows = encoder.guide_tokenizer.encode(TEXTS, 12)
    objective = {
        "masked_language": pretraining.masked_language(model, 4, mask_id=MASK, mask_rate=0.3),
        "text_text": pretraining.text_text(model, 4),
    }[name]
    data = {"tokens": jnp.asarray(rows.tokens), "words": jnp.asarray(rows.words)}
    slope, _ = jax.jit(jax.grad(objective, has_aux=True))({"params": params}, data, KEY, 0.0)
    nothing = jax.tree.map(jnp.zeros_like, params)
    head = {"masked_language": "language", "text_text": "contrast"}[name]
    assert moved(nothing, slope["params"]) == {"text", head}
    table = params[FROZEN]["embedding"]
    logits = model.apply({"params": params}, table[:3], method=lambda g, x: g.text.attend(x))
    np.testing.assert_allclose(logits, table[:3] @ table.T, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_pairs_are_those_of_the_tokenizer(folders, variant):
    """Faults: another order of a pair's parts or other tokens between them; the prefix before the
    passage; token types of one text in a pair."""
    encoder = load_encoder(folders(variant), prefix="the ")
    own, core = encoder.guide_tokenizer, encoder.tokenizer.core
    assert isinstance(own, TextTokenizer)
    question, text = "is the phone good", "the screen is not bad, 手机 unbelievably good"
    found = own.encode_pairs([question, "good"], [text, "bad"], 40)
    assert found.tokens.shape == (2, 1, 40)
    expected = core.encode("the " + question, text)
    row = found.tokens[0, 0]
    assert own.ids[row[row != PAD]].tolist() == expected.ids
    assert row[0] == CLS and (row == SEP).sum() == expected.ids.count(own.ids[SEP])
    inside = found.offsets[0, 0, :, 0] >= 0
    assert inside.sum() == len(core.encode(text, add_special_tokens=False).ids)
    text_module = tuned_encoder(encoder, NONE).text
    types = text_module.apply({}, jnp.asarray(row[None]), method="types")
    if variant == "bert":
        assert types[0, : len(expected.ids)].tolist() == expected.type_ids
    else:
        assert types is None and set(expected.type_ids) == {0}


@pytest.mark.parametrize("texts", [[], [""], ["", ""], [" "], ["\u3000\n", "", "good"]])
def test_texts_of_nothing_have_the_tokens_around_them(folders, texts):
    """Faults: no text, or only blanks, ends in an error of NumPy; a blank has a span outside."""
    for prefix in ("", "good: "):
        own = load_encoder(folders("e5"), prefix=prefix).guide_tokenizer
        rows, pairs = own.encode(texts, 8), own.encode_pairs(texts, texts, 16)
        assert rows.tokens.shape == (len(texts), 8) and len(pairs.tokens) == len(texts)
        assert (rows.tokens[:, 0] == CLS).all() and (pairs.tokens[:, 0, 0] == CLS).all()
        assert ((rows.tokens == SEP).sum(1) == 1).all()
        for text, offsets in zip(texts, rows.offsets, strict=True):
            assert offsets.max(initial=0) <= len(text)


def test_words_are_hidden_whole_and_the_prefix_never(folders):
    """Faults: a Chinese sentence without blanks is one word; pieces of a word are words; the
    prefix is masked; a special token in a text separates it."""
    for variant in ("bert", "xlm-roberta"):
        own = load_encoder(folders(variant), prefix="the phone: ").guide_tokenizer
        rows = own.encode(["unbelievably good, 手机很好", "</s> good [SEP]"], 24)
        read = rows.words[0] >= 0
        spans = rows.offsets[0][read]
        words = {}
        for word, (begin, end) in zip(rows.words[0][read], spans, strict=True):
            words.setdefault(int(word), []).append("unbelievably good, 手机很好"[begin:end])
        assert ["".join(parts) for parts in words.values()] == [
            *("unbelievably", "good", ",", "手", "机", "很", "好")
        ]
        assert (spans.min() == 0) and list(words) == list(range(7))
        inside = rows.words[1] >= 0
        assert (rows.tokens[1][inside] > 0).all() and SEP not in rows.tokens[1][inside]
        assert CLS not in rows.tokens[1][inside]


PASSAGES = st.text(
    st.one_of(
        st.sampled_from("手机很好电ＡＢｃ１２，。！ﬁ①㎏é½ß🙂Ω한글ñ  \t\n"),
        st.characters(min_codepoint=32, max_codepoint=126),
    ),
    min_size=1,
    max_size=60,
)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(text=PASSAGES, ends=st.tuples(st.integers(0, 59), st.integers(1, 60)), data=st.data())
def test_the_span_of_an_answer_survives_the_tokens(folders, text, ends, data):
    """Faults: offsets of the normalised text, of bytes or of the text with its prefix; a blank at
    the start of a piece; a window that loses a token."""
    first, past = ends[0] % len(text), 0
    past = first + 1 + ends[1] % (len(text) - first)
    assume(text[first:past].strip())
    variant = data.draw(st.sampled_from(("bert", "e5", "roberta")))
    own = load(folders, variant)
    begin = first + len(text[first:past]) - len(text[first:past].lstrip())
    end = past - len(text[first:past]) + len(text[first:past].rstrip())
    question = Question("q", "good phone", text, (first, past))
    for length in (12, 100):
        rows = question_rows([question], own, length, "shop")
        starts, lasts = (np.atleast_1d(rows[name][0]) for name in ("start", "end"))
        offsets = own.encode_pairs(["good phone"], [text], length).offsets[0]
        assert length == 12 or starts.any()
        for window in np.flatnonzero(starts):
            found = offsets[window, starts[window], 0], offsets[window, lasts[window], 1]
            assert found[0] <= begin and end <= found[1]
            assert text[found[0] : found[1]].strip() == text[found[0] : found[1]]
        # Every character that is not white space is in a token of some window.
        seen = {
            place
            for window in offsets.tolist()
            for a, b in window
            if a >= 0
            for place in range(a, b)
        }
        assert seen >= {place for place, char in enumerate(text) if not char.isspace()}


@cache
def load(folders, variant):
    return load_encoder(folders(variant), prefix="good: ").guide_tokenizer


def test_ids_of_specials_come_first_and_no_row_is_lost(folders):
    """Faults: an embedding's row is unreachable or used for two pieces; padding is a word."""
    for variant in VARIANTS:
        encoder = load_encoder(folders(variant))
        ids = encoder.guide_tokenizer.ids
        assert set(ids.tolist()) == set(range(encoder.tokenizer.size))
        assert len(set(ids[len(SPECIALS) :].tolist())) == len(ids) - len(SPECIALS)
        params = tuned_params(encoder, LORA)[FROZEN]
        np.testing.assert_array_equal(params["embedding"], encoder.params["embedding"][ids])


def test_more_layers_than_there_are_and_other_settings_are_refused(encoder):
    """Fault: a setting that cannot be is taken, and what trains is not what was asked for."""
    with pytest.raises(ValueError, match="layers is 3; the encoder has 2"):
        tuned_encoder(encoder, Tuning("last", layers=3))
    bad = {"trains is 'most'": ("most",), "rank is 0": ("lora", 0), "layers is -1": ("last", 8, -1)}
    for said, fields in bad.items():
        with pytest.raises(ValueError, match=said):
            Tuning(*fields)
