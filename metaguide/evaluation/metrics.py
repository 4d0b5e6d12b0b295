"""Metrics on the host, in numpy, and their intervals.

A half-width `half` always belongs to a 95% interval, `value - half` to `value + half`.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import threadpoolctl
from jaxtyping import Bool, Float, Int, Num, Shaped
from scipy import sparse, special

Statistic = Callable[[np.ndarray], np.ndarray]
"""Weights [draws, n] over n scored entries -> the statistics [draws, k] under those weights."""


class Interval(NamedTuple):
    """An estimate and the half-width of its 95% interval; None if undefined."""

    value: float
    half: float | None


# ------------------------------------------------------------------------------ classification


def accuracy(predicted: Shaped[np.ndarray, " n"], target: Shaped[np.ndarray, " n"]) -> float:
    """Return the share of the n predictions that equal their target.

    Raises:
        ValueError: there are none, or they have another shape than the target.
    """
    _some(target)
    if np.shape(predicted) != np.shape(target):
        raise ValueError(f"predictions {np.shape(predicted)} for targets {np.shape(target)}")
    return float(np.mean(predicted == target))


def macro_f1(predicted: Shaped[np.ndarray, " n"], target: Shaped[np.ndarray, " n"]) -> float:
    """Return the mean of F1 = 2 tp / (2 tp + fp + fn) over the classes that occur in `target`.

    A class that is predicted but never occurs has no F1 of its own; its false positives reduce the
    recall of the others. ValueError if n = 0.
    """
    from sklearn.metrics import f1_score  # takes seconds to import

    _some(target)
    labels = np.unique(target)
    f1 = f1_score(target, predicted, labels=labels, average="macro", zero_division=0)  # type: ignore
    return float(f1)


# ------------------------------------------------------------------------------ ranking


def ranks_of(
    scores: Float[np.ndarray, "*n products"],
    target: Int[np.ndarray, "*n"],
    candidates: Bool[np.ndarray, "*#n products"],
    rng: np.random.Generator,
) -> Int[np.ndarray, "*n"]:
    """Return each target's rank (1 = best) among its candidates; ties are drawn from `rng`.

    If a candidate's score is not finite, the target is ranked last, or second if it is the only
    candidate: nothing was ranked first.

    Args:
        scores: higher is better; only those of candidates are read.
        target: column of the product to rank, which is a candidate itself.
        candidates: which products compete.
        rng: a target tied with t others gets each of the t + 1 places with equal chance.

    Raises:
        ValueError: a target is not a candidate.
    """
    candidates = np.broadcast_to(candidates, scores.shape)
    column = target[..., None]
    if not np.take_along_axis(candidates, column, axis=-1).all():
        raise ValueError("ranks_of: a target is not among its candidates; add it to `candidates`")
    own = np.take_along_axis(scores, column, axis=-1)
    better = np.sum(candidates & (scores > own), axis=-1)
    tied = np.sum(candidates & (scores == own), axis=-1) - 1
    lost = (candidates & ~np.isfinite(scores)).any(axis=-1)
    ranks = 1 + better + rng.integers(0, np.maximum(tied, 0) + 1)
    return np.where(lost, np.maximum(candidates.sum(axis=-1), 2), ranks)


def hit_rate(ranks: Int[np.ndarray, "*n"], k: int) -> Float[np.ndarray, "*n"]:
    """Return HR@k of each ranking with one correct product: 1 if its rank is at most k, else 0."""
    return (ranks <= k).astype(np.float64)


def ndcg(ranks: Int[np.ndarray, "*n"], k: int) -> Float[np.ndarray, "*n"]:
    """Return NDCG@k of each ranking with one correct product: 1 / log2(1 + rank), 0 past k."""
    return np.where(ranks <= k, 1.0 / np.log2(1.0 + ranks), 0.0)


def reciprocal_rank(ranks: Int[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
    """Return 1 / rank; its mean is MRR."""
    return 1.0 / ranks


# ------------------------------------------------------------------------------ intervals


def mean_interval(values: Num[np.ndarray, " n"]) -> Interval:
    """Return the mean of n independent values and its t interval, n - 1 degrees of freedom.

    half = t(.975, n - 1) s / sqrt(n); None if n = 1. ValueError if n = 0.
    """
    _some(values)
    half = mean_halves(values)
    return Interval(float(np.mean(values)), None if half is None else float(half))


def mean_halves(values: Num[np.ndarray, "n *rest"]) -> Float[np.ndarray, "*rest"] | None:
    """Return half-widths of the t intervals of means over the first axis; None if n = 1."""
    count = len(values)
    if count < 2:
        return None
    quantile = special.stdtrit(count - 1, 0.975)  # of Student's t
    return np.asarray(quantile * np.std(values, axis=0, ddof=1) / count**0.5)


def half_of_mean(halves: Sequence[float] | Float[np.ndarray, " n"]) -> float:
    """Return the half-width of the mean of independent estimates, √(Σ h_i²) / n, as of domains."""
    return float(np.linalg.norm(halves)) / len(halves)


def bootstrap(
    statistic: Statistic,
    ids: Int[np.ndarray, " n"],
    episodes: Int[np.ndarray, " n"] | None = None,
    *,
    counted: Bool[np.ndarray, "k n"] | None = None,
    draws: int = 500,
    seed: int = 0,
) -> Float[np.ndarray, " k"]:
    """Return half-widths of the 95% intervals of k statistics by a cluster bootstrap.

    The pool of held-out examples is finite and its examples recur over episodes, so an example
    is drawn with all its occurrences: more episodes over one pool do not narrow the interval beyond
    what the pool allows. If `episodes` is given, the draw of supports counts too, with two-way
    clustering (Cameron, Gelbach & Miller 2011):

        half = t sqrt(V_examples + V_episodes - V_both), at least that of either alone.

    Weights are those of the Bayesian bootstrap (Rubin 1981), exponential in place of multinomial:
    no class and no subset ever falls out of a draw. Their variance of a mean over G clusters is
    (G - 1) / (G + 1) of the unbiased one, and is divided by that. t is the quantile of Student's
    distribution with G - 1 degrees of freedom; with both clusterings, with those of Satterthwaite
    (1946) for the sum of their variances.

    Args:
        statistic: weights [draws, n] -> statistics [draws, k].
        ids: example of each entry.
        episodes: episode of each entry.
        counted: the entries that each statistic uses; all by default.
        draws: number of resamples.
        seed: seed of the draws.

    Returns:
        The half-widths; NaN if all entries belong to one example or one episode.

    Raises:
        ValueError: there are no entries.
    """
    _some(ids)
    with threadpoolctl.threadpool_limits(1):  # threads cost more than products of this size
        return _clustered_halves(
            statistic, ids, episodes, counted, draws, np.random.default_rng(seed)
        )


def bootstrap_interval(
    values: Num[np.ndarray, " n"],
    ids: Int[np.ndarray, " n"],
    episodes: Int[np.ndarray, " n"] | None = None,
    *,
    draws: int = 500,
    seed: int = 0,
) -> Interval:
    """Return the mean of n scores and its `bootstrap` interval over examples (and episodes)."""
    half = bootstrap(mean_statistic(values[None]), ids, episodes, draws=draws, seed=seed)
    return Interval(float(np.mean(values)), defined(half[0]))


def defined(half: float) -> float | None:
    """Return a half-width of `bootstrap`, or None if it is NaN."""
    return None if np.isnan(half) else float(half)


def paired_bootstrap(
    a: Num[np.ndarray, " n"],
    b: Num[np.ndarray, " n"],
    ids: Int[np.ndarray, " n"],
    episodes: Int[np.ndarray, " n"] | None = None,
    *,
    draws: int = 500,
    seed: int = 0,
) -> Interval:
    """Return the mean of a - b, scores of the same entries, and its `bootstrap` interval."""
    return bootstrap_interval(a - b, ids, episodes, draws=draws, seed=seed)


def mean_statistic(
    values: Num[np.ndarray, "k n"], counted: Bool[np.ndarray, "k n"] | None = None
) -> Statistic:
    """Return the statistic of `bootstrap` for weighted means of k rows over counted entries."""
    if counted is None:
        return lambda weights: (weights @ values.T) / weights.sum(axis=1, keepdims=True)
    among = counted.astype(np.float64)
    scores = np.where(counted, values, 0.0)
    return lambda weights: (weights @ scores.T) / (weights @ among.T)


def macro_f1_statistic(
    predicted: Int[np.ndarray, "k n"], target: Int[np.ndarray, " n"]
) -> Statistic:
    """Return the statistic of `bootstrap` for weighted macro-F1 of k rows of predictions."""
    classes, index = np.unique(target, return_inverse=True)
    rows, count = predicted.shape
    is_class = _one_hot(index, np.arange(count), len(classes), count)
    row, entry = np.nonzero(np.isin(predicted, classes))
    found = np.searchsorted(classes, predicted[row, entry])
    guessed = _one_hot(row * len(classes) + found, entry, rows * len(classes), count)
    hit = found == index[entry]
    right = _one_hot((row * len(classes) + found)[hit], entry[hit], rows * len(classes), count)

    def statistic(weights: np.ndarray) -> np.ndarray:
        shape = (rows, len(classes), len(weights))
        columns = np.ascontiguousarray(weights.T)
        occurring = (is_class @ columns)[None]
        f1 = 2.0 * (right @ columns).reshape(shape)
        f1 = f1 / (occurring + (guessed @ columns).reshape(shape))
        return f1.mean(axis=1).T

    return statistic


def _one_hot(rows: np.ndarray, columns: np.ndarray, height: int, width: int) -> Any:
    return sparse.csr_array((np.ones(len(rows)), (rows, columns)), shape=(height, width))


def _clustered_halves(
    statistic: Statistic,
    ids: np.ndarray,
    episodes: np.ndarray | None,
    counted: np.ndarray | None,
    draws: int,
    rng: np.random.Generator,
) -> np.ndarray:
    by_id = np.unique(ids, return_inverse=True)[1]
    over_ids, free_ids = _variance(statistic, by_id, counted, draws, rng)
    if episodes is None:
        return _half(over_ids, free_ids)
    by_episode = np.unique(episodes, return_inverse=True)[1]
    over_episodes, free_episodes = _variance(statistic, by_episode, counted, draws, rng)
    wider = np.maximum(over_ids, over_episodes)
    wider_free = np.where(over_ids > over_episodes, free_ids, free_episodes)
    width = by_episode.max() + 1
    both = np.unique(by_id.astype(np.int64) * width + by_episode, return_inverse=True)[1]
    if both.max() in (by_id.max(), by_episode.max()):  # one clustering refines the other
        coarse = np.minimum(free_ids, free_episodes)
        return _half(wider, np.where(coarse > 0, wider_free, 0))
    variance = over_ids + over_episodes - _variance(statistic, both, counted, draws, rng)[0]
    with np.errstate(divide="ignore", invalid="ignore"):
        apart = over_ids**2 / free_ids + over_episodes**2 / free_episodes
        free = np.where(apart > 0, (over_ids + over_episodes) ** 2 / apart, free_ids)
    free = np.where(np.minimum(free_ids, free_episodes) > 0, free, 0)
    summed = variance > wider
    return _half(
        np.where(summed, variance, wider), np.where(summed | (free == 0), free, wider_free)
    )


def _half(variance: np.ndarray, free: np.ndarray) -> np.ndarray:
    quantile = special.stdtrit(np.maximum(free, 1), 0.975)
    return np.where(free > 0, quantile * np.sqrt(variance), np.nan)


def _variance(
    statistic: Statistic,
    cluster: np.ndarray,
    counted: np.ndarray | None,
    draws: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the unbiased variance of each statistic, and its degrees of freedom, clusters - 1."""
    chunk = max(1, min(draws, 4_000_000 // len(cluster)))  # weights of a chunk: at most 32 MB
    drawn = []
    for first in range(0, draws, chunk):
        count = min(chunk, draws - first)
        weights = rng.standard_exponential((count, cluster.max() + 1))
        drawn.append(statistic(weights.take(cluster, axis=1)))
    variance = np.var(np.concatenate(drawn), axis=0, ddof=1)
    if counted is None:
        free = np.full(variance.shape, cluster.max())
    else:
        free = np.array([len(np.unique(cluster[which])) - 1 for which in counted])
    return variance * (free + 2) / np.maximum(free, 1), free


def _some(values: np.ndarray) -> None:
    if len(values) == 0:
        raise ValueError("a metric of no examples is not defined: the cell is empty or all masked")
