"""Which of ten categories a title of a shop is in, from the titles of other shops and a few of its.

python -m experiments.tables.product_categories
python -m experiments.tables.product_categories --config.encoder.weights=FOLDER \\
    --config.encoder.prefix="query: "

The shops of PriceRunner with titles enough are held out in groups, and all others are the sources
of a group. Zero-shot by heads that the sources taught, and adapted to a few titles of each category
that the shop has by a map head with its guard. Everything that is chosen is chosen on sources, each
group of them left out in turn; `choices.json` in the work folder says what. A table that was
interrupted goes on from the first head that was not trained; so does one that has other `shots` or
`episodes`, or another `rule` or `caution`, in the same work folder.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from ml_collections.config_dict import FrozenConfigDict

from experiments import runner
from experiments.config_files import ConfigError
from experiments.encoders import read_encoder
from experiments.modules import COMMANDS
from experiments.reports.terminal import print_tables
from experiments.run_folder import claimed, finished, write_results
from experiments.sources.pricerunner import read_shops
from experiments.tables.left_out import (
    MAY_CHANGE,
    Corpus,
    Keep,
    Rule,
    adapted,
    corpus_of,
    decided,
    group_folder,
    identity_of,
    kept_in,
    no_keeping,
    rule_of,
    supports,
    taken,
    task_of,
)
from experiments.tables.source_heads import Known, Learned, Methods, methods_of, tfidf_of
from metaguide.data.catalogue import Product
from metaguide.evaluation.metrics import mean_interval
from metaguide.evaluation.results import Row, Scores, key, with_baselines
from metaguide.evaluation.rows import ONCE
from metaguide.files import write_json
from metaguide.training.progress import say

TASK = "classification"

BASELINES = ("majority", "tf-idf zero-shot", "tf-idf few-shot")
"""Names of the baselines of this table."""

ALL = "held-out shops"
"""The domain of the rows: means over all shops that are held out."""

SMALL = "other shops"
"""The shops that have too few titles to be held out, and always teach."""

MEASURES = ("accuracy", "accuracy_new", "gain", "adapted")
"""What is measured in a shop: the accuracy on all titles that are asked for, and on those of
products that no source sells; the accuracy minus that before adaptation; and the share of the
episodes in which the guard let it adapt."""

_TEST, _RULE = 0, 1

Measured = dict[tuple[str, int], Float[np.ndarray, "shops measures"]]
"""By method and shots, `MEASURES` of each shop; NaN where there is nothing to measure."""


class Titles(NamedTuple):
    """Titles of shops, each once in a shop.

    Attributes:
        characters: titles as the n-grams of the methods read them; a category of it is a shop.
        words: the same titles as TF-IDF reads them.
        texts: of the titles.
        is_new: by group, the titles of products that no source of the group sells.
    """

    characters: Corpus
    words: Corpus
    texts: tuple[str, ...]
    is_new: Bool[np.ndarray, "groups titles"]


def read(config: FrozenConfigDict) -> tuple[Titles, Titles]:
    """Read the titles of all shops.

    Returns:
        All titles, which teach n-grams and TF-IDF, and those that are tested and that choices are
        made on, at most `config.per_shop` of each shop.

    Raises:
        ConfigError: too few shops have `config.least_titles` in `config.least_categories`.
        CatalogueError: the file is missing or invalid.
    """
    shops = read_shops()
    enough = [name for name, products in shops.items() if _is_enough(config, products)]
    rng = np.random.default_rng(config.seed)
    drawn = [str(name) for name in rng.permutation(enough)]
    if len(drawn) < max(2, config.groups):
        raise ConfigError(
            f"config.groups is {config.groups}: {len(drawn)} shops have {config.least_titles} "
            f"titles in {config.least_categories} categories; give fewer of any of them"
        )
    names = [*drawn, SMALL]
    groups = [list(range(first, len(drawn), config.groups)) for first in range(config.groups)]
    products: list[Product] = []
    shop, rank = [], []
    for name, of_shop in shops.items():
        order = rng.permutation(len(of_shop))
        products += [of_shop[i] for i in order]
        shop += [names.index(name) if name in drawn else len(drawn)] * len(order)
        rank += range(len(order))
    kinds = sorted({one.attributes["kind"] for one in products})
    label = [kinds.index(one.attributes["kind"]) for one in products]
    texts = tuple(one.title for one in products)
    ngrams = config.ngrams
    characters, words = (
        corpus_of(names, groups, shop, label, texts, longest, unit)._replace(way=len(kinds))
        for longest, unit in ((ngrams.longest, "character"), (2, "word"))
    )
    clusters = np.array([one.category for one in products])
    is_new = np.stack([~np.isin(clusters, clusters[characters.others(*group)]) for group in groups])
    every = Titles(characters, words, texts, is_new)
    tested = np.flatnonzero(np.asarray(rank) < (config.per_shop or len(texts)))
    return every, Titles(
        taken(characters, tested),
        taken(words, tested),
        tuple(texts[row] for row in tested),
        is_new[:, tested],
    )


def _is_enough(config: FrozenConfigDict, products: Sequence[Product]) -> bool:
    """Return whether a shop has titles and categories enough to be held out."""
    kinds = Counter(one.attributes["kind"] for one in products)
    return len(products) >= config.least_titles and len(kinds) >= config.least_categories


# ------------------------------------------------------------------------------ methods


def rule_for(
    config: FrozenConfigDict, corpus: Corpus, known: Known, group: int, shots: int
) -> Rule:
    """Learn how to adapt to the shops of a group, on episodes of shops among its sources."""
    rng = np.random.default_rng((config.seed, _RULE, group))
    shops = [one for one in corpus.sources(group) if corpus.names[one] != SMALL]
    tasks, logits = [], []
    for e in rng.permutation(shops)[: config.rule.shops]:
        rows = corpus.rows(int(e))
        label = corpus.label[rows]
        draw = supports(label, shots, config.rule.episodes, (config.seed, _RULE, int(e), shots))
        gram = known.gram(int(e), corpus.without(group, int(e)))
        tasks.append(task_of(gram, label, draw, config.rule.queries))
        logits.append(known.logits[group, rows])
    return rule_of(tasks, logits, config.rule.penalty, config.rule.steps)


class Asked(NamedTuple):
    """Titles of a shop that are asked for.

    Attributes:
        label: of all titles of the shop.
        is_new: which of them are of products that no source sells.
        query: numbers of those asked for.
    """

    label: Int[np.ndarray, " titles"]
    is_new: Bool[np.ndarray, " titles"]
    query: Int[np.ndarray, "episodes queries"]

    def measured(
        self,
        logits: Float[np.ndarray, "episodes queries way"],
        before: Float[np.ndarray, "episodes queries way"] | None = None,
        pays: Bool[np.ndarray, " episodes"] | None = None,
    ) -> Float[np.ndarray, " measures"]:
        """Return `MEASURES` of the answers of a method, and of those before adaptation."""
        label, is_new = self.label[self.query], self.is_new[self.query]
        right = decided(logits, logits.shape[-1]) == label
        new, gain, share = right[is_new].mean() if is_new.any() else np.nan, np.nan, np.nan
        if before is not None and pays is not None:
            gain = right.mean() - (decided(before, before.shape[-1]) == label).mean()
            share = pays.mean()
        return np.array([right.mean(), new, gain, share])


def answers(
    config: FrozenConfigDict,
    titles: Titles,
    baseline: Known,
    methods: Methods,
    rules: Mapping[str, Rule],
    group: int,
    d: int,
    shots: int,
) -> Iterator[tuple[str, Float[np.ndarray, " measures"]]]:
    """Yield what is measured of all baselines and methods in one shop, on the same episodes.

    Args:
        config: the resolved config.
        titles: those that are tested.
        baseline: TF-IDF.
        methods: name -> what is known.
        rules: name -> how to adapt; not read without shots.
        group: number of the group of the shop.
        d: number of the shop.
        shots: titles of each category of the shop.
    """
    corpus = titles.characters
    rows, out = corpus.rows(d), corpus.groups[group]
    label, every = corpus.label[rows], np.arange(len(rows))
    draw = supports(label, shots, config.episodes if shots else 1, (config.seed, _TEST, d, shots))
    query = np.stack([np.setdiff1d(every, support) for support in draw])
    asked = Asked(label, titles.is_new[group, rows], query)
    often = np.bincount(corpus.label[corpus.others(*out)], minlength=corpus.way).astype(float)
    yield "majority", asked.measured(np.broadcast_to(often, (*query.shape, corpus.way)))
    yield "tf-idf zero-shot", asked.measured(baseline.logits[group, rows][query])
    if not shots:
        for name, (known,) in methods.items():
            yield name, asked.measured(known.logits[group, rows][query])
        return
    # Programs for a few sizes serve the supports of all shops.
    size = -(-draw.shape[1] // config.size) * config.size
    alone = partial(
        adapted,
        logits=np.zeros((len(rows), corpus.way)),
        rule=Rule(config.rule.penalty, 1.0),
        caution=None,
        examples=size,
    )
    yield "tf-idf few-shot", asked.measured(alone(task_of(baseline.gram(d, out), label, draw))[0])
    for name, (known,) in methods.items():
        task, before = task_of(known.gram(d, out), label, draw), known.logits[group, rows]
        logits, pays = adapted(task, before, rules[name], config.caution, size)
        yield name, asked.measured(logits, before[query], pays)
        if name in ("n-grams", "encoder"):
            yield f"{name} alone", asked.measured(alone(task)[0])


def learned_from(
    config: FrozenConfigDict, everything: Titles, titles: Titles, keep: Keep = no_keeping
) -> Learned:
    """Train the heads of all methods and of TF-IDF, and choose among them on sources."""
    choices: dict[str, Any] = {}
    methods = methods_of(config, everything.characters, titles.characters, choices, keep=keep)
    baseline = tfidf_of(config, everything.words, titles.words, choices, keep)
    return Learned(methods, baseline, choices, {})


def outcome_of(
    config: FrozenConfigDict, titles: Titles, learn: Callable[[], Learned], group: int
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return what is measured in each shop of a group, by "method/shots", and what was chosen."""
    methods, baseline, choices, _ = learn()
    found: dict[str, list[np.ndarray]] = {}
    first, *_ = titles.characters.groups[group]
    said = {name: dict(of) for name, of in choices[titles.characters.names[first]].items()}
    for shots in config.shots:
        rules = {}
        for name, (known,) in methods.items() if shots else ():
            rules[name] = rule_for(config, titles.characters, known, group, shots)
            said.setdefault(name, {})[f"{shots} shots"] = rules[name]._asdict()
        for d in titles.characters.groups[group]:
            for name, one in answers(config, titles, baseline, methods, rules, group, d, shots):
                found.setdefault(f"{name}/{shots}", []).append(one)
        say(f"group {group}, {shots} shots: answered")
    return {place: np.stack(of_shops) for place, of_shops in found.items()}, said


# ------------------------------------------------------------------------------ rows


def rows_of(config: FrozenConfigDict, measured: Measured) -> tuple[list[Row], Scores]:
    """Return the rows of all shops, and each shop's accuracy.

    Intervals are over shops. "harm" is the gain in the shop where it is least.
    """
    rows: list[Row] = []
    scores: Scores = {}
    for (method, shots), of_shops in measured.items():
        row = partial(
            Row,
            table=config.table,
            method=method,
            domain=ALL,
            task=TASK,
            shots=shots,
            episodes=config.episodes if shots else 1,
        )
        for metric, values in zip(MEASURES, of_shops.T, strict=True):
            shops = np.flatnonzero(np.isfinite(values))
            if not len(shops):
                continue
            mean, half = mean_interval(values[shops])
            rows.append(row(metric=metric, value=mean, ci95=half))
            if metric == "gain":
                rows.append(row(metric="harm", value=float(values[shops].min())))
            elif metric != "adapted":
                score = values[None, shops].astype(np.float32)
                scores[key(rows[-1])] = {"score": score, "id": shops[None].astype(np.int32), **ONCE}
    return with_baselines(rows, BASELINES), scores


def main(config: FrozenConfigDict, workdir: Path) -> None:
    """Train, choose, adapt and score group by group, then write the table."""
    with claimed(config, workdir, harmless=MAY_CHANGE):
        everything, titles = read(config)
        corpus = titles.characters
        say(
            f"{config.table}: {len(titles.texts):,} of {len(everything.texts):,} titles; "
            f"{len(corpus.names) - 1} shops are held out in {len(corpus.groups)} groups"
        )
        if (pretrained := read_encoder(config.encoder, workdir)) is None:
            say("no config.encoder.weights: the table has the methods from nothing alone")
        else:
            corpus = corpus._replace(vectors=pretrained.vectors(titles.texts))
            titles = titles._replace(characters=corpus)
        about = identity_of(everything.characters._replace(vectors=corpus.vectors))
        keep = kept_in(workdir, about)
        learn = cache(partial(learned_from, config, everything, titles, keep))
        measured: dict[tuple[str, int], list[np.ndarray]] = {}
        choices: dict[str, Any] = {}
        for group, shops in enumerate(corpus.groups):
            compute = partial(outcome_of, config, titles, learn, group)
            found, said = finished(group_folder(workdir, config, group), about, compute)
            names = [corpus.names[d] for d in shops]
            choices[f"group{group}"] = {"shops": names, "methods": said}
            for place, of_shops in found.items():
                name, _, shots = place.rpartition("/")
                measured.setdefault((name, int(shots)), []).append(of_shops)
        joined = {place: np.concatenate(of_groups) for place, of_groups in measured.items()}
        rows, scores = rows_of(config, joined)
        path = write_results(config, workdir, rows, scores, (config.seed,))
        write_json(workdir / "choices.json", choices)
        for metric in ("accuracy", "accuracy_new", "gain", "harm", "adapted"):
            if any(row.metric == metric for row in rows):
                print_tables(rows, baselines=BASELINES, metric=metric)
        say(f"{config.table}: {path}, {workdir / 'choices.json'}")


if __name__ == "__main__":
    runner.run(main, **COMMANDS["experiments.tables.product_categories"]._asdict())
