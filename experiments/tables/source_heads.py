"""Heads that source categories taught, by several methods, and what is chosen among them.

Methods read n-grams, the vectors of an encoder, or both; an encoder may be frozen, or taught by
reviews of the sources too. All is for groups of categories that are held out; see `left_out`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from ml_collections.config_dict import FrozenConfigDict
from scipy import sparse

from experiments.tables.left_out import (
    Corpus,
    Gram,
    Heads,
    Keep,
    Task,
    Weigh,
    choice,
    dense_logits,
    gram_of,
    no_keeping,
    sparse_logits,
    taken,
    tfidf,
    weighted_ngrams,
    zero_shot,
)
from experiments.tables.tuned_sentiment import Taught

TUNED = ("fine-tuned encoder", "fine-tuned encoder + n-grams")
"""Names of the methods whose encoder the reviews of sources trained."""


class Known(NamedTuple):
    """What sources teach of a held-out category, by one method.

    Attributes:
        logits: [groups, reviews], as of `zero_shot`.
        gram: (category, categories left out) -> its reviews' inner products.
        fixed: whether these are the same whatever is left out, as an encoder's are.
        others: which reviews did not teach its encoder, so that choices can be made on them; None
            for all.
        seed: of the training of its encoder; None if that is not trained.
    """

    logits: Float[np.ndarray, "groups reviews"]
    gram: Callable[[int, tuple[int, ...]], Gram]
    fixed: bool
    others: Bool[np.ndarray, " reviews"] | None = None
    seed: int | None = None


Methods = dict[str, tuple[Known, ...]]
"""By name, what is known by a method, for each seed of its encoder."""


def methods_of(
    config: FrozenConfigDict,
    everything: Corpus,
    corpus: Corpus,
    choices: dict[str, Any],
    taught: Sequence[Taught] = (),
    keep: Keep = no_keeping,
) -> Methods:
    """Train the heads of all methods, and choose among them on source categories.

    Args:
        config: the resolved config.
        everything: the reviews that n-grams learn from.
        corpus: the reviews that are tested and that choices are made on, with or without vectors.
        choices: category -> method -> what was chosen; is filled.
        taught: what the encoder says after training on reviews of the sources, for each seed.
        keep: what keeps the logits of heads.
    """
    note = partial(_note, choices, corpus)
    weigh = partial(weighted_ngrams, least_texts=config.ngrams.least_texts)
    ngram_heads, ngram_gram = of_counts(everything, corpus, weigh)
    kept = keep("n-grams", ngram_heads)
    ngrams, penalties = zero_shot(corpus, kept, config.ngrams.penalties)
    note("n-grams", "penalty", penalties)
    ngram_gram = lru_cache(maxsize=len(corpus.names))(ngram_gram)  # the pairs of one category
    found: Methods = {"n-grams": (Known(ngrams, ngram_gram, fixed=False),)}
    if corpus.vectors is None:
        return found

    vectors = corpus.vectors / np.sqrt(np.square(corpus.vectors).mean(1, keepdims=True) + 1e-9)

    def encoder_heads(out: tuple[int, ...], rows: np.ndarray, penalties: Sequence[float]):
        others = corpus.others(*out)
        own = partial(dense_logits, vectors[others], corpus.label[others], vectors[rows])
        return [own(penalty) for penalty in penalties]

    kept = keep("encoder", encoder_heads)
    encoder, chosen = zero_shot(corpus, kept, config.encoder.penalties)
    note("encoder", "penalty", chosen)
    found["encoder"] = (Known(encoder, _grams_of(corpus, vectors), fixed=True),)
    both, shares = with_ngrams(config, corpus, *found["encoder"], ngrams)
    note("encoder + n-grams", "share", shares)
    found["encoder + n-grams"] = (both,)
    for one in taught:
        known = Known(one.logits[None], _grams_of(corpus, one.vectors), True, one.others, one.seed)
        # Of sources that were held back, n-grams may not know more than the encoder.
        beside, of_sources = ngrams.copy(), np.flatnonzero(one.others)
        of_sources = np.setdiff1d(of_sources, corpus.rows(*corpus.groups[0]))
        teaching = taken(corpus._replace(support={}), np.flatnonzero(~one.others))
        heads, _ = of_counts(teaching, corpus, weigh)
        (beside[0, of_sources],) = heads(corpus.groups[0], of_sources, penalties)
        both, shares = with_ngrams(config, corpus, known, beside)
        note(label_of(TUNED[1], both), "share", shares)
        for name, of_seed in zip(TUNED, (known, both), strict=True):
            found[name] = (*found.get(name, ()), of_seed)
    return found


def label_of(name: str, known: Known) -> str:
    """Return what `choices.json` calls a method, of which there may be one for each seed."""
    return name if known.seed is None else f"{name}, seed {known.seed}"


def _grams_of(corpus: Corpus, vectors: np.ndarray) -> Callable[[int, tuple[int, ...]], Gram]:
    """Return the inner products of vectors of a category's reviews, each computed once."""

    @cache
    def gram(category: int) -> Gram:
        return gram_of(vectors[corpus.rows(category)])

    return lambda category, _: gram(category)


def with_ngrams(
    config: FrozenConfigDict,
    corpus: Corpus,
    known: Known,
    ngrams: Float[np.ndarray, "groups reviews"],
) -> tuple[Known, list[float]]:
    """Return the sum of a method's logits and of those of n-grams, and their share for each group.

    The share is chosen on sources that did not teach the method's encoder.
    """
    shares = config.stack.shares
    stacked = np.stack([known.logits + share * ngrams for share in shares])
    asked, corpus_asked = stacked, corpus
    if known.others is not None:
        rows = np.flatnonzero(known.others)
        asked, corpus_asked = stacked[..., rows], taken(corpus, rows)
    best = [choice(asked, corpus_asked, group) for group in range(len(corpus.groups))]
    both = np.stack([stacked[one, group] for group, one in enumerate(best)])
    return known._replace(logits=both), [shares[one] for one in best]


def tfidf_of(
    config: FrozenConfigDict,
    everything: Corpus,
    corpus: Corpus,
    choices: dict[str, Any],
    keep: Keep = no_keeping,
) -> Known:
    """Return TF-IDF of n-grams of 1 and 2, which learns from all texts of the sources.

    The arguments are those of `methods_of`. A penalty is chosen if there are several.
    """
    heads, gram = of_counts(everything, corpus, tfidf)
    kept = keep("tf-idf", heads)
    logits, chosen = zero_shot(corpus, kept, config.tfidf.penalties, of_sources=False)
    _note(choices, corpus, "tf-idf zero-shot", "penalty", chosen)
    return Known(logits, gram, fixed=False)


def of_counts(
    everything: Corpus, corpus: Corpus, weigh: Weigh
) -> tuple[Heads, Callable[[int, tuple[int, ...]], Gram]]:
    """Return the heads on vectors of counts, and the inner products of these, as `Known` has them.

    What answers for a group learns from all reviews, and what choices are made by from those that
    are tested.

    Args:
        everything, corpus: as of `methods_of`.
        weigh: what makes the vectors.
    """

    def train_of(out: tuple[int, ...]) -> Corpus:
        return everything if out in corpus.groups else corpus

    @lru_cache(maxsize=4)
    def vectors_of(out: tuple[int, ...]) -> Callable[[sparse.csr_array], Any]:
        return weigh(train_of(out), out)

    def heads(out: tuple[int, ...], rows: np.ndarray, penalties: Sequence[float]):
        train = train_of(out)
        vectors, others = vectors_of(out), train.others(*out)
        own, test = vectors(train.counts[others]), vectors(corpus.counts[rows])
        return [sparse_logits(own, train.label[others], test, penalty) for penalty in penalties]

    def gram(category: int, out: tuple[int, ...]) -> Gram:
        return gram_of(vectors_of(out)(corpus.counts[corpus.rows(category)]))

    return heads, gram


def _note(
    choices: dict[str, Any], corpus: Corpus, name: str, field: str, values: Sequence[float]
) -> None:
    """Keep what was chosen of a method for the categories of each group."""
    for group, value in zip(corpus.groups, values, strict=True):
        for one in group:
            choices.setdefault(corpus.names[one], {})[name] = {field: value}


class Learned(NamedTuple):
    """What the sources of all groups teach.

    Attributes:
        methods: name -> what is known.
        baseline: TF-IDF.
        choices: category -> method -> what was chosen.
        tasks: episodes of vectors that are the same whatever is left out; filled by `rule_for`.
    """

    methods: Methods
    baseline: Known
    choices: Mapping[str, Mapping[str, Any]]
    tasks: dict[Any, Task]


def each_of(methods: Methods) -> Iterator[tuple[str, Known]]:
    """Yield every method's name with what is known by it, seed after seed."""
    return ((name, known) for name, of_seeds in methods.items() for known in of_seeds)
