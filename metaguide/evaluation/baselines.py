"""Scikit-learn baselines, on the same examples as the methods.

An episode is given by the rows of its examples in the domain's table, -1 for padding. Every
baseline returns the inputs of a method's scoring, arrays [1, 1, episodes, queries]: one seed, no
steps. Vocabulary and IDF come from source domains alone.

Among equal scores one is drawn, or the mean of their outcomes counts. As for a method, scores that
are not finite choose nothing: class -1, the last rank, neither an answer nor an abstention.
"""

import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import threadpoolctl
from jaxtyping import Bool, Float, Int
from scipy import sparse

from metaguide.data.ngrams import WORD, hashed_ngrams, inverse_document_frequency, plain
from metaguide.data.sentences import sentences
from metaguide.evaluation import metrics
from metaguide.scoring import answer_scores
from metaguide.types import HASHES

Raw = dict[str, np.ndarray]

Rows = Int[np.ndarray, "episodes _"]
"""Rows in a domain's table, -1 where an episode is padded."""

BASELINES = (
    "majority",
    "class names",
    "nearest by n-grams",
    "tf-idf zero-shot",
    "tf-idf few-shot",
    "abstain",
    "best sentence",
    "popularity",
    "content",
)
"""The names that the baselines have as methods of a table."""

AT_ONCE, MOST_NGRAMS = 256, 8192
"""Number of texts whose n-grams, or of rankings whose scores, are in memory together, and the most
n-grams read of a text."""

NO_WORD = "x" * 64
"""The one word of a vocabulary that was fitted on texts without any."""


def fit_tfidf(source_texts: Sequence[str]) -> Any:
    """Fit TF-IDF of word 1-2-grams of unit length, where a Han character is a word.

    Args:
        source_texts: texts of source domains alone.

    Returns:
        The fitted `TfidfVectorizer`; `transform(texts)` gives sparse features [n, grams].
    """
    from sklearn.feature_extraction.text import TfidfVectorizer  # takes seconds to import

    if not any(re.search(WORD, plain(text)) for text in source_texts):
        source_texts = [NO_WORD]
    rare = 2 if len(source_texts) > 1000 else 1
    vectorizer = TfidfVectorizer(
        ngram_range=(1, 2), min_df=rare, sublinear_tf=True, preprocessor=plain, token_pattern=WORD
    )
    return vectorizer.fit(source_texts)


class Ngrams(NamedTuple):
    """Words, pairs of words and runs of 2 to 4 characters, weighted by their rarity.

    Unlike that of `fit_tfidf`, its vocabulary has no end: what no source text has is the rarest.

    Attributes:
        rarity: inverse document frequency of each n-gram.
    """

    rarity: Float[np.ndarray, " hashes"]

    def transform(self, texts: Sequence[str]) -> Any:
        """Return sparse features [n, grams], rows of unit length, or 0 without n-grams."""
        rows = [np.zeros((0, 2), int), *_numbered(texts)]
        row, gram = np.concatenate(rows).T
        weights = sparse.csr_array(
            (self.rarity[gram], (row, gram)), shape=(len(texts), len(self.rarity))
        )
        return sparse.csr_array(sparse.diags_array(1 / _lengths(weights)) @ weights)


def fit_ngrams(source_texts: Sequence[str]) -> Ngrams:
    """Count in how many source texts each n-gram is."""
    having = np.zeros(HASHES, int)
    for _, gram in map(np.transpose, _numbered(source_texts)):
        np.add.at(having, gram, 1)
    return Ngrams(inverse_document_frequency(having, len(source_texts)))


def _lengths(rows: Any) -> Float[np.ndarray, " n"]:
    """Return the Euclidean lengths of sparse rows, 1 for those of 0."""
    lengths = np.sqrt(np.asarray(rows.multiply(rows).sum(axis=1)).ravel())
    return np.where(lengths == 0, 1, lengths)


def _numbered(texts: Sequence[str]) -> Iterator[Int[np.ndarray, "found 2"]]:
    """Yield (number of a text, number of an n-gram of it), of some texts at a time."""
    for start in range(0, len(texts), AT_ONCE):
        grams = hashed_ngrams(texts[start : start + AT_ONCE], most=MOST_NGRAMS)
        row, column = np.nonzero(grams)
        yield np.stack([start + row, grams[row, column]], 1)


# ------------------------------------------------------------------ classification and sentiment


def fit_source(features: Any, labels: Int[np.ndarray, " n"], inverse_penalty: float = 1.0) -> Any:
    """Fit a logistic regression on the labelled texts of source domains, for `zero_shot`.

    Args:
        features: sparse [n, grams], `fit_tfidf(texts).transform(texts)`.
        labels: of the texts.
        inverse_penalty: scikit-learn's C.

    Returns:
        The fitted `LogisticRegression`.
    """
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=inverse_penalty, max_iter=300).fit(features, labels)


def majority(
    labels: Int[np.ndarray, " n"],
    query: Rows,
    classes: Int[np.ndarray, "episodes way"] | None = None,
) -> Raw:
    """Predict the most frequent class among all distinct queries of the cell.

    This is the strongest constant answer, since it knows the domain's prior: in an episode of N
    classes it predicts the one that is most frequent over the cell.

    Args:
        labels: class of every row of the table, a number over all domains.
        query: rows.
        classes: of each episode; None where every episode has all.
    """
    found, counts = np.unique(labels[np.unique(query[query >= 0])], return_counts=True)
    if classes is None:
        best = np.full(len(query), found[np.argmax(counts)])
    else:
        often = dict(zip(found.tolist(), counts.tolist(), strict=True))
        best = np.array([max(way.tolist(), key=lambda c: often.get(c, 0)) for way in classes])
    return _classified(np.broadcast_to(best[:, None], query.shape), labels, query)


def zero_shot(classifier: Any, features: Any, labels: Int[np.ndarray, " n"], query: Rows) -> Raw:
    """Predict the held-out texts with an unadapted classifier of the source domains.

    Args:
        classifier: of `fit_source`, over the same classes.
        features: sparse [n, grams] of the held-out texts.
        labels: of the held-out texts.
        query: rows.
    """
    finite = _finite_rows(features)
    predicted = np.full(len(finite), -1, labels.dtype)
    if finite.any():
        predicted[finite] = classifier.predict(features[np.flatnonzero(finite)])
    return _classified(predicted[query], labels, query, finite[query])


def nearest_class(
    features: Any,
    name_features: Any,
    labels: Int[np.ndarray, " n"],
    query: Rows,
    classes: Int[np.ndarray, "episodes way"],
    support: Rows | None = None,
    seed: int = 0,
) -> Raw:
    """Predict the episode's class c that is nearest by cosine, n_c + Σ_{i: y_i = c} f_i.

    Args:
        features: sparse [n, grams] of the held-out texts, rows of unit length.
        name_features: sparse [all classes, grams]; its row c is the name of class c, n_c.
        labels: class of every text.
        query: rows.
        classes: of each episode.
        support: rows of the examples; None for names alone.
        seed: of the draw between equally near classes.
    """
    scores = np.empty((*query.shape, classes.shape[1]))
    for episode, (asked, way) in enumerate(zip(query, classes, strict=True)):
        known = sparse.csr_array(name_features[way])
        if support is not None:
            given = support[episode][support[episode] >= 0]
            member = sparse.csr_array((labels[given] == way[:, None]).astype(np.float64))
            known = known + member @ sparse.csr_array(features[given])
        near = (sparse.csr_array(features[asked]) @ known.T).toarray()
        scores[episode] = near / _lengths(known)
    drawn = np.random.default_rng(seed).random(scores.shape)
    best = np.lexsort((drawn, scores), axis=-1)[..., -1]
    finite = np.isfinite(scores).all(-1)
    predicted = np.where(finite, np.take_along_axis(classes, best, axis=1), -1)
    return _classified(predicted, labels, query, finite)


def few_shot(
    features: Any,
    labels: Int[np.ndarray, " n"],
    support: Rows,
    query: Rows,
    inverse_penalty: float = 10.0,
    seed: int = 0,
) -> Raw:
    """Predict by TF-IDF and a logistic regression fitted on each episode's support alone.

    The L2-penalised weights are sums of support texts, so the regression is fitted in the
    coordinates of the support's span, with the same inner products: the same solution in K
    columns instead of thousands.

    Args:
        features: sparse [n, grams] of the held-out texts; IDF of the source domains.
        labels: class of every text.
        support: rows, at least one an episode.
        query: rows.
        inverse_penalty: scikit-learn's C.
        seed: of the draw between classes where the support says nothing of them.

    Raises:
        ValueError: an episode has no support.
    """
    from sklearn.linear_model import LogisticRegression  # before its threads are limited

    predicted, finite = np.full(query.shape, -1, labels.dtype), _finite_rows(features)
    rng = np.random.default_rng(seed)
    with warnings.catch_warnings(), threadpoolctl.threadpool_limits(1):  # small products
        # scikit-learn takes one shot a class for a regression
        warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)
        for episode, (given, asked) in enumerate(zip(support, query, strict=True)):
            given = given[given >= 0]
            if len(given) == 0:
                raise ValueError(f"tf-idf few-shot: episode {episode} has no support; give a shot")
            texts, known = features[given], labels[given]
            if not finite[given].all():
                continue
            sizes, axes = np.linalg.eigh((texts @ texts.T).toarray().astype(np.float64))
            spanned = sizes > 1e-9
            answered = finite[asked]
            if (known == known[0]).all() or not spanned.any():
                # one class, or no gram known from the sources: the support's prior
                predicted[episode, answered] = rng.choice(known, answered.sum())
                continue
            if not answered.any():
                continue
            axes = axes[:, spanned] / np.sqrt(sizes[spanned])
            model = LogisticRegression(C=inverse_penalty, max_iter=200)
            model.fit((texts @ texts.T) @ axes, known)
            near = (features[asked[answered]] @ texts.T) @ axes
            predicted[episode, answered] = model.predict(near)
    given = np.array([finite[rows[rows >= 0]].all() for rows in support])
    return _classified(predicted, labels, query, finite[query] & given[:, None])


def _finite_rows(features: Any) -> Bool[np.ndarray, " n"]:
    """Return which rows of sparse features are finite."""
    return np.isfinite(np.asarray(features.sum(axis=1)).ravel())


def _classified(
    predicted: np.ndarray,
    labels: np.ndarray,
    query: np.ndarray,
    finite: Any = True,
) -> Raw:
    known = np.broadcast_to(finite, query.shape)
    return _raw(query, query, predicted=predicted, target=labels[query], finite=known)


# ------------------------------------------------------------------------------ questions


def abstain(answerable: Bool[np.ndarray, " n"], query: Rows) -> Raw:
    """Always predict "no answer": EM = F1 = 1 where there is none, 0 elsewhere."""
    right = (~answerable[query]).astype(np.float64)
    return _raw(query, query, em=right, f1=right, answerable=answerable[query])


def best_sentence(
    vectorizer: Any,
    questions: Sequence[str],
    texts: Sequence[str],
    golds: Sequence[Sequence[str]],
    query: Rows,
) -> Raw:
    """Answer with the text's nearest sentence to the question by TF-IDF cosine; never abstain.

    It is scored by its words, like the methods. Among equally near ones the mean score counts.

    Args:
        vectorizer: of `fit_tfidf`.
        questions, texts: of every row of the table.
        golds: the right answers of every row, none where there is no answer.
        query: rows.
    """
    found = [(row, text[a:b]) for row, text in enumerate(texts) for a, b in sentences(text)]
    said: list[list[str]] = [[] for _ in texts]
    finite = np.ones(len(texts), bool)
    if found:
        rows = np.array([row for row, _ in found])
        asked = vectorizer.transform(questions)[rows]
        told = vectorizer.transform([sentence for _, sentence in found])
        near = np.asarray(asked.multiply(told).sum(axis=1)).ravel()
        nearest = np.full(len(texts), -np.inf)
        np.maximum.at(nearest, rows, near)
        for level in np.flatnonzero(near == nearest[rows]):
            said[rows[level]].append(found[level][1])
        finite[rows[~np.isfinite(near)]] = False
    scores = [
        np.mean([answer_scores(one, gold) for one in level or [""]], axis=0)
        for level, gold in zip(said, golds, strict=True)
    ]
    em, f1 = np.where(finite, np.reshape(scores, (-1, 2)).T, 0.0)
    answerable = np.array([len(gold) > 0 for gold in golds], bool)
    asked = {"answerable": answerable[query], "finite": finite[query]}
    return _raw(query, query, em=em[query], f1=f1[query], **asked)


# ------------------------------------------------------------------------------ recommendation


def popularity(
    taken: Int[np.ndarray, "events 2"],
    query: Rows,
    users: Int[np.ndarray, " episodes"],
    candidates: Bool[np.ndarray, "#episodes products"],
    seed: int = 0,
) -> Raw:
    """Rank products by how many other users of the target domain took them.

    It reads the complete domain, of which the methods see only K interactions: what everyone took,
    except the cell's targets and anything that the user in question took, known to the methods or
    not. The user's earlier products could only be ranked before the next one.

    Args:
        taken: (user, product) of the domain's histories, those of the queries among them.
        query: products to be ranked.
        users: of the episodes, numbered as in `taken`.
        candidates: which products compete.
        seed: of the draw between ties.
    """
    asked = np.stack([np.broadcast_to(users[:, None], query.shape), query], -1)[query >= 0]
    withheld = set(map(tuple, asked.tolist()))
    left = {pair for pair in map(tuple, taken.tolist()) if pair not in withheld}
    of_users: dict[int, list[int]] = {user: [] for user in users.tolist()}
    every = np.zeros(candidates.shape[1])
    for user, product in left:
        every[product] += 1
        if user in of_users:
            of_users[user].append(product)

    def scores_of(some: slice) -> Float[np.ndarray, "some products"]:
        scores = np.tile(every, (len(users[some]), 1))
        for row, user in zip(scores, users[some].tolist(), strict=True):
            row[of_users[user]] -= 1
        return scores

    return _ranked(scores_of, query, users, candidates, seed)


def content(
    features: Any,
    support: Rows,
    query: Rows,
    users: Int[np.ndarray, " episodes"],
    candidates: Bool[np.ndarray, "#episodes products"],
    decay: float = 0.7,
    seed: int = 0,
) -> Raw:
    """Rank products by TF-IDF cosine to the decayed history, sum_t decay^(T - t) f(product_t).

    A user without a history has no nearest product: the ranking is random.

    Args:
        features: sparse [products, grams], TF-IDF of the products' texts.
        support: each user's products in the order of time.
        query: products to be ranked.
        users: of the episodes.
        candidates: which products compete.
        decay: weight of a product against the one after it.
        seed: of the draw between ties.
    """

    def scores_of(some: slice) -> Float[np.ndarray, "some products"]:
        weights = np.zeros((len(query[some]), features.shape[0]))
        for row, given in zip(weights, support[some], strict=True):
            given = given[given >= 0]
            np.add.at(row, given, decay ** np.arange(len(given) - 1.0, -1.0, -1.0))
        return np.asarray((sparse.csr_array(weights) @ features @ features.T).todense())

    return _ranked(scores_of, query, users, candidates, seed)


def _ranked(
    scores_of: Callable[[slice], Float[np.ndarray, "some products"]],
    query: np.ndarray,
    users: np.ndarray,
    candidates: np.ndarray,
    seed: int,
) -> Raw:
    """Return the ranks of the products asked for, with the scores of some episodes at a time."""
    rng = np.random.default_rng(seed)
    candidates = np.broadcast_to(candidates, (len(query), candidates.shape[1]))
    ranks, finite = np.ones(query.shape, np.int64), np.ones(query.shape, bool)
    for start in range(0, len(query), AT_ONCE):
        some = slice(start, start + AT_ONCE)
        there = query[some] >= 0
        shape = (*there.shape, candidates.shape[1])
        every = np.broadcast_to(scores_of(some)[:, None], shape)[there]
        compete = np.broadcast_to(candidates[some, None], shape)[there]
        ranks[some][there] = metrics.ranks_of(every, query[some][there], compete, rng)
        finite[some][there] = (np.isfinite(every) | ~compete).all(-1)
    return _raw(query, np.broadcast_to(users[:, None], query.shape), rank=ranks, finite=finite)


def _raw(query: np.ndarray, example: np.ndarray, **arrays: np.ndarray) -> Raw:
    there = query >= 0
    named: Mapping[str, np.ndarray] = {**arrays, "mask": there, "id": np.where(there, example, -1)}
    return {name: np.asarray(array)[None, None] for name, array in named.items()}
