import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaguide.models.convolution import (
    PatchConvolution,
    PatchTranspose,
    convolve,
    patches,
    product,
)


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


@pytest.mark.slow
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


@pytest.mark.parametrize("side,stride,height,width", [(3, 2, 7, 6), (3, 1, 4, 5), (5, 3, 8, 7)])
def test_patches_and_their_transpose_in_float64(side, stride, height, width):
    """Fault: a pixel copied to a wrong tap, or a cotangent lost or counted twice at an edge."""
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(0), 3)
        x = jax.random.normal(keys[0], (2, height, width, 3), jnp.float64)
        kernel = jax.random.normal(keys[1], (side * side * 3, 4), jnp.float64)

        def by_patches(x, kernel):
            return product(patches(x, side, stride), kernel)

        def by_xla(x, kernel):
            return convolve(x, kernel, side, stride)

        def pulled(convolution):
            y, pull = jax.vjp(convolution, x, kernel)
            return y, pull(jax.random.normal(keys[2], y.shape, y.dtype))

        found, expected = jax.jit(lambda: (pulled(by_patches), pulled(by_xla)))()
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 3], ids=["narrow", "wide"])
def test_second_derivatives_in_float64(channels):
    """Fault: a derivative of the gradient that the barrier drops, doubles or transposes."""
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(0), 3)
        x = jax.random.normal(keys[0], (2, 5, 6, channels), jnp.float64)
        kernel = jax.random.normal(keys[1], (9 * channels, 10), jnp.float64)
        way = jax.random.normal(keys[2], kernel.shape, jnp.float64)

        def loss(x, kernel):
            return jnp.sum(jnp.sin(product(patches(x, 3, 2), kernel)))

        def slope(kernel):
            return sum(jnp.sum(jnp.cos(g)) for g in jax.grad(loss, (0, 1))(x, kernel))

        values = jax.jit(jax.vmap(slope))(kernel + jnp.array([[[-1e-6]], [[1e-6]]]) * way)
        numeric = (values[1] - values[0]) / 2e-6
        # In reverse, as a meta-gradient, and forward, as an implicit one.
        reverse = jnp.vdot(jax.jit(jax.grad(slope))(kernel), way)
        forward = jax.jit(lambda: jax.jvp(slope, (kernel,), (way,))[1])()
        np.testing.assert_allclose([reverse, forward], [numeric, numeric], rtol=1e-6)


def test_gradient_for_the_kernel_keeps_its_order():
    """Fault: the patches, nine times as wide as y, become the operand that a CPU transposes."""
    rows, kernel = jnp.ones((40, 18)), jnp.ones((18, 2))

    def loss(kernel):
        return jnp.sum(jnp.sin(product(rows, kernel)))

    program = jax.jit(jax.grad(loss)).lower(kernel).as_text()
    after = program[program.index("cosine") :]
    assert "(tensor<40x2xf32>, tensor<40x18xf32>) -> tensor<2x18xf32>" in after
    assert after.index("optimization_barrier") < after.index("transpose")


@pytest.mark.slow
def test_both_methods_have_the_same_parameters():
    """Fault: `patched` or `use_bias` changes a parameter's name or shape, or is ignored."""
    x = jax.random.normal(jax.random.key(0), (2, 6, 5, 3))
    for use_bias in (True, False):
        one, other = (PatchConvolution(4, use_bias=use_bias, patched=p) for p in (True, False))
        params = one.init(jax.random.key(1), x)
        assert sorted(params["params"]["taps"]) == ["bias", "kernel"][not use_bias :]
        np.testing.assert_allclose(one.apply(params, x), other.apply(params, x), atol=1e-5)
