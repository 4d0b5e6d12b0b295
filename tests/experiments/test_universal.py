"""The table of one guide for all tasks: its shops, its guides, and what is compared."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_collections.config_dict import ConfigDict, FrozenConfigDict

from experiments.comparison import Choice, Comparison
from experiments.config_files import ConfigError
from experiments.configs import universal as configs
from experiments.domain_split import DomainSplit, prepare
from experiments.sources import amazon_sequences, fdu_mtl, pricerunner, shops, subjqa
from experiments.tables import universal
from metaguide.data.catalogue import (
    PARTS,
    CatalogueError,
    Domain,
    Interaction,
    Product,
    Question,
    Review,
    write_domain,
)
from metaguide.evaluation import results
from metaguide.evaluation.results import Row

# ------------------------------------------------------------------------------ shops


def kinds_of(*extra: str) -> dict[str, dict[str, Domain]]:
    """All domains that shops are made of, each with one review, and further ones."""
    named = {
        kind: sorted({one for of in shops.SHOPS.values() for one in of.get(kind, ())})
        for kind in ("reviews", "titles", "questions", "purchases")
    }
    return {
        kind: {
            name: Domain(name, reviews=(Review(f"{kind} {name}", "good"),))
            for name in (*names, *extra)
        }
        for kind, names in named.items()
    }


def test_a_shop_has_all_that_is_about_it() -> None:
    """Catches a part of a shop that is lost or in two shops, and a domain that no shop lists."""
    found = shops.joined(kinds_of("garden"))
    assert sorted(shops.SHOPS) == sorted(set(found) - {"garden"}) and list(found) == sorted(found)
    ids = {name: {one.id for one in shop.reviews} for name, shop in found.items()}
    assert ids["electronics"] == {
        "reviews electronics",
        "questions electronics",
        "titles CPUs",
        "titles TVs",
    }
    assert len(ids["garden"]) == 4  # a domain of every kind, and none in another shop
    every = [one for shop in found.values() for one in shop.reviews]
    assert len(every) == len({one.id for one in every})


def test_a_domain_that_is_gone_is_an_error() -> None:
    """Catches a shop that silently lacks its questions once the data set names them otherwise."""
    kinds = kinds_of()
    kinds["questions"].pop("tripadvisor")
    with pytest.raises(CatalogueError, match="'hotels' has questions of 'tripadvisor', which is"):
        shops.joined(kinds)


@st.composite
def shop(draw: st.DrawFn) -> Domain:
    titles, users = draw(st.integers(0, 12)), draw(st.integers(0, 6))
    sold = [Product(f"p{n}", f"thing {n}") for n in range(4)]
    products = [
        Product(f"t{n}", f"title {n}", category=f"product {draw(st.integers(0, 3))}")
        for n in range(titles)
    ]
    taken = [
        Interaction(f"u{user}", f"p{item}", float(time))
        for user in range(users)
        for time, item in enumerate(draw(st.lists(st.integers(0, 3), min_size=1, max_size=3)))
    ]
    texts = range(draw(st.integers(0, 9)))
    return Domain(
        "shop",
        products=(*sold, *products),
        reviews=tuple(Review(str(n), f"good {n}") for n in texts),
        questions=tuple(Question(str(n), "what", f"it is {n}", None) for n in texts),
        interactions=tuple(taken),
    )


@given(shop(), st.integers(1, 8), st.integers(0, 3))
def test_a_small_shop_is_whole(whole: Domain, most: int, seed: int) -> None:
    """Catches more than the maximum, half a user or half a product's titles, a purchase of what the
    shop does not have, an order that changes, and a draw that the seed does not make."""
    small = shops.at_most(whole, most, seed)
    assert shops.at_most(whole, most, seed) == small and shops.at_most(whole, 0, seed) is whole
    for part in ("reviews", "questions"):
        kept = getattr(small, part)
        assert len(kept) == min(most, len(getattr(whole, part)))
        assert kept == tuple(one for one in getattr(whole, part) if one in kept)
    users = {one.user for one in small.interactions}
    assert len(users) == min(most, len({one.user for one in whole.interactions}))
    assert small.interactions == tuple(one for one in whole.interactions if one.user in users)
    titles = [one for one in small.products if one.category is not None]
    assert len(titles) <= most
    kept = {one.category for one in titles}
    assert titles == [one for one in whole.products if one.category in kept - {None}]
    sold = {one.id for one in small.products if one.category is None}
    assert sold == {one.product for one in small.interactions}


def test_what_is_read_is_what_the_config_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches users of a held-out shop among those that teach, long texts, products of too few
    titles or of titles that are the same, and attributes that give a product away."""
    kinds = kinds_of()
    user = Interaction("u", "p", 0.0), Interaction("v", "p", 0.0)
    for name in ("Beauty", "Sports", "Toys"):
        mine = user[:1] if name == "Toys" else user
        kinds["purchases"][name] = Domain(name, (Product("p", "pan"),), interactions=mine)
    kinds["questions"]["books"] = Domain(
        "books", questions=(Question("1", "w", "ab" * 9, None), Question("2", "w", "ab", None))
    )
    titles = ("A 1", "a-1", "A 2"), ("B 1", "B 2", "B 3")
    kinds["titles"]["TVs"] = Domain(
        "TVs",
        tuple(
            Product(f"{row}.{n}", title, category=str(row), attributes={"kind": "TVs"})
            for row, some in enumerate(titles)
            for n, title in enumerate(some)
        ),
    )
    reviews = fdu_mtl.Reviews(kinds["reviews"])
    monkeypatch.setattr(fdu_mtl, "read_reviews", lambda: (reviews,))
    monkeypatch.setattr(pricerunner, "read_domains", lambda called: kinds["titles"])
    monkeypatch.setattr(subjqa, "read_domains", lambda: kinds["questions"])
    monkeypatch.setattr(amazon_sequences, "read_domains", lambda: kinds["purchases"])
    config = configs.get_config()
    config.data.update({"most": 0, "characters": 10})
    config.episodes.shots = 2
    parts = shops.read(FrozenConfigDict(config), Path())
    found = {one.name: one for part in parts[:3] for one in part}
    assert [one.name for one in parts.held_out] == ["books", "kitchen", "toys"]
    assert {one.user for one in found["toys"].interactions} == {"u"}
    for name in ("beauty", "sports"):
        assert {one.user for one in found[name].interactions} == {"v"}
    assert [one.id for one in found["books"].questions] == ["2"]
    sold = found["electronics"].products
    assert {one.title for one in sold} == {"B 1", "B 2", "B 3"}
    assert {one.category for one in sold} == {"1"} and not any(one.attributes for one in sold)


# ------------------------------------------------------------------------------ guides


def domain(name: str) -> Domain:
    products = tuple(
        Product(f"{name}{n}", f"{name} thing {n} kind {n % 2}", category=f"kind {n % 2}")
        for n in range(14)
    )
    words = ("good", "bad")
    reviews = tuple(
        Review(str(n), f"{words[n % 2]} {name} {n}", sentiment=("positive", "negative")[n % 2])
        for n in range(16)
    )
    return Domain(name, products, reviews)


def config_of(folder: Path, **fields: Any) -> FrozenConfigDict:
    """A config whose guides read n-grams alone, and classify and judge what is in a folder."""
    for name in ("a", "b", "c", "d"):
        write_domain(domain(name), folder / name)
    config: Any = configs.get_config()
    config.update(ConfigDict(config.presets.tiny))
    config.data = {"world": "catalogue", "folder": str(folder), "sources": ()}
    config.data.update({"held_out": ("d",), "validation": ("c",)})
    config.one_shop = ("a",)
    config.model.layers = 0
    config.compilation = "fast"
    config.update_from_flattened_dict(fields)
    return FrozenConfigDict(config)


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> tuple[FrozenConfigDict, DomainSplit]:
    folder = tmp_path_factory.mktemp("shops")
    config = config_of(folder / "shop")
    return config, prepare(config, folder / "run")


def test_each_guide_is_taught_what_its_name_says(
    split: tuple[FrozenConfigDict, DomainSplit],
) -> None:
    """Catches a guide of one task that reads another one's data or trains on it, one of one shop
    that reads others, and a universal one that lacks something."""
    config, domains = split
    found = list(universal.guides_of(config, domains, ("classification", "sentiment")))
    assert [one.name for one in found] == ["universal", "one task", "one task", "one shop"]
    assert len({one.folder for one in found}) == 4
    whole, first, second, few = found
    assert whole.split is domains and whole.config == config == few.config
    assert [one.name for one in few.split.sources] == ["a"]
    assert few.split.held_out == first.split.held_out == domains.held_out
    for guide, task, part in (
        (first, "classification", "products"),
        (second, "sentiment", "reviews"),
    ):
        assert guide.tasks == (task,)
        weights = guide.config.multitask.weights
        assert [one for one in weights if weights[one] > 0] == [task]
        assert [one.name for one in guide.split.sources] == ["a", "b"]
        for own in guide.split.sources:
            assert [one for one in PARTS if getattr(own, one)] == [part]
    some = FrozenConfigDict({**config.to_dict(), "guides": ("one shop",)})
    assert [one.name for one in universal.guides_of(some, domains, ("sentiment",))] == ["one shop"]


def test_a_guide_of_rankings_keeps_what_is_ranked() -> None:
    """Catches a shop of purchases without the products that were bought."""
    whole = replace(domain("a"), interactions=(Interaction("u", "a1", 0.0),))
    own = universal.part_of(whole, "recommendation")
    assert own.products == whole.products and own.interactions and not own.reviews


@pytest.mark.parametrize(
    "fields, tasks, message",
    [
        ({"one_shop": ("z",)}, ("sentiment",), "one_shop names 'z', .*; there are a, b"),
        ({}, ("sentiment", "questions"), "config.data.sources: no source .* of questions"),
    ],
)
def test_what_cannot_be_taught_is_an_error(
    split: tuple[FrozenConfigDict, DomainSplit],
    fields: dict[str, Any],
    tasks: tuple[str, ...],
    message: str,
) -> None:
    """Catches a comparison that leaves a task out, and a shop that is not there."""
    config = FrozenConfigDict({**split[0].to_dict(), **fields})
    with pytest.raises(ConfigError, match=message):
        list(universal.guides_of(config, split[1], tasks))


def test_what_one_shop_lacks_is_an_error(split: tuple[FrozenConfigDict, DomainSplit]) -> None:
    """Catches a guide of one shop that is compared on a task that nothing taught it."""
    config, domains = split
    bare = domains._replace(
        sources=tuple(
            replace(one, reviews=()) if one.name == "a" else one for one in domains.sources
        )
    )
    with pytest.raises(ConfigError, match="config.one_shop: no source has examples of sentiment"):
        list(universal.guides_of(config, bare, ("sentiment",)))


# ------------------------------------------------------------------------------ rows


def row(method: str, shots: int, value: float, **fields: Any) -> Row:
    steps = None if shots else 0
    return Row(
        **{
            "table": "universal",
            "method": method,
            "domain": "d",
            "task": "sentiment",
            "shots": shots,
            "steps": steps,
            "metric": "accuracy",
            "value": value,
            **fields,
        }
    )


def test_the_best_method_that_adapts_stands_for_a_guide() -> None:
    """Catches the method that is best in the test, a cell that two methods or none stand for, and
    zero-shot where the guide has examples."""
    rows = [row("zero-shot", 0, 0.9), row("ridge", 5, 0.8), row("map-head", 5, 0.7)]
    scores = {results.key(one): {"score": np.ones((1, 1))} for one in rows}
    order = [Choice("zero-shot", 1.0, 0.9), Choice("map-head", 3.0, 0.8), Choice("ridge", 1.0, 0.1)]
    tunings: Any = [{"method": one.method, "task": "sentiment"} for one in order]
    comparison = Comparison(rows, scores, {"sentiment": order}, tunings)
    found, own, tuning = universal.chosen("universal", "sentiment", comparison)
    assert [(one.method, one.shots, one.value) for one in found] == [
        ("universal", 0, 0.9),
        ("universal", 5, 0.7),
    ]
    assert set(own) == {results.key(one) for one in found}
    assert tuning == {"method": "universal", "task": "sentiment"}
    alone = Comparison(rows[:1], scores, {"sentiment": order[:1]}, tunings[:1])
    assert [one.value for one in universal.chosen("x", "sentiment", alone)[0]] == [0.9]


def test_a_gain_is_of_the_same_examples() -> None:
    """Catches the sign, a gain over itself, one of another metric, shots or domain, and an interval
    of examples, or of seeds, that are not paired."""
    ids = np.arange(200).reshape(20, 10)
    right = (ids % 3 > 0).astype(np.float32)
    better = np.where(ids % 20 == 0, 1, right).astype(np.float32)
    methods = {"universal": better, "one task": right}
    rows = [
        row(name, shots, float(score.mean()), metric=metric)
        for name, score in methods.items()
        for shots in (0, 5)
        for metric in ("accuracy", "macro_f1")
        if (name, shots) != ("universal", 5)
    ]
    scores = {
        results.key(one): {
            "score": methods[one.method],
            "id": ids,
            "by_seed": methods[one.method].mean() + np.array([-0.1, 0.0, 0.1]),
        }
        for one in rows
        if one.metric == "accuracy"
    }
    (gain,) = universal.gains(rows, scores)
    assert (gain.method, gain.metric, gain.shots) == ("universal over one task", "gain", 0)
    assert gain.value == pytest.approx(float((better - right).mean())) and gain.value > 0
    # Unpaired, the interval of the difference of two proportions of 200 would be .09.
    assert gain.ci95 is not None and 0 < gain.ci95 < 0.03
    assert gain.ci95_seeds == pytest.approx(0, abs=1e-6)


@pytest.mark.slow
def test_guides_are_trained_adapted_and_compared(tmp_path: Path) -> None:
    """Catches a guide that is not in the table, one whose rows are another's, a gain that is not
    the difference, a choice that is not kept, and a finished run that trains again."""
    config = config_of(tmp_path / "shop", guides=("universal", "one task"), one_shop=("nowhere",))
    folder = tmp_path / "run"
    universal.main(config, folder)
    found = results.read(folder)
    cells = {(r.method, r.task, r.shots): r.value for r in found.rows if r.metric == "accuracy"}
    gains = {(r.method, r.task, r.shots): r.value for r in found.rows if r.metric == "gain"}
    for task in ("classification", "sentiment"):
        for shots in (0, 1, 5):
            one, other = (cells[name, task, shots] for name in ("universal", "one task"))
            gain = gains["universal over one task", task, shots]
            assert gain == pytest.approx(one - other, abs=1e-6)
    assert {"majority", "tf-idf few-shot"} <= {row.method for row in found.rows}
    assert {(one["task"], one["method"]) for one in found.tunings} == {
        (task, name) for task in ("classification", "sentiment") for name in configs.GUIDES[:2]
    }
    choices = json.loads((folder / "choices.json").read_text())
    assert {one["method"] for one in choices["one task"]["classification"]} == {
        "zero-shot",
        "map-head",
        "vectors+words",
        "ridge",
        "named-ridge",
    }
    trained = {
        path: path.stat().st_mtime_ns for path in folder.glob("seed0/*/multitask/checkpoints/*")
    }
    assert len(trained) >= 3
    universal.main(config, folder)
    assert {path: path.stat().st_mtime_ns for path in trained} == trained
    assert results.read(folder).rows == found.rows
