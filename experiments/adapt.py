"""Adaptation to held-out domains: every arm on the same episodes, beside the floors.

python -m experiments.adapt --config.init_from=runs/guide/seed0/multitask --workdir=runs/adapt
"""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections.config_dict import FrozenConfigDict

from experiments import settings
from experiments.floors import FLOORS, floor_outcomes
from experiments.report import print_tables
from experiments.stages import command_line, device, random_start, start, world_of_stage
from experiments.worlds import World
from metaguide.arms import ARMS, adaptation
from metaguide.guide import STAGE
from metaguide.training import results
from metaguide.training.evaluate import episode_keys, evaluator
from metaguide.training.metrics import ndcg
from metaguide.training.progress import progress
from metaguide.types import Family, Params

MAIN_METRIC = {
    "classification": "accuracy",
    "sentiment": "accuracy",
    "questions": "f1",
    "recommendation": "ndcg@10",
}
"""What rates are chosen by on the validation domains, and what curves and bars show."""

TUNED_AT = 5
"""Shots that rates are chosen at."""


class Choice(NamedTuple):
    """What validation chose for one arm on one kind of task, and how well it did there."""

    arm: str
    rate: float
    score: float


class Comparison(NamedTuple):
    """All arms on all held-out domains.

    Attributes:
        rows: of the table.
        scores: of the episodes behind them.
        choices: by kind of task, the arms with what validation chose, the best one first.
    """

    rows: list[results.Row]
    scores: results.Scores
    choices: dict[str, list[Choice]]


def compare(
    config: FrozenConfigDict, world: World, metas: Mapping[str, Sequence[Params]]
) -> Comparison:
    """Adapt every arm to every held-out domain, rates chosen on the validation domains.

    Args:
        config: reads its `adapt`, `table` and `seed`.
        world: whose held-out and validation domains are used.
        metas: by arm, its meta-parameters, one for each training seed.

    Returns:
        The comparison.
    """
    section = config.adapt
    families = world.families("unseen")
    held_out = {domain.name for domain in world.held_out}
    cells = [
        (kind, arm)
        for kind in families
        for arm in section.arms
        if kind in section.arms[arm] and arm in metas
    ]
    rows: list[results.Row] = []
    scores: results.Scores = {}
    choices: dict[str, list[Choice]] = {}
    done = 0
    with progress("adapt", len(cells) + len(families), unit="arm") as show:
        for kind, family in families.items():
            data = device(family.data)
            judges = _judges(family, section.steps, section.chunk)
            for name in [arm for of_kind, arm in cells if of_kind == kind]:
                choice = _choose(config, kind, name, family, data, judges, metas[name], held_out)
                choices.setdefault(kind, []).append(choice)
                for domain in held_out.intersection(family.domains):
                    for shots in section.shots:
                        raw, steps = _outcomes(
                            config, kind, choice, shots, family, data, judges, metas[name], domain
                        )
                        if raw is None:
                            continue
                        more, kept = results.cells_to_rows(
                            raw,
                            table=config.table,
                            arm=name,
                            domain=domain,
                            task=kind,
                            shots=shots,
                            steps=steps,
                        )
                        rows += more
                        scores |= kept
                show(done := done + 1, f"{kind}, {name}")
            for domain in held_out.intersection(family.domains):
                for floor, shots, raw in floor_outcomes(config, world, kind, family, data, domain):
                    more, kept = results.cells_to_rows(
                        raw,
                        table=config.table,
                        arm=floor,
                        domain=domain,
                        task=kind,
                        shots=shots,
                        steps=[None],
                    )
                    rows += more
                    scores |= kept
            show(done := done + 1, f"{kind}, floors")
    for of_kind in choices.values():
        of_kind.sort(key=lambda choice: -choice.score)
    return Comparison(results.with_floors(rows, FLOORS), scores, choices)


def _judges(family: Family, steps: int, chunk: int):
    """Return way of adapting -> its compiled evaluation, each compiled at its first use."""
    ways = sorted({arm.adapts for arm in ARMS.values()})
    return {
        way: evaluator(family, partial(_adapted_by, way, family, steps), chunk)
        for way in ways
        if family.problem.way is not None or way in ("gradient", "head", "none")
    }


def _adapted_by(way: str, family: Family, steps: int, rate):
    return adaptation(way, family.problem, rate, steps)


def _choose(config, kind, name, family, data, judges, metas, held_out) -> Choice:
    """Choose the rate of one arm by its mean score over validation domains and seeds."""
    section, arm = config.adapt, ARMS[name]
    grid = {"rate": section.rates, "penalty": section.penalties, "": (1.0,)}[arm.tuned]
    keys = episode_keys(config.seed, "validation", section.validation_episodes)
    domains = [i for i, domain in enumerate(family.domains) if domain not in held_out]
    if not domains:
        raise settings.ConfigError(
            f"no validation domain has {kind}; add one to config.data.validation that has it"
        )
    means = []
    for rate in grid:
        raws = [
            judges[arm.adapts](meta, data, domain, TUNED_AT, keys, rate)
            for domain in domains
            for meta in metas
        ]
        means.append(float(np.mean([_main_score(kind, raw) for raw in raws])))
    best = int(np.argmax(means))
    return Choice(name, float(grid[best]), means[best])


def _main_score(kind: str, raw: Mapping[str, np.ndarray]) -> float:
    """Return the mean of the main metric after the last step."""
    last = {name: leaf[-1][raw["mask"][-1]] for name, leaf in raw.items() if name != "mask"}
    if kind == "questions":
        return float(last["f1"].mean())
    if kind == "recommendation":
        return float(ndcg(last["rank"], 10).mean())
    return float((last["predicted"] == last["target"]).mean())


def _outcomes(config, kind, choice, shots, family, data, judges, metas, domain):
    """Return the raw outcomes of a cell with a leading axis of seeds, and the steps they are at.

    Without shots nothing adapts. The arms that start from the same parameters would then be the
    same row many times: it is there once, as zero-shot.
    """
    arm = ARMS[choice.arm]
    if choice.arm == "zero-shot":
        # A user's products are read without adaptation; elsewhere more shots change nothing.
        if shots and kind != "recommendation":
            return None, None
    elif not shots and (arm.stage == "multitask" or arm.adapts == "prototypes"):
        return None, None
    way = arm.adapts if shots else "none"
    keys = episode_keys(config.seed, "test", config.adapt.episodes)
    number = family.domains.index(domain)
    raws = [judges[way](meta, data, number, shots, keys, choice.rate) for meta in metas]
    raw = {name: np.stack([raw[name] for raw in raws]) for name in raws[0]}
    stepped = way in ("gradient", "head")
    return raw, None if stepped else [0 if way == "none" else None]


def serving_of(comparison: Comparison, folders: Mapping[str, str], steps: int) -> dict[str, Any]:
    """Return what serves each kind of task: the arm that did best on the validation domains.

    Args:
        comparison: from `compare`.
        folders: by arm, the folder of its checkpoint; arms without one do not serve.
        steps: of gradient descent.
    """
    return {
        kind: next(
            {"folder": folders[c.arm], "arm": c.arm, "rate": c.rate, "steps": steps}
            for c in choices
            if c.arm in folders
        )
        for kind, choices in comparison.choices.items()
    }


def main(config: FrozenConfigDict, workdir: Path) -> None:
    """Adapt the parameters of one stage, `init_from`, and those of no training at all."""
    if not config.init_from:
        raise settings.ConfigError(
            "--config.init_from is empty; give the work folder of the stage whose guide adapts"
        )
    world = world_of_stage(config, workdir)
    stage = json.loads((Path(config.init_from) / STAGE).read_text(encoding="utf-8"))
    meta, nothing = start(config, world, config.seed), random_start(world, config.seed)
    learner = stage.get("learner")
    mine = [learner] if learner else [a for a, arm in ARMS.items() if arm.stage == "multitask"]
    settings.write_config(config, workdir)
    comparison = compare(config, world, {"scratch": [nothing], **{arm: [meta] for arm in mine}})
    results.write(
        comparison.rows,
        comparison.scores,
        workdir,
        command=command_line(),
        config=config.to_dict(),
        seeds=[config.seed],
    )
    print_tables(comparison.rows)


if __name__ == "__main__":
    settings.run(main, default="experiments/configs/guide_bazaar.py", workdir="runs/adapt")
