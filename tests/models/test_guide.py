import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaguide.models.encoder import transformer
from metaguide.models.guide import init_params
from metaguide.models.heads import ClassificationHead, RecommendationHead, unit
from metaguide.tasks import guide_model
from metaguide.types import OUT

GROUPS = {
    "text",
    "image",
    "fusion",
    "language",
    "decoder",
    "contrast",
    "classification",
    "sentiment",
    "questions",
    "recommendation",
}
WIDTH, WAY, VOCABULARY = 16, 5, 40
SIZES = {"vocabulary": VOCABULARY, "width": WIDTH, "layers": 1, "heads": 2, "length": 8}
TOKENS = jnp.array([[2, 9, 8, 3, 9, 7, 11, 0], [2, 6, 6, 29, 5, 9, 0, 0], [2, 3, 0, 0, 0, 0, 0, 0]])


@pytest.fixture(scope="module")
def guide():
    model = guide_model(transformer(**SIZES, channels=(4, 8), dropout=0.2), WAY)
    return model, init_params(model, jax.random.key(0))


def use(guide, *arguments, method, **keywords):
    model, params = guide
    run = functools.partial(model.apply, method=method, **keywords)
    return jax.jit(run)({"params": params}, *arguments)


def head(guide, task, name, *arguments):
    """Return what a head does; its name is static."""
    model, params = guide
    run = functools.partial(model.apply, method=lambda m, *given: m.head(task, name, *given))
    return jax.jit(run)({"params": params}, *arguments)


@pytest.fixture(scope="module")
def images():
    return jax.random.randint(jax.random.key(7), (3, 32, 32, 3), 0, 256).astype(jnp.uint8)


def test_init_covers_every_group(guide):
    """Catches a group that init forgets or names otherwise."""
    assert set(guide[1]) == GROUPS
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(guide[1]))


@pytest.mark.slow
def test_a_guide_without_pictures():
    """Catches picture parameters, or picture inputs let through, where there are none."""
    model = guide_model(transformer(**SIZES, channels=()))
    params = init_params(model, jax.random.key(0))
    assert set(params) == GROUPS - {"image", "decoder"}
    with pytest.raises(ValueError, match="image=False"):
        use((model, params), None, jnp.zeros((1, 32, 32, 3)), method="encode")


def test_nothing_to_encode(guide):
    """Catches an obscure failure where neither text nor picture is given."""
    with pytest.raises(ValueError, match="neither text nor image"):
        use(guide, method="encode")


@pytest.mark.slow
def test_rows_without_a_picture_are_text(guide, images):
    """Catches an absent picture's pixels in the vector, and a lost picture where there is one."""
    has_image = jnp.array([True, False, False])
    both = use(guide, TOKENS, images, has_image, method="encode")
    text = use(guide, TOKENS, method="encode")
    np.testing.assert_allclose(both.vector[1:], text.vector[1:], atol=1e-6)
    np.testing.assert_allclose(both.states, text.states, atol=1e-6)
    full = use(guide, TOKENS, images, method="encode").vector
    np.testing.assert_allclose(both.vector[0], full[0], atol=1e-6)
    assert np.abs(both.vector[0] - text.vector[0]).max() > 1e-2
    absent = use(guide, TOKENS, 255 - images, has_image, method="encode").vector
    np.testing.assert_array_equal(absent[1:], both.vector[1:])


@pytest.mark.slow
def test_vector_is_the_norm_of_the_mean(guide, images):
    """Catches a sum in place of a mean, padding in the mean, or a missing norm."""
    states = use(guide, TOKENS, method="text_states")
    count = np.array([7, 6, 2])
    text = np.stack([np.asarray(states[i, :n]).mean(0) for i, n in enumerate(count)])
    np.testing.assert_allclose(use(guide, TOKENS, method="text_vector"), text, atol=1e-5)
    picture = np.asarray(use(guide, images, method="image_vector"))
    for vector, found in [
        (picture, use(guide, None, images, method="encode").vector),
        ((text + picture) / 2, use(guide, TOKENS, images, method="encode").vector),
    ]:
        centred = vector - vector.mean(1, keepdims=True)
        expected = centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-6)
        np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.slow
def test_uint8_is_scaled(guide, images):
    """Catches pictures in [0, 255] that are taken for ones in [0, 1]."""
    floats = images.astype(jnp.float32) / 255
    for method in ("image_vector", "reconstruct", "contrast_image"):
        found = use(guide, images, method=method)
        np.testing.assert_allclose(found, use(guide, floats, method=method), atol=1e-6)


def test_language_logits_are_tied(guide):
    """Catches logits of another matrix than the embedding, or a bias that is not added."""
    model, params = guide
    states = jax.random.normal(jax.random.key(0), (2, 3, WIDTH))
    found = use(guide, states, method="language_logits")
    assert found.shape == (2, 3, VOCABULARY)
    embedding = params["text"]["embedding"]
    changed = {
        **params,
        "text": {**params["text"], "embedding": embedding.at[7].set(embedding[8])},
        "language": {
            **params["language"],
            "bias": params["language"]["bias"].at[7].set(3.0),
        },
    }
    moved = use((model, changed), states, method="language_logits")
    np.testing.assert_allclose(moved[..., 7], found[..., 8] + 3, atol=1e-5)
    np.testing.assert_allclose(moved[..., 8:], found[..., 8:], atol=1e-6)


@pytest.mark.slow
def test_contrast_vectors_are_unit_vectors(guide, images):
    """Catches similarities that grow with length, and an unguarded norm of 0."""
    for vectors in (
        use(guide, TOKENS, method="contrast_text"),
        use(guide, images, method="contrast_image"),
    ):
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(use(guide, method="temperature"), 0.07, rtol=1e-5)
    gradient = jax.hessian(lambda x: unit(x).sum())(jnp.zeros(3))
    assert np.isfinite(gradient).all()


def test_no_names_are_uniform_logits(guide):
    """Catches slots that favour a class before any shot, and names used where there are none."""
    vector, names = jax.random.normal(jax.random.key(0), (2, 4, WIDTH))
    logits = head(guide, "classification", "__call__", vector, names, jnp.zeros(4, bool))
    np.testing.assert_array_equal(logits, np.zeros((4, 4)))


@pytest.mark.slow
def test_classification_head_is_its_equation(guide):
    """Catches a similarity that is not a cosine, or slots and biases of the wrong class."""
    model, params = guide
    keys = jax.random.split(jax.random.key(1), 5)
    vector, names = (
        jax.random.normal(k, (n, WIDTH)) for k, n in zip(keys[:2], (3, 4), strict=True)
    )
    mine = dict(params["classification"])
    mine["slots"] = jax.random.normal(keys[2], (WAY, WIDTH))
    mine["bias"] = jax.random.normal(keys[3], (WAY,))
    mine["name"] = {"kernel": jax.random.normal(keys[4], (WIDTH, WIDTH))}
    has_names = jnp.array([True, False, True, True])
    changed = (model, {**params, "classification": mine})
    found = head(changed, "classification", "__call__", vector, names, has_names)
    for i in range(3):
        for c in range(4):
            projected = names[c] @ mine["name"]["kernel"]
            cosine = vector[i] @ projected
            cosine /= np.linalg.norm(vector[i]) * np.linalg.norm(projected)
            expected = (
                10 * cosine * float(has_names[c]) + vector[i] @ mine["slots"][c] + mine["bias"][c]
            )
            np.testing.assert_allclose(found[i, c], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_sketches_add_to_the_logits_of_classes_that_have_names():
    """Faults: the scale of the sketches is not read, or not as a logarithm, or is that of the
    vectors; a class without a name is compared by words; examples and names change places; a
    hidden vector makes NaN, in the logits or in the gradient."""
    rng = np.random.default_rng(0)
    one = ClassificationHead(WAY)
    arrays = [rng.normal(size=size) for size in ((3, WIDTH), (4, WIDTH), (3, 20), (4, 20))]
    vector, names, of_examples, of_names = (jnp.asarray(leaf, jnp.float32) for leaf in arrays)
    names = names.at[0].set(0)
    has_names = jnp.array([True, False, True, True])
    lexical = of_examples, of_names
    variables = one.init(jax.random.key(0), vector, names, has_names, lexical)
    scales = {"log_lexical": jnp.float32(0.7), "log_scale": jnp.float32(1.9)}
    given = {"params": {**variables["params"], **scales}}
    plain = one.apply(given, vector, names, has_names)
    found = one.apply(given, vector, names, has_names, lexical)
    words = np.exp(0.7) * arrays[2] @ arrays[3].T * np.array([1, 0, 1, 1])
    np.testing.assert_allclose(found - plain, words, rtol=1e-4, atol=1e-4)
    assert not np.any(plain[:, :2])  # hidden, and without a name; slots are 0
    assert variables["params"]["log_lexical"] == pytest.approx(np.log(10))

    def total(given, names):
        return jnp.square(one.apply(given, vector, names, has_names, lexical)).sum()

    slopes = jax.grad(total, (0, 1))(given, names)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slopes))


def test_too_many_classes(guide):
    """Catches slots silently clamped."""
    names = jnp.ones((WAY + 1, WIDTH))
    with pytest.raises(ValueError, match="6 classes, but the guide has slots for 5"):
        head(guide, "classification", "__call__", names, names, jnp.ones(WAY + 1, bool))


def test_stars_are_between_one_and_five(guide):
    """Catches a regression that leaves the scale."""
    vector = 1000 * jax.random.normal(jax.random.key(0), (20, WIDTH))
    logits, stars = head(guide, "sentiment", "__call__", vector)
    assert logits.shape == (20, 2) and stars.shape == (20,)
    assert stars.min() >= 1 and stars.max() <= 5 and stars.max() - stars.min() > 3


def test_spans_stay_in_the_text(guide):
    """Catches answers in the question, the separator or padding, and a lost "no answer"."""
    states = jax.random.normal(jax.random.key(0), (3, 8, WIDTH))
    tokens = TOKENS.at[0, 6].set(3)
    allowed = np.zeros((3, 8), bool)
    allowed[:, 0] = True
    allowed[0, 4:6] = True
    for scores in head(guide, "questions", "__call__", states, tokens):
        np.testing.assert_array_equal(scores != OUT, allowed)
        assert np.abs(scores[allowed]).max() < 100


def test_start_and_end_differ(guide):
    """Catches one score used for both ends."""
    states = jax.random.normal(jax.random.key(0), (3, 8, WIDTH))
    start, end = head(guide, "questions", "__call__", states, TOKENS)
    assert np.abs(start - end).max() > 1e-2


@pytest.fixture(scope="module")
def history():
    return jax.random.normal(jax.random.key(3), (6, WIDTH)), jnp.array([1, 1, 0, 1, 1, 0], bool)


@pytest.mark.slow
def test_users_do_not_see_the_future(guide, history):
    """Catches a row that reads a product bought later, or one row too few or too many."""
    vectors, mask = history
    users = head(guide, "recommendation", "users", vectors, mask)
    assert users.shape == (7, WIDTH)
    for t in range(6):
        later = head(guide, "recommendation", "users", vectors.at[t:].set(9.0), mask)
        np.testing.assert_allclose(later[: t + 1], users[: t + 1], atol=1e-6)
        if mask[t]:
            assert np.abs(later[t + 1] - users[t + 1]).max() > 1e-2


def test_padding_of_a_history_takes_no_time(guide, history):
    """Catches ages counted in rows instead of purchases, and masked products in the mean."""
    vectors, mask = history
    padded = head(guide, "recommendation", "users", vectors, mask)
    dense = head(guide, "recommendation", "users", vectors[mask], jnp.ones(4, bool))
    rows = np.concatenate([[0], 1 + np.flatnonzero(mask)])
    np.testing.assert_allclose(padded[rows], dense, atol=1e-5)
    np.testing.assert_allclose(padded[3], padded[2], atol=1e-5)


def test_users_are_the_equation(guide, history):
    """Catches weights that grow with age, or groups of channels that share a rate."""
    model, params = guide
    mine = params["recommendation"]
    vectors, mask = history
    silent = {**mine, "out": jax.tree.map(jnp.zeros_like, mine["out"])}
    changed = (model, {**params, "recommendation": silent})
    users = np.asarray(head(changed, "recommendation", "users", vectors, mask))
    products = np.asarray(head(guide, "recommendation", "products", vectors[mask]))
    items = np.concatenate([mine["start"][None], products])
    rates = np.repeat(np.exp(mine["log_rate"]), WIDTH // 4)
    for t, row in enumerate(users[np.concatenate([[0], 1 + np.flatnonzero(mask)])]):
        weights = np.exp(-np.arange(t, -1, -1)[:, None] * rates)
        np.testing.assert_allclose(
            row, (weights * items[: t + 1]).sum(0) / weights.sum(0), atol=1e-5
        )


def test_empty_history_has_a_finite_gradient(guide):
    """Catches a mean over nothing."""
    model, params = guide

    def total(params):
        vectors, mask = jnp.zeros((3, WIDTH)), jnp.zeros(3, bool)
        return model.apply(
            {"params": params}, "recommendation", "users", vectors, mask, method="head"
        ).sum()

    gradient = jax.jit(jax.grad(total))(params)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradient))
    assert np.abs(gradient["recommendation"]["start"]).max() > 0


@pytest.mark.slow
def test_dropout_is_a_function_of_its_key(guide):
    """Catches dropout that is off where asked for, on where not, or not reproducible."""

    def run(key):
        return use(
            guide, TOKENS, method="encode", deterministic=False, rngs={"dropout": key}
        ).vector

    one = run(jax.random.key(0))
    np.testing.assert_array_equal(one, run(jax.random.key(0)))
    assert np.abs(one - run(jax.random.key(1))).max() > 1e-3
    assert np.abs(one - use(guide, TOKENS, method="encode").vector).max() > 1e-3


@pytest.mark.slow
def test_second_order_by_task_is_finite_and_reaches_every_encoder(guide, images):
    """Catches NaN, or a cut, in the gradient through an inner step with weights of each task."""
    model, params = guide

    def loss(params, tokens):
        vector, states, _ = model.apply({"params": params}, tokens, images, method="encode")
        names = vector[:2]
        logits = model.apply(
            {"params": params},
            "classification",
            "__call__",
            vector,
            names,
            jnp.ones(2, bool),
            method="head",
        )
        start, end = model.apply(
            {"params": params}, "questions", "__call__", states, tokens, method="head"
        )
        _, stars = model.apply({"params": params}, "sentiment", "__call__", vector, method="head")
        users = model.apply(
            {"params": params}, "recommendation", "users", vector, jnp.ones(3, bool), method="head"
        )
        products = model.apply(
            {"params": params}, "recommendation", "products", vector, method="head"
        )
        return (
            jnp.mean(jax.nn.log_softmax(logits)[:, 0])
            + jnp.mean(jax.nn.log_softmax(start)[:, 0] + jax.nn.log_softmax(end)[:, 0])
            + jnp.mean(stars)
            + jnp.mean(jax.nn.log_softmax(users @ products.T)[:, 1])
        )

    def adapted(params, tokens):
        step = jax.grad(loss)(params, tokens)
        return loss(jax.tree.map(lambda p, g: p - 0.1 * g, params, step), tokens)

    def total(params):
        tasks = jnp.stack([TOKENS, TOKENS[::-1]])
        return jnp.mean(jax.vmap(adapted, (None, 0))(params, tasks))

    gradient = jax.jit(jax.grad(total))(params)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradient))
    for group in ("text", "image", "fusion", "classification", "sentiment", "questions"):
        assert max(np.abs(x).max() for x in jax.tree.leaves(gradient[group])) > 0, group


@pytest.mark.slow
def test_bfloat16_heads(guide, images):
    """Catches a head that mixes float32 into a bfloat16 computation."""
    model, params = guide
    half = transformer(**SIZES, channels=(4, 8), dtype=jnp.bfloat16)
    low = (guide_model(half, WAY), params)
    vector, states, _ = use(low, TOKENS, images, method="encode")
    assert vector.dtype == states.dtype == jnp.bfloat16
    ones = jnp.ones(3, bool)
    for found, expected in [
        (
            head(low, "classification", "__call__", vector, vector, ones),
            head(guide, "classification", "__call__", *[vector.astype(jnp.float32)] * 2, ones),
        ),
        (
            head(low, "recommendation", "users", vector, ones),
            head(guide, "recommendation", "users", vector.astype(jnp.float32), ones),
        ),
    ]:
        np.testing.assert_allclose(found.astype(jnp.float32), expected, atol=0.3)


def test_recencies_of_any_size_are_finite():
    """Fault: e^x of the learned rate or scale of sketches overflows, and times 0 it is NaN."""
    head = RecommendationHead(8)
    masks = [[True, True, False, True], [False] * 4]
    history, mask = jnp.ones((4, 8)), jnp.asarray(masks[0])
    params = head.init(jax.random.key(0), history, mask, method="users")["params"]

    def total(given, mask):
        return head.apply({"params": given}, mask, method="recencies").sum()

    slope_of = jax.jit(jax.value_and_grad(total))
    for name in ("log_lexical", "log_lexical_rate"):
        for size in (-1e30, -100.0, 100.0, 1e30):
            given = {**params, name: jnp.float32(size)}
            for mask in masks:
                value, slope = slope_of(given, jnp.asarray(mask))
                assert np.isfinite(value)
                assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slope))


@pytest.mark.slow
def test_rates_and_scales_of_any_size_are_finite():
    """Fault: e^x of a learned logarithm overflows, and times 0 it is NaN."""
    head = RecommendationHead(8)
    history, mask = jnp.ones((4, 8)), jnp.asarray([True, True, False, True])
    variables = head.init(jax.random.key(0), history, mask, method="users")
    for size in (-1e30, -100.0, 100.0, 1e30):
        rate = jnp.full_like(variables["params"]["log_rate"], size)
        given = {"params": {**variables["params"], "log_rate": rate}}

        def total(given):
            return head.apply(given, history, mask, method="users").sum()

        value, slope = jax.value_and_grad(total)(given)
        assert np.isfinite(value)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slope))


def test_a_meta_gradient_through_an_empty_history_is_finite():
    """Fault: MAML's meta-gradient is NaN, since the weights of a user without products are divided
    by a tiny number, whose second derivatives overflow."""
    head, sketches, mask = RecommendationHead(8), jnp.ones((3, 4)), jnp.zeros(3, bool)
    params = head.init(jax.random.key(0), jnp.ones((3, 8)), ~mask, method="users")["params"]

    def loss(params, sketches):
        weights = head.apply({"params": params}, mask, method="recencies")
        return jax.nn.logsumexp(sketches @ (weights @ sketches))

    def after_a_step(params, sketches):
        slopes = jax.grad(loss, argnums=(0, 1))(params, sketches)
        moved = jax.tree.map(lambda one, slope: one - 0.1 * slope, (params, sketches), slopes)
        return loss(*moved)

    for leaf in jax.tree.leaves(jax.jit(jax.grad(after_a_step, argnums=(0, 1)))(params, sketches)):
        assert jnp.isfinite(leaf).all()
