"""The rows of all tables, and how the raw outcomes of an arm in a cell become rows."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

import numpy as np

from metaguide.evaluation import metrics
from metaguide.evaluation.metrics import Interval

TASKS = ("classification", "sentiment", "questions", "recommendation")
"""The guide's four tasks, by the names they have in every table."""

CUTS = (5, 10, 50)
"""k of HR@k and NDCG@k."""

Scores = dict[str, dict[str, np.ndarray]]
"""By the key of a row: `score` and `id` [episodes, queries], id -1 where nothing was scored; for
macro-F1, which no single example has, `predicted` [seeds, episodes, queries] and `target`."""


class ResultsError(ValueError):
    """A row or a file of results that does not keep to the format."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One number of one table.

    Attributes:
        table: name of the table.
        arm: the learner, or the floor.
        domain: what it was evaluated on; None where there is none.
        task: one of TASKS in the guide's tables.
        shots: examples in the support, per class where there are classes.
        steps: adaptation steps before the score.
        metric: name of the metric.
        value: its mean over seeds.
        ci95: half-width of the 95% interval over examples and episodes.
        ci95_seeds: half-width of the 95% t interval over training seeds.
        episodes: how many episodes were scored.
        seeds: how many training seeds.
        floor: best floor on the same examples.
        published: the value in print.
        diverged: of the episodes of all seeds, how many had a score that was not finite, or past
            what its table takes for that; None where that was not counted.
    """

    table: str
    arm: str
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
    floor: int | float | None = None
    published: int | float | None = None
    diverged: int | None = None

    def __post_init__(self) -> None:
        check(asdict(self))


FIELDS = tuple(field.name for field in fields(Row))


def check(row: Mapping[str, Any]) -> None:
    """Refuse fields that are no Row.

    Raises:
        ResultsError: a field is unknown, missing, or not of its kind; the message names it.
    """
    # Files written before it was counted have no `diverged`.
    odd = (set(row) ^ set(FIELDS)) - {"diverged"}
    if odd:
        raise ResultsError(f"unknown or missing: {', '.join(sorted(odd))}")
    for name in ("table", "arm", "task", "metric", "domain"):
        text = row[name]
        if text is None and name == "domain":
            continue
        if not isinstance(text, str) or not text or "/" in text:
            raise ResultsError(f"field {name!r}: {text!r} is not a name; give a text without '/'")
    for name in ("shots", "steps", "episodes", "seeds", "diverged"):
        count = row.get(name)
        if count is not None and (type(count) is not int or count < 0):
            raise ResultsError(f"field {name!r}: {count!r} is not a count; give an int >= 0")
    for name in ("value", "ci95", "ci95_seeds", "floor", "published"):
        number = row[name]
        if number is None and name != "value":
            continue
        if not isinstance(number, int | float) or not np.isfinite(number):
            raise ResultsError(
                f"{row['metric']} of {row['arm']!r} on {row['domain']!r}, field {name!r}: "
                f"{number!r} is not a finite number"
            )
        if name.startswith("ci95") and number < 0:
            raise ResultsError(f"field {name!r}: half-width {number} is negative")


def key(row: Row) -> str:
    """Where the scores behind a row are: "table/arm/domain/task/shots/steps/metric"."""
    parts = (row.table, row.arm, row.domain, row.task, row.shots, row.steps, row.metric)
    return "/".join("-" if part is None else str(part) for part in parts)


def cells_to_rows(
    raw: Mapping[str, np.ndarray],
    *,
    table: str,
    arm: str,
    domain: str,
    task: str,
    shots: int,
    steps: Sequence[int | None] | None = None,
    keep: Literal["last", "all"] = "last",
    floor: Mapping[str, int | float] | None = None,
    published: Mapping[str, int | float] | None = None,
    draws: int = 500,
    seed: int = 0,
) -> tuple[list[Row], Scores]:
    """Rows of one cell, a metric and a step each, out of the raw outcomes of one arm.

    Zero shots count every distinct id once, its first occurrence, in all tasks but
    classification, where an example meets other classes in each episode. A metric over nothing
    (answerable questions where there are none) has no row.

    Args:
        raw: arrays [seeds, steps + 1, episodes, queries]; `mask` (bool), `id` (int) and
            what belongs to the example (`target`, `answerable`) may lack the two leading axes.
            Classification and sentiment: `predicted`, `target`, ids of classes over all
            domains. Questions: `em`, `f1`, `answerable`. Recommendation: `rank` (1 = best).
            `finite` where known: whether the scores behind an outcome are finite; a rank of others
            is worth 0.
        table, arm, domain, task, shots: fields of the rows.
        steps: the number of adaptation steps at each place of the second axis; 0, 1, ... where
            it is not given.
        keep: whether the scores of the last step alone or of all steps are returned.
        floor, published: values by metric.
        draws, seed: of the bootstrap.

    Returns:
        The rows, and their scores by `key`.

    Raises:
        ResultsError: an array is missing or of the wrong shape, or the ids differ between seeds
            or steps.
    """
    if task not in TASKS:
        raise ResultsError(f"task {task!r} is none of {', '.join(TASKS)}")
    needed = _ARRAYS[task]
    missing = [name for name in (*needed, "mask", "id") if name not in raw]
    if missing:
        raise ResultsError(f"{task} of {arm!r} on {domain!r}: raw scores lack {', '.join(missing)}")
    shape = np.shape(raw[needed[0]])
    if len(shape) != 4:
        raise ResultsError(
            f"{task} of {arm!r} on {domain!r}: {needed[0]!r} has shape {shape}, "
            "not [seeds, steps + 1, episodes, queries]"
        )
    arrays = {}
    for name in (*needed, "mask", "id", *{"unseen", "finite"}.intersection(raw)):
        try:
            arrays[name] = np.broadcast_to(raw[name], shape)
        except ValueError:
            raise ResultsError(
                f"{task} of {arm!r} on {domain!r}: {name!r} has shape {np.shape(raw[name])}, "
                f"{needed[0]!r} has {shape}"
            ) from None
    for name in set(arrays) & {"mask", "id", "target", "answerable", "unseen"}:
        if not (arrays[name] == arrays[name][:1, :1]).all():
            raise ResultsError(
                f"{task} of {arm!r} on {domain!r}: {name!r} differs between seeds or steps; "
                "all must be scored on the same episodes"
            )
        arrays[name] = arrays[name][0, 0]

    seeds, places, episodes, _ = shape
    if steps is None:
        steps = range(places)
    if len(steps) != places:
        raise ResultsError(f"{len(steps)} steps are named, the scores have {places}")
    counted = arrays["mask"].astype(bool)
    example, episode = arrays["id"], np.broadcast_to(np.arange(episodes)[:, None], shape[2:])
    once = shots == 0 and task != "classification"
    if once:
        counted = counted & _first(example, counted, within_episode=task != "recommendation")
    if not counted.any():
        raise ResultsError(
            f"{task} of {arm!r} on {domain!r}, {shots} shots: all queries are masked"
        )
    flat = {name: array[..., counted] for name, array in arrays.items()}
    ids, of_episode = flat["id"].astype(np.int64), episode[counted]

    diverged = None
    if "finite" in arrays:
        lost = ~arrays["finite"].astype(bool) & counted
        diverged = lost.any(-1).sum((0, 2))  # by step

    def row(metric: str, place: int, by_seed: np.ndarray, half: float) -> Row:
        over_seeds = metrics.seed_interval(by_seed)
        return Row(
            table=table,
            arm=arm,
            domain=domain,
            task=task,
            shots=shots,
            steps=steps[place],
            metric=metric,
            value=over_seeds.value,
            ci95=metrics.defined(half),
            ci95_seeds=over_seeds.half,
            episodes=len(np.unique(of_episode)),
            seeds=seeds,
            floor=(floor or {}).get(metric),
            published=(published or {}).get(metric),
            diverged=None if diverged is None else int(diverged[place]),
        )

    def grid(values: np.ndarray, dtype: type, blank: int | float) -> np.ndarray:
        full = np.full((*values.shape[:-1], *shape[2:]), blank, dtype)
        full[..., counted] = values
        return full

    clusters = {"episodes": None if once else of_episode, "draws": draws, "seed": seed}
    rows: list[Row] = []
    scores: Scores = {}
    kept = range(places) if keep == "all" else (places - 1,)
    measures = {name: m for name, m in _MEASURES[task](flat).items() if m[1].any()}
    values = np.stack([np.mean(score, axis=0) for score, _ in measures.values()])
    among = np.stack([np.broadcast_to(a, values.shape[1:]) for _, a in measures.values()])
    counts = among.reshape(-1, len(ids))
    stacked = metrics.mean_statistic(values.reshape(-1, len(ids)), counts)
    halves = metrics.bootstrap(stacked, ids, counted=counts, **clusters)
    halves = halves.reshape(len(measures), places)
    for index, (metric, (score, which)) in enumerate(measures.items()):
        for place in range(places):
            by_seed = score[:, place, which].mean(axis=-1)
            rows.append(row(metric, place, by_seed, float(halves[index, place])))
            if place in kept:
                scores[key(rows[-1])] = {
                    "score": grid(
                        np.where(which, values[index, place], np.nan), np.float32, np.nan
                    ),
                    "id": grid(np.where(which, ids, -1), np.int64, -1),
                }
    if "predicted" in flat:
        predicted, target = flat["predicted"].astype(np.int64), flat["target"].astype(np.int64)
        statistic = metrics.macro_f1_statistic(predicted.reshape(-1, len(ids)), target)

        def mean_over_seeds(weights: np.ndarray) -> np.ndarray:
            return statistic(weights).reshape(len(weights), seeds, places).mean(axis=1)

        halves = metrics.bootstrap(mean_over_seeds, ids, **clusters)
        for place in range(places):
            each = np.array([metrics.macro_f1(p, target) for p in predicted[:, place]])
            rows.append(row("macro_f1", place, each, float(halves[place])))
            if place in kept:
                scores[key(rows[-1])] = {
                    "predicted": grid(predicted[:, place], np.int32, -1),
                    "target": grid(target, np.int32, -1),
                    "id": grid(ids, np.int64, -1),
                }
    return rows, scores


def with_floors(rows: Iterable[Row], floors: Collection[str]) -> list[Row]:
    """The rows with `floor` set to the best floor arm's value in the same cell.

    Args:
        rows: of arms and floors, in any order; the floors' own rows stay as they are.
        floors: names of the arms that are floors.
    """
    rows = list(rows)
    best: dict[tuple, float] = {}
    for row in rows:
        if row.arm in floors:
            cell = (row.table, row.domain, row.task, row.shots, row.metric)
            best[cell] = max(row.value, best.get(cell, -np.inf))
    return [
        row
        if row.arm in floors
        else replace(
            row, floor=best.get((row.table, row.domain, row.task, row.shots, row.metric), row.floor)
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
    """Paired bootstrap of the scores of two arms in one cell: the value of a - b, and its half.

    Args:
        a, b: two entries of `Scores` of the same metric.
        draws, seed: of the bootstrap.

    Raises:
        ResultsError: the two were not scored on the same examples.
    """
    if a["id"].shape != b["id"].shape or not np.array_equal(a["id"], b["id"]):
        raise ResultsError("two arms are compared that were not scored on the same examples")
    counted = a["id"] >= 0
    ids = a["id"][counted]
    episode = np.broadcast_to(np.arange(len(counted))[:, None], counted.shape)[counted]
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


def _first(example: np.ndarray, counted: np.ndarray, within_episode: bool) -> np.ndarray:
    """Entries of each id's first episode; of these the first entry alone where asked."""
    first = np.zeros_like(counted)
    where = np.argwhere(counted)
    _, at, inverse = np.unique(example[counted], return_index=True, return_inverse=True)
    if within_episode:
        first[tuple(where[at].T)] = True
    else:  # a user's queries share the id of the user
        first[counted] = where[:, 0] == where[at][inverse, 0]
    return first


_Measures = dict[str, tuple[np.ndarray, np.ndarray]]


def _agreement(flat: Mapping[str, np.ndarray]) -> _Measures:
    right = (flat["predicted"] == flat["target"]).astype(np.float64)
    unseen = flat["unseen"].astype(bool) if "unseen" in flat else np.zeros(right.shape[-1], bool)
    return {
        "accuracy": (right, np.ones(right.shape[-1], bool)),
        "accuracy_unseen": (right, unseen),
    }


def _answers(flat: Mapping[str, np.ndarray]) -> _Measures:
    answerable = flat["answerable"].astype(bool)
    everything = np.ones_like(answerable)
    return {
        "em": (flat["em"], everything),
        "f1": (flat["f1"], everything),
        "em_answerable": (flat["em"], answerable),
        "f1_answerable": (flat["f1"], answerable),
        "accuracy_unanswerable": (flat["em"], ~answerable),
    }


def _rankings(flat: Mapping[str, np.ndarray]) -> _Measures:
    ranks = flat["rank"].astype(np.int64)
    if ranks.min() < 1:
        raise ResultsError(f"rank {ranks.min()}: the best rank is 1")
    everything = np.ones(ranks.shape[-1], bool)
    # Where few compete, the last place would count as a hit of what ranked nothing.
    ranked = flat["finite"].astype(bool) if "finite" in flat else True
    hits = {f"hr@{k}": metrics.hit_rate(ranks, k) for k in CUTS}
    gains = {f"ndcg@{k}": metrics.ndcg(ranks, k) for k in CUTS}
    measures = hits | gains | {"mrr": metrics.reciprocal_rank(ranks)}
    return {name: (np.where(ranked, score, 0.0), everything) for name, score in measures.items()}


_ARRAYS: dict[str, tuple[str, ...]] = {
    "classification": ("predicted", "target"),
    "sentiment": ("predicted", "target"),
    "questions": ("em", "f1", "answerable"),
    "recommendation": ("rank",),
}

_MEASURES: dict[str, Callable[[Mapping[str, np.ndarray]], _Measures]] = {
    "classification": _agreement,
    "sentiment": _agreement,
    "questions": _answers,
    "recommendation": _rankings,
}
