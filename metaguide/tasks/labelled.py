"""Tasks whose examples each have a label: building their episodes and serving them."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from metaguide.data.catalogue import Domain, checked_part
from metaguide.data.encoding import Table, labelled_table
from metaguide.data.episodes import check_labelled, labelled_sampler
from metaguide.methods import adaptation_of
from metaguide.models.guide import GuideModel
from metaguide.tasks.serving import (
    Adapted,
    Fill,
    HeldBack,
    Reading,
    Server,
    Serving,
    ask,
    is_finite,
)
from metaguide.tasks.task import Labels, Shape, Task
from metaguide.tasks.widths import in_few_supports, in_few_widths
from metaguide.types import UNLABELLED, Learner, Params, Problem, TaskDistribution


class Labelled(NamedTuple):
    """The labelled examples of one domain.

    Attributes:
        examples: the examples, without repeated content.
        labels: int [examples], indices into `classes`.
        classes: names of the classes, in the order in which training and serving number them.
    """

    examples: Sequence[Any]
    labels: np.ndarray
    classes: tuple[str, ...]


class Labelling(NamedTuple):
    """A task with labels, as functions of its examples that training and serving share.

    Attributes:
        name: name of the task.
        of_domain: (domain, reading, picked) -> the domain's labelled examples; `picked` are
            examples to use instead of the domain's own, or None.
        rows: (examples, reading, domain's name) -> the fields of their rows, without the label.
        problem: (model, reading, classes) -> Problem, with a slot for each of `classes` classes.
        answers: (outputs, examples, reading, classes) -> the return value of `predict`.
        table: (labelled examples keyed by domain, reading, always, scored) -> the table that
            episodes are drawn from; by default rows and labels, for classes that are the same in
            every domain.
        context: (classes, reading) -> the context of a task in serving.
        start: (params, number of classes) -> the parameters that adaptation starts from.
        unlabelled: domain -> the examples that a method may learn from without their labels.
        described: a class's name -> the phrase that messages use for it.
        lacking: message for a domain without classes; None if every domain has them.
        needs_all: whether adaptation needs examples of every class.
        answers_untrained: whether even an untrained guide answers without examples, since it reads
            the names of the classes, or compares texts.
        is_ordered: whether the slots of an episode keep the order of the classes.
        predicts_classes: whether its outputs are logits of the classes.
    """

    name: str
    of_domain: Callable[[Domain, Reading, Sequence[Any] | None], Labelled]
    rows: Callable[[Sequence[Any], Reading, str], Table]
    problem: Callable[[GuideModel, Reading, int], Problem]
    answers: Callable[..., list[Any]]
    table: Callable[..., Table] | None = None
    context: Callable[[tuple[str, ...], Reading], dict[str, Any]] = lambda classes, reading: {}
    start: Callable[[Params, int], Params] = lambda params, classes: params
    unlabelled: Callable[[Domain], Sequence[Any]] = lambda domain: ()
    described: Callable[[str], str] = str
    lacking: str | None = None
    needs_all: bool = False
    answers_untrained: bool = False
    is_ordered: bool = True
    predicts_classes: bool = True


def labelled_task(labelling: Labelling, labels: Labels | None = None, **fields: Any) -> Task:
    """Build the task of a labelling; `fields` are the fields of `Task` that it does not set."""
    if labels is not None:
        fields["labels"] = labels
        fields["counts"] = lambda domain: Counter(map(labels.label, labels.distinct(domain)))
    return Task(
        name=labelling.name,
        episodes=partial(episodes, labelling),
        adapt=partial(adapt, labelling),
        arrays=arrays,
        restore=partial(restore, labelling),
        predict=partial(predict, labelling),
        validate=partial(validate, labelling) if labelling.predicts_classes else None,
        **fields,
    )


def episodes(
    labelling: Labelling,
    model: GuideModel,
    domains: Sequence[Domain],
    reading: Reading,
    shape: Shape,
    always: Mapping[str, Sequence[str]],
    scored: bool,
) -> TaskDistribution:
    """Build the episodes of a task with labels; the arguments are those of `Task.episodes`.

    Raises:
        EpisodeError: a domain has fewer classes or examples than `shape` asks for.
    """
    table = table_of(labelling, domains, reading, always, scored)
    way = table["members"].shape[1] if labelling.is_ordered else shape.way
    names = tuple(one.name for one in domains)
    check_labelled(table, names, way, shape.shots, labelling.name)
    sample = labelled_sampler(way, shape.shots, shape.queries, labelling.is_ordered)
    return TaskDistribution(names, table, sample, labelling.problem(model, reading, way))


def table_of(
    labelling: Labelling,
    domains: Sequence[Domain],
    reading: Reading,
    always: Mapping[str, Sequence[str]],
    scored: bool,
) -> Table:
    """Return the table that episodes are drawn from; the arguments are those of `Task.episodes`."""
    parts = {one.name: labelling.of_domain(one, reading, None) for one in domains}
    if labelling.table is not None:
        return labelling.table(parts, reading, always, scored)
    rows = [labelling.rows(part.examples, reading, name) for name, part in parts.items()]
    *_, last = parts.values()
    return labelled_table(rows, [part.labels for part in parts.values()], len(last.classes))


def adapt(
    labelling: Labelling,
    server: Server,
    domain: Domain,
    shots: int,
    rng: np.random.Generator,
    picked: Sequence[Any] | None,
    unlabelled: int | Sequence[Any],
) -> tuple[Adapted | None, tuple[str, ...]]:
    """Adapt to a domain, with notes on what is lacking; the arguments are those of `Task.adapt`."""
    reading, serving = server.reading, server.serving
    examples, labels, classes = labelling.of_domain(domain, reading, picked)
    if not classes:
        return None, (str(labelling.lacking),)
    context, count = labelling.context(classes, reading), len(classes)
    rows = _draw(labels, count, shots, rng) if picked is None else np.arange(len(examples))
    notes = _too_few(
        labels, [labelling.described(name) for name in classes], 1 if picked else shots
    )
    learner, meta = _start(labelling, server, count)

    def unadapted(*more: str) -> tuple[Adapted, tuple[str, ...]]:
        return Adapted(learner(False), meta["params"], context, (), classes), (*notes, *more)

    adaptation, by_names = adaptation_of(serving.method), _by_names(serving, context, len(rows))
    as_trained = "it answers as it was trained, without adapting"
    # After adapting to a single class, the guide would predict that class for everything.
    one_sided = labelling.needs_all and 0 < len(rows) and len(set(labels[rows])) < count
    if one_sided or not (len(rows) or by_names):
        learns_here = adaptation.reads == "words"
        if learns_here or not (serving.is_trained or labelling.answers_untrained):
            who = (
                f"{serving.method} learns here alone"
                if learns_here
                else "this guide was not trained"
            )
            return None, (*notes, f"{who}; adapt it to examples of each class")
        if not picked and not shots:
            return unadapted()
        return unadapted(*["no examples to adapt to"] * (not len(rows)), as_trained)
    chosen: list[Any] = [examples[int(row)] for row in rows]
    others: list[Any] = []
    if not adaptation.reads_unlabelled:
        # Where only names tell some classes apart, they are compared with what texts are like.
        lacks = adaptation.reads_names and "names" in context and len({*labels[rows]}) < count
        known = () if isinstance(unlabelled, int) else unlabelled
        unlabelled = (known or READ_BESIDE_NAMES) if lacks else 0
    if unlabelled:
        taken = {one.id for one in chosen}
        drawn = isinstance(unlabelled, int)
        pool = labelling.unlabelled(domain) if drawn else unlabelled
        others = [one for one in pool if one.id not in taken]
        if drawn:
            others = [others[row] for row in rng.permutation(len(others))[:unlabelled]]
    given = _support_rows(labelling, reading, domain.name, chosen, labels[rows], others)
    state, _ = learner(True).adapt(meta, given, in_few_widths(context), None)
    if not is_finite(state):
        return unadapted(
            f"adaptation by {serving.method} diverged (rate {serving.learning_rate:g}, "
            f"{serving.steps} steps); {as_trained}"
        )
    support = tuple(chosen), classes, tuple(others)
    return Adapted(learner(True), state, context, *support, by_names), tuple(notes)


def arrays(adapted: Adapted) -> dict[str, Any]:
    """Return what a saved guide keeps of a task: its context, and its state if it adapted."""
    state = {"state": adapted.state} if adapted.is_adapted else {}
    return {"context": adapted.context, **state}


def restore(
    labelling: Labelling,
    server: Server,
    domain: Domain,
    shots: int,
    support: Sequence[Any],
    unlabelled: Sequence[Any],
    fill: Fill,
) -> Adapted:
    """Restore what `adapt` returned from its arrays; the arguments are those of `Task.restore`.

    A method that adapts parameters has them as its state. For the state of another, what `adapt`
    makes of the examples is traced, which a gradient would take seconds for.
    """
    del shots
    _, labels, classes = labelling.of_domain(domain, server.blank, support)
    learner, meta = _start(labelling, server, len(classes))
    like: dict[str, Any] = {"context": labelling.context(classes, server.blank)}
    by_names = _by_names(server.serving, like["context"], len(support))
    if not (support or by_names):
        return Adapted(learner(False), meta["params"], fill(like)["context"], (), classes)
    like["state"] = meta["params"]
    if adaptation_of(server.serving.method).adapts == "features":
        rows = _support_rows(labelling, server.blank, domain.name, support, labels, unlabelled)
        context = in_few_widths(like["context"])
        like["state"], _ = jax.eval_shape(learner(True).adapt, meta, rows, context, None)
    found = fill(like)
    examples = tuple(support), classes, tuple(unlabelled)
    return Adapted(learner(True), found["state"], found["context"], *examples, by_names)


def predict(
    labelling: Labelling,
    server: Server,
    adapted: Adapted,
    examples: Sequence[Any],
    domain: Domain,
    shots: int,
    top: int | None,
) -> list[Any]:
    """Answer a batch; the arguments are those of `Task.predict`.

    Raises:
        ValueError: an answer is not finite.
    """
    del shots, top
    outputs = ask(adapted, labelling.rows(examples, server.reading, domain.name))
    return labelling.answers(outputs, examples, server.reading, adapted.classes)


def validate(labelling: Labelling, server: Server, domain: Domain, adapted: Adapted) -> HeldBack:
    """Predict each example after adaptation to those of other folds; as in `Task.validate`.

    There are at most `FOLDS` folds, each with its share of every class. The examples stay in their
    places and are masked, so that one program adapts to all folds.
    """
    support, reading = adapted.support, server.reading
    _, labels, classes = labelling.of_domain(domain, reading, support)
    others = adapted.unlabelled if adaptation_of(server.serving.method).reads_unlabelled else ()
    rows = _support_rows(labelling, reading, domain.name, support, labels, others)
    # Another method than the one that adapted may read other fields.
    context = in_few_widths(labelling.context(classes, reading))
    learner, meta = _start(labelling, server, len(classes))
    folds = _folds(labels)
    placed = np.pad(folds, (0, len(rows["mask"]) - len(folds)), constant_values=-1)
    key = labelling.name, len(classes), "held back"
    each = server.compiled(key, lambda: jax.jit(partial(_each_fold, learner(True))))
    logits = np.asarray(each(meta, rows, context, placed))
    logits = logits[folds, np.arange(len(support))]
    return HeldBack(logits, labels, np.bincount(labels)[labels] > 1)


def _each_fold(learner: Learner, meta: Params, rows: Table, context: Any, placed: Array) -> Array:
    """Return the logits of all rows after adaptation to all folds but one, for each of `FOLDS`."""

    def held_back(fold: Array) -> Array:
        others = {**rows, "mask": rows["mask"] & (fold != placed)}
        state, _ = learner.adapt(meta, others, context, None)
        return learner.predict(state, rows, context)["logits"]

    return jax.lax.map(held_back, jnp.arange(FOLDS))


READ_BESIDE_NAMES = 64
"""How many examples without a label are read where a class is known by its name alone."""

FOLDS = 5
"""The most folds of a cross-validation."""


def _folds(labels: np.ndarray) -> Int[np.ndarray, " examples"]:
    """Return a fold for each example, so that each class is spread over as many as it can be."""
    placed = np.zeros(len(labels), int)
    for number in set(labels.tolist()):
        rows = np.flatnonzero(labels == number)
        placed[rows] = np.arange(len(rows)) % FOLDS
    return placed


def picked(part: str, label: str, what: str, examples: Sequence[Any]) -> tuple[Any, ...]:
    """Check examples that were picked by hand to adapt to.

    Args:
        part: the part of a domain that holds such examples, such as "reviews".
        label: name of the field that holds an example's label.
        what: name of the label in messages.
        examples: examples of one type.

    Raises:
        CatalogueError: a field is one that the reader would refuse.
        ValueError: an example has no label.
    """
    checked = checked_part("support", part, examples)
    for one in checked:
        if getattr(one, label) is None:
            raise ValueError(f"support: {one.id!r} has no {what} to adapt to; add it")
    return checked


def queried_rows(batch: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the rows of an episode's examples in the domain's table, -1 for padding."""
    return np.where(batch["mask"], batch["id"], -1)


def _start(
    labelling: Labelling, server: Server, classes: int
) -> tuple[Callable[[bool], Learner], Params]:
    """Return (whether to adapt) -> the learner, and the meta-parameters it starts from."""

    def learner(adapts: bool) -> Learner:
        key = labelling.name, classes
        return server.learner(
            key, lambda: labelling.problem(server.model, server.reading, classes), adapts
        )

    meta = server.serving.meta
    return learner, {**meta, "params": labelling.start(meta["params"], classes)}


def _by_names(serving: Serving, context: Mapping[str, Any], examples: int) -> bool:
    """Return whether a method adapts to names alone: without examples, if no head was trained."""
    reads = adaptation_of(serving.method).reads_names and "names" in context
    return reads and not examples and not serving.is_trained


def _support_rows(
    labelling: Labelling,
    reading: Reading,
    where: str,
    chosen: Sequence[Any],
    labels: np.ndarray,
    others: Sequence[Any],
) -> Table:
    """Return the rows to adapt to: labelled examples, those read without a label, and padding."""
    known = np.arange(len(chosen) + len(others)) < len(chosen)
    marks = {"mask": known, **({UNLABELLED: ~known} if others else {})}
    rows = {
        **labelling.rows([*chosen, *others], reading, where),
        "label": np.pad(labels, (0, len(others))).astype(np.int32),
        **marks,
    }
    return in_few_supports(rows, tuple(marks))


def _draw(labels: np.ndarray, classes: int, shots: int, rng: np.random.Generator) -> np.ndarray:
    """Draw `shots` rows of each class, or all of them if there are fewer."""
    members = [np.flatnonzero(labels == number) for number in range(classes)]
    return np.concatenate([rng.permutation(of_class)[:shots] for of_class in members])


def _too_few(labels: np.ndarray, classes: Sequence[str], shots: int) -> list[str]:
    """Return a note for each class that has fewer examples than `shots`."""
    counts = [int((labels == number).sum()) for number in range(len(classes))]
    wanted = f"{shots} shot{'s' if shots > 1 else ''}"
    return [
        f"{name} has {count or 'no'} example{'s' if count != 1 else ''}, fewer than {wanted}"
        for name, count in zip(classes, counts, strict=True)
        if count < shots and len(labels)
    ]
