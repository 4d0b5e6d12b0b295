"""The settings in a config that learned optimizers are trained and scored on, and the scoring."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jaxtyping import Array, Float
from ml_collections.config_dict import FrozenConfigDict

from experiments.config_files import ConfigError
from experiments.sources.parts import data_folder
from metaguide.data.mnist import read_pictures
from metaguide.evaluation.evaluate import episode_keys
from metaguide.models.conv4 import Conv4
from metaguide.models.mlp import PixelMLP
from metaguide.optimizers import descent
from metaguide.problems import classification_of_pictures
from metaguide.problems.optimizees import minibatches_of, quadratics
from metaguide.types import Optimizee

ACTIVATIONS = {"sigmoid": jax.nn.sigmoid, "relu": jax.nn.relu, "tanh": jax.nn.tanh}

CLASSES = 10
"""Number of classes in MNIST and its variants."""

VALIDATION = 5
"""One in this many training pictures is used for validation."""


class Setting(NamedTuple):
    """A distribution of functions to minimise within a number of steps.

    Attributes:
        optimizee: the distribution.
        data: for each split, "train", "validation" and "test", the data its functions are made of.
        horizon: number of steps.
    """

    optimizee: Optimizee
    data: Mapping[str, Any]
    horizon: int


def setting_of(section: FrozenConfigDict) -> Setting:
    """Build a setting from a section of the config.

    Args:
        section: its `horizon` and `functions` are read; the latter is "quadratic" (with `dim` and
            `variant`) or "pictures" (with `pictures`, "mnist" or "fashion_mnist", `model`,
            `widths`, `activation` and `batch`).

    Raises:
        ConfigError: a name in it is unknown.
        MnistError: the pictures can be neither read nor downloaded.
    """
    if section.functions == "quadratic":
        try:
            optimizee = quadratics(section.dim, section.variant)
        except ValueError as error:
            raise ConfigError(f"config: {error}") from error
        return Setting(
            optimizee, dict.fromkeys(("train", "validation", "test"), ()), section.horizon
        )
    if section.functions != "pictures":
        raise ConfigError(f"functions={section.functions!r}: there are quadratic and pictures")
    problem = classification_of_pictures(_model(section), CLASSES)
    data = _pictures(data_folder(), section.pictures)
    return Setting(minibatches_of(problem, section.batch), data, section.horizon)


def _model(section: FrozenConfigDict) -> Any:
    if section.activation not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise ConfigError(f"activation={section.activation!r}: there are {known}")
    if section.model == "perceptron":
        return PixelMLP(tuple(section.widths), ACTIVATIONS[section.activation])
    if section.model == "convolutions":
        return Conv4(section.widths[0], normalise=False)
    raise ConfigError(f"model={section.model!r}: there are perceptron and convolutions")


@functools.cache
def _pictures(folder: Path | None, name: str) -> dict[str, dict[str, np.ndarray]]:
    """Read the pictures of each split; validation pictures come from the training file."""
    files = {split: read_pictures(folder, name, split)._asdict() for split in ("train", "test")}
    order = np.random.default_rng(0).permutation(len(files["train"]["label"]))
    validation, train = np.split(order, [len(order) // VALIDATION])
    return {
        "train": {field: leaf[train] for field, leaf in files["train"].items()},
        "validation": {field: leaf[validation] for field, leaf in files["train"].items()},
        "test": files["test"],
    }


def score(
    setting: Setting,
    optimizer_of: Callable[[Any], optax.GradientTransformation],
    split: str,
    *,
    seed: int,
    problems: int,
    chunk: int,
) -> Callable[[Any], Float[np.ndarray, "problems losses"]]:
    """Build a compiled function: parameters of an optimizer -> its losses on fixed problems.

    Args:
        setting: what is minimised.
        optimizer_of: (parameters such as θ or a rate) -> the optimizer.
        split: "validation" or "test".
        seed: seed of the problems. They depend only on seed, split and index: every optimizer gets
            the same functions, starts and batches.
        problems: number of problems.
        chunk: number of problems to run side by side, which bounds memory.
    """
    keys, data = episode_keys(seed, split, problems), jax.device_put(setting.data[split])

    @jax.jit
    def losses(made_of: Any, data: Any, keys: Array):
        one = descent(setting.optimizee, optimizer_of(made_of), setting.horizon)
        return jax.lax.map(lambda key: one(data, key), keys, batch_size=min(chunk, problems))

    return lambda made_of: np.asarray(losses(made_of, data, keys))


def score_cell(
    cell: FrozenConfigDict,
    setting: Setting,
    optimizer_of: Callable[[Any], optax.GradientTransformation],
    split: str,
) -> Callable[[Any], Float[np.ndarray, "problems losses"]]:
    """Build `score` for a cell of a table.

    Args:
        cell: config whose `seed`, `validation_problems` or `test_problems`, and `setting.chunk` are
            read.
        setting, optimizer_of, split: as for `score`.
    """
    return score(
        setting,
        optimizer_of,
        split,
        seed=cell.seed,
        problems=cell[f"{split}_problems"],
        chunk=cell.setting.chunk,
    )


def validation_score(
    cell: FrozenConfigDict,
    setting: Setting,
    optimizer_of: Callable[[Any], optax.GradientTransformation],
) -> Callable[[Any], float]:
    """Build a function: parameters of an optimizer -> mean log10 final loss on validation problems.

    It is used to choose learned optimizers and to tune hand-made ones.

    Args:
        cell: config whose `least` and `cap` are read, and what `score_cell` reads.
        setting, optimizer_of: as for `score`.
    """
    losses = score_cell(cell, setting, optimizer_of, "validation")
    return lambda made_of: float(log10_of(losses(made_of)[:, -1], cell.least, cell.cap).mean())


def log10_of(losses: Float[np.ndarray, "*n"], least: float, cap: float) -> Float[np.ndarray, "*n"]:
    """Return log10 of losses clipped to [least, cap]; NaN counts as `cap`."""
    return np.log10(np.clip(np.where(np.isnan(losses), cap, losses), least, cap, dtype=np.float64))
