"""What source categories teach of categories that none of them is, left out group by group.

The categories of a group are held out together, and all others are its sources. A choice for a
group is made on its sources, each of which is left out as well in its turn, with those of its own
group: row g of an array of logits [groups, reviews] has the logits of a review of category e by
heads that saw no label of group g and none of e. Of more than two classes there are as many logits
on a last axis, of two there is the one of the second, as scikit-learn has it.

A category is a domain, whatever it is called: the tables of reviews have categories of reviews, and
that of titles has shops, whose titles are asked for one of ten categories of product.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import threadpoolctl
from jaxtyping import Array, Bool, Float, Int
from ml_collections.config_dict import ConfigDict, FrozenConfigDict
from scipy import sparse
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import normalize
from sklearn.svm import LinearSVC

from experiments.run_folder import HARMLESS, finished, identity
from metaguide.data.ngrams import inverse_document_frequency
from metaguide.files import checksum
from metaguide.learners.map import (
    Rows,
    learn_rule,
    leave_one_out_losses,
    map_shift,
    worth_adapting,
)
from metaguide.learners.on_features import centred, nearness, soft_prototypes
from metaguide.training.progress import say

Logits = Float[np.ndarray, "groups reviews *way"]
Gram = Float[np.ndarray, "reviews reviews"]
Support = Int[np.ndarray, "episodes examples"]

ADAPTATION = ("shots", "episodes", "caution", "rule")
"""Fields of a config that say how held-out categories are adapted to; no head depends on them."""

MAY_CHANGE = (*HARMLESS, *ADAPTATION)
"""Fields that may differ between two runs in one work folder, which keeps the heads of sources."""

SQUARE = 384.0
"""The square of a vector's length as the map head reads it: the width of small encoders."""


class Corpus(NamedTuple):
    """Reviews of several categories.

    Attributes:
        names: of the categories.
        groups: numbers of the categories that are held out together, in ascending order.
        category: int [reviews], the number of each review's category.
        label: int [reviews], the number of each review's class; 1 if positive, else 0.
        counts: how often each n-gram occurs, sparse [reviews, n-grams].
        lengths: int [n-grams], the length of each, in characters or words.
        vectors: of an encoder, [reviews, width]; None without one.
        support: category -> numbers of the rows to adapt to, where the data set fixes them.
        way: number of classes.
    """

    names: tuple[str, ...]
    groups: tuple[tuple[int, ...], ...]
    category: Int[np.ndarray, " reviews"]
    label: Int[np.ndarray, " reviews"]
    counts: sparse.csr_array
    lengths: Int[np.ndarray, " ngrams"]
    vectors: Float[np.ndarray, "reviews width"] | None = None
    support: Mapping[int, Int[np.ndarray, " examples"]] = MappingProxyType({})
    way: int = 2

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of the logits of all reviews, [reviews] or [reviews, way]."""
        return (len(self.label), *([self.way] if self.way > 2 else []))

    def sources(self, group: int) -> tuple[int, ...]:
        """Return the numbers of the categories that teach what is known of a group."""
        return tuple(e for e in range(len(self.names)) if e not in self.groups[group])

    def without(self, group: int, source: int) -> tuple[int, ...]:
        """Return what is left out where a choice for a group is scored on one of its sources."""
        beside = next((one for one in self.groups if source in one), (source,))
        return tuple(sorted((*self.groups[group], *beside)))

    def rows(self, *categories: int) -> Int[np.ndarray, " rows"]:
        """Return the numbers of the reviews of some categories."""
        return np.flatnonzero(np.isin(self.category, categories))

    def others(self, *categories: int) -> Int[np.ndarray, " rows"]:
        """Return the numbers of the reviews of all other categories."""
        return np.flatnonzero(~np.isin(self.category, categories))


def group_folder(folder: Path, config: FrozenConfigDict, group: int) -> Path:
    """Return the folder that keeps what a group of held-out categories found.

    It is another one for another way of adapting: the fields `ADAPTATION` may change in a run's
    folder, since no head that is kept there depends on them.
    """
    way = ConfigDict({name: config[name] for name in ADAPTATION})
    return folder / f"group{group}-{identity(way)}"


def identity_of(corpus: Corpus) -> str:
    """Return a short name for the content of a corpus; others differ in it."""
    arrays = {
        "category": corpus.category,
        "label": corpus.label,
        "ngrams": corpus.counts.indices,
        "counts": corpus.counts.data,
    }
    if corpus.vectors is not None:
        arrays["vectors"] = corpus.vectors
    return f"texts {checksum(arrays):08x}"


def corpus_of(
    names: Sequence[str],
    groups: Sequence[Sequence[int]],
    category: Sequence[int],
    label: Sequence[int],
    texts: Sequence[str],
    longest: int,
    unit: str,
) -> Corpus:
    """Return a corpus without vectors.

    Args:
        names, groups, category, label: as of `Corpus`.
        texts: of the reviews.
        longest: units of an n-gram at most.
        unit: "character" or "word".
    """
    words = unit == "word"
    analyzer: Any = {"analyzer": "word", "token_pattern": r"\w+"} if words else {"analyzer": "char"}
    counter = CountVectorizer(ngram_range=(1, longest), **analyzer)
    counts = sparse.csr_array(counter.fit_transform(texts), dtype=np.float64)
    ngrams = counter.get_feature_names_out()
    lengths = np.array([1 + one.count(" ") if words else len(one) for one in ngrams], np.int32)
    return Corpus(
        tuple(names),
        tuple(map(tuple, groups)),
        np.asarray(category),
        np.asarray(label),
        counts,
        lengths,
    )


def taken(corpus: Corpus, rows: Int[np.ndarray, " rows"]) -> Corpus:
    """Return some reviews of a corpus; those of a fixed support have to be among them."""
    vectors = None if corpus.vectors is None else corpus.vectors[rows]
    place = {row: number for number, row in enumerate(rows.tolist())}
    support = {
        category: np.array([place[row] for row in fixed.tolist()])
        for category, fixed in corpus.support.items()
    }
    return corpus._replace(
        support=support,
        category=corpus.category[rows],
        label=corpus.label[rows],
        counts=corpus.counts[rows],
        vectors=vectors,
    )


# ------------------------------------------------------------------------------ features and heads


Weigh = Callable[[Corpus, tuple[int, ...]], Callable[[sparse.csr_array], Any]]
"""(reviews, categories of which nothing is read) -> what makes vectors of counts."""


def tfidf(train: Corpus, out: Collection[int]) -> Callable[[sparse.csr_array], Any]:
    """Return what makes TF-IDF vectors of counts, of 1 and 2 units, as scikit-learn does."""
    seen = train.counts[train.others(*out)] > 0
    idf = _idf(seen) * (train.lengths <= 2)
    return lambda counts: normalize(counts @ sparse.diags_array(idf))


def weighted_ngrams(
    train: Corpus, out: Collection[int], least_texts: int
) -> Callable[[sparse.csr_array], Any]:
    """Return what makes vectors of counts: TF-IDF, scaled by how much an n-gram says of the class.

    The scale is the root of the absolute log ratio of its frequencies in the texts of a class and
    in all others (Wang and Manning: Baselines and Bigrams, 2012), of the class where it is largest.

    Args:
        train: reviews.
        out: categories of which nothing is read, label or text.
        least_texts: n-grams of fewer texts have no weight.
    """
    rows = train.others(*out)
    seen = train.counts[rows] > 0
    label, total, ratio = train.label[rows], seen.sum(axis=0), np.zeros(seen.shape[1])
    for which in range(1 if train.way == 2 else 0, train.way):
        inside = seen[label == which].sum(axis=0)
        of_class, of_others = 1.0 + inside, 1.0 + total - inside
        own = np.log(of_class / of_class.sum()) - np.log(of_others / of_others.sum())
        ratio = np.maximum(ratio, np.abs(own))
    kept = np.flatnonzero(total >= least_texts)
    idf, scale = _idf(seen)[kept], np.sqrt(ratio)[kept]

    def vectors(counts: sparse.csr_array) -> Any:
        damped = counts[:, kept]
        damped.data = 1 + np.log(damped.data)
        return normalize(damped @ sparse.diags_array(idf)) @ sparse.diags_array(scale)

    return vectors


def _idf(seen: Any) -> Float[np.ndarray, " ngrams"]:
    """Return the inverse document frequency, and 0 for an n-gram that no text has."""
    having = seen.sum(axis=0)
    return np.where(having > 0, inverse_document_frequency(having, seen.shape[0]), 0.0)


def sparse_logits(train: Any, label: np.ndarray, test: Any, penalty: float) -> np.ndarray:
    """Return the logits of a linear head on sparse vectors, [test] or [test, way].

    Of two classes it is a logistic regression; of more there is a support vector machine for each
    class against all others, which on titles is both faster and better than a softmax.
    """
    if len(np.unique(label)) > 2:
        head = LinearSVC(C=1 / penalty, tol=1e-2, random_state=0)
    else:
        head = LogisticRegression(C=1 / penalty, solver="liblinear", tol=1e-3, random_state=0)
    return head.fit(train, label).decision_function(test)


def dense_logits(
    train: np.ndarray, label: np.ndarray, test: np.ndarray, penalty: float
) -> np.ndarray:
    """Return the logits of a logistic regression on vectors, each axis standardised."""
    middle, spread = train.mean(0), train.std(0) + 1e-6
    # The Hessian of ten classes has a hundred times the entries of that of two.
    settings: dict[str, Any] = {"solver": "newton-cholesky", "tol": 1e-3}
    if len(np.unique(label)) > 2:
        settings = {"solver": "lbfgs", "tol": 1e-4, "max_iter": 500}
    head = LogisticRegression(C=1 / penalty, **settings)
    return head.fit((train - middle) / spread, label).decision_function((test - middle) / spread)


Heads = Callable[[tuple[int, ...], np.ndarray, Sequence[float]], Sequence[np.ndarray]]
"""(categories that are left out, numbers of reviews, penalties) -> logits of these reviews, by a
head for each penalty that saw no label of these categories."""


Keep = Callable[[str, Heads], Heads]
"""(name of the heads, heads) -> the same heads, whose logits may be kept."""


def no_keeping(name: str, heads: Heads) -> Heads:
    """Return the heads as they are."""
    del name
    return heads


def kept_in(folder: Path, about: str) -> Keep:
    """Return what makes heads keep their logits in a folder, so that none is trained twice.

    Args:
        folder: inside the work folder of a run.
        about: as of `experiments.run_folder.finished`.
    """

    def keep(name: str, heads: Heads) -> Heads:
        def kept(
            out: tuple[int, ...], rows: np.ndarray, penalties: Sequence[float]
        ) -> Sequence[np.ndarray]:
            def compute() -> tuple[dict[str, np.ndarray], None]:
                logits = heads(out, rows, penalties)
                return {str(place): np.asarray(one) for place, one in enumerate(logits)}, None

            place = folder / name / "-".join(map(str, out))
            found, _ = finished(place, about, compute, quietly=True)
            return [found[str(place)] for place in range(len(penalties))]

        return kept

    return keep


def left_out(
    corpus: Corpus, heads: Heads, penalties: Sequence[float]
) -> Float[np.ndarray, "penalties groups reviews *way"]:
    """Return logits by heads that saw neither a group nor one of its sources.

    Returns:
        In [:, g], the logits of reviews of source e by heads without g and e; 0 for those of g.
    """
    found = np.zeros((len(penalties), len(corpus.groups), *corpus.shape))
    asked: dict[tuple[int, ...], list[tuple[int, int]]] = {}
    for group in range(len(corpus.groups)):
        for source in corpus.sources(group):
            asked.setdefault(corpus.without(group, source), []).append((group, source))
    # Two groups are left out together once, for both.
    for out, places in asked.items():
        rows = corpus.rows(*(source for _, source in places))
        logits = np.stack([np.asarray(one) for one in heads(out, rows, penalties)])
        for group, source in places:
            of_source = corpus.category[rows] == source
            found[:, group, rows[of_source]] = logits[:, of_source]
        say(f"left out: {', '.join(corpus.names[one] for one in out)}")
    return found


def zero_shot(
    corpus: Corpus, heads: Heads, penalties: Sequence[float], of_sources: bool = True
) -> tuple[Logits, list[float]]:
    """Choose a penalty for each group on its sources, and train its head.

    Args:
        corpus: the reviews.
        heads: what trains them.
        penalties: those to choose from.
        of_sources: whether logits of the sources are wanted even if there is nothing to choose.

    Returns:
        In [g], the logits of all reviews by the heads of the penalty that was chosen: of those of
        g by a head without g, of those of a source e without g and e. The penalty for each g.
    """
    candidates = np.zeros((1, len(corpus.groups), *corpus.shape))
    if of_sources or len(penalties) > 1:
        candidates = left_out(corpus, heads, penalties)
    found, chosen = np.zeros(candidates.shape[1:]), []
    for group, held_out in enumerate(corpus.groups):
        best, rows = choice(candidates, corpus, group), corpus.rows(*held_out)
        found[group] = candidates[best, group]
        (found[group, rows],) = heads(held_out, rows, penalties[best : best + 1])
        chosen.append(penalties[best])
    return found, chosen


def gram_of(vectors: Any) -> Gram:
    """Return the inner products of vectors, sparse or dense, at unit length."""
    short: Any = normalize(vectors)
    products = short @ short.T
    return np.asarray(products.toarray() if sparse.issparse(products) else products)


def decided(logits: np.ndarray, way: int) -> np.ndarray:
    """Return the class that logits are for: of two classes, the second if its logit is above 0."""
    return logits.argmax(-1) if way > 2 else (logits > 0).astype(int)


def choice(
    candidates: Float[np.ndarray, "candidates groups reviews *way"], corpus: Corpus, group: int
) -> int:
    """Return the candidate of the best mean accuracy on the sources of a group that it has."""
    rows = [rows for e in corpus.sources(group) if len(rows := corpus.rows(e))]
    found = []
    for logits in candidates:
        right = decided(logits[group], corpus.way) == corpus.label
        found.append(np.mean([right[of_source].mean() for of_source in rows]))
    return int(np.argmax(found))


# ------------------------------------------------------------------------------ episodes


def supports(
    label: Int[np.ndarray, " reviews"], shots: int, count: int, key: Sequence[int]
) -> Support:
    """Draw supports: `shots` reviews of each class that the category has, class after class.

    Args:
        label: of the reviews of one category.
        shots: reviews of each class; with 0, supports are empty. Of a class that has no more than
            these, all but one are drawn, so that one can be asked for.
        count: supports.
        key: what the draw depends on.

    Returns:
        Numbers of reviews, int [count, examples].
    """
    rng = np.random.default_rng(key)
    of_label = [np.flatnonzero(label == which) for which in np.unique(label)]
    drawn = [
        np.concatenate(
            [rng.choice(rows, min(shots, len(rows) - 1), replace=False) for rows in of_label]
        )
        for _ in range(count)
    ]
    return np.stack(drawn)


def coordinates(
    gram: Gram, support: Int[np.ndarray, " examples"], label: Int[np.ndarray, " examples"]
) -> Float[np.ndarray, "reviews examples"]:
    """Return vectors as `centred` gives them, projected to the span of the support.

    All that a map head learns lies in that span: for n-grams as for an encoder, as many numbers a
    review do as the support has examples.

    Args:
        gram: inner products of the vectors of all reviews of a category.
        support: numbers of the examples.
        label: of the examples, whose middle is that of the means of their classes.
    """
    to = gram[:, support]
    weight = 1 / np.bincount(label)[label]
    weight /= weight.sum()
    middle = to @ weight
    square = middle[support] @ weight
    length = np.sqrt(np.maximum(np.diag(gram) - 2 * middle + square, 1e-12))
    inner = to - middle[:, None] - middle[support] + square
    inner = SQUARE * inner / (length[:, None] * length[support])
    values, axes = np.linalg.eigh(inner[support])
    inverse = np.where(values > 1e-6 * values[-1], 1 / np.sqrt(np.abs(values) + 1e-12), 0)
    return inner @ (axes * inverse)


class Task(NamedTuple):
    """Episodes of one category as the map head reads them.

    Attributes:
        support: numbers of reviews, [episodes, examples].
        query: numbers of reviews, [episodes, queries].
        inputs: coordinates of each, [episodes, examples or queries, examples].
        label: of the reviews of the category.
    """

    support: Support
    query: Int[np.ndarray, "episodes queries"]
    inputs: tuple[np.ndarray, np.ndarray]
    label: Int[np.ndarray, " reviews"]


def task_of(gram: Gram, label: np.ndarray, support: Support, queries: int = 0) -> Task:
    """Return the episodes of some supports; their queries are all other reviews, or the first few.

    Args:
        gram: inner products of the vectors of the category's reviews.
        label: of the reviews.
        support: one for each episode.
        queries: how many at most; 0 for all.
    """
    query, inputs = [], []
    with threadpoolctl.threadpool_limits(1):  # threads cost more than products of this size
        for rows in support:
            others = np.setdiff1d(np.arange(len(label)), rows)[: queries or None]
            own = coordinates(gram, rows, label[rows])
            query.append(others)
            inputs.append((own[rows], own[others]))
    of_support, of_query = (np.stack(part).astype(np.float32) for part in zip(*inputs, strict=True))
    return Task(support, np.stack(query), (of_support, of_query), label)


def _pair(logits: np.ndarray) -> np.ndarray:
    return np.stack([-logits, logits], -1).astype(np.float32) / 2


def rows_of(
    task: Task, logits: Float[np.ndarray, "reviews *way"], examples: int
) -> tuple[Rows, Rows]:
    """Return supports and queries for `learn_rule`, with the logits before adaptation.

    Args:
        task: episodes.
        logits: of the reviews of the category.
        examples: of a support; what it has fewer is filled up with examples that do not count.
    """
    more = examples - task.support.shape[1]

    def one(which: np.ndarray, inputs: np.ndarray, more: int = 0) -> Rows:
        before = logits[which]
        before = _pair(before) if before.ndim == 2 else before.astype(np.float32)
        arrays = inputs, task.label[which], np.ones(which.shape, bool), before
        filled = [np.pad(a, ((0, 0), (0, more), *[(0, 0)] * (a.ndim - 2))) for a in arrays]
        return Rows(*map(jnp.asarray, filled))

    inputs = [np.pad(one, ((0, 0), (0, 0), (0, more))) for one in task.inputs]
    return one(task.support, inputs[0], more), one(task.query, inputs[1])


class Rule(NamedTuple):
    """What a map head adapts by: λ, and the scale s of the logits of the sources' head."""

    penalty: float
    scale: float


def rule_of(
    tasks: Sequence[Task], logits: Sequence[np.ndarray], penalty: float, steps: int
) -> Rule:
    """Learn a rule on source categories.

    Args:
        tasks: episodes of each source category.
        logits: of its reviews, by heads that did not see its labels.
        penalty: λ where learning starts.
        steps: of `learn_rule`.
    """
    most = max(task.support.shape[1] for task in tasks)
    of_tasks = [rows_of(*one, most) for one in zip(tasks, logits, strict=True)]
    least = min(query.label.shape[1] for _, query in of_tasks)
    support = jax.tree.map(lambda *parts: jnp.concatenate(parts), *(s for s, _ in of_tasks))
    query = jax.tree.map(
        lambda *parts: jnp.concatenate([part[:, :least] for part in parts]),
        *(q for _, q in of_tasks),
    )
    found = _learn_rule(support, query, penalty, steps)
    return Rule(float(np.exp(found["log_penalty"])), float(np.exp(found["log_scale"])))


_learn_rule = jax.jit(learn_rule, static_argnums=(2, 3))


def adapted(
    task: Task,
    logits: Float[np.ndarray, "reviews *way"],
    rule: Rule,
    caution: float | None,
    examples: int | None = None,
) -> tuple[Float[np.ndarray, "episodes queries *way"], Bool[np.ndarray, " episodes"]]:
    """Return the queries' logits after adaptation, and in which episodes the guard let it happen.

    Args:
        task: episodes.
        logits: of the category's reviews before adaptation.
        rule: what to adapt by.
        caution: of the guard; None adapts always.
        examples: as of `rows_of`: a program serves all supports of one size.
    """
    given = task.support.shape[1]
    support, _ = rows_of(task, rule.scale * logits, examples or given)
    shift, pays = jax.device_get(_shifts(support, rule.penalty, caution))
    shift = np.where(pays[:, None, None], shift[:, :given], 0)
    if logits.ndim == 1:
        shift = shift[..., 1:] - shift[..., :1]
    before = rule.scale * logits[task.query]
    moved = np.einsum("eqi,eiw->eqw", task.inputs[1], shift).reshape(before.shape)
    return before + moved, pays


@jax.jit
def with_unlabelled(
    vectors: Float[Array, "reviews width"],
    label: Int[Array, " reviews"],
    support: Int[Array, "episodes examples"],
) -> Float[Array, "episodes reviews"]:
    """Return the logits of a category's reviews after 3 refinements of soft k-means.

    Args:
        vectors: of all its reviews; those outside the support are read without their labels.
        label: of its reviews.
        support: one for each episode.
    """

    def one(rows: Array) -> Array:
        known = jnp.zeros(len(label), bool).at[rows].set(True)
        middle, centres = soft_prototypes(vectors, label, known, ~known, way=2)
        logits = nearness(centred(vectors, middle), centres)
        return logits[:, 1] - logits[:, 0]

    return jax.lax.map(one, support)


@partial(jax.jit, static_argnums=2)
def _shifts(support: Rows, penalty: float, caution: float | None) -> Any:
    """Return by how much an input moves the logits, [episodes, width, way], and if that pays."""

    def one(rows: Rows) -> Any:
        shift = map_shift(*rows, penalty)
        pays = jnp.asarray(True)
        if caution is not None:
            losses = leave_one_out_losses(*rows, penalty)
            pays = worth_adapting(*losses, rows.mask, caution)
        return shift, pays

    return jax.vmap(one)(support)
