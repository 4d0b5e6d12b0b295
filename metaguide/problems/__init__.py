"""Problems other than the guide's, built from models, objectives and data."""

from metaguide.problems.few_shot import (
    STATISTICS,
    classification,
    classification_of_pictures,
    inductive,
    regression,
)

__all__ = [
    "STATISTICS",
    "classification",
    "classification_of_pictures",
    "inductive",
    "regression",
]
