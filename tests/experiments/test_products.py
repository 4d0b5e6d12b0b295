"""The table of products: what is learned of the sources alone, and answers of kernels by hand."""

import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from ml_collections.config_dict import FrozenConfigDict
from sklearn.feature_extraction.text import TfidfVectorizer

from experiments import command, sources
from experiments.config_files import ConfigError
from experiments.modules import COMMANDS
from experiments.sources.pricerunner import APPLIANCES, ELECTRONICS
from experiments.tables import ngram_kernels, products
from experiments.tables.ngram_kernels import Kind, Rule, Titles
from metaguide.evaluation.results import read

WORDS = ("white", "steel", "smart", "cheap", "quiet", "built in", "sim free", "cm")


def config_of(*flags: str) -> FrozenConfigDict:
    defaults = COMMANDS["experiments.tables.products"]._asdict()
    return command.resolve(["x", "--config.preset=tiny", *flags], **defaults, late=True)[0]


def titles_of(rng: np.random.Generator, product: int, each: int) -> list[str]:
    """Titles that share a model number and else are any words."""
    model = f"{'abcdef'[product % 6]}{product * 37 % 100:02d}x"
    return [" ".join([*rng.choice(WORDS, 3), model, str(shop)]) for shop in range(each)]


def lay(folder: Path, of_category: int = 4, each: int = 4) -> None:
    """Write the file of titles as small, one of them twice."""
    rng, rows = np.random.default_rng(0), []
    for place, category in enumerate((*ELECTRONICS, *APPLIANCES)):
        for product in range(of_category):
            cluster = 100 * place + product
            for title in titles_of(rng, cluster, each):
                rows.append(f"{len(rows)},{title},1,{cluster},label,{place},{category}")
        rows.append(rows[-1].replace(rows[-1].split(",")[0], str(len(rows)), 1))
    with zipfile.ZipFile(folder / "pricerunner_aggregate.zip", "w") as packed:
        packed.writestr("pricerunner_aggregate.csv", "\n".join(rows))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> products.Data:
    folder = tmp_path_factory.mktemp("titles")
    lay(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METAGUIDE_DATA_DIR", str(folder))
        found, texts = products.read(config_of())
    assert {len(one) for one in texts.values()} == {16}  # the repeated one is read once
    rng = np.random.default_rng(1)
    vectors = {name: rng.normal(size=(16, 6)).astype(np.float32) for name in texts}
    return found._replace(
        titles={name: one._replace(vectors=vectors[name]) for name, one in found.titles.items()}
    )


def test_ngrams_have_the_kind_that_a_reader_sees() -> None:
    """Faults: the end of a word counts as a character; "5kg" is no digit; two words are one."""
    found = ngram_kernels.count_ngrams({"a": ["5kg Box"], "b": ["box"]})
    assert [len(found.counts[name].toarray()) for name in "ab"] == [1, 1]
    assert {one for one in found.kinds if one.unit == "words"} == {
        Kind("words", 1, "digits and letters"),
        Kind("words", 1, "no digit"),
        Kind("words", 2, "digits and letters"),
    }
    assert {one.length for one in found.kinds if one.unit == "characters"} == {1, 2, 3}
    assert Kind("characters", 1, "digits") in found.kinds
    assert found.counts["b"].data.max() == 1.0
    of_groups = ngram_kernels.effects(found.kinds)
    assert of_groups.shape[0] == 3 * len(found.kinds) + 1
    np.testing.assert_array_equal(of_groups[:-1].sum(1), 3)  # length, digits and rarity
    np.testing.assert_array_equal(of_groups[-1], np.eye(of_groups.shape[1])[-1])


def test_the_baseline_is_the_nearest_by_tfidf() -> None:
    """Faults: an idf that is not scikit-learn's, n-grams of five characters, no length of one."""
    texts = ["bosch kur15a white", "bosch kur15a", "smeg fab28 red fridge", "smeg fab28"]
    ngrams = ngram_kernels.count_ngrams({"a": texts})
    counts, product = ngrams.counts["a"], np.array([0, 0, 1, 1])
    known = ngram_kernels.weighting(ngrams.kind, [counts], [None])
    (used,) = [products.used_groups(ngrams.kinds, False)["tf-idf"]]
    # Of n-grams that count, those of one character between two ends of a word do not.
    rule = ngram_kernels.alike(used.tolist())
    found = ngram_kernels.similarity(Titles(counts, product), known, rule)
    found = found / np.sqrt(np.outer(np.diag(found), np.diag(found)))
    analyze = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5)).build_analyzer()

    def inner(text: str) -> list[str]:
        return [one for one in analyze(text) if 2 <= len(one.strip()) <= 4]

    few: Any = inner  # scikit-learn takes it, and its annotation does not
    theirs: Any = TfidfVectorizer(analyzer=few, sublinear_tf=True).fit_transform(texts)
    np.testing.assert_allclose(found, (theirs @ theirs.T).toarray(), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("shots", [1, 2])
def test_a_query_is_answered_alike_in_learning_and_after(data: products.Data, shots: int) -> None:
    """Faults: the kernel of all titles and those of an episode's groups differ in a weight, in
    whether the encoder counts, or in their order; a mean or the nearest title is of another."""
    titles = data.titles["TVs"]
    groups = 3 * len(data.kinds)
    known = products.known_of(data, products.TASKS[0], ELECTRONICS, ["TVs"])["TVs"]
    rng = np.random.default_rng(2)
    weights = rng.normal(size=groups + 1).astype(np.float32)
    rule = Rule(weights, np.float32(1.0), np.float32(0.3))
    episodes = ngram_kernels.draw(titles.product, 5, 3, shots, 1, (0,))
    of_groups = ngram_kernels.kernels(titles, known, groups, episodes, shots)
    found = ngram_kernels.similarity(titles, known, rule)
    said = ngram_kernels.answers(found, episodes, shots, rule)
    for number, episode in enumerate(episodes):
        one = jax.tree.map(lambda part, n=number: part[n], of_groups)
        logits = np.asarray(ngram_kernels.logits_of(rule, one, 3))
        np.testing.assert_array_equal(said[number].ravel(), logits.argmax(-1))
        near = found / np.sqrt(np.outer(np.diag(found), np.diag(found)))
        for row, query in enumerate(episode[:, shots:].ravel()):
            of_products = []
            for own in episode[:, :shots]:
                mean = near[query, own].mean() - near[np.ix_(own, own)].mean() / 2
                share = 1 / (1 + np.exp(-0.3))
                of_products.append((1 - share) * mean + share * near[query, own].max())
            np.testing.assert_allclose(logits[row], np.exp(1.0) * np.array(of_products), rtol=1e-4)


@pytest.mark.slow
def test_what_is_learned_tells_products_apart(data: products.Data) -> None:
    """Faults: the gradient has the wrong sign, a group that is left out counts, λ does nothing."""
    config = config_of("--config.learning.steps=40", "--config.learning.episodes=8")
    tasks = products.tasks_of(config, data, products.TASKS[0], ELECTRONICS, 0)
    used = products.used_groups(data.kinds, False)["n-grams, learned"]
    free, held = (products.rule_of(config, data, used, tasks, one) for one in (1e-3, 1e3))
    assert free.weights[-1] == held.weights[-1] == -np.inf  # the encoder
    assert np.abs(held.weights[:-1]).max() < 0.05 < np.abs(free.weights[:-1]).max()
    of_digits = np.repeat([one.digits != "no digit" for one in data.kinds], 3)
    weights = free.weights[:-1]
    assert weights[of_digits].mean() > weights[~of_digits].mean() + 0.5  # models are told by these


@pytest.mark.slow
def test_nothing_of_what_is_held_out_is_learned(data: products.Data) -> None:
    """Faults: labels of the held-out category reach a rule or a choice; its titles reach the
    frequencies where they are not to be read, or do not where they are."""
    config, sources = config_of(), ("CPUs", "TVs")

    def chosen(data: products.Data, task: str) -> tuple[Any, Any]:
        tasks = products.tasks_of(config, data, task, sources, 0)
        return products.choose(config, data, task, sources), tasks

    rng = np.random.default_rng(3)
    fridges = data.titles["Fridges"]
    other = fridges._replace(product=rng.permutation(fridges.product))
    changed = data._replace(
        titles={**data.titles, "Fridges": other},
        every={**data.every, "Fridges": data.every["Fridges"] * 3},
    )
    for task in products.TASKS:
        before, after = chosen(data, task), chosen(changed, task)
        assert before[0] == after[0]
        jax.tree.map(np.testing.assert_array_equal, before[1], after[1])
    fewer = data._replace(every={**data.every, "Fridges": data.every["Fridges"][:3]})
    known = [
        [products.known_of(one, task, sources, ["Fridges"])["Fridges"].idf for one in (data, fewer)]
        for task in products.TASKS
    ]
    np.testing.assert_array_equal(known[0][0], known[0][1])
    assert np.abs(known[1][0] - known[1][1]).max() > 0.1


def test_episodes_ask_for_other_titles_of_the_same_products() -> None:
    """Faults: a title is both given and asked for; a product occurs twice; one has too few."""
    product = np.repeat(np.arange(6), [3, 4, 5, 2, 4, 6])
    episodes = ngram_kernels.draw(product, 50, 4, 2, 2, (1,))
    assert episodes.shape == (50, 4, 4)
    for episode in episodes:
        assert len(set(episode.ravel())) == 16
        of_rows = product[episode]
        assert (of_rows == of_rows[:, :1]).all() and len(set(of_rows[:, 0])) == 4
        assert not {0, 3} & set(of_rows[:, 0])
    with pytest.raises(ValueError, match="4 products have 4 titles, and an episode takes 5"):
        ngram_kernels.draw(product, 1, 5, 2, 2, (1,))


@pytest.mark.slow
def test_a_run_writes_its_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Faults: a category or a task is missing, a mean is not that of its categories, seeds do not
    count, a category that is too small is a traceback."""
    lay(tmp_path)
    monkeypatch.setenv("METAGUIDE_DATA_DIR", str(tmp_path))
    split = {"world": "pricerunner", "sources": (), "validation": ("TVs",), "held_out": ("CPUs",)}
    parts = sources.read(FrozenConfigDict({"data": split}), tmp_path)
    clusters = {one.category for one in parts.held_out[0].products}
    assert len(parts.sources) == 8 and len(clusters) == 4
    products.main(config_of("--config.learning.penalties=(0.1,)"), tmp_path / "run")
    assert "no config.encoder.weights" in capsys.readouterr().out
    results = read(tmp_path / "run")
    names = {*ELECTRONICS, *APPLIANCES}
    for task in products.TASKS:
        for shots in (1, 2):
            cell = [row for row in results.rows if (row.task, row.shots) == (task, shots)]
            assert {row.domain for row in cell} == {*names, *products.SPLITS}
            for method in ("tf-idf", "n-grams, learned"):
                value = {row.domain: row.value for row in cell if row.method == method}
                for name, held_out in products.SPLITS.items():
                    assert value[name] == pytest.approx(np.mean([value[one] for one in held_out]))
    learned = [row for row in results.rows if row.method == "n-grams, learned"]
    assert {row.seeds for row in learned} == {2} and all(row.baseline for row in learned)
    assert len(results.scores) == 2 * 2 * 2 * 10
    with pytest.raises(ConfigError, match="config.way is 5: .* has 4 products of 3 titles"):
        products.read(config_of("--config.way=5"))


@pytest.mark.slow
def test_a_table_that_was_stopped_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, check_resumes: Any
) -> None:
    """Faults: what was learned of a task is learned again; what is read back is not what was
    computed, or of other titles."""
    lay(tmp_path)
    monkeypatch.setenv("METAGUIDE_DATA_DIR", str(tmp_path))
    run = partial(products.main, config_of("--config.learning.penalties=(0.1,)"))
    repeated, every = check_resumes(run, products, "learn", tmp_path, monkeypatch)
    assert repeated <= every // 4  # two splits of two tasks
    lay(tmp_path, of_category=5)
    with pytest.raises(ConfigError, match="outcome.npz: it is of .*; give a new --workdir"):
        run(tmp_path / "halves")


def test_a_source_that_is_asked_in_a_choice_does_not_teach(
    data: products.Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault: a penalty is chosen on titles that it was learned from."""
    taught: list[tuple[str, ...]] = []

    def tasks_of(config: Any, data: Any, task: str, sources: Any, seed: int) -> list[Any]:
        taught.append(tuple(sources))
        return []

    asked: list[Any] = []

    def right(titles: Any, *rest: Any) -> Any:
        asked.append(titles)
        return [np.ones((1, 1, 1))]

    monkeypatch.setattr(products, "tasks_of", tasks_of)
    monkeypatch.setattr(products, "rule_of", lambda *rest: None)
    monkeypatch.setattr(products, "right", right)
    config = config_of("--config.learning.penalties=(1.0,2.0)")
    products.choose(config, data, products.TASKS[0], ELECTRONICS)
    assert [set(ELECTRONICS) - set(one) for one in taught] == [{one} for one in ELECTRONICS]
    expected = [data.titles[one] for one in ELECTRONICS for _ in range(2)]
    assert all(one is other for one, other in zip(asked, expected, strict=True))
