"""What a guide knows of a shop's own domain, and what each further label buys."""

import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int, Shaped
from scipy import sparse

from metaguide.choosing import CANDIDATES, best
from metaguide.data.catalogue import CatalogueError, Domain, Question
from metaguide.data.histories import History, histories
from metaguide.data.repeats import without_repeats
from metaguide.data.texts import product_text
from metaguide.evaluation import baselines
from metaguide.evaluation.metrics import (
    Interval,
    bootstrap_interval,
    ndcg,
    paired_bootstrap,
    ranks_of,
)
from metaguide.guide import Guide
from metaguide.scoring import answer_scores
from metaguide.tasks import CLASSIFICATION, QUESTIONS, RECOMMENDATION, TASKS
from metaguide.tasks.question_answering import question_examples
from metaguide.tasks.task import Labels, Task

UNSURE = 10
"""Number of examples without a label that an evaluation asks for."""

MOST_BARE = 1000
"""Number of examples without a label that it looks at."""

MOST_POOL = 20_000
"""Most labelled examples to draw from, of all classes together; a large shop has a million."""

MOST_SCALED = 1000
"""Number of examples to draw from whose vectors say how the baseline on vectors scales them."""

SERVED = "guide"
"""Name of what serves: the guide by the method that was chosen for it."""

Peer = Callable[[Sequence[str], Sequence[str], Sequence[str]], Sequence[str]]
"""(texts of the examples, their classes, texts that are asked) -> the class of each text asked."""

Scores = Shaped[np.ndarray, "draws queries"]
"""The score of each example that is asked, in each draw."""


class Cell(NamedTuple):
    """How a method did.

    Attributes:
        method: `SERVED`, the guide's own method for the task, or a baseline.
        shots: number of examples of each class that it saw, of each user's products, or of
            questions.
        score: mean of the evaluation's metric, and its 95% interval over examples and draws.
    """

    method: str
    shots: int
    score: Interval


class Unsure(NamedTuple):
    """An example without a label, and what the guide says of it.

    Attributes:
        id: its id.
        text: its text.
        answer: the guide's answer.
        probability: the probability of that answer.
    """

    id: str
    text: str
    answer: str
    probability: float


class Evaluation(NamedTuple):
    """A guide on one task of a domain, beside baselines on the same examples.

    Attributes:
        task: name of the task.
        metric: what is measured, "accuracy", "NDCG@10" or "F1".
        classes: number of its classes, of the products that are ranked, or of the texts that are
            asked about.
        asked: number of examples, or of users, that were held back and asked.
        cells: one for each method and number of shots, those of `SERVED` first; the guide's own
            method has some if another one was chosen.
        served: keyed by shots, the methods that were chosen, and in how many draws.
        above: keyed by shots, by how much what served is above the best baseline, with the paired
            95% interval.
        unsure: the examples without a label that the guide is least sure of, to label next.
    """

    task: str
    metric: str
    classes: int
    asked: int
    cells: tuple[Cell, ...]
    served: Mapping[int, Mapping[str, int]]
    above: Mapping[int, tuple[str, Interval]]
    unsure: tuple[Unsure, ...]


def evaluate(
    guide: Guide,
    domain: Domain,
    shots: Sequence[int] = (0, 1, 5, 10, 20),
    *,
    draws: int = 5,
    queries: int = 500,
    unlabelled: int = 0,
    seed: int = 0,
    candidates: Sequence[str] = CANDIDATES,
    peers: Mapping[str, Peer] = MappingProxyType({}),
    tell: Callable[[str, int], None] = lambda task, shots: None,
) -> list[Evaluation]:
    """Adapt a guide to some of a domain's labels, and ask it the others.

    Half of the examples of each class are held back, and the same ones are asked of every method.
    From the other half, `MOST_POOL` examples at most, each draw takes `shots` of each class, and
    what serves is chosen by these alone, as `metaguide.choosing.best` does. Baselines see the same
    examples: a logistic regression on TF-IDF, whose vocabulary and IDF are of the half that is not
    held back, the same on the guide's vectors if it reads those of a pretrained encoder, the
    nearest category by the n-grams of its name and its examples, the most frequent class of the
    examples asked, and any `peers`.

    Of each user of several products the last one is held back and ranked among all that the user
    did not take, after the last `shots` of the others. Baselines are the popularity in the whole
    domain, and the likeness of texts by TF-IDF.

    Of the texts that questions are about, half are held back with all their questions. The guide
    adapts to `shots` questions about the others. Baselines are to answer nothing, and the sentence
    nearest to the question by TF-IDF.

    Args:
        guide: the guide, not adapted.
        domain: the domain.
        shots: numbers of examples of each class, of a user's products, or of questions; where
            there are fewer, all are given.
        draws: number of draws for each of them.
        queries: most examples that are asked.
        unlabelled: as in `Guide.adapt`.
        seed: seed of the split and of the draws.
        candidates: methods that may take the place of the guide's own; () for none.
        peers: other ways to learn from the same examples, keyed by name; each is a baseline of
            classification and sentiment wherever there are examples.
        tell: called with a task and a number of shots before they are evaluated.

    Returns:
        An evaluation of each of classification and sentiment that the domain has examples of at
        least two classes for, of recommendation if a user took several products, and of questions
        if the guide answers any and there are some about several texts.

    Raises:
        CatalogueError: it has them for none.
    """
    found = []
    with warnings.catch_warnings(action="ignore"):
        distinct = without_repeats(domain)  # a repeat of what is held back would tell its label
    for task in TASKS.values():
        if task.labels is None or task.name not in guide.serving:
            continue
        split = _split(task, task.labels, domain, queries, np.random.default_rng(seed))
        if len(split.classes) > 1 and len(split.asked):
            settings = shots, draws, unlabelled, seed, candidates, peers, tell
            found.append(_of_task(guide, distinct, split, *settings))
    users = [one for one in histories(domain.interactions) if len(one.products) > 1]
    if RECOMMENDATION.name in guide.serving and users:
        asked = np.random.default_rng(seed).permutation(len(users))[:queries]
        of_users = [users[row] for row in asked]
        found.append(_of_users(guide, domain, of_users, shots, candidates, tell))
    if QUESTIONS.name in guide.serving:
        of_texts = _of_questions(guide, domain, shots, draws, queries, seed, tell)
        found += [] if of_texts is None else [of_texts]
    if not found:
        raise CatalogueError(
            f"domain {domain.name}: no two products of each of two categories, no two reviews "
            "of each sentiment, no user of two products and, for a guide that answers them, no "
            "questions about two texts; label some."
        )
    return found


class _Split(NamedTuple):
    """The examples of a task, and who reads them.

    Attributes:
        task: the task.
        labels: how its labels are read.
        examples: the examples with a label, to draw from or to ask.
        numbers: their labels, numbers of classes.
        classes: names of the classes.
        pool: the rows to draw from.
        asked: the rows to ask.
    """

    task: Task
    labels: Labels
    examples: Sequence[Any]
    numbers: Int[np.ndarray, " examples"]
    classes: Sequence[str]
    pool: Int[np.ndarray, " pool"]
    asked: Int[np.ndarray, " asked"]


def _split(
    task: Task, labels: Labels, domain: Domain, queries: int, rng: np.random.Generator
) -> _Split:
    """Split examples in halves, of each class, the larger one to draw from and the other to ask.

    Of both there are no more than an evaluation can read: `MOST_POOL` and `queries`.
    """
    with warnings.catch_warnings(action="ignore"):
        examples = labels.distinct(domain)
    said = [labels.label(one) for one in examples]
    classes = sorted(set(said))
    numbers = np.array([classes.index(label) for label in said], int)
    pool, asked = [np.empty(0, int)], [np.empty(0, int)]
    for number in range(len(classes)):
        rows = rng.permutation(np.flatnonzero(numbers == number))
        half = -(-len(rows) // 2)
        pool.append(rows[: min(half, -(-MOST_POOL // len(classes)))])
        asked.append(rows[half:])
    kept = np.concatenate([*pool, rng.permutation(np.concatenate(asked))[:queries]])
    places, most = np.arange(len(kept)), sum(map(len, pool))
    of_kept = [examples[row] for row in kept]
    return _Split(task, labels, of_kept, numbers[kept], classes, places[:most], places[most:])


class _Answered(NamedTuple):
    """How the guide and the baselines did with one number of shots.

    Attributes:
        methods: what served in each draw; empty if the guide did not answer.
        guide: the scores of `SERVED`, and of the guide's own method if another one served; empty
            if it did not answer.
        baselines: the scores of each baseline.
    """

    methods: Sequence[str]
    guide: Mapping[str, Scores]
    baselines: Mapping[str, Scores]


def _evaluation(
    task: str,
    metric: str,
    classes: int,
    asked: Int[np.ndarray, " queries"],
    shots: Sequence[int],
    tell: Callable[[str, int], None],
    answered: Callable[[int], _Answered],
) -> Evaluation:
    """Evaluate a task with each number of shots; `shots` and `tell` are those of `evaluate`.

    Args:
        task, metric, classes: those of the evaluation.
        asked: what is asked, as numbers; the bootstrap draws equal ones together.
        answered: number of shots -> how everyone did.
    """
    cells, served, above = [], {}, {}
    for count in shots:
        tell(task, count)
        methods, found, others = answered(count)
        if methods:
            served[count] = dict(Counter(methods))
            strongest = max(others, key=lambda name: others[name].mean())
            above[count] = strongest, _difference(found[SERVED], others[strongest], asked)
        every = {**found, **others}
        cells += [Cell(name, count, _interval(rows, asked)) for name, rows in every.items()]
    return Evaluation(task, metric, classes, len(asked), tuple(cells), served, above, unsure=())


def _of_task(
    guide: Guide,
    domain: Domain,
    split: _Split,
    shots: Sequence[int],
    draws: int,
    unlabelled: int,
    seed: int,
    candidates: Sequence[str],
    peers: Mapping[str, Peer],
    tell: Callable[[str, int], None],
) -> Evaluation:
    """Evaluate one task on a domain without repeats; the others are those of `evaluate`."""
    task, part, asked = split.task.name, split.task.part, split.asked
    held_back = {split.examples[row].id for row in asked}
    left = [one for one in getattr(domain, part) if one.id not in held_back]
    known = replace(Domain(domain.name, domain.products), **{part: tuple(left)})
    supports = {count: _supports(split, count, draws, seed) for count in shots}
    drawn = np.concatenate([split.pool[:0], *(rows for s in supports.values() for rows in s)])
    features, named = _features(guide, split, drawn), _ngrams(split)
    own, last = guide.serving[task].method, None

    @cache
    def domain_read() -> Any:
        return guide.adapt(known, 0)

    def adapted_to(given: Sequence[Any]) -> Any:
        if unlabelled:
            return guide.adapt(known, 0, support=given, unlabelled=unlabelled)
        return domain_read().adapt(given)  # a domain may be large

    def answered(count: int) -> _Answered:
        nonlocal last
        methods, right = [], {SERVED: [], own: []}
        for support in supports[count]:
            given = [split.examples[row] for row in support]
            with warnings.catch_warnings(action="ignore"):
                adapted = adapted_to(given)
                if task not in adapted.adapted:
                    break
                last, choices = best(adapted, candidates) if candidates else (adapted, {})
                methods.append(choices[task].method if task in choices else own)
                right[own].append(_right(adapted, split))
                is_own = methods[-1] == own
                right[SERVED].append(right[own][-1] if is_own else _right(last, split))
        found = {name: np.stack(rows) for name, rows in right.items() if rows}
        if {*methods} == {own}:
            del found[own]
        others = _baselines(features, named, split, supports[count])
        if count:
            for name, peer in peers.items():
                others[name] = np.stack([_right_of(peer, split, rows) for rows in supports[count]])
        return _Answered(methods, found, others)

    classes = len(split.classes)
    found = _evaluation(task, "accuracy", classes, asked, shots, tell, answered)
    return found._replace(unsure=() if last is None else _unsure(last, split.labels, left))


def _of_users(
    guide: Guide,
    domain: Domain,
    asked: Sequence[History],
    shots: Sequence[int],
    candidates: Sequence[str],
    tell: Callable[[str, int], None],
) -> Evaluation:
    """Evaluate recommendation; the other arguments are those of `evaluate`.

    Args:
        asked: the histories of the users whose last product is held back.
    """
    task = RECOMMENDATION.name
    own = guide.serving[task].method
    guide = replace(guide, serving={task: guide.serving[task]})
    index = {product.id: row for row, product in enumerate(domain.products)}
    held_back = {(one.user, one.products[-1]) for one in asked}
    left = [one for one in domain.interactions if (one.user, one.product) not in held_back]
    known = Domain(domain.name, domain.products, interactions=tuple(left))
    users, query = np.arange(len(asked)), np.array([[index[one.products[-1]]] for one in asked])
    texts = [product_text(product) for product in domain.products]
    features = baselines.fit_tfidf(texts).transform(texts)
    numbers = {one.user: number for number, one in enumerate(asked)}
    taken = np.array(
        [
            (numbers.setdefault(one.user, len(numbers)), index[product])
            for one in histories(domain.interactions)
            for product in one.products
        ]
    )

    compete = np.ones((len(asked), len(index)), bool)
    for row, one in zip(compete, asked, strict=True):
        row[[index[product] for product in one.products[:-1]]] = False

    def gains(adapted: Any, before: Sequence[History]) -> Scores:
        scores = np.full(compete.shape, -np.inf)
        for row, ranking in zip(scores, adapted.predict(before), strict=True):
            row[ranking.rows] = ranking.scores
        has_score = compete & np.isfinite(scores)
        return ndcg(ranks_of(scores, query[:, 0], has_score, np.random.default_rng(0)), 10)[None]

    def answered(count: int) -> _Answered:
        before = [replace(one, products=_last(one.products[:-1], count)) for one in asked]
        rows = [np.array([index[product] for product in one.products], int) for one in before]
        others = {"popularity": baselines.popularity(taken, query, users, compete)}
        if count:
            longest = max(map(len, rows))
            given = np.stack([np.pad(r, (0, longest - len(r)), constant_values=-1) for r in rows])
            others["content"] = baselines.content(features, given, query, users, compete)
        ranked = {name: ndcg(raw["rank"][0, 0, :, 0], 10)[None] for name, raw in others.items()}
        with warnings.catch_warnings(action="ignore"):
            adapted = guide.adapt(known, count)
            if task not in adapted.adapted:
                return _Answered((), {}, ranked)
            last, choices = best(adapted) if candidates else (adapted, {})
            method = choices[task].method if choices else own
            found = {SERVED: gains(last, before)}
            if method != own:
                found[own] = gains(adapted, before)
        return _Answered([method], found, ranked)

    return _evaluation(task, "NDCG@10", len(index), users, shots, tell, answered)


def _of_questions(
    guide: Guide,
    domain: Domain,
    shots: Sequence[int],
    draws: int,
    queries: int,
    seed: int,
    tell: Callable[[str, int], None],
) -> Evaluation | None:
    """Evaluate question answering, or return None if fewer than two texts are asked about.

    The other arguments are those of `evaluate`. All questions about a text are on one side.
    """
    task = QUESTIONS.name
    with warnings.catch_warnings(action="ignore"):
        examples = question_examples(domain, guide.reading)
    numbers = {text: row for row, text in enumerate(dict.fromkeys(one.text for one in examples))}
    if len(numbers) < 2:
        return None
    rng = np.random.default_rng(seed)
    of_text = rng.permutation(len(numbers))[[numbers[one.text] for one in examples]]
    rows = rng.permutation(len(examples))
    is_asked = of_text[rows] >= -(-len(numbers) // 2)
    pool, asked = rows[~is_asked], rows[is_asked][:queries]

    def of_rows(which: Int[np.ndarray, " rows"]) -> list[Question]:
        return [examples[row] for row in which]

    guide = replace(guide, serving={task: guide.serving[task]})
    known = Domain(domain.name, domain.products, questions=tuple(of_rows(pool)))
    questions, texts, golds = zip(
        *[(one.question, one.text, one.golds) for one in examples], strict=True
    )
    tfidf = baselines.fit_tfidf([text for row in pool for text in (questions[row], texts[row])])
    has_answer = np.array([bool(gold) for gold in golds])
    raw = {
        "abstain": baselines.abstain(has_answer, asked[None]),
        "best sentence": baselines.best_sentence(tfidf, questions, texts, golds, asked[None]),
    }

    def answered(count: int) -> _Answered:
        of_shots = np.random.default_rng((seed, count))
        supports = [of_shots.permutation(pool)[:count] for _ in range(draws if count else 1)]
        found = []
        for support in supports:
            with warnings.catch_warnings(action="ignore"):
                adapted = guide.adapt(known, 0, support=of_rows(support))
                if task not in adapted.adapted:
                    break
                said = [answer.text or "" for answer in adapted.predict(of_rows(asked))]
            found.append(
                [answer_scores(one, golds[row])[1] for one, row in zip(said, asked, strict=True)]
            )
        shape = len(supports), len(asked)
        others = {name: np.broadcast_to(one["f1"][0, 0], shape) for name, one in raw.items()}
        methods = [guide.serving[task].method] * len(found)
        return _Answered(methods, {SERVED: np.array(found)} if found else {}, others)

    numbered = of_text[asked]
    return _evaluation(task, "F1", len(set(numbered)), numbered, shots, tell, answered)


def _last(products: Sequence[str], count: int) -> tuple[str, ...]:
    return tuple(products[-count:]) if count else ()


def _right(adapted: Any, split: _Split) -> Bool[np.ndarray, " queries"]:
    """Return for each example that is asked whether the guide gives its label."""
    answers = adapted.predict([split.examples[row] for row in split.asked])
    return _agreeing([split.labels.answer(one) for one in answers], split)


def _right_of(
    peer: Peer, split: _Split, support: Int[np.ndarray, " support"]
) -> Bool[np.ndarray, " queries"]:
    """Return for each example that is asked whether a peer gives its label."""
    given, asked = (
        [split.labels.text(split.examples[row]) for row in rows] for rows in (support, split.asked)
    )
    return _agreeing(peer(given, _names(split, support), asked), split)


def _agreeing(said: Sequence[str], split: _Split) -> Bool[np.ndarray, " queries"]:
    """Return for each example that is asked whether what is said is its label."""
    wanted = _names(split, split.asked)
    return np.array([one == other for one, other in zip(said, wanted, strict=True)])


def _names(split: _Split, rows: Int[np.ndarray, " rows"]) -> list[str]:
    """Return the labels of some examples."""
    return [split.classes[int(number)] for number in split.numbers[rows]]


def _supports(
    split: _Split, shots: int, draws: int, seed: int
) -> list[Int[np.ndarray, " support"]]:
    """Return rows of the pool for each draw; without shots there is one, of none."""
    rng = np.random.default_rng((seed, shots))
    return [_draw(split, shots, rng) for _ in range(draws if shots else 1)]


def _draw(split: _Split, shots: int, rng: np.random.Generator) -> Int[np.ndarray, " support"]:
    """Return rows of the pool, `shots` of each class, or all of a class that has fewer."""
    numbers = split.numbers[split.pool]
    rows = [
        rng.permutation(split.pool[numbers == number])[:shots]
        for number in range(len(split.classes))
    ]
    return np.concatenate(rows)


def _features(guide: Guide, split: _Split, drawn: Int[np.ndarray, " rows"]) -> dict[str, Any]:
    """Return the features of examples that baselines read, keyed by the baseline's name.

    Vectors take long to compute: those of examples that are neither drawn nor asked are 0.
    """
    texts = [split.labels.text(one) for one in split.examples]
    tfidf = baselines.fit_tfidf([texts[row] for row in split.pool])
    found = {"tf-idf few-shot": tfidf.transform(texts)}
    vectors = guide.reading.reader.vectors
    if vectors is not None:
        some = np.random.default_rng(0).permutation(split.pool)[:MOST_SCALED]
        read = np.unique(np.concatenate([some, split.asked, drawn]))
        with warnings.catch_warnings(action="ignore"):
            rows = np.asarray(vectors([texts[row] for row in read]), np.float64)
        of_pool = rows[np.isin(read, some)]
        centred = np.zeros((len(texts), rows.shape[1]))
        centred[read] = (rows - of_pool.mean(0)) / of_pool.std()
        found["logistic on its vectors"] = sparse.csr_matrix(centred)
    return found


def _ngrams(split: _Split) -> tuple[Any, Any] | None:
    """Return the n-grams of examples and of the names of classes, or None if names say nothing."""
    if split.task.name != CLASSIFICATION.name:
        return None
    texts = [split.labels.text(one) for one in split.examples]
    ngrams = baselines.fit_ngrams([texts[row] for row in split.pool])
    return ngrams.transform(texts), ngrams.transform(split.classes)


def _baselines(
    features: Mapping[str, Any],
    named: tuple[Any, Any] | None,
    split: _Split,
    supports: Sequence[np.ndarray],
) -> dict[str, Scores]:
    """Return where each baseline is right."""
    numbers, asked = split.numbers, split.asked
    query = np.broadcast_to(asked, (len(supports), len(asked)))
    given = np.stack(supports) if len(supports[0]) else None
    often = np.bincount(numbers[asked]).argmax()
    found = {"majority": np.broadcast_to(numbers[asked] == often, query.shape)}
    raws = {}
    if named is not None:
        classes = np.broadcast_to(np.arange(len(split.classes)), (len(query), len(split.classes)))
        raws["nearest by n-grams"] = baselines.nearest_class(*named, numbers, query, classes, given)
    if given is not None:
        for name, rows in features.items():
            raws[name] = baselines.few_shot(rows, numbers, given, query)
    return found | {name: raw["predicted"][0, 0] == numbers[query] for name, raw in raws.items()}


def _unsure(adapted: Any, labels: Labels, left: Sequence[Any]) -> tuple[Unsure, ...]:
    """Return the examples without a label of which the guide is least sure."""
    bare = [one for one in left if labels.is_bare(one)][:MOST_BARE]
    answers = adapted.predict(bare)
    found = [
        Unsure(one.id, labels.text(one), labels.answer(answer), labels.probability(answer))
        for one, answer in zip(bare, answers, strict=True)
    ]
    return tuple(sorted(found, key=lambda one: one.probability)[:UNSURE])


def _entries(right: Scores, asked: np.ndarray) -> tuple[np.ndarray, np.ndarray, Any]:
    """Return scores, examples and draws, flat, as the bootstrap reads them; one draw is none."""
    draws, queries = right.shape
    of_draws = np.repeat(np.arange(draws), queries) if draws > 1 else None
    return right.ravel() * 1.0, np.tile(asked, draws), of_draws


def _interval(right: Scores, asked: np.ndarray) -> Interval:
    values, ids, draws = _entries(right, asked)
    return bootstrap_interval(values, ids, draws)


def _difference(right: Scores, other: Scores, asked: np.ndarray) -> Interval:
    values, ids, draws = _entries(right, asked)
    return paired_bootstrap(values, other.ravel() * 1.0, ids, draws)
