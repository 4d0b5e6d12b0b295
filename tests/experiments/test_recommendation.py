"""The table of recommendation: of a held-out domain nothing is read but what is said to be."""

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ml_collections.config_dict import FrozenConfigDict
from scipy import sparse

from experiments import command, sources
from experiments.config_files import ConfigError
from experiments.modules import COMMANDS
from experiments.sources.amazon_sequences import Shop, read_amazon_sequences
from experiments.tables import next_item, recommendation
from experiments.tables.next_item import Examples, Known, Weights
from metaguide.data.catalogue import CatalogueError
from metaguide.evaluation.results import read

USERS = "user_sequence.txt"
ITEMS = "item_generative_indexing_c2.txt"
SHARED = ("both0", "both1", "both2")
"""Users that all domains of `shops` have."""


def config_of(*flags: str) -> FrozenConfigDict:
    defaults = COMMANDS["experiments.tables.recommendation"]._asdict()
    return command.resolve(["x", "--config.preset=tiny", *flags], **defaults, late=True)[0]


def shop_of(name: str, seed: int, items: int = 30, users: int = 25) -> Shop:
    """A domain where users stay among the items of one cluster, mostly."""
    rng = np.random.default_rng(seed)
    cluster = rng.integers(0, 4, items)
    pieces = tuple(
        (f"▁c{c}", f"▁w{rng.integers(8)}", f"x{rng.integers(20)}") for c in cluster.tolist()
    )
    names = (*SHARED, *(f"{name}{n}" for n in range(users)))
    sequences = []
    for number in range(len(names)):
        near = np.where(cluster == number % 4, 8.0, 1.0)
        length = rng.integers(4, 9)
        drawn = rng.choice(items, length, replace=False, p=near / near.sum())
        sequences.append(drawn.astype(np.int32))
    ids = tuple(f"{name}{n:03d}" for n in range(items))
    return Shop(name, ids, pieces, names, tuple(sequences))


@pytest.fixture(scope="module")
def shops() -> tuple[Shop, ...]:
    return tuple(shop_of(name, seed) for seed, name in enumerate(("A", "B", "C")))


def lay(path: Path, shops: Sequence[Shop]) -> None:
    """Write shops as the published zip has them."""
    with zipfile.ZipFile(path, "w") as archive:
        for shop in shops:
            lines = [f"{i} |{'|'.join(p)}" for i, p in zip(shop.items, shop.pieces, strict=True)]
            archive.writestr(f"rec_datasets/{shop.name}/{ITEMS}", "\n".join(lines))
            lines = [
                " ".join((user, *(shop.items[item] for item in sequence)))
                for user, sequence in zip(shop.users, shop.sequences, strict=True)
            ]
            archive.writestr(f"rec_datasets/{shop.name}/{USERS}", "\n".join(lines))


# ------------------------------------------------------------------------------ the reader


def test_reads_what_was_written(tmp_path: Path, shops: tuple[Shop, ...]) -> None:
    """Faults: items or users are mixed up, the order of time is lost, a piece is."""
    path = tmp_path / "amazon_sequences.zip"
    lay(path, shops[::-1])
    found = read_amazon_sequences(path)
    assert [shop.name for shop in found] == ["A", "B", "C"]
    for one, other in zip(found, shops, strict=True):
        assert one[:4] == other[:4]
        for mine, theirs in zip(one.sequences, other.sequences, strict=True):
            np.testing.assert_array_equal(mine, theirs)


def test_shops_are_domains_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shops: tuple[Shop, ...]
) -> None:
    """Faults: an interaction is of another user, item or place in time; a title has the marks of
    pieces; a run cannot hold a shop out."""
    lay(tmp_path / "amazon_sequences.zip", shops)
    monkeypatch.setenv("METAGUIDE_DATA_DIR", str(tmp_path))
    data = {"world": "amazon_sequences", "sources": (), "validation": ("B",), "held_out": ("C",)}
    parts = sources.read(FrozenConfigDict({"data": data}), tmp_path)
    (domain,), shop = parts.sources, shops[0]
    assert (domain.name, parts.held_out[0].name) == ("A", "C")
    assert [one.id for one in domain.products] == list(shop.items)
    assert not any("|" in one.title or "▁" in one.title for one in domain.products)
    row = 3
    own = [one for one in domain.interactions if one.user == shop.users[row]]
    assert [one.product for one in own] == [shop.items[item] for item in shop.sequences[row]]
    assert [one.time for one in own] == list(range(len(own)))


GOOD = {ITEMS: b"i1 |a|b\ni2 |c\ni3 |a\n", USERS: b"u1 i1 i2 i3\nu2 i3 i2 i1\n"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({USERS: b"u1 i1 i2 i3\nu2 i3 i2\n"}, f"{USERS}:2: user u2 has 2 items, and 3 are needed"),
        ({USERS: b"u1 i1 i2 i3\n\nu1 i3 i2 i1"}, f"{USERS}:3: user u1 stands here again"),
        ({USERS: b"u1 i1 i2 i9\n"}, f"{USERS}:1: item i9 has no line in the file of items"),
        ({USERS: b"u1 i1 i2 i1\n"}, f"{USERS}:1: item i1 stands twice"),
        ({USERS: b"u1 i1 i2 i3\nu\xff i1 i2 i3\n"}, f"{USERS}:2: not UTF-8"),
        ({USERS: b"\n"}, f"{USERS}: no user in this file"),
        ({USERS: None}, "D has no user_sequence.txt"),
        ({ITEMS: b"i1 |a\ni2\n"}, f"{ITEMS}:2: item i2 has no pieces"),
        ({ITEMS: b"i1 |a\ni1 |b\n"}, f"{ITEMS}:2: item i1 stands here again"),
        ({ITEMS: b""}, f"{ITEMS}: no item in this file"),
        ({ITEMS: None}, "D has no item_generative_indexing"),
        ({ITEMS: None, USERS: None}, "no DOMAIN/user_sequence.txt"),
        ({"item_generative_indexing_x.txt": b"i1 |a"}, "is of the same domain; drop one"),
    ],
)
def test_damage_is_named_with_file_and_line(
    tmp_path: Path, change: Mapping[str, bytes | None], words: str
) -> None:
    """Fault: a damaged file is read in part, or ends in a traceback."""
    path = tmp_path / "amazon_sequences.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("README", "x")
        for name, content in {**GOOD, **change}.items():
            if content is not None:
                archive.writestr(f"rec_datasets/D/{name}", content)
    with pytest.raises(CatalogueError, match=words) as error:
        read_amazon_sequences(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_file_that_is_missing_or_no_zip_is_said(tmp_path: Path) -> None:
    """Fault: a traceback of zipfile."""
    with pytest.raises(CatalogueError, match="no such file; set METAGUIDE_DATA_DIR"):
        read_amazon_sequences(tmp_path / "amazon_sequences.zip")
    (tmp_path / "x.zip").write_bytes(b"PK no zip")
    with pytest.raises(CatalogueError, match=r"x\.zip: cannot be read"):
        read_amazon_sequences(tmp_path / "x.zip")


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(content=st.binary(max_size=60), which=st.sampled_from([ITEMS, USERS]))
def test_any_bytes_are_read_or_refused(tmp_path: Path, content: bytes, which: str) -> None:
    """Fault: an error of another kind leaves the reader."""
    path = tmp_path / "amazon_sequences.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, known in GOOD.items():
            added = known + content if name == which else known
            archive.writestr(f"rec_datasets/D/{name}", added)
    try:
        (shop,) = read_amazon_sequences(path)
    except CatalogueError:
        return
    assert len(shop.items) >= 3 and len(shop.users) >= 2
    assert all(len(set(one.tolist())) == len(one) >= 3 for one in shop.sequences)


# ------------------------------------------------------------------------------ scores


def test_ranks_are_those_of_a_loop() -> None:
    """Faults: an item of the history competes, ties are all won or all lost, a constant scores."""
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 4, (200, 12)).astype(float)
    histories = [rng.permutation(12)[:3] for _ in range(200)]
    target = np.array([rng.choice(np.setdiff1d(range(12), one)) for one in histories])
    found = next_item.ranks(scores, histories, target, rng)
    for rank, row, history, aim in zip(found, scores, histories, target, strict=True):
        free = [item for item in range(12) if item not in history]
        better = sum(row[item] > row[aim] for item in free)
        tied = sum(row[item] == row[aim] for item in free) - 1
        assert 1 + better <= rank <= 1 + better + tied
    of_constant = next_item.ranks(np.zeros((2000, 12)), histories * 10, np.tile(target, 10), rng)
    assert set(of_constant.tolist()) == set(range(1, 10))
    assert of_constant.mean() == pytest.approx(5, abs=0.25)


def test_scores_are_those_of_the_formula(shops: tuple[Shop, ...]) -> None:
    """Faults: weights of another decay or age, a similarity of the wrong direction, items beyond
    those shown, popularity twice."""
    shop, rng = shops[0], np.random.default_rng(1)
    items = len(shop.items)
    pair = rng.random((items, items)).astype(np.float32)
    known = Known({"x": next_item.matrix(sparse.csr_array(pair))}, rng.random(items))
    weights = Weights({"x": np.array([0.5, -1.0, 2.0])}, np.array(0.3))
    histories = [one[:-1] for one in shop.sequences[:3]]
    features = next_item.features_of(known, next_item.recency(histories, items, most=2))
    found = next_item.scores_of(weights, features, known.popular)
    for history, row in zip(histories, found, strict=True):
        before, last = history[-2:]
        expected = 0.3 * known.popular
        for theta, decay in zip((0.5, -1.0, 2.0), next_item.DECAYS, strict=True):
            expected = expected + theta * (pair[last] + decay * pair[before]) / (1 + decay)
        np.testing.assert_allclose(row, expected, rtol=1e-5)


def test_similarities_by_hand() -> None:
    """Faults: the direction of a transition, a gap's weight, numbers that are near in one direction
    alone, paths whose first pieces differ counted as one word."""
    after, together = next_item.transitions([np.array([0, 1, 2]), np.array([1, 0])], 4)
    count = np.array([[0, 1, 0.7, 0], [1, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_allclose(after.toarray(), count / (1 + count.sum(1))[:, None], rtol=1e-6)
    both = count + count.T
    root = np.sqrt(1 + both.sum(1))
    np.testing.assert_allclose(together.toarray(), both / np.outer(root, root), rtol=1e-6)
    one = sparse.csr_array(np.eye(9, dtype=np.float32)[[4]])
    near = next_item.near_number(2.0, 9)(one)[0]
    np.testing.assert_allclose(near, np.exp(-np.abs(np.arange(9) - 4) / 2), rtol=1e-6)
    pieces = (("a", "b"), ("a", "b"), ("c", "b"))
    shop = Shop("x", ("1", "2", "3"), pieces, ("u",), (np.arange(3),))
    similar = next_item.cosine(next_item.words(shop, True))(sparse.eye_array(3).tocsr())
    assert similar[0, 1] == pytest.approx(1) and 0 < similar[0, 2] < 0.4


def test_gain_is_ndcg_where_scores_are_far_apart() -> None:
    """Faults: the target counts as its own rival, what a rival stands for is not counted."""
    scores = np.array([[0.0, 50, -50, 50], [0, -50, -50, -50]], np.float32)
    stands_for = np.array([[1.0, 1, 7], [1, 1, 7]], np.float32)
    examples = Examples({"x": scores[..., None]}, np.zeros((2, 4), np.float32), stands_for)
    found = next_item.gain(Weights({"x": np.ones(1)}, np.array(0.0)), examples)
    cut = 1 / (1 + np.exp(-(10 - np.array([8, 0])) / 3))
    assert float(found) == pytest.approx((cut / np.log2([10, 2])).mean(), abs=1e-4)


def test_rivals_are_the_best_of_each_similarity_and_drawn(shops: tuple[Shop, ...]) -> None:
    """Faults: an item of the history or the target is its own rival, one counts twice, an item that
    one similarity alone ranks first does not compete."""
    shop, rng = shops[0], np.random.default_rng(3)
    items = len(shop.items)
    cat = next_item.of_catalogue(shop)
    # Popularity says which item is which, since only it is kept as it is.
    known = cat._replace(popular=np.arange(items, dtype=np.float32))
    histories = [one[:-1] for one in shop.sequences]
    target = np.array([one[-1] for one in shop.sequences])
    (found,) = next_item.examples_of(known, [None], histories, target, 6, rng, at_once=10)
    asked = np.asarray(found.popular).astype(int)
    np.testing.assert_array_equal(asked[:, 0], target)
    features = next_item.features_of(cat, next_item.recency(histories, items))
    for number, history in enumerate(histories):
        counted = asked[number, 1:][np.asarray(found.stands_for)[number] == 1]
        assert len(set(counted.tolist())) == len(counted)
        every = asked[number, 1:][np.asarray(found.stands_for)[number] > 0]
        assert not {*history.tolist(), target[number]} & {*every.tolist()}
        for name, feature in features.items():
            score = np.sum([one[number] for one in feature], axis=0)
            score[[*history, target[number]]] = -1
            assert score[counted].max() == pytest.approx(score.max()), name
        picked = [one[number] for one in features["words"]]
        for place, item in enumerate(asked[number]):
            values = np.asarray(found.similar["words"])[number, place]
            np.testing.assert_allclose(values, [one[item] for one in picked], rtol=1e-6)


def test_what_is_popular_competes_where_users_are_given(shops: tuple[Shop, ...]) -> None:
    """Fault: the weight of popularity grows unopposed, since no item competes for being taken by
    many."""
    shop, rng = shops[0], np.random.default_rng(5)
    items = len(shop.items)
    users = next_item.Known({}, np.arange(items, dtype=np.float32))
    histories = [one[:-1] for one in shop.sequences]
    target = np.array([one[-1] for one in shop.sequences])
    catalogue = next_item.of_catalogue(shop)
    (found,) = next_item.examples_of(catalogue, [users], histories, target, 6, rng)
    asked = np.asarray(found.popular).astype(int)
    for number, history in enumerate(histories):
        counted = asked[number, 1:][np.asarray(found.stands_for)[number] == 1]
        free = np.setdiff1d(np.arange(items), [*history, target[number]])
        assert {*free[-2:].tolist()} <= {*counted.tolist()}


def test_learning_finds_what_predicts() -> None:
    """Fault: weights move away from what ranks the target first, or do not move."""
    rng = np.random.default_rng(2)
    features = rng.random((40, 21, 3)).astype(np.float32)
    features[:, 0, 2] = 1.5
    zeros = np.zeros((40, 21), np.float32)
    examples = Examples({"x": features}, zeros, np.ones((40, 20), np.float32))
    found = next_item.learned([examples, examples], 60, 0.5)
    assert found.similar["x"][2] > found.similar["x"][:2].max() + 5


# ------------------------------------------------------------------------------ what is read


def told(methods: Sequence[recommendation.Method]) -> dict[str, Any]:
    """Return all that methods know: weights, and what users tell, as plain numbers."""
    found = recommendation.said(methods)
    every = sparse.csr_array(np.eye(30, dtype=np.float32))
    return {
        method.name: (
            found[method.name],
            [
                None
                if known is None
                else [
                    known.popular.tolist(),
                    *(of(every).tolist() for of in known.similar.values()),
                ]
                for known in method.given
            ],
        )
        for method in methods
    }


def changed(shop: Shop, rows: Sequence[int], places: slice) -> Shop:
    """Return a shop where these users took other items at these places."""
    sequences = list(shop.sequences)
    for row in rows:
        own = sequences[row].copy()
        free = np.setdiff1d(np.arange(len(shop.items)), own)
        own[places] = free[: len(own[places])]
        sequences[row] = own
    return shop._replace(sequences=tuple(sequences))


def test_what_is_known_of_a_held_out_domain(shops: tuple[Shop, ...]) -> None:
    """Faults: weights of the sources depend on a purchase in the held-out domain or on a user that
    it shares; anything depends on the items that are asked for there."""
    config = config_of()
    known = told(recommendation.methods_of(config, shops, 0))
    every = range(len(shops[0].users))

    of_others = told(
        recommendation.methods_of(config, (changed(shops[0], every, slice(2)), *shops[1:]), 0)
    )
    names = set(known)
    assert names == {
        *("text", "text + numbers", "adapted, 5 users", "adapted, all users", "in-domain")
    }
    for name in names - {"in-domain"}:
        assert of_others[name][0] == known[name][0], name
    for name in ("text", "text + numbers"):
        assert of_others[name] == known[name]
    for name in ("adapted, all users", "in-domain"):  # the test would see a purchase that is read
        assert of_others[name][1] != known[name][1], name
    assert of_others["in-domain"][0] != known["in-domain"][0]

    asked = changed(shops[0], every, slice(-1, None))
    assert told(recommendation.methods_of(config, (asked, *shops[1:]), 0)) == known

    rows = range(len(SHARED))
    shared = tuple(changed(shop, rows, slice(None)) for shop in shops[1:])
    assert told(recommendation.methods_of(config, (shops[0], *shared), 0)) == known
    rows = range(len(SHARED), len(shops[1].users))
    own = told(
        recommendation.methods_of(
            config, (shops[0], changed(shops[1], rows, slice(None)), shops[2]), 0
        )
    )
    assert all(own[name][0] != known[name][0] for name in names - {"in-domain"})


# ------------------------------------------------------------------------------ the run


@pytest.mark.slow
def test_a_run_and_how_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shops: tuple[Shop, ...]
) -> None:
    """Faults: a row is missing, what was ranked is ranked again, ranks are of other users; a folder
    takes another config, or ranks of other data."""
    lay(tmp_path / "amazon_sequences.zip", shops)
    monkeypatch.setenv("METAGUIDE_DATA_DIR", str(tmp_path))
    folder = tmp_path / "run"
    recommendation.main(config_of(), folder)
    results = read(folder)
    learned = {"text", "text + numbers"}
    full = learned | {"adapted, 5 users", "adapted, all users", "in-domain"}
    for domain in "ABC":
        for shots, methods in ((1, learned), (50, full)):
            rows = [r for r in results.rows if (r.domain, r.shots) == (domain, shots)]
            assert {r.method for r in rows} == methods | {*recommendation.BASELINES}
            gains = {r.method: r for r in rows if r.metric == "gain"}
            assert set(gains) == methods
            of = {r.method: r for r in rows if r.metric == "ndcg@10"}
            best = max(of[name].value for name in recommendation.BASELINES)
            for name in methods:
                assert gains[name].value == pytest.approx(of[name].value - best, abs=1e-6)
                assert of[name].baseline == best and of[name].seeds == 2
    metrics = {r.metric for r in results.rows} - {"gain"}
    assert metrics == {*(f"{m}@{k}" for m in ("hr", "ndcg") for k in (5, 10, 50)), "mrr"}
    assert all("ndcg@10" in name for name in results.scores)
    assert (folder / "choices.json").exists()

    def never(*_: Any) -> Any:
        raise AssertionError("learned again")

    (folder / "results.json").unlink()
    (folder / "A" / "outcome.npz").rename(tmp_path / "A.npz")
    with monkeypatch.context() as patch:
        patch.setattr(recommendation, "methods_of", never)
        with pytest.raises(AssertionError, match="learned again"):
            recommendation.main(config_of(), folder)
        (tmp_path / "A.npz").rename(folder / "A" / "outcome.npz")
        recommendation.main(config_of(), folder)
    assert read(folder).rows == results.rows
    with pytest.raises(ConfigError, match="holds a run with another config"):
        recommendation.main(config_of("--config.seeds=3"), folder)
    lay(tmp_path / "amazon_sequences.zip", (changed(shops[0], [0], slice(2)), *shops[1:]))
    with pytest.raises(ConfigError, match="A/outcome.npz: it is of .*; give a new --workdir"):
        recommendation.main(config_of(), folder)


def test_more_users_than_there_are_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shops: tuple[Shop, ...]
) -> None:
    """Fault: fewer users adapt than the name of the method says."""
    lay(tmp_path / "amazon_sequences.zip", shops)
    monkeypatch.setenv("METAGUIDE_DATA_DIR", str(tmp_path))
    with pytest.raises(ConfigError, match="config.users is .*: A has 25 users that another"):
        recommendation.main(config_of("--config.users=(26,)"), tmp_path / "run")
    lay(tmp_path / "amazon_sequences.zip", shops[:1])
    with pytest.raises(ConfigError, match="has one domain; a second one has to teach"):
        recommendation.main(config_of(), tmp_path / "run")


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("seeds=1", "give a whole number of at least 2"),
        ("shots=(0,)", "each a whole number of at least 1"),
        ("users=(-1,)", "each a whole number of at least 0"),
        ("learn.learning_rate=0.0", "give a positive number"),
    ],
)
def test_values_out_of_range_are_refused(flag: str, words: str) -> None:
    """Fault: a setting without a meaning starts a run of minutes."""
    with pytest.raises(ConfigError, match=words):
        config_of(f"--config.{flag}")
