"""Choosing the method that serves a task, from the labels of the shop that it is to serve."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from scipy import special

from metaguide.evaluation.metrics import ndcg, ranks_of
from metaguide.guide import AdaptedGuide
from metaguide.learners.calibration import LEAST, log_probabilities
from metaguide.methods import adaptation_of
from metaguide.tasks import TASKS, HeldBack, Serving
from metaguide.tasks.recommendation import with_popularity
from metaguide.types import OUT

CANDIDATES = ("soft-k-means", "named-ridge", "logistic", "vectors+words", "tf-idf")
"""The methods that may take the place of a guide's own; each needs no training of its own."""

POPULARITIES = (0.1, 0.3, 1.0, 3.0, 10.0)
"""Weights of popularity that may take the place of a guide's own."""

PENALTY, PENALTIES = 5.0, {"ridge": 30.0, "named-ridge": 30.0}
"""λ of candidates that take one, for features of unit mean square: of all, and of some by name."""


class Choice(NamedTuple):
    """Which method serves a task, and why.

    Attributes:
        method: the method that serves.
        own: the guide's own method for the task.
        accuracy: keyed by method, the share of the examples that it predicts when they are held
            back, or NDCG@10 of rankings; empty if there are not two of them, each with another
            example of its class.
        gain: keyed by the other methods, the mean gain over the guide's own: in log-probability, or
            in NDCG@10 of rankings.
        margin: keyed likewise, half of the 95% interval of that gain.
        measure: what `accuracy` is, "accuracy" or "NDCG@10".
    """

    method: str
    own: str
    accuracy: Mapping[str, float]
    gain: Mapping[str, float]
    margin: Mapping[str, float]
    measure: str = "accuracy"


def best(
    adapted: AdaptedGuide, candidates: Sequence[str] = CANDIDATES
) -> tuple[AdaptedGuide, dict[str, Choice]]:
    """Serve each task by the method that predicts its examples best when they are held back.

    Each method adapts to four fifths of the examples of a task and predicts the rest, in turn. The
    guide's own method stays unless the 95% interval of another's gain in log-probability, paired by
    example, is above 0: from ten examples a choice by the mean alone does harm.

    Of recommendation, how much the popularity of a product counts beside what the user took is
    chosen likewise, by NDCG@10: each user's last product is held back.

    Args:
        adapted: a guide that is adapted by its own methods.
        candidates: names of methods in `metaguide.methods.IN_GUIDE` that are not trained on their
            own.

    Returns:
        The guide, adapted to the same examples by the chosen methods, and the choice for each task
        that has labels or rankings.
    """
    guide, choices = adapted.guide, {}
    for name, one in adapted.adapted.items():
        validate, ranks = TASKS[name].validate, TASKS[name].is_ranking
        if validate is None or not (one.support or ranks):
            continue
        own = guide.serving[name]
        if ranks:
            others = {f"popularity x {w:g}": with_popularity(own, w) for w in POPULARITIES}
        else:
            others = {method: _serving_by(method, own) for method in candidates}
        servings = {**others, own.method: own}
        held_back = {
            method: validate(guide.served_by(name, serving).server(name), adapted.domain, one)
            for method, serving in servings.items()
        }
        choices[name] = (_choice_of_rankings if ranks else _choice)(own.method, held_back)
        if choices[name].method != own.method:
            adapted = adapted.served_by(name, servings[choices[name].method])
    return adapted, choices


def _choice(own: str, held_back: Mapping[str, HeldBack]) -> Choice:
    """Return the choice, given how each method predicts the examples."""
    counts, labels = held_back[own].counts, held_back[own].labels
    if counts.sum() < 2:
        return Choice(own, own, {}, {}, {})
    logits = {method: one.logits[counts] for method, one in held_back.items()}
    score = {method: log_probability(rows, labels[counts]) for method, rows in logits.items()}
    accuracy = {}
    for method, rows in logits.items():
        finite = np.isfinite(rows).all(1)
        accuracy[method] = float((finite & (rows.argmax(1) == labels[counts])).mean())
    return _chosen(own, accuracy, score, "accuracy")


def _choice_of_rankings(own: str, held_back: Mapping[str, HeldBack]) -> Choice:
    """Return the choice, given the scores of all products by which each user's last is ranked."""
    score = {}
    for method, (scores, last, _) in held_back.items():
        if len(last) < 2:
            return Choice(own, own, {}, {}, {}, "NDCG@10")
        score[method] = ndcg(ranks_of(scores, last, scores > OUT, np.random.default_rng(0)), 10)
    means = {method: float(values.mean()) for method, values in score.items()}
    return _chosen(own, means, score, "NDCG@10")


def _chosen(
    own: str,
    accuracy: Mapping[str, float],
    score: Mapping[str, Float[np.ndarray, " examples"]],
    measure: str,
) -> Choice:
    """Return the choice by the scores of single examples."""
    gain, margin = {}, {}
    for method in score.keys() - {own}:
        difference = score[method] - score[own]
        gain[method] = float(difference.mean())
        error = difference.std(ddof=1) / len(difference) ** 0.5
        margin[method] = float(error * special.stdtrit(len(difference) - 1, 0.975))
    better = [method for method in gain if gain[method] > margin[method]]
    best = max(better, key=gain.__getitem__, default=own)
    return Choice(best, own, accuracy, gain, margin, measure)


def log_probability(
    logits: Float[np.ndarray, "examples classes"], labels: Int[np.ndarray, " examples"]
) -> Float[np.ndarray, " examples"]:
    """Return log softmax(s z_i)_{y_i}, at least `LEAST`, with the s that gives the largest mean.

    Methods differ in how sure they are: one that is right as often, and too sure or not sure
    enough, is no worse.

    Args:
        logits: z; those of an example that are not finite count as `LEAST`.
        labels: y.
    """
    finite = np.asarray(np.isfinite(logits).all(axis=1))
    rows = np.where(finite[:, None], logits, 0)
    found = np.where(finite, log_probabilities(jnp.asarray(rows), jnp.asarray(labels)), LEAST)
    return found[found.mean(1).argmax()]


def _serving_by(method: str, own: Serving) -> Serving:
    """Return a serving by another method, of the same parameters."""
    takes_penalty = adaptation_of(method).tuned == "penalty"
    rate = PENALTIES.get(method, PENALTY) if takes_penalty else 0.0
    params = {"params": own.meta["params"]}
    return Serving(params, method, rate, 0, is_trained=own.is_trained)
