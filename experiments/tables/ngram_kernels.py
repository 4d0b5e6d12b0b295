"""A kernel between titles, of which a dozen numbers are meta-learned.

An n-gram belongs to a group by its length, by its digits, and by how rare it is, and not by what it
says. So what is learned of the titles of cameras, such as that digits tell products apart, holds
for titles of dishwashers:

    k(a, b) = Σ_G e^θ_G Σ_{g in G} x_ag x_bg,  x_ag = (1 + log count_ag) idf_g,

scaled to k(a, a) = 1. θ_G is the sum of an effect of the length, one of the digits and one of the
rarity: with a number for each group instead, what is learned fits the sources and does not hold
elsewhere. The vectors of an encoder are one more group.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int
from scipy import sparse
from sklearn.feature_extraction.text import CountVectorizer

from metaguide.data.ngrams import inverse_document_frequency
from metaguide.inner_loop import inner_loop, run

Similarity = Float[np.ndarray, "titles titles"]
Episodes = Int[np.ndarray, "episodes way titles"]

RARE = 1 / 700
"""The share of texts below which an n-gram is rare."""

RARITIES = ("at most once", "rare", "common")

VECTOR = 100.0
"""The square of a vector's length, about that of a title's n-grams."""


class Titles(NamedTuple):
    """Titles of products of one category.

    Attributes:
        counts: 1 + log of how often each n-gram occurs, sparse [titles, n-grams].
        product: the number of each title's product.
        vectors: of an encoder, [titles, width]; None without one.
    """

    counts: sparse.csr_array
    product: Int[np.ndarray, " titles"]
    vectors: Float[np.ndarray, "titles width"] | None = None


class Kind(NamedTuple):
    """What n-grams have in common, such as ("characters", 3, "digits")."""

    unit: str
    length: int
    digits: str


class Ngrams(NamedTuple):
    """N-grams of characters inside words, of 1 to 5, and of one and two words.

    Attributes:
        counts: name of a category -> counts of its titles, as in `Titles`.
        kind: the number of each n-gram's kind.
        kinds: each kind.
    """

    counts: Mapping[str, sparse.csr_array]
    kind: Int[np.ndarray, " ngrams"]
    kinds: tuple[Kind, ...]


def count_ngrams(texts: Mapping[str, Sequence[str]]) -> Ngrams:
    """Count the n-grams of the titles of each category; nothing is learned of how frequent."""
    every = [text for of_category in texts.values() for text in of_category]
    counted, kinds = [], []
    for unit, analyzer in {
        "characters": {"analyzer": "char_wb", "ngram_range": (2, 5)},
        "words": {"analyzer": "word", "ngram_range": (1, 2), "token_pattern": r"\S+"},
    }.items():
        counter = CountVectorizer(**analyzer)
        found = sparse.csr_array(counter.fit_transform(every), dtype=np.float32)
        found.data = 1 + np.log(found.data)
        counted.append(found)
        kinds += [_kind(one, unit) for one in counter.get_feature_names_out()]
    names = sorted(set(kinds))
    number = {one: place for place, one in enumerate(names)}
    counts = sparse.csr_array(sparse.hstack(counted))
    ends = np.cumsum([len(of_category) for of_category in texts.values()])
    own = {
        name: counts[end - len(texts[name]) : end] for name, end in zip(texts, ends, strict=True)
    }
    return Ngrams(own, np.array([number[one] for one in kinds], np.int32), tuple(names))


def _kind(ngram: str, unit: str) -> Kind:
    """Return the kind of an n-gram; the ends of words do not count."""
    inner = ngram.strip()
    length = 1 + inner.count(" ") if unit == "words" else len(inner)
    if not any(map(str.isdigit, inner)):
        return Kind(unit, length, "no digit")
    return Kind(unit, length, "digits and letters" if any(map(str.isalpha, inner)) else "digits")


def effects(kinds: Sequence[Kind]) -> Float[np.ndarray, "groups effects"]:
    """Return which effects the weight of a group is the sum of: 1 or 0.

    The groups are every kind, in each of `RARITIES`, and at last the encoder, an effect by itself.
    """
    named = [{(one.unit, one.length), one.digits, rarity} for one in kinds for rarity in RARITIES]
    every = sorted(set().union(*named), key=str)
    found = [[one in of_group for one in every] + [False] for of_group in named]
    return np.array([*found, [False] * len(every) + [True]], np.float32)


class Weighting(NamedTuple):
    """What is known of n-grams from the texts of some categories, without their labels.

    Attributes:
        idf: inverse document frequency of each n-gram.
        group: number of the group of each, by its kind and by how rare it is.
        centre: the mean of the encoder's vectors; None without an encoder.
    """

    idf: Float[np.ndarray, " ngrams"]
    group: Int[np.ndarray, " ngrams"]
    centre: Float[np.ndarray, " width"] | None


def weighting(
    kind: Int[np.ndarray, " ngrams"],
    counts: Sequence[sparse.csr_array],
    vectors: Sequence[Float[np.ndarray, "titles width"] | None],
) -> Weighting:
    """Learn how rare n-grams are, and where the vectors of titles lie.

    Args:
        kind: of each n-gram.
        counts, vectors: of the titles of each category to learn from.
    """
    every: Any = sparse.vstack(counts)
    texts, having = every.shape[0], (every > 0).sum(axis=0)
    idf = inverse_document_frequency(having, texts)
    rarity = np.where(having <= 1, 0, np.where(having < RARE * texts, 1, 2))
    known = [one for one in vectors if one is not None]
    centre = np.concatenate(known).mean(0) if known else None
    return Weighting(
        idf.astype(np.float32), (len(RARITIES) * kind + rarity).astype(np.int32), centre
    )


def around(
    vectors: Float[np.ndarray, "titles width"], centre: Float[np.ndarray, " width"]
) -> Float[np.ndarray, "titles width"]:
    """Return vectors from a centre, scaled to the length that n-grams have."""
    moved = vectors - centre
    return moved * np.sqrt(VECTOR) / np.linalg.norm(moved, axis=1, keepdims=True)


# ------------------------------------------------------------------------------ episodes


def draw(
    product: Int[np.ndarray, " titles"],
    count: int,
    way: int,
    shots: int,
    queries: int,
    key: Sequence[int],
) -> Episodes:
    """Draw episodes of products that have titles enough.

    Args:
        product: of each title.
        count: episodes.
        way: products of an episode.
        shots, queries: titles of a product to learn from and to be asked for.
        key: what the draw depends on.

    Returns:
        Numbers of titles, int [count, way, shots + queries].

    Raises:
        ValueError: fewer than `way` products have so many titles.
    """
    rng, each = np.random.default_rng(key), shots + queries
    enough = np.flatnonzero(np.bincount(product) >= each)
    if len(enough) < way:
        raise ValueError(f"{len(enough)} products have {each} titles, and an episode takes {way}")
    of_product = {one: np.flatnonzero(product == one) for one in enough}
    return np.stack(
        [
            [rng.permutation(of_product[one])[:each] for one in rng.permutation(enough)[:way]]
            for _ in range(count)
        ]
    )


class Kernels(NamedTuple):
    """Kernels of every group in some episodes.

    Attributes:
        between: of queries and support, [episodes, groups, queries, support].
        query: of each query and itself, [episodes, groups, queries].
        support: within the support, [episodes, groups, support, support].
    """

    between: Any
    query: Any
    support: Any


def kernels(titles: Titles, known: Weighting, groups: int, episodes: Episodes, shots: int) -> Any:
    """Return the kernels of episodes; the last group is the encoder, and 0 without one.

    Args:
        titles: of a category.
        known: of n-grams and vectors.
        groups: groups of n-grams.
        episodes: numbers of titles; those of a product begin with its support.
        shots: titles of a product in the support.
    """
    order = np.argsort(known.group, kind="stable")
    ends = np.searchsorted(known.group[order], np.arange(groups + 1))
    inputs = sparse.csc_array((titles.counts @ sparse.diags_array(known.idf))[:, order])
    of_groups = [
        sparse.csr_array(inputs[:, start:end])
        for start, end in zip(ends[:-1], ends[1:], strict=True)
    ]
    vectors = None if titles.vectors is None else around(titles.vectors, _centre(known))
    found = []
    for episode in episodes:
        support, query = episode[:, :shots].ravel(), episode[:, shots:].ravel()
        parts = []
        for one in of_groups:
            own, asked = one[support], one[query]
            products = (asked @ own.T).toarray(), (own @ own.T).toarray()
            parts.append((products[0], (asked * asked).sum(axis=1), products[1]))
        if vectors is None:
            parts.append(tuple(np.zeros_like(one) for one in parts[0]))
        else:
            own, asked = vectors[support], vectors[query]
            parts.append((asked @ own.T, np.square(asked).sum(1), own @ own.T))
        found.append([np.stack(one) for one in zip(*parts, strict=True)])
    return Kernels(*(np.stack(one).astype(np.float32) for one in zip(*found, strict=True)))


def _centre(known: Weighting) -> Float[np.ndarray, " width"]:
    assert known.centre is not None
    return known.centre


# ------------------------------------------------------------------------------ the learner


class Rule(NamedTuple):
    """How titles are compared.

    Attributes:
        weights: θ of each group and of the encoder; −inf leaves a group out.
        log_scale: log of the scale of logits.
        nearest: logit of the share of the nearest title in a product's score; the rest is that of
            the mean of its titles.
    """

    weights: Any
    log_scale: Any
    nearest: Any


def alike(used: Sequence[bool]) -> Rule:
    """Return the rule that nothing was learned for: all groups that are used count alike."""
    weights = np.where(used, 0.0, -np.inf).astype(np.float32)
    return Rule(weights, np.float32(np.log(20.0)), np.float32(-3.0))


def scores(
    between: Array, query: Array, support: Array, nearest: Array, way: int
) -> Float[Array, "queries way"]:
    """Return the score of each product: nearness to its mean, and to its nearest title.

    Args:
        between: kernel of queries and support, [queries, way x shots], grouped by product.
        query: of each query and itself.
        support: within the support.
        nearest: logit of the share of the nearest title.
        way: products.
    """
    own = jnp.diag(support)
    between = between / jnp.sqrt(query[:, None] * own + 1e-6)
    within = support / jnp.sqrt(own[:, None] * own + 1e-6)
    shots = len(own) // way
    between = between.reshape(len(query), way, shots)
    blocks = within.reshape(way, shots, way, shots)[jnp.arange(way), :, jnp.arange(way)]
    mean = between.mean(-1) - blocks.mean((-1, -2)) / 2
    share = jax.nn.sigmoid(nearest)
    return (1 - share) * mean + share * between.max(-1)


def logits_of(rule: Rule, episode: Kernels, way: int) -> Float[Array, "queries way"]:
    """Return the logits of an episode's queries by their kernels of every group."""
    weights = jnp.exp(rule.weights)
    between, query, support = (jnp.tensordot(weights, one, 1) for one in episode)
    return jnp.exp(rule.log_scale) * scores(between, query, support, rule.nearest, way)


@partial(jax.jit, static_argnames=("way", "steps"))
def learn(
    used: Bool[Array, " groups"],
    of_groups: Float[Array, "groups effects"],
    tasks: Sequence[Kernels],
    *,
    way: int,
    steps: int,
    penalty: float | Array,
    rate: float | Array,
) -> Rule:
    """Meta-learn a rule: minimise the mean cross-entropy of queries + λ mean β², by Adam.

    Args:
        used: which groups count at all.
        of_groups: as of `effects`; θ is this times β.
        tasks: kernels of episodes, of one number of shots in each.
        way: products of an episode.
        steps: of Adam.
        penalty: λ.
        rate: learning rate.
    """

    def rule_of(beta: Array, log_scale: Array, nearest: Array) -> Rule:
        return Rule(jnp.where(used, of_groups @ beta, -jnp.inf), log_scale, nearest)

    def loss(learned: tuple[Array, Array, Array], tasks: Sequence[Kernels]) -> tuple[Array, None]:
        rule, losses = rule_of(*learned), []
        for task in tasks:
            logits = jax.vmap(lambda episode: logits_of(rule, episode, way))(task)
            label = jnp.arange(logits.shape[1]) // (logits.shape[1] // way)
            label = jnp.broadcast_to(label, logits.shape[:2])
            losses.append(optax.softmax_cross_entropy_with_integer_labels(logits, label).mean())
        return jnp.stack(losses).mean() + penalty * jnp.square(learned[0]).mean(), None

    _, log_scale, nearest = alike([True])
    begin = jnp.zeros(of_groups.shape[1]), jnp.asarray(log_scale), jnp.asarray(nearest)
    loop = inner_loop(loss, optax.adam(rate))
    return rule_of(*run(loop, loop.start(begin), lambda _: tasks, steps)[0].params)


def similarity(titles: Titles, known: Weighting, rule: Rule) -> Similarity:
    """Return the learned kernel of all titles of a category."""
    *of_groups, of_vectors = np.exp(np.asarray(rule.weights, np.float64))
    scale = known.idf * np.sqrt(np.asarray(of_groups))[known.group]
    inputs: Any = titles.counts @ sparse.diags_array(scale)
    found = (inputs @ inputs.T).toarray()
    if titles.vectors is not None:
        vectors = around(titles.vectors, _centre(known))
        found = found + of_vectors * (vectors @ vectors.T)
    return found


def answers(
    found: Similarity, episodes: Episodes, shots: int, rule: Rule
) -> Int[np.ndarray, "episodes way queries"]:
    """Return the product that each query of an episode is taken for, as its place in the episode.

    Args:
        found: as of `similarity`.
        episodes, shots: as in `kernels`.
        rule: what was learned.
    """
    count, way, each = episodes.shape
    said = _answers(jnp.asarray(found, jnp.float32), episodes, shots, rule.nearest)
    return np.asarray(said).reshape(count, way, each - shots)


@partial(jax.jit, static_argnums=2)
def _answers(found: Array, episodes: Array, shots: int, nearest: Array) -> Array:
    def one(episode: Array) -> Array:
        support, query = episode[:, :shots].ravel(), episode[:, shots:].ravel()
        between, within = found[query][:, support], found[support][:, support]
        own = jnp.diag(found)[query]
        return scores(between, own, within, nearest, len(episode)).argmax(-1)

    return jax.lax.map(one, episodes)
