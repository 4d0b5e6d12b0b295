"""Recommendation in training and in serving: one user, one meaning of a shot, and one score."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaguide.data.catalogue import Domain, Interaction, Product
from metaguide.data.encoding import Lengths, TextReader
from metaguide.data.histories import History
from metaguide.data.tokenizer import Tokenizer
from metaguide.guide import Guide
from metaguide.methods import adaptation_of
from metaguide.models.encoder import Encoder, transformer
from metaguide.models.guide import init_params
from metaguide.tasks import Reading, Serving, Shape, guide_model, task_distributions
from metaguide.tasks.problem import encode_examples, use_head
from metaguide.tasks.recommendation import recommendation
from metaguide.types import OUT

PRODUCTS = tuple(Product(f"p{i}", f"a {'red' if i % 2 else 'blue'} thing {i}") for i in range(8))
USER = tuple(f"p{i}" for i in (6, 1, 3, 0, 5, 2))
OTHERS = {"v": ("p3", "p1", "p7", "p2"), "w": ("p3", "p7", "p6"), "x": ("p3", "p5", "p4")}
LENGTHS, BUCKETS = Lengths(8, 8, 4), 64


def events(taken):
    """Interactions of users who took these products, in this order."""
    return tuple(
        Interaction(user, product, float(time))
        for user, products in taken.items()
        for time, product in enumerate(products)
    )


def random_params(model):
    """Parameters none of which is 0."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(partial(init_params, model), jax.random.key(0))
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), shapes)


@pytest.mark.parametrize(
    "shots, buckets",
    [
        *((0, 0), (3, 0), (3, BUCKETS)),
        *(pytest.param(*slow, marks=pytest.mark.slow) for slow in ((0, BUCKETS), (9, 0))),
    ],
)
def test_a_user_is_served_as_training_adapts(shots, buckets):
    """Faults: training adapts to other products of a user than serving does, such as the first ones
    instead of the last, or with another history; popularity counts the user's own products in one
    of them, or the support has another popularity than the query; serving has no sketches."""
    # A shop knows what users took before what training asks for.
    known = USER[:-1][-shots:] if shots else ()
    domain = Domain("shop", PRODUCTS, interactions=events({"u": USER, **OTHERS}))
    before = {user: products[:-1] for user, products in OTHERS.items()}
    shop = replace(domain, interactions=events({"u": known, **before}))
    tokenizer = Tokenizer.train([product.title for product in PRODUCTS] * 2, 300)
    encoder = transformer(
        tokenizer.size, 8, layers=1, heads=2, length=8, channels=(), buckets=buckets
    )
    model = guide_model(encoder)
    meta = {"params": random_params(model)}

    reading = Reading(TextReader(tokenizer, buckets), LENGTHS, False, 4)
    shape = Shape(2, max(1, shots), 1, None)
    distribution = task_distributions(model, (domain,), reading, shape, ["recommendation"])[
        "recommendation"
    ]
    data = jax.tree.map(jnp.asarray, distribution.data)
    sample = jax.jit(lambda seed: distribution.sample(data, 0, shots, jax.random.key(seed)))
    episodes = (sample(seed) for seed in range(100))
    episode = next(one for one in episodes if one.query["id"].item() == 0)  # users are sorted
    adaptation = adaptation_of("head-only" if shots else "zero-shot")
    learner = adaptation.tuned_to(distribution.problem, 0.1, 2)

    @jax.jit
    def asked(meta, episode):
        state, _ = learner.adapt(meta, episode.support, episode.context, None)
        return learner.predict(state, episode.query, episode.context)

    outputs = asked(meta, episode)
    trained = np.where(outputs["candidates"][0], outputs["scores"][0], -np.inf)

    serving = {"recommendation": Serving(meta, "head-only", 0.1, 2)}
    guide = Guide(model, reading, serving)
    (ranking,) = guide.adapt(shop, shots=shots).predict([History("u", known)])
    assert len(ranking.rows) == np.isfinite(trained).sum() == len(PRODUCTS) - len(known)
    np.testing.assert_allclose(ranking.scores, trained[ranking.rows], rtol=2e-4, atol=2e-5)


WIDTH, MANY, VECTOR = 8, 9, 4


@pytest.fixture(scope="module", params=[0, BUCKETS], ids=["vectors", "sketches"])
def catalogue(request):
    """A guide on vectors, and maybe n-grams; its parameters; the products; and their encoding."""
    rng = np.random.default_rng(1)
    encoder = Encoder(None, 0, WIDTH, 0, pretrained=VECTOR, buckets=request.param)
    model = guide_model(encoder)
    products = {"vector": jnp.asarray(rng.normal(size=(MANY, VECTOR)), jnp.float32)}
    if request.param:
        products["grams"] = jnp.asarray(rng.integers(0, request.param, (MANY, 5)), jnp.int32)
    params = random_params(model)
    return model, params, products, encode_examples(model, params, products, None)


HISTORIES = [
    ([], [False] * 4),
    ([4], [True] + [False] * 3),
    ([4, 0, 7, 2], [True] * 4),
    ([5, 0, 0, 3], [True, False, False, True]),
    ([0, 0, 1, 6], [False, False, True, True]),
]


def batch_of():
    """Users with these histories, some padded where there is no end, and popularity."""
    rng = np.random.default_rng(2)
    rows = np.array([row + [0] * (4 - len(row)) for row, _ in HISTORIES], np.int32)
    batch = {
        "history": rows,
        "history_mask": np.array([mask for _, mask in HISTORIES]),
        "popularity": rng.integers(0, 30, (len(HISTORIES), MANY)).astype(np.int32),
    }
    return jax.tree.map(jnp.asarray, batch)


def expected_scores(catalogue, batch):
    """The equation of `RecommendationHead`, by loops in float64; the vectors are the head's."""
    model, params, _, encoding = catalogue
    head = {name: np.asarray(leaf, float) for name, leaf in params["recommendation"].items()
            if not isinstance(leaf, dict)}  # fmt: skip
    use = partial(use_head, model, params, "recommendation")
    seen = np.asarray(use("products", encoding.vector), float)
    scores = np.full((len(HISTORIES), MANY), OUT)
    for row in range(len(HISTORIES)):
        mask = np.asarray(batch["history_mask"][row])
        mine = np.asarray(batch["history"][row])[mask]
        user = use("user", encoding.vector[mine], jnp.ones(len(mine), bool))
        for product in set(range(MANY)) - set(mine.tolist()):
            score = np.asarray(user, float) @ seen[product] / np.sqrt(WIDTH)
            if encoding.lexical is not None and len(mine):
                sketches = np.asarray(encoding.lexical, float)
                rate = np.exp(head["log_lexical_rate"])
                weights = [np.exp(-rate * age) for age in range(len(mine) - 1, -1, -1)]
                mean = sum(
                    weight * sketches[one] for weight, one in zip(weights, mine, strict=True)
                )
                score += np.exp(head["log_lexical"]) * (mean / sum(weights)) @ sketches[product]
            taken = float(batch["popularity"][row, product])
            scores[row, product] = score + head["popularity"] * np.log(1 + taken)
    return scores


@pytest.mark.slow
@pytest.mark.parametrize("place", ["episode", "served"])
def test_scores_are_the_equation(catalogue, place):
    """Faults: the sketches of old products weigh more than those of new ones, or the sum is no
    mean; padding ages a product, or is product 0; someone without products has a sketch; a learned
    scale or rate is not read, or is read as it is and not as a logarithm; popularity is that of
    another user, is no logarithm, or of 0 is not finite; what a user has is scored; serving, on
    products that are encoded already, leaves one of the three parts out."""
    model, params, products, encoding = catalogue
    context = {"products": products, "candidates": jnp.ones(MANY, bool)}
    if place == "served":
        ready = {"vectors": encoding.vector, "lexical": encoding.lexical}
        context = {"candidates": context["candidates"]}
        context |= {name: leaf for name, leaf in ready.items() if leaf is not None}
    problem, batch = recommendation(model), batch_of()

    @jax.jit
    def outputs(params, batch, context):
        return problem.predict(params, problem.encode(params, batch, context, None), batch, context)

    found = np.asarray(outputs(params, batch, context)["scores"])
    expected = expected_scores(catalogue, batch)
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=1e-4)


def test_users_who_took_nothing_have_no_sketch_and_a_finite_gradient(catalogue):
    """Fault: the mean of no sketches is NaN, or its gradient is, which one such user in a batch is
    enough for."""
    model, params, products, _ = catalogue
    problem, batch = recommendation(model), batch_of()
    batch = {**batch, "item": jnp.full(len(HISTORIES), 8), "mask": jnp.ones(len(HISTORIES), bool)}
    context = {"products": products, "candidates": jnp.ones(MANY, bool)}

    @jax.jit
    @jax.grad
    def gradient(params):
        encoded = problem.encode(params, batch, context, None)
        return problem.loss(params, encoded, batch, context)[0]

    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient(params)))


def served_guide():
    """A guide on n-grams whose head is at its start, but for random embeddings."""
    model = guide_model(Encoder(None, 0, WIDTH, 0, buckets=BUCKETS))
    params = init_params(model, jax.random.key(0))
    params = {**params, "grams": random_params(model)["grams"]}
    serving = {"recommendation": Serving({"params": params}, "head-only", 0.1, 2)}
    return Guide(model, Reading(TextReader(None, BUCKETS), LENGTHS, False, 4), serving)


@pytest.mark.slow
def test_a_shop_is_served_with_its_popularity():
    """Faults: serving does not count what users took, leaves out their last products as training
    has to, or counts as two who took a product twice; a user's own products count as others', or
    below zero where a shop does not count them, which is not finite."""
    guide = served_guide()
    twice = (*events(OTHERS), Interaction("v", "p3", 9.0))
    shop = Domain("shop", PRODUCTS, interactions=twice)
    counts = [sum(f"p{i}" in one for one in OTHERS.values()) for i in range(8)]
    context = guide.adapt(shop, shots=0).adapted["recommendation"].context.context
    assert context["popularity"].tolist() == counts

    # Someone who took what nobody else did is ranked alike whether or not that is counted.
    for shots in (0, 2):
        mine = ("p0",)
        more = replace(shop, interactions=(*twice, *events({"new": mine})))
        (new,), (counted,) = (
            guide.adapt(one, shots=shots).predict([History("new", mine)]) for one in (shop, more)
        )
        assert np.isfinite(new.scores).all() and new == counted
    lone = replace(shop, interactions=())
    (plain,), (popular,) = (
        guide.adapt(one, shots=0).predict([History("new", ("p0",))]) for one in (lone, shop)
    )
    by_row = [dict(zip(one.rows.tolist(), one.scores, strict=True)) for one in (plain, popular)]
    for row in range(1, 8):
        difference = by_row[1][row] - by_row[0][row]
        np.testing.assert_allclose(difference, np.log(1 + counts[row]), atol=1e-4)


def test_a_top_is_the_beginning_of_the_whole_ranking_and_ties_keep_their_order():
    """Faults: of products with the same score, others than the first are in the top; a product that
    the user has is counted among the best; the worst are taken."""
    alike = [Product(f"p{i}", f"word {i % 3}") for i in range(12)]
    adapted = served_guide().adapt(Domain("shop", tuple(alike)), shots=0)
    user = [History("new", ("p4", "p7"))]
    (whole,) = adapted.predict(user)
    tied = len(whole.scores) - len(set(whole.scores.tolist()))
    assert tied >= 6 and (np.diff(whole.scores) <= 0).all()
    assert not {4, 7} & {*whole.rows.tolist()}
    pairs = list(zip(-whole.scores, whole.rows, strict=True))
    assert pairs == sorted(pairs)
    for top in range(1, 13):
        (found,) = adapted.predict(user, top=top)
        assert found.rows.tolist() == whole.rows[:top].tolist()
        assert found.scores.tolist() == whole.scores[:top].tolist()
