"""What a cell reads from its table's config, and what the command line requests."""

import jax
import optax
from ml_collections.config_dict import FrozenConfigDict

from experiments.config_files import ConfigError
from metaguide.inner_loop import Mixed, Unrolled
from metaguide.methods import METHODS, Method, Settings, UnknownMethod, method_named

HARMLESS = (
    *("way", "shot", "ways", "shots", "learner", "learners", "more_learners", "initialisers"),
    *("seeds", "seeds_at_once", "processes", "preset", "parallel", "log_every"),
    *("checkpoint_every", "shown_steps", "test_chunk"),
)
"""Fields on which a cell depends only through the name of its folder."""


IN_TABLES = tuple(name for name, method in METHODS.items() if method.needs)
"""Names of the methods in few-shot tables."""


def method_of(name: str) -> Method:
    """Return a method of the few-shot tables.

    Raises:
        ConfigError: there is no method of that name.
    """
    try:
        return method_named(name, IN_TABLES)
    except UnknownMethod as error:
        raise ConfigError(str(error)) from error


def settings_of(name: str, section: FrozenConfigDict, steps: int, features: int = 0) -> Settings:
    """Return the settings a method is built with, from its section of the config.

    Args:
        name: name of the method.
        section: its section, or the part of it for a number of ways.
        steps: inner steps, in training or at test.
        features: width of the problem's features.

    Raises:
        ConfigError: there is no such method, or the section lacks a field that it needs.
    """
    needs = method_of(name).needs
    fields = {"learning_rate": ("inner_learning_rate",), "inner": ("inner", "inner_learning_rate")}
    wanted = [field for need in needs for field in fields.get(need, (need,))]
    if lacking := [field for field in wanted if field not in section]:
        raise ConfigError(f"config.{name}: lacks {', '.join(lacking)}; give it there")
    built = {
        "learning_rate": lambda: section.inner_learning_rate,
        "inner": lambda: inner_optimizer(section),
        "mode": lambda: mode_named(section.mode),
    }
    given = {need: built[need]() if need in built else section[need] for need in needs}
    return Settings(steps=steps, features=features, **given)


def mode_named(name: str) -> Unrolled | Mixed:
    """Return a way to differentiate an inner loop exactly, by its name in a config."""
    # On a GPU five steps per pass took a third less time than one; on a CPU it made no difference.
    mixed = Mixed(unroll=1 if jax.default_backend() == "cpu" else 5)
    modes = {"unrolled": Unrolled(), "remat": Unrolled(remat=True), "mixed": mixed}
    if name not in modes:
        raise ConfigError(f"mode is {name!r}; there are {', '.join(modes)}")
    return modes[name]


def inner_optimizer(cfg: FrozenConfigDict) -> optax.GradientTransformation:
    """Return the inner rule of a section.

    The rules are "sgd"; "adam" without momentum, as in Reptile; and "annealed", Adam with a rate
    that falls to 0 over `inner_steps`, so that it ends close to a minimum whatever its curvature.
    """

    def annealed() -> optax.GradientTransformation:
        rate = optax.cosine_decay_schedule(cfg.inner_learning_rate, cfg.inner_steps)
        return optax.adam(rate, b2=0.9)

    rules = {
        "sgd": lambda: optax.sgd(cfg.inner_learning_rate),
        "adam": lambda: optax.adam(cfg.inner_learning_rate, b1=0.0),
        "annealed": annealed,
    }
    if cfg.inner not in rules:
        raise ConfigError(f"inner is {cfg.inner!r}; there are {', '.join(rules)}")
    return rules[cfg.inner]()


def read_by(config: FrozenConfigDict, method: str) -> FrozenConfigDict:
    """Return what a method depends on: the plain fields and, of the learners' sections, its own."""
    fields = config.to_dict().items()
    return FrozenConfigDict({k: v for k, v in fields if k == method or not isinstance(v, dict)})


def learners_in(config: FrozenConfigDict) -> tuple[str, ...]:
    """Return all methods with a section: `learners`, and `more_learners` requested by name."""
    return tuple(dict.fromkeys((*config.learners, *config.get("more_learners", ()))))


def methods_asked_for(config: FrozenConfigDict) -> tuple[str, ...]:
    """Return the method that the command line names, or all methods of the table.

    Raises:
        ConfigError: there is no such method.
    """
    if config.learner and config.learner not in learners_in(config):
        known = ", ".join(learners_in(config))
        raise ConfigError(f"config.learner: there is no {config.learner!r}; there are {known}")
    return (config.learner,) if config.learner else tuple(config.learners)
