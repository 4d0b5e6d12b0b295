"""The rows of all tables, and the conversion of a method's raw outcomes in a cell to rows."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np

from metaguide.evaluation import metrics
from metaguide.evaluation.metrics import Interval

Scores = dict[str, dict[str, np.ndarray]]
"""By the key of a row: `score` and `id` [episodes, queries], id -1 where nothing was scored; for
macro-F1, which no single example has, `predicted` [seeds, episodes, queries] and `target`. Of a row
of `cells_to_rows` also `by_seed` [seeds], the values whose mean the row has, and `once` where an
example is an entry once."""

ONCE: Mapping[str, np.ndarray] = {"once": np.ones((), np.int8)}
"""What the scores of a row have beside the others where an example is an entry once."""


Measures = dict[str, tuple[np.ndarray, np.ndarray]]
"""By metric, the scores [..., n] of n entries, and which of them count, bool [n]."""


LOWER_IS_BETTER = frozenset({"mse", "mse_median", "diverged", "loss", "log10_loss", "error"})
"""The metrics of which a smaller value is better."""


class ResultsError(ValueError):
    """A row or a file of results that violates the format."""


class Scoring(NamedTuple):
    """How one type of task is scored.

    Attributes:
        task: the task's name in tables.
        arrays: names of the required outcomes.
        measures: outcomes keyed by name, arrays [..., n] -> every metric of single entries.
        metrics: the reported metrics, the primary one first; rates are chosen by it.
        once: the unit that counts once if nothing adapts and episodes differ in nothing else: an
            "example", all queries of a "user", or None if episodes differ.
    """

    task: str
    arrays: tuple[str, ...]
    measures: Callable[[Mapping[str, np.ndarray]], Measures]
    metrics: tuple[str, ...]
    once: Literal["example", "user"] | None

    def foremost(self, raw: Mapping[str, np.ndarray]) -> float:
        """Return the mean of the primary metric after the last step.

        Args:
            raw: outcomes of one seed, arrays [steps + 1, episodes, queries], from `Problem.score`.
        """
        counted = raw["mask"][-1]
        last = {name: leaf[-1][counted] for name, leaf in raw.items() if name != "mask"}
        score, which = self.measures(last)[self.metrics[0]]
        return float(score[..., which].mean())


@dataclass(frozen=True, kw_only=True)
class Row:
    """One number of one table.

    Attributes:
        table: name of the table.
        method: the learner, or the baseline.
        domain: domain of the evaluation; None if there is none.
        task: name of the task.
        shots: number of examples in the support, per class if there are classes.
        steps: number of adaptation steps before the score.
        metric: name of the metric.
        value: its mean over seeds.
        ci95: half-width of the 95% interval over examples and episodes.
        ci95_seeds: half-width of the 95% t interval over training seeds.
        episodes: number of scored episodes.
        seeds: number of training seeds.
        baseline: value of the best baseline on the same examples.
        published: the published value.
        diverged: number of episodes, over all seeds, with a score that is not finite or beyond the
            table's limit; None if not counted.
    """

    table: str
    method: str
    domain: str | None = None
    task: str
    shots: int | None = None
    steps: int | None = None
    metric: str
    value: int | float
    ci95: int | float | None = None
    ci95_seeds: int | float | None = None
    episodes: int | None = None
    seeds: int | None = None
    baseline: int | float | None = None
    published: int | float | None = None
    diverged: int | None = None

    def __post_init__(self) -> None:
        check(asdict(self))


FIELDS = tuple(field.name for field in fields(Row))


def check(row: Mapping[str, Any]) -> None:
    """Check that fields are those of a Row.

    Raises:
        ResultsError: a field is unknown, missing, or of the wrong type; the message names it.
    """
    # Files written before it was counted have no `diverged`.
    odd = (set(row) ^ set(FIELDS)) - {"diverged"}
    if odd:
        raise ResultsError(f"unknown or missing: {', '.join(sorted(odd))}")
    for name in ("table", "method", "task", "metric", "domain"):
        text = row[name]
        if text is None and name == "domain":
            continue
        if not isinstance(text, str) or not text or "/" in text:
            raise ResultsError(f"field {name!r}: {text!r} is not a name; give a text without '/'")
    for name in ("shots", "steps", "episodes", "seeds", "diverged"):
        count = row.get(name)
        if count is not None and (type(count) is not int or count < 0):
            raise ResultsError(f"field {name!r}: {count!r} is not a count; give an int >= 0")
    for name in ("value", "ci95", "ci95_seeds", "baseline", "published"):
        number = row[name]
        if number is None and name != "value":
            continue
        if not isinstance(number, int | float) or not np.isfinite(number):
            raise ResultsError(
                f"{row['metric']} of {row['method']!r} on {row['domain']!r}, field {name!r}: "
                f"{number!r} is not a finite number"
            )
        if name.startswith("ci95") and number < 0:
            raise ResultsError(f"field {name!r}: half-width {number} is negative")


def key(row: Row) -> str:
    """Return the key of a row's scores: "table/method/domain/task/shots/steps/metric"."""
    parts = (row.table, row.method, row.domain, row.task, row.shots, row.steps, row.metric)
    return "/".join("-" if part is None else str(part) for part in parts)


def cells_to_rows(
    raw: Mapping[str, np.ndarray],
    *,
    scoring: Scoring,
    table: str,
    method: str,
    domain: str,
    shots: int,
    steps: Sequence[int | None] | None = None,
    keep: Literal["last", "all"] = "last",
    baseline: Mapping[str, int | float] | None = None,
    published: Mapping[str, int | float] | None = None,
    draws: int = 500,
    seed: int = 0,
) -> tuple[list[Row], Scores]:
    """Return the rows of one cell, one per metric and step, from a method's raw outcomes.

    With zero shots, units that recur over episodes count once, as `scoring.once` says. A metric
    over nothing (answerable questions if there are none) has no row.

    Args:
        raw: arrays [seeds, steps + 1, episodes, queries]; `mask` (bool), `id` (int) and
            what belongs to the example (`target`, `answerable`) may lack the two leading axes.
            Beside `scoring.arrays`, `finite` where known: whether the scores behind an outcome
            are finite.
        scoring: of the task.
        table, method, domain, shots: fields of the rows.
        steps: the number of adaptation steps at each place of the second axis; 0, 1, ... where
            it is not given.
        keep: whether the scores of the last step alone or of all steps are returned.
        baseline, published: values by metric.
        draws, seed: of the bootstrap.

    Returns:
        The rows, and their scores by `key`.

    Raises:
        ResultsError: an array is missing or of the wrong shape, or the ids differ between seeds
            or steps.
    """
    outcomes = _validated(raw, scoring, shots, f"{scoring.task} of {method!r} on {domain!r}")
    seeds, places = outcomes.shape[:2]
    once = ONCE if outcomes.once else {}
    steps = range(places) if steps is None else steps
    if len(steps) != places:
        raise ResultsError(f"{len(steps)} steps are named, the scores have {places}")
    rows: list[Row] = []
    scores: Scores = {}
    for one in _measured(outcomes, scoring, draws, seed):
        for place in range(places):
            over_seeds = metrics.mean_interval(one.by_seed[:, place])
            row = Row(
                table=table,
                method=method,
                domain=domain,
                task=scoring.task,
                shots=shots,
                steps=steps[place],
                metric=one.metric,
                value=over_seeds.value,
                ci95=metrics.defined(one.halves[place]),
                ci95_seeds=over_seeds.half,
                episodes=len(np.unique(outcomes.episodes)),
                seeds=seeds,
                baseline=(baseline or {}).get(one.metric),
                published=(published or {}).get(one.metric),
                diverged=None if outcomes.diverged is None else int(outcomes.diverged[place]),
            )
            rows.append(row)
            if keep == "all" or place == places - 1:
                scores[key(row)] = {**one.scores(place), "by_seed": one.by_seed[:, place], **once}
    return rows, scores


class _Outcomes(NamedTuple):
    """The outcomes of a cell that count.

    Attributes:
        flat: by name, arrays [seeds, steps + 1, n] or, of what belongs to the example, [n].
        ids, episodes: of the n entries.
        counted: bool [episodes, queries], where the entries stand.
        shape: [seeds, steps + 1, episodes, queries].
        once: whether an example is an entry once.
        diverged: by step, episodes of all seeds with a score that is not finite; None: not known.
    """

    flat: dict[str, np.ndarray]
    ids: np.ndarray
    episodes: np.ndarray
    counted: np.ndarray
    shape: tuple[int, ...]
    once: bool
    diverged: np.ndarray | None

    def laid_out(self, values: np.ndarray, dtype: type, blank: int | float) -> np.ndarray:
        """Put entries back where they stand, [..., episodes, queries]."""
        full = np.full((*values.shape[:-1], *self.shape[2:]), blank, dtype)
        full[..., self.counted] = values
        return full


class _Measured(NamedTuple):
    """One metric of a cell: [seeds, steps + 1] values, half-widths, and the scores of a step."""

    metric: str
    by_seed: np.ndarray
    halves: np.ndarray
    scores: Callable[[int], dict[str, np.ndarray]]


def _validated(
    raw: Mapping[str, np.ndarray], scoring: Scoring, shots: int, where: str
) -> _Outcomes:
    needed = scoring.arrays
    missing = [name for name in (*needed, "mask", "id") if name not in raw]
    if missing:
        raise ResultsError(f"{where}: raw scores lack {', '.join(missing)}")
    shape = np.shape(raw[needed[0]])
    if len(shape) != 4:
        raise ResultsError(
            f"{where}: {needed[0]!r} has shape {shape}, not [seeds, steps + 1, episodes, queries]"
        )
    arrays = {}
    for name in (*needed, "mask", "id", *{"unseen", "finite"}.intersection(raw)):
        try:
            arrays[name] = np.broadcast_to(raw[name], shape)
        except ValueError:
            raise ResultsError(
                f"{where}: {name!r} has shape {np.shape(raw[name])}, {needed[0]!r} has {shape}"
            ) from None
    for name in set(arrays) & {"mask", "id", "target", "answerable", "unseen"}:
        if not (arrays[name] == arrays[name][:1, :1]).all():
            raise ResultsError(
                f"{where}: {name!r} differs between seeds or steps; all must be scored on the same "
                "episodes"
            )
        arrays[name] = arrays[name][0, 0]
    counted = arrays["mask"].astype(bool)
    once = shots == 0 and scoring.once is not None
    if once:
        counted = counted & _first(arrays["id"], counted, scoring.once == "example")
    if not counted.any():
        raise ResultsError(f"{where}, {shots} shots: all queries are masked")
    diverged = None
    if "finite" in arrays:
        lost = ~arrays["finite"].astype(bool) & counted
        diverged = lost.any(-1).sum((0, 2))
    flat = {name: array[..., counted] for name, array in arrays.items()}
    episodes = np.broadcast_to(np.arange(shape[2])[:, None], shape[2:])[counted]
    return _Outcomes(flat, flat["id"].astype(np.int64), episodes, counted, shape, once, diverged)


def _measured(outcomes: _Outcomes, scoring: Scoring, draws: int, seed: int) -> Iterator[_Measured]:
    """Yield every metric of a cell, macro-F1 last, which no single example has a score of."""
    flat, ids, (seeds, places) = outcomes.flat, outcomes.ids, outcomes.shape[:2]
    episodes = None if outcomes.once else outcomes.episodes
    bootstrap = partial(metrics.bootstrap, ids=ids, episodes=episodes, draws=draws, seed=seed)

    measures = {name: m for name, m in scoring.measures(flat).items() if m[1].any()}
    values = np.stack([np.mean(score, axis=0) for score, _ in measures.values()])
    among = np.stack([np.broadcast_to(a, values.shape[1:]) for _, a in measures.values()])
    counts = among.reshape(-1, len(ids))
    statistic = metrics.mean_statistic(values.reshape(-1, len(ids)), counts)
    halves = bootstrap(statistic, counted=counts).reshape(len(measures), places)
    for index, (metric, (score, which)) in enumerate(measures.items()):

        def scores(
            place: int, index: int = index, which: np.ndarray = which
        ) -> dict[str, np.ndarray]:
            kept = np.where(which, values[index, place], np.nan)
            return {
                "score": outcomes.laid_out(kept, np.float32, np.nan),
                "id": outcomes.laid_out(np.where(which, ids, -1), np.int64, -1),
            }

        by_seed = np.stack([score[:, place, which].mean(axis=-1) for place in range(places)], 1)
        yield _Measured(metric, by_seed, halves[index], scores)

    if "predicted" not in flat:
        return
    predicted, target = flat["predicted"].astype(np.int64), flat["target"].astype(np.int64)
    macro_f1 = metrics.macro_f1_statistic(predicted.reshape(-1, len(ids)), target)

    def mean_over_seeds(weights: np.ndarray) -> np.ndarray:
        return macro_f1(weights).reshape(len(weights), seeds, places).mean(axis=1)

    def predictions(place: int) -> dict[str, np.ndarray]:
        return {
            "predicted": outcomes.laid_out(predicted[:, place], np.int32, -1),
            "target": outcomes.laid_out(target, np.int32, -1),
            "id": outcomes.laid_out(ids, np.int64, -1),
        }

    by_seed = np.array([[metrics.macro_f1(step, target) for step in one] for one in predicted])
    yield _Measured("macro_f1", by_seed, bootstrap(mean_over_seeds), predictions)


def decimal(value: float) -> str:
    """Return a score to three places without its leading zero, as is usual in papers."""
    text = f"{value:.3f}" if abs(value) < 1000 else f"{value:.1e}"
    return text.replace("0.", ".", 1) if abs(value) < 1 else text


def with_baselines(rows: Iterable[Row], baselines: Collection[str]) -> list[Row]:
    """Return the rows with `baseline` set to the best baseline's value in the same cell.

    Args:
        rows: rows of methods and baselines, in any order; the baselines' own rows are unchanged.
        baselines: names of the methods that are baselines.
    """
    rows = list(rows)
    best: dict[tuple, float] = {}
    for row in rows:
        if row.method in baselines:
            cell = (row.table, row.domain, row.task, row.shots, row.metric)
            better = min if row.metric in LOWER_IS_BETTER else max
            best[cell] = better(row.value, best.get(cell, row.value))
    return [
        row
        if row.method in baselines
        else replace(
            row,
            baseline=best.get(
                (row.table, row.domain, row.task, row.shots, row.metric), row.baseline
            ),
        )
        for row in rows
    ]


def difference(
    a: Mapping[str, np.ndarray],
    b: Mapping[str, np.ndarray],
    *,
    draws: int = 500,
    seed: int = 0,
) -> Interval:
    """Return a - b for two methods in one cell, and its half-width by a paired bootstrap.

    The interval is over examples and episodes, and over examples alone where either counts an
    example once, as its row does.

    Args:
        a, b: two entries of `Scores` of the same metric.
        draws, seed: of the bootstrap.

    Raises:
        ResultsError: the two were not scored on the same examples.
    """
    if a["id"].shape != b["id"].shape or not np.array_equal(a["id"], b["id"]):
        raise ResultsError("two methods are compared that were not scored on the same examples")
    counted = a["id"] >= 0
    ids = a["id"][counted]
    episode = np.broadcast_to(np.arange(len(counted))[:, None], counted.shape)[counted]
    if "once" in a or "once" in b:
        episode = None
    if "score" in a:
        one, other = (s["score"][counted].astype(np.float64) for s in (a, b))
        return metrics.paired_bootstrap(one, other, ids, episode, draws=draws, seed=seed)
    target = a["target"][counted].astype(np.int64)
    one, other = (
        metrics.macro_f1_statistic(s["predicted"][:, counted].astype(np.int64), target)
        for s in (a, b)
    )

    def statistic(weights: np.ndarray) -> np.ndarray:
        return (one(weights).mean(axis=1) - other(weights).mean(axis=1))[:, None]

    half = metrics.bootstrap(statistic, ids, episode, draws=draws, seed=seed)
    return Interval(float(statistic(np.ones((1, len(ids))))[0, 0]), metrics.defined(half[0]))


def difference_over_seeds(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> Interval:
    """Return a - b for two methods in one cell, and its half-width by a paired t interval.

    Args:
        a, b: two entries of `Scores` of the same metric, with `by_seed`; seeds are paired in their
            order, and a single one is paired with all.

    Raises:
        ResultsError: they have different numbers of seeds.
    """
    try:
        return metrics.mean_interval(a["by_seed"] - b["by_seed"])
    except ValueError as error:
        counts = " and ".join(str(len(one["by_seed"])) for one in (a, b))
        raise ResultsError(f"two methods are compared that have {counts} seeds") from error


def _first(example: np.ndarray, counted: np.ndarray, within_episode: bool) -> np.ndarray:
    """Return entries of each id's first episode; only the first of these if asked."""
    first = np.zeros_like(counted)
    where = np.argwhere(counted)
    _, at, inverse = np.unique(example[counted], return_index=True, return_inverse=True)
    if within_episode:
        first[tuple(where[at].T)] = True
    else:  # a user's queries share the id of the user
        first[counted] = where[:, 0] == where[at][inverse, 0]
    return first


def agreement(flat: Mapping[str, np.ndarray]) -> Measures:
    """Measure how often what is predicted is the target, and how often among unseen classes."""
    right = (flat["predicted"] == flat["target"]).astype(np.float64)
    unseen = flat["unseen"].astype(bool) if "unseen" in flat else np.zeros(right.shape[-1], bool)
    return {
        "accuracy": (right, np.ones(right.shape[-1], bool)),
        "accuracy_unseen": (right, unseen),
    }
