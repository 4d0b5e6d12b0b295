"""Builds every Problem and Family of the guide out of its model, the objectives and the data.

The four problems share one `init`: the union of the encoder and all heads. A head is a parameter
group with the name of its task.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from metaguide.data.catalogue import Domain
from metaguide.data.encoding import (
    KINDS,
    Lengths,
    classification_table,
    questions_table,
    recommendation_table,
    sentiment_table,
)
from metaguide.data.episodes import check_labelled, check_users, labelled_sampler, user_sampler
from metaguide.data.tokenizer import PAD, Tokenizer
from metaguide.models.guide import GuideModel, init_params
from metaguide.objectives.tasks import (
    classification_loss,
    ranking_loss,
    sentiment_loss,
    span_loss,
    span_predict,
)
from metaguide.ties import drawn, highest
from metaguide.types import OUT, Batch, Family, Params, Problem


class Shape(NamedTuple):
    """The static sizes of episodes.

    Attributes:
        way: classes of a classification episode.
        shots: the largest number of shots.
        queries: query examples an episode; recommendation has one.
        candidates: products that a training episode of recommendation ranks; None for all.
        longest: most tokens of an answer.
    """

    way: int
    shots: int
    queries: int
    candidates: int | None
    longest: int


def classification(model: GuideModel, way: int) -> Problem:
    """N-way classification of products by text and picture, class names in the context.

    `encoded` holds the examples' vectors and the vectors of the class names; the logits compare
    the two and add a linear head of N slots.
    """

    def encode(params: Params, batch: Batch, context, key):
        # The names go through the encoder as further rows without a picture: one pass, not two.
        longest = max(batch["tokens"].shape[1], context["names"].shape[1])
        texts = padded(batch["tokens"], longest), padded(context["names"], longest)
        rows = {"tokens": jnp.concatenate(texts)}
        if "image" in batch:
            blank = jnp.zeros((way, *batch["image"].shape[1:]), batch["image"].dtype)
            rows["image"] = jnp.concatenate([batch["image"], blank])
            rows["has_image"] = jnp.concatenate([batch["has_image"], jnp.zeros((way,), bool)])
        vector = _encode(model, params, rows, key).vector
        return {"vector": vector[:-way], "names": vector[-way:]}

    def padded(tokens: Array, length: int) -> Array:
        return jnp.pad(tokens, ((0, 0), (0, length - tokens.shape[1])))

    def predict(params: Params, encoded, batch: Batch, context):
        del batch
        logits = _apply(
            model, params, "classify", encoded["vector"], encoded["names"], context["has_names"]
        )
        return {"logits": logits}

    def loss(params: Params, encoded, batch: Batch, context):
        logits = predict(params, encoded, batch, context)["logits"]
        return classification_loss(logits, batch["label"], batch["mask"])

    return _problem(
        model, "classification", encode, loss, predict, judge_classes, way, pictures=True
    )


def sentiment(model: GuideModel, stars_weight: float = 0.1) -> Problem:
    """Whether a review is negative (0) or positive (1), and how many stars it gives."""

    def encode(params: Params, batch: Batch, context, key):
        del context
        return {"vector": _encode(model, params, batch, key).vector}

    def predict(params: Params, encoded, batch: Batch, context):
        del batch, context
        logits, stars = _apply(model, params, "sentiment_scores", encoded["vector"])
        return {"logits": logits, "stars": stars}

    def loss(params: Params, encoded, batch: Batch, context):
        out = predict(params, encoded, batch, context)
        return sentiment_loss(
            out["logits"],
            out["stars"],
            batch["label"],
            batch["stars"],
            batch["mask"],
            stars_weight=stars_weight,
        )

    return _problem(model, "sentiment", encode, loss, predict, judge_classes, way=2)


def questions(model: GuideModel, longest: int) -> Problem:
    """Extractive question answering: the span of the answer, or none.

    Rajpurkar et al. 2018 for "no answer" as position 0. A long passage comes in several windows,
    tokens [examples, windows, length]. Each is an example of its own to the loss; of one passage,
    those that hold the answer weigh one together, and those that do not weigh one. The best answer
    of all windows is predicted; where the batch has `id`, as when it is judged, one of equals is
    drawn, "no answer" being one of them, so that constant scores get what chance gets.
    """

    def encode(params: Params, batch: Batch, context, key):
        del context
        tokens = batch["tokens"]
        encoding = _encode(model, params, {"tokens": tokens.reshape(-1, tokens.shape[-1])}, key)
        vectors = encoding.vector.reshape(len(tokens), -1, encoding.vector.shape[-1])
        exists = (_windows(tokens)[..., 0] != PAD)[..., None].astype(vectors.dtype)
        vector = (exists * vectors).sum(1) / jnp.maximum(exists.sum(1), 1)
        return {"vector": vector, "states": encoding.states.reshape(*tokens.shape, -1)}

    def scores(params: Params, encoded, batch: Batch):
        states, tokens = encoded["states"], batch["tokens"]
        flat = states.reshape(-1, *states.shape[-2:]), tokens.reshape(-1, tokens.shape[-1])
        start, end = _apply(model, params, "span_scores", *flat)
        windows = _windows(tokens)
        return start.reshape(windows.shape), end.reshape(windows.shape), windows[..., 0] != PAD

    def predict(params: Params, encoded, batch: Batch, context):
        del context
        start, end, exists = scores(params, encoded, batch)
        window, first, last = span_predict(start, end, exists, longest, batch.get("id"))
        finite = (jnp.isfinite(start) & jnp.isfinite(end)).all(-1) | ~exists
        return {"window": window, "start": first, "end": last, "finite": finite.all(-1)}

    def loss(params: Params, encoded, batch: Batch, context):
        del context
        start, end, exists = scores(params, encoded, batch)
        first, last = (batch[name].reshape(exists.shape) for name in ("start", "end"))
        weights = None
        if exists.shape[1] > 1:
            holds, lacks = exists & (first > 0), exists & (first == 0)
            several = jnp.where(holds, holds.sum(1, keepdims=True), lacks.sum(1, keepdims=True))
            weights = (1 / jnp.maximum(several, 1).astype(start.dtype)).reshape(-1)
        length, mask = start.shape[-1], exists & batch["mask"][:, None]
        flat = start.reshape(-1, length), end.reshape(-1, length), first.ravel(), last.ravel()
        return span_loss(*flat, mask.ravel(), weights)

    return _problem(model, "questions", encode, loss, predict, judge_spans)


def _windows(tokens: Array) -> Array:
    """Return [examples, windows, length] tokens of examples that may have no axis of windows."""
    return tokens.reshape(len(tokens), -1, tokens.shape[-1])


def recommendation(model: GuideModel) -> Problem:
    """Which product a user takes next: the user's vector over all product vectors.

    The catalogue is encoded once an episode (once for all users of a domain, where only the
    domain's products reach it), or not at all, where the context has their `vectors`; the user's
    side is the head.
    """

    def encode(params: Params, batch: Batch, context, key):
        if "vectors" in context:
            vectors = context["vectors"]
        else:
            vectors = _encode(model, params, context["products"], key).vector
        return {"products": vectors, "history": vectors[batch["history"]]}

    def predict(params: Params, encoded, batch: Batch, context):
        # Where many users adapt on products that are encoded already, each has parameters of his
        # own, and the two ways to the same scores differ in cost.
        alone = "vectors" in context

        def user(history: Array, mask: Array) -> Array:
            if alone:
                return _apply(model, params, "user_vector", history, mask)
            return _apply(model, params, "user_vectors", history, mask)[-1]

        users = jax.vmap(user)(encoded["history"], batch["history_mask"])
        if alone:
            scores = _apply(model, params, "user_scores", users, encoded["products"])
        else:
            products = _apply(model, params, "product_vectors", encoded["products"])
            scores = users @ products.T / jnp.sqrt(jnp.asarray(users.shape[-1], users.dtype))
        # What a user already has is not recommended, nor learned not to be.
        taken = jnp.zeros(scores.shape, bool)
        rows = jnp.arange(len(scores))[:, None]
        taken = taken.at[rows, batch["history"]].max(batch["history_mask"])
        scores = jnp.where(taken, jnp.asarray(OUT, scores.dtype), scores)
        return {"scores": scores, "candidates": context["candidates"] & ~taken}

    def loss(params: Params, encoded, batch: Batch, context):
        out = predict(params, encoded, batch, context)
        return ranking_loss(out["scores"], batch["item"], batch["mask"], context["candidates"])

    return _problem(model, "recommendation", encode, loss, predict, judge_ranks, pictures=True)


def judge_classes(outputs: Mapping[str, Array], query: Batch, context) -> dict[str, Array]:
    """Return `predicted` and `target` as classes of the domain, `finite`, `mask` and `id`.

    Logits that are not finite predict class -1, which no example is of. Of equal logits one is
    drawn, so that a constant gets what chance gets. Where a domain mixes unseen classes with source
    ones, `unseen` marks the queries of the former.
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


def judge_spans(outputs: Mapping[str, Array], query: Batch, context) -> dict[str, Array]:
    """Return `em` and `f1` of what each answer says, `answerable` and `finite`.

    The scores of what can be said stand in the query's `em` and `f1`; see `question_rows`. Span
    scores that are not finite say nothing, not that there is no answer: `em` and `f1` are 0.
    """
    del context
    first, last, finite = outputs["start"], outputs["end"], outputs["finite"]
    answerable = query["start"].reshape(len(first), -1).max(1) > 0

    def score(table: Array) -> Array:
        table = table.reshape(len(first), -1, *table.shape[-2:])
        said = table[jnp.arange(len(first)), outputs["window"], first, last - first]
        worth = jnp.where(first > 0, said.astype(jnp.float32), (~answerable).astype(jnp.float32))
        return jnp.where(finite, worth, 0)

    return {
        "em": score(query["em"]),
        "f1": score(query["f1"]),
        "answerable": answerable,
        "finite": finite,
        "mask": query["mask"],
        "id": query["id"],
    }


def judge_ranks(outputs: Mapping[str, Array], query: Batch, context) -> dict[str, Array]:
    """Return the `rank` (from 1) of the product taken, and `finite`.

    A product tied with t others gets one of the t + 1 places by a draw. Where the score of a
    candidate is not finite, the product taken is the last of all, and the second where it is the
    only one: nothing was ranked first.
    """
    del context
    scores, candidates, item = outputs["scores"], outputs["candidates"], query["item"][:, None]
    target = jnp.take_along_axis(scores, item, axis=1)
    others = candidates & (jnp.arange(scores.shape[1]) != item)
    above, level = (others & (scores > target)).sum(-1), (others & (scores == target)).sum(-1)
    finite = (jnp.isfinite(scores) | ~candidates).all(-1) & jnp.isfinite(target[:, 0])
    place = above + drawn(query["id"] + 7919 * query["item"], level + 1)
    rank = 1 + jnp.where(finite, place, jnp.maximum(others.sum(-1), 1))
    return {"rank": rank, "finite": finite, "mask": query["mask"], "id": query["id"]}


def families(
    model: GuideModel,
    domains: Sequence[Domain],
    tokenizer: Tokenizer,
    lengths: Lengths,
    shape: Shape,
    kinds: Sequence[str] = tuple(KINDS),
    always: Mapping[str, Sequence[str]] | None = None,
    judged: bool = True,
) -> dict[str, Family]:
    """Build a family for every kind of task that at least one of the domains has data for.

    Args:
        model: the guide.
        domains: what the families draw from.
        tokenizer: what reads texts.
        lengths: tokens kept.
        shape: sizes of the episodes.
        kinds: which of the four kinds to build.
        always: by domain, categories that each of its classification episodes contains.
        judged: whether answers will be judged; without, their scores need not be worked out.

    Returns:
        Families by kind; their data are numpy arrays, to be put on devices by the caller.

    Raises:
        EpisodeError: a domain has fewer classes or examples than `shape` asks for.
        ValueError: an unknown kind.
    """
    unknown = sorted(set(kinds) - set(KINDS))
    if unknown:
        raise ValueError(f"unknown kind of task {unknown[0]!r}; there are {', '.join(KINDS)}")
    made: dict[str, Family] = {}
    for kind in kinds:
        having = [domain for domain in domains if KINDS[kind](domain)]
        if not having:
            continue
        names = tuple(domain.name for domain in having)
        if kind == "recommendation":
            table = recommendation_table(having, tokenizer, lengths, model.image)
            check_users(table, names)
            sample = user_sampler(shape.shots, shape.candidates)
            made[kind] = Family(names, table, sample, recommendation(model))
            continue
        if kind == "classification":
            table = classification_table(having, tokenizer, lengths, model.image, always)
            way, problem = shape.way, classification(model, shape.way)
        elif kind == "sentiment":
            table = sentiment_table(having, tokenizer, lengths)
            way, problem = 2, sentiment(model)
        else:
            longest = shape.longest if judged else None
            table = questions_table(having, tokenizer, lengths, longest)
            way, problem = 1, questions(model, shape.longest)
        check_labelled(table, names, way, shape.shots, kind)
        ordered = kind != "classification"
        sample = labelled_sampler(way, shape.shots, shape.queries, ordered)
        made[kind] = Family(names, table, sample, problem)
    return made


def _problem(
    model: GuideModel,
    name: str,
    encode,
    loss,
    predict,
    judge,
    way: int | None = None,
    pictures: bool = False,
) -> Problem:
    return Problem(
        init=partial(init_params, model),
        encode=encode,
        loss=loss,
        predict=predict,
        features=lambda encoded: encoded["vector"],
        judge=judge,
        body=("text", "image", "fusion") if model.image and pictures else ("text", "fusion"),
        head=(name,),
        target="label",
        way=way,
    )


def _encode(model: GuideModel, params: Params, batch: Mapping[str, Any], key) -> Any:
    """Encode texts, and pictures where the batch has them; with dropout where there is a key."""
    return model.apply(
        {"params": params},
        batch["tokens"],
        batch.get("image"),
        batch.get("has_image"),
        deterministic=key is None,
        rngs=None if key is None else {"dropout": key},
        method="encode",
    )


def _apply(model: GuideModel, params: Params, method: str, *args) -> Any:
    return model.apply({"params": params}, *args, method=method)
