"""Builds every Problem and Family out of models, objectives and data."""

from metaguide.problems.few_shot import (
    STATISTICS,
    classification_of_pictures,
    inductive,
    regression,
)
from metaguide.problems.guide import (
    Shape,
    classification,
    families,
    questions,
    recommendation,
    sentiment,
)

__all__ = [
    "STATISTICS",
    "Shape",
    "classification",
    "classification_of_pictures",
    "families",
    "inductive",
    "questions",
    "recommendation",
    "regression",
    "sentiment",
]
