"""The table of product categories: shops that are held out teach nothing, and more than two classes
are learned and adapted as two are."""

import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections.config_dict import FrozenConfigDict
from sklearn.linear_model import LogisticRegression

from experiments import command
from experiments.config_files import ConfigError
from experiments.modules import COMMANDS
from experiments.tables import left_out, product_categories, source_heads
from metaguide.evaluation.results import read
from metaguide.learners.map import map_shift, mean_of_classes
from metaguide.learners.on_features import centred

KINDS = ("Fridges", "Freezers", "TVs", "CPUs")
WORDS = ("white", "steel", "smart", "cheap", "quiet", "built in")
SHOPS, SMALL = 6, 3


def config_of(*flags: str) -> FrozenConfigDict:
    defaults = COMMANDS["experiments.tables.product_categories"]._asdict()
    return command.resolve(["x", "--config.preset=tiny", *flags], **defaults, late=True)[0]


def lay(folder: Path, of_shop: int = 24, wrong: int = -1) -> None:
    """Write titles of six shops, and of three with few; those of one shop may be in the next kind.

    Products 0 to 3 are sold by all shops, all others by one alone. One title is there twice.
    """
    rng, rows = np.random.default_rng(0), []
    for shop in range(SHOPS + SMALL):
        for number in range(of_shop if shop < SHOPS else 6):
            kind = number % 4
            cluster = number if number < 4 else 1000 * shop + number
            title = f"{rng.choice(WORDS)} {KINDS[kind][:3].lower()}{cluster} {rng.choice(WORDS)}"
            named = KINDS[(kind + (shop == wrong)) % 4]
            rows.append(f"{len(rows)},{title},{shop},{cluster},label,{kind},{named}")
        rows.append(rows[-1].replace(rows[-1].split(",")[0], str(len(rows)), 1))
    with zipfile.ZipFile(folder / "pricerunner_aggregate.zip", "w") as packed:
        packed.writestr("pricerunner_aggregate.csv", "\n".join(rows))


def read_in(folder: Path, monkeypatch: pytest.MonkeyPatch, **fault: int) -> tuple[Any, Any]:
    lay(folder, **fault)
    monkeypatch.setenv("METAGUIDE_DATA_DIR", str(folder))
    return product_categories.read(config_of())


def test_shops_are_split_and_new_products_are_those_that_no_source_sells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Faults: a shop is in no group or in two; one with few titles is held out, or does not teach;
    a repeated title counts twice; a product that a shop of the same group sells counts as known, or
    one that a source sells as new."""
    everything, titles = read_in(tmp_path, monkeypatch)
    corpus = everything.characters
    assert sorted(one for group in corpus.groups for one in group) == list(range(SHOPS))
    assert corpus.names[SHOPS] == product_categories.SMALL and corpus.way == 4
    assert [len(corpus.rows(shop)) for shop in range(SHOPS + 1)] == [24] * SHOPS + [6 * SMALL]
    assert all(SHOPS in corpus.sources(group) for group in range(2))
    for group, shops in enumerate(corpus.groups):
        assert corpus.without(group, shops[0] ^ 1) == tuple(range(SHOPS))  # both groups
        assert corpus.without(group, SHOPS) == (*shops, SHOPS)
        for shop in shops:
            assert everything.is_new[group, corpus.rows(shop)].sum() == 20
    # No more than 20 of a shop are tested, and the words are those of the same titles.
    assert {len(titles.characters.rows(shop)) for shop in range(SHOPS)} == {20}
    np.testing.assert_array_equal(titles.words.label, titles.characters.label)
    assert titles.is_new.shape == (2, len(titles.texts)) == (2, 20 * SHOPS + 18)


@pytest.mark.slow
@pytest.mark.parametrize("penalties", [(0.3, 3.0), (1.0,)])
def test_no_label_of_a_group_reaches_what_is_known_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, penalties: tuple[float, ...]
) -> None:
    """Faults: a head, an n-gram's weight, a choice or a rule reads labels of shops that are held
    out; logits that a choice is made on come from heads that read another shop of its group."""
    config = config_of(f"--config.ngrams.penalties={penalties}")

    def known_of(wrong: int) -> Any:
        everything, titles = read_in(tmp_path, monkeypatch, wrong=wrong)
        learned = product_categories.learned_from(config, everything, titles)
        (known,) = learned.methods["n-grams"]
        rule = product_categories.rule_for(config, titles.characters, known, 0, 2)
        name = titles.characters.names[0]
        return titles.characters, known.logits, (rule, learned.choices[name])

    corpus, logits, chosen = known_of(-1)
    assert logits.shape == (2, len(corpus.label), 4)
    _, of_wrong, chosen_of_wrong = known_of(int(corpus.names[0]))  # a shop of group 0
    np.testing.assert_array_equal(of_wrong[0], logits[0])
    assert chosen_of_wrong == chosen
    if len(penalties) == 1:  # of several, group 1 chooses by what its sources are
        own, others = corpus.rows(0), corpus.rows(*corpus.groups[1])
        np.testing.assert_array_equal(of_wrong[1, own], logits[1, own])
        assert np.abs(of_wrong[1, others] - logits[1, others]).max() > 1e-3


def drawn(way: int, examples: int = 30) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vectors, labels of which the last class has two, and logits."""
    rng = np.random.default_rng(2)
    vectors = rng.normal(size=(examples, 384)).astype(np.float32) + 0.5
    label = np.append(np.arange(examples - 2) % (way - 1), [way - 1] * 2)
    return vectors, label, rng.normal(size=(examples, way))


@pytest.mark.slow
@pytest.mark.parametrize("filled", [None, 11])
def test_adaptation_to_unlike_many_examples_is_that_of_a_map_head(filled: int | None) -> None:
    """Faults: the middle is that of the examples, not of the classes; examples that fill up a
    support count; logits of one class are moved for another; a class with few titles has none left
    to ask for."""
    vectors, label, logits = drawn(3)
    support = left_out.supports(label, 3, 1, (0,))
    assert np.bincount(label[support[0]]).tolist() == [3, 3, 1]
    task = left_out.task_of(left_out.gram_of(vectors), label, support)
    found, pays = left_out.adapted(task, logits, left_out.Rule(40.0, 0.7), None, filled)
    assert pays.all() and found.shape == (1, 23, 3)
    (rows,), (query,) = support, task.query
    y, mask, dense = jnp.asarray(label[rows]), jnp.ones(7, bool), jnp.asarray(vectors)
    inputs = centred(dense, mean_of_classes(dense[rows], y, mask, 3))
    known = jnp.asarray(0.7 * logits, jnp.float32)
    shift = map_shift(inputs[rows], y, mask, known[rows], 40.0)
    np.testing.assert_allclose(found[0], known[query] + inputs[query] @ shift, atol=2e-3)


@pytest.mark.slow
def test_two_classes_are_a_case_of_many() -> None:
    """Faults: two classes are adapted to, or a rule for them is learned, otherwise than many."""
    vectors, label, logits = drawn(2)
    task = left_out.task_of(left_out.gram_of(vectors), label, left_out.supports(label, 1, 4, (1,)))
    one, rule = np.diff(logits)[:, 0], left_out.Rule(40.0, 0.7)
    both = np.stack([-one, one], -1) / 2
    found, pays = left_out.adapted(task, one, rule, 0.5)
    of_both, pays_of_both = left_out.adapted(task, both, rule, 0.5)
    np.testing.assert_array_equal(pays, pays_of_both)
    np.testing.assert_allclose(np.diff(of_both)[..., 0], found, atol=1e-5)
    learned = [left_out.rule_of([task], [given], 10.0, 5) for given in (one, both)]
    np.testing.assert_allclose(*learned, rtol=1e-4)
    assert left_out.decided(both, 2).shape == (30, 2)
    np.testing.assert_array_equal(left_out.decided(one, 2), both.argmax(-1))


def test_a_head_of_many_classes_ends_where_newton_does() -> None:
    """Faults: the solver for many classes stops early, or weighs the penalty otherwise."""
    vectors, label, _ = drawn(3, 300)
    vectors = vectors[:, :8] + np.eye(3, 8, dtype=np.float32)[label]
    spread = (vectors - vectors[:200].mean(0)) / vectors[:200].std(0)
    exact = LogisticRegression(C=1 / 5.0, solver="newton-cholesky", tol=1e-8)
    expected = exact.fit(spread[:200], label[:200]).decision_function(spread[200:])
    found = left_out.dense_logits(vectors[:200], label[:200], vectors[200:], 5.0)
    np.testing.assert_allclose(found, expected, atol=5e-3)


def test_what_a_shop_is_measured_by() -> None:
    """Faults: new titles are all; the gain has the wrong sign, or is of other titles."""
    label, is_new = np.array([0, 1, 2, 1]), np.array([False, False, True, True])
    query = np.array([[0, 1, 2], [1, 2, 3]])
    asked = product_categories.Asked(label, is_new, query)
    after, before = np.eye(3)[[[0, 1, 1], [1, 2, 2]]], np.eye(3)[[[0, 0, 1], [1, 0, 0]]]
    found = asked.measured(after, before, np.array([True, False]))
    np.testing.assert_allclose(found, [4 / 6, 1 / 3, 4 / 6 - 2 / 6, 0.5])
    alone = product_categories.Asked(label, np.zeros(4, bool), query).measured(after)
    assert np.isnan(alone).tolist() == [False, True, True, True]


def test_a_run_and_how_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Faults: a row is missing; a group that was finished is learned again, or one that was not is
    passed over; a folder takes another config, or outcomes of other titles."""
    lay(tmp_path)
    monkeypatch.setenv("METAGUIDE_DATA_DIR", str(tmp_path))
    folder = tmp_path / "run"
    product_categories.main(config_of(), folder)
    results = read(folder)
    cells = {(row.method, row.shots) for row in results.rows if row.metric == "accuracy"}
    always = {"majority", "tf-idf zero-shot", "n-grams"}
    few = always | {"tf-idf few-shot", "n-grams alone"}
    assert cells == {(name, 0) for name in always} | {(name, 2) for name in few}
    of = {(row.method, row.shots, row.metric): row for row in results.rows}
    gain, harm = of["n-grams", 2, "gain"], of["n-grams", 2, "harm"]
    assert harm.value <= gain.value and of["n-grams", 2, "accuracy"].baseline is not None
    assert of["n-grams", 0, "accuracy"].value > of["majority", 0, "accuracy"].value
    for scores in results.scores.values():
        assert scores["score"].shape == (1, SHOPS)

    def never(*_: Any) -> Any:
        raise AssertionError("learned again")

    (folder / "results.json").unlink()
    (outcome,) = folder.glob("group1-*/outcome.npz")
    outcome.rename(tmp_path / "1.npz")
    with monkeypatch.context() as patch:
        patch.setattr(product_categories, "learned_from", never)
        with pytest.raises(AssertionError, match="learned again"):
            product_categories.main(config_of(), folder)
        (tmp_path / "1.npz").rename(outcome)
        product_categories.main(config_of(), folder)
    assert read(folder).rows == results.rows
    with pytest.raises(ConfigError, match="holds a run with another config"):
        product_categories.main(config_of("--config.size=3"), folder)
    with monkeypatch.context() as patch:
        patch.setattr(source_heads, "sparse_logits", never)
        product_categories.main(config_of("--config.shots=0,1"), folder)
    assert {row.shots for row in read(folder).rows} == {0, 1}
    lay(tmp_path, wrong=2)
    with pytest.raises(ConfigError, match="outcome.npz: it is of .*; give a new --workdir"):
        product_categories.main(config_of(), folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    "module, step", [(source_heads, "sparse_logits"), (product_categories, "rule_of")]
)
def test_a_table_that_was_stopped_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, check_resumes: Any, module: Any, step: str
) -> None:
    """Faults: what is read back is not what was computed; a head is trained, or a group is learned
    of, again."""
    lay(tmp_path)
    monkeypatch.setenv("METAGUIDE_DATA_DIR", str(tmp_path))
    run = partial(product_categories.main, config_of())
    repeated, every = check_resumes(run, module, step, tmp_path, monkeypatch)
    assert repeated <= 1 < every


@pytest.mark.parametrize("flag", ["least_titles=30", "groups=7"])
def test_too_few_shops_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flag: str) -> None:
    """Fault: a group is empty, and fails far from the field."""
    lay(tmp_path)
    monkeypatch.setenv("METAGUIDE_DATA_DIR", str(tmp_path))
    with pytest.raises(ConfigError, match="config.groups is .* shops have .* give fewer"):
        product_categories.read(config_of(f"--config.{flag}"))
