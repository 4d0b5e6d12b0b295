"""What words say of a review, fitted on the sources; and the tokens that training hides."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import check_grad, minimize

from metaguide.data.catalogue import Domain, Review
from metaguide.data.encoding import Lengths, TextReader
from metaguide.data.ngrams import hashed_ngrams
from metaguide.models.encoder import transformer
from metaguide.models.guide import init_params
from metaguide.models.transformer import MASK, SPECIALS
from metaguide.tasks import Reading, guide_model
from metaguide.tasks.problem import hide_tokens, use_head
from metaguide.tasks.sentiment import HEAD_WEIGHT, fit_polarity, sentiment
from metaguide.types import HASHES

READING = Reading(TextReader(None, 64), Lengths(8, 16, 4), images=False, max_answer_tokens=3)
WORDS = ("superb", "fine", "dull", "awful", "phone", "shoe", "the", "it")


def domain(name, texts):
    """A domain of reviews, given as (text, whether it is positive)."""
    reviews = tuple(
        Review(f"{name}{i}", text, 5.0 if good else 1.0) for i, (text, good) in enumerate(texts)
    )
    return Domain(name, reviews=reviews)


def word(text):
    """The number of the only word of a text."""
    row = hashed_ngrams([text])[0]
    return row[row % 2 == 0][0]


def random_domains():
    """Two domains whose reviews are random words, positive more often with the first two."""
    rng = np.random.default_rng(0)
    texts = []
    for number in range(120):
        said = rng.choice(WORDS, rng.integers(1, 6), replace=False)
        score = sum({"superb": 2, "fine": 1, "dull": -1, "awful": -2}.get(one, 0) for one in said)
        texts.append((" ".join((*said, f"n{number}")), score + rng.normal() > 0))
    return [domain("one", texts[:60]), domain("other", texts[60:])]


@pytest.mark.slow
def test_polarities_are_the_minimum_of_the_penalised_loss():
    """Faults: runs of characters are fitted too; the weights of rare words, the root of the number
    of words or the penalty are other than they are said to be; the labels are turned round."""
    domains, penalty = random_domains(), 0.5
    found = fit_polarity(domains, READING, penalty)
    assert found.shape == (HASHES,) and found.dtype == np.float32
    reviews = [one for part in domains for one in part.reviews]
    rows = hashed_ngrams([one.text for one in reviews])
    grams = [set(row[(row > 0) & (row % 2 == 0)]) for row in rows]
    label = np.array([one.stars > 3 for one in reviews])
    every = sorted(set().union(*grams))
    count = np.array([sum(gram in row for row in grams) for gram in every])
    weight = np.where(count < 2, 0, 1 + np.log((1 + len(grams)) / (1 + count)))
    x = np.array([[gram in row for gram in every] for row in grams]) / np.sqrt(
        [[len(row)] for row in grams]
    )

    def loss(theta):
        margin = (x @ (weight * theta[1:]) + theta[0]) * np.where(label, 1, -1)
        return np.logaddexp(0, -margin).sum() + penalty / 2 * theta[1:] @ theta[1:]

    def slope(theta):
        margin = (x @ (weight * theta[1:]) + theta[0]) * np.where(label, 1, -1)
        pull = -np.where(label, 1, -1) / (1 + np.exp(margin))
        return np.r_[pull.sum(), weight * (x.T @ pull) + penalty * theta[1:]]

    start = np.full(len(every) + 1, 0.1)
    assert check_grad(loss, slope, start) < 1e-4
    best = minimize(loss, start, jac=slope, options={"gtol": 1e-6}).x[1:] * weight
    np.testing.assert_allclose(found[every], best, rtol=0.03, atol=0.03)
    assert not np.delete(found, every).any()
    assert found[word("superb")] > found[word("phone")] > found[word("awful")]


def test_reviews_of_one_sentiment_say_nothing():
    """Fault: the fit fails where all source reviews are positive."""
    assert not fit_polarity([domain("a", [("good", True), ("fine", True)])], READING).any()


@pytest.fixture(scope="module")
def model_and_params():
    encoder = transformer(20, 8, layers=1, heads=2, length=6, channels=(), buckets=12)
    model = guide_model(encoder, way=3)
    return model, init_params(model, jax.random.key(0))


@pytest.mark.slow
def test_a_prediction_is_the_sum_of_two_experts_and_the_loss_reads_one(model_and_params):
    """Faults: polarities are not read, count twice or for the other class; they are trained, or
    adapt; the head leaves to them what it could learn, or counts as much as without them."""
    model, params = model_and_params
    problem = sentiment(model)
    grams = jnp.asarray([[2, 4, 3], [6, 0, 0]], jnp.int32)
    polarity = jnp.zeros(HASHES).at[jnp.array([2, 4, 3, 6])].set(jnp.array([1.0, 2, 50, -3]))
    told = {**params, "grams": {**params["grams"], "polarity": polarity}}
    batch = {
        "tokens": jnp.asarray([[2, 7, 8], [2, 9, 0]], jnp.int32),
        "grams": grams,
        "label": jnp.asarray([1, 0], jnp.int32),
        "stars": jnp.asarray([5.0, 1.0]),
        "mask": jnp.ones(2, bool),
    }

    @jax.jit
    def outputs(params):
        encoded = problem.encode(params, batch, (), None)
        loss, _ = problem.loss(params, encoded, batch, ())
        return problem.predict(params, encoded, batch, ())["logits"], loss

    (plain, before), (both, after) = outputs(params), outputs(told)
    vector = problem.encode(params, batch, (), None)["vector"]
    said = np.diff(both - plain, axis=1)[:, 0]
    np.testing.assert_allclose(said, [3 / np.sqrt(2), -3], rtol=1e-4)
    np.testing.assert_allclose((both - plain).sum(1), 0, atol=1e-5)
    assert before == after
    head = use_head(model, params, "sentiment", "__call__", vector)[0]
    np.testing.assert_allclose(plain, HEAD_WEIGHT * head, rtol=1e-4)
    assert "grams" not in (*problem.body, *problem.head)


def test_training_hides_a_share_of_the_tokens_and_no_special_one():
    """Faults: none or all are hidden, the same ones in every text; padding becomes a token, or the
    separator of a question and its passage is lost."""
    tokens = np.tile(np.r_[2, np.arange(SPECIALS, 25), 3, 0, 0], (400, 1)).astype(np.int32)
    found = np.asarray(hide_tokens(jax.random.key(0), jnp.asarray(tokens), 0.2))
    assert found.dtype == np.int32
    special = tokens < SPECIALS
    np.testing.assert_array_equal(found[special], tokens[special])
    hidden = found != tokens
    assert set(found[hidden].tolist()) == {MASK}
    np.testing.assert_allclose(hidden[:, 1:21].mean(0), 0.2, atol=0.08)
    assert len({tuple(row) for row in hidden}) > 350


@pytest.mark.parametrize("buckets", [0, 12])
def test_tokens_are_hidden_with_a_key_and_only_then(buckets):
    """Faults: evaluation hides tokens; training hides none."""
    encoder = transformer(20, 8, 1, 2, 6, dropout=0.0, channels=(), buckets=buckets)
    model = guide_model(encoder, way=3)
    params, problem = init_params(model, jax.random.key(0)), sentiment(model)
    batch = {"tokens": jnp.asarray([[2, 7, 8, 9, 10, 11]] * 20, jnp.int32)}
    encode = jax.jit(lambda key: problem.encode(params, batch, (), key)["vector"])
    rows = np.asarray(encode(jax.random.key(0)))
    assert len(np.unique(rows.round(4), axis=0)) > 3
    seen = np.asarray(jax.jit(lambda: problem.encode(params, batch, (), None)["vector"])())
    assert len(np.unique(seen.round(4), axis=0)) == 1
