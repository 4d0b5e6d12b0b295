"""Learned optimizers as optax transforms, and the estimators of their gradients."""

from metaguide.optimizers.estimators import Estimator, evolution, truncated
from metaguide.optimizers.perceptron import hyper, mlp
from metaguide.optimizers.recurrent import lstm, rnn
from metaguide.optimizers.rule import Rule

__all__ = ["Estimator", "Rule", "evolution", "hyper", "lstm", "mlp", "rnn", "truncated"]
