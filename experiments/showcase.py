"""The guide at work on a held-out domain, as the report shows it: examples it did not adapt to."""

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
"""Products and reviews shown a domain."""


def showcase(guide: Guide, split: DomainSplit, shots: int = 5, seed: int = 0) -> list[Showcase]:
    """Adapt to every held-out domain and ask about examples that were not adapted to.

    Args:
        guide: from `metaguide.load`.
        split: whose held-out domains are shown.
        shots: examples adapted to, fewer where a domain has not as many.
        seed: of what is drawn.

    Returns:
        An exhibit a domain: `domain`, `note`, and of `products`, `reviews`, `questions` and
        `recommendation` what the domain has.
    """
    shown = []
    for domain in split.held_out:
        adapted = guide.adapt(domain, shots, seed)
        # Without examples of a task the guide answers too, but there is nothing to ask about.
        tasks = [task for task in adapted.adapted if TASKS[task].has_examples(domain)]
        methods = ", ".join(f"{task}: {guide.serving[task].method}" for task in tasks)
        exhibit: Showcase = {
            "domain": domain.name,
            "note": f"{shots} shots; what did best on the validation domains serves: {methods}",
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
    """Show one user: some products, what is recommended, and the next one, which was taken."""
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
