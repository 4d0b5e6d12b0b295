"""Sentiment of reviews of a shop's new category, from other categories and a few of its own.

python -m experiments.tables.reviews
python -m experiments.tables.reviews --config=experiments/configs/reviews_en.py
python -m experiments.tables.reviews --config.encoder.weights=FOLDER \\
    --config.encoder.prefix="query: "

By default each of ten Chinese categories is held out in turn; `config.held_out` names categories
that are held out together. Zero-shot by heads that the others taught, and adapted to 5 + 5 and 20 +
20 reviews by a map head with its guard. Everything that is chosen is chosen on source categories,
each left out in turn; `choices.json` in the work folder says what. Without
`--config.encoder.weights` the table has the methods from nothing alone. With
`--config.tuned.epochs=1` the reviews of the sources also train the encoder, once for each of
`config.tuned.seeds`, and what is chosen of it is chosen on the sources that were held back from it.
A table that was interrupted goes on from the first head that was not trained.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from ml_collections.config_dict import FrozenConfigDict
from scipy import sparse

from experiments import runner
from experiments.config_files import ConfigError
from experiments.encoders import Pretrained, read_encoder
from experiments.modules import COMMANDS
from experiments.reports.terminal import print_tables
from experiments.run_folder import claimed, finished, write_results
from experiments.sources import Reviews, reviews_of
from experiments.tables.left_out import (
    Corpus,
    Gram,
    Heads,
    Keep,
    Rule,
    Task,
    Weigh,
    adapted,
    choice,
    corpus_of,
    dense_logits,
    gram_of,
    identity_of,
    kept_in,
    no_keeping,
    rule_of,
    sparse_logits,
    supports,
    taken,
    task_of,
    tfidf,
    weighted_ngrams,
    with_unlabelled,
    zero_shot,
)
from experiments.tables.tuned_sentiment import Taught, taught_encoder
from metaguide.data.catalogue import Review
from metaguide.evaluation.metrics import bootstrap, half_of_mean, mean_interval
from metaguide.evaluation.results import Row, Scores, key, with_baselines
from metaguide.evaluation.rows import ONCE
from metaguide.files import write_json
from metaguide.training.progress import say

TASK = "sentiment"

BASELINES = ("majority", "tf-idf zero-shot", "tf-idf few-shot")
"""Names of the baselines of this table."""

TUNED = ("fine-tuned encoder", "fine-tuned encoder + n-grams")
"""Names of the methods whose encoder the reviews of sources trained."""

ALL = "all"
"""The domain of the rows of all categories."""

_TEST, _RULE = 0, 1


class Outcome(NamedTuple):
    """Answers of a method in one category at one number of shots.

    Attributes:
        label: of all reviews of the category.
        query: numbers of the reviews asked for.
        logits: the answers.
        before: the method's logits of the same reviews without adaptation; None if it has none.
        pays: in which episodes the guard let it adapt; None if there was nothing to adapt.
    """

    label: Int[np.ndarray, " reviews"]
    query: Int[np.ndarray, "episodes queries"]
    logits: Float[np.ndarray, "episodes queries"]
    before: Float[np.ndarray, "episodes queries"] | None = None
    pays: Bool[np.ndarray, " episodes"] | None = None


Outcomes = dict[tuple[str, int], list[tuple[Outcome, ...]]]
"""By method and shots, for each category that is held out, in order of groups: an outcome for each
seed of the method's encoder, or one if its encoder is not trained."""


def read(config: FrozenConfigDict) -> list[tuple[Corpus, Corpus, list[str]]]:
    """Read the reviews, each text once over all categories of a part.

    Returns:
        For each part of the reviews: all of them; those that are tested, in an order that was
        drawn; and the texts of these.

    Raises:
        ConfigError: a category has too few reviews for the shots, or there is no such set of
            reviews or category in it.
        CatalogueError: the reviews are missing or invalid.
    """
    parts = reviews_of(config.reviews)
    known = [name for part in parts for name in part.domains]
    if odd := sorted(set(config.held_out) - set(known)):
        raise ConfigError(
            f"config.held_out names {odd[0]!r}, which the reviews do not have; they have "
            f"{', '.join(known)}"
        )
    return [_corpora(config, part) for part in parts]


def _corpora(config: FrozenConfigDict, reviews: Reviews) -> tuple[Corpus, Corpus, list[str]]:
    """Return a part of the reviews as `read` does."""
    domains, ngrams = reviews.domains, config.ngrams
    groups = groups_of(config.held_out, tuple(domains))
    rng = np.random.default_rng(config.seed)
    drawn: list[Review] = []
    category, rank = [], []
    for number, domain in enumerate(domains.values()):
        order = rng.permutation(len(domain.reviews))
        drawn += [domain.reviews[i] for i in order]
        category += [number] * len(order)
        # Where the support is fixed, so are the reviews that are tested.
        rank += [0] * len(order) if domain.name in reviews.support else range(len(order))
    label = [int(review.sentiment == "positive") for review in drawn]
    texts = [review.text for review in drawn]
    everything = corpus_of(
        tuple(domains), groups, category, label, texts, ngrams.longest, ngrams.unit
    )
    row = {review.id: number for number, review in enumerate(drawn)}
    support = {
        number: np.array(sorted((row[one] for one in reviews.support[name]), key=label.__getitem__))
        for number, name in enumerate(domains)
        if name in reviews.support
    }
    everything = everything._replace(support=support)
    tested = np.flatnonzero(np.asarray(rank) < (config.per_category or len(texts)))
    corpus = taken(everything, tested)
    for number in (one for group in groups for one in group):
        _check_shots(config, corpus, number)
    return everything, corpus, [texts[row] for row in tested]


def _check_shots(config: FrozenConfigDict, corpus: Corpus, number: int) -> None:
    """Check that a held-out category has the examples that it is adapted to, and others."""
    name = corpus.names[number]
    if (fixed := corpus.support.get(number)) is not None:
        if odd := set(config.shots) - {0, len(fixed) // 2}:
            raise ConfigError(
                f"config.shots is {config.shots}: the support of {name} is fixed, and has "
                f"{len(fixed) // 2} reviews of each sentiment; leave out {min(odd)}"
            )
        return
    fewest = min(np.bincount(corpus.label[corpus.rows(number)], minlength=2))
    if fewest <= max(config.shots):
        raise ConfigError(
            f"config.shots is {config.shots}: {name} has {fewest} reviews of one sentiment "
            f"among config.per_category={config.per_category}; give fewer shots than that, or "
            "more reviews a category"
        )


def groups_of(held_out: Sequence[str], names: Sequence[str]) -> list[list[int]]:
    """Return the numbers of the categories that are held out together.

    Args:
        held_out: names of one group, of which there may be others; if empty, each category is a
            group.
        names: of all categories.

    Raises:
        ConfigError: fewer than two are left to learn from.
    """
    if not held_out:
        return [[number] for number in range(len(names))]
    group = [number for number, name in enumerate(names) if name in held_out]
    if len(group) > len(names) - 2:
        raise ConfigError("config.held_out leaves fewer than two categories to learn from")
    return [group]


# ------------------------------------------------------------------------------ methods


class Known(NamedTuple):
    """What sources teach of a held-out category, by one method.

    Attributes:
        logits: [groups, reviews], as of `zero_shot`.
        gram: (category, categories left out) -> its reviews' inner products.
        fixed: whether these are the same whatever is left out, as an encoder's are.
        others: which reviews did not teach its encoder, so that choices can be made on them; None
            for all.
        seed: of the training of its encoder; None if that is not trained.
    """

    logits: Float[np.ndarray, "groups reviews"]
    gram: Callable[[int, tuple[int, ...]], Gram]
    fixed: bool
    others: Bool[np.ndarray, " reviews"] | None = None
    seed: int | None = None


Methods = dict[str, tuple[Known, ...]]
"""By name, what is known by a method, for each seed of its encoder."""


def methods_of(
    config: FrozenConfigDict,
    everything: Corpus,
    corpus: Corpus,
    choices: dict[str, Any],
    taught: Sequence[Taught] = (),
    keep: Keep = no_keeping,
) -> Methods:
    """Train the heads of all methods, and choose among them on source categories.

    Args:
        config: the resolved config.
        everything: the reviews that n-grams learn from.
        corpus: the reviews that are tested and that choices are made on, with or without vectors.
        choices: category -> method -> what was chosen; is filled.
        taught: what the encoder says after training on reviews of the sources, for each seed.
        keep: what keeps the logits of heads.
    """
    note = partial(_note, choices, corpus)
    weigh = partial(weighted_ngrams, least_texts=config.ngrams.least_texts)
    ngram_heads, ngram_gram = of_counts(everything, corpus, weigh)
    kept = keep("n-grams", ngram_heads)
    ngrams, penalties = zero_shot(corpus, kept, config.ngrams.penalties)
    note("n-grams", "penalty", penalties)
    ngram_gram = lru_cache(maxsize=len(corpus.names))(ngram_gram)  # the pairs of one category
    found: Methods = {"n-grams": (Known(ngrams, ngram_gram, fixed=False),)}
    if corpus.vectors is None:
        return found

    vectors = corpus.vectors / np.sqrt(np.square(corpus.vectors).mean(1, keepdims=True) + 1e-9)

    def encoder_heads(out: tuple[int, ...], rows: np.ndarray, penalties: Sequence[float]):
        others = corpus.others(*out)
        own = partial(dense_logits, vectors[others], corpus.label[others], vectors[rows])
        return [own(penalty) for penalty in penalties]

    kept = keep("encoder", encoder_heads)
    encoder, chosen = zero_shot(corpus, kept, config.encoder.penalties)
    note("encoder", "penalty", chosen)
    found["encoder"] = (Known(encoder, _grams_of(corpus, vectors), fixed=True),)
    both, shares = with_ngrams(config, corpus, *found["encoder"], ngrams)
    note("encoder + n-grams", "share", shares)
    found["encoder + n-grams"] = (both,)
    for one in taught:
        known = Known(one.logits[None], _grams_of(corpus, one.vectors), True, one.others, one.seed)
        # Of sources that were held back, n-grams may not know more than the encoder.
        beside, of_sources = ngrams.copy(), np.flatnonzero(one.others)
        of_sources = np.setdiff1d(of_sources, corpus.rows(*corpus.groups[0]))
        teaching = taken(corpus._replace(support={}), np.flatnonzero(~one.others))
        heads, _ = of_counts(teaching, corpus, weigh)
        (beside[0, of_sources],) = heads(corpus.groups[0], of_sources, penalties)
        both, shares = with_ngrams(config, corpus, known, beside)
        note(label_of(TUNED[1], both), "share", shares)
        for name, of_seed in zip(TUNED, (known, both), strict=True):
            found[name] = (*found.get(name, ()), of_seed)
    return found


def label_of(name: str, known: Known) -> str:
    """Return what `choices.json` calls a method, of which there may be one for each seed."""
    return name if known.seed is None else f"{name}, seed {known.seed}"


def _grams_of(corpus: Corpus, vectors: np.ndarray) -> Callable[[int, tuple[int, ...]], Gram]:
    """Return the inner products of vectors of a category's reviews, each computed once."""

    @cache
    def gram(category: int) -> Gram:
        return gram_of(vectors[corpus.rows(category)])

    return lambda category, _: gram(category)


def with_ngrams(
    config: FrozenConfigDict,
    corpus: Corpus,
    known: Known,
    ngrams: Float[np.ndarray, "groups reviews"],
) -> tuple[Known, list[float]]:
    """Return the sum of a method's logits and of those of n-grams, and their share for each group.

    The share is chosen on sources that did not teach the method's encoder.
    """
    shares = config.stack.shares
    stacked = np.stack([known.logits + share * ngrams for share in shares])
    asked, corpus_asked = stacked, corpus
    if known.others is not None:
        rows = np.flatnonzero(known.others)
        asked, corpus_asked = stacked[..., rows], taken(corpus, rows)
    best = [choice(asked, corpus_asked, group) for group in range(len(corpus.groups))]
    both = np.stack([stacked[one, group] for group, one in enumerate(best)])
    return known._replace(logits=both), [shares[one] for one in best]


def tfidf_of(
    config: FrozenConfigDict,
    everything: Corpus,
    corpus: Corpus,
    choices: dict[str, Any],
    keep: Keep = no_keeping,
) -> Known:
    """Return TF-IDF of n-grams of 1 and 2, which learns from all texts of the sources.

    The arguments are those of `methods_of`. A penalty is chosen if there are several.
    """
    heads, gram = of_counts(everything, corpus, tfidf)
    kept = keep("tf-idf", heads)
    logits, chosen = zero_shot(corpus, kept, config.tfidf.penalties, of_sources=False)
    _note(choices, corpus, "tf-idf zero-shot", "penalty", chosen)
    return Known(logits, gram, fixed=False)


def of_counts(
    everything: Corpus, corpus: Corpus, weigh: Weigh
) -> tuple[Heads, Callable[[int, tuple[int, ...]], Gram]]:
    """Return the heads on vectors of counts, and the inner products of these, as `Known` has them.

    What answers for a group learns from all reviews, and what choices are made by from those that
    are tested.

    Args:
        everything, corpus: as of `methods_of`.
        weigh: what makes the vectors.
    """

    def train_of(out: tuple[int, ...]) -> Corpus:
        return everything if out in corpus.groups else corpus

    @lru_cache(maxsize=4)
    def vectors_of(out: tuple[int, ...]) -> Callable[[sparse.csr_array], Any]:
        return weigh(train_of(out), out)

    def heads(out: tuple[int, ...], rows: np.ndarray, penalties: Sequence[float]):
        train = train_of(out)
        vectors, others = vectors_of(out), train.others(*out)
        own, test = vectors(train.counts[others]), vectors(corpus.counts[rows])
        return [sparse_logits(own, train.label[others], test, penalty) for penalty in penalties]

    def gram(category: int, out: tuple[int, ...]) -> Gram:
        return gram_of(vectors_of(out)(corpus.counts[corpus.rows(category)]))

    return heads, gram


def _note(
    choices: dict[str, Any], corpus: Corpus, name: str, field: str, values: Sequence[float]
) -> None:
    """Keep what was chosen of a method for the categories of each group."""
    for group, value in zip(corpus.groups, values, strict=True):
        for one in group:
            choices.setdefault(corpus.names[one], {})[name] = {field: value}


class Learned(NamedTuple):
    """What the sources of all groups teach.

    Attributes:
        methods: name -> what is known.
        baseline: TF-IDF.
        choices: category -> method -> what was chosen.
        tasks: episodes of vectors that are the same whatever is left out; filled by `rule_for`.
    """

    methods: Methods
    baseline: Known
    choices: Mapping[str, Mapping[str, Any]]
    tasks: dict[Any, Task]


def learned_from(
    config: FrozenConfigDict,
    everything: Corpus,
    corpus: Corpus,
    teach: Callable[[], Sequence[Taught]] = tuple,
    keep: Keep = no_keeping,
) -> Learned:
    """Train the heads of all methods and of TF-IDF, and choose among them on source categories.

    Args:
        config, everything, corpus, keep: as of `methods_of`.
        teach: () -> what the encoder says after training, for each seed.
    """
    choices: dict[str, Any] = {}
    methods = methods_of(config, everything, corpus, choices, teach(), keep)
    return Learned(methods, tfidf_of(config, everything, corpus, choices, keep), choices, {})


def taught_by(
    config: FrozenConfigDict,
    pretrained: Pretrained | None,
    corpus: Corpus,
    texts: Sequence[str],
    workdir: Path,
    part: int,
) -> list[Taught]:
    """Train the encoder on the reviews of the sources for each seed, if the config asks for it."""
    if pretrained is None or not config.tuned.epochs:
        return []
    train = partial(taught_encoder, config, pretrained.encoder, corpus, texts)
    return [train(seed, workdir / f"tuned{part}-{seed}") for seed in config.tuned.seeds]


def outcomes_of(
    config: FrozenConfigDict, corpus: Corpus, learned: Learned, group: int
) -> tuple[Outcomes, dict[str, Any]]:
    """Return the outcomes of all methods and baselines in a group, on the same episodes.

    Args:
        config: the resolved config.
        corpus: the reviews that are tested.
        learned: what their sources teach.
        group: number of the group.

    Returns:
        The outcomes, and category -> method -> what was chosen.
    """
    held_out = corpus.groups[group]
    said: dict[str, Any] = {}
    for name in (corpus.names[d] for d in held_out):
        said[name] = {method: dict(one) for method, one in learned.choices[name].items()}
    found: Outcomes = {}
    for shots in config.shots:
        rules: dict[str, list[Rule]] = {}
        for name, known in _each(learned.methods) if shots else ():
            rule = rule_for(config, corpus, known, group, shots, learned.tasks)
            rules.setdefault(name, []).append(rule)
            for d in held_out:
                of_method = said[corpus.names[d]].setdefault(label_of(name, known), {})
                of_method[f"{shots} shots"] = rule._asdict()
        for d in held_out:
            own: dict[str, tuple[Outcome, ...]] = {}
            for name, one in answers(config, corpus, learned, rules, group, d, shots):
                own[name] = (*own.get(name, ()), one)
            for name, of_seeds in own.items():
                found.setdefault((name, shots), []).append(of_seeds)
    say(f"{', '.join(corpus.names[d] for d in held_out)}: adapted and answered")
    return found, said


def packed(
    config: FrozenConfigDict, corpus: Corpus, learn: Callable[[], Learned], group: int
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return what `outcomes_of` does, arrays by "method/shots/category/seed/field"."""
    outcomes, said = outcomes_of(config, corpus, learn(), group)
    arrays = {
        f"{method}/{shots}/{d}/{seed}/{field}": array
        for (method, shots), of_categories in outcomes.items()
        for d, of_seeds in enumerate(of_categories)
        for seed, one in enumerate(of_seeds)
        for field, array in one._asdict().items()
        if array is not None
    }
    return arrays, said


def unpacked(arrays: Mapping[str, np.ndarray]) -> Outcomes:
    """Return the outcomes whose arrays were `packed`."""
    fields: dict[tuple[str, int], dict[int, dict[int, dict[str, np.ndarray]]]] = {}
    for place, array in arrays.items():
        method, shots, d, seed, field = place.rsplit("/", 4)
        of_category = fields.setdefault((method, int(shots)), {}).setdefault(int(d), {})
        of_category.setdefault(int(seed), {})[field] = array
    return {
        cell: [tuple(Outcome(**one) for one in of_seeds.values()) for of_seeds in found.values()]
        for cell, found in fields.items()
    }


def _each(methods: Methods) -> Iterator[tuple[str, Known]]:
    """Yield every method's name with what is known by it, seed after seed."""
    return ((name, known) for name, of_seeds in methods.items() for known in of_seeds)


def rule_for(
    config: FrozenConfigDict,
    corpus: Corpus,
    known: Known,
    group: int,
    shots: int,
    tasks: dict[Any, Task],
) -> Rule:
    """Learn how to adapt to the categories of a group, on episodes of its sources.

    Args:
        config, corpus: the config, and the reviews.
        known: of the method.
        group: number of the group.
        shots: of each label.
        tasks: those of vectors that are the same whatever is left out; is filled.

    Raises:
        ConfigError: no source has examples enough.
    """
    own, logits = [], []
    for e in corpus.sources(group):
        rows = corpus.rows(e)
        asked = np.arange(len(rows)) if known.others is None else np.flatnonzero(known.others[rows])
        rows = rows[asked]
        if min(np.bincount(corpus.label[rows], minlength=2)) <= shots:
            continue  # too few to be given some and asked for others
        place = (known.gram, shots, e)
        task = tasks.get(place) if known.fixed else None
        if task is None:
            label = corpus.label[rows]
            draw = supports(label, shots, config.rule.episodes, (config.seed, _RULE, e, shots))
            gram = known.gram(e, corpus.without(group, e))[np.ix_(asked, asked)]
            task = task_of(gram, label, draw, config.rule.queries)
            if known.fixed:
                tasks[place] = task
        own.append(task)
        logits.append(known.logits[group, rows])
    if not own:
        raise ConfigError(
            f"config.shots is {config.shots}: no category to learn from has more than {shots} "
            "reviews of each sentiment; give fewer shots, or a larger config.per_category"
        )
    return rule_of(own, logits, config.rule.penalty, config.rule.steps)


def answers(
    config: FrozenConfigDict,
    corpus: Corpus,
    learned: Learned,
    rules: Mapping[str, Sequence[Rule]],
    group: int,
    d: int,
    shots: int,
) -> Iterator[tuple[str, Outcome]]:
    """Yield the outcomes of all baselines and methods in one category, on the same episodes.

    A method comes once for each seed of its encoder.

    Args:
        config, corpus: the config, and the reviews.
        learned: what their sources teach.
        rules: name -> how to adapt, for each seed; not read without shots.
        group: number of the group of the category.
        d: the held-out category.
        shots: of each label.
    """
    methods, baseline, rows, out = *learned[:2], corpus.rows(d), corpus.groups[group]
    label = corpus.label[rows]
    constant = np.where(label.mean() > 0.5, 1.0, -1.0) * np.ones(len(rows))
    # Where there are no shots, all methods answer all reviews once.
    every, count = np.arange(len(rows)), config.episodes
    draw = supports(label, shots, count if shots else 1, (config.seed, _TEST, d, shots))
    given = draw
    if (fixed := corpus.support.get(d)) is not None:
        given = np.searchsorted(rows, fixed)[None]
        draw = given if shots else draw
    query = np.stack([np.setdiff1d(every, support) for support in given])
    yield "majority", Outcome(label, query, constant[query])
    yield "tf-idf zero-shot", Outcome(label, query, baseline.logits[group, rows][query])
    if not shots:
        for name, known in _each(methods):
            yield name, Outcome(label, query, known.logits[group, rows][query])
        return
    alone = partial(
        adapted, logits=np.zeros(len(rows)), rule=Rule(config.rule.penalty, 1.0), caution=None
    )
    few, _ = alone(task_of(baseline.gram(d, out), label, draw))
    yield "tf-idf few-shot", Outcome(label, query, few)
    tasks: dict[Any, Task] = {}
    for name, of_seeds in methods.items():
        for known, rule in zip(of_seeds, rules[name], strict=True):
            if known.gram not in tasks:
                tasks[known.gram] = task_of(known.gram(d, out), label, draw)
            before = known.logits[group, rows]
            logits, pays = adapted(tasks[known.gram], before, rule, config.caution)
            yield name, Outcome(label, query, logits, before[query], pays)
    if corpus.vectors is not None:
        of_encoder = tasks[methods["encoder"][0].gram]
        yield "encoder alone", Outcome(label, query, alone(of_encoder)[0])
        given = corpus.vectors[rows], label.astype(np.int32), draw.astype(np.int32)
        found = np.asarray(with_unlabelled(*given))
        yield (
            "encoder alone, unlabelled",
            Outcome(label, query, np.take_along_axis(found, query, 1)),
        )


# ------------------------------------------------------------------------------ scores


def f1(
    positive: Float[np.ndarray, "*rows n"],
    label: Int[np.ndarray, "*rows n"],
    weights: Float[np.ndarray, "*rows n"],
) -> Float[np.ndarray, "*rows"]:
    """Return macro-F1 of two classes.

    Args:
        positive: whether, or in which share of the episodes, an entry was taken for positive.
        label: of the entries.
        weights: of the entries.
    """
    both = (weights * positive * label).sum(-1)
    said, true, all_of = ((weights * x).sum(-1) for x in (positive, label, np.ones_like(positive)))
    of_positive = 2 * both / np.maximum(said + true, 1e-12)
    neither = all_of - said - true + both
    of_negative = 2 * neither / np.maximum(2 * all_of - said - true, 1e-12)
    return (of_positive + of_negative) / 2


def measured(outcome: Outcome) -> dict[str, tuple[float, float]]:
    """Return metric -> (mean over episodes, half-width of its 95% interval).

    The interval is over examples, drawn with all their episodes, and over episodes.
    """
    label, query = outcome.label, outcome.query
    asked = np.bincount(query.ravel(), minlength=len(label))
    some = asked > 0

    def over_episodes(values: np.ndarray) -> np.ndarray:
        total = np.bincount(query.ravel(), values.ravel().astype(float), len(label))
        return total[some] / asked[some]

    said = outcome.logits > 0
    right = said == label[query]
    positive, of_some = over_episodes(said), label[some]
    gains = np.zeros(right.shape)
    if outcome.before is not None:
        gains = right.astype(float) - ((outcome.before > 0) == label[query])
    correct, gain = over_episodes(right), over_episodes(gains)

    def statistic(weights: np.ndarray) -> np.ndarray:
        total = weights.sum(1)
        macro = f1(positive, of_some, weights)
        return np.stack([weights @ correct / total, macro, weights @ gain / total], 1)

    halves = bootstrap(statistic, np.arange(len(of_some)))
    of_episode = (right.mean(1), f1(said, label[query], np.ones(said.shape)), gains.mean(1))
    found = {}
    names = ("accuracy", "macro_f1", "gain")
    for name, values, half in zip(names, of_episode, halves, strict=True):
        if name != "gain" or outcome.before is not None:
            chance = mean_interval(values).half or 0.0
            found[name] = (float(values.mean()), float(np.hypot(half, chance)))
    return found


def rows_of(
    config: FrozenConfigDict, names: Sequence[str], outcomes: Outcomes
) -> tuple[list[Row], Scores]:
    """Return the rows of every category and of all, and the scores of reviews without shots.

    "gain" is the accuracy after adaptation minus the method's own before it, on the same reviews,
    "harm" the gain in the category where it is least, and "adapted" the share of the episodes in
    which the guard let it adapt. All are means over the seeds of the method's encoder.
    """
    rows: list[Row] = []
    scores: Scores = {}
    for (method, shots), of_categories in outcomes.items():
        (first, *more) = of_categories[0]
        row = partial(
            Row,
            table=config.table,
            method=method,
            task=TASK,
            shots=shots,
            episodes=len(first.query),
            seeds=1 + len(more) if more else None,
        )
        found = [[measured(outcome) for outcome in of_seeds] for of_seeds in of_categories]
        for metric in found[0][0]:
            both = np.array([[one[metric] for one in of_seeds] for of_seeds in found])
            # The seeds of a category are asked for the same reviews.
            values, halves = both[..., 0], both[..., 1].mean(1)
            of_all = _over_seeds(values.mean(0))
            rows.append(row(domain=ALL, metric=metric, ci95=half_of_mean(halves), **of_all))
            for name, of_seeds, own, half in zip(
                names, of_categories, values, halves.tolist(), strict=True
            ):
                rows.append(row(domain=name, metric=metric, ci95=half, **_over_seeds(own)))
                if metric == "accuracy" and not shots:
                    right = [(one.logits > 0) == one.label[one.query] for one in of_seeds]
                    ids = of_seeds[0].query.astype(np.int32)
                    score = np.stack(right).mean(0, dtype=np.float32)
                    scores[key(rows[-1])] = {"score": score, "id": ids, **ONCE}
            if metric == "gain":
                worst = values.mean(1).argmin()
                least, half = _over_seeds(values[worst]), float(halves[worst])
                rows.append(row(domain=ALL, metric="harm", ci95=half, **least))
                pays = np.array([[one.pays for one in of_seeds] for of_seeds in of_categories])
                shares = _over_seeds(pays.mean((0, 2)))
                rows.append(row(domain=ALL, metric="adapted", **shares))
    return with_baselines(rows, BASELINES), scores


def _over_seeds(values: Float[np.ndarray, " seeds"]) -> dict[str, Any]:
    """Return the fields of a row that has a value for each seed."""
    mean, half = mean_interval(values)
    return {"value": mean, "ci95_seeds": half}


def main(config: FrozenConfigDict, workdir: Path) -> None:
    """Train, choose, adapt and score, then write the table."""
    with claimed(config, workdir):
        parts = read(config)
        for everything, corpus, texts in parts:
            count = f"{len(texts)} of {len(everything.label)} reviews"
            say(f"{config.table}: {count}, in {len(corpus.names)} categories")
        if (pretrained := read_encoder(config.encoder, workdir)) is None:
            say("no config.encoder.weights: the table has the methods from nothing alone")
        choices: dict[str, Any] = {}
        outcomes: Outcomes = {}
        held_out: list[str] = []
        for number, (everything, corpus, texts) in enumerate(parts):
            if pretrained is not None:
                corpus = corpus._replace(vectors=pretrained.vectors(texts))
            folder = workdir / f"part{number}"
            about = identity_of(everything._replace(vectors=corpus.vectors))
            teach = partial(taught_by, config, pretrained, corpus, texts, workdir, number)
            keep = kept_in(folder, about)
            learn = cache(partial(learned_from, config, everything, corpus, teach, keep))
            for group, members in enumerate(corpus.groups):
                compute = partial(packed, config, corpus, learn, group)
                arrays, said = finished(folder / f"group{group}", about, compute)
                choices |= said
                for place, found in unpacked(arrays).items():
                    outcomes.setdefault(place, []).extend(found)
                held_out += [corpus.names[d] for d in members]
        rows, scores = rows_of(config, held_out, outcomes)
        seeds = config.tuned.seeds if config.tuned.epochs else (config.seed,)
        path = write_results(config, workdir, rows, scores, seeds)
        write_json(workdir / "choices.json", choices)
        shown = [row for row in rows if row.domain == ALL]
        for metric in ("accuracy", "macro_f1", "gain", "harm", "adapted"):
            if any(row.metric == metric for row in shown):
                print_tables(shown, baselines=BASELINES, metric=metric)
        say(f"{config.table}: {path}, {workdir / 'choices.json'}")


if __name__ == "__main__":
    runner.run(main, **COMMANDS["experiments.tables.reviews"]._asdict())
