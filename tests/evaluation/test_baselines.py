"""Baselines against answers known by hand, and through the same rows as the methods."""

import jax
import numpy as np
import pytest
from scipy import sparse
from sklearn.linear_model import LogisticRegression

from metaguide.data.ngrams import hashed_ngrams
from metaguide.evaluation import baselines
from metaguide.evaluation.results import cells_to_rows
from metaguide.tasks import QUESTIONS, RECOMMENDATION, SENTIMENT

SOURCE = ["good cheap thing", "bad broken thing", "good solid thing", "bad late thing"]


def test_vocabulary_is_the_sources_alone():
    """IDF or vocabulary that has read the held-out domain; one-letter or Chinese words lost."""
    words = baselines.fit_tfidf(SOURCE)
    assert words.transform(["heater boils"]).nnz == 0
    assert {"good cheap", "thing"} <= set(words.vocabulary_)
    han = baselines.fit_tfidf(["质量很好", "质量太差", "4K屏很好"])
    assert {"质 量", "好", "很 好", "4k 屏"} <= set(han.vocabulary_)


def test_texts_without_a_word_have_features_too():
    """Fault: a shop of pictures alone, whose titles are empty, has no baseline but an error."""
    for texts in ([], ["", "!"]):
        assert baselines.fit_tfidf(texts).transform(["a hose", ""]).nnz == 0


def test_majority_is_the_cells_prior_within_the_episodes_classes():
    """A majority over the whole table, one that counts a recurring example twice, or a class that
    the episode does not have."""
    labels = np.array([3, 3, 5, 5, 5, 9, 9])
    query = np.array([[0, 1, 2, -1], [0, 1, 2, 5]])
    assert baselines.majority(labels, query)["predicted"].tolist() == [[[[3] * 4] * 2]]
    ways = np.array([[5, 9], [9, 3]])
    found = baselines.majority(labels, query, ways)["predicted"][0, 0]
    assert found[:, 0].tolist() in ([5, 3], [9, 3])
    found = baselines.majority(labels, np.array([[0, 2], [0, 3], [0, 4]]))
    assert found["predicted"].ravel().tolist() == [5] * 6


def test_zero_shot_reads_source_labels_only():
    """A zero-shot row that was fitted on the held-out texts."""
    words = baselines.fit_tfidf(SOURCE)
    model = baselines.fit_source(words.transform(SOURCE), np.array([1, 0, 1, 0]))
    texts = ["good heater", "bad heater", "broken boiler"]
    query = np.array([[0, 1], [2, -1]])
    found = baselines.zero_shot(model, words.transform(texts), np.array([0, 0, 0]), query)
    assert found["predicted"][0, 0][query >= 0].tolist() == [1, 0, 0]
    rows, _ = cells_to_rows(
        found,
        table="t",
        method="tf-idf zero-shot",
        domain="d",
        scoring=SENTIMENT.scoring,
        shots=0,
    )
    assert [row.value for row in rows if row.metric == "accuracy"] == [pytest.approx(2 / 3)]


def test_class_names_choose_among_the_episodes_classes():
    """A nearest name out of the episode, or the slot returned in place of the class."""
    names = ["", "red shoe", "blue hat", "green coat"]
    words = baselines.fit_tfidf(names[1:])
    texts = ["a red shoe for you", "the coat is green", "unknown words"]
    labels, query = np.array([1, 3, 2]), np.array([[0, 1, 2]])
    features, targets = words.transform(texts), words.transform(names)
    found = baselines.nearest_class(features, targets, labels, query, np.array([[2, 3, 1]]))
    assert found["predicted"][0, 0, 0, :2].tolist() == [1, 3]
    drawn = [
        baselines.nearest_class(features, targets, labels, query, np.array([[2, 3, 1]]), seed=seed)
        for seed in range(40)
    ]
    assert {int(one["predicted"][0, 0, 0, 2]) for one in drawn} == {1, 2, 3}


def test_the_nearest_class_is_that_of_its_name_and_its_examples():
    """Faults: padding is an example, or an example of another class; a class with more examples is
    nearer; the name does not count beside them."""
    rng = np.random.default_rng(0)
    dense = rng.random((9, 6)) * (rng.random((9, 6)) < 0.7)
    dense /= np.linalg.norm(dense, axis=1, keepdims=True)
    names, labels = dense[rng.permutation(9)[:4]], np.array([0, 1, 2, 3, 1, 2, 2, 0, 3])
    classes, query = np.array([[2, 1], [3, 0]]), np.array([[5, 4], [7, 8]])
    support = np.array([[1, 2, 6], [3, 0, -1]])
    found = baselines.nearest_class(
        sparse.csr_array(dense), sparse.csr_array(names), labels, query, classes, support
    )
    for episode, way in enumerate(classes):
        given = support[episode][support[episode] >= 0]
        known = [names[c] + dense[given][labels[given] == c].sum(0) for c in way]
        cosines = dense[query[episode]] @ np.stack(known).T / np.linalg.norm(known, axis=1)
        assert found["predicted"][0, 0, episode].tolist() == way[cosines.argmax(1)].tolist()


def test_ngrams_are_weighted_by_their_rarity_in_the_sources(monkeypatch):
    """Faults: a text counts an n-gram twice; one that no source has is left out, or is not the
    rarest; texts are mixed up where they are read in several parts; a text without any is NaN."""
    texts = ["a red shoe a red", "red hat", "", "blue", "red", "shoe zq"]
    whole = baselines.fit_ngrams(texts[:5])
    monkeypatch.setattr(baselines, "AT_ONCE", 2)
    parts = baselines.fit_ngrams(texts[:5])
    np.testing.assert_array_equal(whole.rarity, parts.rarity)
    grams = hashed_ngrams(texts)
    red, unseen = set(grams[0]) & set(grams[1]) & set(grams[4]) - {0}, set(grams[5]) - {*grams[0]}
    assert red and {round(whole.rarity[g], 9) for g in red} == {round(np.log(6 / 4) + 1, 9)}
    assert {whole.rarity[g] for g in unseen} == {whole.rarity.max()}
    found = whole.transform(texts).toarray()
    for row, kept in zip(found, grams, strict=True):
        kept = kept[kept > 0]
        expected = np.zeros(len(row))
        expected[kept] = whole.rarity[kept] / max(np.linalg.norm(whole.rarity[kept]), 1e-9)
        np.testing.assert_allclose(row, expected)


def test_few_shot_is_the_full_regression_on_the_support():
    """Kept grams that change the solution; padding or queries read as support."""
    rng = np.random.default_rng(0)
    vocabulary = [f"w{i}" for i in range(60)]
    texts = [" ".join(rng.choice(vocabulary, 8)) for _ in range(40)]
    words = baselines.fit_tfidf(texts)
    features, labels = words.transform(texts), rng.integers(0, 3, 40)
    support = np.array([[0, 1, 2, 3, 4, 5, 6, 7], [8, 9, 10, 11, 12, 13, -1, -1]])
    query = np.array([[20, 21, 22, 23], [24, 25, 26, 27]])
    found = baselines.few_shot(features, labels, support, query)["predicted"][0, 0]
    for episode in range(2):
        given = support[episode][support[episode] >= 0]
        whole = LogisticRegression(C=10.0, tol=1e-8, max_iter=1000)
        whole.fit(features[given].toarray(), labels[given])
        assert found[episode].tolist() == whole.predict(features[query[episode]]).tolist()
    with pytest.raises(ValueError, match="episode 0 has no support"):
        baselines.few_shot(features, labels, np.full((1, 3), -1), query[:1])


def test_abstaining_is_right_on_what_has_no_answer():
    """Abstaining scored as wrong, or as right everywhere."""
    found = baselines.abstain(np.array([True, False]), np.array([[0, 1, -1]]))
    rows, _ = cells_to_rows(
        found, table="t", method="abstain", domain="d", scoring=QUESTIONS.scoring, shots=1
    )
    values = {row.metric: row.value for row in rows}
    assert values["em"] == values["f1"] == 0.5
    assert values["f1_answerable"] == 0 and values["accuracy_unanswerable"] == 1


def test_best_sentence_is_scored_as_its_words():
    """Faults: a sentence is cut at a decimal; its stop costs points; abstaining is possible; one
    of several answers counts."""
    text = "It is red. In all it weighs 1.5 kg."
    words = baselines.fit_tfidf(["in all it weighs", "it is red", "nine hours"])
    golds = [["In all it weighs 1.5 kg"], ["1.5 kg", "weighs 1.5 kg"], []]
    found = baselines.best_sentence(
        words, ["what in all"] * 3, [text] * 3, golds, np.array([[0, 1, 2]])
    )
    assert found["em"].tolist() == [[[[1, 0, 0]]]]
    np.testing.assert_allclose(found["f1"], [[[[1, 2 * 3 / (6 + 3), 0]]]])
    assert found["answerable"].tolist() == [[[[True, True, False]]]]
    found = baselines.best_sentence(words, ["?"], [""], [[]], np.array([[0, -1]]))
    assert found["em"][..., 0].item() == 1 and found["mask"].tolist() == [[[[True, False]]]]


def test_popularity_leaves_out_what_is_asked_for():
    """The held-out interaction counted into popularity, which then leaks the answer; or taken out
    once for each episode in which its user recurs."""
    taken = np.array([[0, 0], [1, 0], [0, 1], [1, 1], [7, 2]])
    everything = np.ones((1, 3), bool)
    query, users = np.array([[2], [2]]), np.array([7, 7])
    found = baselines.popularity(taken, query, users, everything)
    assert found["rank"].ravel().tolist() == [3, 3]
    assert found["id"].ravel().tolist() == [7, 7]
    more = np.append(taken, [[2, 0], [2, 2], [3, 2]], axis=0)
    found = baselines.popularity(more, query[:1], users[:1], everything)
    assert found["rank"].item() in (2, 3)
    candidates = np.array([[False, True, True]])
    more = np.append(taken, [[2, 2]], axis=0)
    found = baselines.popularity(more, query[:1], users[:1], candidates)
    assert found["rank"].item() == 2


def test_popularity_does_not_count_the_askers_own_products_against_him():
    """Faults: what he took between the known ones and the one asked for stands above it; a product
    that another took again and again counts as often."""
    taken = np.array([[7, 0], [7, 1], [7, 2], [1, 0], [2, 2], [1, 3], [1, 3], [1, 3]])
    everything = np.ones((1, 4), bool)
    # One other took each of 0, 2 and 3: a draw between three, and 1 is behind.
    ranks = {
        baselines.popularity(taken, np.array([[2]]), np.array([7]), everything, seed)["rank"].item()
        for seed in range(30)
    }
    assert ranks == {1, 2, 3}


def test_content_weighs_the_latest_most():
    """The decay run backwards in time, or padding taken as product -1."""
    texts = ["red shoe", "blue hat", "red boot", "blue cap"]
    features = baselines.fit_tfidf(texts).transform(texts)
    support, users = np.array([[0, 1], [1, 0], [0, -1]]), np.arange(3)
    candidates = np.array([[False, False, True, True]])
    found = baselines.content(features, support, np.array([[3], [2], [2]]), users, candidates)
    assert found["rank"].ravel().tolist() == [1, 1, 1]
    none = np.full((200, 2), -1)
    found = baselines.content(features, none, np.full((200, 1), 3), np.arange(200), candidates)
    assert 0.3 < np.mean(found["rank"] == 1) < 0.7


def test_rankings_are_the_same_however_many_are_in_memory(monkeypatch):
    """Faults: the episodes of one block get the scores, the candidates or the ties of another's;
    the last block is lost."""
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(["red", "blue", "shoe", "hat"], 2)) for _ in range(6)]
    features = baselines.fit_tfidf(texts).transform(texts)
    users, support = np.arange(11), rng.integers(-1, 6, (11, 3))
    query = np.stack([rng.permutation(6)[:2] for _ in users])
    query[3, 1] = -1
    candidates = rng.random((11, 6)) < 0.6
    candidates[np.arange(11)[:, None], query] = True
    taken = np.unique(rng.integers(0, (14, 6), (40, 2)), axis=0)

    def found():
        return (
            baselines.popularity(taken, query, users, candidates),
            baselines.content(features, support, query, users, candidates),
        )

    together = found()
    monkeypatch.setattr(baselines, "AT_ONCE", 4)
    jax.tree.map(np.testing.assert_array_equal, found(), together)


def spoiled(features, row):
    """Sparse features in which a row is not finite."""
    dense = features.toarray()
    dense[row] = np.nan
    return sparse.csr_array(dense)


def test_a_baseline_whose_scores_are_not_finite_chooses_nothing():
    """Faults: the NaN is sorted last and so is the nearest; a similarity that is not finite is a
    rank of 1; nothing is counted; one broken row spoils the others."""
    words = baselines.fit_tfidf(SOURCE)
    features, labels = words.transform(SOURCE), np.array([1, 0, 1, 0])
    query, names = np.array([[0, 1, -1]]), words.transform(["bad", "good"])
    model = baselines.fit_source(features, labels)
    support = np.array([[2, 3]])
    makers = {
        "class names": lambda rows: baselines.nearest_class(
            rows, names, labels, query, np.array([[0, 1]])
        ),
        "zero-shot": lambda rows: baselines.zero_shot(model, rows, labels, query),
        "few-shot": lambda rows: baselines.few_shot(rows, labels, support, query),
    }
    for name, make in makers.items():
        clean, found = make(features), make(spoiled(features, 0))
        assert clean["predicted"][0, 0, 0, :2].tolist() == [1, 0], name
        assert found["predicted"][0, 0, 0, :2].tolist() == [-1, 0], name
        assert found["finite"][0, 0, 0, :2].tolist() == [False, True], name
        rows, _ = cells_to_rows(
            found, table="t", method=name, domain="d", scoring=SENTIMENT.scoring, shots=1
        )
        assert rows[0].value == 0.5 and rows[0].diverged == 1
    bad = spoiled(names, 1)
    found = baselines.nearest_class(features, bad, labels, query, np.array([[0, 1]]))
    assert (found["predicted"][0, 0, 0, :2] == -1).all()
    bad = spoiled(features, 2)
    assert (baselines.few_shot(bad, labels, support, query)["predicted"][0, 0, 0, :2] == -1).all()


def test_a_nearness_that_is_not_finite_answers_nothing_and_ranks_nothing(monkeypatch):
    """Faults: a NaN is the nearest sentence, or counts as having abstained; it is the first of one
    candidate."""
    words, broken = baselines.fit_tfidf(SOURCE), baselines.fit_tfidf(SOURCE)
    monkeypatch.setattr(broken, "transform", lambda texts: spoiled(words.transform(texts), 0))
    texts, golds = ["It is good. It is bad.", "It is late."], [["It is good."], []]
    found = baselines.best_sentence(broken, ["good?", "late?"], texts, golds, np.array([[0, 1]]))
    assert found["em"].ravel().tolist() == [0, 0] and found["finite"].ravel()[0] == 0
    found = baselines.best_sentence(broken, ["good?"], ["It is late."], [[]], np.array([[0]]))
    assert found["em"].item() == found["f1"].item() == 0
    support, query, users = np.array([[0]]), np.array([[1]]), np.array([0])
    for candidates in ([[False, True, False, False]], [[False, True, True, True]]):
        features = spoiled(words.transform(SOURCE), 1)
        found = baselines.content(features, support, query, users, np.array(candidates))
        assert not found["finite"].item() and found["rank"].item() == max(sum(candidates[0]), 2)
        rows, _ = cells_to_rows(
            found,
            table="t",
            method="content",
            domain="d",
            scoring=RECOMMENDATION.scoring,
            shots=1,
        )
        assert {row.value for row in rows} == {0} and {row.diverged for row in rows} == {1}


@pytest.mark.slow
def test_a_baseline_whose_scores_are_constant_gets_what_chance_gets():
    """Faults: the first class, sentence or product is taken, which may always be the right one, or
    never."""
    words, many = baselines.fit_tfidf(SOURCE), 2000
    texts = ["unknown"] * 2 * many
    features, labels = words.transform(texts), np.arange(2 * many) % 2
    query = np.arange(many).reshape(-1, 1) * 2
    found = baselines.few_shot(features, labels, np.tile([[1, 0]], (many, 1)), query)
    assert 0.45 < np.mean(found["predicted"] == 0) < 0.55
    ways = np.tile([[0, 1, 2, 3]], (many, 1))
    found = baselines.nearest_class(features, words.transform(["other"] * 4), labels, query, ways)
    assert 0.2 < np.mean(found["predicted"] == 0) < 0.3
    text, golds = "It is so. It is not. It may be. It was.", [["It is so."], ["It was."]]
    found = baselines.best_sentence(words, ["why?"] * 2, [text] * 2, golds, np.array([[0, 1]]))
    assert found["em"].ravel().tolist() == [0.25, 0.25]
    asked = np.arange(many)[:, None]
    taken, users = np.stack([asked[:, 0], asked[:, 0] * 0], -1), asked[:, 0]
    found = baselines.popularity(taken, asked * 0, users, np.ones((1, 4), bool))
    assert 0.2 < np.mean(found["rank"] == 1) < 0.3


def test_a_baseline_with_one_candidate_takes_it():
    """Fault: with nothing to choose from there is no answer, or a draw among none."""
    words = baselines.fit_tfidf(SOURCE)
    features, labels, query = words.transform(SOURCE), np.array([1, 0, 1, 0]), np.array([[0]])
    one = np.array([[1]])
    found = baselines.nearest_class(features, words.transform(["", "x"]), labels, query, one)
    assert found["predicted"].item() == 1
    assert baselines.few_shot(features, labels, np.array([[2]]), query)["predicted"].item() == 1
    assert baselines.majority(labels, query, one)["predicted"].item() == 1
    found = baselines.best_sentence(words, ["why?"], ["It is so."], [["It is so."]], query)
    assert found["em"].item() == 1
    alone, users = np.array([[True, False, False, False]]), np.array([0])
    for found in (
        baselines.popularity(np.array([[0, 0]]), query, users, alone),
        baselines.content(features, np.array([[-1]]), query, users, alone),
    ):
        assert found["rank"].item() == 1 and found["finite"].item()
