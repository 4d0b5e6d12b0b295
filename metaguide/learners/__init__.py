"""Learners: how a problem is learned to be learned. Each is one short pure function."""

from metaguide.learners.gradient_based import anil, fine_tuning, imaml, joint, maml, meta_sgd
from metaguide.learners.learned import learned
from metaguide.learners.maml_plus_plus import maml_plus_plus
from metaguide.learners.on_features import (
    logistic,
    matching,
    prototypical,
    r2d2,
    relation,
    ridge,
)
from metaguide.learners.proto_maml import proto_maml
from metaguide.learners.reptile import reptile

__all__ = [
    "anil",
    "fine_tuning",
    "imaml",
    "joint",
    "learned",
    "logistic",
    "maml",
    "maml_plus_plus",
    "matching",
    "meta_sgd",
    "proto_maml",
    "prototypical",
    "r2d2",
    "relation",
    "reptile",
    "ridge",
]
