"""Build every Problem that is not a guide's out of models, objectives and data."""

from metaguide.problems.few_shot import (
    STATISTICS,
    classification_of_pictures,
    inductive,
    regression,
)

__all__ = ["STATISTICS", "classification_of_pictures", "inductive", "regression"]
