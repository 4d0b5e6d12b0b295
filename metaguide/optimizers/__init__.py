"""Learned optimizers as optax transforms, and the estimators of their gradients.

A rule has `init` (key -> theta) and `transform` (theta -> an optax transform); `pretrained` returns
a rule with its learned theta.

>>> import jax
>>> import jax.numpy as jnp
>>> import optax
>>> from metaguide.optimizers import hyper, lstm, mlp, pretrained
>>> rule, theta, _ = pretrained()
>>> optimizer = rule.transform(theta)
>>> def loss(params):
...     return jnp.sum(params["w"] ** 2)
>>> params = {"w": jnp.ones(3)}
>>> value, gradient = jax.value_and_grad(loss)(params)
>>> update = jax.jit(optimizer.update)
>>> updates, state = update(gradient, optimizer.init(params), params, value=value)
>>> bool(loss(optax.apply_updates(params, updates)) < value)
True

The examples of this package continue from here, some of them with a function to minimise:

>>> from metaguide.problems.optimizees import quadratics
>>> key = jax.random.key(0)
"""

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
