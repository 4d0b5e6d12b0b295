"""Building blocks of all tasks' problems: one `init`, a shared encoder, and a head per task."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from metaguide.models.guide import GuideModel, init_params
from metaguide.models.transformer import MASK, SPECIALS
from metaguide.ties import highest
from metaguide.types import (
    TEXT_FIELDS,
    Batch,
    EncodedLossFn,
    EncodedPredictFn,
    EncodeFn,
    NamesFn,
    Params,
    Problem,
    ScoreFn,
)


def problem_of(
    model: GuideModel,
    name: str,
    encode: EncodeFn,
    loss: EncodedLossFn,
    predict: EncodedPredictFn,
    score: ScoreFn,
    way: int | None = None,
    pictures: bool = False,
    names: NamesFn | None = None,
) -> Problem:
    """Build the problem of one task; `init` initialises the encoder and all heads.

    Args:
        model: the guide's model.
        name: name of the task and of its head's parameter group.
        encode, loss, predict, score, way, names: as in `Problem`; what `encode` returns has a
            `vector`.
        pictures: whether the examples may have pictures.
    """
    return Problem(
        init=partial(init_params, model),
        encode=encode,
        loss=loss,
        predict=predict,
        features=features_of,
        score=score,
        body=model.encoder.groups(pictures),
        head=(name,),
        target="label",
        way=way,
        names=names,
    )


def features_of(encoded: Mapping[str, Array]) -> Array:
    """Return the vectors of examples, beside which their sketches stand where a task has them.

    A sketch is scaled to the norm that a normalised vector has, √width.
    """
    vector, lexical = encoded["vector"], encoded.get("lexical")
    if lexical is None:
        return vector
    scale = jnp.sqrt(jnp.asarray(vector.shape[-1], vector.dtype))
    return jnp.concatenate([vector, scale * lexical.astype(vector.dtype)], axis=-1)


def encode_examples(
    model: GuideModel,
    params: Params,
    batch: Mapping[str, Any],
    key: Key[Array, ""] | None,
    hidden: float | None = None,
) -> Any:
    """Encode texts, and pictures if the batch has them.

    If there is a key, dropout is applied and a share of the tokens is hidden.

    Args:
        model: the guide's model.
        params: its parameters.
        batch: the examples.
        key: of the training step; None where nothing trains.
        hidden: share of the tokens to hide; None for the encoder's.
    """
    texts = {field: batch[field] for field in TEXT_FIELDS if field in batch}
    rate = model.encoder.hidden_tokens if hidden is None else hidden
    if key is not None and rate and "tokens" in texts:
        texts["tokens"] = hide_tokens(jax.random.fold_in(key, 2), texts["tokens"], rate)
    return model.apply(
        {"params": params},
        image=batch.get("image"),
        has_image=batch.get("has_image"),
        **texts,
        deterministic=key is None,
        rngs=None if key is None else {"dropout": key},
        method="encode",
    )


def hide_tokens(
    key: Key[Array, ""], tokens: Int[Array, "*batch length"], rate: float
) -> Int[Array, "*batch length"]:
    """Put [MASK] in place of each token of a text with a probability; special tokens stay."""
    hidden = jax.random.bernoulli(key, rate, tokens.shape) & (tokens >= SPECIALS)
    return jnp.where(hidden, jnp.asarray(MASK, tokens.dtype), tokens)


def use_head(model: GuideModel, params: Params, task: str, method: str, *args: Any) -> Any:
    """Call a method of a task's head."""
    return model.apply({"params": params}, task, method, *args, method="head")


def score_classes(outputs: Mapping[str, Array], query: Batch, context: Any) -> dict[str, Array]:
    """Return `predicted` and `target` as classes of the domain, `finite`, `mask` and `id`.

    Logits that are not finite predict class -1, which no example has. Ties between logits are
    broken at random, so that constant logits perform at chance level. If a domain mixes unseen
    classes with source classes, `unseen` marks the queries of unseen ones.
    """
    classes, logits = context["classes"], outputs["logits"]
    unseen = {"unseen": context["unseen"][query["label"]]} if "unseen" in context else {}
    finite = jnp.isfinite(logits).all(-1)
    chosen = highest(logits, query["id"])
    return unseen | {
        "predicted": jnp.where(finite, classes[chosen], -1),
        "target": classes[query["label"]],
        "finite": finite,
        "mask": query["mask"],
        "id": query["id"],
    }
