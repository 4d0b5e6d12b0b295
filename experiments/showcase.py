"""The guide at work on a held-out domain, for the report: examples it was not adapted to."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from experiments.domain_split import DomainSplit
from experiments.exhibits import (
    Item,
    ProductShown,
    QuestionShown,
    RecommendationShown,
    ReviewShown,
    Showcase,
)
from metaguide.data.catalogue import Domain, Product, Question, Review
from metaguide.data.histories import History, histories
from metaguide.guide import AdaptedGuide, Guide
from metaguide.tasks import TASKS

Example = TypeVar("Example", Product, Review, Question)

SHOWN = 8
"""Number of products and reviews shown per domain."""


def showcase(guide: Guide, split: DomainSplit, shots: int = 5, seed: int = 0) -> list[Showcase]:
    """Adapt to every held-out domain and ask about examples that were not adapted to.

    Args:
        guide: the return value of `metaguide.load`.
        split: the split whose held-out domains are shown.
        shots: number of examples to adapt to; fewer if a domain does not have as many.
        seed: seed for drawing the examples.

    Returns:
        One showcase per domain, with `domain`, `note` and, as far as the domain has them,
        `products`, `reviews`, `questions` and `recommendation`.
    """
    shown = []
    for domain in split.held_out:
        adapted = guide.adapt(domain, shots, seed)
        # The guide also answers without examples of a task, but then there is nothing to ask about.
        tasks = [task for task in adapted.adapted if TASKS[task].has_examples(domain)]
        methods = ", ".join(f"{task}: {guide.serving[task].method}" for task in tasks)
        exhibit: Showcase = {
            "domain": domain.name,
            "note": f"{shots} shots; methods, chosen on the validation domains: {methods}",
        }
        rng = np.random.default_rng(seed)
        if "classification" in tasks:
            exhibit["products"] = _products(adapted, rng)
        if "sentiment" in tasks:
            exhibit["reviews"] = _reviews(adapted, rng)
        if "questions" in tasks:
            exhibit["questions"] = _questions(adapted, rng)
        if "recommendation" in tasks:
            exhibit["recommendation"] = _recommendation(adapted, domain, rng)
        shown.append(exhibit)
    return shown


def _unseen(
    adapted: AdaptedGuide, task: str, examples: Sequence[Example], count: int, rng
) -> list[Example]:
    """Draw examples that the guide did not adapt to."""
    others = [one for one in examples if one.id not in adapted.adapted[task].chosen]
    return [others[i] for i in rng.permutation(len(others))[:count]]


def _products(adapted: AdaptedGuide, rng) -> list[ProductShown]:
    known = [product for product in adapted.domain.products if product.category is not None]
    asked = _unseen(adapted, "classification", known, SHOWN, rng)
    return [
        {
            "title": product.title,
            "image": product.image,
            "target": str(product.category),
            "predicted": answer.category,
            "probabilities": answer.probabilities,
        }
        for product, answer in zip(asked, adapted.predict(asked), strict=True)
    ]


def _reviews(adapted: AdaptedGuide, rng) -> list[ReviewShown]:
    known = [review for review in adapted.domain.reviews if review.label is not None]
    asked = _unseen(adapted, "sentiment", known, SHOWN, rng)
    return [
        {
            "text": review.text,
            "target": "positive" if review.label else "negative",
            "predicted": answer.sentiment,
            "positive": answer.positive,
            "stars": review.stars,
            "predicted_stars": answer.stars if review.stars is not None else None,
        }
        for review, answer in zip(asked, adapted.predict(asked), strict=True)
    ]


def _questions(adapted: AdaptedGuide, rng) -> list[QuestionShown]:
    asked = _unseen(adapted, "questions", adapted.domain.questions, 4, rng)
    return [
        {
            "question": question.question,
            "text": question.text,
            "answer": question.answer,
            "predicted": answer.span,
        }
        for question, answer in zip(asked, adapted.predict(asked), strict=True)
    ]


def _recommendation(adapted: AdaptedGuide, domain: Domain, rng) -> RecommendationShown:
    """Show one user: some products taken, what is recommended, and the product taken next."""
    users = [one for one in histories(domain.interactions) if len(one.products) > 1]
    user = users[int(rng.integers(len(users)))]
    *before, target = user.products
    known = tuple(before[-max(1, adapted.shots) :])
    (ranking,) = adapted.predict([History(user.user, known)])
    pictured: dict[str, Item] = {
        product.id: {"title": product.title, "image": product.image} for product in domain.products
    }
    return {
        "user": user.user,
        "history": [pictured[product] for product in known],
        "ranked": [pictured[product] for product in ranking.products[:SHOWN]],
        "target": pictured[target],
        "rank": 1 + ranking.products.index(target),
    }
