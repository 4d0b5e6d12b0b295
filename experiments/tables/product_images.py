"""Which of five products a photo shows, from one or a few photos of each.

python -m experiments.tables.product_images
python -m experiments.tables.product_images --config.preset=quick

Five of the ten classes of Fashion-MNIST are held out and the five others teach an encoder, without
labels by denoising and with labels by meta-learning. An episode has all five held-out classes, in
an order that is drawn. What is chosen is chosen by two source classes, which encoders of their own,
of the three others, have not seen.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int
from ml_collections.config_dict import FrozenConfigDict

from experiments import runner
from experiments.cells.cell import Cell, train_cell
from experiments.config_files import ConfigError
from experiments.modules import COMMANDS
from experiments.reports.terminal import print_tables
from experiments.run_folder import claimed, finished, write_results
from experiments.sources.parts import data_folder
from metaguide.data.episodes import balanced_sampler
from metaguide.data.mnist import CLASSES, Pictures, read_pictures
from metaguide.evaluation.evaluate import Evaluator, episode_keys, evaluator
from metaguide.evaluation.metrics import bootstrap, mean_interval, mean_statistic
from metaguide.evaluation.results import Row, Scores, key, with_baselines
from metaguide.files import checksum, write_json
from metaguide.learners import label_spreading, prototypical
from metaguide.learners.on_features import standardised
from metaguide.methods import (
    HEAD_BY_SGD,
    LABEL_SPREADING,
    METHODS,
    PROTOTYPES,
    RIDGE,
    Adaptation,
    Settings,
)
from metaguide.models.conv4 import Conv4
from metaguide.objectives.denoising import corrupt, reconstruction_loss
from metaguide.parallel import local_mesh, replicate
from metaguide.problems import classification_of_pictures
from metaguide.problems.few_shot import linear
from metaguide.training.progress import say
from metaguide.types import (
    UNLABELLED,
    Episode,
    Learner,
    Metrics,
    Params,
    Problem,
    Progress,
    TaskDistribution,
)

T_SHIRT, TROUSERS, PULLOVER, DRESS, COAT, SANDAL, SHIRT, SNEAKER, BAG, BOOT = range(10)


class Split(NamedTuple):
    """Classes that are held out, and those of the others that choices are made by.

    Attributes:
        held_out: five classes that nothing is learned of.
        choosing: two of the others, which teach only once the choice is made.
    """

    held_out: tuple[int, ...]
    choosing: tuple[int, ...]


SPLITS = {
    "tops": Split((T_SHIRT, PULLOVER, DRESS, COAT, SHIRT), (SNEAKER, BOOT)),
    "other products": Split((TROUSERS, SANDAL, SNEAKER, BAG, BOOT), (PULLOVER, COAT)),
    "mixed 1": Split((T_SHIRT, PULLOVER, DRESS, SNEAKER, BAG), (COAT, SHIRT)),
    "mixed 2": Split((TROUSERS, COAT, SANDAL, SHIRT, BOOT), (T_SHIRT, DRESS)),
}
"""The first two are a shift of domain; in the others each side has kin of the other's classes."""

TASK, ALL = "photos", "all splits"
"""Names of the task, and of the domain of rows of all splits."""

WAY, SIDE, TURNS = 5, 14, 4
"""Classes of an episode, side of the pictures that encoders read, and as how many classes each
source counts: turned by a quarter it is another one, or episodes would have the same five."""

CHUNK = 50
"""Episodes that are answered at once."""

SPREADING, BALANCED = "label-spreading", "balanced label-spreading"
"""Names of the heads that read photos without labels; the second knows that classes are equally
frequent, as they are here."""

PIXELS = {
    "pixels": (False, "prototypes"),
    "pixels, unit length": (True, "prototypes"),
    f"pixels: {SPREADING}": (True, SPREADING),
    f"pixels: {BALANCED}": (True, BALANCED),
}
"""Of each baseline: whether pictures are scaled to unit length, and the head."""

BASELINES = tuple(PIXELS)
"""Names of the baselines, which learn nothing of the sources."""

HEADS: dict[str, Adaptation] = {
    "prototypes": PROTOTYPES,
    "ridge": RIDGE,
    SPREADING: LABEL_SPREADING,
    BALANCED: replace(
        LABEL_SPREADING,
        by=BALANCED,
        learner=lambda problem, _: label_spreading(problem, balancing=20),
    ),
    "descent": HEAD_BY_SGD,
}
"""How an encoder adapts to an episode."""

ENCODERS = {
    "untrained": ("", ""),
    "denoising": ("denoising", ""),
    "denoising + prototypical": ("prototypical", "denoising"),
    "denoising + anil": ("anil", "denoising"),
}
"""How an encoder is trained, and which one it starts from; from nothing if none."""

METHODS_OF = dict.fromkeys(ENCODERS, ("prototypes", "ridge", SPREADING, BALANCED)) | {
    "denoising + anil": ("descent",)
}
"""The heads that an encoder is in the table with."""

Features = Float[np.ndarray, "photos width"]
"""Features of photos."""

Table = dict[str, np.ndarray]
"""Pictures as `balanced_sampler` reads them: `image`, `character` and `turns`."""


def sources_of(split: Split) -> tuple[int, ...]:
    """Return the classes that teach."""
    return tuple(one for one in range(CLASSES) if one not in split.held_out)


def read() -> dict[str, Pictures]:
    """Read the pictures: those of "train" teach, those of "test" are asked about."""
    folder = data_folder()
    return {part: read_pictures(folder, "fashion_mnist", part) for part in ("train", "test")}


def table_of(pictures: Pictures, classes: Sequence[int], turns: int = 1) -> Table:
    """Return the table of some classes for `balanced_sampler`, and of no other one.

    Args:
        pictures: pictures of all classes.
        classes: labels of those that are taken.
        turns: as how many classes each counts, by quarter turns.

    Raises:
        ConfigError: there are no pictures of one of them.
    """
    rows = [np.flatnonzero(pictures.label == one) for one in classes]
    if (least := min(map(len, rows))) == 0:
        lacking = classes[[len(own) for own in rows].index(0)]
        raise ConfigError(
            f"config.splits: fashion_mnist has no picture of class {lacking}; get its files again"
        )
    image = np.stack([pictures.image[own[:least]] for own in rows])
    place = np.repeat(np.arange(len(rows), dtype=np.int32), turns)
    turned = np.tile(np.arange(turns, dtype=np.int32), len(rows))
    return {"image": image[None], "character": place[None], "turns": turned[None]}


def halved(table: Table) -> Table:
    """Return a table whose pictures have half the side, each pixel the mean of four."""
    image = table["image"]
    *front, height, width = image.shape
    parts = image.reshape(*front, height // 2, 2, width // 2, 2)
    return {**table, "image": np.round(parts.mean((-3, -1))).astype(np.uint8)}


# ------------------------------------------------------------------------------ encoders


class BesidePixels(NamedTuple):
    """A network whose features are those of Conv4 and the pixels, as much of either.

    Attributes:
        network: Conv4 without batch norm: a picture has the same features whatever is beside it.
    """

    network: Conv4

    def init(self, key: Array, pictures: Array) -> Any:
        """Return the initial variables of the network."""
        return self.network.init(key, pictures)

    def apply(self, variables: Any, pictures: Array, reference: Array | None = None) -> Array:
        """Return features [pictures, width], each half of unit mean square."""
        learned = _unit(self.network.apply(variables, pictures))
        pixels = _unit(pictures.reshape(len(pictures), -1))
        share = (learned.shape[1] / pixels.shape[1]) ** 0.5
        return jnp.concatenate([learned, share * pixels], axis=1)


def _unit(features: Any) -> Array:
    return standardised(jnp.asarray(features))[:, :-1]


def network_of(config: FrozenConfigDict) -> Conv4:
    """Build the network that is trained."""
    return Conv4(config.channels, pooling="flat", normalise=False)


def problem_of(config: FrozenConfigDict) -> Problem:
    """Build the classification of pictures by learned features beside the pixels."""
    return classification_of_pictures(BesidePixels(network_of(config)), WAY, side=SIDE)


def denoising(config: FrozenConfigDict) -> Learner:
    """Return prototypes whose encoder is trained without labels, by restoring corrupted pictures.

    The decoder is linear and is not kept.
    """
    network, problem, cfg = network_of(config), problem_of(config), config.denoising
    learner = prototypical(problem)

    def init(key: Array) -> Params:
        own, decoder_key = jax.random.split(key)
        params = problem.init(own)
        shape = (config.channels, SIDE * SIDE)
        kernel = jax.nn.initializers.lecun_normal()(decoder_key, shape, jnp.float32)
        decoder = {"kernel": kernel, "bias": jnp.zeros(shape[1])}
        return {"params": {**params, "decoder": decoder}}

    def objective(
        meta: Params, episode: Episode, key: Array | None, progress: Progress
    ) -> tuple[Array, Metrics]:
        assert key is not None
        params, clean = meta["params"], episode.query["image"]
        noisy = corrupt(key, clean, sigma=cfg.sigma, occlusion=cfg.occlusion)
        encoded: Any = network.apply({"params": params["body"]}, noisy)
        restored = linear(params["decoder"], encoded).reshape(clean.shape)
        return reconstruction_loss(restored, clean)

    return learner._replace(init=init, objective=objective)


def train(config: FrozenConfigDict, table: Table, seed: int, folder: Path) -> dict[str, Params]:
    """Return the meta-parameters of all encoders, trained on the classes of a table alone.

    Args:
        config: the resolved config.
        table: pictures of the sources.
        seed: seed of the training.
        folder: where each encoder has its folder, in which it resumes.
    """
    problem = problem_of(config)
    learners = {
        "": prototypical(problem),
        "denoising": denoising(config),
        "prototypical": prototypical(problem),
        "anil": METHODS["anil"].train(
            problem,
            Settings(learning_rate=config.anil.inner_learning_rate, steps=config.anil.inner_steps),
        ),
    }
    found: dict[str, Params] = {}
    for name, (how, start) in ENCODERS.items():
        learner, cfg = learners[how], config.get(how)
        if start:
            learner = learner._replace(init=lambda key, begun=found[start]: begun)
        if cfg is None:
            found[name] = learner.init(jax.random.key(seed))
            continue
        shots, queries = cfg.get("shots", 0), cfg.get("queries", cfg.get("pictures"))
        cell = Cell(
            name,
            TaskDistribution(("photos",), table, balanced_sampler(WAY, shots, queries), problem),
            learner,
            optax.adam(optax.cosine_decay_schedule(config.learning_rate, config.steps)),
            config.steps,
            config.meta_batch_size,
            shots,
        )
        (trained,) = train_cell(cell, config, [folder / name / f"seed{seed}"], [seed])
        found[name] = {"params": {part: trained["params"][part] for part in ("body", "head")}}
    return found


# ------------------------------------------------------------------------------ answers


Encode = Callable[[Params, Float[np.ndarray, "photos side side 1"]], Array]
"""(parameters, pictures) -> features [pictures, width]."""


def encoding(config: FrozenConfigDict) -> Encode:
    """Build the program that encodes pictures, one for all encoders."""
    problem = problem_of(config)
    return jax.jit(lambda params, image: problem.encode(params, {"image": image}, (), None))


def features_of(encode: Encode, meta: Params, table: Table) -> Features:
    """Return the features of all pictures of a table, in the order of the ids of its episodes."""
    image = table["image"][0]
    pairs = zip(table["character"][0], table["turns"][0], strict=True)
    turned = np.concatenate([np.rot90(image[place], turn, (1, 2)) for place, turn in pairs])
    chunks = [
        encode(meta["params"], chunk[..., None].astype(np.float32) / 255)
        for chunk in np.split(turned, range(500, len(turned), 500))
    ]
    return np.concatenate(jax.device_get(chunks))


def pixels_of(table: Table, unit: bool) -> Features:
    """Return the pixels of all pictures of a table, as they are or of unit mean square."""
    pixels = table["image"].reshape(-1, SIDE * SIDE * 4).astype(np.float32) / 255
    return np.asarray(_unit(pixels)) if unit else pixels


def evaluator_of(config: FrozenConfigDict) -> Evaluator:
    """Build the program that adapts by all heads, to features that are computed beforehand.

    The parameters are `features`, whose rows are the ids of photos, and a head.
    """
    sample = balanced_sampler(WAY, max(config.shots) + config.unlabelled, config.queries)

    def with_unlabelled(*args: Any) -> Episode:
        episode = sample(*args)
        # The same ones for every number of shots.
        unlabelled = jnp.arange(len(episode.support["mask"])) >= WAY * max(config.shots)
        return episode._replace(support={**episode.support, UNLABELLED: unlabelled})

    problem = classification_of_pictures(None, WAY)._replace(
        encode=lambda params, batch, context, key: params["features"][batch["id"]]
    )
    learners = {
        name: lambda rate, head=head: head.tuned_to(problem, rate, config.anil.inner_steps)
        for name, head in HEADS.items()
    }
    distribution = TaskDistribution(("photos",), (), with_unlabelled, problem)
    return evaluator(distribution, learners, chunk=CHUNK)


def ask(
    config: FrozenConfigDict,
    asked: Evaluator,
    features: Features,
    head: Params,
    table: Table,
    rates: Mapping[str, float],
    part: str = "test",
) -> dict[str, dict[str, np.ndarray]]:
    """Return the answers of all heads on the saved episodes.

    Args:
        config: the resolved config.
        asked: the program of `evaluator_of`.
        features: features of all photos of the table.
        head: parameters of the head that descends.
        table: the photos.
        rates: λ or the rate of each head.
        part: "test", or "validation", whose episodes are others.

    Returns:
        By head: `correct` and `id`, each [shots, episodes, queries].
    """
    count = config.episodes if part == "test" else config.choosing.episodes
    keys = episode_keys(0, part, count)
    meta = {"params": {"features": features, "head": head}}
    meta, table = replicate((meta, table), local_mesh())

    found = [asked.run(meta, table, 0, shots, keys, rates) for shots in config.shots]
    return {
        name: {
            field: np.stack([one[name][field][-1] for one in found]) for field in ("correct", "id")
        }
        for name in rates
    }


def choose(
    config: FrozenConfigDict,
    encode: Encode,
    asked: Evaluator,
    pictures: Pictures,
    split: Split,
    folder: Path,
) -> dict[str, dict[str, Any]]:
    """Choose λ or the rate of every head, for every encoder, by classes that none has seen.

    Args:
        config: the resolved config.
        encode, asked: the programs.
        pictures: those that teach, of all classes.
        split: what is held out, and what choices are made by.
        folder: where the encoders are trained that have not seen the latter.

    Returns:
        By encoder and head: `value`, and the `accuracy` with each value that was tried.
    """
    cfg = config.choosing
    grids = {head: cfg.learning_rates if head == "descent" else cfg.penalties for head in HEADS}
    if all(len(grid) == 1 for grid in grids.values()):
        only = {head: {"value": grid[0], "accuracy": {}} for head, grid in grids.items()}
        return dict.fromkeys(ENCODERS, only)
    others = [one for one in sources_of(split) if one not in split.choosing]
    taught = halved(table_of(pictures, others, TURNS))
    table = halved(table_of(pictures, split.choosing, TURNS))
    found: dict[str, dict[str, Any]] = {}
    for encoder, meta in train(config, taught, config.seeds[0], folder).items():
        features, head = features_of(encode, meta, table), meta["params"]["head"]
        accuracy: dict[str, dict[float, float]] = {name: {} for name in HEADS}
        for number in range(max(map(len, grids.values()))):
            rates = {name: grid[number % len(grid)] for name, grid in grids.items()}
            answers = ask(config, asked, features, head, table, rates, "validation")
            for name, one in answers.items():
                accuracy[name][rates[name]] = float(one["correct"].mean())
        found[encoder] = {
            name: {"value": max(tried, key=tried.__getitem__), "accuracy": tried}
            for name, tried in accuracy.items()
        }
    return found


_IDS = "photos"
"""Name, among the outcomes of methods in a split, of the numbers of the photos asked for."""

Outcomes = dict[tuple[str, str], Bool[np.ndarray, "seeds shots episodes queries"]]
"""By split and method, which photos were named rightly."""


def outcomes_of(
    config: FrozenConfigDict, pictures: Mapping[str, Pictures], workdir: Path, choices: Any
) -> tuple[Outcomes, dict[str, Int[np.ndarray, "shots episodes queries"]]]:
    """Return the outcomes of all methods on the same episodes, and which photos were asked for.

    Args:
        config: the resolved config.
        pictures: the pictures of both parts.
        workdir: where encoders are trained, and what is finished is kept, a split at a time.
        choices: split -> encoder -> head -> what was chosen; is filled.
    """
    content = {f"{part}, images": one.image for part, one in pictures.items()}
    content |= {f"{part}, labels": one.label for part, one in pictures.items()}
    about = f"pictures {checksum(content):08x}"
    outcomes: Outcomes = {}
    ids: dict[str, Any] = {}
    for name in config.splits:
        compute = partial(outcome_of, config, pictures, SPLITS[name], workdir / name)
        found, choices[name] = finished(workdir / name, about, compute)
        ids[name] = found.pop(_IDS)
        outcomes |= {(name, method): right for method, right in found.items()}
    return outcomes, ids


def outcome_of(
    config: FrozenConfigDict, pictures: Mapping[str, Pictures], split: Split, folder: Path
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return the outcomes in a split, keyed by method, with `_IDS`, and what was chosen."""
    asked, encode = evaluator_of(config), encoding(config)
    nothing = {
        "kernel": np.zeros((4 * SIDE * SIDE, WAY), np.float32),
        "bias": np.zeros(WAY, np.float32),
    }
    pixels_alone = dict.fromkeys(HEADS, 1.0)
    outcomes: dict[str, np.ndarray] = {}
    test = table_of(pictures["test"], split.held_out)
    for unit in (False, True):
        found = ask(config, asked, pixels_of(test, unit), nothing, test, pixels_alone)
        outcomes |= {
            baseline: found[head]["correct"][None]
            for baseline, (scaled, head) in PIXELS.items()
            if scaled == unit
        }
    own, drawings = found["prototypes"]["id"], test["image"].shape[2]
    label = np.array(split.held_out)[own // drawings]
    outcomes[_IDS] = label * drawings + own % drawings  # the same in every split
    chosen = choose(config, encode, asked, pictures["train"], split, folder / "choosing")
    table, small = halved(table_of(pictures["train"], sources_of(split), TURNS)), halved(test)
    right: dict[str, list[np.ndarray]] = {}
    for seed in config.seeds:
        for encoder, meta in train(config, table, seed, folder).items():
            rates = {head: one["value"] for head, one in chosen[encoder].items()}
            features, head = features_of(encode, meta, small), meta["params"]["head"]
            found = ask(config, asked, features, head, small, rates)
            for head in METHODS_OF[encoder]:
                right.setdefault(f"{encoder}: {head}", []).append(found[head]["correct"])
    outcomes |= {method: np.stack(one) for method, one in right.items()}
    say(f"{folder.name}: learned and asked")
    return outcomes, chosen


# ------------------------------------------------------------------------------ scores


def rows_of(
    config: FrozenConfigDict, outcomes: Outcomes, ids: Mapping[str, np.ndarray]
) -> tuple[list[Row], Scores]:
    """Return the rows of every split and of all together, and all scores of the splits.

    The interval is over photos, drawn with all their occurrences, and over episodes; that over
    seeds is of the training.
    """
    rows: list[Row] = []
    scores: Scores = {}
    methods = list(dict.fromkeys(method for _, method in outcomes))
    for place, shots in enumerate(config.shots):
        for name, splits in {**{one: [one] for one in config.splits}, ALL: config.splits}.items():
            of_methods = [
                np.concatenate([outcomes[one, method][:, place] for one in splits], 1)
                for method in methods
            ]
            photos = np.concatenate([ids[one][place] for one in splits])
            means = np.stack([one.mean(0).ravel() for one in of_methods])
            episode = np.indices(photos.shape)[0].ravel()
            halves = bootstrap(mean_statistic(means), photos.ravel(), episode)
            for method, found, half in zip(methods, of_methods, halves, strict=True):
                of_seeds = found.mean((1, 2))
                row = Row(
                    table=config.table,
                    method=method,
                    domain=name,
                    task=TASK,
                    shots=shots,
                    metric="accuracy",
                    value=float(of_seeds.mean()),
                    ci95=float(half),
                    episodes=len(photos),
                )
                if method not in BASELINES:
                    half_of_seeds = mean_interval(of_seeds).half
                    row = replace(row, ci95_seeds=half_of_seeds, seeds=len(of_seeds))
                rows.append(row)
                if name != ALL:
                    score = found.mean(0).astype(np.float32)
                    scores[key(row)] = {"score": score, "id": photos.astype(np.int32)}
    return with_baselines(rows, BASELINES), scores


def main(config: FrozenConfigDict, workdir: Path) -> None:
    """Train, choose, ask and score, then write the table."""
    with claimed(config, workdir):
        choices: dict[str, Any] = {}
        outcomes, ids = outcomes_of(config, read(), workdir, choices)
        rows, scores = rows_of(config, outcomes, ids)
        path = write_results(config, workdir, rows, scores, config.seeds)
        write_json(workdir / "choices.json", choices)
        print_tables(rows, scratch=None, baselines=BASELINES)
        say(f"product_images: {path}, {workdir / 'choices.json'}")


if __name__ == "__main__":
    runner.run(main, **COMMANDS["experiments.tables.product_images"]._asdict())
