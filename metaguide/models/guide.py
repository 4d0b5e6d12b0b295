"""The guide: one encoder of text and pictures, and the heads on top of it.

The top-level parameter names are the groups that learners and objectives refer to: "text", "grams",
"pretrained", "image" and "fusion" encode; "language", "decoder" and "contrast" serve pre-training;
"frozen" is what nothing trains of a pretrained encoder; each task's head is named after its task.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

from metaguide.models.autoencoder import SIDE, ImageDecoder, ImageEncoder
from metaguide.models.encoder import (
    Adapter,
    Encoder,
    Encoding,
    NgramBag,
    pixels,
    pooled,
    unit,
)
from metaguide.models.transformer import LayerNorm, dropout

WITHOUT_STATES = 0.5
"""Share of the texts of a training step that are known by their n-grams alone."""


class LanguageHead(nn.Module):
    """The output transform and bias of a masked language model (Devlin et al. 2019)."""

    vocabulary: int
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Build the transform and the bias."""
        self.norm = LayerNorm(self.dtype)
        self.bias = self.param("bias", nn.initializers.zeros, (self.vocabulary,), jnp.float32)

    @nn.compact
    def __call__(self, states: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
        """Return the states to compare with the embeddings."""
        dense = nn.Dense(states.shape[-1], dtype=self.dtype, name="transform")
        return self.norm(nn.relu(dense(states)))


class Contrast(nn.Module):
    """Projections of the modalities into one space, and the temperature they are compared at."""

    width: int
    image: bool
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Build the projections; the temperature starts at 0.07 (Radford et al. 2021)."""
        self.text_projection = nn.Dense(self.width, use_bias=False, dtype=self.dtype)
        if self.image:
            self.image_projection = nn.Dense(self.width, use_bias=False, dtype=self.dtype)
        start = nn.initializers.constant(jnp.log(0.07))
        self.log_temperature = self.param("log_temperature", start, (), jnp.float32)

    def text(self, vector: Float[Array, "batch width"]) -> Float[Array, "batch width"]:
        """Return unit vectors of texts."""
        return unit(self.text_projection(vector))

    def picture(self, vector: Float[Array, "batch width"]) -> Float[Array, "batch width"]:
        """Return unit vectors of pictures."""
        return unit(self.image_projection(vector))

    def temperature(self) -> Float[Array, ""]:
        """Return the temperature, at least 0.01."""
        return jnp.exp(jnp.maximum(self.log_temperature, jnp.log(0.01)))


class GuideModel(nn.Module):
    """The shared encoder and the heads; every method is pure through `apply(..., method=...)`.

    Attributes:
        encoder: the encoder of texts and pictures.
        heads: for each task, a function of (encoder, way) that builds its head.
        way: largest number of classes in a classification.
    """

    encoder: Encoder
    heads: Mapping[str, Callable[[Encoder, int], nn.Module]]
    way: int = 10

    @property
    def vocabulary(self) -> int:
        """Return the number of token ids."""
        return self.encoder.vocabulary

    @property
    def width(self) -> int:
        """Return the size of vectors and states."""
        return self.encoder.width

    @property
    def image(self) -> bool:
        """Return whether pictures are read."""
        return self.encoder.image

    def setup(self) -> None:
        """Build the groups."""
        encoder = self.encoder
        if encoder.text is not None:
            below: dict[str, Any] = {}
            if encoder.frozen is not None:
                self.frozen = encoder.frozen.clone()
                below = {"frozen": self.frozen}
            self.text: Any = encoder.text.clone(**below)
            self.language = LanguageHead(encoder.vocabulary, encoder.dtype)
            self.contrast = Contrast(encoder.width, encoder.image, encoder.dtype)
        if encoder.image:
            self.picture = ImageEncoder(
                encoder.width, encoder.channels, encoder.dtype, name="image"
            )
            self.decoder = ImageDecoder(encoder.channels, encoder.dtype)
        if encoder.buckets:
            self.grams = NgramBag(encoder.buckets, encoder.width, encoder.dtype)
        if encoder.pretrained:
            self.pretrained = Adapter(encoder.width, encoder.dtype)
        self.fusion = LayerNorm(encoder.dtype)
        for task, head in self.heads.items():
            setattr(self, task, head(encoder, self.way))

    def __call__(
        self,
        tokens: Int[Array, "batch length"],
        image: Float[Array, "batch 32 32 3"] | UInt8[Array, "batch 32 32 3"] | None = None,
    ) -> Encoding:
        """Return the encoding after using every group once, so that `init` creates them all."""
        encoder, grams, vector = self.encoder, None, None
        if encoder.buckets:
            grams = jnp.ones((len(tokens), 1), jnp.int32)
        if encoder.pretrained:
            vector = jnp.ones((len(tokens), encoder.pretrained), encoder.dtype)
        encoding = self.encode(tokens, image, grams=grams, vector=vector)
        if encoding.states is not None:
            self.language_logits(encoding.states[:, :1])
            self.contrast_text(tokens)
            self.temperature()
        if image is not None:
            self.reconstruct(image)
            if encoding.states is not None:
                self.contrast_image(image)
        for task in self.heads:
            getattr(self, task).touch(encoding, tokens)
        return encoding

    def head(self, task: str, method: str, *args: Any) -> Any:
        """Return the result of a method of a task's head."""
        return getattr(getattr(self, task), method)(*args)

    def text_states(
        self, tokens: Int[Array, "batch length"], *, deterministic: bool = True
    ) -> Float[Array, "batch length {self.width}"]:
        """Return the state of every token, as in `TransformerEncoder`."""
        return self.text(tokens, deterministic=deterministic)

    def text_vector(
        self, tokens: Int[Array, "batch length"], *, deterministic: bool = True
    ) -> Float[Array, "batch {self.width}"]:
        """Return the vector of every text, by the encoder's pooling of the states."""
        states = self.text(tokens, deterministic=deterministic)
        return pooled(states, tokens, self.encoder.pooling)

    def image_vector(
        self, image: Float[Array, "batch 32 32 3"] | UInt8[Array, "batch 32 32 3"]
    ) -> Float[Array, "batch {self.width}"]:
        """Return the picture's vector; `image` float in [0, 1] or uint8 in [0, 255]."""
        return self.picture(pixels(image))

    def encode(
        self,
        tokens: Int[Array, "batch length"] | None = None,
        image: Float[Array, "batch 32 32 3"] | UInt8[Array, "batch 32 32 3"] | None = None,
        has_image: Bool[Array, "batch"] | None = None,
        *,
        grams: Int[Array, "batch ngrams"] | None = None,
        vector: Float[Array, "batch {self.encoder.pretrained}"] | None = None,
        deterministic: bool = True,
    ) -> Encoding:
        """Return LayerNorm(mean of the text's and the picture's vectors), states and sketches.

        The vector of a text is the sum of its pooled states, the bag of its n-grams and the
        adapted vector of a pretrained encoder, of those that there are. In training, the states of
        a text with n-grams are left out of its vector with probability `WITHOUT_STATES`: otherwise
        they know the texts of the sources so well that the n-grams, which say more of another
        domain, have little left to learn.

        Args:
            tokens: int32 ids, 0 = padding, or None for pictures alone.
            image: pictures, float in [0, 1] or uint8; or None for texts alone.
            has_image: False where a row has a text but no picture; None if every row has one.
            grams: int32 numbers of n-grams, 0 = padding; ignored if the encoder has no buckets.
            vector: a pretrained encoder's vector of each text; None if there is none.
            deterministic: disables dropout; otherwise the rng "dropout" is read.

        Raises:
            ValueError: neither text nor picture is given, or the guide takes no pictures.
        """
        if image is not None and not self.image:
            raise ValueError("pictures for a guide that was built with image=False")
        if not self.encoder.buckets:
            grams = None
        states, lexical, parts = None, None, []
        if tokens is not None and self.encoder.text is not None:
            states = self.text(tokens, deterministic=deterministic)
            said = pooled(states, tokens, self.encoder.pooling)
            if grams is not None and not deterministic:
                ones = jnp.ones((len(said), 1), said.dtype)
                read = dropout(ones, WITHOUT_STATES, self.make_rng("dropout")) > 0
                said = jnp.where(read, said, 0)
            parts.append(said)
        if grams is not None:
            parts.append(self.grams(grams, deterministic=deterministic))
            lexical = self.grams.sketch(grams)
        if vector is not None:
            parts.append(self.pretrained(vector))
        if not parts:
            if image is None:
                raise ValueError("nothing to encode: neither text nor image")
            return Encoding(self.fusion(self.image_vector(image)), None)
        whole = sum(parts[1:], parts[0])
        if image is not None:
            both = (whole + self.image_vector(image)) / 2
            whole = both if has_image is None else jnp.where(has_image[:, None], both, whole)
        return Encoding(self.fusion(whole), states, lexical)

    def polarity(self, grams: Int[Array, "batch ngrams"]) -> Float[Array, "batch"]:
        """Return how much more positive than negative the n-grams of each text are."""
        return self.grams.polarity(grams)

    def language_logits(
        self, states: Float[Array, "*batch width"]
    ) -> Float[Array, "*batch {self.vocabulary}"]:
        """Return the masked language model's logits, tied to the embedding."""
        bias = self.language.bias.astype(self.encoder.dtype)
        return self.text.attend(self.language(states)) + bias

    def reconstruct(
        self,
        image: Float[Array, "batch 32 32 3"] | UInt8[Array, "batch 32 32 3"],
        *,
        deterministic: bool = True,
    ) -> Float[Array, "batch 32 32 3"]:
        """Return the autoencoder's pictures, float32 in [0, 1]; it has no dropout."""
        del deterministic
        return self.decoder(self.image_vector(image))

    def contrast_text(
        self, tokens: Int[Array, "batch length"], *, deterministic: bool = True
    ) -> Float[Array, "batch {self.width}"]:
        """Return unit vectors of texts in the space of the contrastive loss."""
        return self.contrast.text(self.text_vector(tokens, deterministic=deterministic))

    def contrast_image(
        self, image: Float[Array, "batch 32 32 3"] | UInt8[Array, "batch 32 32 3"]
    ) -> Float[Array, "batch {self.width}"]:
        """Return unit vectors of pictures in the space of the contrastive loss."""
        return self.contrast.picture(self.image_vector(image))

    def temperature(self) -> Float[Array, ""]:
        """Return the temperature of the contrastive loss, at least 0.01."""
        return self.contrast.temperature()


def init_params(
    model: GuideModel, key: Key[Array, ""], known: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the parameters of every group, float32.

    Args:
        model: the guide.
        key: typed PRNG key.
        known: groups to take as they are, such as those of a pretrained encoder.
    """
    known = known or {}
    tokens = jnp.zeros((1, min(2, model.encoder.length)), jnp.int32)
    image = jnp.zeros((1, SIDE, SIDE, 3)) if model.image else None

    @jax.jit
    def others(key: Key[Array, ""]) -> dict[str, Any]:
        params = model.init(key, tokens, image)["params"]
        return {group: one for group, one in params.items() if group not in known}

    return {**others(key), **known}
