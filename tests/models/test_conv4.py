"""Conv4: both convolutions, batch norm by marked rows, poolings, dtypes, second derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from metaguide.models.conv4 import BatchNorm, Conv4, Layer, moments, moments_of_product

CHANNELS = 4
ROWS = 5


@pytest.fixture(scope="module")
def images():
    return jax.random.normal(jax.random.key(0), (ROWS, 17, 19, 1))


def apply(network, *arguments):
    return jax.jit(network.apply)(*arguments)


def parameters(network, *inputs):
    """Parameters of which none is 0 or 1, so that each of them counts."""
    params = jax.eval_shape(network.init, jax.random.key(0), *inputs)
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    draws = [
        0.5 * jax.random.normal(k, a.shape, a.dtype) for k, a in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(tree, draws)


@pytest.mark.slow
@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("pooling", ["stride", "flat", "max"])
def test_both_convolutions_agree(images, pooling, normalise):
    """Fault: the two convolutions differ in padding, order of taps, names or use of a parameter."""
    patches, xla = (
        Conv4(CHANNELS, pooling, normalise, convolution=name, dtype=None)
        for name in ("patches", "xla")
    )
    params = parameters(patches, images)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, parameters(xla, images))

    def features_and_gradient(network, params, images):
        def total(params):
            features = network.apply(params, images)
            return jnp.sum(jnp.sin(features)), features

        return jax.grad(total, has_aux=True)(params)

    # In float64 no ReLU and no maximum falls to the other side.
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda a: a.astype(jnp.float64), (params, images))
        found, expected = jax.jit(
            lambda *wide: [features_and_gradient(n, *wide) for n in (patches, xla)]
        )(*wide)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-10), found, expected)


def test_parameters_have_plain_names(images):
    """Fault: a renamed, missing or needless parameter, such as a bias before batch norm."""
    vector = (CHANNELS,)
    for normalise in (True, False):
        params = parameters(Conv4(CHANNELS, normalise=normalise), images)["params"]
        assert list(params) == [f"layer{i}" for i in range(4)]
        for i, layer in enumerate(params.values()):
            taps = {"kernel": (9 * (CHANNELS if i else 1), CHANNELS)}
            expected = {"convolution": {"taps": taps}}
            if normalise:
                expected["norm"] = {"scale": vector, "bias": vector}
            else:
                taps["bias"] = vector
            assert jax.tree.map(jnp.shape, layer) == expected


def written_out(params, x, pooling):
    batch, stride = len(x), 1 if pooling == "max" else 2
    for layer in params.values():
        kernel = layer["convolution"]["taps"]["kernel"].reshape(3, 3, x.shape[-1], CHANNELS)
        x = jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = (x - x.mean((0, 1, 2))) / jnp.sqrt(x.var((0, 1, 2)) + 1e-3)
        x = jnp.maximum(x * layer["norm"]["scale"] + layer["norm"]["bias"], 0)
        if pooling == "max":
            x = nn.max_pool(x, (2, 2), (2, 2))
    return x.mean((1, 2)) if pooling == "stride" else x.reshape(batch, -1)


@pytest.mark.slow
def test_poolings_are_those_of_the_papers():
    """Fault: a wrong stride, pooling or final average, or positions lost when flattened."""
    images = jax.random.normal(jax.random.key(0), (2, 34, 32, 3))
    for pooling, count in (("stride", CHANNELS), ("flat", 6 * CHANNELS), ("max", 4 * CHANNELS)):
        network = Conv4(CHANNELS, pooling)
        params = parameters(network, images)
        features = apply(network, params, images)
        assert features.shape == (2, count)
        expected = jax.jit(written_out, static_argnums=2)(params["params"], images, pooling)
        np.testing.assert_allclose(features, expected, atol=1e-4)


def normalised(params, images, marked=None):
    mean, variance = moments(images, marked)
    slope, shift = BatchNorm().apply(params, mean, variance)
    return images * slope + shift


def test_statistics_are_those_of_the_marked_rows(images):
    """Fault: unmarked rows in the mean, the variance or the count, or statistics of each row."""
    marked = np.array([True, False, True, False, False])
    params = parameters(BatchNorm(), jnp.zeros(1), jnp.ones(1))
    rows = np.asarray(images)[marked]
    deviation = np.sqrt(rows.var((0, 1, 2)) + 1e-3)
    scale, bias = params["params"]["scale"], params["params"]["bias"]
    expected = (images - rows.mean((0, 1, 2))) / deviation * scale + bias
    found = jax.jit(normalised)(params, images, jnp.asarray(marked))
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("marked", [None, (True, False, True, True, False), (False,) * ROWS])
def test_moments_of_a_product_need_no_product(marked):
    """Faults: the covariance counts unmarked rows, or divides by another count; the derivative by
    the rows or the kernel is another one; no marked row divides by 0."""
    with jax.enable_x64(True):
        rows = 3 + jax.random.normal(jax.random.key(0), (ROWS, 4, 3, 9), jnp.float64)
        kernel = jax.random.normal(jax.random.key(1), (9, 6), jnp.float64)
        marked = None if marked is None else jnp.asarray(marked)

        def both(of):
            def total(rows, kernel):
                mean, variance = of(rows, kernel)
                return jnp.sum(jnp.sin(mean)) + jnp.sum(jnp.cos(variance)), (mean, variance)

            return jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))(rows, kernel)

        found = both(lambda rows, kernel: moments_of_product(rows, kernel, marked))
        expected = both(lambda rows, kernel: moments(rows @ kernel, marked))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-11), found, expected)


@pytest.mark.slow
def test_unmarked_rows_say_nothing(images):
    """Fault: what an unmarked row holds, even infinity, reaches another row or its gradient."""
    marked = jnp.array([True, True, True, False, False])
    network = Conv4(CHANNELS)
    params = parameters(network, images)

    @jax.jit
    def read(images):
        def total(params):
            features = network.apply(params, images, marked)
            return jnp.sum(jnp.sin(features[:4])), features[:4]

        return jax.grad(total, has_aux=True)(params)

    found = read(images.at[4].set(jnp.inf))[1], read(images.at[4].multiply(-7.0))[0]
    gradient, features = read(images)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, (features, gradient)
    )
    alone = apply(network, params, images[:3])
    np.testing.assert_allclose(features[:3], alone, atol=1e-5)


def test_all_rows_marked_is_none_marked_out(images):
    """Fault: the path without `reference` normalises by other statistics than that with it."""
    network = Conv4(CHANNELS)
    params = parameters(network, images)
    found = apply(network, params, images, jnp.ones(ROWS, bool))
    np.testing.assert_allclose(found, apply(network, params, images), atol=1e-5)


@pytest.mark.slow
def test_no_marked_row_is_finite(images):
    """Fault: a division by a count of zero, in the features or in a gradient, first or second."""
    network = Conv4(CHANNELS)
    params = parameters(network, images)

    def total(params):
        return jnp.sum(jnp.sin(network.apply(params, images, jnp.zeros(ROWS, bool))))

    def slope(params):
        return sum(jnp.sum(g * g) for g in jax.tree.leaves(jax.grad(total)(params)))

    found = jax.jit(lambda params: (total(params), jax.grad(slope)(params)))(params)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(found))


@pytest.mark.slow
def test_bfloat16_is_near_float32(images):
    """Fault: statistics in bfloat16, a dtype that is ignored, or features that are not float32."""
    network = Conv4(CHANNELS)
    params = parameters(network, images)
    expected = apply(network, params, images)
    found = apply(Conv4(CHANNELS, dtype=jnp.bfloat16), params, images)
    assert found.dtype == jnp.float32
    error = jnp.linalg.norm(found - expected) / jnp.linalg.norm(expected)
    assert 1e-5 < error < 0.03
    # Of 100 ± 0.1 bfloat16 keeps nothing but steps of 0.5: the sums must be wider than the values.
    far = jnp.full((64, 8, 8, 1), 100, jnp.bfloat16).at[::2].set(101)
    # A kernel that hands the pixel in the middle on: the next layer sees it normalised.
    layer = Layer(1, "max", True, "xla", jnp.bfloat16)
    middle = jnp.zeros((9, 1)).at[4].set(1)
    plain = {"convolution": {"taps": {"kernel": middle}}}
    plain["norm"] = {"scale": jnp.ones(1), "bias": jnp.zeros(1)}
    y = apply(layer, {"params": plain}, far, None).astype(jnp.float32)
    np.testing.assert_allclose(y, jnp.maximum(jnp.sign(far - 100.5), 0)[:, :4, :4], atol=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("pooling,dtype", [("stride", None), ("max", "float64")])
def test_meta_gradient_in_float64(pooling, dtype):
    """Fault: a wrong second derivative, or a value rounded to float32 in a float64 computation."""
    with jax.enable_x64(True):
        network = Conv4(2, pooling, dtype=dtype)
        images = jax.random.normal(jax.random.key(0), (3, 16, 16, 1), jnp.float64)
        params = parameters(network, images.astype(jnp.float32))
        start = jax.tree.map(lambda a: a.astype(jnp.float64), params)

        def loss(params):
            return jnp.sum(jnp.sin(apply(network, params, images)))

        def adapted(params):
            step = jax.tree.map(lambda a, g: a - 0.1 * g, params, jax.grad(loss)(params))
            return loss(step)

        keys = iter(jax.random.split(jax.random.key(2), 20))
        way = jax.tree.map(lambda a: jax.random.normal(next(keys), a.shape, a.dtype), start)

        def along(distance):
            return adapted(jax.tree.map(lambda a, b: a + distance * b, start, way))

        distances = jnp.array([-1e-6, 0, 1e-6])
        values, slopes = jax.jit(jax.vmap(jax.value_and_grad(along)))(distances)
        assert slopes.dtype == values.dtype == jnp.float64
        np.testing.assert_allclose(slopes[1], (values[2] - values[0]) / 2e-6, rtol=1e-6)


@pytest.mark.slow
def test_tasks_with_kernels_of_their_own(images):
    """Fault: a kernel or a statistic that tasks share under vmap."""
    network = Conv4(CHANNELS)
    params = parameters(network, images)
    both = jax.tree.map(lambda a: jnp.stack([a, -2 * a]), params)
    tasks = jnp.stack([images, images[::-1] + 1])
    found = jax.jit(jax.vmap(network.apply))(both, tasks)
    one = jax.jit(network.apply)
    for task in range(2):
        expected = one(jax.tree.map(lambda a: a[task], both), tasks[task])
        np.testing.assert_allclose(found[task], expected, atol=1e-4)


@pytest.mark.parametrize(
    "field,choices", [("pooling", "stride, flat, max"), ("convolution", "patches, xla")]
)
def test_unknown_names_are_refused(images, field, choices):
    """Fault: a misspelt choice taken for another one, or refused without naming the choices."""
    with pytest.raises(ValueError, match=f"{field} is 'mean', not one of {choices}"):
        Conv4(CHANNELS, **{field: "mean"}).init(jax.random.key(0), images)
