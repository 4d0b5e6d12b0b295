"""Meta-learners, each built by one short pure function.

A problem is a model and its loss. An episode is one task: a support to adapt to and a query to be
scored on. The learners' examples continue from these lines:

>>> import jax
>>> import jax.numpy as jnp
>>> import optax
>>> from metaguide.data.sinusoid import wave_sampler, waves
>>> from metaguide.models.mlp import MLP, PixelMLP
>>> from metaguide.problems import classification_of_pictures, regression
>>> from metaguide.types import Episode
>>> key = jax.random.key(0)

Sine waves, and a network of eight units:

>>> problem = regression(MLP((8,)))
>>> sine = jax.jit(wave_sampler(shots=5, queries=5))(waves(), 0, 5, key)

Black and white pictures of two by two pixels, whose features are the pixels:

>>> pictures = classification_of_pictures(PixelMLP(()), way=2, side=2)
>>> label = jnp.asarray([0, 1, 0, 1])
>>> image = jnp.stack([jnp.zeros((2, 2, 1)), jnp.ones((2, 2, 1))] * 2)
>>> batch = {"image": image, "label": label, "mask": label >= 0, "id": jnp.arange(4)}
>>> shades = Episode(support=batch, query=batch)
"""

from metaguide.learners.gradient_based import (
    anil,
    completed,
    descend,
    fine_tuning,
    head_loss,
    imaml,
    joint,
    maml,
    meta_sgd,
    proximal_sgd,
    support_loss,
)
from metaguide.learners.label_spreading import label_spreading
from metaguide.learners.learned import learned
from metaguide.learners.maml_plus_plus import maml_plus_plus
from metaguide.learners.map import map_head
from metaguide.learners.on_features import (
    logistic,
    matching,
    prototypical,
    r2d2,
    relation,
    ridge,
    soft_k_means,
)
from metaguide.learners.on_words import features_and_words, tf_idf
from metaguide.learners.proto_maml import proto_maml
from metaguide.learners.reptile import reptile

__all__ = [
    "anil",
    "completed",
    "descend",
    "features_and_words",
    "fine_tuning",
    "head_loss",
    "imaml",
    "joint",
    "label_spreading",
    "learned",
    "logistic",
    "maml",
    "maml_plus_plus",
    "map_head",
    "matching",
    "meta_sgd",
    "proto_maml",
    "prototypical",
    "proximal_sgd",
    "r2d2",
    "relation",
    "reptile",
    "ridge",
    "soft_k_means",
    "support_loss",
    "tf_idf",
]
