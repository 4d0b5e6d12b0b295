"""The confusions of a method: which classes it takes for which, counted and named."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from experiments.reports.layout import last_steps
from metaguide.evaluation.results import Results, key
from metaguide.tasks import TASKS


class Confusions(NamedTuple):
    """The predictions of one method on one domain, over all episodes and training seeds.

    Attributes:
        domain: the domain.
        shots: number of shots of the predictions.
        names: names of the classes that occur or are predicted.
        counts: int [classes, classes], true classes in rows, predicted classes in columns.
        nothing: int [classes], number of examples without a prediction, as scores were not finite.
    """

    domain: str | None
    shots: int | None
    names: tuple[str, ...]
    counts: np.ndarray
    nothing: np.ndarray

    @property
    def asked(self) -> np.ndarray:
        """Number of query examples of each class, int [classes]."""
        return self.counts.sum(axis=1) + self.nothing

    @property
    def right(self) -> int:
        """Number of correct predictions."""
        return int(np.trace(self.counts))

    def frequent(self, most: int) -> list[tuple[str, str, int, int]]:
        """Return the most frequent confusions: (true class, predicted class, count, out of).

        Diverged predictions are left out. Ties are ordered by class.
        """
        wrong = self.counts - np.diag(np.diag(self.counts))
        places = np.argsort(-wrong, axis=None, kind="stable")[:most]
        pairs = [divmod(int(place), len(self.names)) for place in places]
        return [
            (self.names[true], self.names[said], int(wrong[true, said]), int(self.asked[true]))
            for true, said in pairs
            if wrong[true, said]
        ]


def confusions(results: Results, task: str, method: str) -> list[Confusions]:
    """Count the confusions of a method on each domain, at its largest number of shots there.

    Args:
        results: results with the predictions behind macro-F1, and names of classes if any.
        task: a task that predicts classes; other tasks have no confusions.
        method: the method whose predictions are counted.

    Returns:
        An entry for each domain with stored predictions, in the order of the rows.
    """
    found: dict[str | None, Confusions] = {}
    rows = [
        row
        for row in last_steps(results.rows)
        if (row.task, row.method, row.metric) == (task, method, "macro_f1")
        and key(row) in results.scores
    ]
    fixed = TASKS[task].classes if task in TASKS else ()
    for row in sorted(rows, key=lambda row: row.shots or 0):
        scores = results.scores[key(row)]
        names = fixed or results.classes.get(row.domain or "", ())
        found[row.domain] = _count(row.domain, row.shots, scores, names)
    return [found[domain] for domain in dict.fromkeys(row.domain for row in rows)]


def _count(
    domain: str | None,
    shots: int | None,
    scores: Mapping[str, np.ndarray],
    names: Sequence[str],
) -> Confusions:
    counted = scores["id"] >= 0
    predicted = scores["predicted"][:, counted].astype(np.int64)
    target = np.broadcast_to(scores["target"][counted].astype(np.int64), predicted.shape)
    numbers = np.unique(np.concatenate([target.ravel(), predicted[predicted >= 0]]))
    true = np.searchsorted(numbers, target)
    counts = np.zeros((len(numbers), len(numbers)), np.int64)
    known = predicted >= 0
    np.add.at(counts, (true[known], np.searchsorted(numbers, predicted[known])), 1)
    nothing = np.bincount(true[~known], minlength=len(numbers))
    named = tuple(names[n] if n < len(names) else f"class {n}" for n in map(int, numbers))
    return Confusions(domain, shots, named, counts, nothing)
