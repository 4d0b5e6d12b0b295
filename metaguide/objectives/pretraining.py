"""The self-supervised objectives over the guide's shared encoder: J = Σ λₜ Jₜ of these.

Each draws its own batch from its part of `encoding.unlabelled`, inside the compiled step.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol, runtime_checkable

import jax
from jaxtyping import Array, Key

from metaguide.objectives.contrastive import info_nce
from metaguide.objectives.denoising import corrupt, reconstruction_loss
from metaguide.objectives.masked_language import (
    gather_chosen,
    mask_words,
    masked_language_loss,
)
from metaguide.types import Batch, Metrics, Params, Progress

Objective = Callable[..., tuple[Array, Mapping[str, Array]]]


@runtime_checkable
class Guide(Protocol):
    """The part of a guide's model that the objectives use: a Linen module with their methods."""

    apply: Callable[..., Any]

    @property
    def vocabulary(self) -> int:
        """Number of token ids."""
        ...


def masked_language(
    model: Guide,
    batch: int,
    *,
    mask_id: int,
    mask_rate: float = 0.15,
    variant: Literal["mask", "80-10-10"] = "mask",
) -> Objective:
    """Return the masked language model over rows of {"tokens", "words"}.

    The logits are computed only at chosen positions, a static number of them, a quarter more than
    expected; otherwise the product with the vocabulary would take most of the step.

    Args:
        model: the guide.
        batch: number of texts per step.
        mask_id: the [MASK] token.
        mask_rate: share of hidden words.
        variant: "mask" replaces every hidden word by [MASK]; "80-10-10" is BERT's.

    Returns:
        (meta, data, key, progress) -> (loss, metrics); `meta["params"]` are the guide's.

    Devlin et al.: BERT, 2019.
    """

    def objective(
        meta: Params, data: Batch, key: Key[Array, ""], progress: Progress
    ) -> tuple[Array, Metrics]:
        del progress
        params = meta["params"]
        row_key, mask_key, dropout_key = jax.random.split(key, 3)
        rows = _draw(data, batch, row_key)
        tokens = rows["tokens"]
        inputs, chosen = mask_words(
            mask_key,
            tokens,
            rows["words"],
            mask_rate=mask_rate,
            mask_id=mask_id,
            vocabulary=model.vocabulary,
            variant=variant,
        )
        limit = max(1, round(1.25 * mask_rate * tokens.size))
        places, there, dropped = gather_chosen(chosen, limit)

        def logits(guide: Any, inputs: Array) -> Array:
            states = guide.text_states(inputs, deterministic=False)
            return guide.language_logits(states.reshape(-1, states.shape[-1])[places])

        out: Any = model.apply(
            {"params": params}, inputs, rngs={"dropout": dropout_key}, method=logits
        )
        loss, metrics = masked_language_loss(out, tokens.reshape(-1)[places], there)
        return loss, {**metrics, "dropped": dropped.astype("float32")}

    return objective


def denoising(model: Guide, batch: int, *, sigma: float, occlusion: int) -> Objective:
    """Return the denoising autoencoder over rows of {"image"}.

    Args:
        model: the guide, with pictures.
        batch: number of pictures per step.
        sigma: standard deviation of the Gaussian noise, in units of the full range.
        occlusion: side of the square hole, in pixels.

    Returns:
        (meta, data, key, progress) -> (loss, metrics); `meta["params"]` are the guide's.

    Vincent et al.: Extracting and composing robust features with denoising autoencoders, 2008.
    """

    def objective(
        meta: Params, data: Batch, key: Key[Array, ""], progress: Progress
    ) -> tuple[Array, Metrics]:
        del progress
        params = meta["params"]
        row_key, noise_key = jax.random.split(key)
        clean = _draw(data, batch, row_key)["image"].astype("float32") / 255.0
        noisy = corrupt(noise_key, clean, sigma=sigma, occlusion=occlusion)
        return reconstruction_loss(_apply(model, params, noisy, method="reconstruct"), clean)

    return objective


def image_text(model: Guide, batch: int) -> Objective:
    """Return the symmetric InfoNCE between the texts and pictures of products.

    Radford et al.: Learning transferable visual models from natural language supervision, 2021.
    """

    def objective(
        meta: Params, data: Batch, key: Key[Array, ""], progress: Progress
    ) -> tuple[Array, Metrics]:
        del progress
        params = meta["params"]
        row_key, dropout_key = jax.random.split(key)
        rows = _draw(data, batch, row_key)
        texts = _texts(model, params, rows["tokens"], dropout_key)
        images = _apply(model, params, rows["image"], method="contrast_image")
        return _contrast(model, params, texts, images)

    return objective


def text_text(model: Guide, batch: int) -> Objective:
    """Return InfoNCE of each text with itself under another dropout mask.

    Gao, Yao, Chen: SimCSE, 2021.
    """

    def objective(
        meta: Params, data: Batch, key: Key[Array, ""], progress: Progress
    ) -> tuple[Array, Metrics]:
        del progress
        params = meta["params"]
        row_key, one, two = jax.random.split(key, 3)
        tokens = _draw(data, batch, row_key)["tokens"]
        first = _texts(model, params, tokens, one)
        second = _texts(model, params, tokens, two)
        return _contrast(model, params, first, second)

    return objective


def _contrast(model: Guide, params: Params, a: Array, b: Array) -> tuple[Array, Metrics]:
    temperature = _apply(model, params, method="temperature")
    return info_nce(a, b, temperature, jax.numpy.ones(len(a), bool))


def _draw(data: Mapping[str, Any], batch: int, key: Key[Array, ""]) -> dict[str, Array]:
    size = next(iter(data.values())).shape[0]
    rows = jax.random.randint(key, (batch,), 0, size)
    return {name: leaf[rows] for name, leaf in data.items()}


def _texts(model: Guide, params: Params, tokens: Array, key: Key[Array, ""]) -> Any:
    return model.apply(
        {"params": params},
        tokens,
        deterministic=False,
        rngs={"dropout": key},
        method="contrast_text",
    )


def _apply(model: Guide, params: Params, *args: Any, method: str) -> Any:
    return model.apply({"params": params}, *args, method=method)
