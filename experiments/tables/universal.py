"""One guide of all tasks and shops, against guides of one task each and of few shops.

python -m experiments.tables.universal
python -m experiments.tables.universal --config.encoder.weights=FOLDER \\
    --config.encoder.prefix="query: "

The guides have the same model and vocabulary, see each task in as many steps, and adapt to the same
episodes of the held-out shops.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections.config_dict import ConfigDict, FrozenConfigDict

from experiments import run_folder, runner
from experiments.bench import Bench, benches, compared
from experiments.comparison import (
    Comparison,
    class_names,
    compare_methods,
    methods_in,
    score_baselines,
)
from experiments.config_files import ConfigError
from experiments.configs.universal import GUIDES
from experiments.domain_split import DomainSplit, prepare
from experiments.guide import check_start, stages_of, train
from experiments.modules import COMMANDS
from experiments.reports.terminal import print_tables
from metaguide.data.catalogue import PARTS, Domain
from metaguide.evaluation import results
from metaguide.evaluation.baselines import BASELINES
from metaguide.evaluation.results import Row, Scores, Tuning
from metaguide.files import write_json
from metaguide.tasks import TASKS
from metaguide.training.progress import say

UNIVERSAL, ONE_TASK, ONE_SHOP = GUIDES

GAIN = "gain"
"""Name of the metric of differences: the first metric of a task, universal minus another guide."""


class Guide(NamedTuple):
    """A guide to train.

    Attributes:
        name: of the guide, as in the table; the guides of one task share theirs.
        folder: name of its folder.
        config: the resolved config that it is trained by.
        split: the domains, of which its sources are those that teach it.
        tasks: the tasks that it is compared on.
    """

    name: str
    folder: str
    config: FrozenConfigDict
    split: DomainSplit
    tasks: tuple[str, ...]


def guides_of(
    config: FrozenConfigDict, split: DomainSplit, tasks: Sequence[str]
) -> Iterator[Guide]:
    """Yield the guides that a config names.

    Args:
        config: a resolved config.
        split: all domains.
        tasks: the tasks to compare on.

    Raises:
        ConfigError: `one_shop` names no source, or has nothing of some task.
    """
    teaching = {"data.sources": split.sources}
    if ONE_SHOP in config.guides:
        of_name = {shop.name: shop for shop in split.sources}
        for name in config.one_shop:
            if name not in of_name:
                raise ConfigError(
                    f"config.one_shop names {name!r}, which is no source; there are "
                    f"{', '.join(of_name)}"
                )
        teaching["one_shop"] = tuple(of_name[name] for name in config.one_shop)
    for task in tasks:
        for field, shops in teaching.items():
            if not any(TASKS[task].has_examples(shop) for shop in shops):
                raise ConfigError(
                    f"config.{field}: no source has examples of {task}; add one that has"
                )
    if UNIVERSAL in config.guides:
        yield Guide(UNIVERSAL, UNIVERSAL, config, split, tuple(tasks))
    if ONE_TASK in config.guides:
        for task in tasks:
            own: Any = ConfigDict(config.to_dict())
            own.multitask.weights = {one: float(one == task) for one in config.multitask.weights}
            sources = tuple(part_of(shop, task) for shop in split.sources)
            sources = tuple(shop for shop in sources if TASKS[task].has_examples(shop))
            yield Guide(
                ONE_TASK,
                f"one-task-{task}",
                FrozenConfigDict(own),
                split._replace(sources=sources),
                (task,),
            )
    if ONE_SHOP in config.guides:
        few = split._replace(sources=teaching["one_shop"])
        yield Guide(ONE_SHOP, "one-shop", config, few, tuple(tasks))


def part_of(shop: Domain, task: str) -> Domain:
    """Return a shop with nothing but the data of one task."""
    kept = {TASKS[task].part}
    if TASKS[task].is_ranking:
        kept.add("products")
    return replace(shop, **{part: () for part in PARTS if part not in kept})


def adapted(
    config: FrozenConfigDict,
    split: DomainSplit,
    bench_of: Mapping[str, Bench],
    methods: Sequence[str],
    seeds: Sequence[int],
    workdir: Path,
) -> dict[tuple[str, str], Comparison]:
    """Train every guide, and adapt it to the held-out shops by every method.

    Args:
        config: a resolved config.
        split: all domains.
        bench_of: of each task; all guides are the same model, and so share its programs.
        methods: the return value of `methods_in`.
        seeds: the training seeds.
        workdir: folder of the run; what it has of the training is not done again.

    Returns:
        The comparison of the methods of each guide, keyed by its name and the task.
    """
    found = {}
    for guide in guides_of(config, split, tuple(bench_of)):
        folders = {seed: workdir / f"seed{seed}" / guide.folder for seed in seeds}
        stages = stages_of(guide.config, guide.split, methods)
        trained = train(guide.config, guide.split, methods, stages, folders)
        metas = {method: metas for method, (metas, _) in trained.items()}
        for task in guide.tasks:
            found[guide.name, task] = compare_methods(config, bench_of[task], metas)
            say(f"universal: {guide.name}, {task}: adapted")
    return found


def chosen(name: str, task: str, comparison: Comparison) -> tuple[list[Row], Scores, Tuning]:
    """Return the rows of the method that validation chose for a guide, under the guide's name.

    It is chosen among those that adapt. Where it has no row of its own, without shots, and on a
    task for which nothing adapts, the row is that of zero-shot.

    Args:
        name: the guide's.
        task: the task.
        comparison: of the guide's methods.

    Returns:
        The rows, the scores of those that have them, and the choice.
    """
    ordered = [choice.method for choice in comparison.choices[task]]
    best = next((method for method in ordered if method != "zero-shot"), "zero-shot")
    having = {(row.domain, row.shots) for row in comparison.rows if row.method == best}
    rows: list[Row] = []
    scores: Scores = {}
    for row in comparison.rows:
        wanted = best if (row.domain, row.shots) in having else "zero-shot"
        if row.method == wanted:
            renamed = replace(row, method=name)
            rows.append(renamed)
            if results.key(row) in comparison.scores:
                scores[results.key(renamed)] = comparison.scores[results.key(row)]
    (tuning,) = (one for one in comparison.tunings if one["method"] == best)
    return rows, scores, {**tuning, "method": name}


def gains(rows: Sequence[Row], scores: Scores) -> list[Row]:
    """Return the lead of the universal guide over each other guide on the same examples.

    The metric is the first of the task. One interval is that of the paired bootstrap over examples
    and episodes, of the mean over seeds; the other one is paired over seeds.
    """
    cells: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in rows:
        if row.metric == TASKS[row.task].scoring.metrics[0] and results.key(row) in scores:
            cells.setdefault((row.task, row.domain, row.shots), {})[row.method] = row
    found = []
    for universal, row in (
        (cell[UNIVERSAL], row)
        for cell in cells.values()
        if UNIVERSAL in cell
        for method, row in cell.items()
        if method != UNIVERSAL
    ):
        ours, theirs = scores[results.key(universal)], scores[results.key(row)]
        by = results.difference(ours, theirs)
        found.append(
            Row(
                table=row.table,
                method=f"{UNIVERSAL} over {row.method}",
                domain=row.domain,
                task=row.task,
                shots=row.shots,
                metric=GAIN,
                value=by.value,
                ci95=by.half,
                ci95_seeds=results.difference_over_seeds(ours, theirs).half,
                episodes=row.episodes,
                seeds=row.seeds,
            )
        )
    return found


def main(config: FrozenConfigDict, workdir: Path) -> None:
    """Train the guides, adapt them, and write the table."""
    check_start(config)
    with run_folder.claimed(config, workdir):
        split = prepare(config, workdir)
        distributions = compared(split, queries=config.adapt.queries)
        methods = methods_in(config, distributions)
        bench_of = benches(config, split, distributions, methods, workdir)
        seeds = [config.seed + number for number in range(config.seeds)]
        rows: list[Row] = []
        scores: Scores = {}
        tunings: list[Tuning] = []
        choices: dict[str, dict[str, Any]] = {}
        compared_guides = adapted(config, split, bench_of, methods, seeds, workdir)
        for (name, task), comparison in compared_guides.items():
            more, own, tuning = chosen(name, task, comparison)
            rows += more
            scores |= own
            tunings.append(tuning)
            choices.setdefault(name, {})[task] = [one._asdict() for one in comparison.choices[task]]
        rows += gains(rows, scores)
        for bench in bench_of.values():
            more, own = score_baselines(config, split, bench)
            rows += more
            scores |= own
        rows = results.with_baselines(rows, BASELINES)
        more = {"tunings": tunings, "classes": class_names(split)}
        path = run_folder.write_results(config, workdir, rows, scores, seeds, **more)
        write_json(workdir / "choices.json", choices)
    print_tables(rows)
    if any(row.metric == GAIN for row in rows):
        print_tables(rows, metric=GAIN)
    say(f"universal: {path}, {workdir / 'choices.json'}")


if __name__ == "__main__":
    runner.run(main, **COMMANDS["experiments.tables.universal"]._asdict())
