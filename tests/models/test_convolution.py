import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaguide.models.convolution import PatchConvolution, PatchTranspose


def reference(kernel, bias, x, stride):
    return bias + jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def ours(kernel, bias, x, stride):
    side, features = kernel.shape[0], kernel.shape[-1]
    module = PatchConvolution(features, side, stride)
    params = {"taps": {"kernel": kernel.reshape(-1, features), "bias": bias}}
    return module.apply({"params": params}, x)


def draw(key, shape, side, tasks=()):
    keys = jax.random.split(key, 3)
    kernel = jax.random.normal(keys[0], (*tasks, side, side, shape[-1], 5))
    return kernel, jax.random.normal(keys[1], (*tasks, 5)), jax.random.normal(keys[2], shape)


@pytest.mark.parametrize("side,stride", [(3, 1), (3, 2), (2, 2), (5, 3), (1, 1)])
@pytest.mark.parametrize("height,width", [(8, 8), (7, 6)])
def test_patches_are_a_convolution(side, stride, height, width):
    """Catches wrong padding, order of taps or stride, in value and in every gradient."""
    arguments = draw(jax.random.key(0), (2, height, width, 3), side)

    def total(convolve):
        def run(*arguments):
            y = convolve(*arguments, stride)
            return jnp.sum(jnp.sin(y)), y

        return jax.jit(jax.value_and_grad(run, (0, 1, 2), has_aux=True))(*arguments)

    found, expected = total(ours), total(reference)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-4), found, expected)


def test_kernels_of_their_own_by_task():
    """Catches tasks that share a kernel under vmap, in value and gradient."""
    kernels, biases, _ = draw(jax.random.key(0), (1, 1, 1, 3), 3, (4,))
    x = jax.random.normal(jax.random.key(1), (4, 2, 8, 8, 3))

    def total(convolve, kernel, bias, x):
        return jnp.sum(jnp.cos(convolve(kernel, bias, x, 2)))

    found = jax.vmap(jax.value_and_grad(lambda *a: total(ours, *a), (0, 1, 2)))(kernels, biases, x)
    for task in range(4):
        expected = jax.value_and_grad(lambda *a: total(reference, *a), (0, 1, 2))(
            kernels[task], biases[task], x[task]
        )
        one = jax.tree.map(lambda a, task=task: a[task], found)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-4), one, expected)


def test_transpose_spreads_each_pixel():
    """Catches rows and columns that are swapped, or channels mixed with places."""
    module = PatchTranspose(2, kernel=1)
    x = jax.random.normal(jax.random.key(0), (1, 3, 4, 8))
    params = {"convolution": {"taps": {"kernel": jnp.eye(8), "bias": jnp.zeros(8)}}}
    y = module.apply({"params": params}, x)
    assert y.shape == (1, 6, 8, 2)
    for row in range(6):
        for column in range(8):
            place = 2 * (row % 2) + column % 2
            expected = x[0, row // 2, column // 2, 2 * place : 2 * place + 2]
            np.testing.assert_array_equal(y[0, row, column], expected)
