"""What a domain holds, and what each task can do with it."""

import warnings
from collections.abc import Mapping
from typing import NamedTuple

from metaguide.data.catalogue import Domain
from metaguide.data.rows import PARTS
from metaguide.tasks import TASKS, Task


class TaskOverview(NamedTuple):
    """What one task can do with a domain.

    Attributes:
        counts: numbers of examples, keyed by class or by what they are; repeated ones count once.
        is_possible: whether there are examples to adapt to.
        notes: what is missing for all, or for some of it.
    """

    counts: Mapping[str, int]
    is_possible: bool
    notes: tuple[str, ...]


class Overview(NamedTuple):
    """What a domain holds.

    Attributes:
        name: name of the domain.
        rows: number of rows, keyed by part.
        tasks: what each task can do with it.
        notes: what is left out, such as repeated texts.
    """

    name: str
    rows: Mapping[str, int]
    tasks: Mapping[str, TaskOverview]
    notes: tuple[str, ...]


def overview(domain: Domain, shots: int = 5) -> Overview:
    """Return what a domain holds, and what each task can do with it.

    Args:
        domain: the domain.
        shots: number of examples of each class that adaptation is to draw.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tasks = {name: _of_task(task, domain, shots) for name, task in TASKS.items()}
    notes = [str(one.message).removeprefix(f"domain {domain.name}, ") for one in caught]
    unlabelled = sum(one.stars is None and one.sentiment is None for one in domain.reviews)
    if unlabelled:
        notes.append(f"reviews without a label, which adaptation may read as such: {unlabelled:,}")
    rows = {part: len(getattr(domain, part)) for part in PARTS}
    return Overview(domain.name, rows, tasks, tuple(dict.fromkeys(notes)))


def _of_task(task: Task, domain: Domain, shots: int) -> TaskOverview:
    counts = task.counts(domain)
    if not counts:
        return TaskOverview({}, False, (f"needs {task.needs or task.part}",))
    is_classes = task.name == "classification" or bool(task.classes)
    if not is_classes:
        return TaskOverview(counts, True, ())
    classes = {name: 0 for name in task.classes} | dict(counts)
    if sum(map(bool, classes.values())) < 2:
        known = next(name for name, count in classes.items() if count)
        return TaskOverview(counts, False, (f"needs a second class; all are {known!r}",))
    few = [name for name, count in classes.items() if count < shots]
    notes = ()
    if few:
        some = ", ".join(map(repr, few[:3])) + (", …" if len(few) > 3 else "")
        notes = (f"{len(few)} of {len(classes)} classes have fewer than {shots} examples: {some}",)
    return TaskOverview(classes, True, notes)
