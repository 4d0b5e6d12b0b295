"""Which of 20 products a shop's title names, given one or five titles of each.

python -m experiments.tables.products
python -m experiments.tables.products --config.encoder.weights=FOLDER \\
    --config.encoder.prefix="query: "

Electronics teach home appliances, which no source is like, and the reverse. Titles are compared by
a kernel of few weights (`ngram_kernels`); λ is chosen on the sources, each left out in turn. There
are two tasks: in one nothing is read of the held-out category but the titles of an episode, in the
other how frequent n-grams are in all its titles, as a shop that has a list of products knows.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int
from ml_collections.config_dict import FrozenConfigDict
from scipy import sparse

from experiments import runner
from experiments.config_files import ConfigError
from experiments.encoders import read_encoder
from experiments.modules import COMMANDS
from experiments.reports.terminal import print_tables
from experiments.run_folder import claimed, finished, write_results
from experiments.sources.pricerunner import (
    APPLIANCES,
    ELECTRONICS,
    distinct_titles,
    read_domains,
)
from experiments.tables.ngram_kernels import (
    RARITIES,
    Episodes,
    Kernels,
    Kind,
    Rule,
    Titles,
    Weighting,
    alike,
    answers,
    count_ngrams,
    draw,
    effects,
    kernels,
    learn,
    similarity,
    weighting,
)
from metaguide.evaluation.metrics import bootstrap, half_of_mean, mean_interval, mean_statistic
from metaguide.evaluation.results import Row, Scores, key, with_baselines
from metaguide.files import checksum, write_json
from metaguide.training.progress import say

SPLITS = {"electronics": ELECTRONICS, "home appliances": APPLIANCES}
"""Names of what is held out, and its categories; the sources are those of the other."""

TASKS = ("products", "products, all titles read")

BASELINES = ("tf-idf",)
"""Names of the baselines of this table."""

_TEST, _LEARN, _CHOOSE = 0, 1, 2


class Data(NamedTuple):
    """Titles of all categories, keyed by category.

    Attributes:
        kinds: the kinds of n-grams.
        kind: of each n-gram.
        every: counts of the n-grams of all titles, of which frequencies are learned.
        titles: of the products that have titles enough for an episode.
    """

    kinds: tuple[Kind, ...]
    kind: Int[np.ndarray, " ngrams"]
    every: Mapping[str, sparse.csr_array]
    titles: Mapping[str, Titles]


def read(config: FrozenConfigDict) -> tuple[Data, dict[str, list[str]]]:
    """Read the titles, each once in a category.

    Returns:
        The titles without vectors, and the texts of those that are asked for.

    Raises:
        ConfigError: a category has too few products for an episode.
        CatalogueError: the file is missing or invalid.
    """
    texts: dict[str, list[str]] = {}
    rows: dict[str, Int[np.ndarray, " titles"]] = {}
    product: dict[str, Int[np.ndarray, " titles"]] = {}
    for name, domain in read_domains().items():
        found = distinct_titles(domain)
        count = Counter(one.category for one in found)
        enough = min(config.shots) + config.queries
        rows[name] = np.flatnonzero([count[one.category] >= enough for one in found])
        texts[name] = [one.title for one in found]
        named = [str(found[row].category) for row in rows[name]]
        product[name] = np.unique(named, return_inverse=True)[1].astype(np.int32)
        most = max(config.shots) + config.queries
        if (having := int((np.bincount(product[name]) >= most).sum())) < config.way:
            raise ConfigError(
                f"config.way is {config.way}: {name} has {having} products of {most} titles, which "
                f"config.shots={config.shots} and config.queries={config.queries} take; give fewer"
            )
    ngrams = count_ngrams(texts)
    titles = {name: Titles(ngrams.counts[name][rows[name]], product[name]) for name in texts}
    asked = {name: [texts[name][row] for row in rows[name]] for name in texts}
    return Data(ngrams.kinds, ngrams.kind, ngrams.counts, titles), asked


# ------------------------------------------------------------------------------ methods


def used_groups(kinds: Sequence[Kind], has_encoder: bool) -> dict[str, Bool[np.ndarray, " groups"]]:
    """Return the groups that each method uses, the learned ones last."""
    every = [kind for kind in kinds for _ in RARITIES]
    usual = [kind.unit == "characters" and 2 <= kind.length <= 4 for kind in every]
    found = {"tf-idf": [*usual, False]}
    if has_encoder:
        found["encoder"] = [False] * len(every) + [True]
    found["n-grams, learned"] = [True] * len(every) + [False]
    if has_encoder:
        found["encoder + n-grams, learned"] = [True] * (len(every) + 1)
    return {name: np.array(one) for name, one in found.items()}


def known_of(
    data: Data, task: str, sources: Sequence[str], asked: Sequence[str]
) -> dict[str, Weighting]:
    """Return what is known of n-grams where categories are asked about, keyed by category.

    Args:
        data: the titles.
        task: says whether all titles of a category are read.
        sources: the categories that are read if they are not.
        asked: the categories.
    """

    def from_titles(read: Sequence[str]) -> Weighting:
        vectors = [data.titles[one].vectors for one in read]
        return weighting(data.kind, [data.every[one] for one in read], vectors)

    if task == TASKS[1]:
        return {category: from_titles([category]) for category in asked}
    return dict.fromkeys(asked, from_titles(sources))


def tasks_of(
    config: FrozenConfigDict, data: Data, task: str, sources: Sequence[str], seed: int
) -> list[Kernels]:
    """Return the kernels of the episodes to learn on, for each number of shots."""
    groups, names = len(RARITIES) * len(data.kinds), sorted(data.titles)
    known, found = known_of(data, task, sources, sources), []
    for shots in config.shots:
        parts = []
        for source in sources:
            titles, place = data.titles[source], (seed, _LEARN, names.index(source), shots)
            count = config.learning.episodes
            episodes = draw(titles.product, count, config.way, shots, config.queries, place)
            parts.append(kernels(titles, known[source], groups, episodes, shots))
        found.append(Kernels(*(np.concatenate(one) for one in zip(*parts, strict=True))))
    return found


def rule_of(
    config: FrozenConfigDict,
    data: Data,
    used: Bool[np.ndarray, " groups"],
    tasks: Sequence[Kernels],
    penalty: float,
) -> Rule:
    """Meta-learn a rule on episodes of the sources."""
    learned = learn(
        used,
        effects(data.kinds),
        tasks,
        way=config.way,
        steps=config.learning.steps,
        penalty=penalty,
        rate=config.learning.rate,
    )
    return jax.device_get(learned)


def episodes_of(
    config: FrozenConfigDict, data: Data, category: str, use: int = _TEST
) -> dict[int, Episodes]:
    """Return the episodes of a category that all methods are asked, keyed by shots."""
    product, place = data.titles[category].product, sorted(data.titles).index(category)
    of_shots = partial(draw, product, config.episodes, config.way, queries=config.queries)
    return {shots: of_shots(shots=shots, key=(use, place, shots)) for shots in config.shots}


def right(
    titles: Titles, known: Weighting, rule: Rule, episodes: Mapping[int, Episodes]
) -> list[Bool[np.ndarray, "episodes way queries"]]:
    """Return which queries of a category are answered rightly, for each number of shots."""
    compared, found = similarity(titles, known, rule), []
    for shots, of_shots in episodes.items():
        said = answers(compared, of_shots, shots, rule)
        found.append(said == np.arange(said.shape[1])[:, None])
    return found


def choose(
    config: FrozenConfigDict, data: Data, task: str, sources: Sequence[str]
) -> tuple[float, dict[float, float]]:
    """Choose λ for the method that reads most, by the sources, each left out in turn.

    Returns:
        λ, and the mean accuracy in the source that was left out for each that was tried.
    """
    used = used_groups(data.kinds, _has_encoder(data))
    fullest = list(used.values())[-1]
    found: dict[float, list[float]] = {penalty: [] for penalty in config.learning.penalties}
    if len(found) == 1:
        return next(iter(found)), {}
    for source in sources:
        others = [one for one in sources if one != source]
        tasks = tasks_of(config, data, task, others, config.seeds[0])
        known = known_of(data, task, others, [source])[source]
        episodes = episodes_of(config, data, source, _CHOOSE)
        for penalty, accuracies in found.items():
            rule = rule_of(config, data, fullest, tasks, penalty)
            of_shots = right(data.titles[source], known, rule, episodes)
            accuracies.append(float(np.mean([one.mean() for one in of_shots])))
        say(f"{task}: learned without {source}")
    means = {penalty: float(np.mean(one)) for penalty, one in found.items()}
    return max(means, key=means.__getitem__), means


def _has_encoder(data: Data) -> bool:
    return next(iter(data.titles.values())).vectors is not None


Outcomes = dict[tuple[str, str, str], list[Float[np.ndarray, "seeds episodes way queries"]]]
"""By task, method and category: for each number of shots, which queries were answered rightly."""


def outcomes_of(
    config: FrozenConfigDict, data: Data, choices: dict[str, Any], folder: Path
) -> Outcomes:
    """Return the outcomes of all methods, on the same episodes.

    Args:
        config: the resolved config.
        data: the titles.
        choices: what is held out -> task -> what was chosen; is filled.
        folder: keeps what is finished, a task of a split at a time.
    """
    outcomes: Outcomes = {}
    for name, task in product(SPLITS, TASKS):
        compute = partial(outcome_of, config, data, name, task)
        found, said = finished(folder / name / task, identity_of(data), compute)
        choices.setdefault(name, {})[task] = said
        for place, of_shots in found.items():
            method, category, _ = place.split("/")
            outcomes.setdefault((task, method, category), []).append(of_shots)
    return outcomes


def outcome_of(
    config: FrozenConfigDict, data: Data, name: str, task: str
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return the outcomes of a task of a split, by "method/category/shots", and what was chosen."""
    found: dict[str, np.ndarray] = {}
    held_out = SPLITS[name]
    sources = [one for one in data.titles if one not in held_out]
    episodes = {category: episodes_of(config, data, category) for category in held_out}
    penalty, tried = choose(config, data, task, sources)
    learning = [tasks_of(config, data, task, sources, seed) for seed in config.seeds]
    known = known_of(data, task, sources, held_out)
    for method, used in used_groups(data.kinds, _has_encoder(data)).items():
        rules = [alike(used.tolist())]
        if method.endswith("learned"):
            rules = [rule_of(config, data, used, one, penalty) for one in learning]
        for category in held_out:
            asked = data.titles[category], known[category]
            of_seeds = [right(*asked, rule, episodes[category]) for rule in rules]
            for shots, one in zip(config.shots, zip(*of_seeds, strict=True), strict=True):
                found[f"{method}/{category}/{shots}"] = np.stack(one)
    say(f"{task}: learned of {', '.join(sources)}, and asked about {name}")
    accuracy = {str(one): value for one, value in tried.items()}
    return found, {"penalty": penalty, "accuracy": accuracy}


def identity_of(data: Data) -> str:
    """Return a short name for the titles and their vectors; others differ in it."""
    arrays = {}
    for category, titles in data.titles.items():
        arrays[f"{category}, ngrams"] = titles.counts.indices
        arrays[f"{category}, product"] = titles.product
        if titles.vectors is not None:
            arrays[f"{category}, vectors"] = titles.vectors
    return f"titles {checksum(arrays):08x}"


# ------------------------------------------------------------------------------ scores


def rows_of(config: FrozenConfigDict, data: Data, outcomes: Outcomes) -> tuple[list[Row], Scores]:
    """Return the rows of every category and of what is held out together, and all scores.

    The interval is over products, drawn with all their titles, and over episodes; that over seeds
    is of the episodes that were learned on.
    """
    rows: list[Row] = []
    scores: Scores = {}
    methods = list(used_groups(data.kinds, _has_encoder(data)))
    drawn = {category: episodes_of(config, data, category) for category in data.titles}
    for task in TASKS:
        for place, shots in enumerate(config.shots):
            row = partial(
                Row,
                table=config.table,
                task=task,
                shots=shots,
                metric="accuracy",
                episodes=config.episodes,
            )
            for name, held_out in SPLITS.items():
                of_split: dict[str, list[tuple[np.ndarray, float]]] = {}
                for category in held_out:
                    episodes = drawn[category][shots][..., shots:]
                    of_methods = [outcomes[task, one, category][place] for one in methods]
                    means = np.stack([one.mean(0).ravel() for one in of_methods])
                    halves = bootstrap(
                        mean_statistic(means),
                        data.titles[category].product[episodes].ravel(),
                        np.indices(episodes.shape)[0].ravel(),
                    )
                    for method, found, half in zip(methods, of_methods, halves, strict=True):
                        of_seeds = found.mean((1, 2, 3))
                        of_split.setdefault(method, []).append((of_seeds, float(half)))
                        rows.append(_row(row, method, category, of_seeds, float(half)))
                        ids = episodes.reshape(len(episodes), -1).astype(np.int32)
                        score = found.mean(0).reshape(ids.shape).astype(np.float32)
                        scores[key(rows[-1])] = {"score": score, "id": ids}
                for method, of_categories in of_split.items():
                    of_seeds = np.mean([values for values, _ in of_categories], 0)
                    half = half_of_mean([half for _, half in of_categories])
                    rows.append(_row(row, method, name, of_seeds, half))
    return with_baselines(rows, BASELINES), scores


def _row(row: Any, method: str, domain: str, of_seeds: np.ndarray, half: float) -> Row:
    made = row(method=method, domain=domain, value=float(of_seeds.mean()), ci95=half)
    if len(of_seeds) == 1:  # nothing was learned
        return made
    return replace(made, ci95_seeds=mean_interval(of_seeds).half, seeds=len(of_seeds))


def main(config: FrozenConfigDict, workdir: Path) -> None:
    """Choose, learn, ask and score, then write the table."""
    with claimed(config, workdir):
        data, texts = read(config)
        count = sum(map(len, texts.values()))
        categories = f"{len(texts)} categories"
        say(f"products: {count} titles of products that have titles enough, of {categories}")
        if (pretrained := read_encoder(config.encoder, workdir)) is not None:
            vectors = {name: pretrained.vectors(of_category) for name, of_category in texts.items()}
            data = data._replace(
                titles={n: one._replace(vectors=vectors[n]) for n, one in data.titles.items()}
            )
        else:
            say("no config.encoder.weights: the table has the methods from nothing alone")
        choices: dict[str, Any] = {}
        rows, scores = rows_of(config, data, outcomes_of(config, data, choices, workdir))
        path = write_results(config, workdir, rows, scores, config.seeds)
        write_json(workdir / "choices.json", choices)
        print_tables([row for row in rows if row.domain in SPLITS], baselines=BASELINES)
        say(f"products: {path}, {workdir / 'choices.json'}")


if __name__ == "__main__":
    runner.run(main, **COMMANDS["experiments.tables.products"]._asdict())
