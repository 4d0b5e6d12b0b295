"""What the reviews of sources teach a pretrained encoder, whose last layers train on them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key
from ml_collections.config_dict import FrozenConfigDict

from experiments.config_files import ConfigError
from experiments.encoders import VECTORS, vectors_of
from experiments.tables.left_out import Corpus
from experiments.tables.tuned_encoder import TunedGuide, train_tuned, tuned_guide
from metaguide.models.guide import GuideModel
from metaguide.pretrained import PretrainedEncoder
from metaguide.tasks import SENTIMENT
from metaguide.tasks.problem import encode_examples
from metaguide.tasks.sentiment import sentiment
from metaguide.training.step import Gradient
from metaguide.types import Metrics, Params


class Taught(NamedTuple):
    """What an encoder that some reviews have taught says of all others.

    Attributes:
        seed: of the training.
        others: which reviews did not teach it: those of the held-out categories, and of the sources
            that were held back.
        logits: of being positive; 0 for reviews that taught it.
        vectors: of the trained encoder; 0 likewise.
    """

    seed: int
    others: Bool[np.ndarray, " reviews"]
    logits: Float[np.ndarray, " reviews"]
    vectors: Float[np.ndarray, "reviews width"]


def taught_encoder(
    config: FrozenConfigDict,
    encoder: PretrainedEncoder,
    corpus: Corpus,
    texts: Sequence[str],
    seed: int,
    folder: Path,
) -> Taught:
    """Train the last layers of an encoder on the reviews of the sources, and read all others by it.

    Args:
        config: the resolved config.
        encoder: the pretrained encoder.
        corpus: the reviews, of one group of held-out categories.
        texts: of the reviews.
        seed: of the training, on which the sources depend that are held back.
        folder: work folder of the training, which is that of a guide afterwards. The vectors are
            kept beside it if the config names no cache.

    Raises:
        ConfigError: the categories are not held out together, or all sources are held back.
    """
    section, (held_out, *more) = config.tuned, corpus.groups
    if more:
        raise ConfigError(
            f"config.tuned.epochs is {section.epochs}: an encoder is trained for categories that "
            "are held out together; name them in config.held_out, or set it to 0"
        )
    others = np.isin(corpus.category, (*held_out, *held_back(config, corpus, seed)))
    taught = np.flatnonzero(~others)
    tuned = tuned_guide(config, "tuned", encoder, SENTIMENT.name, sentiment)
    order = batches_of(len(taught), section.batch, section.epochs, seed)
    teaching = [texts[row] for row in taught.tolist()]
    tokens = encoder.guide_tokenizer.encode(teaching, section.length).tokens
    data = {"tokens": tokens, "label": corpus.label[taught].astype(np.int32), "order": order}
    params = train_tuned(
        config,
        "tuned",
        tuned,
        gradient_of(tuned),
        data,
        len(order),
        seed,
        folder,
    )
    rows = np.flatnonzero(others)
    read = vectors_of(tuned.encoder_of(params), config.encoder.cache or folder.parent / VECTORS)
    found = read([texts[row] for row in rows.tolist()])
    logits = np.zeros(len(texts), np.float32)
    vectors = np.zeros((len(texts), found.shape[1]), np.float32)
    logits[rows], vectors[rows] = positive_logits(tuned.model, params, found), found
    return Taught(seed, others, logits, vectors)


def held_back(config: FrozenConfigDict, corpus: Corpus, seed: int) -> Int[np.ndarray, " sources"]:
    """Return the sources of the only group that do not teach an encoder: each seed has the next.

    Raises:
        ConfigError: none would be left.
    """
    sources, count = corpus.sources(0), config.tuned.held_back
    if count >= len(sources):
        raise ConfigError(
            f"config.tuned.held_back is {count}: there are {len(sources)} categories to learn "
            "from; hold back fewer"
        )
    return np.take(sources, np.arange(seed * count, (seed + 1) * count), mode="wrap")


def batches_of(count: int, batch: int, epochs: float, seed: int) -> Int[np.ndarray, "steps batch"]:
    """Return which reviews each step reads: all of them in a new order in each epoch.

    Args:
        count: number of reviews.
        batch: reviews of a step, at most `count`.
        epochs: how often they are read; the last step is left out if it is not whole.
        seed: what the orders depend on.
    """
    rng = np.random.default_rng(seed)
    total = max(batch, int(epochs * count))
    rows = np.concatenate([rng.permutation(count) for _ in range(-(-total // count))])
    steps = total // batch
    return rows[: steps * batch].reshape(steps, batch).astype(np.int32)


def gradient_of(tuned: TunedGuide) -> Gradient:
    """Return the gradient of a guide's loss of sentiment on the reviews of a step."""

    def gradient(
        meta: Params, data: Any, key: Key[Array, ""], progress: Float[Array, ""]
    ) -> tuple[tuple[Array, Metrics], Params]:
        step = jnp.round(progress * len(data["order"])).astype(jnp.int32)
        rows = data["order"][step]
        reviews = {name: data[name][rows] for name in ("tokens", "label")}
        reviews |= {"mask": jnp.ones(len(rows), bool), "stars": jnp.zeros(len(rows))}

        def loss(meta: Params) -> tuple[Array, Metrics]:
            encoded = {"vector": encode_examples(tuned.model, meta["params"], reviews, key).vector}
            return tuned.problem.loss(meta["params"], encoded, reviews, None)

        return jax.value_and_grad(loss, has_aux=True)(meta)

    return gradient


def positive_logits(
    model: GuideModel, params: Params, vectors: Float[np.ndarray, "reviews width"]
) -> Float[np.ndarray, " reviews"]:
    """Return the logits of being positive, by the head on vectors of the trained encoder."""

    def said(model: GuideModel, vectors: Array) -> Array:
        logits, _ = model.head(SENTIMENT.name, "__call__", model.fusion(vectors))
        return logits[:, 1] - logits[:, 0]

    return np.asarray(model.apply({"params": params}, jnp.asarray(vectors), method=said))
