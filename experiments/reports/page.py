"""The report of a run as one HTML file that opens from disk."""

import json
from collections.abc import Collection, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from experiments.exhibits import Showcase, exhibit
from experiments.reports.confusions import Confusions, confusions
from experiments.reports.figures import bars, curves, styles, swatch
from experiments.reports.layout import (
    INTERVALS,
    Cell,
    Grid,
    diverged_name,
    grid,
    interval_name,
    metrics_of,
    shots_name,
    tasks_of,
)
from experiments.reports.stylesheet import CSS
from experiments.reports.verdicts import Verdict, duration, verdict
from metaguide.evaluation.baselines import BASELINES
from metaguide.evaluation.results import LOWER_IS_BETTER, Results, Tuning
from metaguide.evaluation.rows import decimal
from metaguide.files import atomic_write
from metaguide.tasks import TASKS


def write_report(
    results: Results,
    folder: Path,
    showcase: Showcase | Sequence[Showcase] | None = None,
    *,
    scratch: str | None = "scratch",
    baselines: Collection[str] = BASELINES,
) -> Path:
    """Write `folder/report.html` atomically: one file that opens from disk.

    Args:
        results: rows of one table with the scores of their examples.
        folder: the folder to write to; created if missing.
        showcase: the guide at work on one or several held-out domains.
        scratch: the method from scratch; a method below it at the same shots is negative transfer.
        baselines: names of the methods that are baselines.

    Returns:
        The path of the report.

    Raises:
        ResultsError: the rows belong to several tables, or two methods were scored on different
            examples.
    """
    shown = [showcase] if isinstance(showcase, Mapping) else list(showcase or ())
    tasks = tasks_of(results.rows)
    methods = list(dict.fromkeys(row.method for row in results.rows))
    style = styles(
        [a for a in methods if a not in baselines], [a for a in methods if a in baselines]
    )
    verdicts = [verdict(results, task, scratch=scratch, baselines=baselines) for task in tasks]
    links = [("verdict", "Verdict"), *((task, _title(task)) for task in tasks)]
    if shown:
        links.insert(1, ("guide", "The guide at work"))
    anchors = "".join(f'<a href="#{escape(anchor)}">{escape(name)}</a>' for anchor, name in links)
    body = [_header(results), f'<nav><div class="page">{anchors}</div></nav>']
    body += ['<main class="page">', _verdicts(verdicts)]
    if shown:
        pages = "".join(exhibit(one) for one in shown)
        body.append(f'<section id="guide"><p class="soft">The guide at work</p>{pages}</section>')
    body += [_task(results, one, style, scratch, baselines) for one in verdicts]
    body += ["</main>", _footer(results)]
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>metaguide: report</title><style>{CSS}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "report.html"
    with atomic_write(path) as file:
        file.write(page.encode())
    return path


def _title(task: str) -> str:
    return TASKS[task].title if task in TASKS else task


def _header(results: Results) -> str:
    most: dict[str, int] = {}
    for row in results.rows:
        most[row.task] = max(most.get(row.task, 0), row.episodes or 0)
    counts = dict.fromkeys(most.values())
    episodes = ", ".join(
        f"{count} ({', '.join(_title(task) for task in most if most[task] == count)})"
        if len(counts) > 1
        else str(count)
        for count in counts
    )
    domains = list(dict.fromkeys(row.domain for row in results.rows if row.domain))
    facts = {
        "held-out domains": ", ".join(domains),
        "training seeds": _seeds(results.seeds),
        "episodes per cell": episodes or "0",
        "table": ", ".join(dict.fromkeys(row.table for row in results.rows)),
        "made": results.made[:16].replace("T", " "),
    }
    listed = "".join(
        f"<div><dt>{name}</dt><dd>{escape(fact)}</dd></div>" for name, fact in facts.items()
    )
    return (
        '<header class="page"><h1>metaguide</h1>'
        '<p class="soft">A handful of examples of domains that no stage of training has seen.</p>'
        f'<dl class="facts">{listed}</dl></header>'
    )


def _footer(results: Results) -> str:
    config = json.dumps(results.config, indent=2, ensure_ascii=False)
    return (
        f'<footer class="page small"><p>Made {escape(results.made)} by</p>'
        f"<p><code>{escape(results.command)}</code></p>"
        f"<details><summary>Configuration</summary><pre>{escape(config)}</pre></details></footer>"
    )


def _seeds(seeds: Sequence[int]) -> str:
    """Return "3 (0, 1, 2)" or "1 (seed 0)", since a lone 0 would read as none."""
    listed = ", ".join(map(str, seeds))
    return f"{len(seeds)} ({'seed ' if len(seeds) == 1 else ''}{listed})" if seeds else "none"


def _verdicts(verdicts: Sequence[Verdict]) -> str:
    parts = []
    for one in verdicts:
        more = "".join(f"<li>{escape(sentence)}</li>" for sentence in one.more)
        warning = f'<p class="warning">{escape(one.warning)}</p>' if one.warning else ""
        parts.append(
            f'<div class="card conclusion"><h3><a href="#{escape(one.task)}">'
            f"{escape(_title(one.task))}</a></h3>{warning}"
            f'<p class="use">{escape(one.use)}</p><ul>{more}</ul></div>'
        )
    note = (
        f'{INTERVALS}. "Beats" and "is below" mean by more than the paired 95% interval over '
        "examples and episodes, of the means over training seeds. Zero-shot is compared at 0 shots "
        "if it has no others."
    )
    return (
        f'<section id="verdict"><h2>Verdict</h2><div class="conclusions">{"".join(parts)}</div>'
        f'<p class="small soft">{escape(note)}</p></section>'
    )


def _task(
    results: Results,
    concluded: Verdict,
    style: Mapping[str, Any],
    scratch: str | None,
    baselines: Collection[str],
) -> str:
    task = concluded.task
    rows, shown = results.rows, metrics_of(results.rows, task)
    laid = [
        grid(rows, task, metric, scores=results.scores, scratch=scratch, baselines=baselines)
        for metric in shown
    ]
    first = laid[0]
    names = [*first.methods, *first.baselines]
    mine = {name: style[name] for name in style if name in names}
    parts = [f'<section id="{escape(task)}"><h2>{escape(_title(task))}</h2>']
    parts.append(f'<p class="soft">{escape(TASKS[task].summary if task in TASKS else "")}</p>')
    parts.append(f"<h3>{escape(first.metric)}</h3>{_table(first)}")
    parts.append(_notes(first, scratch))
    for other in laid[1:]:
        parts.append(f"<details><summary>{escape(other.metric)}</summary>{_table(other)}</details>")
    parts.append(
        _tunings([one for one in results.tunings if one["task"] == task], concluded.method)
    )
    if concluded.method is not None:
        parts.append(_confusions(confusions(results, task, concluded.method), concluded.method))
    legend = "".join(f"<li>{swatch(mine[name])}{escape(name)}</li>" for name in mine)
    parts.append(f'<h3>By domain and shots</h3><ul class="legend">{legend}</ul>')
    parts.append('<div class="figures">')
    domains = list(dict.fromkeys(column.domain for column in first.columns))
    stepwise = [row for row in rows if (row.task, row.metric) == (task, first.metric)]
    for index, domain in enumerate(domains):
        label = f"{escape(task)} {escape(first.metric)}, domain {index + 1}"
        drawn = bars(first, domain, mine, f"{label}: bars")
        parts.append(_figure(domain, "after adaptation", drawn, wide=False))
    for index, domain in enumerate(domains):
        label = f"{escape(task)} {escape(first.metric)}, domain {index + 1}"
        if panels := curves(stepwise, domain, mine, f"{label}: curves"):
            drawn = f'<div class="panels">{"".join(panels)}</div>'
            parts.append(_figure(domain, "over adaptation steps", drawn, wide=True))
    return "".join([*parts, "</div></section>"])


def _figure(domain: str | None, what: str, drawn: str, wide: bool) -> str:
    caption = f"<b>{escape(domain or '')}</b> {what}"
    kind = ' class="wide"' if wide else ""
    return f"<figure{kind}><figcaption>{caption}</figcaption>{drawn}</figure>"


def _tunings(tunings: Sequence[Tuning], chosen: str | None) -> str:
    """Return a table of what validation chose for each method, best first, and the cost."""
    if not tunings:
        return ""
    heads = ["tuned to", f"{tunings[0]['tuned_by']['metric']} there", "per episode"]
    lost = any(one["diverged"] for one in tunings)
    heads += ["not finite there"] if lost else []
    lines = []
    for one in tunings:
        name = escape(one["method"])
        name = f"<strong>{name}</strong>" if one["method"] == chosen else name
        cells = [
            "–" if one["learning_rate"] is None else f"{one['learning_rate']:g}",
            decimal(one["tuned_by"]["score"]),
            "–" if one["seconds"] is None else duration(one["seconds"]),
        ]
        cells += [f"{one['diverged']:.0%}"] if lost else []
        lines.append(
            f'<tr><th class="name" scope="row">{name}</th>'
            + "".join(f"<td>{cell}</td>" for cell in cells)
            + "</tr>"
        )
    note = (
        "The rate, penalty or factor of each method and its score on the validation domains. The "
        "guide uses the best method that has a checkpoint. The time is for adapting to and "
        "answering one test episode when it was scored, without compilation; methods that "
        "are computed together share it. – : nothing to tune, or not measured."
    )
    return (
        "<h3>What validation chose, and what it costs</h3>"
        + _scrolled(
            "what validation chose",
            '<thead><tr><th class="name">method</th>'
            + "".join(f"<th>{escape(head)}</th>" for head in heads)
            + f"</tr></thead><tbody>{''.join(lines)}</tbody>",
        )
        + f'<p class="small soft">{note}</p>'
    )


_MOST_CONFUSIONS = 5


def _confusions(found: Sequence[Confusions], method: str) -> str:
    """Return the most frequent confusions of a method in words, and all of them as a matrix."""
    parts = []
    for one in found:
        listed = "".join(
            f"<li>{escape(true)} taken for {escape(said)}: {count} of {asked}</li>"
            for true, said, count, asked in one.frequent(_MOST_CONFUSIONS)
        )
        at = "" if one.shots is None else f", {shots_name(one.shots)}"
        parts.append(
            f'<div class="card"><h4>{escape(one.domain or "")}{at}: '
            f"{one.right} of {one.asked.sum()} right</h4>"
            f'<ol class="confusions">{listed}</ol>'
            f"<details><summary>All confusions</summary>{_matrix(one)}</details></div>"
        )
    if not parts:
        return ""
    return (
        f"<h3>What {escape(method)} confuses</h3>"
        f'<div class="conclusions">{"".join(parts)}</div>'
        '<p class="small soft">Over all episodes and training seeds; an example counts in each.</p>'
    )


def _matrix(found: Confusions) -> str:
    lost = found.nothing.any()
    heads = [*map(escape, found.names), *(["not finite"] if lost else [])]
    lines = []
    for place, name in enumerate(found.names):
        counts = [*found.counts[place], *([found.nothing[place]] if lost else [])]
        cells = "".join(
            f"<td{' class=same' if column == place else ''}>{count or ''}</td>"
            for column, count in enumerate(counts)
        )
        lines.append(f'<tr><th class="name" scope="row">{escape(name)}</th>{cells}</tr>')
    return _scrolled(
        f"confusions on {found.domain or ''}",
        '<thead><tr><th class="name">true class</th>'
        + "".join(f"<th>{head}</th>" for head in heads)
        + f"</tr></thead><tbody>{''.join(lines)}</tbody>",
    )


def _scrolled(label: str, table: str) -> str:
    """Return a table that scrolls sideways if it is too wide, also by keyboard."""
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(label)}">'
        f"<table>{table}</table></div>"
    )


def _table(laid: Grid) -> str:
    groups: dict[str | None, int] = {}
    for column in laid.columns:
        groups[column.domain] = groups.get(column.domain, 0) + 1
    head = "".join(
        f'<th class="start" colspan="{count}">{escape(domain or "")}</th>'
        for domain, count in groups.items()
    )
    starts, seen = set(), set()
    for column in laid.columns:
        if column.domain not in seen:
            starts.add(column)
            seen.add(column.domain)
    edge = {column: ' class="start"' if column in starts else "" for column in laid.columns}
    under = "".join(f"<th{edge[c]}>{escape(shots_name(c.shots))}</th>" for c in laid.columns)
    lines = []
    for method in (*laid.methods, *laid.baselines):
        kind = "baseline" if method in laid.baselines else ""
        if laid.baselines and method == laid.baselines[0]:
            kind += " first-baseline"
        cells = "".join(
            _cell(laid.cells.get((method, column)), column in starts, laid.metric)
            for column in laid.columns
        )
        lines.append(
            f'<tr class="{kind}"><th class="name" scope="row">{escape(method)}</th>{cells}</tr>'
        )
    return _scrolled(
        f"{laid.task}: {laid.metric}",
        f'<thead><tr><th class="name"></th>{head}</tr>'
        f'<tr><th class="name">method</th>{under}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody>",
    )


def _cell(cell: Cell | None, start: bool, metric: str) -> str:
    kinds = ["start"] if start else []
    if cell is None:
        return f'<td class="{" ".join(kinds)}"></td>'
    row, parts = cell.row, []
    value = decimal(row.value)
    parts.append(f"<strong>{value}</strong>" if cell.best else value)
    sign = -1 if metric in LOWER_IS_BETTER else 1
    if row.baseline is not None and sign * (row.value - row.baseline) < 0:
        parts.append('<abbr title="below the best baseline of this column">†</abbr>')
    if said := interval_name(row):
        parts.append(f"<small>{said}</small>")
    if said := diverged_name(row):
        parts.append(f'<small class="worse">{said}</small>')
    if row.published is not None:
        parts.append(f"<small>published {decimal(row.published)}</small>")
    if cell.against_scratch:
        sure = _sure(cell.against_scratch)
        value, half = cell.against_scratch
        width = "" if half is None else f" ± {decimal(half)}"
        kinds += ["negative"] if sure else []
        parts.append(
            f'<small class="{"worse" if sure else "unsure"}">'
            f"▼ {decimal(value).replace('-', '−')}{width}</small>"
        )
    return f'<td class="{" ".join(kinds)}">{"".join(parts)}</td>'


def _sure(against: tuple[float, float | None]) -> bool:
    value, half = against
    return half is not None and abs(value) > half


def _notes(laid: Grid, scratch: str | None) -> str:
    worse = [cell.against_scratch for cell in laid.cells.values() if cell.against_scratch]
    sure = sum(map(_sure, worse))
    text = (
        f"{INTERVALS}. "
        "Bold: the best method of a column. Italic: baselines on the same examples; "
        "† below the best one."
    )
    if scratch in laid.methods:
        text += (
            f" ▼ negative transfer: below {scratch} at the same shots, with the paired difference; "
            f"{len(worse)} cells, {sure} of them beyond the interval (shaded)."
        )
    return f'<p class="small soft">{escape(text)}</p>'
