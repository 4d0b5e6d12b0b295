"""Sentiment in sixteen domains that all teach and are all tested: FDU-MTL's own protocol.

python -m experiments.tables.in_domain

Nothing is held out. A domain is tested on its published test part, and taught by its training part
alone ("own"), by those of all domains through one head ("shared"), or by all through a head for
each domain that is pulled to a shared one ("shared + own"): argmin Σ ℓ(x; w + v_d) + λ/2 (‖w‖² +
Σ_d ‖v_d‖² / ρ²), which is one logistic regression on [x, ρ x in the place of its domain] (Daumé
III: Frustratingly easy domain adaptation, 2007). λ and ρ, those of TF-IDF too, are chosen by the
mean accuracy on reviews of the training parts that are set aside; then all of the training parts
teach. A table that was interrupted goes on from the first method that was not finished.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int
from ml_collections.config_dict import FrozenConfigDict
from scipy import sparse

from experiments import runner
from experiments.config_files import ConfigError
from experiments.modules import COMMANDS
from experiments.reports.terminal import print_tables
from experiments.run_folder import claimed, finished, write_results
from experiments.sources import fdu_mtl
from experiments.tables.left_out import (
    Corpus,
    Weigh,
    corpus_of,
    identity_of,
    sparse_logits,
    taken,
    tfidf,
    weighted_ngrams,
)
from metaguide.data.texts import normalised
from metaguide.evaluation.metrics import bootstrap_interval, half_of_mean, mean_interval
from metaguide.evaluation.results import Row, Scores, key, with_baselines
from metaguide.training.progress import say

TASK = "sentiment"

ALL = "all"
"""The domain of the rows of all domains."""

BASELINES = ("majority", "tf-idf own", "tf-idf shared")
"""Names of the baselines of this table."""

PUBLISHED = 0.873
"""Accuracy over the domains of the best net of Liu et al. 2017, adversarial multi-task learning."""

Head = Callable[[Corpus, Any, Corpus, Any], np.ndarray]
"""(training reviews, their vectors, test reviews, their vectors) -> the logits of the latter."""


class Candidate(NamedTuple):
    """A head, and what weighs the n-grams of the reviews that it reads."""

    head: Head
    weigh: Weigh


def read(config: FrozenConfigDict) -> tuple[Corpus, Corpus, Bool[np.ndarray, " reviews"]]:
    """Read the training and the test parts of all domains.

    Returns:
        The training reviews, the test reviews, and which of these are new: their texts are in no
        training part.

    Raises:
        ConfigError: METAGUIDE_DATA_DIR is not set, or too few reviews are left to train on.
        CatalogueError: the reviews are missing or damaged.
    """
    split = fdu_mtl.read_split()
    category, label, texts, is_test = [], [], [], []
    for number, parts in enumerate(split.values()):
        for part in ("train", "test"):
            reviews = parts[part].reviews[: config.most or None]
            if part == "train" and len(reviews) < 2 * config.development:
                raise ConfigError(
                    f"config.development is {config.development}, more than half of the "
                    f"{len(reviews)} reviews that train {[*split][number]}; give fewer"
                )
            category += [number] * len(reviews)
            label += [int(one.label or 0) for one in reviews]
            texts += [one.text for one in reviews]
            is_test += [part == "test"] * len(reviews)
    tested, content = np.array(is_test), np.array([normalised(text) for text in texts], object)
    known = {*content[~tested]}
    is_new = np.array([text not in known for text in content[tested]])
    say(
        f"{config.table}: {len(texts) - tested.sum():,} reviews of {len(split)} domains train, "
        f"{tested.sum():,} are tested, {is_new.sum():,} of them with a text that does not train"
    )
    # N-grams that only test parts have get no weight: weights come from the training parts.
    every = corpus_of(tuple(split), (), category, label, texts, config.ngrams.longest, "word")
    train, test = (taken(every, np.flatnonzero(which)) for which in (~tested, tested))
    return train, test, is_new


def own(penalty: float) -> Head:
    """Return what trains a head on each domain alone."""

    def logits(train: Corpus, vectors: Any, test: Corpus, asked: Any) -> np.ndarray:
        found = np.zeros(len(test.label))
        for number in range(len(train.names)):
            rows, queries = train.rows(number), test.rows(number)
            label = train.label[rows]
            found[queries] = sparse_logits(vectors[rows], label, asked[queries], penalty)
        return found

    return logits


def together(penalty: float, share: float) -> Head:
    """Return what trains all domains at once.

    Args:
        penalty: λ.
        share: ρ; 0 for one head.
    """

    def logits(train: Corpus, vectors: Any, test: Corpus, asked: Any) -> np.ndarray:
        seen, queries = (
            with_own(one, corpus.category, len(train.names), share)
            for one, corpus in ((vectors, train), (asked, test))
        )
        return sparse_logits(seen, train.label, queries, penalty)

    return logits


def with_own(
    vectors: Any, category: Int[np.ndarray, " reviews"], domains: int, share: float
) -> sparse.csr_array:
    """Return [x, ρ x in the place of its domain], sparse [reviews, (1 + domains) n-grams]."""
    vectors = sparse.csr_array(vectors)
    if not share:
        return vectors
    rows, width = vectors.shape
    shift = np.repeat(category * width, np.diff(vectors.indptr))
    placed = (share * vectors.data, vectors.indices + shift, vectors.indptr)
    own = sparse.csr_array(placed, shape=(rows, domains * width))
    both = sparse.csr_array(sparse.hstack([vectors, own], format="csr"))
    # scikit-learn takes sparse matrices of 32-bit indices alone.
    both.indices, both.indptr = both.indices.astype(np.int32), both.indptr.astype(np.int32)
    return both


def candidates_of(config: FrozenConfigDict) -> dict[str, dict[str, Candidate]]:
    """Return the candidates of each method and of TF-IDF, keyed by what is said of them."""
    penalties = config.penalties
    learned = partial(weighted_ngrams, least_texts=config.ngrams.least_texts)
    own_heads = {f"λ {one:g}": own(one) for one in penalties}
    shared_heads = {f"λ {one:g}": together(one, 0) for one in penalties}
    both = {
        f"λ {one:g}, ρ {share:g}": together(one, share)
        for one, share in product(penalties, config.own)
    }
    methods = {
        "tf-idf own": (own_heads, tfidf),
        "tf-idf shared": (shared_heads, tfidf),
        "own": (own_heads, learned),
        "shared": (shared_heads, learned),
        "shared + own": (both, learned),
    }
    return {
        method: {name: Candidate(head, weigh) for name, head in heads.items()}
        for method, (heads, weigh) in methods.items()
    }


def set_aside(train: Corpus, count: int, seed: int) -> Bool[np.ndarray, " reviews"]:
    """Draw `count` training reviews of each domain to make choices on."""
    rng, found = np.random.default_rng(seed), np.zeros(len(train.label), bool)
    for number in range(len(train.names)):
        found[rng.permutation(train.rows(number))[:count]] = True
    return found


def right(logits: np.ndarray, corpus: Corpus) -> Bool[np.ndarray, " reviews"]:
    """Return which reviews are taken for what they are."""
    return (logits > 0) == (corpus.label == 1)


def accuracy(answers: np.ndarray, corpus: Corpus) -> float:
    """Return the mean over domains of the share of right answers."""
    domains = range(len(corpus.names))
    return float(np.mean([answers[corpus.rows(number)].mean() for number in domains]))


def answered(train: Corpus, test: Corpus) -> Callable[[Candidate], Bool[np.ndarray, " reviews"]]:
    """Return candidate -> which reviews of `test` it gets right, taught by `train`."""

    @cache
    def vectors(weigh: Weigh) -> tuple[Any, Any]:
        make = weigh(train, ())
        return make(train.counts), make(test.counts)

    def answers(candidate: Candidate) -> Bool[np.ndarray, " reviews"]:
        seen, asked = vectors(candidate.weigh)
        return right(candidate.head(train, seen, test, asked), test)

    return answers


def choices_of(
    config: FrozenConfigDict,
    methods: Mapping[str, Mapping[str, Candidate]],
    train: Corpus,
    seed: int,
    folder: Path,
) -> dict[str, str]:
    """Return the best candidate of each method on reviews that are set aside for one seed.

    Args:
        config: the resolved config.
        methods: the candidates of each method.
        train: the training reviews.
        seed: draws those that are set aside.
        folder: keeps what is finished, a method at a time.
    """
    aside = set_aside(train, config.development, seed)
    most, few = (taken(train, np.flatnonzero(which)) for which in (~aside, aside))
    answers, found = answered(most, few), {}

    def scores_of(method: str) -> tuple[dict[str, np.ndarray], dict[str, float]]:
        return {}, {name: accuracy(answers(one), few) for name, one in methods[method].items()}

    for method in methods:
        place = folder / f"seed{seed}" / method
        _, scores = finished(place, identity_of(train), partial(scores_of, method), quietly=True)
        found[method] = max(scores, key=scores.__getitem__)
        say(f"seed {seed}, {method}: {found[method]}, {scores[found[method]]:.4f} on reviews aside")
    return found


def tested(
    final: Callable[[Candidate], Bool[np.ndarray, " reviews"]], candidate: Candidate, name: str
) -> tuple[dict[str, np.ndarray], str]:
    """Return which test reviews a candidate gets right, and its name."""
    return {"right": final(candidate)}, name


def majority(train: Corpus, test: Corpus) -> Bool[np.ndarray, " reviews"]:
    """Return which test reviews have the sentiment of most training reviews of their domain."""
    often = [train.label[train.rows(number)].mean() > 0.5 for number in range(len(train.names))]
    return test.label == np.array(often)[test.category]


def rows_of(
    config: FrozenConfigDict,
    test: Corpus,
    is_new: Bool[np.ndarray, " reviews"],
    answers: Mapping[str, Sequence[np.ndarray]],
) -> tuple[list[Row], Scores]:
    """Return the rows of each domain and of all, and the scores of every test review.

    "accuracy" is that of all test reviews, as it is published, and "accuracy_new" that of those
    that are new.

    Args:
        config: its `table` is read.
        test: the test reviews.
        is_new: which of them are.
        answers: which of them are right, keyed by method, for each seed.
    """
    rows: list[Row] = []
    scores: Scores = {}
    measured = {"accuracy": np.ones(len(is_new), bool), "accuracy_new": is_new}
    for (method, right_of), (metric, counts) in product(answers.items(), measured.items()):
        made = np.stack(right_of).astype(np.float32)
        row = partial(
            Row, table=config.table, method=method, task=TASK, metric=metric, seeds=len(made)
        )
        by_domain = []
        for number, name in enumerate(test.names):
            places = np.flatnonzero(counts & (test.category == number))
            found = made[:, places]
            value, half = bootstrap_interval(found.mean(0), places)
            by_domain.append((value, half or 0.0, found.mean(1)))
            of_seeds = mean_interval(found.mean(1)).half
            rows.append(row(domain=name, value=value, ci95=half, ci95_seeds=of_seeds))
            ids = np.broadcast_to(places.astype(np.int32), found.shape)
            scores[key(rows[-1])] = {"score": found, "id": ids}
        values, halves, of_seed = zip(*by_domain, strict=True)
        is_published = (method, metric) == ("shared + own", "accuracy")
        rows.append(
            row(
                domain=ALL,
                value=float(np.mean(values)),
                ci95=half_of_mean(halves),
                ci95_seeds=mean_interval(np.mean(of_seed, axis=0)).half,
                published=PUBLISHED if is_published else None,
            )
        )
    return with_baselines(rows, BASELINES), scores


def main(config: FrozenConfigDict, workdir: Path) -> None:
    """Choose, train, test, and write the table."""
    with claimed(config, workdir):
        train, test, is_new = read(config)
        answers = {"majority": [majority(train, test)]}
        methods = candidates_of(config)
        final, about = answered(train, test), f"{identity_of(train)}, {identity_of(test)}"
        for seed in config.seeds:
            for method, name in choices_of(config, methods, train, seed, workdir).items():
                # What seeds choose alike is trained once.
                place = workdir / method / str([*methods[method]].index(name))
                compute = partial(tested, final, methods[method][name], name)
                found, _ = finished(place, about, compute, quietly=True)
                answers.setdefault(method, []).append(found["right"])
        rows, scores = rows_of(config, test, is_new, answers)
        path = write_results(config, workdir, rows, scores, config.seeds)
        for metric in ("accuracy", "accuracy_new"):
            shown = [row for row in rows if row.domain == ALL]
            print_tables(shown, baselines=BASELINES, metric=metric)
        say(f"{config.table}: {path}")


if __name__ == "__main__":
    runner.run(main, **COMMANDS["experiments.tables.in_domain"]._asdict())
