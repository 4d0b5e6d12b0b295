"""Evaluations of a guide on a shop's domain, as text, as JSON and as a page."""

import html
import io
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from metaguide.evaluating import SERVED, Cell, Evaluation
from metaguide.evaluation.metrics import Interval
from metaguide.evaluation.rows import decimal


class _Words(NamedTuple):
    """What the fields of an evaluation are called."""

    asked: str
    classes: str
    shots: str


_WORDS = {
    "accuracy": _Words("held back", "classes", "shots of each class"),
    "NDCG@10": _Words("users", "products", "products of each user"),
    "F1": _Words("questions held back", "texts", "questions adapted to"),
}
"""Keyed by metric."""


def as_text(evaluation: Evaluation) -> Iterator[str]:
    """Yield the lines of a table of the methods by number of shots, and what follows from it."""
    shots = _shots(evaluation)
    yield _title(evaluation)
    yield f"  {_columns(evaluation):<24}" + "".join(f"{count:>14}" for count in shots)
    for method, cells in _rows(evaluation):
        shown = [_figure(cells[count].score) if count in cells else "" for count in shots]
        yield f"  {method:<24}" + "".join(f"{text:>14}" for text in shown)
    for line in findings(evaluation):
        yield f"  {line}"
    if evaluation.unsure:
        yield f"  label these next: {', '.join(one.id for one in evaluation.unsure)}"


def as_json(evaluation: Evaluation) -> dict[str, Any]:
    """Return an evaluation as a table that `json.dumps` takes."""
    cells = [{**one._asdict(), "score": one.score._asdict()} for one in evaluation.cells]
    above = {
        str(count): {"baseline": name, **by._asdict()}
        for count, (name, by) in evaluation.above.items()
    }
    served = {str(count): dict(methods) for count, methods in evaluation.served.items()}
    unsure = [one._asdict() for one in evaluation.unsure]
    whole = evaluation._asdict()
    return {**whole, "cells": cells, "served": served, "above": above, "unsure": unsure}


def findings(evaluation: Evaluation) -> Iterator[str]:
    """Yield a sentence for each number of shots: what served, and how it stands to baselines."""
    for count, (baseline, by) in evaluation.above.items():
        methods = evaluation.served[count]
        draws = sum(methods.values())
        served = ", ".join(
            name if some == draws else f"{name} in {some} of {draws} draws"
            for name, some in sorted(methods.items(), key=lambda item: -item[1])
        )
        is_level = by.half is None or abs(by.value) <= by.half
        verdict = "level with" if is_level else "above" if by.value > 0 else "below"
        yield f"with {count}: served by {served}; {verdict} {baseline}, by {_figure(by)}"


def as_page(evaluations: Sequence[Evaluation], domain: str, guide: str) -> str:
    """Return a page of HTML that needs no other file and no network.

    For each task it has the accuracy by number of shots with 95% intervals, as a picture and as a
    table, what follows from it, and the examples to label next.

    Args:
        evaluations: the evaluations.
        domain: name of the domain.
        guide: name of the guide.
    """
    title = html.escape(f"{guide} on {domain}")
    parts = [_section(one) for one in evaluations]
    return _PAGE.format(title=title, sections="\n".join(parts))


def _section(evaluation: Evaluation) -> str:
    shots = _shots(evaluation)
    head = "".join(f"<th scope=col>{count}" for count in shots)
    rows = "\n".join(
        f"<tr><th scope=row>{html.escape(method)}"
        + "".join(f"<td>{_figure(cells[count].score) if count in cells else ''}" for count in shots)
        for method, cells in _rows(evaluation)
    )
    found = "\n".join(f"<li>{html.escape(line)}" for line in findings(evaluation))
    unsure = "\n".join(
        f"<tr><td>{html.escape(one.id)}<td>{html.escape(one.text)}<td>{html.escape(one.answer)}"
        f"<td>{decimal(one.probability)}"
        for one in evaluation.unsure
    )
    next_ones = _NEXT.format(rows=unsure) if unsure else ""
    return _SECTION.format(
        title=html.escape(_title(evaluation)),
        picture=_picture(evaluation),
        columns=_columns(evaluation),
        head=head,
        rows=rows,
        findings=found,
        next=next_ones,
    )


def _picture(evaluation: Evaluation) -> str:
    """Return the accuracy by number of shots, with a band for each interval, as SVG."""
    import matplotlib
    from matplotlib.figure import Figure

    shots = _shots(evaluation)
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for method, cells in _rows(evaluation):
        known = [count for count in shots if count in cells]
        places = [shots.index(count) for count in known]
        values = np.array([cells[count].score.value for count in known])
        halves = np.array([cells[count].score.half or 0.0 for count in known])
        width = 2.5 if method == SERVED else 1.2
        (line,) = axes.plot(places, values, marker="o", lw=width, ms=4, label=method)
        axes.fill_between(
            places, values - halves, values + halves, color=line.get_color(), alpha=0.15, lw=0
        )
    axes.set_xticks(range(len(shots)), [str(count) for count in shots])
    axes.set(xlabel=_columns(evaluation), ylabel=evaluation.metric)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "metaguide"}):
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    drawn = file.getvalue()
    return drawn[drawn.index("<svg") :]


def _title(evaluation: Evaluation) -> str:
    words = _WORDS[evaluation.metric]
    return (
        f"{evaluation.task}: {evaluation.metric} on {evaluation.asked:,} {words.asked}, "
        f"{evaluation.classes:,} {words.classes}, ± 95%"
    )


def _columns(evaluation: Evaluation) -> str:
    return _WORDS[evaluation.metric].shots


def _shots(evaluation: Evaluation) -> list[int]:
    return list(dict.fromkeys(cell.shots for cell in evaluation.cells))


def _rows(evaluation: Evaluation) -> Iterator[tuple[str, dict[int, Cell]]]:
    """Yield each method with its cells, keyed by number of shots; what served comes first."""
    methods = dict.fromkeys(cell.method for cell in evaluation.cells)
    for method in sorted(methods, key=lambda name: name != SERVED):
        yield method, {cell.shots: cell for cell in evaluation.cells if cell.method == method}


def _figure(one: Interval) -> str:
    return decimal(one.value) + ("" if one.half is None else f" ± {decimal(one.half)}")


_SECTION = """<section>
<h2>{title}</h2>
<figure>{picture}</figure>
<table>
<thead><tr><th scope=col>{columns}{head}</thead><tbody>
{rows}
</tbody></table>
<ul>
{findings}
</ul>
{next}</section>"""

_NEXT = """<h3>Label these next</h3>
<p>The examples without a label that the guide is least sure of.</p>
<table class=texts><thead><tr><th scope=col>id<th scope=col>text<th scope=col>the guide says
<th scope=col>with probability</thead><tbody>
{rows}
</tbody></table>
"""

_PAGE = """<!doctype html>
<html lang=en>
<meta charset=utf-8>
<meta name=viewport content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 56rem; margin: 2rem auto; padding: 0 1rem;
  color-scheme: light; background: #fff; color: #222 }}
table {{ border-collapse: collapse; display: block; overflow-x: auto }}
th, td {{ padding: .2rem .7rem; text-align: right; border-bottom: 1px solid #ddd }}
th[scope=row], .texts td, .texts th {{ text-align: left }}
tbody td {{ font-variant-numeric: tabular-nums; white-space: nowrap }}
.texts td {{ white-space: normal }}
figure {{ margin: 0 }} svg {{ max-width: 100%; height: auto }}
</style>
<h1>{title}</h1>
<p>Half of the labels, the last product of each user, and the questions about half of the texts were
held back and asked. The guide and the baselines saw the same part of the rest: as many of each
class or user, or as many questions, as the columns say.</p>
{sections}
</html>
"""
