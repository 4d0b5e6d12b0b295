"""An encoder as a value: maps an example to a vector and a token to a state."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int, Key, UInt8

from metaguide.models.bert import Pooling
from metaguide.models.transformer import PAD, TransformerEncoder, dropout
from metaguide.types import HASHES

SKETCH = 256
"""Dimensions of a sketch: the cosines of two unrelated texts scatter by 1/√SKETCH."""

FROZEN = "frozen"
"""The parameter group that nothing trains: what is fixed of a pretrained encoder."""


class Encoding(NamedTuple):
    """The shared encoder's output.

    Attributes:
        vector: one vector per example.
        states: one state per token; None if there is no text.
        lexical: a unit sketch of the words of each text, 0 where there are none; None if n-grams
            are not read. See `NgramBag.sketch`.
    """

    vector: Float[Array, "batch width"]
    states: Float[Array, "batch length width"] | None
    lexical: Float[Array, "batch sketch"] | None = None


@dataclass(frozen=True)
class Encoder:
    """An encoder of examples; `GuideModel` builds on any of them.

    Attributes:
        text: the unbound Linen module for texts, or None if tokens are not read. Its call,
            (tokens int32 [batch, length], deterministic) -> float [batch, length, width], returns
            one state per token; its `attend`, states -> float [..., vocabulary], compares states
            with the embeddings.
        vocabulary: number of token ids.
        width: width of vectors and states.
        length: longest sequence, in tokens.
        channels: channels of the convolutions on pictures; () if pictures are not read.
        dtype: dtype of the computation; parameters are float32.
        buckets: number of embeddings of hashed n-grams, at least 2; 0 if n-grams are not read.
        pretrained: width of a pretrained encoder's vectors; 0 if there is none.
        frozen: the unbound Linen module that `text` builds on, whose parameters are the group
            `FROZEN`; None if there is none. `text` gets the bound one as its attribute `frozen`.
        trains_text: whether `text` has parameters of its own.
        pooling: how the states of a text's tokens become its vector.
        compares_names: whether the vector of a class name that training has never seen says what
            the class is. If not, such a name is compared by its sketch alone.
        hidden_tokens: share of a text's tokens that a training step does not see. An encoder that
            learns from nothing would know a text of the sources by a few of its words, and learn
            little that another domain shares; to a pretrained one it does harm.

    Raises:
        ValueError: `buckets` is 1, or names have neither a vector nor a sketch to compare.
    """

    text: nn.Module | None
    vocabulary: int
    width: int
    length: int
    channels: tuple[int, ...] = ()
    dtype: Any = jnp.float32
    buckets: int = 0
    pretrained: int = 0
    frozen: nn.Module | None = None
    trains_text: bool = True
    pooling: Pooling = "mean"
    compares_names: bool = True
    hidden_tokens: float = 0.0

    def __post_init__(self) -> None:
        if self.buckets == 1:
            raise ValueError("buckets is 1; give at least 2, of which one is padding's, or 0")
        if not (self.compares_names or self.buckets):
            raise ValueError("compares_names is False; give buckets, by which names have sketches")

    @property
    def image(self) -> bool:
        """Return whether pictures are read."""
        return bool(self.channels)

    def groups(self, pictures: bool) -> tuple[str, ...]:
        """Return the names of the parameter groups that encode texts, or texts and pictures."""
        pretrained = ("pretrained",) * bool(self.pretrained)
        image = ("image",) * (pictures and self.image)
        # The table of n-grams has more entries than everything else; a support reads few of them.
        text = ("text",) * (self.text is not None and self.trains_text)
        return (*text, *pretrained, *image, "fusion")


def transformer(
    vocabulary: int,
    width: int = 64,
    layers: int = 2,
    heads: int = 4,
    length: int = 64,
    *,
    dropout: float = 0.1,
    channels: tuple[int, ...] = (16, 32, 64),
    dtype: Any = jnp.float32,
    buckets: int = 0,
    pretrained: int = 0,
) -> Encoder:
    """Return the library's own encoder: a Transformer, plus convolutions if there are `channels`.

    Args:
        vocabulary: number of token ids.
        width: width of vectors and states, a multiple of 4 and of `heads`.
        layers: number of Transformer layers; with 0 there is no Transformer, and no token is read.
        heads: number of attention heads.
        length: longest sequence, in tokens.
        dropout: dropout rate of the Transformer.
        channels: channels of the convolutions on pictures.
        dtype: dtype of the computation.
        buckets: number of embeddings of hashed n-grams, as in `Encoder`.
        pretrained: width of a pretrained encoder's vectors; 0 for none.
    """
    text = None
    if layers:
        text = TransformerEncoder(vocabulary, width, layers, heads, length, dropout, dtype)
    return Encoder(
        text,
        vocabulary,
        width,
        length,
        channels,
        dtype,
        buckets,
        pretrained,
        # The words of a few source domains do not teach what those of another domain mean.
        compares_names=bool(pretrained) or not buckets,
        hidden_tokens=0.2,
    )


def is_word(grams: Any) -> Any:
    """Return where an n-gram is a word or a pair of words, not a run of characters or padding."""
    return (grams > 0) & (grams % 2 == 0)


class NgramBag(nn.Module):
    """The words of a text as a bag of hashed n-grams: a learned vector, a sketch, and a score.

    N-grams come as the numbers of `metaguide.data.ngrams.hashed_ngrams`, 0 = padding.

    Attributes:
        buckets: number of embeddings, which n-grams share; the first is padding's.
        width: width of the vectors.
        dtype: dtype of the computation.
        dropout: share of the n-grams that a training step does not see. Otherwise a text is known
            by a few rare ones, and the common ones are not learned.

    Bojanowski, Grave, Joulin, Mikolov: Enriching Word Vectors with Subword Information, 2017.
    Weinberger et al.: Feature Hashing for Large Scale Multitask Learning, 2009.
    """

    buckets: int
    width: int
    dtype: Any = jnp.float32
    dropout: float = 0.5

    def setup(self) -> None:
        """Build the embeddings, the logarithms of the term weights and the polarities, all 0."""
        zeros, shape = nn.initializers.zeros, (self.buckets, self.width)
        self.embedding = self.param("embedding", zeros, shape, jnp.float32)
        self.term_weight = self.param("term_weight", zeros, (self.buckets,), jnp.float32)
        self.polarities = self.param("polarity", zeros, (HASHES,), jnp.float32)

    def _bucket(self, grams: Int[Array, "batch ngrams"]) -> Int[Array, "batch ngrams"]:
        return jnp.where(grams == 0, 0, 1 + (grams - 1) % (self.buckets - 1))

    def __call__(
        self, grams: Int[Array, "batch ngrams"], *, deterministic: bool = True
    ) -> Float[Array, "batch width"]:
        """Return Σ_g e_g / √n over the n distinct n-grams of each text, 0 if it has none.

        The embeddings start at 0, so an n-gram that was absent from training contributes nothing.

        Args:
            grams: numbers of n-grams.
            deterministic: disables dropout; otherwise the rng "dropout" is read.
        """
        mask = (grams != 0).astype(self.dtype)
        if not deterministic and self.dropout:
            kept = dropout(mask, self.dropout, self.make_rng("dropout")) > 0
            mask = kept.astype(self.dtype)
        embedded = self.embedding[self._bucket(grams)].astype(self.dtype)
        total = jnp.einsum("bn,bnw->bw", mask, embedded)
        return total / jnp.sqrt(jnp.maximum(mask.sum(1, keepdims=True), 1))

    def sketch(self, grams: Int[Array, "batch ngrams"]) -> Float[Array, "batch sketch"]:
        """Return s / ‖s‖ with s_k = Σ_{g: h(g) = k} ± e^(w_g): signed feature hashing.

        h is a hash of the n-gram to one of `SKETCH` places, and so is the sign.

        The product of two sketches approximates the cosine of the texts' weighted n-grams. Unlike
        the embeddings it needs no training, so it compares words that no training text has. The
        weights w_g are learned, and do the work of inverse document frequencies.

        Args:
            grams: numbers of n-grams.
        """
        # Only the high bits of a multiplicative hash depend on all bits of the number.
        mixed = grams.astype(jnp.uint32) * jnp.uint32(0x9E3779B9)
        sign = 1 - 2 * (mixed >> 31).astype(self.dtype)
        weight = jnp.exp(jnp.clip(self.term_weight, -9, 9)).astype(self.dtype)
        value = jnp.where(grams != 0, sign * weight[self._bucket(grams)], 0)
        rows = jnp.arange(grams.shape[0])[:, None]
        place = ((mixed >> 23) % SKETCH).astype(jnp.int32)
        total = jnp.zeros((grams.shape[0], SKETCH), self.dtype).at[rows, place].add(value)
        return unit(total)

    def polarity(self, grams: Int[Array, "batch ngrams"]) -> Float[Array, "batch"]:
        """Return Σ_g c_g / √n over the n words and pairs of words g of each text, 0 if none.

        c_g says how much more positive than negative a word is. `fit_polarity` fits it; unlike the
        embeddings it is not trained further, and rarely shared by two words.

        Args:
            grams: numbers of n-grams.
        """
        mask = is_word(grams).astype(self.dtype)
        total = (mask * self.polarities[grams].astype(self.dtype)).sum(1)
        return total / jnp.sqrt(jnp.maximum(mask.sum(1), 1))


class Adapter(nn.Module):
    """A pretrained encoder's vectors, normalised to mean 0 and variance 1, and projected.

    If the widths are the same, the projection starts as the identity.

    Attributes:
        width: width of the returned vectors.
        dtype: dtype of the computation.
    """

    width: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, vector: Float[Array, "batch from"]) -> Float[Array, "batch width"]:
        """Return the vectors of texts."""
        start = identity if vector.shape[-1] == self.width else nn.initializers.lecun_normal()
        centred = vector.astype(self.dtype) - vector.mean(-1, keepdims=True).astype(self.dtype)
        scale = jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-6)
        project = nn.Dense(self.width, kernel_init=start, dtype=self.dtype, name="projection")
        return project(centred * scale)


def identity(key: Key[Array, ""], shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """Return the identity matrix, an initial projection that changes nothing; ignores the key."""
    del key
    return jnp.eye(*shape, dtype=dtype)


def mean_state(
    states: Float[Array, "batch length width"], tokens: Int[Array, "batch length"]
) -> Float[Array, "batch width"]:
    """Return the mean state over the tokens that are not padding, 0 if all are."""
    mask = (tokens != PAD).astype(states.dtype)
    total = jnp.einsum("bl,blw->bw", mask, states)
    return total / jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1)


def unit(x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
    """Return x / ‖x‖, or 0 with a finite gradient where x is 0."""
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-12)


def pooled(
    states: Float[Array, "batch length width"], tokens: Int[Array, "batch length"], pooling: Pooling
) -> Float[Array, "batch width"]:
    """Return one vector per text: the mean state, or with "cls" the state of the first token."""
    return states[:, 0] if pooling == "cls" else mean_state(states, tokens)


def pixels(
    image: Float[Array, "batch 32 32 3"] | UInt8[Array, "batch 32 32 3"],
) -> Float[Array, "batch 32 32 3"]:
    """Return pictures as floats in [0, 1]."""
    return image.astype(jnp.float32) / 255 if image.dtype == jnp.uint8 else image
