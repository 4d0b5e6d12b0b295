"""The table of product photos: what is held out teaches nothing, and baselines by hand."""

import gzip
import struct
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections.config_dict import FrozenConfigDict

from experiments import command
from experiments.config_files import ConfigError
from experiments.modules import COMMANDS
from experiments.tables import product_images
from metaguide.data.mnist import FILES, Pictures
from metaguide.evaluation.results import read


def config_of(*flags: str) -> FrozenConfigDict:
    defaults = COMMANDS["experiments.tables.product_images"]._asdict()
    return command.resolve(["x", "--config.preset=tiny", *flags], **defaults, late=True)[0]


def photos(seed: int, each: int = 6) -> Pictures:
    """Pictures of each class that are alike, in an order that is drawn."""
    rng = np.random.default_rng(seed)
    label = rng.permutation(np.repeat(np.arange(10, dtype=np.int32), each))
    kind = np.random.default_rng(9).integers(0, 128, (10, 28, 28))
    image = kind[label] + rng.integers(0, 128, (len(label), 28, 28))
    return Pictures(image.astype(np.uint8), label)


def both_parts() -> dict[str, Pictures]:
    return {"train": photos(1), "test": photos(2)}


def lay(folder: Path) -> None:
    """Write the pictures as the IDX files of Fashion-MNIST."""
    (folder / "fashion_mnist").mkdir()
    for part, pictures in both_parts().items():
        for name, array in zip(FILES[part], pictures, strict=True):
            head = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
            content = gzip.compress(head + array.astype(np.uint8).tobytes())
            (folder / "fashion_mnist" / name).write_bytes(content)


def test_every_class_is_held_out_and_no_choice_is_made_by_it() -> None:
    """Faults: a class is never held out, or is both held out and a source or chosen by."""
    for split in product_images.SPLITS.values():
        assert len(set(split.held_out)) == product_images.WAY
        sources = product_images.sources_of(split)
        assert sorted((*sources, *split.held_out)) == list(range(10))
        assert set(split.choosing) < set(sources)
    held_out = [one for split in product_images.SPLITS.values() for one in split.held_out]
    assert np.bincount(held_out).tolist() == [2] * 10


def test_a_table_has_the_pictures_of_its_classes_alone() -> None:
    """Faults: pictures of another class, a class under another number, a mean of wrong pixels."""
    pictures = photos(1)
    table = product_images.table_of(pictures, (7, 2), turns=4)
    for place, label in enumerate((7, 2)):
        own = pictures.image[pictures.label == label]
        np.testing.assert_array_equal(table["image"][0, place], own)
    assert table["character"].tolist() == [[0] * 4 + [1] * 4]
    assert table["turns"].tolist() == [[0, 1, 2, 3] * 2]
    small = product_images.halved(table)["image"]
    square = table["image"][0, 1, 3, 4:6, 10:12].astype(float)
    assert small.shape == (1, 2, 6, 14, 14) and small[0, 1, 3, 2, 5] == np.round(square.mean())
    without = Pictures(pictures.image[pictures.label != 2], pictures.label[pictures.label != 2])
    with pytest.raises(ConfigError, match="fashion_mnist has no picture of class 2; get its files"):
        product_images.table_of(without, (7, 2))


@pytest.mark.slow
def test_what_is_held_out_is_neither_learned_nor_chosen_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Faults: a held-out class or a test picture reaches training; the classes that choices are
    made by reach the encoders that these are made for."""
    taught: list[dict[str, np.ndarray]] = []

    def train(config, table, seed, folder):
        taught.append(table)
        learner = product_images.denoising(config)
        params = learner.init(jax.random.key(seed))["params"]
        meta = {"params": {part: params[part] for part in ("body", "head")}}
        return dict.fromkeys(product_images.ENCODERS, meta)

    asked: list[dict[str, np.ndarray]] = []
    encoded = product_images.features_of

    def features_of(encode, meta, table):
        asked.append(table)
        return encoded(encode, meta, table)

    monkeypatch.setattr(product_images, "train", train)
    monkeypatch.setattr(product_images, "features_of", features_of)
    pictures = both_parts()
    product_images.outcomes_of(config_of("--config.seeds=(0,)"), pictures, tmp_path, {})
    split = product_images.SPLITS["tops"]
    sources = set(product_images.sources_of(split))
    for table, part, labels in (
        (taught[0], "train", sources - set(split.choosing)),
        (asked[0], "train", set(split.choosing)),
        (taught[1], "train", sources),
        (asked[-1], "test", set(split.held_out)),
    ):
        known = {one.tobytes() for one in table["image"].reshape(-1, 14, 14)}
        for name, of_part in pictures.items():
            own = product_images.halved({"image": of_part.image[None, None]})["image"][0, 0]
            expected = np.isin(of_part.label, list(labels)) & (name == part)
            np.testing.assert_array_equal([one.tobytes() in known for one in own], expected)
    assert len(taught) == 2


@pytest.mark.slow
@pytest.mark.parametrize("unit", [False, True])
def test_the_baseline_is_the_nearest_mean_of_pixels(unit: bool) -> None:
    """Faults: ids of another photo, a mean over photos without labels, pixels of other scale."""
    config = config_of("--config.episodes=5", "--config.queries=2")
    test = product_images.table_of(photos(2), (0, 2, 3, 4, 6))
    features = product_images.pixels_of(test, unit)
    program = product_images.evaluator_of(config)
    head = {"kernel": np.zeros((784, 5), np.float32), "bias": np.zeros(5, np.float32)}
    rates = dict.fromkeys(product_images.HEADS, 1.0)
    found = product_images.ask(config, program, features, head, test, rates)
    again = product_images.ask(config, program, features[:, ::-1], head, test, rates)
    np.testing.assert_array_equal(found["prototypes"]["id"], again["ridge"]["id"])
    most = max(config.shots) + config.unlabelled
    sample = product_images.balanced_sampler(5, most, config.queries)
    image = test["image"].reshape(-1, 784) / 255.0
    if unit:
        image = image / np.linalg.norm(image, axis=1, keepdims=True)
    for number, key in enumerate(product_images.episode_keys(0, "test", 5)):
        episode = sample(jax.device_put(test), 0, most, key)
        support, query = np.asarray(episode.support["id"]), np.asarray(episode.query["id"])
        for place, shots in enumerate(config.shots):
            np.testing.assert_array_equal(found["prototypes"]["id"][place, number], query)
            given = support.reshape(most, 5)[:shots]
            for row, photo in enumerate(query):
                far = [np.square(image[photo] - image[given[:, n]].mean(0)).sum() for n in range(5)]
                right = int(np.argmin(far)) == row % 5
                assert found["prototypes"]["correct"][place, number, row] == right


@pytest.mark.slow
def test_features_stand_at_the_ids_of_their_photos() -> None:
    """Faults: a turned picture stands at the id of another turn, or chunks are in another order."""
    table = product_images.halved(product_images.table_of(photos(1, 90), (1, 5), turns=4))
    config = config_of()
    problem = product_images.problem_of(config)
    meta = {"params": problem.init(jax.random.key(0))}
    features = product_images.features_of(product_images.encoding(config), meta, table)
    episode = product_images.balanced_sampler(5, 2, 3)(
        jax.device_put(table), 0, 2, jax.random.key(4)
    )
    own = problem.encode(meta["params"], episode.query, (), None)
    np.testing.assert_allclose(features[np.asarray(episode.query["id"])], own, atol=1e-5)


@pytest.mark.slow
def test_a_denoiser_restores_the_clean_picture() -> None:
    """Faults: the loss is of the corrupted picture; it is encoded clean; labels count."""
    config = config_of("--config.denoising.sigma=0.0", "--config.denoising.occlusion=14")
    table = product_images.halved(product_images.table_of(photos(1), (1, 5), turns=4))
    learner = product_images.denoising(config)
    meta = learner.init(jax.random.key(0))
    episode = product_images.balanced_sampler(5, 0, 2)(
        jax.device_put(table), 0, 0, jax.random.key(1)
    )
    bias = np.full(196, 0.25, np.float32)
    decoder = {**meta["params"]["decoder"], "bias": bias}
    meta = {"params": {**meta["params"], "decoder": decoder}}
    loss, _ = learner.objective(meta, episode, jax.random.key(2), 0.0)
    # All of a picture is hidden, so that the network without biases restores the decoder's.
    expected = np.square(np.asarray(episode.query["image"]) - 0.25).mean()
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--config.splits=('shoes',)", "config.splits"),
        ("--config.shots=(0,)", "config.shots"),
        ("--config.denoising.occlusion=15", "config.denoising.occlusion"),
        ("--config.choosing.penalties=()", "config.choosing.penalties"),
    ],
)
def test_a_bad_value_is_refused_by_name(flag: str, said: str) -> None:
    """Faults: a split that does not exist, no shots or no candidates end in a traceback."""
    with pytest.raises(ConfigError, match=f"{said}.*give"):
        config_of(flag)


@pytest.mark.slow
def test_a_run_writes_its_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Faults: a method or split is missing, seeds do not count, the rows of all splits are not the
    mean, methods are asked for different photos, a split that was finished is learned of again."""
    lay(tmp_path)
    monkeypatch.setenv("METAGUIDE_DATA_DIR", str(tmp_path))
    # Each further encoder takes seconds to compile.
    kept = ("untrained", "denoising", "denoising + prototypical")
    for name in ("ENCODERS", "METHODS_OF"):
        every = getattr(product_images, name)
        monkeypatch.setattr(product_images, name, {one: every[one] for one in kept})
    product_images.main(config_of("--config.choosing.penalties=(1.0,)"), tmp_path / "run")
    results = read(tmp_path / "run")
    methods = {row.method for row in results.rows}
    wanted = {f"{one}: {head}" for one, of in product_images.METHODS_OF.items() for head in of}
    assert methods == {*product_images.BASELINES, *wanted}
    assert {row.domain for row in results.rows} == {"tops", product_images.ALL}
    value = {(row.method, row.shots, row.domain): row.value for row in results.rows}
    for (method, shots, _), own in value.items():
        assert own == value[method, shots, "tops"]  # the only split of the preset
    assert {row.seeds for row in results.rows if row.method in wanted} == {2}
    for shots in (1, 2):
        ids = [one["id"] for name, one in results.scores.items() if f"/{shots}/" in name]
        assert all(np.array_equal(ids[0], one) for one in ids)
    (tmp_path / "run" / "results.json").unlink()
    monkeypatch.setattr(product_images, "train", None)
    product_images.main(config_of("--config.choosing.penalties=(1.0,)"), tmp_path / "run")
    assert read(tmp_path / "run").rows == results.rows
