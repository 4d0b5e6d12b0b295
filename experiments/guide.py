"""The guide end to end: pre-train, train jointly, meta-train, adapt to domains no stage has seen.

python -m experiments.guide                                                    the bazaar
python -m experiments.guide --config=experiments/configs/guide_reviews_zh.py   real reviews
"""

import time
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path

from ml_collections.config_dict import FrozenConfigDict

from experiments import run_folder, runner
from experiments.bench import benches, compared
from experiments.comparison import check_served, compare, methods_in, serving_of, write_comparison
from experiments.config_files import ConfigError
from experiments.domain_split import DomainSplit, prepare
from experiments.metatrain import metatraining_stage
from experiments.modules import COMMANDS
from experiments.multitask import multitask_stage
from experiments.pretrain import pretraining_stage
from experiments.reports.layout import tasks_of
from experiments.reports.page import write_report
from experiments.reports.terminal import print_tables
from experiments.reports.verdicts import verdict
from experiments.showcase import showcase
from experiments.stages import (
    Stage,
    compile_stage,
    is_finished,
    random_start,
    train_stage,
)
from metaguide import run_config
from metaguide.evaluation import results
from metaguide.guide import load
from metaguide.methods import METHODS, adaptation_of
from metaguide.parallel import check_agreed, is_first_process
from metaguide.tasks import TASKS
from metaguide.training.program import in_background
from metaguide.training.progress import say
from metaguide.types import Params

LEFT_OUT = {
    "full": "",
    "quick": "; left out: meta-training and fine-tuning, 1 and 10 shots, most training steps and "
    "data, two seeds of three; the default has them",
}
"""What a preset leaves out, for its first line."""


def stages_of(
    config: FrozenConfigDict, split: DomainSplit, methods: Sequence[str]
) -> dict[str, Stage]:
    """Build all training stages of these methods, keyed by folder name, in the order they run."""
    encoder = split.model.encoder
    learns = (encoder.text is not None and encoder.trains_text) or encoder.image
    return {
        **({"pretrain": pretraining_stage(config, split)} if learns else {}),
        "multitask": multitask_stage(config, split),
        **{
            f"metatrain-{method}": metatraining_stage(config, split, method)
            for method in methods
            if METHODS[method].stage == "metatrain"
        },
    }


def train(
    config: FrozenConfigDict,
    split: DomainSplit,
    methods: Sequence[str],
    stages: dict[str, Stage],
    folders: Mapping[int, Path],
) -> dict[str, tuple[list[Params], str]]:
    """Run every training stage for all seeds; each resumes where it stopped.

    Args:
        config: a resolved config.
        split: the domains to train on.
        methods: the return value of `methods_in`.
        stages: the return value of `stages_of`. Finished stages are removed together with their
            programs, because all programs of many methods would exceed the number of memory maps
            that Linux allows a process.
        folders: a folder for each seed, in which every stage gets a folder.

    Returns:
        For each method, (meta-parameters of each seed, the stage they come from or "").
    """

    def run_stage(name: str, metas: list[Params]) -> list[Params]:
        stage = stages.pop(name)
        return [
            train_stage(stage, meta, config=config, split=split, workdir=folder / name, seed=seed)
            for (seed, folder), meta in zip(folders.items(), metas, strict=True)
        ]

    nothing = [random_start(split, seed) for seed in folders]
    begun = run_stage("pretrain", nothing) if "pretrain" in stages else nothing
    together = run_stage("multitask", begun)
    trained = {}
    for method in methods:
        if METHODS[method].stage == "random":
            trained[method] = nothing, ""
        elif METHODS[method].stage == "multitask":
            trained[method] = together, "multitask"
        else:
            name, before = f"metatrain-{method}", METHODS[method].start
            metas = together if before == "multitask" else trained[before][0]
            trained[method] = run_stage(name, metas), name
    return trained


def check_start(config: FrozenConfigDict) -> None:
    """Raise a ConfigError if a config names a stage to start from, for a run of all stages."""
    if config.init_from:
        raise ConfigError(
            f"--config.init_from={config.init_from}: this module runs all stages itself; leave it "
            "empty, or run a stage alone, as by python -m experiments.metatrain"
        )


def main(config: FrozenConfigDict, workdir: Path) -> None:
    """Run every stage for every seed, compare the methods, and write the table and the report."""
    check_start(config)
    with run_folder.claimed(config, workdir):
        run(config, workdir)


def run(config: FrozenConfigDict, workdir: Path) -> None:
    """Do the work of `main`, in a folder claimed by this process."""
    begun = time.perf_counter()
    split = prepare(config, workdir)
    episodes = config.adapt.episodes
    say(
        f"guide: {config.seeds} seed(s), {episodes} episodes per cell; held out "
        f"{', '.join(domain.name for domain in split.held_out)}"
        + LEFT_OUT.get(config.preset, "; --config.preset=full has 600")
    )
    seeds = [config.seed + number for number in range(config.seeds)]
    folders = {seed: workdir / f"seed{seed}" for seed in seeds}
    distributions = compared(split, queries=config.adapt.queries)
    methods = methods_in(config, distributions)
    check_served(config, methods, distributions)
    stages = stages_of(config, split, methods)
    rules = {adaptation_of(one.learner).by: one.rule for one in stages.values() if one.rule}
    bench_of = benches(config, split, distributions, methods, workdir, rules)
    like = random_start(split, config.seed)
    unfinished = [
        name
        for name, stage in stages.items()
        if not all(is_finished(stage, folder / name) for folder in folders.values())
    ]
    # Generators, so that no reference to a stage outlives its training in `train`.
    training = (partial(compile_stage, stages[name], like) for name in unfinished)
    # If everything is trained, most of it is scored too and only read; the rest compiles when used.
    scoring = (partial(bench.compile, like) for bench in bench_of.values() if unfinished)
    with in_background(chain(training, scoring)):
        trained = train(config, split, methods, stages, folders)
        metas = {method: metas for method, (metas, _) in trained.items()}
        comparison = compare(config, split, metas, bench_of)
    if is_first_process():
        write_comparison(comparison, config, split, workdir, seeds)
        # After the results, which are complete whatever validation chose.
        first = folders[config.seed].name
        served = {method: f"{first}/{stage}" for method, (_, stage) in trained.items() if stage}
        serving = serving_of(comparison, served, config.adapt.steps)
        run_config.write(split.run_config(seed=config.seed, serving=serving), workdir)
    check_agreed("written", "")
    # In all processes, since Orbax reads a checkpoint with all of them.
    shown = showcase(load(workdir), split)
    if not is_first_process():
        return
    scored = results.read(workdir)
    report = write_report(scored, workdir, shown)
    print_tables(comparison.rows)
    tell(scored, workdir, report)
    say(f"guide: {time.perf_counter() - begun:.0f} s; {workdir / 'results.json'}; {report}")


def tell(scored: results.Results, workdir: Path, report: Path) -> None:
    """Print what a finished guide can do, what to open, and how to use it.

    Args:
        scored: the results of its comparison.
        workdir: the folder of its run.
        report: its report.
    """
    for task in tasks_of(scored.rows):
        found = verdict(scored, task)
        print(f"{TASKS[task].title}: {found.use} {found.warning}".rstrip())
    print(f"Open {report} for what each choice beats and costs. To use the guide in Python:")
    print(f"    guide = metaguide.load({str(workdir)!r}).adapt(CATALOGUE, shots=5)")
    print("    guide.predict([Product(...), Review(...), Question(...), History(...)])")


if __name__ == "__main__":
    runner.run(main, **COMMANDS["experiments.guide"]._asdict())
