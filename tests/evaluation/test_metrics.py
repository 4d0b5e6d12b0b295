"""Metrics against their definitions, and intervals against what they must cover."""

import inspect

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import f1_score

from metaguide.evaluation import metrics


def test_macro_f1_is_over_the_classes_that_occur():
    """A class that is predicted but never occurs counted as a class of F1 0."""
    target, predicted = np.array([0, 0, 1, 1]), np.array([0, 7, 1, 1])
    assert metrics.macro_f1(predicted, target) == pytest.approx((2 / 3 + 1) / 2)
    assert metrics.accuracy(predicted, target) == 0.75
    with pytest.raises(ValueError, match="predictions .4, 1. for targets .4,."):
        inspect.unwrap(metrics.accuracy)(predicted[:, None], target)


@given(st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_ranks_agree_with_sorting(seed):
    """Products that are no candidates, or the target's own score, counted into the rank."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(6, 9))
    target = rng.integers(0, 9, 6)
    candidates = rng.random((6, 9)) < 0.6
    candidates[np.arange(6), target] = True
    ranks = metrics.ranks_of(scores, target, candidates, rng)
    for row in range(6):
        order = [p for p in np.argsort(-scores[row]) if candidates[row, p]]
        assert ranks[row] == order.index(target[row]) + 1


def test_ties_fall_evenly():
    """Ties always broken in favour of the target, or against it."""
    rng = np.random.default_rng(0)
    scores = np.zeros((8000, 4))
    scores[:, 3] = 1.0
    ranks = metrics.ranks_of(scores, np.zeros(8000, np.int64), np.ones((1, 4), bool), rng)
    share = np.bincount(ranks, minlength=5)[1:] / 8000
    np.testing.assert_allclose(share, [0, 1 / 3, 1 / 3, 1 / 3], atol=0.02)


def test_ranks_refuse_what_has_no_rank():
    """A model that diverged, or a target out of the catalogue, ranked first in silence."""
    rng, everything = np.random.default_rng(0), np.ones((1, 3), bool)
    for bad in (np.nan, np.inf, -np.inf):
        for place in (0, 1):
            scores = np.array([[2.0, 1.0, 0.0]])
            scores[0, place] = bad
            assert metrics.ranks_of(scores, np.array([0]), everything, rng).tolist() == [3]
    alone = np.array([[True, False, False]])
    single = metrics.ranks_of(np.full((1, 3), np.nan), np.array([0]), alone, rng)
    assert single.tolist() == [2]  # not the first, though it is the only one
    assert metrics.ranks_of(np.ones((1, 3)), np.array([0]), alone, rng).tolist() == [1]
    with pytest.raises(ValueError, match="not among"):
        metrics.ranks_of(np.ones((1, 2)), np.array([0]), np.array([[False, True]]), rng)


def test_ranking_metrics_by_hand():
    """A rank counted from 0, or a cut at k taken as exclusive."""
    ranks = np.array([1, 3, 10, 11])
    np.testing.assert_array_equal(metrics.hit_rate(ranks, 10), [1, 1, 1, 0])
    np.testing.assert_allclose(metrics.ndcg(ranks, 10), [1, 0.5, 1 / np.log2(11), 0])
    np.testing.assert_allclose(metrics.reciprocal_rank(ranks), [1, 1 / 3, 0.1, 1 / 11])


def test_an_interval_has_two_degrees_of_freedom_at_three_seeds():
    """A normal quantile (1.96) where t is 4.30; an interval of one seed."""
    value, half = metrics.mean_interval(np.array([0.7, 0.8, 0.9]))
    assert value == pytest.approx(0.8)
    assert half == pytest.approx(stats.t.ppf(0.975, 2) * 0.1 / np.sqrt(3))
    assert metrics.mean_interval(np.array([0.7])) == (0.7, None)


def test_bootstrap_agrees_with_the_normal_interval_where_examples_are_distinct():
    """A bootstrap whose weights have the wrong variance."""
    values = np.random.default_rng(1).normal(size=400)
    half = metrics.bootstrap_interval(values, np.arange(400), draws=4000).half
    assert half == pytest.approx(1.96 * values.std(ddof=1) / 20, rel=0.05)


def test_repeating_a_pool_does_not_narrow_its_interval():
    """Occurrences of one example resampled as if they were examples of their own."""
    values = np.random.default_rng(2).normal(size=60)
    once = metrics.bootstrap_interval(values, np.arange(60), draws=2000).half
    many = metrics.bootstrap_interval(
        np.tile(values, 50), np.tile(np.arange(60), 50), np.repeat(np.arange(50), 60), draws=2000
    ).half
    assert once is not None and many is not None
    assert many == pytest.approx(once, rel=0.08)


def test_the_draw_of_supports_widens_the_interval():
    """Queries of one episode share its support: taken as independent, 20 episodes look like 400."""
    rng = np.random.default_rng(3)
    episodes = np.repeat(np.arange(20), 20)
    values = rng.normal(size=20)[episodes] + 0.1 * rng.normal(size=400)
    half = metrics.bootstrap_interval(values, np.arange(400), episodes, draws=2000).half
    means = values.reshape(20, 20).mean(axis=1)
    assert half == pytest.approx(1.96 * means.std(ddof=1) / np.sqrt(20), rel=0.1)


def test_two_way_interval_covers_both_sources():
    """Clusters crossed, where either alone leaves out half of the variance."""
    rng = np.random.default_rng(4)
    example, episode = np.tile(np.arange(40), 40), np.repeat(np.arange(40), 40)
    values = rng.normal(size=40)[example] + rng.normal(size=40)[episode]
    half = metrics.bootstrap_interval(values, example, episode, draws=2000).half
    grid = values.reshape(40, 40)
    variance = (grid.mean(axis=0).var(ddof=1) + grid.mean(axis=1).var(ddof=1)) / 40
    assert half == pytest.approx(1.96 * np.sqrt(variance), rel=0.08)


def test_pairing_takes_out_what_two_methods_share():
    """Two methods compared as if they had seen different examples."""
    rng = np.random.default_rng(5)
    hard = rng.normal(size=200)
    a, b = hard + 0.1 + 0.05 * rng.normal(size=200), hard
    value, half = metrics.paired_bootstrap(a, b, np.arange(200))
    assert half is not None and half < 0.02
    assert value == pytest.approx(np.mean(a - b))


@given(st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_weighted_macro_f1_is_scikit_learns_with_weights(seed):
    """False positives or negatives of a class weighted by the wrong entries."""
    rng = np.random.default_rng(seed)
    target = rng.integers(2, 6, 30)
    predicted = rng.integers(0, 8, (3, 30))
    weights = rng.exponential(size=(2, 30))
    found = metrics.macro_f1_statistic(predicted, target)(weights)
    for draw in range(2):
        for row in range(3):
            expected = f1_score(
                target,
                predicted[row],
                labels=np.unique(target),
                average="macro",
                sample_weight=weights[draw],
                zero_division=0,  # type: ignore
            )
            assert found[draw, row] == pytest.approx(expected)


def test_no_examples_is_an_error():
    """An empty cell that becomes NaN in a table."""
    with pytest.raises(ValueError, match="empty or all masked"):
        metrics.bootstrap_interval(np.zeros(0), np.zeros(0, np.int64))


def test_bootstrap_intervals_of_few_examples_cover_95_percent():
    """A normal quantile or a biased variance: 82% of the intervals at n = 5 hold the mean."""
    rng = np.random.default_rng(6)
    for count in (5, 10, 20):
        values = rng.normal(size=(2000, count))
        halves = metrics.bootstrap(metrics.mean_statistic(values), np.arange(count), draws=2000)
        assert 0.93 <= np.mean(np.abs(values.mean(axis=1)) <= halves) <= 0.97


def test_intervals_over_few_episodes_and_examples_cover_95_percent():
    """Degrees of freedom of the entries, 100, where there are 10 examples and 10 episodes."""
    rng = np.random.default_rng(7)
    example, episode = np.tile(np.arange(10), 10), np.repeat(np.arange(10), 10)
    values = rng.normal(size=(2000, 10))[:, example] + rng.normal(size=(2000, 10))[:, episode]
    statistic = metrics.mean_statistic(values)
    halves = metrics.bootstrap(statistic, example, episode, draws=2000)
    assert 0.93 <= np.mean(np.abs(values.mean(axis=1)) <= halves) <= 0.97


def test_a_score_of_a_subset_has_the_degrees_of_freedom_of_the_subset():
    """3 answerable questions among 40 that get the quantile of 40."""
    values = np.random.default_rng(8).normal(size=(1, 40))
    counted = np.arange(40)[None] < 3
    statistic = metrics.mean_statistic(values, counted)
    half = metrics.bootstrap(statistic, np.arange(40), counted=counted, draws=4000)[0]
    assert half == pytest.approx(metrics.mean_interval(values[0, :3]).half, rel=0.08)


def test_one_example_or_one_episode_has_no_interval():
    """A half-width of 0 that looks like certainty."""
    assert metrics.bootstrap_interval(np.array([0.7]), np.zeros(1, int)).half is None
    assert metrics.bootstrap_interval(np.ones(4), np.arange(4), np.zeros(4, int)).half is None
