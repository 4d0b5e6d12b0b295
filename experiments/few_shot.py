"""One cell of a published few-shot table: meta-train a learner on one family, judge it, keep that.

A cell has a folder of its own with the config it depends on, checkpoints, and at the end the raw
outcome of every test episode. A table is collected from the cells that are finished, so that its
arms may be trained by several commands, in any order.
"""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections.config_dict import FrozenConfigDict

from experiments.config_files import ConfigError
from experiments.run_folder import CONFIG, check_config, identity, read_config, write_config
from experiments.stages import command_line, train_alone
from metaguide.evaluation.evaluate import episode_keys, evaluator
from metaguide.evaluation.results import Row, Scores, write
from metaguide.files import MIB, FileFault, read_arrays, write_arrays
from metaguide.inner_loop import FirstOrder, Mixed, Unrolled
from metaguide.learners import (
    anil,
    imaml,
    maml,
    maml_plus_plus,
    matching,
    meta_sgd,
    proto_maml,
    prototypical,
    r2d2,
    relation,
    reptile,
)
from metaguide.parallel import (
    ONE_FOLDER,
    check_agreed,
    is_first_process,
    mesh_for,
    own_mesh,
    replicate,
)
from metaguide.training.episodic import episodic
from metaguide.training.progress import say
from metaguide.types import Family, Learner, Params, Problem

OUTCOME = "outcome.npz"
"""In the folder of a cell: arrays [observations, episodes, queries] by name."""

MOST = 1024 * MIB
"""Bytes of the arrays of an outcome."""

HARMLESS = (
    *("way", "shot", "ways", "shots", "learner", "learners", "more_learners", "initialisers"),
    *("seeds", "seeds_at_once", "processes", "preset", "parallel", "log_every"),
    *("checkpoint_every", "shown_steps", "test_chunk"),
)
"""Fields on which no cell depends but by its folder's name."""


class Cell(NamedTuple):
    """What is trained and judged, apart from its seed.

    Attributes:
        name: of its folder, such as "5w1s/maml".
        family: what it is trained on.
        learner: as it is trained.
        optimizer: the outer one, over the meta-parameters.
        steps: of meta-training.
        tasks: episodes a step.
        shots: of the support in training.
    """

    name: str
    family: Family
    learner: Learner
    optimizer: optax.GradientTransformation
    steps: int
    tasks: int
    shots: int


_INNER = ("inner", "inner_rate")

_FIELDS: Mapping[str, tuple[str, ...]] = {
    "maml": ("inner_rate", "mode"),
    "first-order": ("inner_rate",),
    "anil": ("inner_rate",),
    "meta-sgd": ("inner_rate",),
    "maml++": (*("inner_rate", "inner_steps", "multi_step_until", "second_order_from", "mode"),),
    "reptile": (*_INNER, "batch", "keep_state"),
    "imaml": (*_INNER, "strength", "cg_steps", "damping"),
    "proto-maml": ("inner_rate",),
    "prototypical": ("temperature",),
    "matching": ("temperature",),
    "relation": ("hidden",),
    "ridge": ("penalty", "scale"),
}
"""What each learner reads of its section."""


def learner_named(
    name: str, problem: Problem, own: FrozenConfigDict, steps: int, width: int = 0
) -> Learner:
    """Return a learner by the name that its arm has in the tables.

    Args:
        name: "maml", "first-order", "anil", "meta-sgd", "maml++", "reptile", "imaml",
            "proto-maml", "prototypical", "matching", "relation" or "ridge".
        problem: what it learns.
        own: its section of the config.
        steps: inner steps; those of training, or those of the test.
        width: of the problem's features; relation networks need it.

    Raises:
        ConfigError: there is no learner of that name, or its section lacks a field.
    """
    makers: dict[str, Callable[[], Learner]] = {
        "maml": lambda: maml(problem, optax.sgd(own.inner_rate), steps, mode_named(own.mode)),
        "first-order": lambda: maml(problem, optax.sgd(own.inner_rate), steps, FirstOrder()),
        "anil": lambda: anil(problem, optax.sgd(own.inner_rate), steps),
        "meta-sgd": lambda: meta_sgd(problem, own.inner_rate, steps),
        "maml++": lambda: maml_plus_plus(
            problem,
            own.inner_rate,
            own.inner_steps,
            multi_step_until=own.multi_step_until,
            second_order_from=own.second_order_from,
            mode=mode_named(own.mode),
        ),
        "reptile": lambda: reptile(
            problem,
            inner_optimizer(own),
            steps,
            batch=own.batch,
            keep_state=own.keep_state,
        ),
        "imaml": lambda: imaml(
            problem, inner_optimizer(own), steps, own.strength, own.cg_steps, own.damping
        ),
        "proto-maml": lambda: proto_maml(problem, optax.sgd(own.inner_rate), steps),
        "prototypical": lambda: prototypical(problem, own.temperature),
        "matching": lambda: matching(problem, own.temperature),
        "relation": lambda: relation(problem, width, own.hidden),
        "ridge": lambda: r2d2(problem, own.penalty, own.scale),
    }
    if name not in makers:
        raise ConfigError(f"there is no learner {name!r}; there are {', '.join(makers)}")
    lacking = [field for field in _FIELDS[name] if field not in own]
    if lacking:
        raise ConfigError(f"config.{name}: lacks {', '.join(lacking)}; give it there")
    return makers[name]()


def mode_named(name: str) -> Unrolled | Mixed:
    """Return a way to differentiate an inner loop exactly, by its name in a config."""
    # On a GPU five steps a pass took a third less time than one, and on a CPU nothing less.
    mixed = Mixed(unroll=1 if jax.default_backend() == "cpu" else 5)
    modes = {"unrolled": Unrolled(), "remat": Unrolled(remat=True), "mixed": mixed}
    if name not in modes:
        raise ConfigError(f"mode is {name!r}; there are {', '.join(modes)}")
    return modes[name]


def inner_optimizer(own: FrozenConfigDict) -> optax.GradientTransformation:
    """Return the inner rule of a section.

    "sgd"; "adam" without momentum, as Reptile's; or "annealed", Adam whose rate falls to 0 over
    `inner_steps`, so that it ends close to a minimum of any curvature.
    """

    def annealed() -> optax.GradientTransformation:
        rate = optax.cosine_decay_schedule(own.inner_rate, own.inner_steps)
        return optax.adam(rate, b2=0.9)

    rules = {
        "sgd": lambda: optax.sgd(own.inner_rate),
        "adam": lambda: optax.adam(own.inner_rate, b1=0.0),
        "annealed": annealed,
    }
    if own.inner not in rules:
        raise ConfigError(f"inner is {own.inner!r}; there are {', '.join(rules)}")
    return rules[own.inner]()


def way_back(rate: float, steps: int) -> optax.GradientTransformation:
    """Return Reptile's outer optimizer: a share of the way, from `rate` to 0 over the steps.

    The inner optimizer's state, "rule", goes all the way to its mean over tasks.
    """

    schedule = optax.linear_schedule(rate, 0.0, steps)
    rules: dict[Hashable, Any] = {"params": optax.sgd(schedule), "rule": optax.sgd(1.0)}

    def labels(tree: Params) -> Params:
        return jax.tree.map_with_path(
            lambda path, _: "rule" if "['rule']" in jax.tree_util.keystr(path) else "params", tree
        )

    return optax.partition(rules, labels)


def train_cell(
    cell: Cell,
    config: FrozenConfigDict,
    workdirs: Sequence[Path],
    seeds: Sequence[int],
    mesh: Mesh | None = None,
) -> list[Params]:
    """Meta-train seeds of a cell side by side, each in its folder, or go on where they stopped.

    Args:
        cell: what to train.
        config: reads `tasks_per_chunk`, `parallel`, `span`, `log_every` and `checkpoint_every`.
        workdirs: the cell's folder for each seed.
        seeds: of initial parameters and episodes.
        mesh: of the devices that share the tasks; by default as many as divide them.

    Returns:
        The meta-parameters of each seed, whole on each device of this process.

    Raises:
        ConfigError: tasks that devices or chunks do not divide, steps that calls do not, or
            another way of going parallel.
    """
    mesh = mesh_for(cell.tasks) if mesh is None else mesh
    if mesh.size < jax.device_count():
        used = f"{mesh.size} of {jax.device_count()} devices"
        say(f"{cell.name}: {cell.tasks} tasks a step, on {used}")
    try:
        gradient = episodic(
            cell.family,
            cell.learner,
            tasks=cell.tasks,
            shots=(cell.shots,),
            tasks_per_chunk=config.tasks_per_chunk or None,
            mesh=mesh,
        )
    except ValueError as error:
        raise ConfigError(f"config: {error}") from error
    span = config.span or best_span(cell.steps, config.log_every, config.checkpoint_every)
    keys = [jax.random.key(1000 + seed) for seed in seeds]
    metas = [cell.learner.init(jax.random.key(seed)) for seed in seeds]
    of = {"cell": cell.name, "config": identity(config, harmless=HARMLESS)}
    abouts = [{**of, "seed": seed} for seed in seeds]
    alone = len(seeds) == 1
    trained = train_alone(
        "episodes",
        gradient,
        metas[0] if alone else metas,
        cell.family.data,
        cell.optimizer,
        FrozenConfigDict({**config.to_dict(), "span": span}),
        steps=cell.steps,
        key=keys[0] if alone else jnp.stack(keys),
        mesh=mesh,
        parallel=config.parallel,
        workdir=workdirs[0] if alone else workdirs,
        name=f"{cell.name} seed {', '.join(map(str, seeds))}",
        where="config",
        mend="lower config.rate, or the inner_rate of the learner",
        about=abouts[0] if alone else abouts,
    )
    if alone:
        return [trained]
    return [jax.tree.map(lambda leaf: leaf[i], trained) for i in range(len(seeds))]


def best_span(*counts: int) -> int:
    """Return how many steps a call of the program takes best: on an accelerator up to 50.

    A step there takes about as long as calling it does. On a CPU a call costs nothing beside it.

    Args:
        counts: of steps, in all and between what is done besides; the span divides each.
    """
    return 1 if jax.default_backend() == "cpu" else math.gcd(50, *counts)


def at_once(config: FrozenConfigDict) -> int:
    """Return how many seeds of a cell one program trains: on an accelerator all of them.

    One small training leaves most of an accelerator idle, and a CPU nothing.
    """
    return config.seeds_at_once or (1 if jax.default_backend() == "cpu" else config.seeds)


def judged(
    family: Family,
    learner_of: Callable[[Any], Learner],
    metas: Sequence[Params],
    *,
    shots: int,
    seed: int,
    split: str,
    episodes: int,
    chunk: int,
    rates: tuple[float, ...] = (0.0,),
) -> list[dict[str, np.ndarray]]:
    """Return what the problem's `judge` says of saved episodes.

    All is one program, compiled once.

    Args:
        family: what is asked; the episodes are a function of seed, split and number alone.
        learner_of: rate -> the learner that adapts.
        metas: what was learned, by one seed or several.
        shots: of the support.
        seed: of the episodes, the same for all arms.
        split: "validation" or "test".
        episodes: how many.
        chunk: episodes side by side on all devices of this process.
        rates: what the learner is built with.

    Returns:
        Arrays [observations, episodes, queries] by name: for each of the metas, for each rate.
    """
    mesh = own_mesh()
    run = evaluator(family, {"learner": learner_of}, min(chunk, episodes), mesh).run
    keys, (metas, data) = episode_keys(seed, split, episodes), replicate((metas, family.data), mesh)
    return [
        run(meta, data, 0, shots, keys, {"learner": rate})["learner"]
        for meta in metas
        for rate in rates
    ]


def outcome_of(
    folder: Path,
    config: FrozenConfigDict,
    compute: Callable[[], Mapping[str, np.ndarray]],
) -> dict[str, np.ndarray]:
    """Return the outcome of a cell, computed where its folder has none yet, and keep it there.

    Args:
        folder: of the cell and seed.
        config: what the cell depends on; it must be what it was in this folder.
        compute: trains and judges.
    """
    if not is_finished(folder, config):
        found = dict(compute())
        keep_outcome(folder, found)
        return found
    return _outcome_in(folder)


def is_finished(folder: Path, config: FrozenConfigDict) -> bool:
    """Return whether a cell's folder has its outcome; the folder is made, and made the config's.

    Args:
        folder: of the cell and seed.
        config: what the cell depends on; it must be what it was in this folder.

    Raises:
        ConfigError: the folder is of another config, or its outcome is damaged.
    """
    write_config(config, folder, harmless=HARMLESS)
    known = bool(_outcome_in(folder))
    # Training takes all processes: none may skip it alone.
    check_agreed(known, f"{folder / OUTCOME} is there for some processes only; {ONE_FOLDER}")
    return known


def keep_outcome(folder: Path, found: Mapping[str, np.ndarray]) -> None:
    """Write a cell's outcome into its folder; of several processes the first one does."""
    if is_first_process():
        write_arrays(folder / OUTCOME, found, of=_names_of(folder)[0])


def _outcome_in(folder: Path, needed: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Return the outcome in the folder of a cell and seed; {} where there is none."""
    path = folder / OUTCOME
    try:
        found = read_arrays(path, MOST, of=_names_of(folder))
        for name in needed:
            if name not in found:
                raise FileFault(f"it has no {name!r}: it is of another table, or lost it")
            if found[name].dtype.kind not in "biuf" or not found[name].size:
                raise FileFault(f"its {name!r} holds no numbers")
        return found
    except FileNotFoundError:
        return {}
    except FileFault as error:
        raise ConfigError(
            f"{path}: {error}; delete this file, and the cell is judged anew"
        ) from error


def _names_of(folder: Path) -> tuple[str, ...]:
    """Return what the outcome of a cell and seed is called: "GROUP/ARM/seedN, config ID".

    Outcomes of some days are called by the first part of it alone.
    """
    cell = "/".join(folder.absolute().parts[-3:])
    if not (folder / CONFIG).exists():
        return (cell,)
    return f"{cell}, config {identity(read_config(folder), harmless=HARMLESS)}", cell


def check_cells(workdir: Path, config_of: Callable[[str, str], FrozenConfigDict | None]) -> None:
    """Refuse a work folder that has cells of another config: one table would mix the two.

    Args:
        workdir: of the table; a seed of a cell is in `WORKDIR/GROUP/ARM/seedN`.
        config_of: (group, arm) -> what the cell depends on; None where it has no part in the table.

    Raises:
        ConfigError: names a cell's folder, the fields and the mend.
    """
    for folder in sorted(workdir.glob("*/*/seed*")):
        _, group, arm, _ = folder.parts[-4:]
        if (cell := config_of(group, arm)) is not None:
            check_config(cell, folder, harmless=HARMLESS)


def read_by(config: FrozenConfigDict, arm: str) -> FrozenConfigDict:
    """Return what an arm depends on: the plain fields, and no learner's section but its own."""
    fields = config.to_dict().items()
    return FrozenConfigDict({k: v for k, v in fields if k == arm or not isinstance(v, dict)})


def learners_in(config: FrozenConfigDict) -> tuple[str, ...]:
    """Return all arms that have a section: `learners`, and `more_learners`, which are asked for."""
    return tuple(dict.fromkeys((*config.learners, *config.get("more_learners", ()))))


def outcomes_in(
    workdir: Path, cell: str, seeds: int, needed: Sequence[str] = ()
) -> dict[str, np.ndarray]:
    """Return the outcomes of a cell's first seeds, stacked; {} where none is finished.

    Args:
        workdir: of the table.
        cell: the cell's name.
        seeds: how many are looked for; those that are finished count.
        needed: names of arrays that the table cannot do without; of the others those are returned
            that all seeds have. By default all are needed.

    Raises:
        ConfigError: an outcome is damaged, of another cell, table or config, or has other arrays or
            shapes than those of the other seeds.
    """
    folders = [workdir / cell / f"seed{seed}" for seed in range(seeds)]
    of_seeds = {folder: _outcome_in(folder, needed) for folder in folders}
    found = {folder: one for folder, one in of_seeds.items() if one}
    if not found:
        return {}
    first = next(iter(found.values()))
    lacking = {name for one in found.values() for name in {*first} ^ {*one}}
    if lacking and not needed:
        raise ConfigError(
            f"{workdir / cell}: the outcomes of its seeds do not have the same arrays: "
            f"{', '.join(sorted(lacking))}; delete the {OUTCOME} that lacks them"
        )
    names = [name for name in first if name not in lacking]
    for folder, one in found.items():
        for name in names:
            if one[name].shape != first[name].shape:
                raise ConfigError(
                    f"{folder / OUTCOME}: its {name!r} is of shape {list(one[name].shape)}, and "
                    f"another seed's of {list(first[name].shape)}; delete this file, and the cell "
                    "is judged anew"
                )
    return {name: np.stack([one[name] for one in found.values()]) for name in names}


def arms_asked_for(config: FrozenConfigDict) -> tuple[str, ...]:
    """Return the arm that a command line names, or all arms of the table.

    Raises:
        ConfigError: there is no such arm.
    """
    if config.learner and config.learner not in learners_in(config):
        known = ", ".join(learners_in(config))
        raise ConfigError(f"config.learner: there is no {config.learner!r}; there are {known}")
    return (config.learner,) if config.learner else tuple(config.learners)


def write_table(
    config: FrozenConfigDict, workdir: Path, rows: Sequence[Row], scores: Scores
) -> Path:
    """Write the rows of all finished cells to the table's work folder; return the file."""
    return write(
        rows,
        scores,
        workdir,
        command=command_line(),
        config=config.to_dict(),
        seeds=range(config.seeds),
    )
