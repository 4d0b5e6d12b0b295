"""A pretrained encoder as a guide's encoder of texts: its module and its weights."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from metaguide.models.bert import BertConfig
from metaguide.models.encoder import FROZEN, Encoder
from metaguide.models.transformer import PAD
from metaguide.models.tuned import TunedBert, Tuning, frozen_bert, frozen_layers
from metaguide.pretrained.encoder import PretrainedEncoder


def tuned_encoder(
    encoder: PretrainedEncoder, tuning: Tuning, dropout: float = 0.0, **fields: Any
) -> Encoder:
    """Return a guide's encoder whose states are those of a pretrained one at the start.

    Args:
        encoder: the pretrained encoder.
        tuning: what trains.
        dropout: dropout rate in training.
        fields: other fields of `Encoder`, such as its channels.

    Raises:
        ValueError: more last layers train than there are.
    """
    config = _config(encoder)
    if tuning.trains == "last" and tuning.layers > config.layers:
        raise ValueError(f"layers is {tuning.layers}; the encoder has {config.layers}")
    return Encoder(
        text=TunedBert(
            config,
            tuning,
            types_pairs=encoder.tokenizer.types_pairs and config.token_types > 1,
            dropout=dropout,
            dtype=encoder.dtype,
        ),
        vocabulary=config.vocabulary,
        width=config.width,
        length=config.length,
        dtype=encoder.dtype,
        frozen=frozen_bert(config, tuning, dropout, encoder.dtype),
        trains_text=tuning.trains != "last" or tuning.layers > 0,
        pooling=encoder.pooling,
        **fields,
    )


def tuned_params(encoder: PretrainedEncoder, tuning: Tuning) -> Mapping[str, Any]:
    """Return the parameter groups of `tuned_encoder` that the pretrained encoder determines.

    The factors of LoRA are not among them.
    """
    rows = encoder.guide_tokenizer.ids
    params = {**encoder.params, "embedding": encoder.params["embedding"][rows]}
    if tuning.trains == "all":
        return {"text": {"bert": params}}
    first = frozen_layers(encoder.config, tuning)
    last = {f"layer_{number}" for number in range(first, encoder.config.layers)}
    found = {FROZEN: {name: one for name, one in params.items() if name not in last}}
    return {**found, "text": {name: params[name] for name in last}} if last else found


def _config(encoder: PretrainedEncoder) -> BertConfig:
    """Return the shape with the ids of `GuideTokenizer`."""
    return replace(encoder.config, vocabulary=encoder.guide_tokenizer.size, pad=PAD)
