import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from metaguide.models.transformer import (
    Dense,
    Dropout,
    LayerNorm,
    SelfAttention,
    TransformerEncoder,
    TransformerLayer,
    dropout,
    hashed_bits,
    product,
    roles,
)

HEADS, WIDTH = 4, 16


def perturbed(params, key):
    """Parameters with every leaf, biases too, away from its special starting value."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    noisy = [x + 0.3 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(tree, noisy)


@pytest.fixture(scope="module")
def attention():
    module = SelfAttention(HEADS)
    x = jax.random.normal(jax.random.key(0), (3, 7, WIDTH))
    mask = jnp.arange(7) < jnp.array([7, 4, 1])[:, None]
    params = perturbed(module.init(jax.random.key(1), x, mask)["params"], jax.random.key(2))
    return module, params, x, mask


def test_attention_is_softmax_qk_v(attention):
    """Catches a wrong scale, axis, head order, mask side or output projection."""
    module, params, x, mask = attention
    found = module.apply({"params": params}, x, mask)
    weights = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    depth = WIDTH // HEADS
    for row in range(3):
        real = int(mask[row].sum())
        qkv = np.asarray(x[row], np.float64) @ weights["qkv"]["kernel"] + weights["qkv"]["bias"]
        query, key, value = np.split(qkv, 3, axis=1)
        heads = []
        for h in range(HEADS):
            part = slice(h * depth, (h + 1) * depth)
            scores = query[:, part] @ key[:real, part].T / np.sqrt(depth)
            scores = np.exp(scores - scores.max(axis=1, keepdims=True))
            heads.append(scores / scores.sum(axis=1, keepdims=True) @ value[:real, part])
        mixed = np.concatenate(heads, axis=1)
        expected = mixed @ weights["out"]["kernel"] + weights["out"]["bias"]
        np.testing.assert_allclose(found[row], expected, atol=2e-5)


def test_attention_is_flax_attention(attention):
    """Catches any difference from Flax's MultiHeadDotProductAttention with the same weights."""
    module, params, x, mask = attention
    kernels = params["qkv"]["kernel"].reshape(WIDTH, 3, HEADS, -1)
    biases = params["qkv"]["bias"].reshape(3, HEADS, -1)
    copied = {
        name: {"kernel": kernels[:, i], "bias": biases[i]}
        for i, name in enumerate(("query", "key", "value"))
    }
    copied["out"] = {
        "kernel": params["out"]["kernel"].reshape(HEADS, -1, WIDTH),
        "bias": params["out"]["bias"],
    }
    theirs = nn.MultiHeadDotProductAttention(num_heads=HEADS)
    expected = theirs.apply({"params": copied}, x, mask=mask[:, None, None, :])
    np.testing.assert_allclose(module.apply({"params": params}, x, mask), expected, atol=2e-5)


@pytest.mark.slow
def test_attention_of_nothing_is_finite(attention):
    """Catches NaN, in value or gradient, where a whole row is padding."""
    module, params, x, mask = attention

    def total(x):
        return module.apply({"params": params}, x, jnp.zeros_like(mask)).sum()

    value, gradient = jax.value_and_grad(total)(x)
    assert np.isfinite(value) and np.isfinite(gradient).all()


def test_attention_names_a_width_that_does_not_divide():
    """Catches a silent truncation or an obscure reshape error."""
    x, mask = jnp.zeros((1, 2, 6)), jnp.ones((1, 2), bool)
    with pytest.raises(ValueError, match="width 6 is not a multiple of heads 4"):
        SelfAttention(4).init(jax.random.key(0), x, mask)


@pytest.mark.slow
def test_layer_norm_is_flax_layer_norm():
    """Catches a wrong variance, epsilon or order of scale and bias; gradients too."""
    x = 3 * jax.random.normal(jax.random.key(0), (5, WIDTH)) + 2
    params = {
        "scale": jnp.linspace(0.5, 2, WIDTH),
        "bias": jnp.linspace(-1, 1, WIDTH),
    }

    def total(module, params, x):
        y = module.apply({"params": params}, x)
        return jnp.sum(jnp.sin(y)), y

    ours = jax.value_and_grad(lambda *a: total(LayerNorm(), *a), (0, 1), has_aux=True)(params, x)
    theirs = jax.value_and_grad(
        lambda *a: total(nn.LayerNorm(epsilon=1e-6), *a), (0, 1), has_aux=True
    )(params, x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-5), ours, theirs)


@pytest.mark.parametrize("features", [3, 24])
def test_product_has_the_gradients_of_a_product(features):
    """Catches a transposed kernel gradient, to either side of square, first and second order."""
    keys = jax.random.split(jax.random.key(0), 2)
    x = jax.random.normal(keys[0], (2, 3, 2, 5, 8))
    kernel = jax.random.normal(keys[1], (2, 8, features))

    def step(multiply, x, kernel):
        def loss(x, kernel):
            return jnp.sum(jnp.sin(multiply(x, kernel)))

        gradients = jax.grad(loss, (0, 1))(x, kernel)
        return loss(x - 0.1 * gradients[0], kernel - 0.1 * gradients[1]), gradients

    def run(multiply):
        one = jax.value_and_grad(lambda *a: step(multiply, *a), (0, 1), has_aux=True)
        return jax.jit(jax.vmap(one))(x, kernel)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3),
        run(product),
        run(jnp.matmul),
    )


@pytest.mark.slow
def test_dense_is_flax_dense():
    """Catches parameters named, shaped or started otherwise, and a bias left out."""
    x = jax.random.normal(jax.random.key(0), (2, 3, 8))
    params = nn.Dense(5).init(jax.random.key(1), x)
    jax.tree.map(np.testing.assert_array_equal, Dense(5).init(jax.random.key(1), x), params)
    params = perturbed(params, jax.random.key(2))
    np.testing.assert_allclose(Dense(5).apply(params, x), nn.Dense(5).apply(params, x), atol=1e-5)


@pytest.mark.slow
def test_layer_is_pre_norm():
    """Catches post-norm, a missing residual, or a norm used for the wrong branch."""
    x = jax.random.normal(jax.random.key(0), (2, 5, WIDTH))
    mask = jnp.ones((2, 5), bool)
    layer = TransformerLayer(HEADS)
    params = perturbed(layer.init(jax.random.key(1), x, mask)["params"], jax.random.key(2))

    def norm(x):
        return LayerNorm(affine=False).apply({}, x)

    def dense(name, x):
        return x @ params[name]["kernel"] + params[name]["bias"]

    attended = SelfAttention(HEADS).apply({"params": params["attention"]}, norm(x), mask)
    middle = x + attended
    hidden = nn.relu(dense("mlp_in", norm(middle)))
    expected = middle + dense("mlp_out", hidden)
    np.testing.assert_allclose(layer.apply({"params": params}, x, mask), expected, atol=3e-5)


def run(module, variables, *arguments, **keywords):
    """Applies a module as one compiled function."""
    return jax.jit(functools.partial(module.apply, **keywords))(variables, *arguments)


def role_by_loop(row):
    """What each token is, one token at a time."""
    result, seen, after = [], set(), False
    for token in row:
        result.append((2 if token in seen else 1) if after else 0)
        if token == 3:
            after = True
        elif not after and token >= 5:
            seen.add(token)
    return result


@settings(max_examples=60, deadline=None)
@given(arrays(np.int32, (2, 9), elements=st.integers(0, 9)))
def test_roles_are_those_of_a_plain_loop(tokens):
    """Catches an off-by-one at the separator, matches of specials, or matches within the text."""
    expected = [role_by_loop(row) for row in tokens.tolist()]
    np.testing.assert_array_equal(roles(jnp.asarray(tokens)), expected)


def test_roles_of_a_pair_and_of_a_plain_text():
    """Catches role 1 on plain texts and a separator counted as part of the text."""
    tokens = jnp.array([[2, 7, 8, 3, 9, 7, 3, 8, 0], [2, 7, 7, 8, 9, 7, 1, 8, 0]], jnp.int32)
    found = roles(tokens)
    np.testing.assert_array_equal(found[0], [0, 0, 0, 0, 1, 2, 1, 2, 1])
    np.testing.assert_array_equal(found[1], np.zeros(9))


@pytest.fixture(scope="module")
def encoder():
    module = TransformerEncoder(30, WIDTH, 2, HEADS, 12, dropout=0.1)
    tokens = jnp.array(
        [[2, 9, 8, 3, 9, 7, 11, 0, 0, 0], [2, 6, 6, 29, 5, 3, 5, 6, 8, 9]], jnp.int32
    )
    params = perturbed(jax.jit(module.init)(jax.random.key(1), tokens)["params"], jax.random.key(2))
    return module, {"params": params}, tokens


@pytest.mark.slow
def test_padding_changes_nothing(encoder):
    """Catches attention to padding, positions counted from the end, and batch rows that mix."""
    module, variables, tokens = encoder
    padded = run(module, variables, tokens)
    longer = run(module, variables, jnp.pad(tokens, ((0, 0), (0, 2))))
    alone = run(module, variables, tokens[:1, :7])
    np.testing.assert_allclose(padded[0, :7], alone[0], atol=2e-5)
    np.testing.assert_allclose(longer[:, :10], padded, atol=2e-5)


def test_order_matters(encoder):
    """Catches positions that are never added."""
    module, variables, tokens = encoder
    swapped = run(module, variables, tokens.at[1, 1].set(29).at[1, 3].set(6))
    assert np.abs(swapped[1, 2] - run(module, variables, tokens)[1, 2]).max() > 1e-3


def test_role_is_embedded(encoder):
    """Catches a role that is computed and not added: only the word asked for differs."""
    module, variables, tokens = encoder
    silent = jax.tree.map(lambda x: x, variables)
    silent["params"]["role"] = silent["params"]["role"].at[2].set(silent["params"]["role"][1])
    difference = np.abs(run(module, silent, tokens) - run(module, variables, tokens)).max()
    assert difference > 1e-3


def test_too_many_tokens(encoder):
    """Catches positions silently clamped by the slice."""
    module, variables, _ = encoder
    with pytest.raises(ValueError, match="13 tokens per row; the encoder has 12 positions"):
        run(module, variables, jnp.ones((1, 13), jnp.int32))


def test_tied_logits(encoder):
    """Catches logits of a matrix that is not the embedding."""
    module, variables, _ = encoder
    states = jax.random.normal(jax.random.key(0), (3, WIDTH))
    found = run(module, variables, states, method="attend")
    np.testing.assert_allclose(found, states @ variables["params"]["embedding"].T, atol=1e-5)


@pytest.mark.slow
def test_vmap_over_weights_is_a_loop(encoder):
    """Catches rows of one task that see another task's weights, under dropout too."""
    module, variables, tokens = encoder
    two = jax.tree.map(lambda x: jnp.stack([x, 0.5 * x]), variables)
    keys = jax.random.split(jax.random.key(5), 2)

    def states(variables, key):
        return module.apply(variables, tokens, deterministic=False, rngs={"dropout": key})

    together = jax.jit(jax.vmap(states))(two, keys)
    for i in range(2):
        one = jax.jit(states)(jax.tree.map(lambda x, i=i: x[i], two), keys[i])
        np.testing.assert_allclose(together[i], one, atol=3e-5)
    assert np.abs(together[0] - together[1]).max() > 1e-2


@pytest.mark.slow
def test_second_order_gradient_is_that_of_finite_differences():
    """Catches a stop in the gradient's gradient, as an inner loop takes it, and NaN in it."""
    with jax.enable_x64(True):
        module = TransformerEncoder(20, 8, 1, 2, 6, dtype=jnp.float64)
        tokens = jnp.array([[2, 9, 3, 9, 0, 0]], jnp.int32)
        params = jax.jit(module.init)(jax.random.key(1), tokens)["params"]
        params = jax.tree.map(lambda x: x.astype(jnp.float64), params)
        target = jax.random.normal(jax.random.key(2), (1, 8), jnp.float64)

        def loss(params):
            states = module.apply({"params": params}, tokens)
            return jnp.mean((states[:, 1] - target) ** 2)

        def adapted(params):
            step = jax.grad(loss)(params)
            return loss(jax.tree.map(lambda p, g: p - 0.1 * g, params, step))

        adapted = jax.jit(adapted)
        gradient = jax.jit(jax.grad(adapted))(params)
        keys = iter(jax.random.split(jax.random.key(3), 100))
        way = jax.tree.map(lambda x: jax.random.normal(next(keys), x.shape, x.dtype), params)
        slope = sum(
            jnp.vdot(a, b) for a, b in zip(*map(jax.tree.leaves, (gradient, way)), strict=True)
        )
        size = 1e-5
        up, down = (jax.tree.map(lambda p, w, s=s: p + s * w, params, way) for s in (size, -size))
        np.testing.assert_allclose(slope, (adapted(up) - adapted(down)) / (2 * size), rtol=1e-6)


def test_bfloat16_computes_near_float32(encoder):
    """Catches a float32 leaf in the middle of a bfloat16 computation, or lost precision."""
    module, variables, tokens = encoder
    low = module.clone(dtype=jnp.bfloat16)
    states = run(low, variables, tokens)
    assert states.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        states.astype(jnp.float32), run(module, variables, tokens), atol=0.25
    )


def test_dropout_keeps_the_mean_and_the_rate():
    """Catches a wrong scale, an inverted rate, and correlated neighbours, rows or keys."""
    x = jnp.ones((256, 512))
    masks = [np.asarray(dropout(x, 0.1, jax.random.key(k))) for k in range(2)]
    for dropped in masks:
        assert set(np.unique(dropped)) == {np.float32(0), np.float32(1 / 0.9)}
        assert abs((dropped == 0).mean() - 0.1) < 5 * np.sqrt(0.09 / x.size)
        assert abs((dropped == 0).mean(0) - 0.1).max() < 6 * np.sqrt(0.09 / 256)
        assert abs((dropped == 0).mean(1) - 0.1).max() < 6 * np.sqrt(0.09 / 512)
    zero = [(m == 0).ravel().astype(np.float64) - 0.1 for m in masks]
    pairs = [(zero[0], zero[1])]
    pairs += [(zero[0][:-lag], zero[0][lag:]) for lag in (1, 2, 64, 512, 1024)]
    for a, b in pairs:
        assert abs(np.mean(a * b) / 0.09) < 5 / np.sqrt(a.size)


def test_hashed_bits_are_balanced():
    """Catches a bit of the hash that is stuck or biased."""
    bits = np.asarray(hashed_bits(jax.random.key(3), (1 << 16,)))
    shares = [((bits >> i) & 1).mean() for i in range(32)]
    assert np.abs(np.array(shares) - 0.5).max() < 5 * 0.5 / 256
    assert np.unique(bits).size > 0.99 * bits.size


def test_no_dropout_adds_nothing():
    """Catches bits that are drawn, or a key asked for, where nothing is to be dropped."""
    x = jnp.ones((2, 3))
    assert Dropout(0.0).apply({}, x, deterministic=False) is x
    assert Dropout(0.5).apply({}, x, deterministic=True) is x
