"""The floors of a comparison, recomputed on the very examples that the arms are judged on."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from ml_collections.config_dict import FrozenConfigDict

from experiments.domain_split import World
from metaguide.data.catalogue import Domain
from metaguide.data.encoding import question_examples
from metaguide.data.histories import histories
from metaguide.data.texts import product_text
from metaguide.evaluation import baselines
from metaguide.evaluation.baselines import FLOORS, Raw
from metaguide.evaluation.evaluate import drawn, episode_keys
from metaguide.types import Family

__all__ = ["FLOORS", "floor_outcomes"]

Outcome = tuple[str, int, Raw]
"""Name of the floor, shots, and what it is judged by."""


def floor_outcomes(
    config: FrozenConfigDict, world: World, kind: str, family: Family, data: Any, domain: str
) -> Iterator[Outcome]:
    """Yield every floor of one kind of task on one held-out domain.

    Args:
        config: reads `adapt.shots`, `adapt.episodes` and `seed`.
        world: whose sources the vocabularies and classifiers are fitted on.
        kind: of task.
        family: the arms' own.
        data: of the family.
        domain: one of the family's.
    """
    keys = episode_keys(config.seed, "test", config.adapt.episodes)
    number = family.domains.index(domain)
    held_out = next(one for one in world.held_out if one.name == domain)
    cells = {
        shots: drawn(family, data, number, shots, keys) for shots in sorted(config.adapt.shots)
    }
    of_kind = {
        "classification": _classification,
        "sentiment": _sentiment,
        "questions": _questions,
        "recommendation": _recommendation,
    }
    yield from of_kind[kind](world, held_out, cells)


def _rows(batch) -> np.ndarray:
    return np.where(batch["mask"], batch["id"], -1)


def _classification(world: World, domain: Domain, cells) -> Iterator[Outcome]:
    products = [product for product in domain.products if product.category is not None]
    categories = sorted({str(product.category) for product in products})
    labels = np.array([categories.index(str(product.category)) for product in products])
    tfidf = baselines.fit_tfidf([product_text(p) for d in world.sources for p in d.products])
    features = tfidf.transform([product_text(product) for product in products])
    unseen = np.isin(np.array(categories)[labels], world.always.get(domain.name, ()))

    def with_unseen(raw: Raw) -> Raw:
        return raw | {"unseen": unseen[raw["id"]]}

    for shots, cell in cells.items():
        query, classes = _rows(cell["query"]), cell["context"]["classes"]
        yield "majority", shots, with_unseen(baselines.majority(labels, query, classes))
        if shots:
            support = _rows(cell["support"])
            few = baselines.few_shot(features, labels, support, query)
            yield "tf-idf few-shot", shots, with_unseen(few)
        else:
            names = tfidf.transform(categories)
            named = baselines.class_names(features, names, labels, query, classes)
            yield "class names", shots, with_unseen(named)


def _sentiment(world: World, domain: Domain, cells) -> Iterator[Outcome]:
    def labelled(domains):
        return [review for one in domains for review in one.reviews if review.label is not None]

    source, reviews = labelled(world.sources), labelled([domain])
    tfidf = baselines.fit_tfidf([review.text for review in source])
    classifier = baselines.fit_source(
        tfidf.transform([review.text for review in source]),
        np.array([review.label for review in source]),
    )
    features = tfidf.transform([review.text for review in reviews])
    labels = np.array([review.label for review in reviews])
    for shots, cell in cells.items():
        query = _rows(cell["query"])
        yield "majority", shots, baselines.majority(labels, query)
        zero = baselines.zero_shot(classifier, features, labels, query)
        yield "tf-idf zero-shot", shots, zero
        if shots:
            support = _rows(cell["support"])
            yield "tf-idf few-shot", shots, baselines.few_shot(features, labels, support, query)


def _questions(world: World, domain: Domain, cells) -> Iterator[Outcome]:
    examples = question_examples(domain, world.tokenizer, world.lengths.pair)
    questions = [example.question for example in examples]
    texts = [example.text for example in examples]
    golds = [example.golds for example in examples]
    sources = [question for one in world.sources for question in one.questions]
    tfidf = baselines.fit_tfidf([text for q in sources for text in (q.question, q.text)])
    answerable = np.array([len(gold) > 0 for gold in golds], bool)
    for shots, cell in cells.items():
        query = _rows(cell["query"])
        yield "abstain", shots, baselines.abstain(answerable, query)
        best = baselines.best_sentence(tfidf, questions, texts, golds, query)
        yield "best sentence", shots, best


def _recommendation(world: World, domain: Domain, cells) -> Iterator[Outcome]:
    tfidf = baselines.fit_tfidf([product_text(p) for d in world.sources for p in d.products])
    features = tfidf.transform([product_text(product) for product in domain.products])
    index = {product.id: row for row, product in enumerate(domain.products)}
    # Numbered as in the table: first the users that can be asked about.
    every = sorted(histories(domain.interactions), key=lambda user: len(user.products) < 2)
    taken = np.array(
        [(number, index[p]) for number, user in enumerate(every) for p in user.products]
    )
    for shots, cell in cells.items():
        batch = cell["query"]
        query, users = batch["item"], batch["id"][:, 0]
        history, known = batch["history"][:, 0], batch["history_mask"][:, 0]
        support = np.where(known, history, -1)
        candidates = np.ones((len(query), len(domain.products)), bool)
        for row, given in zip(candidates, support, strict=True):
            row[given[given >= 0]] = False
        popular = baselines.popularity(taken, query, users, candidates)
        yield "popularity", shots, popular
        if shots:
            yield "content", shots, baselines.content(features, support, query, users, candidates)
