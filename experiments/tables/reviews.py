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
A table that was interrupted goes on from the first head that was not trained; so does one that has
other `shots` or `episodes`, or another `rule` or `caution`, in the same work folder.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections.config_dict import FrozenConfigDict

from experiments import runner
from experiments.config_files import ConfigError
from experiments.encoders import Pretrained, read_encoder
from experiments.modules import COMMANDS
from experiments.reports.terminal import print_tables
from experiments.run_folder import claimed, finished, write_results
from experiments.sources import Reviews, reviews_of
from experiments.tables.left_out import (
    MAY_CHANGE,
    Corpus,
    Keep,
    Rule,
    Task,
    adapted,
    corpus_of,
    group_folder,
    identity_of,
    kept_in,
    no_keeping,
    rule_of,
    supports,
    taken,
    task_of,
    with_unlabelled,
)
from experiments.tables.sentiment_scores import (
    ALL,
    BASELINES,
    Outcome,
    Outcomes,
    packed,
    rows_of,
    unpacked,
)
from experiments.tables.source_heads import (
    Known,
    Learned,
    each_of,
    label_of,
    methods_of,
    tfidf_of,
)
from experiments.tables.tuned_sentiment import Taught, taught_encoder
from metaguide.data.catalogue import Review
from metaguide.files import write_json
from metaguide.training.progress import say

_TEST, _RULE = 0, 1


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
        for name, known in each_of(learned.methods) if shots else ():
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


def arrays_of(
    config: FrozenConfigDict, corpus: Corpus, learn: Callable[[], Learned], group: int
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return what `outcomes_of` does, with the outcomes as arrays."""
    outcomes, said = outcomes_of(config, corpus, learn(), group)
    return packed(outcomes), said


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
        for name, known in each_of(methods):
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


def main(config: FrozenConfigDict, workdir: Path) -> None:
    """Train, choose, adapt and score, then write the table."""
    with claimed(config, workdir, harmless=MAY_CHANGE):
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
                compute = partial(arrays_of, config, corpus, learn, group)
                arrays, said = finished(group_folder(folder, config, group), about, compute)
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
