"""The next item of a user's sequence, by a sum of similarities whose weights are learned.

The score of item j for a user with history i_1, ..., i_T is

    s_j = b p_j + sum_c sum_d theta_cd sum_t w_d(T - t) S_c(i_t, j),

with similarities S_c of two items, weights w_d(a) = d^a / sum_t d^(T - t) of an item that a others
came after, and p_j, how popular an item is with the users that are given. Without given users
nothing but the catalogue is read. Learning reads users of the sources, whose items differ: theta
and b are all that goes from one domain to another.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int
from scipy import sparse
from sklearn.preprocessing import normalize

from experiments.sources.amazon_sequences import Shop
from metaguide.data.ngrams import inverse_document_frequency
from metaguide.evaluation.metrics import ranks_of
from metaguide.inner_loop import inner_loop, run

Histories = Sequence[Int[np.ndarray, " items"]]
"""The items that each user took, in the order of time."""

Numbers = Array | np.ndarray

Similarity = Callable[[sparse.csr_array], Float[np.ndarray, "users items"]]
"""Weights of items, sparse [users, items] -> sum_i weight_i S(i, j)."""

DECAYS = (0.0, 0.5, 0.8)
"""The d of the weights w_d; 0 is the last item alone."""

DEPTHS = (2, 3, 4)
"""Lengths of the paths of clusters that count as words."""

SCALES = (3.0, 100.0)
"""Of the nearness of item numbers."""


class Weights(NamedTuple):
    """What is learned.

    Attributes:
        similar: theta by similarity, float [decays].
        popular: b.
    """

    similar: dict[str, Float[Numbers, " decays"]]
    popular: Float[Numbers, ""]


# ------------------------------------------------------------------------------ similarities


def words(shop: Shop, deep: bool, idf: Mapping[str, float] | None = None) -> sparse.csr_array:
    """Return TF-IDF of the items' keyword pieces, rows of unit length.

    Args:
        shop: the catalogue.
        deep: whether the first 2, 3 and 4 pieces together are words too, as paths of clusters.
        idf: of words; by default that of the catalogue itself.

    Returns:
        Sparse [items, words].
    """
    rows, columns, index = [], [], dict[str, int]()
    for row, pieces in enumerate(shop.pieces):
        paths = ["|".join(pieces[:depth]) for depth in DEPTHS] if deep else []
        for word in (*pieces, *paths):
            rows.append(row)
            columns.append(index.setdefault(word, len(index)))
    shape = len(shop.items), len(index)
    counts: Any = sparse.csr_array((np.ones(len(rows)), (rows, columns)), shape=shape)
    if idf is None:
        weight = inverse_document_frequency((counts > 0).sum(axis=0), shape[0])
    else:
        rarest = max(idf.values())
        weight = np.array([idf.get(word, rarest) for word in index])
    found: Any = normalize(counts @ sparse.diags_array(weight))
    return sparse.csr_array(found, dtype=np.float32)


def cosine(vectors: sparse.csr_array) -> Similarity:
    """Return the similarity x_i^T x_j of unit vectors [items, words]."""
    to = sparse.csr_array(vectors.T)
    return lambda weights: ((weights @ vectors) @ to).toarray()


def near_number(scale: float, items: int) -> Similarity:
    """Return the similarity exp(-|i - j| / scale), up to 4 scales, of items in order of number."""
    widest = min(int(4 * scale), items - 1)
    offsets: Any = np.arange(-widest, widest + 1)
    bands = [np.full(items - abs(o), np.exp(-abs(o) / scale), np.float32) for o in offsets]
    return matrix(sparse.csr_array(sparse.diags_array(bands, offsets=offsets)))


def matrix(of: Any) -> Similarity:
    """Return the similarity that a sparse matrix [items, items] holds."""
    return lambda weights: (weights @ of).toarray()


def transitions(given: Histories, items: int) -> tuple[sparse.csr_array, sparse.csr_array]:
    """Count which items users took after, and together with, which.

    n_ij is the sum over users of .7^(g - 1), if j came g items after i, and m = n + n^T.

    Args:
        given: histories of the users that are read.
        items: how many the catalogue has.

    Returns:
        n_ij / (1 + sum_j n_ij) and m_ij / sqrt((1 + sum_j m_ij) (1 + sum_i m_ij)), each sparse
        [items, items].
    """
    rows, columns, values = [], [], []
    for history in given:
        for gap in range(1, min(len(history), 9)):
            rows.append(history[:-gap])
            columns.append(history[gap:])
            values.append(np.full(len(history) - gap, 0.7 ** (gap - 1), np.float32))
    parts = [np.concatenate(part) if part else np.zeros(0, int) for part in (rows, columns, values)]
    count = sparse.csr_array((parts[2], (parts[0], parts[1])), shape=(items, items))
    both = sparse.csr_array(count + count.T)
    from_each, of_both = 1 + count.sum(axis=1), 1 / np.sqrt(1 + both.sum(axis=1))
    after = sparse.diags_array(1 / from_each) @ count
    together = sparse.diags_array(of_both) @ both @ sparse.diags_array(of_both)
    return sparse.csr_array(after, dtype=np.float32), sparse.csr_array(together, dtype=np.float32)


class Known(NamedTuple):
    """What is known of a domain before a user of it is.

    Attributes:
        similar: similarities by name.
        popular: log(1 + n_j) / log(1 + max n); 0 where no user is given.
    """

    similar: dict[str, Similarity]
    popular: Float[np.ndarray, " items"]


def of_catalogue(shop: Shop) -> Known:
    """Return what a catalogue tells; no sequence is read."""
    similar = {
        name: cosine(words(shop, deep)) for name, deep in (("words", False), ("paths", True))
    }
    items = len(shop.items)
    similar |= {f"numbers {scale:g}": near_number(scale, items) for scale in SCALES}
    return Known(similar, np.zeros(items, np.float32))


def of_users(given: Histories, items: int) -> Known:
    """Return what the histories of some users tell.

    Args:
        given: the histories that are read.
        items: how many the catalogue has.
    """
    after, together = transitions(given, items)
    taken = np.bincount(np.concatenate(given), minlength=items)
    popular = (np.log1p(taken) / np.log1p(taken.max())).astype(np.float32)
    return Known({"after": matrix(after), "together": matrix(together)}, popular)


# ------------------------------------------------------------------------------ scores


def recency(
    histories: Histories,
    items: int,
    most: int | None = None,
    decays: Sequence[float] = DECAYS,
) -> tuple[sparse.csr_array, ...]:
    """Return the weights w_d(T - t) of the items of histories, for each d sparse [users, items].

    Args:
        histories: at least one item each.
        items: how many the catalogue has.
        most: how many of the last items are read; all by default.
        decays: every d.
    """
    shown = [history[-most:] if most else history for history in histories]
    lengths = [len(one) for one in shown]
    ages = np.concatenate([np.arange(length)[::-1] for length in lengths])
    place = np.repeat(np.arange(len(shown)), lengths), np.concatenate(shown)
    found = []
    for decay in decays:
        values = decay ** ages.astype(np.float64)
        values /= np.bincount(place[0], values)[place[0]]
        matrix_of = sparse.csr_array((values, place), shape=(len(shown), items), dtype=np.float32)
        matrix_of.eliminate_zeros()
        found.append(matrix_of)
    return tuple(found)


Features = dict[str, tuple[Float[np.ndarray, "users items"], ...]]
"""By similarity, sum_t w_d(T - t) S(i_t, j) for each d."""


def features_of(known: Known, weights: Sequence[sparse.csr_array]) -> Features:
    """Return what the scores of all items consist of.

    Args:
        known: of the domain.
        weights: of `recency`.
    """
    return {name: tuple(similar(one) for one in weights) for name, similar in known.similar.items()}


def scores_of(
    weights: Weights, features: Features, popular: Float[np.ndarray, " items"]
) -> Float[np.ndarray, "users items"]:
    """Return the scores s of all items.

    Args:
        weights: learned ones; features that they lack are not read.
        features: of `features_of`.
        popular: of `Known`.
    """
    shape = next(iter(features.values()))[0].shape
    found = np.tile(np.float32(weights.popular) * popular, (shape[0], 1))
    for name, theta in weights.similar.items():
        for share, one in zip(np.asarray(theta, np.float32), features[name], strict=True):
            found += share * one
    return found


def ranks(
    scores: Float[np.ndarray, "users items"],
    histories: Histories,
    target: Int[np.ndarray, " users"],
    rng: np.random.Generator,
) -> Int[np.ndarray, " users"]:
    """Return the rank of each user's target among all items that the user has not taken."""
    free = np.ones(scores.shape, bool)
    for row, history in zip(free, histories, strict=True):
        row[history] = False
    return ranks_of(scores, target, free, rng)


# ------------------------------------------------------------------------------ learning


class Examples(NamedTuple):
    """Users of one domain to learn from, each with its target and the items that compete with it.

    Attributes:
        similar: by similarity, float [users, 1 + rivals, decays]; the target is the first.
        popular: [users, 1 + rivals].
        stands_for: of how many items each rival is one, [users, rivals].
    """

    similar: dict[str, Float[Numbers, "users items decays"]]
    popular: Float[Numbers, "users items"]
    stands_for: Float[Numbers, "users rivals"]


def start(names: Sequence[str]) -> Weights:
    """Return the weights that learning starts from: words and paths, the last items more."""
    first = {"words": 20.0, "paths": 20.0, "after": 20.0, "together": 20.0}
    even = np.array([0.2, 0.5, 0.3], np.float32)
    return Weights({name: first.get(name, 2.0) * even for name in names}, np.zeros((), np.float32))


def only(name: str) -> Weights:
    """Return weights that one similarity alone has."""
    return Weights({name: np.full(len(DECAYS), 1.0, np.float32)}, np.zeros((), np.float32))


def strongest(
    scores: Float[np.ndarray, "users items"], barred: Bool[np.ndarray, "users items"], count: int
) -> Int[np.ndarray, "users count"]:
    """Return the items of the highest scores for each user, in any order, barred ones last."""
    return np.argpartition(np.where(barred, np.inf, -scores), count, axis=1)[:, :count]


def again(rows: Int[np.ndarray, "rows n"]) -> Bool[np.ndarray, "rows n"]:
    """Return which entries stand in their row a second time."""
    order = np.argsort(rows, axis=1, kind="stable")
    along = np.take_along_axis(rows, order, axis=1)
    found = np.zeros(rows.shape, bool)
    same = np.pad(along[:, 1:] == along[:, :-1], ((0, 0), (1, 0)))
    np.put_along_axis(found, order, same, axis=1)
    return found


def examples_of(
    catalogue: Known,
    given: Sequence[Known | None],
    histories: Histories,
    target: Int[np.ndarray, " users"],
    rivals: int,
    rng: np.random.Generator,
    at_once: int = 100,
) -> list[Examples]:
    """Return what the scores of targets and of some rivals consist of.

    The rivals are the items of the highest scores by `start`, by each similarity alone, and by how
    popular they are, so that no weight may grow unopposed; and drawn ones, each of which stands for
    several.

    Args:
        catalogue: what is known of the domain without users.
        given: what is known by users, for each of the examples that are returned.
        histories: of the users, before the target.
        target: the item that each took next.
        rivals: how many items are the best by `start`, and are drawn; a third by each of the rest.
        rng: draws rivals.
        at_once: users that are scored at once.
    """
    parts: list[list[Examples]] = [[] for _ in given]
    items = len(catalogue.popular)
    rivals = min(rivals, (items - 1) // 2)
    for first in range(0, len(histories), at_once):
        some, aim = histories[first : first + at_once], target[first : first + at_once]
        of_decay = recency(some, items)
        features = features_of(catalogue, of_decay)
        others = rng.integers(0, items, (len(some), rivals))
        barred = np.zeros((len(some), items), bool)
        for row, history in zip(barred, some, strict=True):
            row[history] = True
        np.put_along_axis(barred, aim[:, None], True, axis=1)
        for found, users in zip(parts, given, strict=True):
            extra = {} if users is None else features_of(users, of_decay)
            popular = catalogue.popular if users is None else users.popular
            every = features | extra
            strong = [strongest(scores_of(start(list(every)), every, popular), barred, rivals)]
            alone = [scores_of(only(name), every, popular) for name in every]
            if users is not None:
                alone.append(np.broadcast_to(popular, barred.shape))
            strong += [strongest(scores, barred, max(1, rivals // 3)) for scores in alone]
            best = np.concatenate(strong, axis=1)
            known = barred.copy()
            np.put_along_axis(known, best, True, axis=1)
            one_each = ~np.take_along_axis(barred, best, axis=1) & ~again(best)
            of_several = ~np.take_along_axis(known, others, axis=1) * (items / rivals)
            stands_for = np.concatenate([one_each, of_several], axis=1).astype(np.float32)
            asked = np.concatenate([aim[:, None], best, others], axis=1)
            similar: dict[str, Any] = {
                name: np.stack([np.take_along_axis(one, asked, 1) for one in feature], -1)
                for name, feature in every.items()
            }
            found.append(Examples(similar, popular[asked], stands_for))
    return [jax.tree.map(lambda *leaves: np.concatenate(leaves), *found) for found in parts]


def gain(weights: Weights, examples: Examples) -> Float[Array, ""]:
    """Return NDCG@10 with a smooth rank and a smooth cut.

    With r = sum_j sigma(s_j - s_target), how many rivals are ahead, it is the mean of
    sigma((10 - r) / 3) / log2(2 + r).

    Qin, Liu and Li: A general approximation framework for direct optimization of information
    retrieval measures (2010).
    """
    scores = weights.popular * examples.popular
    for name, features in examples.similar.items():
        scores = scores + features @ weights.similar[name]
    beaten = jax.nn.sigmoid(scores[:, 1:] - scores[:, :1])
    above = (examples.stands_for * beaten).sum(axis=1)
    return (jax.nn.sigmoid((10 - above) / 3) / jnp.log2(2 + above)).mean()


def learned(domains: Sequence[Examples], steps: int, learning_rate: float) -> Weights:
    """Learn the weights that `gain` is highest with, in the mean over domains.

    Args:
        domains: examples of each.
        steps: of Adam over all examples.
        learning_rate: of Adam, falling to 0 by a cosine.
    """
    begin = start(list(domains[0].similar))
    return jax.device_get(_learn(tuple(domains), begin, steps, learning_rate))


@partial(jax.jit, static_argnums=2)
def _learn(
    domains: tuple[Examples, ...], begin: Weights, steps: int, learning_rate: float
) -> Weights:
    def loss(weights: Weights, domains: tuple[Examples, ...]) -> tuple[Array, None]:
        return -jnp.stack([gain(weights, one) for one in domains]).mean(), None

    loop = inner_loop(loss, optax.adam(optax.cosine_decay_schedule(learning_rate, steps)))
    return run(loop, loop.start(begin), lambda _: domains, steps)[0].params
