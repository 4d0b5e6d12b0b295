"""The next item of users of a new domain: Beauty, Sports and Toys, each held out in turn.

python -m experiments.tables.recommendation

An episode is a user: the last item is asked for, given up to K items before it, and ranked among
all items of the domain that the user has not taken, as S3-Rec does. No user takes an item twice, so
the target is always among them. Ties are drawn.

Weights come from the two other domains, without the users that these share with the held-out
one. Without users of the held-out domain, nothing of it is read but its catalogue. With 100, 1,000
or all of its users, their histories without the last item are read too, and the weights are those
that served best for as many users of the sources. "In-domain" weights come from the held-out domain
itself, where the item before the last was the target. `choices.json` has all weights.
"""

import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Int
from ml_collections.config_dict import FrozenConfigDict

from experiments import runner
from experiments.config_files import ConfigError
from experiments.modules import COMMANDS
from experiments.reports.terminal import print_tables
from experiments.run_folder import claimed, finished, write_results
from experiments.sources.amazon_sequences import FILE, Shop, read_amazon_sequences
from experiments.sources.parts import real_data
from experiments.tables.next_item import (
    Histories,
    Known,
    Weights,
    cosine,
    examples_of,
    features_of,
    learned,
    of_catalogue,
    of_users,
    ranks,
    recency,
    scores_of,
    words,
)
from metaguide.data.ngrams import inverse_document_frequency
from metaguide.evaluation.results import (
    Row,
    Scores,
    cells_to_rows,
    difference,
    key,
    with_baselines,
)
from metaguide.files import write_json
from metaguide.tasks.recommendation import RECOMMENDATION
from metaguide.training.progress import say

BASELINES = ("popularity", "last item", "content", "content, source IDF")
"""Names of the baselines of this table; the first reads what users of the held-out domain took."""

PRIMARY = "ndcg@10"

PUBLISHED = {
    "Beauty": {"hr@10": 0.0921, "ndcg@10": 0.0531},
    "Sports": {"hr@10": 0.0569, "ndcg@10": 0.0314},
    "Toys": {"hr@10": 0.0970, "ndcg@10": 0.0580},
}
"""SASRec with sampled softmax, trained in the domain, on all users."""

DECAY = 0.7
"""Weight of an item against the one after it, in the baselines of content."""

AT_ONCE = 100
"""Users that are scored at once."""

_TEST, _LEARN, _GIVEN, _TIES = range(4)

Ranks = dict[tuple[str, int], Int[np.ndarray, "seeds users"]]
"""By method and number of items shown."""


class Method(NamedTuple):
    """How to score items for a user.

    Attributes:
        name: in the table.
        weights: one for each seed.
        given: what is known by users of the domain, one for each seed; None if nothing is.
        once: whether it is tested with the longest histories alone.
    """

    name: str
    weights: Sequence[Weights]
    given: Sequence[Known | None]
    once: bool


def drawn(count: int, most: int, key: Sequence[int]) -> Int[np.ndarray, " rows"]:
    """Draw numbers below `count`, each once, at most `most` of them; all if that is 0."""
    return np.random.default_rng(key).permutation(count)[: most or count]


def until(shop: Shop, rows: Sequence[int] | np.ndarray, last: int) -> Histories:
    """Return the sequences of some users without the last few items."""
    return [shop.sequences[row][:-last] for row in rows]


def asked(shop: Shop, rows: Sequence[int] | np.ndarray, last: int) -> Int[np.ndarray, " users"]:
    """Return the items that `until` ends before."""
    return np.array([shop.sequences[row][-last] for row in rows])


# ------------------------------------------------------------------------------ methods


def names_of(config: FrozenConfigDict) -> list[tuple[str, int | None]]:
    """Return the learned methods by name, with the users of the domain they are given."""
    given = [(f"adapted, {k:,} users" if k else "adapted, all users", k) for k in config.users]
    return [("text", None), ("text + numbers", None), *given]


def methods_of(config: FrozenConfigDict, shops: Sequence[Shop], d: int) -> list[Method]:
    """Learn the weights of all methods for a held-out domain.

    Args:
        config: the resolved config.
        shops: all domains.
        d: the held-out one. Its sequences are read for `given` and for "in-domain" alone.
    """
    held_out, crossing = shops[d], frozenset(shops[d].users)
    sources = [shop.without(crossing) for i, shop in enumerate(shops) if i != d]
    catalogues = [of_catalogue(shop) for shop in sources]
    known = of_catalogue(held_out)
    names = names_of(config)
    found: dict[str, tuple[list[Weights], list[Known | None]]] = {
        name: ([], []) for name in [*(name for name, _ in names), "in-domain"]
    }
    learn = config.learn
    for seed in range(config.seeds):
        parts = []
        for number, (shop, catalogue) in enumerate(zip(sources, catalogues, strict=True)):
            rows = drawn(len(shop.users), learn.users, (seed, _LEARN, d, number))
            given = [users_of(shop, k, (seed, _GIVEN, d, number)) for _, k in names]
            rng = np.random.default_rng((seed, _TIES, d, number))
            targets = until(shop, rows, 1), asked(shop, rows, 1)
            parts.append(examples_of(catalogue, given, *targets, learn.rivals, rng))
        for (name, k), of_sources in zip(names, zip(*parts, strict=True), strict=True):
            if name == "text":
                of_sources = [
                    one._replace(similar={n: one.similar[n] for n in ("words", "paths")})
                    for one in of_sources
                ]
            found[name][0].append(learned(of_sources, learn.steps, learn.learning_rate))
            found[name][1].append(users_of(held_out, k, (seed, _GIVEN, d)))
        rows = drawn(len(held_out.users), learn.users, (seed, _LEARN, d))
        before = of_users(until(held_out, range(len(held_out.users)), 2), len(held_out.items))
        targets = until(held_out, rows, 2), asked(held_out, rows, 2)
        rng = np.random.default_rng((seed, _TIES, d))
        own = examples_of(known, [before], *targets, learn.rivals, rng)
        found["in-domain"][0].append(learned(own, learn.steps, learn.learning_rate))
        found["in-domain"][1].append(users_of(held_out, 0, (seed, _GIVEN, d)))
        say(f"{held_out.name}: learned, seed {seed}")
    return [Method(name, *both, once=both[1][0] is not None) for name, both in found.items()]


def users_of(shop: Shop, count: int | None, key: Sequence[int]) -> Known | None:
    """Return what some drawn users of a domain took, without the last item of each.

    Args:
        shop: the domain.
        count: how many; 0 for all, None for nothing.
        key: what the draw depends on.
    """
    if count is None:
        return None
    rows = drawn(len(shop.users), count, key)
    return of_users(until(shop, rows, 1), len(shop.items))


def source_idf(shops: Sequence[Shop]) -> dict[str, float]:
    """Return the inverse document frequency of keyword pieces over the catalogues of domains."""
    texts = [set(pieces) for shop in shops for pieces in shop.pieces]
    having = Counter(piece for text in texts for piece in text)
    idf = inverse_document_frequency(np.array(list(having.values())), len(texts))
    return dict(zip(having, idf.tolist(), strict=True))


# ------------------------------------------------------------------------------ test


def tested(
    config: FrozenConfigDict, shops: Sequence[Shop], d: int, methods: Sequence[Method]
) -> Ranks:
    """Return the ranks of the last items of users of a held-out domain, by all methods.

    Args:
        config: the resolved config.
        shops: all domains.
        d: the held-out one.
        methods: of `methods_of`.
    """
    shop, most = shops[d], max(config.shots)
    items = len(shop.items)
    known = of_catalogue(shop)
    everyone = of_users(until(shop, range(len(shop.users)), 1), items)
    others = cosine(words(shop, False, source_idf([one for one in shops if one is not shop])))
    rows = tested_users(config, shop, d)
    found: dict[tuple[str, int], list[np.ndarray]] = {}

    def note(name: str, shots: int, scores: Sequence[np.ndarray]) -> None:
        # The draw of ties depends on the users alone.
        of_seeds = [
            ranks(one, before, target, np.random.default_rng((_TIES, d, first, seed)))
            for seed, one in enumerate(scores)
        ]
        found.setdefault((name, shots), []).append(np.stack(of_seeds))

    for first in range(0, len(rows), AT_ONCE):
        some = rows[first : first + AT_ONCE]
        before, target = until(shop, some, 1), asked(shop, some, 1)
        for shots in config.shots:
            decayed = recency(before, items, shots, (0.0, DECAY))
            note("popularity", shots, [np.tile(everyone.popular, (len(some), 1))])
            note("last item", shots, [known.similar["words"](decayed[0])])
            note("content", shots, [known.similar["words"](decayed[1])])
            note("content, source IDF", shots, [others(decayed[1])])
            weights = recency(before, items, shots)
            features = features_of(known, weights)
            for method in methods:
                if shots < most and method.once:
                    continue
                scores = []
                for one, given in zip(method.weights, method.given, strict=True):
                    extra = {} if given is None else features_of(given, weights)
                    popular = known.popular if given is None else given.popular
                    scores.append(scores_of(one, features | extra, popular))
                note(method.name, shots, scores)
        if first // AT_ONCE % 10 == 9:
            say(f"{shop.name}: ranked for {first + len(some)} of {len(rows)} users")
    return {cell: np.concatenate(parts, axis=1) for cell, parts in found.items()}


def tested_users(config: FrozenConfigDict, shop: Shop, d: int) -> Int[np.ndarray, " users"]:
    """Draw the users that are tested."""
    return drawn(len(shop.users), config.test_users, (_TEST, d))


# ------------------------------------------------------------------------------ rows


def rows_of(
    config: FrozenConfigDict, shop: Shop, users: Int[np.ndarray, " users"], found: Ranks
) -> tuple[list[Row], Scores]:
    """Return the rows of a held-out domain, and each user's NDCG@10.

    "gain" is NDCG@10 minus that of the best baseline with as many items shown, of the same users;
    its interval is paired.
    """
    rows: list[Row] = []
    scores: Scores = {}
    for (name, shots), of_seeds in found.items():
        raw = {
            "rank": of_seeds[:, None, :, None],
            "id": users[:, None],
            "mask": np.ones((len(users), 1), bool),
        }
        own, of_users = cells_to_rows(
            raw,
            scoring=RECOMMENDATION.scoring,
            table=config.table,
            method=name,
            domain=shop.name,
            shots=shots,
            steps=(None,),
            published=PUBLISHED.get(shop.name) if name == "in-domain" else None,
        )
        # A baseline learns nothing, so its one seed is none.
        rows += [replace(r, seeds=None) if name in BASELINES else r for r in own]
        scores |= {k: of_users[k] for k in map(key, own) if PRIMARY in k}
    rows = with_baselines(rows, BASELINES)
    cells = {(row.method, row.shots): row for row in rows if row.metric == PRIMARY}
    for (name, shots), row in cells.items():
        if name in BASELINES:
            continue
        rivals = [cells[baseline, shots] for baseline in BASELINES]
        best = max(rivals, key=lambda rival: rival.value)
        paired = difference(scores[key(row)], scores[key(best)])
        gain = replace(row, metric="gain", baseline=None, published=None)
        rows.append(replace(gain, value=paired.value, ci95=paired.half))
    return rows, scores


def main(config: FrozenConfigDict, workdir: Path) -> None:
    """Learn, adapt and rank for each held-out domain, then write the table."""
    with claimed(config, workdir):
        data = real_data(FILE)
        shops = read_amazon_sequences(data)
        check(config, shops)
        about = f"{FILE} {zlib.crc32(data.read_bytes()):08x}"
        rows: list[Row] = []
        scores: Scores = {}
        choices: dict[str, Any] = {}
        for d, shop in enumerate(shops):
            ranks, choices[shop.name] = finished(
                workdir / shop.name, about, partial(outcome_of, config, shops, d)
            )
            found: Ranks = {}
            for cell, of_seeds in ranks.items():
                name, _, shots = cell.rpartition("/")
                found[name, int(shots)] = of_seeds
            own, of_users = rows_of(config, shop, tested_users(config, shop, d), found)
            rows += own
            scores |= of_users
        path = write_results(config, workdir, rows, scores, tuple(range(config.seeds)))
        write_json(workdir / "choices.json", choices)
    for metric in (PRIMARY, "hr@10", "gain"):
        print_tables(rows, baselines=BASELINES, metric=metric)
    say(f"recommendation: {path}, {workdir / 'choices.json'}")


def outcome_of(
    config: FrozenConfigDict, shops: Sequence[Shop], d: int
) -> tuple[dict[str, np.ndarray], Mapping[str, Any]]:
    """Return the ranks in a held-out domain, keyed by method and shots, and what was learned."""
    methods = methods_of(config, shops, d)
    ranks = tested(config, shops, d, methods)
    return {f"{name}/{shots}": of for (name, shots), of in ranks.items()}, said(methods)


def check(config: FrozenConfigDict, shops: Sequence[Shop]) -> None:
    """Check that there are sources, and as many users as a method is given.

    Raises:
        ConfigError: there is one domain alone, or one has fewer users.
    """
    if len(shops) < 2:
        raise ConfigError("amazon_sequences.zip has one domain; a second one has to teach")
    for shop in shops:
        shared = [frozenset(other.users) for other in shops if other is not shop]
        least = min(len(shop.without(users).users) for users in shared)
        if least < max(1, *config.users):
            raise ConfigError(
                f"config.users is {config.users}: {shop.name} has {least} users that another "
                "domain does not share; give fewer"
            )


def said(methods: Sequence[Method]) -> Mapping[str, Any]:
    """Return the weights of methods as plain JSON, a list of seeds for each."""
    plain = jax.tree.map(
        lambda leaf: np.asarray(leaf).round(3).tolist(), [m.weights for m in methods]
    )
    return {
        method.name: [one._asdict() for one in weights]
        for method, weights in zip(methods, plain, strict=True)
    }


if __name__ == "__main__":
    runner.run(main, **COMMANDS["experiments.tables.recommendation"]._asdict())
