"""The table of reviews: nothing of a held-out category is known before it is asked for."""

import zipfile
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections.config_dict import FrozenConfigDict
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics import f1_score
from sklearn.preprocessing import normalize

from experiments import command, sources
from experiments.config_files import ConfigError
from experiments.modules import COMMANDS
from experiments.sources import reviews_of
from experiments.tables import left_out, reviews, sentiment_scores, source_heads
from experiments.tables.left_out import Corpus, corpus_of, taken
from metaguide.data.catalogue import CatalogueError
from metaguide.evaluation.metrics import mean_interval
from metaguide.evaluation.results import read
from metaguide.learners.map import map_shift, mean_of_classes
from metaguide.learners.on_features import centred

NAMES = ("a", "b", "c")
WORDS = (("坏", "差", "烂"), ("好", "棒", "赞"))


def config_of(*flags: str) -> FrozenConfigDict:
    defaults = COMMANDS["experiments.tables.reviews"]._asdict()
    return command.resolve(["x", "--config.preset=tiny", *flags], **defaults, late=True)[0]


def texts_of(label: np.ndarray, rng: np.random.Generator) -> list[str]:
    return ["".join(rng.choice(list("天地人你我他大小"), 8)) + rng.choice(WORDS[y]) for y in label]


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    """Reviews of three categories: a word of sentiment, and one axis of a noisy vector."""
    rng = np.random.default_rng(0)
    label = rng.permuted(np.tile([0, 1], (3, 14)), axis=1).ravel()
    vectors = (2.0 * label[:, None] * (np.arange(6) == 0) + rng.normal(size=(84, 6))) + 1
    category, texts = np.repeat(range(3), 28).tolist(), texts_of(label, rng)
    found = corpus_of(NAMES, ((0,), (1,), (2,)), category, label.tolist(), texts, 3, "character")
    return found._replace(vectors=vectors.astype(np.float32))


@pytest.fixture(scope="module")
def outcomes(corpus: Corpus) -> sentiment_scores.Outcomes:
    learned, found = reviews.learned_from(config_of(), corpus, corpus), {}
    for group in range(3):
        for place, one in reviews.outcomes_of(config_of(), corpus, learned, group)[0].items():
            found.setdefault(place, []).extend(one)
    return found


def test_no_label_of_a_category_reaches_what_is_known_of_it(corpus: Corpus) -> None:
    """Faults: a head, an n-gram's weight, a choice or a rule reads labels of the held-out category;
    logits that choices are made on come from heads that read the labels they are scored on."""
    config = config_of("--config.ngrams.penalties=(0.1,10.0)", "--config.rule.steps=15")
    rng = np.random.default_rng(1)

    def known_of(corpus: Corpus) -> tuple[Any, Any]:
        choices: dict[str, Any] = {}
        methods = source_heads.methods_of(config, corpus, corpus, choices)
        rules = [reviews.rule_for(config, corpus, known, 0, 2, {}) for (known,) in methods.values()]
        return {name: known.logits for name, (known,) in methods.items()}, (choices["a"], rules)

    logits, chosen = known_of(corpus)
    label = corpus.label.copy()
    label[corpus.rows(0)] = rng.permutation(label[corpus.rows(0)])
    assert (label != corpus.label).sum() > 5
    of_permuted, chosen_of_permuted = known_of(corpus._replace(label=label))
    assert chosen_of_permuted == chosen
    for name, before in logits.items():
        after = of_permuted[name]
        np.testing.assert_array_equal(after[0], before[0], err_msg=name)
        own = corpus.rows(0)
        if name != "encoder + n-grams":  # its share is chosen on the labels of all sources
            np.testing.assert_array_equal(after[1:, own], before[1:, own], err_msg=name)
        # What others are told by this category does change.
        assert np.abs(after[1] - before[1])[corpus.rows(1)].max() > 1e-3, name


@pytest.mark.slow
def test_no_label_of_a_group_reaches_what_is_known_of_it(corpus: Corpus) -> None:
    """Faults: of categories that are held out together one teaches the other; a head that a choice
    is scored on has read the source that it is scored on; a source is left out of the last head."""
    rng = np.random.default_rng(6)
    label = rng.permuted(np.tile([0, 1], (4, 14)), axis=1).ravel()
    category = np.repeat(range(4), 28).tolist()
    texts = texts_of(label, rng)

    def known_of(label: np.ndarray) -> tuple[np.ndarray, Any]:
        choices: dict[str, Any] = {}
        of_four = corpus_of("abcd", ((1, 3),), category, label.tolist(), texts, 3, "character")
        ((known,),) = source_heads.methods_of(config_of(), of_four, of_four, choices).values()
        assert set(choices) == {"b", "d"}
        return known.logits, (choices, reviews.rule_for(config_of(), of_four, known, 0, 2, {}))

    logits, chosen = known_of(label)
    assert logits.shape == (1, 112) and (logits != 0).all()
    permuted = label.copy()
    for group in (28, 84):
        permuted[group : group + 28] = 1 - label[group : group + 28]
    of_permuted, chosen_of_permuted = known_of(permuted)
    np.testing.assert_array_equal(of_permuted, logits)
    assert chosen_of_permuted == chosen
    permuted = label.copy()
    permuted[:28] = 1 - label[:28]  # a source
    changed = (known_of(permuted)[0] != logits)[0].reshape(4, 28).any(1)
    assert changed.tolist() == [False, True, True, True]


def test_all_methods_answer_the_same_episodes(
    outcomes: sentiment_scores.Outcomes, corpus: Corpus
) -> None:
    """Faults: methods draw their own supports; a support example is asked for; a review of another
    category is; without shots an episode asks for a part."""
    names = {name for name, _ in outcomes}
    methods = {"n-grams", "encoder", "encoder + n-grams"}
    assert names == methods | {
        *sentiment_scores.BASELINES,
        "encoder alone",
        "encoder alone, unlabelled",
    }
    for shots in (0, 2):
        for d in range(3):
            own = [one for (_, k), found in outcomes.items() if k == shots for one in found[d]]
            rows = corpus.rows(d)
            for one in own:
                np.testing.assert_array_equal(one.query, own[0].query)
                np.testing.assert_array_equal(one.label, corpus.label[rows])
                assert one.logits.shape == one.query.shape
            for query in own[0].query:
                out = np.setdiff1d(np.arange(len(rows)), query)
                assert len(query) == len(rows) - 2 * shots == len(rows) - len(out)
                assert corpus.label[rows][out].sum() == shots
    (known,) = outcomes["n-grams", 2][0]
    first, second = known.query[:2]
    assert (first != second).any()


@pytest.mark.slow
def test_the_span_of_the_support_is_all_a_map_head_learns_in() -> None:
    """Faults: the kernel is centred wrongly, lengths are those from before, a basis is not
    orthonormal: the head would not be that of `centred` and `map_shift`."""
    rng = np.random.default_rng(2)
    vectors = rng.normal(size=(30, 384)).astype(np.float32) + 0.5
    label = np.arange(30) % 2
    support = left_out.supports(label, 3, 1, (0,))
    task = left_out.task_of(left_out.gram_of(vectors), label, support)
    logits = rng.normal(size=30)
    found, pays = left_out.adapted(task, logits, left_out.Rule(40.0, 0.7), None)
    assert pays.all()
    (rows,), (query,) = support, task.query
    y, mask, dense = jnp.asarray(label[rows]), jnp.ones(6, bool), jnp.asarray(vectors)
    inputs = centred(dense, mean_of_classes(dense[rows], y, mask, 2))
    known = jnp.asarray(0.7 * np.stack([-logits, logits], -1) / 2, jnp.float32)
    shift = map_shift(inputs[rows], y, mask, known[rows], 40.0)
    expected = np.diff(known[query] + inputs[query] @ shift)[:, 0]
    np.testing.assert_allclose(found[0], expected, atol=2e-3)


def test_reviews_without_labels_are_read_without_them(corpus: Corpus) -> None:
    """Faults: a label outside the support is read, or the reviews outside it are not."""
    assert corpus.vectors is not None
    rows = corpus.rows(0)
    vectors, label = corpus.vectors[rows].astype(np.float32), corpus.label[rows].astype(np.int32)
    support = left_out.supports(label, 2, 3, (0,)).astype(np.int32)
    found = left_out.with_unlabelled(vectors, label, support)
    assert found.shape == (3, len(rows))
    other = 1 - label
    other[support[0]] = label[support[0]]
    of_other = left_out.with_unlabelled(vectors, other, support)
    np.testing.assert_array_equal(found[0], of_other[0])
    moved = vectors.copy()
    unread = np.setdiff1d(np.arange(len(rows)), support[0])
    moved[unread[0]] = -moved[unread[0]]
    of_moved = np.asarray(left_out.with_unlabelled(moved, label, support))[0]
    assert np.abs(of_moved - np.asarray(found)[0])[unread[1:]].max() > 1e-5


def test_tfidf_is_that_of_the_sources(corpus: Corpus) -> None:
    """Faults: the held-out texts count in the frequencies, three characters do, a norm differs."""
    rng = np.random.default_rng(0)
    label = rng.permuted(np.tile([0, 1], (3, 14)), axis=1).ravel()
    rng.normal(size=(84, 6))
    texts = texts_of(label, rng)
    sources = [texts[row] for row in corpus.others(1)]
    theirs = TfidfVectorizer(analyzer="char", ngram_range=(1, 2)).fit(sources).transform(texts)
    ours = left_out.tfidf(corpus, (1,))(corpus.counts)
    np.testing.assert_allclose((ours @ ours.T).toarray(), (theirs @ theirs.T).toarray(), atol=1e-9)


def test_ngrams_are_of_words_or_of_characters() -> None:
    """Faults: a word counts as many characters, one of a letter is dropped, TF-IDF has trigrams."""
    texts = ["a good book", "not a good one"]
    of_words, of_characters = (
        corpus_of(("a",), ((0,),), [0, 0], [1, 0], texts, 3, unit) for unit in ("word", "character")
    )
    assert sorted(of_words.lengths) == [1] * 5 + [2] * 4 + [3] * 3
    assert set(of_characters.lengths) == {1, 2, 3}
    theirs: Any = TfidfVectorizer(token_pattern=r"\w+", ngram_range=(1, 2)).fit_transform(texts)
    ours = left_out.tfidf(of_words, ())(of_words.counts)
    np.testing.assert_allclose((ours @ ours.T).toarray(), (theirs @ theirs.T).toarray(), atol=1e-9)


def test_scores_by_hand() -> None:
    """Faults: macro-F1 of one class, a gain over other reviews, an interval that is zero."""
    rng = np.random.default_rng(3)
    label = rng.integers(0, 2, 40)
    query = np.stack([rng.permutation(40)[:30] for _ in range(5)])
    before = rng.normal(size=query.shape)
    logits = before + label[query] - 0.5
    found = sentiment_scores.measured(
        sentiment_scores.Outcome(label, query, logits, before, np.ones(5, bool))
    )
    f1 = [f1_score(label[q], z > 0, average="macro") for q, z in zip(query, logits, strict=True)]
    right, was = (logits > 0) == label[query], (before > 0) == label[query]
    assert found["macro_f1"][0] == pytest.approx(np.mean(f1))
    assert found["accuracy"][0] == pytest.approx(right.mean())
    assert found["gain"][0] == pytest.approx(right.mean() - was.mean())
    assert all(0.02 < half < 0.3 for _, half in found.values())


def test_rows_of_seeds_by_hand() -> None:
    """Faults: the first seed stands for all; seeds count as further reviews; the worst category is
    that of one seed; a review has the score of one seed."""
    label, query = np.tile([0, 1], 10), np.arange(20)[None]
    right = np.where(label, 1.0, -1.0)[query]

    def outcome(wrong: int) -> sentiment_scores.Outcome:
        logits = right * np.where(np.arange(20) < wrong, -1, 1)
        return sentiment_scores.Outcome(label, query, logits, right, np.array([wrong > 0]))

    seeds = [(outcome(2), outcome(4)), (outcome(0), outcome(10))]
    rows, scores = sentiment_scores.rows_of(config_of(), ("a", "b"), {("encoder", 2): seeds})
    of = {(row.domain, row.metric): row for row in rows}
    assert {row.seeds for row in rows} == {2}
    for domain, values in (("a", (0.9, 0.8)), ("b", (1.0, 0.5)), ("all", (0.95, 0.65))):
        row = of[domain, "accuracy"]
        assert (row.value, row.ci95_seeds) == pytest.approx(mean_interval(np.array(values)))
    halves = [sentiment_scores.measured(one)["accuracy"][1] for one in seeds[1]]
    assert of["b", "accuracy"].ci95 == pytest.approx(np.mean(halves))
    assert of["all", "harm"].value == pytest.approx(-0.25)
    assert of["all", "adapted"].value == pytest.approx(0.75) and not scores
    _, scores = sentiment_scores.rows_of(config_of(), ("a", "b"), {("encoder", 0): seeds})
    (of_a, of_b) = (scores[name]["score"] for name in sorted(scores))
    assert of_a[0].tolist() == [0] * 2 + [0.5] * 2 + [1] * 16
    assert of_b[0].tolist() == [0.5] * 10 + [1] * 10


def lay(folder: Any, each: int = 16) -> None:
    """Write the file of reviews as small."""
    rng = np.random.default_rng(4)
    label = np.tile([0, 1], 3 * each // 2)
    rows = [
        f"{NAMES[row // each]},{y},{text}"
        for row, (y, text) in enumerate(zip(label, texts_of(label, rng), strict=True))
    ]
    path = folder / "online_shopping_10_cats.zip"
    path.write_text("\n".join(["cat,label,review", *rows]), encoding="utf-8")


@pytest.mark.filterwarnings("ignore:.*the published file has")
def test_without_an_encoder(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Faults: a run without weights fails, or is silent on what the table lacks; the worst category
    is not the worst; choices are not kept."""
    lay(tmp_path)
    monkeypatch.setenv("METAGUIDE_DATA_DIR", str(tmp_path))
    reviews.main(config_of(), tmp_path / "run")
    said = capsys.readouterr().out
    assert "no config.encoder.weights: the table has the methods from nothing alone" in said
    results = read(tmp_path / "run")
    assert {row.method for row in results.rows} == {"n-grams", *sentiment_scores.BASELINES}
    gains = [
        r.value for r in results.rows if r.metric == "gain" and r.domain != sentiment_scores.ALL
    ]
    (harm,) = (row.value for row in results.rows if row.metric == "harm")
    assert len(gains) == 3 and harm == min(gains)
    assert len(results.scores) == 3 * 3
    assert (tmp_path / "run" / "choices.json").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*the published file has")
@pytest.mark.parametrize("module, step", [(source_heads, "sparse_logits"), (reviews, "rule_of")])
def test_a_table_that_was_stopped_goes_on(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, check_resumes: Any, module: Any, step: str
) -> None:
    """Faults: a head that was trained, or a category that was answered, is done again; what is read
    back is not what was computed; choices of what was finished are lost."""
    lay(tmp_path)
    monkeypatch.setenv("METAGUIDE_DATA_DIR", str(tmp_path))
    run = partial(reviews.main, config_of("--config.ngrams.penalties=(0.1,1.0)"))
    repeated, every = check_resumes(run, module, step, tmp_path, monkeypatch)
    assert repeated <= 2 < every
    said = [(tmp_path / name / "choices.json").read_text() for name in ("whole", "halves")]
    assert said[0] == said[1]
    lay(tmp_path, each=18)
    with pytest.raises(ConfigError, match="outcome.npz: it is of .*; give a new --workdir"):
        run(tmp_path / "halves")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*the published file has")
def test_other_shots_train_no_head_again(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Faults: a table with other shots trains its heads anew, is refused by its folder, or takes
    the answers of the shots before; other heads come into the folder."""
    lay(tmp_path)
    monkeypatch.setenv("METAGUIDE_DATA_DIR", str(tmp_path))
    flags = "--config.shots=0,1,2", "--config.episodes=4"
    reviews.main(config_of(*flags), tmp_path / "new")
    reviews.main(config_of("--config.ngrams.penalties=(1.0,)"), tmp_path / "old")

    def never(*_: Any) -> Any:
        raise AssertionError("trained again")

    monkeypatch.setattr(source_heads, "sparse_logits", never)
    reviews.main(config_of(*flags), tmp_path / "old")
    assert read(tmp_path / "old").rows == read(tmp_path / "new").rows
    with pytest.raises(ConfigError, match="holds a run with another config: ngrams.longest was 3"):
        reviews.main(config_of(*flags, "--config.ngrams.longest=2"), tmp_path / "old")


@pytest.mark.slow
def test_english_reviews_hold_out_four_shops_at_once(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Faults: the texts of two files of one domain are one; films count as a shop; a text of a
    held-out shop stands in a source as well; a line that cannot be read is dropped in silence."""
    rng = np.random.default_rng(7)
    held_out = ("books", "dvd", "electronics", "kitchen_housewares")
    with zipfile.ZipFile(tmp_path / "fdu_mtl.zip", "w") as packed:
        for name in (*held_out, "baby", "toys", "imdb"):
            for part in ("train", "test", "unlabel"):
                label = np.tile([0, 1], 10)
                texts = texts_of(label, rng)
                lines = [
                    f"{y}\t{name} {part} {' '.join(t)}" for y, t in zip(label, texts, strict=True)
                ]
                lines += ["1\tthe same everywhere", "9\tno such label"]
                packed.writestr(f"mtl-dataset/{name}.task.{part}", "\n".join(lines))
    monkeypatch.setenv("METAGUIDE_DATA_DIR", str(tmp_path))
    ((domains, _),) = reviews_of("fdu_mtl")
    assert sorted(domains) == sorted({*held_out, "baby", "toys"})
    assert [len(one.reviews) for one in domains.values()] == [41, 40, 40, 40, 40, 40]
    assert capsys.readouterr().out.count("left out 2: reviews: sentiment") == 6
    data = {"world": "fdu_mtl", "sources": (), "validation": ("baby",), "held_out": ("dvd", "toys")}
    parts = sources.read(FrozenConfigDict({"data": data}), tmp_path)
    assert [one.name for one in parts.sources] == ["books", "electronics", "kitchen_housewares"]
    assert [one.name for one in parts.held_out] == ["dvd", "toys"] and not parts.always
    defaults = COMMANDS["experiments.tables.reviews"]._asdict()
    english = "--config=experiments/configs/reviews_en.py"
    config = command.resolve(["x", english, "--config.preset=tiny"], **defaults, late=True)[0]
    reviews.main(config, tmp_path / "run")
    results = read(tmp_path / "run")
    assert {row.domain for row in results.rows} == {*held_out, sentiment_scores.ALL}
    assert {row.table for row in results.rows} == {"reviews_en"}
    for flag, words in {
        "('books','cars')": "names 'cars', which the reviews do not have; they have baby",
        "('baby','books','dvd','electronics','toys')": "fewer than two categories to learn from",
    }.items():
        argv = ["x", english, "--config.preset=tiny", f"--config.held_out={flag}"]
        with pytest.raises(ConfigError, match=words):
            reviews.read(command.resolve(argv, **defaults, late=True)[0])


@pytest.mark.slow
def test_a_fixed_support_is_given_and_all_else_is_asked(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Faults: a support is drawn where it is published, or is asked for; a review for validation of
    a target is read; one threshold teaches another; a source without its file counts."""
    rng = np.random.default_rng(8)
    targets = ("books", "dvd", "electronics", "kitchen_housewares")
    with zipfile.ZipFile(tmp_path / "arsc.zip", "w") as packed:
        for name in (*targets, "baby", "toys", "tools", "music"):
            for threshold in ("t2", "t4", "t5"):
                for part in ("dev", "test", *(["train"] if name != "music" else [])):
                    count = 10 if part == "train" else 6 if name in targets else 4
                    label = np.tile([0, 1], count // 2)
                    lines = [
                        f"{name} {threshold} {part} {' '.join(text)}\t{2 * y - 1}"
                        for y, text in zip(label, texts_of(label, rng), strict=True)
                    ]
                    packed.writestr(f"Amazon_few_shot/{name}.{threshold}.{part}", "\n".join(lines))
    monkeypatch.setenv("METAGUIDE_DATA_DIR", str(tmp_path))
    defaults = COMMANDS["experiments.tables.reviews"]._asdict()
    argv = ["x", "--config=experiments/configs/arsc.py", "--config.preset=tiny"]
    argv += ["--config.per_category=15"]
    config = command.resolve([*argv, "--config.shots=(0,5)"], **defaults, late=True)[0]
    parts = reviews.read(config)
    assert len(parts) == 3
    for (_, corpus, texts), threshold in zip(parts, ("t2", "t4", "t5"), strict=True):
        names = [*(f"{one}.{threshold}" for one in targets), f"baby.{threshold}"]
        assert corpus.names[:5] == tuple(names) and f"music.{threshold}" not in corpus.names
        assert np.bincount(corpus.category).tolist() == [16] * 4 + [15] * 3
        assert not any(f"{one} {threshold} dev" in text for one in targets for text in texts)
        for number, rows in corpus.support.items():
            assert corpus.label[rows].tolist() == [0] * 5 + [1] * 5
            own = f"{targets[number]} {threshold} train"
            assert all(texts[row].startswith(own) for row in rows)
    data = {"world": "arsc", "sources": (), "validation": ("toys.t2",), "held_out": ("dvd.t4",)}
    split = sources.read(FrozenConfigDict({"data": data}), tmp_path)
    assert len(split.sources) == 3 * 7 - 2 and len(split.held_out[0].reviews) == 16
    reviews.main(config, tmp_path / "run")
    results = read(tmp_path / "run")
    assert {row.domain for row in results.rows} == {*config.held_out, sentiment_scores.ALL}
    assert {row.episodes for row in results.rows} == {1}
    (ids,) = {one["id"].shape for one in results.scores.values()}
    assert ids == (1, 6)
    with pytest.raises(ConfigError, match="support of books.t2 is fixed, and has 5 .* leave out 3"):
        reviews.read(command.resolve([*argv, "--config.shots=(0,3,5)"], **defaults, late=True)[0])


@pytest.mark.filterwarnings("ignore:.*the published file has")
def test_what_cannot_run_is_said(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Faults: a traceback of numpy where a category is too small, or of a missing encoder."""
    lay(tmp_path)
    monkeypatch.setenv("METAGUIDE_DATA_DIR", str(tmp_path))
    with pytest.raises(ConfigError, match="config.shots is .*: a has 8 reviews of one sentiment"):
        reviews.main(config_of("--config.shots=(0,8)"), tmp_path / "small")
    with pytest.raises(ConfigError, match="config.encoder: .*none"):
        weights = f"--config.encoder.weights={tmp_path / 'none'}"
        reviews.main(config_of(weights), tmp_path / "none")


def test_a_zip_that_is_not_the_published_one_is_one_clear_error(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Faults: a traceback of zipfile; a table of no categories; METAGUIDE_DATA_DIR is not named."""
    monkeypatch.delenv("METAGUIDE_DATA_DIR", raising=False)
    with pytest.raises(ConfigError, match="METAGUIDE_DATA_DIR is not set; .* with fdu_mtl.zip"):
        reviews_of("fdu_mtl")
    monkeypatch.setenv("METAGUIDE_DATA_DIR", str(tmp_path))
    with pytest.raises(CatalogueError, match="arsc.zip: cannot be read .*; download it again"):
        reviews_of("arsc")
    (tmp_path / "arsc.zip").write_bytes(b"PK\3\4 and so on")
    with pytest.raises(CatalogueError, match="arsc.zip: cannot be read"):
        reviews_of("arsc")
    with zipfile.ZipFile(tmp_path / "fdu_mtl.zip", "w") as packed:
        packed.writestr("mtl-dataset/readme.txt", "1\tgood")
    with pytest.raises(CatalogueError, match="holds no file such as .*; download it again"):
        reviews_of("fdu_mtl")


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("shots=()", "one or more values"),
        ("shots=(-1,)", "each a whole number of at least 0"),
        ("episodes=1", "give a whole number of at least 2"),
        ("per_category=-1", "give a whole number of at least 0"),
        ("caution=-1.0", "give a number of at least 0"),
        ("encoder.penalties=(0.0,)", "each a positive number"),
        ("ngrams.longest=1", "give a whole number from 2"),
        ("ngrams.unit=letter", "give one of character, word"),
        ("reviews=films", "give one of online_shopping, fdu_mtl, arsc"),
        ("stack.shares=()", "one or more values"),
        ("rule.steps=0", "give a whole number of at least 1"),
    ],
)
def test_values_out_of_range_are_refused(flag: str, words: str) -> None:
    """Fault: a setting without a meaning starts a run of minutes."""
    with pytest.raises(ConfigError, match=words):
        config_of(f"--config.{flag}")


def test_vectors_are_of_unit_length_before_they_are_compared() -> None:
    """Fault: a long vector outweighs the others in the middle of a support."""
    vectors = np.random.default_rng(5).normal(size=(4, 3)) * [[1], [9], [1], [1]]
    gram = left_out.gram_of(vectors)
    short = np.asarray(normalize(vectors))
    np.testing.assert_allclose(gram, short @ short.T)


def test_some_reviews_keep_what_belongs_to_them(corpus: Corpus) -> None:
    """Fault: vectors or counts of other rows."""
    rows = np.array([3, 40, 80])
    some = taken(corpus, rows)
    assert some.vectors is not None and corpus.vectors is not None
    np.testing.assert_array_equal(some.vectors, corpus.vectors[rows])
    np.testing.assert_array_equal(some.counts.toarray(), corpus.counts.toarray()[rows])
    np.testing.assert_array_equal(some.label, corpus.label[rows])


def test_the_held_out_category_has_no_say_in_a_choice(corpus: Corpus) -> None:
    """Fault: the accuracy that decides counts the held-out category, here a large gain there."""
    right = 2.0 * corpus.label - 1
    candidates = np.stack([right, right])[:, None].repeat(3, 1)
    candidates[0, 0, corpus.rows(0)] *= -1  # better in the sources by little, wrong in "a"
    candidates[1, 0, corpus.rows(1)[:3]] *= -1
    assert left_out.choice(candidates, corpus, 0) == 0
    assert left_out.choice(candidates[::-1], corpus, 0) == 1


def test_what_answers_learns_from_all_reviews_and_what_chooses_from_the_tested(
    corpus: Corpus,
) -> None:
    """Faults: what answers for a group learns from the tested reviews alone, or choices are made by
    heads that learned from more; what heads have weighed is weighed again for the products."""
    few = taken(corpus, np.arange(0, 84, 2))
    read: list[tuple[tuple[int, ...], Corpus]] = []

    def weigh(train: Corpus, out: tuple[int, ...]) -> Any:
        read.append((out, train))
        return lambda counts: counts

    heads, gram = source_heads.of_counts(corpus, few, weigh)
    for out in ((0,), (0, 1)):
        (logits,) = heads(out, few.rows(0), [1.0])
        assert len(logits) == 14 and gram(0, out).shape == (14, 14)
    assert [(out, train is corpus, train is few) for out, train in read] == [
        ((0,), True, False),
        ((0, 1), False, True),
    ]


def test_heads_without_a_source_are_trained_only_where_they_are_read(corpus: Corpus) -> None:
    """Fault: logits of the sources are computed where neither they nor a choice is wanted, or are
    not where one is."""
    asked: list[tuple[int, ...]] = []

    def heads(out: tuple[int, ...], rows: np.ndarray, penalties: Any) -> Any:
        asked.append(out)
        return [np.ones(len(rows))] * len(penalties)

    groups, pairs = {(0,), (1,), (2,)}, {(0, 1), (0, 2), (1, 2)}
    for penalties, of_sources, expected in (
        ([1.0], False, groups), ([1.0], True, groups | pairs), ([1.0, 2.0], False, groups | pairs)
    ):  # fmt: skip
        asked.clear()
        left_out.zero_shot(corpus, heads, penalties, of_sources)
        assert set(asked) == expected
