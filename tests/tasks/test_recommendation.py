"""Recommendation in training and in serving: one user, one meaning of a shot."""

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
from metaguide.models.encoder import transformer
from metaguide.models.guide import init_params
from metaguide.tasks import Reading, Serving, Shape, guide_model, task_distributions

PRODUCTS = tuple(Product(f"p{i}", f"a {'red' if i % 2 else 'blue'} thing {i}") for i in range(8))
USER = tuple(f"p{i}" for i in (6, 1, 3, 0, 5, 2))


@pytest.mark.parametrize("shots", [0, 3, pytest.param(9, marks=pytest.mark.slow)])
def test_a_user_is_served_as_training_adapts(shots):
    """Fault: training adapts to other products of a user than serving does, such as the first ones
    instead of the last, or with another history."""
    domain = Domain(
        "shop",
        PRODUCTS,
        interactions=tuple(Interaction("u", one, float(t)) for t, one in enumerate(USER)),
    )
    tokenizer = Tokenizer.train([product.title for product in PRODUCTS] * 2, 300)
    model = guide_model(transformer(tokenizer.size, 8, layers=1, heads=2, length=8, channels=()))
    lengths, rng = Lengths(8, 8, 4), np.random.default_rng(0)
    shapes = jax.eval_shape(partial(init_params, model), jax.random.key(0))
    meta = {"params": jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), shapes)}

    reading, shape = (
        Reading(TextReader(tokenizer), lengths, False, 4),
        Shape(2, max(1, shots), 1, None),
    )
    distribution = task_distributions(model, (domain,), reading, shape, ["recommendation"])[
        "recommendation"
    ]
    episode = distribution.sample(
        jax.tree.map(jnp.asarray, distribution.data), 0, shots, jax.random.key(1)
    )
    adaptation = adaptation_of("head-only" if shots else "zero-shot")
    learner = adaptation.tuned_to(distribution.problem, 0.1, 2)

    @jax.jit
    def asked(meta, episode):
        state, _ = learner.adapt(meta, episode.support, episode.context, None)
        return learner.predict(state, episode.query, episode.context)

    outputs = asked(meta, episode)
    trained = np.where(outputs["candidates"][0], outputs["scores"][0], -np.inf)

    serving = {"recommendation": Serving(meta, "head-only", 0.1, 2)}
    guide = Guide(model, Reading(TextReader(tokenizer), lengths, model.image, 4), serving)
    known = USER[:-1][-shots:] if shots else ()
    (ranking,) = guide.adapt(domain, shots=shots).predict([History("u", known)])
    assert len(ranking.rows) == np.isfinite(trained).sum() == len(PRODUCTS) - len(known)
    np.testing.assert_allclose(ranking.scores, trained[ranking.rows], rtol=2e-4, atol=2e-5)
