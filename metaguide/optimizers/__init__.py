"""Learned optimizers as optax transforms, and the estimators of their gradients."""

from metaguide.optimizers.coordinatewise import coordinatewise
from metaguide.optimizers.damped import damped
from metaguide.optimizers.descent import descent
from metaguide.optimizers.estimators import Estimator, curriculum, evolution, imitation, truncated
from metaguide.optimizers.perceptron import hyper, mlp
from metaguide.optimizers.recurrent import lstm, rnn
from metaguide.optimizers.rule import Rule, apply_gradients
from metaguide.optimizers.stored import StoredError, Trained, load, pretrained, rule_of, save

__all__ = [
    "Estimator",
    "Rule",
    "StoredError",
    "Trained",
    "apply_gradients",
    "coordinatewise",
    "curriculum",
    "damped",
    "descent",
    "evolution",
    "hyper",
    "imitation",
    "load",
    "lstm",
    "mlp",
    "pretrained",
    "rnn",
    "rule_of",
    "save",
    "truncated",
]
