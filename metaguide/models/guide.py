"""The guide: one encoder of text and pictures, and every head that stands on it.

The top-level names of the parameters are the groups that learners and objectives name: "text",
"image" and "fusion" encode; "language", "decoder" and "contrast" serve pre-training;
"classification", "sentiment", "questions" and "recommendation" are the four tasks.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

from metaguide.models.autoencoder import SIDE, ImageDecoder, ImageEncoder
from metaguide.models.transformer import PAD, SEP, LayerNorm, TransformerEncoder, roles
from metaguide.types import OUT

LARGEST = 9.0
"""Of the logarithms that rates and scales are learned as: beyond it e^x times 0 would be NaN."""


class Encoding(NamedTuple):
    """What the shared encoder makes of examples.

    Attributes:
        vector: one vector an example.
        states: one state a token; None where there is no text.
    """

    vector: Float[Array, "batch width"]
    states: Float[Array, "batch length width"] | None


def identity(key: Key[Array, ""], shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """Returns the identity matrix: a projection that starts as none; the key is not read."""
    del key
    return jnp.eye(*shape, dtype=dtype)


def unit(x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
    """Returns x / ‖x‖, and 0 with a finite gradient where x is 0."""
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-12)


def answerable(tokens: Int[Array, "batch length"]) -> Bool[Array, "batch length"]:
    """Returns where an answer may begin or end: in the text, or at position 0 for none."""
    text = (roles(tokens) > 0) & (tokens != PAD) & (tokens != SEP)
    return text | (jnp.arange(tokens.shape[1]) == 0)


class LanguageHead(nn.Module):
    """The transform and the bias of a masked language model (Devlin et al. 2019)."""

    vocabulary: int
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Makes the transform and the bias."""
        self.norm = LayerNorm(self.dtype)
        self.bias = self.param("bias", nn.initializers.zeros, (self.vocabulary,), jnp.float32)

    @nn.compact
    def __call__(self, states: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
        """Returns what is compared with the embeddings."""
        dense = nn.Dense(states.shape[-1], dtype=self.dtype, name="transform")
        return self.norm(nn.relu(dense(states)))


class Contrast(nn.Module):
    """Projections of the modalities into one space, and the temperature they are compared at."""

    width: int
    image: bool
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Makes the projections; the temperature starts at 0.07 (Radford et al. 2021)."""
        self.text_projection = nn.Dense(self.width, use_bias=False, dtype=self.dtype)
        if self.image:
            self.image_projection = nn.Dense(self.width, use_bias=False, dtype=self.dtype)
        start = nn.initializers.constant(jnp.log(0.07))
        self.log_temperature = self.param("log_temperature", start, (), jnp.float32)

    def text(self, vector: Float[Array, "batch width"]) -> Float[Array, "batch width"]:
        """Returns unit vectors of texts."""
        return unit(self.text_projection(vector))

    def picture(self, vector: Float[Array, "batch width"]) -> Float[Array, "batch width"]:
        """Returns unit vectors of pictures."""
        return unit(self.image_projection(vector))

    def temperature(self) -> Float[Array, ""]:
        """Returns the temperature, at least 0.01."""
        return jnp.exp(jnp.maximum(self.log_temperature, jnp.log(0.01)))


class ClassificationHead(nn.Module):
    """logit_c = has_name_c · s · cos(P v, Q n_c) + ⟨v, slot_c⟩ + bias_c.

    Slots and biases start at 0, so that zero shots know the names alone, and all classes are alike
    where there are none.
    """

    way: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        vector: Float[Array, "batch width"],
        names: Float[Array, "way width"],
        has_names: Bool[Array, "way"],
    ) -> Float[Array, "batch way"]:
        """Returns the logits; up to `self.way` classes."""
        way, width = names.shape
        if way > self.way:
            raise ValueError(f"{way} classes, the guide has slots for {self.way}")
        zeros = nn.initializers.zeros
        slots = self.param("slots", zeros, (self.way, width), jnp.float32)[:way].astype(self.dtype)
        bias = self.param("bias", zeros, (self.way,), jnp.float32)[:way].astype(self.dtype)
        scale = self.param("log_scale", nn.initializers.constant(jnp.log(10.0)), (), jnp.float32)
        project = functools.partial(
            nn.Dense, width, use_bias=False, kernel_init=identity, dtype=self.dtype
        )
        example = unit(project(name="vector")(vector))
        name = unit(project(name="name")(names))
        similarity = jnp.where(has_names, example @ name.T, 0)
        scale = jnp.exp(jnp.minimum(scale, LARGEST)).astype(self.dtype)
        return scale * similarity + vector @ slots.T + bias


class SentimentHead(nn.Module):
    """Linear scores of negative and positive, and stars = 1 + 4 σ(linear)."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, vector: Float[Array, "batch width"]
    ) -> tuple[Float[Array, "batch 2"], Float[Array, "batch"]]:
        """Returns (logits, stars)."""
        logits = nn.Dense(2, dtype=self.dtype, name="classes")(vector)
        stars = nn.Dense(1, dtype=self.dtype, name="stars")(vector)[:, 0]
        return logits, 1 + 4 * nn.sigmoid(stars)


class QuestionHead(nn.Module):
    """Linear scores of where an answer starts and where it ends (Devlin et al. 2019)."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, states: Float[Array, "batch length width"], tokens: Int[Array, "batch length"]
    ) -> tuple[Float[Array, "batch length"], Float[Array, "batch length"]]:
        """Returns (start, end), `OUT` where no answer can be."""
        scores = nn.Dense(2, dtype=self.dtype, name="ends")(states)
        start, end = jnp.where(answerable(tokens)[..., None], scores, OUT).transpose(2, 0, 1)
        return start, end


class RecommendationHead(nn.Module):
    """A user is a recency-weighted mean of projected products, and a residual MLP of that mean.

    u_t = m_t + MLP(m_t), m_t = Σ_j≤t e^(−r (t − j)) p_j / Σ_j≤t e^(−r (t − j)), p_0 a learned
    start; each group of channels has its own learned rate r, so that one user has a short and a
    long memory. Padding takes no time.
    """

    width: int
    rates: int = 4
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Makes the parameters; the projection of products starts as none."""
        self.product = nn.Dense(self.width, kernel_init=identity, dtype=self.dtype)
        self.start = self.param("start", nn.initializers.normal(0.1), (self.width,), jnp.float32)
        memory = jnp.log(jnp.geomspace(0.02, 1.0, self.rates))
        self.log_rate = self.param("log_rate", lambda _: memory)
        self.norm = LayerNorm(self.dtype)
        self.hidden = nn.Dense(2 * self.width, dtype=self.dtype)
        small = nn.initializers.variance_scaling(0.01, "fan_in", "truncated_normal")
        self.out = nn.Dense(self.width, kernel_init=small, dtype=self.dtype)

    def products(self, vector: Float[Array, "products width"]) -> Float[Array, "products width"]:
        """Returns the products as users see them."""
        return self.product(vector)

    def scores(
        self, users: Float[Array, "rows width"], vector: Float[Array, "products width"]
    ) -> Float[Array, "rows products"]:
        """Returns users · products(vector), without making the products that users see.

        Where each user has a projection of his own, it is `width` times less work, and no memory.
        """
        dense = self.product.variables["params"]
        kernel, bias = (dense[name].astype(self.dtype) for name in ("kernel", "bias"))
        return (users @ kernel.T) @ vector.T + (users @ bias)[:, None]

    def users(
        self,
        history: Float[Array, "items width"],
        mask: Bool[Array, "items"],
        at: slice = slice(None),
    ) -> Float[Array, "rows width"]:
        """Returns those `at` of items + 1 rows, row t the user after the first t products."""
        items = jnp.concatenate([self.start[None].astype(self.dtype), self.product(history)])
        real = jnp.concatenate([jnp.ones((1,), bool), mask])
        time = jnp.cumsum(real.astype(jnp.int32))
        rows = jnp.arange(items.shape[0])
        seen = real[None, :] & (rows[None, :] <= rows[at, None])
        age = jnp.maximum(time[at, None] - time[None, :], 0).astype(self.dtype)
        rate = jnp.exp(jnp.minimum(self.log_rate, LARGEST)).astype(self.dtype)
        weights = jnp.where(seen, jnp.exp(-rate[:, None, None] * age), 0)
        weights = weights / jnp.sum(weights, axis=-1, keepdims=True)
        grouped = items.reshape(items.shape[0], self.rates, -1)
        mean = jnp.einsum("rti,irc->trc", weights, grouped).reshape(-1, items.shape[1])
        return mean + self.out(nn.relu(self.hidden(self.norm(mean))))


class GuideModel(nn.Module):
    """The shared encoder and the heads; every method is pure through `apply(..., method=...)`.

    Attributes:
        vocabulary: number of token ids.
        width: size of vectors and states, a multiple of 4 and of `heads`.
        layers: Transformer layers.
        heads: attention heads.
        length: longest sequence, in tokens.
        dropout: rate, in the Transformer.
        way: most classes of a classification.
        channels: of the image encoder's convolutions.
        image: whether pictures are encoded; without, "image" and "decoder" do not exist.
        dtype: of the computation; parameters stay float32.
    """

    vocabulary: int
    width: int = 64
    layers: int = 2
    heads: int = 4
    length: int = 64
    dropout: float = 0.1
    way: int = 10
    channels: tuple[int, ...] = (16, 32, 64)
    image: bool = True
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Makes the groups."""
        self.text = TransformerEncoder(
            self.vocabulary,
            self.width,
            self.layers,
            self.heads,
            self.length,
            self.dropout,
            self.dtype,
        )
        if self.image:
            self.picture = ImageEncoder(self.width, self.channels, self.dtype, name="image")
            self.decoder = ImageDecoder(self.channels, self.dtype)
        self.fusion = LayerNorm(self.dtype)
        self.language = LanguageHead(self.vocabulary, self.dtype)
        self.contrast = Contrast(self.width, self.image, self.dtype)
        self.classification = ClassificationHead(self.way, self.dtype)
        self.sentiment = SentimentHead(self.dtype)
        self.questions = QuestionHead(self.dtype)
        self.recommendation = RecommendationHead(self.width, dtype=self.dtype)

    def __call__(
        self,
        tokens: Int[Array, "batch length"],
        image: Float[Array, "batch 32 32 3"] | UInt8[Array, "batch 32 32 3"] | None = None,
    ) -> Encoding:
        """Returns the encoding, having used every group once, so that `init` makes them all."""
        encoding = self.encode(tokens, image)
        vector, states = encoding
        assert states is not None
        self.language_logits(states[:, :1])
        self.contrast_text(tokens)
        self.temperature()
        if image is not None:
            self.reconstruct(image)
            self.contrast_image(image)
        self.classify(vector, vector[: self.way], jnp.ones((vector[: self.way].shape[0],), bool))
        self.sentiment_scores(vector)
        self.span_scores(states, tokens)
        self.user_vectors(vector, jnp.ones((vector.shape[0],), bool))
        return encoding

    def text_states(
        self, tokens: Int[Array, "batch length"], *, deterministic: bool = True
    ) -> Float[Array, "batch length {self.width}"]:
        """Returns the state of every token, as in `TransformerEncoder`."""
        return self.text(tokens, deterministic=deterministic)

    def text_vector(
        self, tokens: Int[Array, "batch length"], *, deterministic: bool = True
    ) -> Float[Array, "batch {self.width}"]:
        """Returns the mean of the states of what is not padding."""
        return mean_state(self.text(tokens, deterministic=deterministic), tokens)

    def image_vector(
        self, image: Float[Array, "batch 32 32 3"] | UInt8[Array, "batch 32 32 3"]
    ) -> Float[Array, "batch {self.width}"]:
        """Returns the picture's vector; `image` float in [0, 1] or uint8 in [0, 255]."""
        return self.picture(pixels(image))

    def encode(
        self,
        tokens: Int[Array, "batch length"] | None = None,
        image: Float[Array, "batch 32 32 3"] | UInt8[Array, "batch 32 32 3"] | None = None,
        has_image: Bool[Array, "batch"] | None = None,
        *,
        deterministic: bool = True,
    ) -> Encoding:
        """Returns LayerNorm(mean of the vectors of what there is of text and picture), and states.

        Args:
            tokens: int32 ids, 0 = padding, or None for pictures alone.
            image: pictures, float in [0, 1] or uint8; or None for texts alone.
            has_image: False where a row has a text and no picture; None where all have one.
            deterministic: no dropout; otherwise the rng "dropout" is read.

        Raises:
            ValueError: neither text nor picture, or a picture for a guide without pictures.
        """
        if image is not None and not self.image:
            raise ValueError("pictures for a guide that was built with image=False")
        if tokens is None:
            if image is None:
                raise ValueError("nothing to encode: neither tokens nor image")
            return Encoding(self.fusion(self.image_vector(image)), None)
        states = self.text(tokens, deterministic=deterministic)
        vector = mean_state(states, tokens)
        if image is not None:
            both = (vector + self.image_vector(image)) / 2
            vector = both if has_image is None else jnp.where(has_image[:, None], both, vector)
        return Encoding(self.fusion(vector), states)

    def language_logits(
        self, states: Float[Array, "*batch width"]
    ) -> Float[Array, "*batch {self.vocabulary}"]:
        """Returns the masked language model's logits, tied to the embedding."""
        bias = self.language.bias.astype(self.dtype)
        return self.text.attend(self.language(states)) + bias

    def reconstruct(
        self,
        image: Float[Array, "batch 32 32 3"] | UInt8[Array, "batch 32 32 3"],
        *,
        deterministic: bool = True,
    ) -> Float[Array, "batch 32 32 3"]:
        """Returns the autoencoder's pictures, float32 in [0, 1]; there is no dropout in it."""
        del deterministic
        return self.decoder(self.image_vector(image))

    def contrast_text(
        self, tokens: Int[Array, "batch length"], *, deterministic: bool = True
    ) -> Float[Array, "batch {self.width}"]:
        """Returns unit vectors of texts in the space of the contrastive loss."""
        return self.contrast.text(self.text_vector(tokens, deterministic=deterministic))

    def contrast_image(
        self, image: Float[Array, "batch 32 32 3"] | UInt8[Array, "batch 32 32 3"]
    ) -> Float[Array, "batch {self.width}"]:
        """Returns unit vectors of pictures in the space of the contrastive loss."""
        return self.contrast.picture(self.image_vector(image))

    def temperature(self) -> Float[Array, ""]:
        """Returns the temperature of the contrastive loss, at least 0.01."""
        return self.contrast.temperature()

    def classify(
        self,
        vector: Float[Array, "batch width"],
        names: Float[Array, "way width"],
        has_names: Bool[Array, "way"],
    ) -> Float[Array, "batch way"]:
        """Returns logits of the classes whose names are encoded in `names`, as in its head.

        Args:
            vector: the examples' vectors.
            names: the vectors of the class names, at most `self.way` of them.
            has_names: False where a class has no name, or none is to be used.
        """
        return self.classification(vector, names, has_names)

    def sentiment_scores(
        self, vector: Float[Array, "batch width"]
    ) -> tuple[Float[Array, "batch 2"], Float[Array, "batch"]]:
        """Returns (logits of negative and positive, stars in 1..5)."""
        return self.sentiment(vector)

    def span_scores(
        self, states: Float[Array, "batch length width"], tokens: Int[Array, "batch length"]
    ) -> tuple[Float[Array, "batch length"], Float[Array, "batch length"]]:
        """Returns (start, end) scores; `OUT` outside the text, position 0 means no answer."""
        return self.questions(states, tokens)

    def user_vectors(
        self, history: Float[Array, "items width"], mask: Bool[Array, "items"]
    ) -> Float[Array, "rows width"]:
        """Returns items + 1 rows, row t being the user after the first t products.

        Args:
            history: vectors of the products of one user, in the order of time.
            mask: False where `history` is padding, which changes nothing.
        """
        return self.recommendation.users(history, mask)

    def user_vector(
        self, history: Float[Array, "items width"], mask: Bool[Array, "items"]
    ) -> Float[Array, "{self.width}"]:
        """Returns the last row of `user_vectors`, in time that does not grow with its square."""
        return self.recommendation.users(history, mask, slice(-1, None))[0]

    def product_vectors(
        self, vector: Float[Array, "products width"]
    ) -> Float[Array, "products width"]:
        """Returns the products' side of the score: user · product / √width."""
        return self.recommendation.products(vector)

    def user_scores(
        self, users: Float[Array, "rows width"], vector: Float[Array, "products width"]
    ) -> Float[Array, "rows products"]:
        """Returns user · product / √width of all products, as `product_vectors` would give it."""
        return self.recommendation.scores(users, vector) / jnp.sqrt(
            jnp.asarray(users.shape[-1], users.dtype)
        )


def mean_state(
    states: Float[Array, "batch length width"], tokens: Int[Array, "batch length"]
) -> Float[Array, "batch width"]:
    """Returns the mean of the states of what is not padding, 0 where all is."""
    mask = (tokens != PAD).astype(states.dtype)
    total = jnp.einsum("bl,blw->bw", mask, states)
    return total / jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1)


def pixels(
    image: Float[Array, "batch 32 32 3"] | UInt8[Array, "batch 32 32 3"],
) -> Float[Array, "batch 32 32 3"]:
    """Returns pictures as floats in [0, 1]."""
    return image.astype(jnp.float32) / 255 if image.dtype == jnp.uint8 else image


def with_slots(params: Mapping[str, Any], way: int) -> Mapping[str, Any]:
    """Returns the guide's parameters with a slot for each of `way` classes.

    Where the guide has as many they are its own. For more classes, all slots are the mean of the
    guide's: no class comes before another, and until they adapt the scores are
    those of the names alone.

    Args:
        params: of every group.
        way: number of classes.
    """
    head = params["classification"]
    if way <= len(head["bias"]):
        return params
    more = {
        name: jnp.broadcast_to(head[name].mean(0, keepdims=True), (way, *head[name].shape[1:]))
        for name in ("slots", "bias")
    }
    return {**params, "classification": {**head, **more}}


def init_params(model: GuideModel, key: Key[Array, ""]) -> dict[str, Any]:
    """Returns the parameters of every group, float32.

    Args:
        model: the guide.
        key: key, typed.
    """
    tokens = jnp.zeros((1, min(2, model.length)), jnp.int32)
    image = jnp.zeros((1, SIDE, SIDE, 3)) if model.image else None
    return dict(jax.jit(model.init)(key, tokens, image)["params"])
