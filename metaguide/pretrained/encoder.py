"""A pretrained encoder as a value: from texts to vectors, in batches that compile few programs."""

import os
import sys
import warnings
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import islice
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int, Int32, Shaped

from metaguide.data.pretrained_tokenizer import (
    GuideTokenizer,
    PretrainedTokenizer,
    Tokenized,
    guide_tokenizer,
)
from metaguide.data.texts import SomeTexts
from metaguide.models.bert import Bert, BertConfig, BertLayer, Pooling, pool
from metaguide.pretrained.folder import read_folder

FEW_TOKENS, MANY_TOKENS = 512, 32768
"""Tokens per batch: as many as a CPU's caches hold, and enough to keep an accelerator busy."""


class CutTexts(SomeTexts):
    """Texts were longer than an encoder reads, and were truncated."""

    said = "longer than {} tokens; the rest is not read"


class UnknownTexts(SomeTexts):
    """Texts are of a language that an encoder's tokenizer does not know."""

    said = (
        "mostly of pieces that the encoder's tokenizer does not know; use an encoder of their "
        "language"
    )


class States(NamedTuple):
    """States of all tokens of some texts, concatenated.

    Attributes:
        states: states of the tokens, float16 or float32.
        counts: number of tokens of each text, including those around it.
    """

    states: Shaped[np.ndarray, "tokens width"]
    counts: Int32[np.ndarray, " texts"]


class Batch(NamedTuple):
    """Some texts of similar lengths.

    Attributes:
        rows: numbers of the texts.
        length: length of the padded rows.
        size: number of padded rows, at least the number of texts.
    """

    rows: Int[np.ndarray, " texts"]
    length: int
    size: int


@dataclass(frozen=True, eq=False)
class PretrainedEncoder:
    """A frozen, immutable encoder of texts; use `dataclasses.replace` to change a field.

    Attributes:
        config: the encoder's shape.
        params: parameters of `metaguide.models.bert.Bert`, float32.
        tokenizer: the tokenizer of the texts.
        pooling: how token states become a vector.
        prefix: prefix of every text.
        length: the most tokens of a text; the rest is cut off.
        dtype: dtype of the computation.
        tokens_per_batch: number of tokens computed at once, including padding.
        fingerprint: hash of the files that the encoder was read from.
    """

    config: BertConfig
    params: Mapping[str, Any] = field(repr=False)
    tokenizer: PretrainedTokenizer = field(repr=False)
    pooling: Pooling
    prefix: str
    length: int
    dtype: Any
    tokens_per_batch: int
    fingerprint: str

    @property
    def module(self) -> Bert:
        """The Linen module of `params`."""
        return Bert(self.config, dtype=self.dtype)

    @cached_property
    def guide_tokenizer(self) -> GuideTokenizer:
        """The tokenizer with the prefix, as a guide reads them.

        Raises:
            TokenizerError: the tokenizer puts no token between the texts of a pair.
        """
        return guide_tokenizer(self.tokenizer, self.config.pad, self.prefix)

    def tokenize(self, texts: Sequence[str]) -> Tokenized:
        """Return texts as tokens, each with the prefix, cut to `length`.

        Raises:
            TokenizerError: a text is not valid Unicode.
        """
        return self.tokenizer.encode(texts, self.length, self.prefix)

    def reads_to_the_end(self, texts: Sequence[str]) -> Bool[np.ndarray, " texts"]:
        """Return which texts have no more than `length` tokens, so that none is cut.

        Raises:
            TokenizerError: a text is not valid Unicode.
        """
        return ~self.tokenize(texts).is_cut

    def encode(self, texts: Sequence[str]) -> Float32[np.ndarray, "texts width"]:
        """Return one vector per text, in the order of the texts.

        An empty text gets the vector of the tokens around it. A `CutTexts` warning tells how many
        texts were cut, and an `UnknownTexts` warning how many the tokenizer hardly knows.

        Raises:
            TokenizerError: a text is not valid Unicode.
        """
        tokenized = self._checked(texts)
        vectors = np.zeros((len(texts), self.config.width), np.float32)
        for batch, found in self._batches(tokenized, states=False):
            vectors[batch.rows] = found
        return vectors

    def states(self, texts: Sequence[str], dtype: Any = np.float16) -> States:
        """Return the state of every token, in the order of the texts.

        Args:
            texts: as in `encode`.
            dtype: dtype of the result; float16 halves the memory.

        Raises:
            TokenizerError: a text is not valid Unicode.
        """
        tokenized = self._checked(texts)
        starts = np.cumsum(tokenized.counts) - tokenized.counts
        states = np.zeros((len(tokenized.tokens), self.config.width), dtype)
        for batch, found in self._batches(tokenized, states=True):
            for row, of_row in zip(batch.rows, found, strict=True):
                count = tokenized.counts[row]
                states[starts[row] : starts[row] + count] = of_row[:count]
        return States(states, tokenized.counts)

    def _checked(self, texts: Sequence[str]) -> Tokenized:
        tokenized = self.tokenize(texts)
        if cut := int(tokenized.is_cut.sum()):
            warnings.warn(CutTexts(cut, len(texts), self.length), stacklevel=3)
        if unknown := int(tokenized.is_unknown.sum()):
            warnings.warn(UnknownTexts(unknown, len(texts)), stacklevel=3)
        return tokenized

    def _batches(self, tokenized: Tokenized, states: bool) -> Iterator[tuple[Batch, np.ndarray]]:
        """Yield batches with their vectors or states, as they complete."""
        counts = tokenized.counts
        starts = np.cumsum(counts) - counts

        def computed(batch: Batch) -> tuple[Batch, np.ndarray]:
            kept = np.arange(batch.length) < counts[batch.rows, None]
            places = (starts[batch.rows, None] + np.arange(batch.length))[kept]
            tokens = np.full((batch.size, batch.length), self.config.pad, np.int32)
            mask = np.zeros(tokens.shape, bool)
            tokens[: len(kept)][kept] = tokenized.tokens[places]
            mask[: len(kept)] = kept
            found = self.forward(tokens, mask)
            if not states:
                found = _pool(found, mask, self.pooling)
            return batch, np.asarray(found)[: len(batch.rows)]

        todo = batches(counts, self.tokens_per_batch, self.length)
        # Threads within a matrix product wait for one another; one batch per core avoids that.
        workers = cores() if jax.default_backend() == "cpu" else 2
        with ThreadPoolExecutor(workers) as threads:
            running = deque(threads.submit(computed, batch) for batch in islice(todo, 2 * workers))
            while running:
                yield running.popleft().result()
                running.extend(threads.submit(computed, batch) for batch in islice(todo, 1))

    def forward(
        self, tokens: Int[np.ndarray, "batch length"], mask: Bool[np.ndarray, "batch length"]
    ) -> Float[Array, "batch length width"]:
        """Return the states of padded rows of tokens.

        All layers share one compiled program: with twelve layers, it compiles in a twelfth of the
        time.

        Args:
            tokens: int32 ids.
            mask: False for padding.
        """
        x = _embed(self.module, self.params, tokens)
        layer = BertLayer(self.config, dtype=self.dtype)
        for number in range(self.config.layers):
            x = _layer(layer, self.params[f"layer_{number}"], x, mask)
        return x


@partial(jax.jit, static_argnums=0)
def _embed(module: Bert, params: Any, tokens: Array) -> Array:
    return jnp.asarray(module.apply({"params": params}, tokens, method="embed"))


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def _layer(layer: BertLayer, params: Any, x: Array, mask: Array) -> Array:
    return jnp.asarray(layer.apply({"params": params}, x, mask))


_pool = jax.jit(pool, static_argnums=2)


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def batches(counts: Int[np.ndarray, " texts"], tokens: int, longest: int) -> Iterator[Batch]:
    """Yield the batches of texts, the longest texts first.

    All rows of a batch have the same length, which limits both compiled programs and padding.

    Args:
        counts: number of tokens of each text.
        tokens: number of tokens per batch, including padding.
        longest: the largest length of a row.
    """
    order = np.argsort(-counts, kind="stable")
    padded = np.minimum(rounded(counts[order]), longest)
    start = 0
    while start < len(order):
        length = int(padded[start])
        size = max(1, tokens // length)
        # Saving a program is not worth padding short texts to a long one's length.
        fits = np.searchsorted(-padded, -(length // 2), "left")
        stop = min(start + size, max(int(fits), start + 1))
        rows = order[start:stop]
        yield Batch(rows, length, min(size, 1 << (len(rows) - 1).bit_length()))
        start = stop


def rounded(counts: Int[np.ndarray, " texts"]) -> Int[np.ndarray, " texts"]:
    """Return lengths of padded rows: multiples of 4 to 32, then 4 steps per power of two."""
    power = 2.0 ** np.ceil(np.log2(np.maximum(counts, 1)))
    step = np.maximum(power / 8, 4).astype(counts.dtype)
    return -(-counts // step) * step


def load_encoder(
    folder: str | os.PathLike[str],
    *,
    prefix: str = "",
    pooling: Pooling | None = None,
    length: int | None = None,
    dtype: Any = jnp.float32,
    tokens_per_batch: int | None = None,
) -> PretrainedEncoder:
    """Read a pretrained encoder of the BERT family from a Hugging Face folder.

    Args:
        folder: folder with `config.json`, `model.safetensors` and `tokenizer.json`.
        prefix: prefix of every text: "query: " for the e5 models, "" for most others.
        pooling: "mean" or "cls"; by default that of `1_Pooling/config.json`, or "mean" without it.
        length: the most tokens of a text; by default the number of the encoder's positions.
        dtype: dtype of the computation, float32 or bfloat16.
        tokens_per_batch: number of tokens computed at once; by default a fast one for the backend.

    Raises:
        EncoderError: the folder holds no such encoder, or a part of it is missing or damaged.
        ValueError: an argument is out of range.
    """
    read = read_folder(folder, pooling)
    if read.pooling not in get_args(Pooling):
        raise ValueError(f"pooling is {read.pooling!r}; give 'mean' or 'cls'")
    length = read.config.length if length is None else length
    if not 3 <= length <= read.config.length:
        raise ValueError(
            f"length is {length}; give 3 to {read.config.length}, the encoder's positions"
        )
    if jnp.dtype(dtype) not in (jnp.float32, jnp.bfloat16):
        raise ValueError(f"dtype is {jnp.dtype(dtype)}; give float32 or bfloat16")
    if tokens_per_batch is None:
        tokens_per_batch = FEW_TOKENS if jax.default_backend() == "cpu" else MANY_TOKENS
    elif tokens_per_batch < 1:
        raise ValueError(f"tokens_per_batch is {tokens_per_batch}; give at least 1")
    return PretrainedEncoder(
        read.config,
        jax.tree.map(jnp.asarray, read.params),
        read.tokenizer,
        read.pooling,
        prefix,
        length,
        jnp.dtype(dtype),
        tokens_per_batch,
        read.fingerprint,
    )
