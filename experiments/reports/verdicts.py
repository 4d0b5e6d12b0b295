"""Conclusions of a run in words: which method to use on a task, what it beats, what it costs.

All sentences are plain text; code that displays them must escape them.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from experiments.reports.layout import (
    diverged_name,
    interval_name,
    last_steps,
    metrics_of,
    shots_name,
)
from metaguide.evaluation.baselines import BASELINES
from metaguide.evaluation.metrics import Interval
from metaguide.evaluation.results import LOWER_IS_BETTER, Results, Row, Tuning, difference, key
from metaguide.evaluation.rows import decimal

HEADLINE = 5
"""Number of shots that the verdict is about, if there are such rows."""

ZERO_SHOT = "zero-shot"
"""The method that others are compared with although it may have rows only without shots."""


class Verdict(NamedTuple):
    """What to do about one task.

    Attributes:
        task: the task.
        method: the chosen method; None if only baselines were scored.
        warning: warning to show first, that the method is below the best baseline; "" if it is not.
        use: the sentence that says what to use.
        more: sentences about its scores, what it beats and does not beat, and what it costs.
    """

    task: str
    method: str | None
    warning: str
    use: str
    more: tuple[str, ...]


class Rival(NamedTuple):
    """A baseline or other method on one domain, and the chosen method's lead over it.

    Attributes:
        row: the rival's row.
        lead: how much better the chosen method is, positive for any metric, with the half-width of
            the paired 95% interval. The half-width is None if no scores of single examples are
            stored, or too few.
    """

    row: Row
    lead: Interval

    @property
    def beaten(self) -> bool:
        """Whether the method is better by more than the interval, or at all if there is none."""
        return self.lead.value > (self.lead.half or 0)


def verdict(
    results: Results,
    task: str,
    *,
    scratch: str | None = "scratch",
    baselines: Collection[str] = BASELINES,
) -> Verdict:
    """Return the conclusion for one task.

    Args:
        results: rows of one table, with the scores of their examples and what validation chose.
        task: a task that has rows.
        scratch: the method from scratch, which others are compared with and which cannot serve.
        baselines: names of the methods that are baselines.

    Returns:
        The verdict.

    Raises:
        ResultsError: two methods were scored on different examples at the same shots.
    """
    metric = metrics_of(results.rows, task)[0]
    rows = [r for r in last_steps(results.rows) if (r.task, r.metric) == (task, metric)]
    domains = list(dict.fromkeys(row.domain for row in rows))
    if all(row.method in baselines for row in rows):
        return _of_baselines(rows, domains)
    method, by_validation = choose(results.tunings, rows, scratch, baselines)
    by_domain, rivals = _held_against(results, rows, method, scratch, baselines)
    best = {domain: _best_baseline(found, baselines) for domain, found in rivals.items()}
    best = {domain: rival for domain, rival in best.items() if rival is not None}
    others = [one for one in dict.fromkeys(row.method for row in rows) if one not in baselines]
    above, any_above = [], False
    for other in others if best and not any(one.beaten for one in best.values()) else ():
        for domain, against in _held_against(results, rows, other, scratch, baselines)[1].items():
            rival = _best_baseline(against, baselines)
            any_above |= rival is not None and rival.lead.value > 0
            above += [(domain, other)] if rival and rival.beaten else []
    use = _use(method, by_domain, best, any_above, bool(above))
    tunings = {one["method"]: one for one in results.tunings if one["task"] == task}
    tuning = tunings.get(method)
    more = [
        _above(above),
        _why(method, list(tunings.values()) if by_validation else []),
        _scored(method, by_domain),
        _missing(domains, by_domain),
        *_comparisons(rivals),
        "" if best else "There is no baseline to hold it against.",
        *_diverged(by_domain, tuning),
        _cost(tuning, list(tunings.values())),
    ]
    warning = _warning(method, by_domain, best, by_validation)
    return Verdict(task, method, warning, use, tuple(filter(None, more)))


def choose(
    tunings: Sequence[Tuning],
    rows: Sequence[Row],
    scratch: str | None,
    baselines: Collection[str],
) -> tuple[str, bool]:
    """Return the method to use, and whether validation chose it.

    Without a record of validation it is the best one on the held-out domains, at the most shots.
    The method from scratch is chosen only if there is no other.

    Args:
        tunings: tunings of all tasks, as in a results file.
        rows: rows of one task and metric, each after its last step.
        scratch: the method from scratch.
        baselines: names of the methods that are baselines.
    """
    methods = list(dict.fromkeys(row.method for row in rows if row.method not in baselines))
    serving = [method for method in methods if method != scratch] or methods
    recorded = [m for m in tunings if m["task"] == rows[0].task and m["method"] in serving]
    if recorded:
        return min(recorded, key=_by_score)["method"], True
    sign = 1 if rows[0].metric in LOWER_IS_BETTER else -1
    domains = list(dict.fromkeys(row.domain for row in rows))

    def rank(method: str) -> tuple[int, bool, float]:
        found = [row for d in domains if (row := _most_shots(rows, method, d)) is not None]
        lost = any(row.diverged for row in found)
        return -len(found), lost, sign * float(np.mean([row.value for row in found]))

    return min(serving, key=rank), False


def _by_score(tuning: Tuning) -> tuple[float, float]:
    """Return a sort key for the preference of validation: least divergence, then best score."""
    metric, score = tuning["tuned_by"]["metric"], tuning["tuned_by"]["score"]
    return tuning["diverged"], score if metric in LOWER_IS_BETTER else -score


# ------------------------------------------------------------------------------ rows


def _most_shots(rows: Sequence[Row], method: str, domain: str | None) -> Row | None:
    mine = [row for row in rows if (row.method, row.domain) == (method, domain)]
    return max(mine, key=lambda row: row.shots or 0, default=None)


def _headline(rows: Sequence[Row], method: str, domain: str | None) -> Row | None:
    """Return the row at HEADLINE shots, or at the largest number available."""
    mine = [row for row in rows if (row.method, row.domain) == (method, domain)]
    at = next((row for row in mine if row.shots == HEADLINE), None)
    return at or _most_shots(rows, method, domain)


def _held_against(
    results: Results,
    rows: Sequence[Row],
    method: str,
    scratch: str | None,
    baselines: Collection[str],
) -> tuple[dict[str | None, Row], dict[str | None, list[Rival]]]:
    """Return, for each domain, the row that the verdict is about, and its rivals."""
    domains = dict.fromkeys(row.domain for row in rows if row.method == method)
    by_domain = {domain: _headline(rows, method, domain) for domain in domains}
    by_domain = {domain: row for domain, row in by_domain.items() if row is not None}
    rivals = {
        domain: [
            Rival(other, _lead(results, row, other))
            for other in _rivals(rows, row, scratch, baselines)
        ]
        for domain, row in by_domain.items()
    }
    return by_domain, rivals


def _best_baseline(rivals: Sequence[Rival], baselines: Collection[str]) -> Rival | None:
    known = [rival for rival in rivals if rival.row.method in baselines]
    return min(known, key=lambda rival: rival.lead.value, default=None)


def _rivals(
    rows: Sequence[Row], row: Row, scratch: str | None, baselines: Collection[str]
) -> list[Row]:
    """Return what a row is compared with: baselines, scratch and, at 0 shots, zero-shot."""
    others = [one for one in rows if one.domain == row.domain and one.method != row.method]
    same = [one for one in others if one.shots == row.shots]
    found = [one for one in same if one.method in baselines]
    found += [one for one in same if one.method == scratch]
    zero = [one for one in others if one.method == ZERO_SHOT]
    here = [one for one in zero if one.shots == row.shots]
    return found + (here or [one for one in zero if one.shots == 0])


def _lead(results: Results, row: Row, other: Row) -> Interval:
    """Return how much better a row is than another, paired if their scores are stored."""
    sign = -1.0 if row.metric in LOWER_IS_BETTER else 1.0
    plain = Interval(sign * (row.value - other.value), None)
    ours, theirs = (results.scores.get(key(one)) for one in (row, other))
    if ours is None or theirs is None:
        return plain
    if row.shots != other.shots:
        # Without shots an example counts once, so both rows share the examples of its first
        # episode.
        common = ours["id"].shape == theirs["id"].shape
        common = common and (ours["id"] == theirs["id"]) & (ours["id"] >= 0)
        if not np.any(common):
            return plain
        ids = np.where(common, ours["id"], -1)
        ours, theirs = ({**one, "id": ids} for one in (ours, theirs))
    found = difference(ours, theirs)
    return Interval(sign * found.value, found.half)


# ------------------------------------------------------------------------------ sentences


def _of_baselines(rows: Sequence[Row], domains: Sequence[str | None]) -> Verdict:
    sign = -1 if rows[0].metric in LOWER_IS_BETTER else 1
    best = {}
    for domain in domains:
        names = dict.fromkeys(row.method for row in rows if row.domain == domain)
        there = [row for name in names if (row := _headline(rows, name, domain)) is not None]
        best[domain] = max(there, key=lambda row: sign * row.value)
    said = _by_domain({domain: row.method for domain, row in best.items()})
    use = f"Baselines alone were scored here; the best is {said}."
    return Verdict(rows[0].task, None, "", use, (_scored("the best", best),))


def _warning(
    method: str,
    by_domain: Mapping[str | None, Row],
    best: Mapping[str | None, Rival],
    by_validation: bool,
) -> str:
    parts = [
        f"{decimal(by_domain[domain].value)} against {decimal(rival.row.value)} of "
        f"{rival.row.method}{_on([domain])}"
        for domain, rival in best.items()
        if rival.lead.value < 0
    ]
    who = f"Validation chose {method}, but it" if by_validation else method
    return f"{who} is below the best baseline: {_and(parts)}." if parts else ""


def _use(
    method: str,
    by_domain: Mapping[str | None, Row],
    best: Mapping[str | None, Rival],
    any_above: bool,
    others_above: bool,
) -> str:
    """Say what to use: the chosen method if it is above the best baseline, else the baseline."""
    baselines = {domain: rival.row.method for domain, rival in best.items() if not rival.beaten}
    if not baselines:
        return f"Use {method}."
    if len(baselines) < len(by_domain):
        rest = [domain for domain in by_domain if domain not in baselines]
        return f"Use {method}{_on(rest)}, and {_by_domain(baselines, every=False)}."
    named = _by_domain(baselines)
    if others_above:
        return f"Use {named}: {method} is not above it."
    shown = "is shown to be above" if any_above else "is above"
    if len(set(baselines.values())) == 1:
        return f"No method {shown} {named}; use that."
    return f"No method {shown} the best baseline; use {named}."


def _above(others: Sequence[tuple[str | None, str]]) -> str:
    if not others:
        return ""
    said = _and([f"{method}{_on([domain])}" for domain, method in others])
    return f"Above the best baseline: {said}. Only the held-out domains show this."


def _why(method: str, tunings: Sequence[Tuning]) -> str:
    mine = next((one for one in tunings if one["method"] == method), None)
    if mine is None:
        return (
            f"What validation chose is not recorded here: {method} did best on the held-out "
            "domains themselves, which flatters it."
        )
    metric, score = mine["tuned_by"]["metric"], mine["tuned_by"]["score"]
    rate = "" if mine["learning_rate"] is None else f", tuned to {mine['learning_rate']:g},"
    said = f"Validation chose {method}{rate} with {metric} {decimal(score)} on its domains"
    # A method from scratch has no checkpoint to serve, however well it does.
    ahead = [one["method"] for one in tunings if _by_score(one) < _by_score(mine)]
    return f"{said}, behind {_and(ahead)}, which does not serve." if ahead else f"{said}."


def _scored(method: str, by_domain: Mapping[str | None, Row]) -> str:
    parts: dict[int | None, list[str]] = {}
    for domain, row in by_domain.items():
        half = interval_name(row)
        said = f"{decimal(row.value)}{' ' if half else ''}{half}{_on([domain])}"
        parts.setdefault(row.shots, []).append(said)
    metric = next(iter(by_domain.values())).metric
    at = [
        f"{_and(said)}{'' if shots is None else f' at {shots_name(shots)}'}"
        for shots, said in parts.items()
    ]
    return f"The {metric} of {method} is {'; '.join(at)}."


def _missing(domains: Sequence[str | None], by_domain: Mapping[str | None, Row]) -> str:
    missing = [domain for domain in domains if domain not in by_domain]
    return f"It was not scored{_on(missing)}." if missing else ""


def _comparisons(rivals: Mapping[str | None, Sequence[Rival]]) -> list[str]:
    """Say which rivals are beaten, and where, and which are not."""
    flat = [(domain, rival) for domain, found in rivals.items() for rival in found]
    kinds = {
        "It beats {}.": lambda lead, half: half is not None and lead > half,
        "It scores above {}.": lambda lead, half: half is None and lead > 0,
        "No difference is shown from {}.": lambda lead, half: abs(lead) <= (half or 0),
        "It scores below {}.": lambda lead, half: half is None and lead < 0,
        "It is below {}.": lambda lead, half: half is not None and -lead > half,
    }
    said = []
    for sentence, holds in kinds.items():
        places: dict[str, list[str | None]] = {}
        for domain, rival in flat:
            if holds(*rival.lead):
                places.setdefault(rival.row.method, []).append(domain)
        together: dict[tuple[str | None, ...], list[str]] = {}
        for name, where in places.items():
            together.setdefault(tuple(where), []).append(name)
        if together:
            parts = [f"{_and(names)}{_on(where)}" for where, names in together.items()]
            said.append(sentence.format("; ".join(parts)))
    if any(rival.lead.half is None for _, rival in flat):
        said.append(
            "Too few scores of single examples are stored for paired intervals, so above and below "
            "are no proof."
        )
    return said


def _diverged(by_domain: Mapping[str | None, Row], tuning: Tuning | None) -> list[str]:
    said = [
        f"{diverged_name(row)}{_on([d])}." for d, row in by_domain.items() if diverged_name(row)
    ]
    if tuning is not None and tuning["diverged"]:
        said.append(f"{tuning['diverged']:.0%} of its validation outcomes were not finite.")
    return said


def _cost(tuning: Tuning | None, tunings: Sequence[Tuning]) -> str:
    if tuning is None:
        return ""
    if tuning["seconds"] is None:
        return f"What {tuning['method']} costs was not measured."
    known = {m["method"]: m["seconds"] for m in tunings if m["seconds"] is not None}
    cheapest = min(known, key=lambda method: known[method])
    said = f"{tuning['method']} costs {duration(tuning['seconds'])} per episode"
    if tuning["seconds"] <= known[cheapest]:
        return f"{said}; no method costs less."
    return f"{said}; {cheapest}, the cheapest, {duration(known[cheapest])}."


def duration(seconds: float) -> str:
    """Return "3.1 ms", "140 ms", "2.5 s" or "75 s"."""
    value, unit = (seconds, "s") if seconds >= 0.9995 else (1000 * seconds, "ms")
    return f"{value:.{0 if value >= 9.95 else 1}f} {unit}"


def _by_domain(names: Mapping[str | None, str], every: bool = True) -> str:
    """Return "majority" if alike in all domains; else "majority on toys and content on books"."""
    if every and len(set(names.values())) == 1:
        return next(iter(names.values()))
    places: dict[str, list[str | None]] = {}
    for domain, name in names.items():
        places.setdefault(name, []).append(domain)
    return _and([f"{name}{_on(where)}" for name, where in places.items()])


def _on(domains: Sequence[str | None]) -> str:
    named = [domain for domain in domains if domain]
    return f" on {_and(named)}" if named else ""


def _and(parts: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))
