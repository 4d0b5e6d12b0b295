"""Learners: how a problem is learned to be learned. Each is one short pure function."""

from metaguide.learners.gradient_based import anil, fine_tuning, joint, maml
from metaguide.learners.on_features import logistic, prototypical, ridge

__all__ = ["anil", "fine_tuning", "joint", "logistic", "maml", "prototypical", "ridge"]
