"""Meta-learning for cross-domain knowledge transfer in shopping."""

from metaguide import optimizers
from metaguide.data.histories import History
from metaguide.guide import AdaptedGuide, Guide, load
from metaguide.types import Batch, Episode, Family, Learner, Problem

__all__ = [
    "AdaptedGuide",
    "Batch",
    "Episode",
    "Family",
    "Guide",
    "History",
    "Learner",
    "Problem",
    "load",
    "optimizers",
]
