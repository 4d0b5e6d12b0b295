"""Builds every Problem and Family out of models, objectives and data.

`metaguide.problems.guide` has those of the guide, which need the extra `guide`.
"""

from metaguide.problems.few_shot import (
    STATISTICS,
    classification_of_pictures,
    inductive,
    regression,
)

__all__ = ["STATISTICS", "classification_of_pictures", "inductive", "regression"]
