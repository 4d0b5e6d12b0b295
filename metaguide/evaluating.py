"""What a guide knows of a shop's own domain, and what each further label buys."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int
from scipy import sparse

from metaguide.data.catalogue import CatalogueError, Domain
from metaguide.data.repeats import distinct_products, distinct_reviews
from metaguide.data.texts import product_text
from metaguide.evaluation import baselines
from metaguide.evaluation.metrics import Interval, bootstrap_interval, paired_bootstrap
from metaguide.guide import Guide
from metaguide.tasks.sentiment import CLASSES

UNSURE = 10
"""Number of examples without a label that an evaluation asks for."""

MOST_BARE = 1000
"""Number of examples without a label that it looks at."""

Correct = Bool[np.ndarray, "draws queries"]


class Cell(NamedTuple):
    """How often a method was right.

    Attributes:
        method: the method that serves the task, or a baseline.
        shots: number of examples of each class that it saw.
        accuracy: mean, and its 95% interval over examples and draws.
    """

    method: str
    shots: int
    accuracy: Interval


class Evaluation(NamedTuple):
    """A guide on one task of a domain, beside baselines on the same examples.

    Attributes:
        task: name of the task.
        classes: number of its classes.
        asked: number of examples that were held back and asked.
        cells: one for each method and number of shots, the guide's first.
        above: keyed by shots, by how much the guide is above the best baseline, with the paired
            95% interval.
        unsure: ids of the examples without a label that the guide is least sure of, to label next.
    """

    task: str
    classes: int
    asked: int
    cells: tuple[Cell, ...]
    above: Mapping[int, tuple[str, Interval]]
    unsure: tuple[str, ...]


class _Labelled(NamedTuple):
    """How examples of a task are read, and answers of it.

    Attributes:
        part: the part of a domain that holds them.
        distinct: domain -> the examples with a label, each content once.
        label: example with a label -> it.
        is_bare: example -> whether it has no label yet.
        answer: answer -> the label that it gives.
        sure: answer -> the probability of that label.
        text: example -> its text.
    """

    part: str
    distinct: Callable[[Domain], Sequence[Any]]
    label: Callable[[Any], str]
    is_bare: Callable[[Any], bool]
    answer: Callable[[Any], str]
    sure: Callable[[Any], float]
    text: Callable[[Any], str]


_TASKS: Mapping[str, _Labelled] = {
    "classification": _Labelled(
        "products",
        distinct_products,
        lambda product: product.category,
        lambda product: product.category is None,
        lambda answer: answer.category,
        lambda answer: answer.probabilities[answer.category],
        product_text,
    ),
    "sentiment": _Labelled(
        "reviews",
        distinct_reviews,
        lambda review: CLASSES[review.label],
        lambda review: review.stars is None and review.sentiment is None,
        lambda answer: answer.sentiment,
        lambda answer: max(answer.positive, 1 - answer.positive),
        lambda review: review.text,
    ),
}


def evaluate(
    guide: Guide,
    domain: Domain,
    shots: Sequence[int] = (0, 1, 5, 10, 20),
    *,
    draws: int = 5,
    queries: int = 500,
    unlabelled: int = 0,
    seed: int = 0,
    tell: Callable[[str, int], None] = lambda task, shots: None,
) -> list[Evaluation]:
    """Adapt a guide to some of a domain's labels, and ask it the others.

    Half of the examples of each class are held back, and the same ones are asked of every method.
    From the other half each draw takes `shots` of each class. Baselines see the same examples: a
    logistic regression on TF-IDF, whose vocabulary and IDF are of the half that is not held back,
    the same on the guide's vectors if it reads those of a pretrained encoder, and the most frequent
    class of the examples asked.

    Args:
        guide: the guide, not adapted.
        domain: the domain.
        shots: numbers of examples of each class; classes that have fewer give all they have.
        draws: number of draws for each of them.
        queries: most examples that are asked.
        unlabelled: as in `Guide.adapt`.
        seed: seed of the split and of the draws.
        tell: called with a task and a number of shots before they are evaluated.

    Returns:
        An evaluation of each of classification and sentiment that the domain has examples of at
        least two classes for.

    Raises:
        CatalogueError: it has them for neither.
    """
    found = []
    for task, labelled in _TASKS.items():
        if task not in guide.serving:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            examples = labelled.distinct(domain)
        labels = [labelled.label(one) for one in examples]
        split = _split(labels, queries, np.random.default_rng(seed))
        if len(set(labels)) > 1 and len(split[1]):
            given = task, labelled, domain, examples, labels, split
            found.append(_of_task(guide, *given, shots, draws, unlabelled, seed, tell))
    if not found:
        raise CatalogueError(
            f"domain {domain.name}: no two products of each of two categories, and no two reviews "
            "of each sentiment; label some."
        )
    return found


def _split(
    labels: Sequence[str], queries: int, rng: np.random.Generator
) -> tuple[Int[np.ndarray, " pool"], Int[np.ndarray, " asked"]]:
    """Return the rows to draw from and the rows to ask: half of each class, rounded up and down."""
    pool, asked = [], []
    for label in sorted(set(labels)):
        rows = rng.permutation([row for row, one in enumerate(labels) if one == label])
        half = -(-len(rows) // 2)
        pool.append(rows[:half])
        asked.append(rows[half:])
    every = rng.permutation(np.concatenate([*asked, np.empty(0, int)]).astype(int))
    return np.concatenate([*pool, np.empty(0, int)]).astype(int), every[:queries]


def _of_task(
    guide: Guide,
    task: str,
    labelled: _Labelled,
    domain: Domain,
    examples: Sequence[Any],
    labels: Sequence[str],
    split: tuple[np.ndarray, np.ndarray],
    shots: Sequence[int],
    draws: int,
    unlabelled: int,
    seed: int,
    tell: Callable[[str, int], None],
) -> Evaluation:
    """Evaluate one task; the other arguments are those of `evaluate`."""
    pool, asked = split
    classes = sorted(set(labels))
    numbers = np.array([classes.index(label) for label in labels])
    held_back = {examples[row].id for row in asked}
    left = [one for one in getattr(domain, labelled.part) if one.id not in held_back]
    known = replace(Domain(domain.name, domain.products), **{labelled.part: tuple(left)})
    queried = [examples[row] for row in asked]
    features = _features(guide, labelled, examples, pool)
    cells, above, last = [], {}, None
    for count in shots:
        tell(task, count)
        rng = np.random.default_rng((seed, count))
        supports = [_draw(numbers, pool, count, rng) for _ in range(draws if count else 1)]
        served = []
        for support in supports:
            given = [examples[row] for row in support]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                adapted = guide.adapt(known, 0, support=given, unlabelled=unlabelled)
                if task not in adapted.adapted:
                    break
                answers = adapted.predict(queried)
            said = [labelled.answer(one) for one in answers]
            served.append([one == labels[row] for one, row in zip(said, asked, strict=True)])
            last = adapted
        others = _baselines(features, numbers, supports, asked)
        if served:
            method = guide.serving[task].method
            right = np.array(served)
            cells.append(Cell(method, count, _interval(right, asked)))
            best = max(others, key=lambda name: others[name].mean())
            above[count] = best, _difference(right, others[best], asked)
        cells += [Cell(name, count, _interval(right, asked)) for name, right in others.items()]
    unsure = () if last is None else _unsure(last, labelled, left)
    return Evaluation(task, len(classes), len(asked), tuple(cells), above, unsure)


def _draw(
    numbers: np.ndarray, pool: np.ndarray, shots: int, rng: np.random.Generator
) -> Int[np.ndarray, " support"]:
    """Return rows of the pool, `shots` of each class, or all of a class that has fewer."""
    rows = [rng.permutation(pool[numbers[pool] == number])[:shots] for number in np.unique(numbers)]
    return np.concatenate(rows)


def _features(
    guide: Guide, labelled: _Labelled, examples: Sequence[Any], pool: np.ndarray
) -> dict[str, Any]:
    """Return the features of all examples that baselines read, keyed by the baseline's name."""
    texts = [labelled.text(one) for one in examples]
    tfidf = baselines.fit_tfidf([texts[row] for row in pool])
    found = {"tf-idf few-shot": tfidf.transform(texts)}
    vectors = guide.reading.reader.vectors
    if vectors is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rows = np.asarray(vectors(texts), np.float64)
        centred = rows - rows[pool].mean(0)
        found["logistic on its vectors"] = sparse.csr_matrix(centred / rows[pool].std())
    return found


def _baselines(
    features: Mapping[str, Any],
    numbers: np.ndarray,
    supports: Sequence[np.ndarray],
    asked: np.ndarray,
) -> dict[str, Correct]:
    """Return where each baseline is right."""
    query = np.broadcast_to(asked, (len(supports), len(asked)))
    often = np.bincount(numbers[asked]).argmax()
    found = {"majority": np.broadcast_to(numbers[asked] == often, query.shape)}
    if len(supports[0]):
        for name, rows in features.items():
            raw = baselines.few_shot(rows, numbers, np.stack(supports), query)
            found[name] = raw["predicted"][0, 0] == numbers[query]
    return found


def _unsure(adapted: Any, labelled: _Labelled, left: Sequence[Any]) -> tuple[str, ...]:
    """Return the ids of the examples without a label of which the guide is least sure."""
    bare = [one for one in left if labelled.is_bare(one)][:MOST_BARE]
    answers = adapted.predict(bare)
    order = np.argsort([labelled.sure(one) for one in answers], kind="stable")
    return tuple(bare[row].id for row in order[:UNSURE])


def _entries(right: Correct, asked: np.ndarray) -> tuple[np.ndarray, np.ndarray, Any]:
    """Return scores, examples and draws, flat, as the bootstrap reads them; one draw is none."""
    draws, queries = right.shape
    of_draws = np.repeat(np.arange(draws), queries) if draws > 1 else None
    return right.ravel() * 1.0, np.tile(asked, draws), of_draws


def _interval(right: Correct, asked: np.ndarray) -> Interval:
    values, ids, draws = _entries(right, asked)
    return bootstrap_interval(values, ids, draws)


def _difference(right: Correct, other: Correct, asked: np.ndarray) -> Interval:
    values, ids, draws = _entries(right, asked)
    return paired_bootstrap(values, other.ravel() * 1.0, ids, draws)
