"""Floors against answers known by hand, and through the same rows as the arms."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from metaguide.training import floors
from metaguide.training.results import cells_to_rows

SOURCE = ["good cheap thing", "bad broken thing", "good solid thing", "bad late thing"]


def test_vocabulary_is_the_sources_alone():
    """IDF or vocabulary that has read the held-out domain; one-letter or Chinese words lost."""
    words = floors.fit_tfidf(SOURCE)
    assert words.transform(["heater boils"]).nnz == 0
    assert {"good cheap", "thing"} <= set(words.vocabulary_)
    han = floors.fit_tfidf(["质量很好", "质量太差", "4K屏很好"])
    assert {"质 量", "好", "很 好", "4k 屏"} <= set(han.vocabulary_)


def test_majority_is_the_cells_prior_within_the_episodes_classes():
    """A majority over the whole table, one that counts a recurring example twice, or a class that
    the episode does not have."""
    labels = np.array([3, 3, 5, 5, 5, 9, 9])
    query = np.array([[0, 1, 2, -1], [0, 1, 2, 5]])
    assert floors.majority(labels, query)["predicted"].tolist() == [[[[3] * 4] * 2]]
    ways = np.array([[5, 9], [9, 3]])
    found = floors.majority(labels, query, ways)["predicted"][0, 0]
    assert found[:, 0].tolist() in ([5, 3], [9, 3])
    found = floors.majority(labels, np.array([[0, 2], [0, 3], [0, 4]]))
    assert found["predicted"].ravel().tolist() == [5] * 6


def test_zero_shot_reads_source_labels_only():
    """A zero-shot row that was fitted on the held-out texts."""
    words = floors.fit_tfidf(SOURCE)
    model = floors.fit_source(words.transform(SOURCE), np.array([1, 0, 1, 0]))
    texts = ["good heater", "bad heater", "broken boiler"]
    query = np.array([[0, 1], [2, -1]])
    found = floors.zero_shot(model, words.transform(texts), np.array([0, 0, 0]), query)
    assert found["predicted"][0, 0][query >= 0].tolist() == [1, 0, 0]
    rows, _ = cells_to_rows(
        found, table="t", arm="tf-idf zero-shot", domain="d", task="sentiment", shots=0
    )
    assert [row.value for row in rows if row.metric == "accuracy"] == [pytest.approx(2 / 3)]


def test_class_names_choose_among_the_episodes_classes():
    """A nearest name out of the episode, or the slot returned in place of the class."""
    names = ["", "red shoe", "blue hat", "green coat"]
    words = floors.fit_tfidf(names[1:])
    texts = ["a red shoe for you", "the coat is green", "unknown words"]
    labels, query = np.array([1, 3, 2]), np.array([[0, 1, 2]])
    features, targets = words.transform(texts), words.transform(names)
    found = floors.class_names(features, targets, labels, query, np.array([[2, 3, 1]]))
    assert found["predicted"][0, 0, 0, :2].tolist() == [1, 3]
    drawn = [
        floors.class_names(features, targets, labels, query, np.array([[2, 3, 1]]), seed=seed)
        for seed in range(40)
    ]
    assert {int(one["predicted"][0, 0, 0, 2]) for one in drawn} == {1, 2, 3}


def test_few_shot_is_the_full_regression_on_the_support():
    """Kept grams that change the solution; padding or queries read as support."""
    rng = np.random.default_rng(0)
    vocabulary = [f"w{i}" for i in range(60)]
    texts = [" ".join(rng.choice(vocabulary, 8)) for _ in range(40)]
    words = floors.fit_tfidf(texts)
    features, labels = words.transform(texts), rng.integers(0, 3, 40)
    support = np.array([[0, 1, 2, 3, 4, 5, 6, 7], [8, 9, 10, 11, 12, 13, -1, -1]])
    query = np.array([[20, 21, 22, 23], [24, 25, 26, 27]])
    found = floors.few_shot(features, labels, support, query)["predicted"][0, 0]
    for episode in range(2):
        given = support[episode][support[episode] >= 0]
        whole = LogisticRegression(C=10.0, tol=1e-8, max_iter=1000)
        whole.fit(features[given].toarray(), labels[given])
        assert found[episode].tolist() == whole.predict(features[query[episode]]).tolist()
    with pytest.raises(ValueError, match="episode 0 has no support"):
        floors.few_shot(features, labels, np.full((1, 3), -1), query[:1])


def test_abstaining_is_right_on_what_has_no_answer():
    """Abstaining scored as wrong, or as right everywhere."""
    found = floors.abstain(np.array([True, False]), np.array([[0, 1, -1]]))
    rows, _ = cells_to_rows(found, table="t", arm="abstain", domain="d", task="questions", shots=1)
    values = {row.metric: row.value for row in rows}
    assert values["em"] == values["f1"] == 0.5
    assert values["f1_answerable"] == 0 and values["accuracy_unanswerable"] == 1


def test_best_sentence_in_token_positions():
    """A sentence's characters taken for tokens, or a sentence past the cut of the input chosen."""
    text = "It is red. The battery lasts nine hours. Battery battery life lasts."
    tokens = [(0, 2), (3, 5), (6, 9), (9, 10), (11, 14), (15, 22), (23, 28), (29, 33), (34, 39)]
    tokens.append((39, 40))
    offsets = np.full((1, 14, 2), -1)
    offsets[0, 3 : 3 + len(tokens)] = tokens
    words = floors.fit_tfidf(["battery lasts", "it is red", "nine hours"])
    start, end = np.array([10]), np.array([11])  # "nine hours"
    found = floors.best_sentence(
        words, ["how long battery lasts"], [text], offsets, start, end, np.array([[0]])
    )
    assert found["em"].item() == 0
    assert found["f1"].item() == pytest.approx(2 * 2 / (6 + 2))  # tokens 7 to 12 against 10 to 11
    assert found["answerable"].item()


def test_popularity_leaves_out_what_is_asked_for():
    """The held-out interaction counted into popularity, which then leaks the answer; or taken out
    once for each episode in which its user recurs."""
    taken = np.array([0, 0, 1, 1, 2])
    everything = np.ones((1, 3), bool)
    query, users = np.array([[2], [2]]), np.array([7, 7])
    found = floors.popularity(taken, query, users, everything)
    assert found["rank"].ravel().tolist() == [3, 3]
    assert found["id"].ravel().tolist() == [7, 7]
    found = floors.popularity(np.append(taken, [0, 2, 2]), query[:1], users[:1], everything)
    assert found["rank"].item() in (2, 3)
    candidates = np.array([[False, True, True]])
    found = floors.popularity(np.append(taken, 2), query[:1], users[:1], candidates)
    assert found["rank"].item() == 2


def test_content_weighs_the_latest_most():
    """The decay run backwards in time, or padding taken as product -1."""
    texts = ["red shoe", "blue hat", "red boot", "blue cap"]
    features = floors.fit_tfidf(texts).transform(texts)
    support, users = np.array([[0, 1], [1, 0], [0, -1]]), np.arange(3)
    candidates = np.array([[False, False, True, True]])
    found = floors.content(features, support, np.array([[3], [2], [2]]), users, candidates)
    assert found["rank"].ravel().tolist() == [1, 1, 1]
    none = np.full((200, 2), -1)
    found = floors.content(features, none, np.full((200, 1), 3), np.arange(200), candidates)
    assert 0.3 < np.mean(found["rank"] == 1) < 0.7
