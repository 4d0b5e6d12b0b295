from collections import Counter
from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metaguide.data.catalogue import Domain, Interaction, Product, Question, Review
from metaguide.data.encoding import Lengths, TextReader
from metaguide.data.episodes import EpisodeError
from metaguide.data.tokenizer import CLS, SEP, Tokenizer
from metaguide.evaluation.results import cells_to_rows
from metaguide.models.encoder import Encoding, transformer
from metaguide.models.guide import GuideModel, init_params
from metaguide.objectives.tasks import span_predict
from metaguide.tasks import RECOMMENDATION, Reading, Shape, guide_model, task_distributions
from metaguide.tasks.classification import HIDDEN, classification
from metaguide.tasks.problem import features_of, score_classes
from metaguide.tasks.question_answering import question_rows, questions
from metaguide.tasks.recommendation import recommendation, score_ranks, times_taken
from metaguide.tasks.sentiment import sentiment
from metaguide.tasks.spans import score_spans
from metaguide.types import OUT

WAY, BATCH, LENGTH, VOCABULARY = 3, 6, 8, 30


def model_of(vocabulary=VOCABULARY, length=LENGTH, dropout=0.5, **options):
    encoder = transformer(
        vocabulary,
        8,
        layers=1,
        heads=2,
        length=length,
        dropout=dropout,
        **{"channels": (), **options},
    )
    return guide_model(encoder, way=4)


MODEL = model_of()
PROBLEMS = {
    "classification": partial(classification, way=WAY),
    "sentiment": sentiment,
    "questions": partial(questions, max_answer_tokens=3),
    "recommendation": recommendation,
}
every = pytest.mark.parametrize("kind", PROBLEMS)


def drawn(model):
    """Parameters drawn by numpy: the compilation of `init_params` would take most of this file."""
    shapes = jax.eval_shape(partial(init_params, model), jax.random.key(0))
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        if leaf.ndim < 2:
            return jnp.full(leaf.shape, float(path[-1].key == "scale"))
        return jnp.asarray(rng.normal(size=leaf.shape) / leaf.shape[-2] ** 0.5, leaf.dtype)

    return jax.tree.map_with_path(draw, shapes)


@cache
def params():
    # Also where a trace asks first: what is kept for the other tests must be no tracer.
    with jax.ensure_compile_time_eval():
        return drawn(MODEL)


def tokens(rng, rows, length=LENGTH):
    out = rng.integers(5, VOCABULARY, (rows, length)).astype(np.int32)
    out[:, 0] = CLS
    return out


def task(kind):
    """A batch and its context."""
    rng = np.random.default_rng(3)
    batch = {"tokens": tokens(rng, BATCH), "mask": np.arange(BATCH) < BATCH - 1}
    batch |= {"label": (np.arange(BATCH) % 2).astype(np.int32), "id": np.arange(BATCH)}
    context = {}
    if kind == "classification":
        names = np.pad(tokens(rng, WAY, 3), ((0, 0), (0, 1)))
        context = {"names": {"tokens": names}, "has_names": np.array([True, True, False])}
        context["classes"] = np.array([4, 0, 2], np.int32)
        context["known_names"] = np.array([False, True, True])
        batch["label"] = (np.arange(BATCH) % WAY).astype(np.int32)
    elif kind == "sentiment":
        batch["stars"] = np.array([1, 5, 2, 4, 0, 0], np.float32)
    elif kind == "questions":
        batch["tokens"][:, 2] = SEP
        batch["start"] = np.array([3, 4, 5, 0, 6, 3], np.int32)
        batch["end"] = np.array([4, 4, 7, 0, 6, 3], np.int32)
    else:
        history = np.array([[0, 1], [2, 3], [4, 5], [1, 0], [5, 2], [3, 4]], np.int32)
        batch |= {"history": history, "item": np.array([2, 4, 0, 3, 1, 5], np.int32)}
        batch["history_mask"] = np.array([[1, 1], [1, 0], [0, 0], [1, 1], [1, 1], [1, 1]], bool)
        batch["popularity"] = rng.integers(0, 50, (BATCH, 7)).astype(np.int32)
        products = {"tokens": tokens(rng, 7)}
        context = {"products": products, "candidates": np.arange(7) < 6}
    return jax.tree.map(jnp.asarray, (batch, context))


def loss_of(problem):
    def loss(params, batch, context, key=None):
        encoded = problem.encode(params, batch, context, key)
        return problem.loss(params, encoded, batch, context)[0]

    return loss


@cache
def trained(kind):
    """Losses and gradient norms by group over the steps of plain training on one batch."""
    loss, optimizer = loss_of(PROBLEMS[kind](MODEL)), optax.sgd(0.3)

    def step(carry, _):
        params, state = carry
        value, gradient = jax.value_and_grad(loss)(params, *task(kind))
        updates, state = optimizer.update(gradient, state)
        norms = {group: optax.tree.norm(leaf) for group, leaf in gradient.items()}
        return (optax.apply_updates(params, updates), state), (value, norms)

    @jax.jit
    def train(params):
        return jax.lax.scan(step, (params, optimizer.init(params)), length=25)[1]

    return jax.device_get(train(params()))


@pytest.mark.slow
@every
def test_loss_falls(kind):
    """Fault: a problem's loss does not follow from its labels, or its gradient points elsewhere."""
    losses, _ = trained(kind)
    assert np.isfinite(losses).all() and losses[-1] < 0.9 * losses[0]


@pytest.mark.slow
@every
def test_gradient_reaches_body_and_head_and_nothing_else(kind):
    """Faults: `body` or `head` names a group that the loss does not read, or one is missing, so
    that MAML or ANIL would hold what they should adapt."""
    problem, (_, norms) = PROBLEMS[kind](MODEL), trained(kind)
    assert {*problem.body, *problem.head} == {"text", "fusion", kind}
    reached = {group for group, norm in norms.items() if norm[-1] > 1e-6}
    # Spans are scored on states; only the vector, for probes and prototypes, is normalised.
    assert reached == {"text", kind} | ({"fusion"} if kind != "questions" else set())


@pytest.mark.slow
@every
def test_dropout_is_on_with_a_key_and_only_then(kind):
    """Faults: adaptation and evaluation draw dropout; training does not."""

    def program(key):
        loss = loss_of(PROBLEMS[kind](MODEL))
        return str(jax.make_jaxpr(lambda key: loss(params(), *task(kind), key))(key))

    assert "random_bits" in program(jax.random.key(0))
    assert "random_bits" not in program(None)


@pytest.mark.slow
def test_class_names_are_encoded_with_the_examples_and_without_pictures(monkeypatch):
    """Faults: a name gets the picture or the place of an example; names of another length than the
    texts are cut, or cut the texts."""
    seen = {}

    def encode(self, variables, *, tokens, image, has_image, **options):
        seen.update(tokens=tokens, image=image, has_image=has_image)
        return Encoding(tokens[:, :3].astype(jnp.float32), None)

    monkeypatch.setattr(GuideModel, "apply", encode)
    batch, context = task("classification")
    image = np.random.default_rng(0).integers(0, 255, (BATCH, 32, 32, 3)).astype(np.uint8)
    batch |= {"image": jnp.asarray(image), "has_image": jnp.arange(BATCH) % 2 == 0}
    for length in (3, LENGTH, LENGTH + 2):
        names = jnp.asarray(tokens(np.random.default_rng(length), WAY, length))
        problem = classification(MODEL, WAY)
        found = problem.encode({}, batch, {**context, "names": {"tokens": names}}, None)
        np.testing.assert_array_equal(found["vector"], batch["tokens"][:, :3])
        np.testing.assert_array_equal(found["names"], names[:, :3])
        np.testing.assert_array_equal(seen["tokens"][BATCH:, :length], names)
        assert not seen["tokens"][BATCH:, length:].any()
        np.testing.assert_array_equal(seen["tokens"][:BATCH, :LENGTH], batch["tokens"])
        assert not seen["tokens"][:BATCH, LENGTH:].any()
        np.testing.assert_array_equal(seen["has_image"], [*batch["has_image"], *[False] * WAY])
        np.testing.assert_array_equal(seen["image"][:BATCH], image)
    pictured = model_of(channels=(16, 32, 64))
    assert set(classification(pictured, WAY).body) == {"text", "image", "fusion"}
    assert set(sentiment(pictured).body) == {"text", "fusion"}


def test_what_a_user_has_is_not_recommended():
    """Faults: a product of the history, or the padding of the catalogue, is a candidate; padding
    of the history takes product 0 away; the query's own item is not scored."""
    batch, context = task("recommendation")
    problem = recommendation(MODEL)

    @jax.jit
    def outputs(params, batch, context):
        return problem.predict(params, problem.encode(params, batch, context, None), batch, context)

    found = outputs(params(), batch, context)
    for row in range(BATCH):
        has = np.asarray(batch["history"][row])[np.asarray(batch["history_mask"][row])]
        expected = [product < 6 and product not in has for product in range(7)]
        assert found["candidates"][row].tolist() == expected
    assert found["scores"].shape == (BATCH, 7)
    changed = {**batch, "history": jnp.where(batch["history_mask"], batch["history"], 6)}
    np.testing.assert_array_equal(found["scores"], outputs(params(), changed, context)["scores"])


@pytest.mark.slow
@pytest.mark.parametrize("buckets", [0, 40])
def test_products_that_are_encoded_already_give_the_same_scores(buckets):
    """Faults: serving, which encodes a catalogue once, ranks otherwise than training; its gradient
    is another, or the encoder's parameters are read; the sketches or the popularity count in one
    of them only."""
    batch, context = task("recommendation")
    problem, start = recommendation(MODEL), params()
    if buckets:
        grams = np.random.default_rng(4).integers(0, buckets, (7, 5)).astype(np.int32)
        context["products"]["grams"] = jnp.asarray(grams)
        model = model_of(buckets=buckets)
        problem, start = recommendation(model), drawn(model)
    # Biases and scales that are not 0 and 1, so that none of them is left out.
    mine = jax.tree.map(lambda leaf: leaf + 0.1 if leaf.ndim < 2 else leaf, start)
    rows = {"history": batch["history"][:1], "history_mask": batch["history_mask"][:1]}
    products = jax.jit(problem.encode)(mine, rows, context, None)["products"]
    assert ("lexical" in products) == bool(buckets)
    ready = {**products, "candidates": context["candidates"]}

    @jax.jit
    def loss_of(head, context):
        given = {**mine, "recommendation": head}
        encoded = problem.encode(given, batch, context, None)
        scores = problem.predict(given, encoded, batch, context)["scores"]
        return problem.loss(given, encoded, batch, context)[0], scores

    both = [jax.grad(loss_of, has_aux=True)(mine["recommendation"], c) for c in (context, ready)]
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), *both)
    reads = {"popularity", *(("log_lexical", "log_lexical_rate") if buckets else ())}
    assert all(abs(both[0][0][name]) > 1e-6 for name in reads)


def test_features_are_the_vector_and_a_sketch_of_the_same_weight():
    """Faults: metric learners and probes read no words, so that they cannot tell apart those that
    no training text has; a sketch of norm 1 counts for nothing beside a vector whose channels have
    variance 1, or drowns it; without sketches the vector is scaled."""
    rng = np.random.default_rng(0)
    vector, lexical = (rng.normal(size=(5, width)).astype(np.float32) for width in (16, 64))
    vector *= 4 / np.linalg.norm(vector, axis=-1, keepdims=True)  # as LayerNorm leaves it
    lexical /= np.linalg.norm(lexical, axis=-1, keepdims=True)
    lexical[4] = 0
    given = {"vector": jnp.asarray(vector), "names": jnp.zeros((2, 16))}
    np.testing.assert_array_equal(features_of(given), vector)
    found = np.asarray(features_of({**given, "lexical": jnp.asarray(lexical)}))
    np.testing.assert_array_equal(found[:, :16], vector)
    np.testing.assert_allclose(np.linalg.norm(found[:4, 16:], axis=-1), 4, rtol=1e-5)
    assert not found[4, 16:].any()
    # The product of two features weighs both cosines alike.
    cosines = (vector[:4] @ vector[:4].T) / 16 + lexical[:4] @ lexical[:4].T
    np.testing.assert_allclose(found[:4] @ found[:4].T / 16, cosines, atol=1e-5)
    low = features_of({"vector": given["vector"].astype(jnp.bfloat16), "lexical": lexical})
    assert low.dtype == jnp.bfloat16 and low.shape == (5, 80)


def named(buckets, pretrained=0):
    """A problem of three classes, and a function that encodes a batch with a key or without."""
    batch, context = task("classification")
    model = model_of(buckets=buckets, pretrained=pretrained)
    problem, start = classification(model, WAY), drawn(model)
    rng = np.random.default_rng(4)
    if pretrained:
        vector = jnp.asarray(rng.normal(size=(BATCH + WAY, pretrained)), jnp.float32)
        batch["vector"], context["names"]["vector"] = vector[:BATCH], vector[BATCH:]
    if buckets:
        # So many that training never drops all n-grams of a text, which would hide it too.
        grams = rng.integers(1, buckets, (BATCH + WAY, 40)).astype(np.int32)
        batch["grams"], context["names"]["grams"] = map(jnp.asarray, (grams[:BATCH], grams[BATCH:]))
    return jax.jit(lambda key: problem.encode(start, batch, context, key))


@pytest.mark.slow
def test_training_hides_the_vectors_of_half_of_the_names_if_they_have_sketches():
    """Faults: evaluation and adaptation hide names; training hides none, all, or always the same
    ones or all of an episode together; it hides sketches or examples; names without sketches are
    hidden, and nothing is left of them."""
    encode = named(40, pretrained=6)
    keys = jax.random.split(jax.random.key(0), 600)
    found = jax.device_get(jax.jit(jax.vmap(encode))(keys))
    hidden = (found["names"] == 0).all(-1)
    np.testing.assert_allclose(hidden.mean(0), HIDDEN, atol=0.08)
    together = np.bincount(hidden @ (1 << np.arange(WAY)), minlength=2**WAY) / 600
    np.testing.assert_allclose(together, HIDDEN**WAY, atol=0.06)
    # A name is hidden as a whole or not at all.
    assert ((found["names"] != 0).mean(-1)[~hidden] > 0.8).all()
    assert found["vector"].any(-1).all()
    np.testing.assert_allclose(np.linalg.norm(found["lexical_names"], axis=-1), 1, atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(found["lexical"], axis=-1), 1, atol=1e-3)
    plain = jax.device_get(encode(None))
    assert plain["names"].any(-1).all()
    for name in ("lexical", "lexical_names"):
        np.testing.assert_allclose(found[name], np.broadcast_to(plain[name], found[name].shape),
                                   atol=1e-6)  # fmt: skip
    without = named(0)
    assert set(without(None)) == {"vector", "names"}
    names = jax.jit(jax.vmap(lambda key: without(key)["names"]))(keys[:30])
    assert np.asarray(names).any(-1).all()


def test_an_encoder_that_knows_no_other_names_compares_their_words_alone():
    """Faults: the vector of a name that training has never seen misleads the head; that of a name
    it has seen is hidden too, and the guide is at a loss for what it was taught; the vectors of
    examples are hidden too; none is shown in training, so that nothing forms the encoder."""
    encode = named(40)
    found = encode(None)
    assert found["names"].any(-1).tolist() == [False, True, True]
    assert found["lexical_names"].any(-1).all()
    assert found["vector"].any(-1).all()
    keys = jax.random.split(jax.random.key(0), 600)
    hidden = (jax.jit(jax.vmap(encode))(keys)["names"] == 0).all(-1)
    np.testing.assert_allclose(hidden.mean(0), HIDDEN, atol=0.08)
    with pytest.raises(ValueError, match="compares_names is False; give buckets"):
        replace(model_of().encoder, compares_names=False)


SYLLABLES = [first + vowel for first in "bdfgklmnprstvz" for vowel in "aeiou"]


def made_up(rng, count):
    """Words that are in no text but those of the test."""
    return ["".join(rng.choice(SYLLABLES, 4)) for _ in range(count)]


@pytest.mark.parametrize("buckets", [0, 2**12])
def test_a_name_that_the_text_mentions_is_recognised_without_any_training(tokenizer, buckets):
    """Faults: the words of a name that no training text has are not compared with those of a text,
    or are outweighed by vectors that say nothing; the sketches are those of other names or
    examples. Without n-grams an untrained guide is at a loss: the task is not easy for all."""
    rng, way, many = np.random.default_rng(0), 6, 60
    names, noise = made_up(rng, way), made_up(rng, 200)
    label = np.arange(many) % way
    texts = [
        " ".join(rng.permutation([names[one], *rng.choice(noise, 5, replace=False)]))
        for one in label
    ]
    model = model_of(vocabulary=tokenizer.size, length=40, dropout=0.0, buckets=buckets)
    model = model.clone(way=way)
    reader = TextReader(tokenizer, buckets)
    batch = {**reader.rows(texts, 40), "label": label.astype(np.int32)}
    context = {"names": reader.rows(names, 12), "has_names": np.ones(way, bool)}
    context["known_names"] = np.zeros(way, bool)
    problem = classification(model, way)

    @jax.jit
    def answers(params, batch, context):
        encoded = problem.encode(params, batch, context, None)
        return problem.predict(params, encoded, batch, context)["logits"].argmax(-1)

    params = jax.jit(partial(init_params, model))(jax.random.key(0))
    right = answers(params, *jax.tree.map(jnp.asarray, (batch, context))) == label
    assert right.mean() > 0.85 if buckets else right.mean() < 0.5


def test_classes_are_judged_as_the_domain_numbers_them():
    """Fault: slots of two episodes, which mean different classes, are compared with each other."""
    batch, context = task("classification")
    logits = jnp.asarray(np.eye(WAY)[[1, 1, 2, 0, 1, 2]])
    found = score_classes({"logits": logits}, batch, context)
    assert found["predicted"].tolist() == [0, 0, 2, 4, 0, 2]
    assert found["target"].tolist() == [4, 0, 2, 4, 0, 2]
    assert found["mask"].tolist() == batch["mask"].tolist()
    assert found["id"].tolist() == list(range(BATCH))


spans = st.tuples(st.integers(1, 7), st.integers(1, 7)).map(sorted) | st.just([0, 0])
WORDS = ["", "b", "c", "d", "b", "f", "g", "c"]


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(spans, spans), min_size=4, max_size=4))
def test_spans_are_judged_as_strings(tokenizer, pairs):
    """Faults: overlap or length is off by one; no answer counts as an answer of one word; the same
    words at another place are wrong."""
    text = " ".join(WORDS[1:])
    asked = [
        Question(
            str(row), "", text, None if right == [0, 0] else (2 * right[0] - 2, 2 * right[1] - 1)
        )
        for row, (_, right) in enumerate(pairs)
    ]
    rows = question_rows(asked, tokenizer, 12, "d", max_answer_tokens=7)
    query = {**rows, "mask": np.ones(4, bool), "id": np.arange(4)}
    # One position behind [CLS], where the empty question ends.
    said = np.array([[first + (first > 0), last + (last > 0)] for (first, last), _ in pairs])
    outputs = {"window": np.zeros(4, int), "start": said[:, 0], "end": said[:, 1]}
    outputs["finite"] = np.ones(4, bool)
    given = jax.tree.map(jnp.asarray, ({**outputs, "finite": np.zeros(4, bool)}, query))
    lost = score_spans(*given, {})
    assert not lost["em"].any() and not lost["f1"].any()  # not even where there is no answer
    found = jax.device_get(jax.jit(score_spans)(*jax.tree.map(jnp.asarray, (outputs, query)), {}))
    for row, (said, right) in enumerate(pairs):
        said, right = (" ".join(WORDS[a : b + 1]).split() for a, b in (said, right))
        assert found["em"][row] == (said == right)
        assert found["answerable"][row] == (right != [])
        common = (Counter(said) & Counter(right)).total()
        if not said or not right:
            expected = float(said == right)
        else:
            precision, recall = common / len(said), common / len(right)
            expected = 2 * precision * recall / (precision + recall) if common else 0.0
        np.testing.assert_allclose(found["f1"][row], expected, rtol=1e-6)


@pytest.mark.slow
def test_an_answer_in_any_window_is_judged_and_learned_from(tokenizer):
    """Faults: an answer far behind in a long passage is no target, or scored as another window's;
    windows of padding count in the loss; a short passage beside a long one is read otherwise."""
    model = model_of(vocabulary=tokenizer.size, length=24, dropout=0.0)
    params = drawn(model)
    text = "so it is " * 20 + "phone " + "so it is " * 6
    place = text.index("phone")
    long = Question("q", "how?", text, (place, place + 5))
    short = Question("r", "how?", "it is so", (6, 8))
    rows = question_rows([long, short], tokenizer, 24, "d", max_answer_tokens=8)
    windows = rows["tokens"].shape[1]
    assert windows > 4 and (rows["tokens"][1, 1:] == 0).all()
    held = np.flatnonzero(rows["start"][0])
    assert len(held) in (1, 2) and held[0] > 0
    problem = questions(model, max_answer_tokens=8)
    batch = {**rows, "mask": np.ones(2, bool), "id": np.arange(2)}
    batch = jax.tree.map(jnp.asarray, batch)
    for window in held:
        at = rows["start"][0, window]
        said = {"window": (window, 0), "start": (at, 0), "end": (rows["end"][0, window], 0)}
        outputs = {name: jnp.asarray(np.array(values)) for name, values in said.items()}
        outputs["finite"] = jnp.ones(2, bool)
        found = problem.score(outputs, batch, {})
        assert found["em"].tolist() == found["f1"].tolist() == [1, 0]
        assert found["answerable"].tolist() == [True, True]
    encoded = jax.jit(problem.encode)(params, batch, {}, None)
    loss, _ = problem.loss(params, encoded, batch, {})
    alone_of = jax.jit(loss_of(problem))
    # The loss is a mean over windows: those with the answer weigh one, and so do those without.
    losses, weights = [], []
    for row, window in zip(*np.nonzero(rows["tokens"][..., 0]), strict=True):
        one = {name: jnp.asarray(leaf[row, window])[None] for name, leaf in rows.items()}
        one["mask"] = jnp.ones(1, bool)
        losses.append(float(alone_of(params, one, {})))
        alike = (rows["start"][row] > 0) == (rows["start"][row, window] > 0)
        weights.append(1 / (alike & (rows["tokens"][row, :, 0] > 0)).sum())
    np.testing.assert_allclose(loss, np.average(losses, weights=weights), rtol=1e-4)
    single = question_rows([short], tokenizer, 24, "d", max_answer_tokens=8)
    single = jax.tree.map(jnp.asarray, {**single, "mask": np.ones(1, bool)})
    both = problem.predict(params, encoded, batch, {})
    alone = problem.predict(params, problem.encode(params, single, {}, None), single, {})
    assert {k: int(v[1]) for k, v in both.items()} == {k: int(v[0]) for k, v in alone.items()}


@pytest.mark.slow
def test_no_query_has_its_own_text_in_the_support(tokenizer):
    """Faults: a text under two ids is learned from and asked about; it is left out in silence."""
    reviews = tuple(
        Review(
            f"r{i}",
            f"{('so', 'SO, ')[i % 2]} it {i // 2 % 3} phone {i // 2}!",
            stars=1.0 + i % 4 // 2 * 4,
        )
        for i in range(60)
    )
    products = tuple(
        Product(f"p{i}", f"{'abc'[i % 3]} phone {i % 30}", category="abc"[i % 3]) for i in range(60)
    )
    asked = tuple(
        Question(f"q{i}", "how?", f"it is so {i % 6}", (0, 2) if i < 9 else None) for i in range(12)
    )
    domain = Domain("shop", products, reviews, asked)
    shape = Shape(way=2, shots=2, queries=20, candidates=None)
    with pytest.warns(UserWarning) as warned:
        made = task_distributions(
            MODEL, (domain,), Reading(TextReader(tokenizer), Lengths(20, 24, 4), False, 3), shape
        )
    said = sorted(str(warning.message) for warning in warned)
    assert [message.split(" examples")[0] for message in said] == [
        "domain shop, classification: 30 of 60",
        "domain shop, questions: 6 of 12",
        "domain shop, sentiment: 30 of 60",
    ]
    for distribution in made.values():
        data = jax.tree.map(jnp.asarray, distribution.data)
        sample = jax.jit(partial(distribution.sample, data, 0, 2))
        for seed in range(10):
            episode = sample(jax.random.key(seed))
            support, query = (
                {
                    tuple(row)
                    for row in np.asarray(part["tokens"])[np.asarray(part["mask"])].tolist()
                }
                for part in (episode.support, episode.query)
            )
            assert query and support and not support & query


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 4))
def test_ranks_are_those_of_a_sorted_list(seed, levels):
    """Faults: the target counts as its own rival, what is no candidate is ranked, or a tie is
    always won (a constant score would be perfect) or always lost."""
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, levels, (5, 6)).astype(np.float32)
    item = rng.integers(0, 6, 5).astype(np.int32)
    candidates = rng.random((5, 6)) < 0.7
    query = {"item": item, "mask": np.ones(5, bool), "id": np.arange(5)}
    found = jax.jit(score_ranks)(
        jax.tree.map(jnp.asarray, {"scores": scores, "candidates": candidates}),
        jax.tree.map(jnp.asarray, query),
        {},
    )
    for row in range(5):
        own = scores[row, item[row]]
        rivals = [scores[row, p] for p in range(6) if candidates[row, p] and p != item[row]]
        best, worst = (1 + sum(map(beats, rivals)) for beats in (own.__lt__, own.__le__))
        assert best <= found["rank"][row] <= worst
    assert found["finite"].all()


@given(st.lists(st.lists(st.integers(0, 6), max_size=9), max_size=6))
def test_a_product_is_taken_once_by_each_who_took_it(taken):
    """Faults: one who took a product twice counts twice; a history of nothing is an error; products
    that nobody took are missing."""
    expected = [sum(product in one for one in taken) for product in range(7)]
    found = times_taken(iter(taken), 7)
    assert found.dtype == np.int32 and found.tolist() == expected


def ranked(scores, item, **changes):
    rows = len(scores)
    outputs = {"scores": scores, "candidates": np.ones(scores.shape, bool)} | changes
    query = {"item": item, "mask": np.ones(rows, bool), "id": np.arange(rows)}
    given = jax.tree.map(jnp.asarray, (outputs, query))
    return jax.device_get(jax.jit(score_ranks)(*given, {}))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_the_worst_rank(bad):
    """Fault: no score is greater than NaN, and a method that diverged is perfect."""
    scores, item = np.tile(np.arange(6.0, dtype=np.float32), (4, 1)), np.full(4, 5)
    scores[0] = bad
    scores[1, 5] = bad
    scores[2, 0] = bad
    found = ranked(scores, item)
    assert found["rank"].tolist() == [6, 6, 6, 1]
    assert found["finite"].tolist() == [False, False, False, True]
    # What is no candidate says nothing.
    candidates = np.ones((4, 6), bool)
    candidates[2, 0] = False
    assert ranked(scores, item, candidates=candidates)["rank"].tolist() == [6, 6, 1, 1]


@pytest.mark.slow
def test_constant_scores_get_what_chance_gets():
    """Faults: a tie is always won, always lost, or always in the middle, where NDCG@10 is 0."""
    rows = 4000
    found = ranked(np.zeros((rows, 40), np.float32), np.full(rows, 7))["rank"]
    counts = np.bincount(found, minlength=41)[1:]
    assert counts.min() > 60 and counts.max() < 145  # 100 each
    logits = jnp.zeros((rows, 5))
    query = {"label": jnp.zeros(rows, jnp.int32), "mask": jnp.ones(rows, bool)}
    context = {"classes": jnp.arange(5)}
    chosen = score_classes({"logits": logits}, query | {"id": jnp.arange(rows)}, context)
    counts = np.bincount(chosen["predicted"], minlength=5)
    assert counts.min() > 700 and counts.max() < 900  # 800 each


def test_a_single_candidate_is_ranked_first_and_a_single_class_is_right():
    """Fault: with nothing to choose from there is no rank, or a draw among none."""
    assert ranked(np.zeros((3, 1), np.float32), np.zeros(3, int))["rank"].tolist() == [1, 1, 1]
    query = {"label": jnp.zeros(2, jnp.int32), "mask": jnp.ones(2, bool), "id": jnp.arange(2)}
    found = score_classes({"logits": jnp.zeros((2, 1))}, query, {"classes": jnp.asarray([9])})
    assert found["predicted"].tolist() == [9, 9]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_single_candidate_that_is_not_finite_is_the_worst_outcome(bad):
    """Fault: what diverged is the first of one, and perfect; of five it is a hit at 5."""
    for many in (1, 5):
        found = ranked(np.full((3, many), bad, np.float32), np.zeros(3, int))
        assert found["rank"].tolist() == [max(many, 2)] * 3 and not found["finite"].any()
        raw = {name: leaf[:, None] for name, leaf in found.items()}
        raw |= {name: raw[name][None, None] for name in ("rank", "finite")}
        rows, _ = cells_to_rows(
            raw, table="t", method="a", domain="d", scoring=RECOMMENDATION.scoring, shots=1
        )
        assert {row.value for row in rows} == {0} and {row.diverged for row in rows} == {3}


def asked_for_spans(tokenizer, start, end, questions_=None):
    """What `questions` answers and is scored by, where the model's span scores are given."""
    asked = questions_ or [Question("q", "", "b c d", None)] * len(start)
    rows = question_rows(asked, tokenizer, 12, "d", max_answer_tokens=3)
    many = len(asked)
    query = {**rows, "mask": np.ones(many, bool), "id": np.arange(many)}
    query = jax.tree.map(jnp.asarray, query)
    exists = jnp.ones((many, 1), bool)
    given = (jnp.asarray(scores, jnp.float32)[:, None] for scores in (start, end))
    start, end = given
    said = dict(zip(("window", "start", "end"),
                    span_predict(start, end, exists, 3, query["id"]), strict=True))  # fmt: skip
    said["finite"] = (jnp.isfinite(start) & jnp.isfinite(end)).all((1, 2))
    return said, jax.device_get(score_spans(said, query, {}))


@pytest.mark.slow
def test_constant_span_scores_get_what_chance_gets(tokenizer):
    """Faults: they are always "no answer", and right wherever there is none; or never."""
    many = 3000
    # [CLS], [SEP] of the empty question, three words, [SEP]: text is at 2, 3 and 4.
    scores = np.full((many, 12), OUT)
    scores[:, [0, 2, 3, 4]] = 0.5
    said, scored = asked_for_spans(tokenizer, scores, scores)
    found = Counter(zip(*(np.asarray(said[name]).tolist() for name in ("start", "end")),
                        strict=True))  # fmt: skip
    assert set(found) == {(0, 0), (2, 2), (2, 3), (2, 4), (3, 3), (3, 4), (4, 4)}
    assert all(330 < count < 530 for count in found.values())  # 429 each
    assert 0.11 < scored["em"].mean() < 0.18 and scored["finite"].all()
    # Only what is level is drawn: two spans here, and the one behind them never.
    scores[:, 0], scores[:, 4] = -3, -3
    said, _ = asked_for_spans(tokenizer, scores, scores)
    assert set(np.asarray(said["start"]).tolist()) == {2, 3}


@pytest.mark.slow
def test_a_problem_with_constant_span_scores_is_at_chance(tokenizer):
    """Fault: a head of zeros, which says nothing, is right wherever there is no answer."""
    model = model_of(vocabulary=tokenizer.size, length=12, dropout=0.0)
    flat = drawn(model)
    flat = {**flat, "questions": jax.tree.map(jnp.zeros_like, flat["questions"])}
    problem, many = questions(model, max_answer_tokens=3), 400
    rows = question_rows(
        [Question("q", "how?", "so it is")] * many, tokenizer, 12, "d", max_answer_tokens=3
    )
    query = {**rows, "mask": np.ones(many, bool), "id": np.arange(many)}
    query = jax.tree.map(jnp.asarray, query)
    outputs = problem.predict(flat, problem.encode(flat, query, {}, None), query, {})
    scored = problem.score(outputs, query, {})
    assert 0.05 < scored["em"].mean() < 0.25 and scored["finite"].all()
    # Where nobody scores, as when a guide serves, it has no answer.
    del query["id"]
    outputs = problem.predict(flat, problem.encode(flat, query, {}, None), query, {})
    assert not outputs["start"].any()


@pytest.mark.slow
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_span_scores_that_are_not_finite_answer_nothing(tokenizer, bad):
    """Fault: NaN compares as lower than "no answer", which is right where there is none."""
    scores = np.zeros((3, 12))
    scores[0] = bad
    scores[1, 0] = bad
    said, scored = asked_for_spans(tokenizer, scores, np.zeros((3, 12)))
    assert scored["finite"].tolist() == [False, False, True]
    assert scored["em"][:2].tolist() == scored["f1"][:2].tolist() == [0, 0]


@pytest.mark.slow
def test_a_single_span_is_answered_where_it_scores_higher(tokenizer):
    """Fault: with one word there is nothing to choose from, and no answer or always one."""
    one = [Question(str(row), "", "b", (0, 1)) for row in range(3)]
    scores = np.full((3, 12), OUT)
    scores[:, 2], scores[:, 0] = 1, [0, 2, 0]
    said, scored = asked_for_spans(tokenizer, scores, scores, one)
    assert scored["em"].tolist() == [1, 0, 1] and np.asarray(said["start"]).tolist() == [2, 0, 2]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_of_no_class(bad):
    """Fault: the place of the first NaN is taken for a class, which may be the right one."""
    logits = jnp.asarray([[bad, bad], [0.0, bad], [1.0, 0.0]], jnp.float32)
    query = {"label": jnp.zeros(3, jnp.int32), "mask": jnp.ones(3, bool), "id": jnp.arange(3)}
    found = score_classes({"logits": logits}, query, {"classes": jnp.asarray([4, 7])})
    assert found["predicted"].tolist() == [-1, -1, 4]
    assert found["finite"].tolist() == [False, False, True]


PHONES = Domain(
    "phones",
    products=tuple(Product(f"p{i}", f"phone {i}", category="abc"[i % 3]) for i in range(9)),
    reviews=tuple(Review(f"r{i}", f"good {i}", stars=1.0 + 4 * (i % 2)) for i in range(8)),
    interactions=tuple(Interaction("u", f"p{i}", float(i)) for i in range(4)),
)
BOOKS = Domain(
    "books",
    products=tuple(Product(f"b{i}", f"book {i}", category="xyz"[i % 3]) for i in range(6)),
    questions=tuple(Question(f"q{i}", "how?", f"so it is {i}", (0, 2)) for i in range(4)),
)
LENGTHS, SHAPE = Lengths(6, 8, 4), Shape(way=3, shots=1, queries=4, candidates=4)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(["phone book good how so it is 0 1 2 3 4 5 6 7 8 a b c x y z"] * 2, 300)


def test_families_are_of_the_domains_that_have_what_they_need(tokenizer):
    """Faults: a domain without questions is drawn for questions; episodes are not of the shape."""
    model, reading = (
        model_of(vocabulary=tokenizer.size),
        Reading(TextReader(tokenizer), LENGTHS, False, 3),
    )
    made = task_distributions(model, (PHONES, BOOKS), reading, SHAPE)
    assert {kind: distribution.domains for kind, distribution in made.items()} == {
        "classification": ("phones", "books"),
        "sentiment": ("phones",),
        "questions": ("books",),
        "recommendation": ("phones",),
    }
    ways = {"classification": 3, "sentiment": 2, "questions": 1}
    for kind, distribution in made.items():
        data = jax.tree.map(jnp.asarray, distribution.data)
        sampled = partial(distribution.sample, data, 0, 1, jax.random.key(0))
        support, query, context = jax.eval_shape(sampled)
        assert distribution.problem.way == {**ways, "questions": None}.get(kind)
        assert support["mask"].shape == (ways.get(kind, 1),)
        assert query["mask"].shape == (4 if kind in ways else 1,)
        if kind == "recommendation":
            assert context["products"]["tokens"].shape == (4, 6)
    assert set(task_distributions(model, (PHONES, BOOKS), reading, SHAPE, ["questions"])) == {
        "questions"
    }


@pytest.mark.slow
def test_episodes_of_many_users_are_for_joint_training(tokenizer):
    """Faults: joint training gets a user per episode though many are asked for, or all products
    though fewer are; an episode without support cannot be encoded; its loss is NaN or counts
    padding; another task than recommendation changes with the number of users."""
    model = model_of(vocabulary=tokenizer.size, dropout=0.0)
    reading = Reading(TextReader(tokenizer), LENGTHS, False, 3)
    shape = SHAPE._replace(users=3, candidates=3)
    made = task_distributions(model, (PHONES,), reading, shape)
    distribution = made["recommendation"]
    data = jax.tree.map(jnp.asarray, distribution.data)
    support, query, context = distribution.sample(data, 0, 0, jax.random.key(0))
    # The user took four of nine products, and the small shop has three of these.
    assert query["mask"].shape == (12,) and query["popularity"].shape == (12, 3)
    assert query["mask"].sum() == 9
    assert context["products"]["tokens"].shape == (3, 6)
    assert all(len(leaf) == 0 for leaf in support.values())
    asked = made["sentiment"].sample(
        jax.tree.map(jnp.asarray, made["sentiment"].data), 0, 1, jax.random.key(0)
    )
    assert asked.support["mask"].shape == (2,) and asked.query["mask"].shape == (4,)

    start, problem = drawn(model), distribution.problem
    loss = jax.jit(loss_of(problem))
    encoded = jax.eval_shape(partial(problem.encode, key=None), start, support, context)
    assert encoded["history"].shape == (0, 4, 8)
    found = loss(start, query, context)
    # The mean of the examples alone.
    alone = [query | {"mask": np.arange(12) == row} for row in np.flatnonzero(query["mask"])]
    rows = [loss(start, one, context) for one in alone]
    assert rows and np.isfinite(found)
    assert abs(loss(start, query | {"mask": np.ones(12, bool)}, context) - found) > 1e-4
    np.testing.assert_allclose(found, np.mean(rows), rtol=1e-4)


def test_families_that_cannot_be_are_errors(tokenizer):
    """Fault: an unknown task is passed over; too large a shape gives wrong episodes."""
    make = partial(
        task_distributions,
        MODEL,
        (PHONES, BOOKS),
        Reading(TextReader(tokenizer), LENGTHS, False, 3),
    )
    with pytest.raises(ValueError, match="unknown task 'ranking'; there are classif"):
        make(SHAPE, ["ranking"])
    with pytest.raises(EpisodeError, match="domain books, classification: 3-way 2-shot"):
        make(SHAPE._replace(shots=2))
    with pytest.raises(EpisodeError, match="recommendation: 4 candidates"):
        make(SHAPE._replace(shots=4), ["recommendation"])
