"""A pre-LN Transformer encoder that tells a question from the text it is about."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

from metaguide.types import OUT

PAD, SEP, MASK, SPECIALS = 0, 3, 4, 5
"""Token ids of padding and of the separator, and the number of ids that are not words."""


def hashed_bits(key: Key[Array, ""], shape: tuple[int, ...]) -> UInt32[Array, "..."]:
    """Return 32 pseudo-random bits per element: a 32-bit integer hash of (position, seed).

    The seed is two words of `jax.random.bits(key)`. The hash is MurmurHash3's finaliser with the
    second word mixed in between its multiplications. It is good enough to drop units, but not to
    sample from; on a CPU it is far cheaper than Threefry and fuses into its consumer.

    Args:
        key: typed PRNG key.
        shape: shape of the result, with fewer than 2^32 elements.
    """
    seed = jax.random.bits(key, (2,), jnp.uint32)
    position = jax.lax.iota(jnp.uint32, math.prod(shape)).reshape(shape)
    mixed = position * jnp.uint32(0x9E3779B9) + seed[0]
    mixed = (mixed ^ (mixed >> 16)) * jnp.uint32(0x85EBCA6B) ^ seed[1]
    mixed = (mixed ^ (mixed >> 13)) * jnp.uint32(0xC2B2AE35)
    return mixed ^ (mixed >> 16)


def dropout(x: Float[Array, "..."], rate: float, key: Key[Array, ""]) -> Float[Array, "..."]:
    """Return x / (1 - rate) where a unit is kept and 0 where it is dropped.

    Args:
        x: any array.
        rate: probability in [0, 1) that a unit is dropped, with a granularity of 2^-32.
        key: typed PRNG key.
    """
    keep = hashed_bits(key, x.shape) >= jnp.uint32(round(rate * 2**32))
    return jnp.where(keep, x * (1 / (1 - rate)), 0)


class Dropout(nn.Module):
    """Drop units with probability `rate`, drawn from the rng collection "dropout"."""

    rate: float

    @nn.compact
    def __call__(self, x: Float[Array, "..."], *, deterministic: bool) -> Float[Array, "..."]:
        """Return x with units dropped, or x itself if `deterministic` or if the rate is 0."""
        if deterministic or self.rate == 0:
            return x
        return dropout(x, self.rate, self.make_rng("dropout"))


class LayerNorm(nn.Module):
    """(x - mean) / √(variance + epsilon) over the last axis, float32 or wider (Ba et al. 2016).

    Attributes:
        dtype: dtype of the result.
        affine: whether to apply a scale and a bias. Before a dense layer they are redundant with
            its kernel and bias.
        epsilon: added to the variance.
    """

    dtype: Any = jnp.float32
    affine: bool = True
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
        """Return x normalised."""
        wide = x.dtype if x.dtype.itemsize > 4 else jnp.float32
        x = x.astype(wide)
        mean = jnp.mean(x, axis=-1, keepdims=True)
        variance = jnp.maximum(jnp.mean(x * x, axis=-1, keepdims=True) - mean * mean, 0)
        x = (x - mean) * jax.lax.rsqrt(variance + self.epsilon)
        if self.affine:
            scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
            bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],), jnp.float32)
            x = x * scale.astype(wide) + bias.astype(wide)
        return x.astype(self.dtype)


@jax.custom_vjp
def product(
    x: Float[Array, "*batch width"], kernel: Float[Array, "width features"]
) -> Float[Array, "*batch features"]:
    """Return x · kernel; the kernel's gradient transposes the narrower of its two operands.

    On a CPU, xᵀ · g is computed from a transposed copy of its first operand. JAX's own rule puts g
    there, which is three times as wide as x for Q, K, V and four times for the hidden units.
    """
    return x @ kernel


def _product_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return x @ kernel, (x, kernel)


def _product_backward(operands: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, kernel = operands
    rows, columns = x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1])
    narrow, wide = sorted((rows, columns), key=lambda operand: operand.shape[-1])
    gradient = jax.lax.dot_general(narrow, wide, (((0,), (0,)), ((), ())))
    return g @ kernel.T, gradient if narrow is rows else gradient.T


product.defvjp(_product_forward, _product_backward)


class Dense(nn.Module):
    """x · kernel + bias, as in `flax.linen.Dense`, computed by `product`."""

    features: int
    dtype: Any = jnp.float32
    kernel_init: Any = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch features"]:
        """Return the affine map of the last axis."""
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        x = x.astype(self.dtype)
        return product(x, kernel.astype(self.dtype)) + bias.astype(self.dtype)


class SelfAttention(nn.Module):
    """softmax(Q Kᵀ / √d) V (Vaswani et al. 2017), with one product for Q, K, V of all heads."""

    heads: int
    dropout: float = 0.0
    dtype: Any = jnp.float32
    out_init: Any = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length width"],
        mask: Bool[Array, "batch length"],
        *,
        deterministic: bool = True,
    ) -> Float[Array, "batch length width"]:
        """Return each position's mixture of the positions where `mask` is True.

        Args:
            x: the states.
            mask: False where a position is padding; a row that is all padding is averaged.
            deterministic: disables dropout.
        """
        batch, length, width = x.shape
        if width % self.heads:
            raise ValueError(f"width {width} is not a multiple of heads {self.heads}")
        depth = width // self.heads
        qkv = Dense(3 * width, self.dtype, name="qkv")(x)
        query, key, value = jnp.moveaxis(qkv.reshape(batch, length, 3, self.heads, depth), 2, 0)
        scores = jnp.einsum("bqhd,bkhd->bhqk", query * depth**-0.5, key)
        scores = jnp.where(mask[:, None, None, :], scores, OUT)
        weights = jax.nn.softmax(scores, axis=-1)
        weights = Dropout(self.dropout)(weights, deterministic=deterministic)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, value).reshape(batch, length, width)
        return Dense(width, self.dtype, self.out_init, name="out")(mixed)


class TransformerLayer(nn.Module):
    """x + attention(LN x), then x + MLP(LN x), where the MLP is four times as wide."""

    heads: int
    dropout: float = 0.0
    dtype: Any = jnp.float32
    out_init: Any = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length width"],
        mask: Bool[Array, "batch length"],
        *,
        deterministic: bool = True,
    ) -> Float[Array, "batch length width"]:
        """Return the next states; `mask` as in `SelfAttention`."""
        width = x.shape[-1]
        drop = Dropout(self.dropout)
        attend = SelfAttention(
            self.heads, self.dropout, self.dtype, self.out_init, name="attention"
        )
        h = attend(
            LayerNorm(self.dtype, affine=False)(x),
            mask,
            deterministic=deterministic,
        )
        x = x + drop(h, deterministic=deterministic)
        h = LayerNorm(self.dtype, affine=False)(x)
        h = nn.relu(Dense(4 * width, self.dtype, name="mlp_in")(h))
        h = drop(h, deterministic=deterministic)
        h = Dense(width, self.dtype, self.out_init, name="mlp_out")(h)
        return x + drop(h, deterministic=deterministic)


def after_separator(tokens: Int[Array, "batch length"]) -> Bool[Array, "batch length"]:
    """Return which tokens follow the first separator of their row."""
    separator = (tokens == SEP).astype(jnp.int32)
    return jnp.cumsum(separator, axis=-1) - separator > 0


def roles(tokens: Int[Array, "batch length"]) -> Int[Array, "batch length"]:
    """Return each token's role: 0 up to the first separator, 1 after it, 2 for an exact match.

    An exact match is a word after the separator that also occurs before it, the feature of Chen et
    al. 2017 (DrQA). A text without a separator has role 0 throughout.

    Args:
        tokens: int32 ids.
    """
    after = after_separator(tokens)
    word = tokens >= SPECIALS
    asked = jnp.where(word & ~after, tokens, -1)
    matched = after & jnp.any(tokens[:, :, None] == asked[:, None, :], axis=-1)
    return after.astype(jnp.int32) + matched.astype(jnp.int32)


class TransformerEncoder(nn.Module):
    """Token states by pre-LN layers over token, position and role embeddings.

    Attributes:
        vocabulary: number of token ids.
        width: size of a state, a multiple of `heads`.
        layers: number of layers.
        heads: number of attention heads per layer.
        length: longest sequence, in tokens.
        dropout: dropout rate on attention weights, hidden units, residual branches and embeddings.
        dtype: dtype of the computation; parameters stay float32.
    """

    vocabulary: int
    width: int
    layers: int
    heads: int
    length: int
    dropout: float = 0.0
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Build the parameters; the branches are scaled by 1/√(2 layers) at the start (GPT-2)."""
        normal = nn.initializers.normal
        self.embedding = self.param(
            "embedding", normal(self.width**-0.5), (self.vocabulary, self.width), jnp.float32
        )
        self.positions = self.param(
            "positions", normal(0.1), (self.length, self.width), jnp.float32
        )
        self.role = self.param("role", normal(0.1), (3, self.width), jnp.float32)
        out_init = nn.initializers.variance_scaling(
            1 / (2 * self.layers), "fan_in", "truncated_normal"
        )
        self.stack = [
            TransformerLayer(self.heads, self.dropout, self.dtype, out_init, name=f"layer_{i}")
            for i in range(self.layers)
        ]
        self.norm = LayerNorm(self.dtype)
        self.drop = Dropout(self.dropout)

    def __call__(
        self, tokens: Int[Array, "batch length"], *, deterministic: bool = True
    ) -> Float[Array, "batch length {self.width}"]:
        """Return every token's state; padding states are meaningless and affect no others.

        Args:
            tokens: int32 ids, 0 = padding, at most `self.length` per row.
            deterministic: disables dropout; otherwise the rng "dropout" is read.

        Raises:
            ValueError: more tokens than `self.length`.
        """
        length = tokens.shape[1]
        if length > self.length:
            raise ValueError(f"{length} tokens per row; the encoder has {self.length} positions")
        role = jax.nn.one_hot(roles(tokens), 3, dtype=self.dtype)
        x = self.embedding[tokens].astype(self.dtype) * self.width**0.5
        x = x + self.positions[:length].astype(self.dtype) + role @ self.role.astype(self.dtype)
        x = self.drop(x, deterministic=deterministic)
        mask = tokens != PAD
        for layer in self.stack:
            x = layer(x, mask, deterministic=deterministic)
        return self.norm(x)

    def attend(self, states: Float[Array, "*batch width"]) -> Float[Array, "*batch vocabulary"]:
        """Return the product of states with every token's embedding, the tied logits."""
        return states @ self.embedding.astype(self.dtype).T
