"""Scores of answers that are positive or negative, for each held-out category and for all."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from ml_collections.config_dict import FrozenConfigDict

from metaguide.evaluation.metrics import bootstrap, half_of_mean, mean_interval
from metaguide.evaluation.results import Row, Scores, key, with_baselines
from metaguide.evaluation.rows import ONCE

TASK = "sentiment"

BASELINES = ("majority", "tf-idf zero-shot", "tf-idf few-shot")
"""Names of the baselines of the table of reviews."""

ALL = "all"
"""The domain of the rows of all categories."""


class Outcome(NamedTuple):
    """Answers of a method in one category at one number of shots.

    Attributes:
        label: of all reviews of the category.
        query: numbers of the reviews asked for.
        logits: the answers.
        before: the method's logits of the same reviews without adaptation; None if it has none.
        pays: in which episodes the guard let it adapt; None if there was nothing to adapt.
    """

    label: Int[np.ndarray, " reviews"]
    query: Int[np.ndarray, "episodes queries"]
    logits: Float[np.ndarray, "episodes queries"]
    before: Float[np.ndarray, "episodes queries"] | None = None
    pays: Bool[np.ndarray, " episodes"] | None = None


Outcomes = dict[tuple[str, int], list[tuple[Outcome, ...]]]
"""By method and shots, for each category that is held out, in order of groups: an outcome for each
seed of the method's encoder, or one if its encoder is not trained."""


def packed(outcomes: Outcomes) -> dict[str, np.ndarray]:
    """Return the arrays of outcomes by "method/shots/category/seed/field"."""
    return {
        f"{method}/{shots}/{d}/{seed}/{field}": array
        for (method, shots), of_categories in outcomes.items()
        for d, of_seeds in enumerate(of_categories)
        for seed, one in enumerate(of_seeds)
        for field, array in one._asdict().items()
        if array is not None
    }


def unpacked(arrays: Mapping[str, np.ndarray]) -> Outcomes:
    """Return the outcomes whose arrays were `packed`."""
    fields: dict[tuple[str, int], dict[int, dict[int, dict[str, np.ndarray]]]] = {}
    for place, array in arrays.items():
        method, shots, d, seed, field = place.rsplit("/", 4)
        of_category = fields.setdefault((method, int(shots)), {}).setdefault(int(d), {})
        of_category.setdefault(int(seed), {})[field] = array
    return {
        cell: [tuple(Outcome(**one) for one in of_seeds.values()) for of_seeds in found.values()]
        for cell, found in fields.items()
    }


def f1(
    positive: Float[np.ndarray, "*rows n"],
    label: Int[np.ndarray, "*rows n"],
    weights: Float[np.ndarray, "*rows n"],
) -> Float[np.ndarray, "*rows"]:
    """Return macro-F1 of two classes.

    Args:
        positive: whether, or in which share of the episodes, an entry was taken for positive.
        label: of the entries.
        weights: of the entries.
    """
    both = (weights * positive * label).sum(-1)
    said, true, all_of = ((weights * x).sum(-1) for x in (positive, label, np.ones_like(positive)))
    of_positive = 2 * both / np.maximum(said + true, 1e-12)
    neither = all_of - said - true + both
    of_negative = 2 * neither / np.maximum(2 * all_of - said - true, 1e-12)
    return (of_positive + of_negative) / 2


def measured(outcome: Outcome) -> dict[str, tuple[float, float]]:
    """Return metric -> (mean over episodes, half-width of its 95% interval).

    The interval is over examples, drawn with all their episodes, and over episodes.
    """
    label, query = outcome.label, outcome.query
    asked = np.bincount(query.ravel(), minlength=len(label))
    some = asked > 0

    def over_episodes(values: np.ndarray) -> np.ndarray:
        total = np.bincount(query.ravel(), values.ravel().astype(float), len(label))
        return total[some] / asked[some]

    said = outcome.logits > 0
    right = said == label[query]
    positive, of_some = over_episodes(said), label[some]
    gains = np.zeros(right.shape)
    if outcome.before is not None:
        gains = right.astype(float) - ((outcome.before > 0) == label[query])
    correct, gain = over_episodes(right), over_episodes(gains)

    def statistic(weights: np.ndarray) -> np.ndarray:
        total = weights.sum(1)
        macro = f1(positive, of_some, weights)
        return np.stack([weights @ correct / total, macro, weights @ gain / total], 1)

    halves = bootstrap(statistic, np.arange(len(of_some)))
    of_episode = (right.mean(1), f1(said, label[query], np.ones(said.shape)), gains.mean(1))
    found = {}
    names = ("accuracy", "macro_f1", "gain")
    for name, values, half in zip(names, of_episode, halves, strict=True):
        if name != "gain" or outcome.before is not None:
            chance = mean_interval(values).half or 0.0
            found[name] = (float(values.mean()), float(np.hypot(half, chance)))
    return found


def rows_of(
    config: FrozenConfigDict, names: Sequence[str], outcomes: Outcomes
) -> tuple[list[Row], Scores]:
    """Return the rows of every category and of all, and the scores of reviews without shots.

    "gain" is the accuracy after adaptation minus the method's own before it, on the same reviews,
    "harm" the gain in the category where it is least, and "adapted" the share of the episodes in
    which the guard let it adapt. All are means over the seeds of the method's encoder.
    """
    rows: list[Row] = []
    scores: Scores = {}
    for (method, shots), of_categories in outcomes.items():
        (first, *more) = of_categories[0]
        row = partial(
            Row,
            table=config.table,
            method=method,
            task=TASK,
            shots=shots,
            episodes=len(first.query),
            seeds=1 + len(more) if more else None,
        )
        found = [[measured(outcome) for outcome in of_seeds] for of_seeds in of_categories]
        for metric in found[0][0]:
            both = np.array([[one[metric] for one in of_seeds] for of_seeds in found])
            # The seeds of a category are asked for the same reviews.
            values, halves = both[..., 0], both[..., 1].mean(1)
            of_all = _over_seeds(values.mean(0))
            rows.append(row(domain=ALL, metric=metric, ci95=half_of_mean(halves), **of_all))
            for name, of_seeds, own, half in zip(
                names, of_categories, values, halves.tolist(), strict=True
            ):
                rows.append(row(domain=name, metric=metric, ci95=half, **_over_seeds(own)))
                if metric == "accuracy" and not shots:
                    right = [(one.logits > 0) == one.label[one.query] for one in of_seeds]
                    ids = of_seeds[0].query.astype(np.int32)
                    score = np.stack(right).mean(0, dtype=np.float32)
                    scores[key(rows[-1])] = {"score": score, "id": ids, **ONCE}
            if metric == "gain":
                worst = values.mean(1).argmin()
                least, half = _over_seeds(values[worst]), float(halves[worst])
                rows.append(row(domain=ALL, metric="harm", ci95=half, **least))
                pays = np.array([[one.pays for one in of_seeds] for of_seeds in of_categories])
                shares = _over_seeds(pays.mean((0, 2)))
                rows.append(row(domain=ALL, metric="adapted", **shares))
    return with_baselines(rows, BASELINES), scores


def _over_seeds(values: Float[np.ndarray, " seeds"]) -> dict[str, Any]:
    """Return the fields of a row that has a value for each seed."""
    mean, half = mean_interval(values)
    return {"value": mean, "ci95_seeds": half}
