import jax
import jax.numpy as jnp
import optax
import pytest
from flax import linen as nn

from metaguide.models.autoencoder import ImageDecoder, ImageEncoder


def autoencoder(width: int, channels: tuple[int, ...]) -> nn.Sequential:
    """decoder(encoder(image))"""
    return nn.Sequential([ImageEncoder(width, channels), ImageDecoder(channels)])


@pytest.mark.slow
def test_shapes_and_range():
    """Catches a vector of another width, a side that does not come back, or pictures outside
    [0, 1]."""
    image = jax.random.uniform(jax.random.key(0), (2, 32, 32, 3))
    vector, _ = ImageEncoder(8, (4, 8)).init_with_output(jax.random.key(1), image)
    assert vector.shape == (2, 8)
    model = autoencoder(8, (4, 8))
    output = jax.jit(model.apply)(jax.jit(model.init)(jax.random.key(1), image), image)
    assert output.shape == image.shape and output.dtype == jnp.float32
    assert 0 <= output.min() and output.max() <= 1


@pytest.mark.slow
def test_learns_to_tell_pictures_apart():
    """Catches an encoder or decoder through which no gradient or no picture passes."""
    image = jnp.broadcast_to(
        jax.random.uniform(jax.random.key(0), (4, 4, 1, 4, 1, 3)), (4, 4, 8, 4, 8, 3)
    ).reshape(4, 32, 32, 3)
    model = autoencoder(16, (4, 8, 8))
    params = jax.jit(model.init)(jax.random.key(1), image)["params"]
    optimizer = optax.adam(5e-3)

    def loss(params):
        return jnp.mean((model.apply({"params": params}, image) - image) ** 2)

    @jax.jit
    def run(params):
        def step(carry, _):
            params, state = carry
            value, gradient = jax.value_and_grad(loss)(params)
            updates, state = optimizer.update(gradient, state)
            return (optax.apply_updates(params, updates), state), value

        return jax.lax.scan(step, (params, optimizer.init(params)), length=200)[1]

    with jax.numpy_dtype_promotion("standard"):  # optax's own power of a step count
        losses = run(params)
    mean_picture = jnp.mean((image - image.mean(0)) ** 2)
    assert losses[-1] < 0.5 * mean_picture
