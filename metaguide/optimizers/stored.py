"""Trained optimizers as small files: the rule, its settings, its θ, and the training command."""

import inspect
import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from metaguide.files import MIB, atomic_write, checksum, read_arrays
from metaguide.optimizers.perceptron import hyper, mlp
from metaguide.optimizers.recurrent import lstm, rnn
from metaguide.optimizers.rule import Rule, Theta, by_name, check_theta, named

VERSION = 1
"""Version of the file format and of the rules' computation; other versions are rejected."""

FILE = "optimizer.npz"
"""Name of a run's trained optimizer, in its work folder."""

RULES: Mapping[str, Callable[..., Rule]] = {"lstm": lstm, "rnn": rnn, "hyper": hyper, "mlp": mlp}
"""Functions that build a rule, keyed by kind."""

SHIPPED = Path(__file__).parent / "trained"
"""The folder of the optimizers that come with the package."""

MOST = 64 * MIB
"""Limit on a file's arrays, in bytes: a thousand times the largest that comes with the package."""


class Trained(NamedTuple):
    """A trained optimizer.

    Attributes:
        rule: its two functions.
        theta: its learned parameters.
        command: the command that trained it.
    """

    rule: Rule
    theta: Theta
    command: str


class StoredError(ValueError):
    """A stored optimizer is missing, damaged, or of another rule or version."""


def rule_of(kind: str, settings: Mapping[str, Any]) -> Rule:
    """Return the rule of a kind, a key of `RULES`; the settings are its builder's arguments.

    Raises:
        ValueError: there is no such kind, or it has no such setting.

    >>> rule_of("mlp", {"hidden": 4}).name
    'mlp(hidden=4, scale=0.01)'
    """
    if kind not in RULES:
        raise ValueError(f"there is no rule {kind!r}; there are {', '.join(RULES)}")
    known = inspect.signature(RULES[kind]).parameters
    odd = set(settings) - set(known)
    if odd:
        raise ValueError(f"{kind} has no setting {min(odd)!r}; it has {', '.join(known)}")
    return RULES[kind](**settings)


def save(path: str | Path, rule: Rule, theta: Theta, command: str) -> None:
    """Write a trained optimizer atomically.

    Args:
        path: path of the file; its folder exists.
        rule: any rule, including a custom one.
        theta: the learned parameters; float64 ones, as `jax_enable_x64` makes them, are rounded.
        command: the command that trained it.

    Raises:
        ValueError: θ is of another rule, of other dtypes, or not finite.

    >>> import tempfile
    >>> from pathlib import Path
    >>> from metaguide.optimizers import load
    >>> rule = mlp(hidden=4)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(Path(folder) / "optimizer.npz", rule, rule.init(key), "by hand")
    ...     print(load(folder).command)
    by hand
    """
    check_theta(rule.name, rule.init, theta)
    about = {"version": VERSION, "kind": rule.kind, "settings": _plain(rule.settings)}
    about |= {"command": command}
    leaves = {f"theta{name}": np.asarray(leaf) for name, leaf in by_name(theta).items()}
    for (name, leaf), wanted in zip(leaves.items(), by_name(_like(rule)).values(), strict=True):
        if leaf.dtype == np.float64:
            leaves[name] = leaf = leaf.astype(wanted.dtype)
        if leaf.dtype != wanted.dtype or not np.isfinite(leaf).all():
            raise ValueError(f"{name} is {leaf.dtype} and has to be {wanted.dtype} and finite")
    about = json.dumps(about | {"crc32": checksum(leaves, layout=False)})
    with atomic_write(Path(path)) as file:
        np.savez_compressed(file, allow_pickle=False, about=about, **leaves)


def load(path: str | Path, expected: str | Rule | None = None) -> Trained:
    """Read a trained optimizer.

    Args:
        path: the file, or the work folder of a run that made one.
        expected: the kind or rule of the file; any of `RULES` by default, so a custom rule has to
            be given.

    Returns:
        The saved optimizer.

    Raises:
        StoredError: the file is missing, damaged, or of another rule, version or size.

    >>> load("no_such_folder")
    Traceback (most recent call last):
        ...
    metaguide.optimizers.stored.StoredError: no_such_folder: there is no trained optimizer; ...
    """
    path = Path(path)
    path = path / FILE if path.is_dir() else path
    try:
        found = read_arrays(path, MOST)
        about = json.loads(str(found.pop("about")))
        version, known, known_settings, command = (
            about[field] for field in ("version", "kind", "settings", "command")
        )
        if not isinstance(known_settings, dict) or not isinstance(known, str):
            raise TypeError("its kind is no text, or its settings no table")
    except FileNotFoundError as error:
        raise StoredError(f"{path}: there is no trained optimizer; train one first") from error
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise StoredError(f"{path}: no trained optimizer, or a damaged one ({error})") from error
    # Files older than the checksums have none.
    if "crc32" in about and about["crc32"] != checksum(found, layout=False):
        raise StoredError(f"{path}: its arrays are not those that were saved; get it anew")
    if version != VERSION:
        raise StoredError(f"{path}: of version {version}, and this is {VERSION}; train it anew")
    stored = named(known, known_settings)
    if isinstance(expected, Rule):
        is_it = (expected.kind, _plain(expected.settings)) == (known, known_settings)
    else:
        is_it = expected in (None, known)
    if not is_it:
        wanted = expected.name if isinstance(expected, Rule) else expected
        raise StoredError(f"{path}: a trained {stored}, not a trained {wanted}; give another file")
    try:
        rule = expected if isinstance(expected, Rule) else rule_of(known, known_settings)
        like = _like(rule)
        wanted = {f"theta{name}": leaf.dtype for name, leaf in by_name(like).items()}
        theta = jax.tree.unflatten(jax.tree.structure(like), [found.get(name) for name in wanted])
        check_theta(rule.name, rule.init, theta)
    # The rule's builder may get settings of any type and size.
    except Exception as error:
        raise StoredError(f"{path}: {' '.join(str(error).split())[:300]}") from error
    if odd := sorted(found.keys() - wanted.keys()):
        raise StoredError(f"{path}: {odd[0]!r} is no part of {stored}; get the file anew")
    for name, dtype in wanted.items():
        odd = "" if found[name].dtype == dtype else f"is {found[name].dtype} and has to be {dtype}"
        odd = odd or ("" if np.isfinite(found[name]).all() else "has values that are not finite")
        if odd:
            raise StoredError(f"{path}: {name} {odd}; get the file anew")
    return Trained(rule, theta, command)


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as JSON has them: a NumPy number as a number, a tuple as a list."""
    return {name: np.asarray(value).tolist() for name, value in settings.items()}


def _like(rule: Rule) -> Theta:
    """Return the shapes and dtypes of a rule's learned parameters.

    They are those of JAX without 64 bits: a stored rule serves with and without them.
    """
    with jax.enable_x64(False):
        return jax.eval_shape(rule.init, jax.random.key(0))


TRAINED_ON: Mapping[str, str] = {
    "lstm": "100 steps of a perceptron of 20 sigmoid units on MNIST; it diverges on perceptrons of "
    "rectified units and after some hundred steps",
    "rnn": "100 steps of a perceptron of 20 sigmoid units on MNIST; it stalls after some hundred "
    "steps, and on rectified units diverges",
    "mlp": "100 steps of a perceptron of 20 sigmoid units on MNIST; on perceptrons of rectified "
    "units it may switch all of them off",
}
"""For the packaged optimizers that do not generalise: training problem, and where they fail."""


def pretrained(name: str = "hyper") -> Trained:
    """Return a trained optimizer that comes with the package.

    Each was trained on 100 steps of a small perceptron on MNIST. "hyper", the default, also works
    on unseen networks, such as two layers of rectified units over 1,500 steps. The others may not,
    and warn about it: "lstm" and "rnn" diverge there, and "mlp" may stop improving.
    "hyper" reads the loss, as `value=`. They were trained on mean losses: clip the gradients of
    others, by `optax.chain(optax.clip_by_global_norm(1.0), rule.transform(theta))`.

    Args:
        name: "hyper", "lstm", "rnn" or "mlp".

    Raises:
        StoredError: there is none of that name; the message lists the available ones.

    >>> rule, theta, command = pretrained()
    >>> rule.name
    'hyper(hidden=32, inner=4, scale=0.01)'
    """
    path = SHIPPED / f"{name}.npz"
    if not path.is_file():
        there = ", ".join(sorted(file.stem for file in SHIPPED.glob("*.npz")))
        raise StoredError(f"there is no trained optimizer {name!r} here; there are {there}")
    if name in TRAINED_ON:
        warnings.warn(
            f"pretrained({name!r}) was trained on {TRAINED_ON[name]}; pretrained() is the one that "
            "works on other networks",
            stacklevel=2,
        )
    return load(path)
