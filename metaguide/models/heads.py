"""The heads of the tasks, which work on any encoder.

Each has a method `touch`, which uses it once on an encoding, so that `init` creates its parameters.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from metaguide.models.encoder import Encoding, identity, unit
from metaguide.models.transformer import PAD, SEP, LayerNorm, roles
from metaguide.types import OUT

LARGEST = 9.0
"""Bound on the learned logarithms of rates and scales: beyond it e^x times 0 would be NaN."""


def exponential(logarithm: Float[Array, "*shape"], dtype: Any) -> Float[Array, "*shape"]:
    """Return e^x of a learned logarithm x, which is bounded by `LARGEST`."""
    return jnp.exp(jnp.minimum(logarithm, LARGEST)).astype(dtype)


def answerable(tokens: Int[Array, "batch length"]) -> Bool[Array, "batch length"]:
    """Return where an answer may begin or end: in the text, or at position 0 for no answer."""
    text = (roles(tokens) > 0) & (tokens != PAD) & (tokens != SEP)
    return text | (jnp.arange(tokens.shape[1]) == 0)


class ClassificationHead(nn.Module):
    """logit_c = has_name_c (s · cos(P v, Q n_c) + l · ⟨x, x_c⟩) + ⟨v, slot_c⟩ + bias_c.

    x and x_c are the sketches of the text and of the class name, if the encoder makes them: they
    recognise a name that training has never seen. After training, n_c is 0 for such a name where
    the encoder knows only the names of its training. Slots and biases start at 0. Without shots,
    only the names tell the classes apart; without names either, all classes score the same.
    """

    way: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        vector: Float[Array, "batch width"],
        names: Float[Array, "way width"],
        has_names: Bool[Array, "way"],
        lexical: tuple[Float[Array, "batch sketch"], Float[Array, "way sketch"]] | None = None,
    ) -> Float[Array, "batch way"]:
        """Return the logits of at most `self.way` classes.

        Args:
            vector: vectors of the examples.
            names: vectors of the class names.
            has_names: which classes have a name.
            lexical: sketches of the examples and of the class names.
        """
        way, width = names.shape
        if way > self.way:
            raise ValueError(f"{way} classes, but the guide has slots for {self.way}")
        zeros = nn.initializers.zeros
        slots = self.param("slots", zeros, (self.way, width), jnp.float32)[:way].astype(self.dtype)
        bias = self.param("bias", zeros, (self.way,), jnp.float32)[:way].astype(self.dtype)
        scale = self.param("log_scale", nn.initializers.constant(jnp.log(10.0)), (), jnp.float32)
        project = functools.partial(
            nn.Dense, width, use_bias=False, kernel_init=identity, dtype=self.dtype
        )
        example = unit(project(name="vector")(vector))
        name = unit(project(name="name")(names))
        similarity = exponential(scale, self.dtype) * (example @ name.T)
        if lexical is not None:
            of_examples, of_names = lexical
            scale = self.param(
                "log_lexical", nn.initializers.constant(jnp.log(10.0)), (), jnp.float32
            )
            similarity += exponential(scale, self.dtype) * (of_examples @ of_names.T)
        return jnp.where(has_names, similarity, 0) + vector @ slots.T + bias

    def touch(self, encoding: Encoding, tokens: Int[Array, "batch length"]) -> None:
        """Use the head once."""
        del tokens
        names, lexical = encoding.vector[: self.way], None
        if encoding.lexical is not None:
            lexical = encoding.lexical, encoding.lexical[: self.way]
        self(encoding.vector, names, jnp.ones((names.shape[0],), bool), lexical)


class SentimentHead(nn.Module):
    """Linear scores for negative and positive, and stars = 1 + 4 σ(linear)."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, vector: Float[Array, "batch width"]
    ) -> tuple[Float[Array, "batch 2"], Float[Array, "batch"]]:
        """Return (logits, stars)."""
        logits = nn.Dense(2, dtype=self.dtype, name="classes")(vector)
        stars = nn.Dense(1, dtype=self.dtype, name="stars")(vector)[:, 0]
        return logits, 1 + 4 * nn.sigmoid(stars)

    def touch(self, encoding: Encoding, tokens: Int[Array, "batch length"]) -> None:
        """Use the head once."""
        del tokens
        self(encoding.vector)


class QuestionHead(nn.Module):
    """Linear scores for where an answer starts and where it ends (Devlin et al. 2019)."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, states: Float[Array, "batch length width"], tokens: Int[Array, "batch length"]
    ) -> tuple[Float[Array, "batch length"], Float[Array, "batch length"]]:
        """Return (start, end), `OUT` outside the text; position 0 means no answer."""
        scores = nn.Dense(2, dtype=self.dtype, name="ends")(states)
        start, end = jnp.where(answerable(tokens)[..., None], scores, OUT).transpose(2, 0, 1)
        return start, end

    def touch(self, encoding: Encoding, tokens: Int[Array, "batch length"]) -> None:
        """Use the head once; an encoder without token states has no such head."""
        if encoding.states is not None:
            self(encoding.states, tokens)


class RecommendationHead(nn.Module):
    """score(p) = ⟨u, P p⟩ / √width + l · ⟨x_u, x_p⟩ + w · log(1 + taken_p).

    u is a recency-weighted mean of the user's projected products plus a residual MLP of that mean:
    u_t = m_t + MLP(m_t), m_t = Σ_j≤t e^(−r (t − j)) p_j / Σ_j≤t e^(−r (t − j)), where p_0 is a
    learned start. Each group of channels has its own learned rate r, so that a user has both a
    short and a long memory. Padding does not advance time. x_u is the same mean of the sketches of
    the products, with a rate of its own and without a start, and taken_p is how many other users
    took p. l and w are learned.
    """

    width: int
    rates: int = 4
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Build the parameters; the projection of products starts as the identity."""
        self.product = nn.Dense(self.width, kernel_init=identity, dtype=self.dtype)
        self.start = self.param("start", nn.initializers.normal(0.1), (self.width,), jnp.float32)
        memory = jnp.log(jnp.geomspace(0.02, 1.0, self.rates))
        self.log_rate = self.param("log_rate", lambda _: memory)
        self.norm = LayerNorm(self.dtype)
        self.hidden = nn.Dense(2 * self.width, dtype=self.dtype)
        small = nn.initializers.variance_scaling(0.01, "fan_in", "truncated_normal")
        self.out = nn.Dense(self.width, kernel_init=small, dtype=self.dtype)
        self.popularity = self.param("popularity", nn.initializers.ones, (), jnp.float32)
        self.log_lexical = self.param("log_lexical", nn.initializers.zeros, (), jnp.float32)
        self.log_lexical_rate = self.param(
            "log_lexical_rate", nn.initializers.constant(jnp.log(0.1)), (), jnp.float32
        )

    def products(self, vector: Float[Array, "products width"]) -> Float[Array, "products width"]:
        """Return the products as users see them."""
        return self.product(vector)

    def scores(
        self, users: Float[Array, "rows width"], vector: Float[Array, "products width"]
    ) -> Float[Array, "rows products"]:
        """Return users · products(vector) / √width without computing products(vector).

        When each user has their own projection, this is `width` times less work and needs no
        memory for the projected products.
        """
        dense = self.product.variables["params"]
        kernel, bias = (dense[name].astype(self.dtype) for name in ("kernel", "bias"))
        scores = (users @ kernel.T) @ vector.T + (users @ bias)[:, None]
        return scores / jnp.sqrt(jnp.asarray(users.shape[-1], users.dtype))

    def priors(self, taken: Int[Array, "*rows products"]) -> Float[Array, "*rows products"]:
        """Return w · log(1 + taken), what the numbers of takers add to the scores."""
        return self.popularity.astype(self.dtype) * jnp.log1p(taken.astype(self.dtype))

    def recencies(self, mask: Bool[Array, "items"]) -> Float[Array, "items"]:
        """Return l times the weight of each product of a history in x_u; 0 for padding.

        Args:
            mask: False where the history is padding.
        """
        time = jnp.cumsum(mask.astype(jnp.int32))
        rate = exponential(self.log_lexical_rate, self.dtype)
        weights = jnp.where(mask, jnp.exp(-rate * (time[-1] - time).astype(self.dtype)), 0)
        scale = exponential(self.log_lexical, self.dtype)
        # Without any product the sum is 0; MAML's second derivatives by a tiny divisor overflow.
        return scale * weights / jnp.where(mask.any(), weights.sum(), 1)

    def users(
        self,
        history: Float[Array, "items width"],
        mask: Bool[Array, "items"],
        at: slice = slice(None),
    ) -> Float[Array, "rows width"]:
        """Return the rows `at` of items + 1 rows, where row t is the user after t products.

        Args:
            history: vectors of one user's products, in time order.
            mask: False where `history` is padding, which changes nothing.
            at: indices of the rows to return.
        """
        items = jnp.concatenate([self.start[None].astype(self.dtype), self.product(history)])
        real = jnp.concatenate([jnp.ones((1,), bool), mask])
        time = jnp.cumsum(real.astype(jnp.int32))
        rows = jnp.arange(items.shape[0])
        seen = real[None, :] & (rows[None, :] <= rows[at, None])
        age = jnp.maximum(time[at, None] - time[None, :], 0).astype(self.dtype)
        rate = exponential(self.log_rate, self.dtype)
        weights = jnp.where(seen, jnp.exp(-rate[:, None, None] * age), 0)
        weights = weights / jnp.sum(weights, axis=-1, keepdims=True)
        grouped = items.reshape(items.shape[0], self.rates, -1)
        mean = jnp.einsum("rti,irc->trc", weights, grouped).reshape(-1, items.shape[1])
        return mean + self.out(nn.relu(self.hidden(self.norm(mean))))

    def user(
        self, history: Float[Array, "items width"], mask: Bool[Array, "items"]
    ) -> Float[Array, "width"]:
        """Return the last row of `users`, in less than quadratic time."""
        return self.users(history, mask, slice(-1, None))[0]

    def touch(self, encoding: Encoding, tokens: Int[Array, "batch length"]) -> None:
        """Use the head once."""
        del tokens
        self.users(encoding.vector, jnp.ones((encoding.vector.shape[0],), bool))


def with_slots(params: Mapping[str, Any], way: int) -> Mapping[str, Any]:
    """Return the guide's parameters with a slot for each of `way` classes.

    If the guide has enough slots, its own are used. For more classes, every slot is the mean of the
    guide's: no class is preferred, and until the slots adapt, the scores are those of the names
    alone.

    Args:
        params: parameters of every group.
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
