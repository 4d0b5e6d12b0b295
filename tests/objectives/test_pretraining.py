from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaguide.data.tokenizer import CLS, MASK
from metaguide.models.encoder import transformer
from metaguide.models.guide import init_params
from metaguide.objectives.pretraining import denoising, image_text, masked_language, text_text
from metaguide.tasks import guide_model

ROWS, LENGTH, VOCABULARY = 6, 6, 20
ENCODER = partial(
    transformer, VOCABULARY, width=8, layers=1, heads=2, length=LENGTH, channels=(2, 4)
)
MODEL = guide_model(ENCODER(dropout=0.1), way=2)
OBJECTIVES = {
    "masked language": (
        masked_language(MODEL, 8, mask_id=MASK, mask_rate=0.3),
        {"text", "language"},
        0.5,
    ),
    "denoising": (denoising(MODEL, 4, sigma=0.1, occlusion=8), {"image", "decoder"}, 2.0),
    "image and text": (image_text(MODEL, 4), {"text", "image", "contrast"}, 0.3),
    "text and text": (text_text(MODEL, 4), {"text", "contrast"}, 0.1),
}
every = pytest.mark.parametrize("name", OBJECTIVES)


def drawn(model):
    """Parameters drawn by numpy: the compilation of `init_params` would take most of this file."""
    shapes = jax.eval_shape(partial(init_params, model), jax.random.key(0))
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        if leaf.ndim < 2:
            fixed = {"scale": 1.0, "log_temperature": -2.0}
            return jnp.full(leaf.shape, fixed.get(path[-1].key, 0.0))
        return jnp.asarray(rng.normal(size=leaf.shape) / leaf.shape[-2] ** 0.5, leaf.dtype)

    return jax.tree.map_with_path(draw, shapes)


@cache
def meta():
    return {"params": drawn(MODEL)}


@cache
def data():
    rng = np.random.default_rng(0)
    tokens = rng.integers(5, VOCABULARY, (ROWS, LENGTH)).astype(np.int32)
    tokens[:, 0] = CLS
    words = np.tile(np.arange(-1, LENGTH - 1, dtype=np.int32), (ROWS, 1))
    # Dark pictures of one colour each: that they are dark is learned within a few steps.
    shades = rng.integers(0, 80, (ROWS, 1, 1, 3)).astype(np.uint8)
    image = np.broadcast_to(shades, (ROWS, 32, 32, 3))
    text = {"tokens": tokens, "words": words}
    parts = {
        "masked language": text,
        "denoising": {"image": image},
        "image and text": {"tokens": tokens, "image": image},
        "text and text": text,
    }
    return jax.tree.map(jnp.asarray, parts)


@cache
def trained(name):
    """Losses, metrics and gradient norms by group over steps of gradient descent."""
    objective, _, rate = OBJECTIVES[name]

    @jax.jit
    def train(meta, data, keys):
        def step(meta, key):
            (value, metrics), gradient = jax.value_and_grad(objective, has_aux=True)(
                meta, data, key, jnp.zeros(())
            )
            norms = {group: optax.tree.norm(leaf) for group, leaf in gradient["params"].items()}
            return jax.tree.map(lambda p, g: p - rate * g, meta, gradient), (value, metrics, norms)

        return jax.lax.scan(step, meta, keys)[1]

    # The last step draws what the first one drew, so that their losses compare.
    keys = jax.random.split(jax.random.key(1), 60)[jnp.arange(61) % 60]
    return jax.device_get(train(meta(), data()[name], keys))


@pytest.mark.slow
@every
def test_loss_falls(name):
    """Faults: the loss does not follow from the data, has the wrong sign, or its gradient does
    not reach what could lower it."""
    losses, metrics, _ = trained(name)
    assert np.isfinite(losses).all()
    assert losses[-1] < 0.8 * losses[0]
    assert all(np.shape(leaf) == losses.shape for leaf in metrics.values())


@pytest.mark.slow
@every
def test_gradient_reaches_the_encoder_and_its_own_head(name):
    """Faults: an objective trains a head beside the encoder and leaves the encoder as it was, or
    moves the head of another one."""
    _, _, norms = trained(name)
    assert {group for group, norm in norms.items() if norm.max() > 0} == OBJECTIVES[name][1]


@pytest.mark.slow
@every
def test_every_step_draws_its_own_batch(name):
    """Fault: rows, masks or dropout are drawn once and for all."""
    losses, *_ = trained(name)
    assert len(set(losses.tolist())) == len(losses)


@pytest.mark.slow
def test_every_hidden_word_is_guessed():
    """Fault: the static number of positions is too small, so that hidden words are dropped."""
    _, metrics, _ = trained("masked language")
    assert metrics["dropped"].max() == 0


@pytest.mark.slow
def test_denoising_is_of_the_picture_before_it_was_spoiled():
    """Faults: the target is spoiled too, or the input is not the picture; pixels are not scaled."""
    picture = {"image": data()["denoising"]["image"][:1]}

    @jax.jit
    def both(meta, key):
        image = jnp.broadcast_to(picture["image"].astype(jnp.float32) / 255, (2, 32, 32, 3))
        output = MODEL.apply(meta, image, method="reconstruct")
        losses = [
            denoising(MODEL, 2, sigma=0.0, occlusion=hole)(meta, picture, key, jnp.zeros(()))[0]
            for hole in (0, 32)
        ]
        black = MODEL.apply(meta, jnp.zeros_like(image), method="reconstruct")
        return losses, [jnp.mean((made - image) ** 2) for made in (output, black)]

    found, expected = both(meta(), jax.random.key(0))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.slow
def test_a_text_is_compared_with_itself_under_another_dropout():
    """Fault: both views have the same dropout, and there is nothing to learn."""
    single = {"tokens": data()["text and text"]["tokens"][:1]}
    objective = jax.jit(text_text(guide_model(ENCODER(dropout=0.5)), 8))
    loss, _ = objective(meta(), single, jax.random.key(0), jnp.zeros(()))
    # All eight rows are one text, so that no row is nearer to its own second view than to others'.
    assert loss > 0.95 * np.log(8)


def test_the_other_way_of_hiding_is_passed_on():
    """Fault: `variant` is not heard: only 80-10-10 draws random tokens in the place of hidden."""
    arguments = meta(), data()["text and text"], jax.random.key(0), jnp.zeros(())
    programs = {
        variant: str(
            jax.make_jaxpr(masked_language(MODEL, 4, mask_id=MASK, variant=variant))(*arguments)
        )
        for variant in ("mask", "80-10-10")
    }
    draws = {variant: program.count("random_bits") for variant, program in programs.items()}
    assert draws["80-10-10"] > draws["mask"] > 0
