"""The guide, end to end: pre-train, train jointly, meta-train, adapt to domains no stage has seen.

python -m experiments.guide                                                    the bazaar
python -m experiments.guide --config=experiments/configs/guide_reviews_zh.py   real reviews
"""

import time
from pathlib import Path
from typing import Any

from ml_collections.config_dict import FrozenConfigDict

from experiments import settings
from experiments.adapt import compare, serving_of
from experiments.metatrain import metatrain
from experiments.multitask import multitask
from experiments.pretrain import pretrain
from experiments.report import print_tables, write_report
from experiments.showcase import showcase
from experiments.stages import command_line, random_start, write_json
from experiments.worlds import World, prepare
from metaguide.arms import ARMS
from metaguide.guide import SERVING, load
from metaguide.training import results
from metaguide.training.progress import say


def train(config: FrozenConfigDict, world: World, workdir: Path, seed: int) -> dict[str, Any]:
    """Run all training stages of one seed; each goes on where it stopped.

    Args:
        config: resolved.
        world: what is trained on.
        workdir: of the seed; every stage gets a folder in it.
        seed: of the initialisation and the training.

    Returns:
        By arm, (meta-parameters, the folder of their checkpoint or "").
    """
    nothing = random_start(world, seed)
    encoder = pretrain(config, world, workdir / "pretrain", nothing, seed)
    together = multitask(config, world, workdir / "multitask", encoder, seed)
    trained = {}
    for arm in config.adapt.arms:
        if ARMS[arm].stage == "random":
            trained[arm] = nothing, ""
        elif ARMS[arm].stage == "multitask":
            trained[arm] = together, f"{workdir.name}/multitask"
        elif arm in config.metatrain.learners:
            folder = workdir / f"metatrain-{arm}"
            meta = metatrain(config, world, folder, together, seed, arm)
            trained[arm] = meta, f"{workdir.name}/{folder.name}"
    return trained


def main(config: FrozenConfigDict, workdir: Path) -> None:
    """Run every stage for every seed, then compare, and write the table and the report."""
    begun = time.perf_counter()
    settings.write_config(config, workdir)
    world = prepare(config, workdir)
    episodes = config.adapt.episodes
    say(
        f"guide: {config.seeds} seed(s), {episodes} episodes a cell; held out "
        f"{', '.join(domain.name for domain in world.held_out)}"
        + ("" if config.preset == "full" else "; --config.preset=full has 3 seeds and 600")
    )
    seeds = [config.seed + number for number in range(config.seeds)]
    trained = [train(config, world, workdir / f"seed{seed}", seed) for seed in seeds]
    metas = {arm: [of_seed[arm][0] for of_seed in trained] for arm in trained[0]}
    comparison = compare(config, world, metas)
    folders = {arm: folder for arm, (_, folder) in trained[0].items() if folder}
    write_json(workdir / SERVING, serving_of(comparison, folders, config.adapt.steps))
    results.write(
        comparison.rows,
        comparison.scores,
        workdir,
        command=command_line(),
        config=config.to_dict(),
        seeds=seeds,
    )
    shown = showcase(load(workdir), world)
    report = write_report(results.read(workdir / "results.json"), workdir, shown)
    print_tables(comparison.rows)
    say(f"guide: {time.perf_counter() - begun:.0f} s; {workdir / 'results.json'}; {report}")


if __name__ == "__main__":
    settings.run(main, default="experiments/configs/guide_bazaar.py", workdir="runs/guide")
