"""A pretrained encoder of the BERT family as a guide's encoder of texts, trained in part.

What does not train is a module of its own, with a parameter group of its own, `FROZEN`: learners
and optimizers, which name the groups they change, never see it.
"""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from metaguide.models.bert import Bert, BertConfig, BertLayer
from metaguide.models.transformer import PAD, after_separator

TRAINS = ("lora", "last", "all")
"""What may train: factors of low rank beside all layers, the last layers, or everything."""

ALPHA = 16.0
"""LoRA's updates are scaled by ALPHA / rank."""

FrozenBert = nn.map_variables(
    Bert, "params", jax.lax.stop_gradient, init=True, methods=["embed", "layer", "attend"]
)
"""`Bert` whose parameters get no gradient."""


@dataclass(frozen=True)
class Tuning:
    """Which parameters of a pretrained encoder train.

    Attributes:
        trains: one of `TRAINS`.
        rank: rank of LoRA's factors; read with "lora".
        layers: number of last layers that train, from 0, where none do; read with "last".

    Raises:
        ValueError: a field is out of range.
    """

    trains: str
    rank: int = 8
    layers: int = 2

    def __post_init__(self) -> None:
        """Check the fields."""
        if self.trains not in TRAINS:
            raise ValueError(f"trains is {self.trains!r}; give one of {', '.join(TRAINS)}")
        if self.trains == "lora" and self.rank < 1:
            raise ValueError(f"rank is {self.rank}; give at least 1")
        if self.trains == "last" and self.layers < 0:
            raise ValueError(f"layers is {self.layers}; give at least 0")


class LowRank(nn.Module):
    """x A_q B_q and x A_v B_v, scaled, the shifts of queries and values; B starts at 0.

    Attributes:
        rank: number of columns of each A.
        dtype: dtype of the computation.

    Hu et al.: LoRA: Low-Rank Adaptation of Large Language Models, 2021.
    """

    rank: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch length width"]
    ) -> Float[Array, "2 batch length width"]:
        """Return the shifts of a layer's queries and values."""
        width = x.shape[-1]
        start = nn.initializers.normal(width**-0.5)
        down = self.param("down", start, (width, 2 * self.rank), jnp.float32)
        up = self.param("up", nn.initializers.zeros, (2, self.rank, width), jnp.float32)
        inside = jnp.split(x @ down.astype(self.dtype), 2, axis=-1)
        scaled = up.astype(self.dtype) * (ALPHA / self.rank)
        return jnp.stack([part @ own for part, own in zip(inside, scaled, strict=True)])


class TunedBert(nn.Module):
    """Token states of a pretrained encoder; its own parameters are those that train.

    Attributes:
        config: shape of the pretrained encoder.
        tuning: what trains.
        frozen: the module of what does not; None if everything trains.
        types_pairs: whether tokens after the first separator are of type 1.
        dropout: dropout rate, as in `Bert`.
        dtype: dtype of the computation.
    """

    config: BertConfig
    tuning: Tuning
    frozen: nn.Module | None = None
    types_pairs: bool = False
    dropout: float = 0.0
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Create the parameters that train."""
        cfg, first = self.config, frozen_layers(self.config, self.tuning)
        if self.tuning.trains == "lora":
            self.factors = [
                LowRank(self.tuning.rank, self.dtype, name=f"layer_{i}") for i in range(cfg.layers)
            ]
        elif self.tuning.trains == "last":
            self.stack = [
                BertLayer(cfg, self.dropout, self.dtype, name=f"layer_{i}")
                for i in range(first, cfg.layers)
            ]
        else:
            self.bert = Bert(cfg, self.dropout, self.dtype)

    def __call__(
        self, tokens: Int[Array, "batch length"], *, deterministic: bool = True
    ) -> Float[Array, "batch length width"]:
        """Return the state of every token; states of padding are meaningless.

        Args:
            tokens: int32 ids, 0 = padding, at most `config.length` per row.
            deterministic: whether to skip dropout; otherwise the rng "dropout" is used.

        Raises:
            ValueError: a row has more tokens than the encoder has positions.
        """
        mask, types = tokens != PAD, self.types(tokens)
        x = self._base.embed(tokens, types, deterministic=deterministic)
        last = () if self.tuning.trains != "last" else self.stack
        for number in range(self.config.layers - len(last)):
            shift = self.factors[number](x) if self.tuning.trains == "lora" else None
            x = self._base.layer(number, x, mask, shift, deterministic=deterministic)
        for layer in last:
            x = layer(x, mask, deterministic=deterministic)
        return x

    def attend(self, states: Float[Array, "*batch width"]) -> Float[Array, "*batch vocabulary"]:
        """Return tied logits, the products of states with every token's embedding."""
        return self._base.attend(states)

    @property
    def _base(self) -> Any:
        """The encoder that embeds tokens and holds the layers that come first."""
        return self.bert if self.frozen is None else self.frozen

    def types(self, tokens: Int[Array, "batch length"]) -> Int[Array, "batch length"] | None:
        """Return the part of a pair that each token belongs to; None if all are of type 0."""
        return after_separator(tokens).astype(jnp.int32) if self.types_pairs else None


def frozen_layers(config: BertConfig, tuning: Tuning) -> int:
    """Return the number of layers, from the first, that do not train."""
    if tuning.trains == "last":
        return max(config.layers - tuning.layers, 0)
    return config.layers if tuning.trains == "lora" else 0


def frozen_bert(
    config: BertConfig, tuning: Tuning, dropout: float = 0.0, dtype: Any = jnp.float32
) -> nn.Module | None:
    """Return the unbound module of what does not train; None if everything trains."""
    if tuning.trains == "all":
        return None
    return FrozenBert(replace(config, layers=frozen_layers(config, tuning)), dropout, dtype)
