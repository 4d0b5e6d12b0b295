"""Which domains play which part in a run, and the errors of a wrong cast."""

import importlib
import inspect
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from ml_collections.config_dict import ConfigDict, FrozenConfigDict

from experiments import domain_split, sources
from experiments.config_files import ConfigError
from experiments.configs import guide_bazaar, guide_reviews_zh
from experiments.run_folder import write_config
from experiments.sources import online_shopping
from experiments.stages import split_of_stage
from metaguide.data.catalogue import Domain, Interaction, Product, Review, write_domain


def catalogue(folder):
    for name in ("a", "b", "c", "d"):
        products = tuple(
            Product(f"{name}{i}", f"{name} thing {i}", category=f"{name} kind {i % 3}")
            for i in range(6)
        )
        reviews = (Review("r", f"words of {name}", stars=5.0),)
        write_domain(Domain(name, products, reviews), folder / name)


def config(folder, **data):
    made = guide_bazaar.get_config()
    made.data.update({"world": "catalogue", "folder": str(folder)})
    made.data.update({"validation": ("b",), "held_out": ("c",)})
    made.data.update(data)
    made.text.vocabulary = 300
    return FrozenConfigDict(made)


def test_every_domain_that_is_not_named_is_a_source(tmp_path):
    """A held-out domain among the sources, or a tokenizer that has read one."""
    catalogue(tmp_path / "shop")
    split = domain_split.prepare(config(tmp_path / "shop"), tmp_path / "run")
    assert [one.name for one in split.sources] == ["a", "d"]
    assert [one.name for one in split.unseen] == ["b", "c"]
    tokens = split.reading.tokenizer.encode(["a thing", "c thing"], 8).tokens
    assert (tokens[0] != 0).sum() <= (tokens[1] != 0).sum()
    assert (tmp_path / "run" / domain_split.TOKENIZER).exists()


def test_the_classes_of_the_sources_are_known(tmp_path):
    """Faults: a class of a held-out domain counts as one that training has seen; the classes of
    sources are forgotten, or known to a guide that never learns to tell them apart."""
    catalogue(tmp_path / "shop")
    split = domain_split.prepare(config(tmp_path / "shop"), tmp_path / "run")
    kinds = {str(one.category) for part in split.sources for one in part.products}
    assert kinds and split.reading.known_classes == kinds
    assert set(split.guide.known_classes) == kinds
    made = ConfigDict(config(tmp_path / "shop"))
    made.multitask.weights.classification = 0.0
    split = domain_split.prepare(FrozenConfigDict(made), tmp_path / "other")
    assert not split.reading.known_classes


@pytest.mark.parametrize(
    "data, message",
    [
        ({"held_out": ("b",)}, "'b' is in config.data.validation and in config.data.held_out"),
        ({"sources": ("a", "c")}, "'c' is in config.data.sources and in config.data.held_out"),
        ({"held_out": ("nowhere",)}, "names 'nowhere', which the catalogue does not have"),
        ({"held_out": ()}, "config.data.held_out is empty"),
        ({"held_out": ("a", "c", "d")}, "no source domain is left"),
        (
            {"world": "mars"},
            "there are bazaar, catalogue, online_shopping, .* and amazon_sequences",
        ),
    ],
)
def test_a_wrong_cast_is_one_clear_error(tmp_path, data, message):
    """Training on what is held out; or a wrong name that is passed over in silence."""
    catalogue(tmp_path / "shop")
    with pytest.raises(ConfigError, match=message):
        domain_split.prepare(config(tmp_path / "shop", **data), tmp_path / "run")


def test_near_repeats_are_left_out_of_every_part_where_it_is_asked_for(tmp_path):
    """Faults: the option reaches no domain, or not those that are held out; a share that is none
    is taken for one."""
    catalogue(tmp_path / "shop")
    long = "the battery holds a day and a half and the screen is bright"
    reviews = tuple(
        Review(str(row), text, stars=5.0) for row, text in enumerate((long, long + " too", "so so"))
    )
    for name in ("a", "c"):
        write_domain(Domain(name, reviews=reviews), tmp_path / "shop" / name)
    made = ConfigDict(config(tmp_path / "shop"))
    split = domain_split.prepare(FrozenConfigDict(made), tmp_path / "run")
    assert len(split.held_out[0].reviews) == 3
    made.episodes.near = 0.8
    with pytest.warns(UserWarning, match="domain [ac], sentiment: 1 of 3"):
        split = domain_split.prepare(FrozenConfigDict(made), tmp_path / "run")
    assert [len(one.reviews) for one in split.held_out + split.sources[:1]] == [2, 2]
    made.episodes.near = 0.0
    with pytest.raises(ConfigError, match="config.episodes.near=0.0.*above 0"):
        domain_split.prepare(FrozenConfigDict(made), tmp_path / "run")


def test_what_other_data_left_in_a_folder_is_made_anew(tmp_path):
    """Faults: after the config was fixed the tokenizer is that of the sources before it; or the one
    that a stage before this one brings is trained anew; or nothing is kept between two starts."""
    catalogue(tmp_path / "shop")
    path = tmp_path / "run" / domain_split.TOKENIZER
    domain_split.prepare(config(tmp_path / "shop"), tmp_path / "run")
    path.write_bytes(marked := path.read_bytes() + b"\n")
    kept = domain_split.prepare(config(tmp_path / "shop"), tmp_path / "run").reading.tokenizer
    assert path.read_bytes() == marked
    other = config(tmp_path / "shop", sources=("a",))
    brought = domain_split.prepare(other, tmp_path / "run", kept).reading.tokenizer
    assert brought is kept and not path.exists()
    domain_split.prepare(other, tmp_path / "run")
    assert path.read_bytes() not in (marked, marked[:-1])


def test_a_folder_that_is_refused_keeps_what_it_has(tmp_path):
    """Fault: the tokenizer of a finished run is made anew for other data, and only then is the
    folder refused."""
    catalogue(tmp_path / "shop")
    first, other = config(tmp_path / "shop"), config(tmp_path / "shop", sources=("a",))
    split_of_stage(first, tmp_path / "run")
    write_config(first, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "4").mkdir(parents=True)
    path = tmp_path / "run" / "data" / domain_split.TOKENIZER
    path.write_bytes(marked := path.read_bytes() + b"\n")
    with pytest.raises(ConfigError, match="run holds a run with another config: data.sources was"):
        split_of_stage(other, tmp_path / "run")
    assert path.read_bytes() == marked


def test_real_reviews_without_their_folder(monkeypatch, tmp_path):
    """A traceback where the variable that names the folder is not set."""
    monkeypatch.delenv("METAGUIDE_DATA_DIR", raising=False)
    with pytest.raises(ConfigError, match="METAGUIDE_DATA_DIR is not set"):
        domain_split.prepare(FrozenConfigDict(guide_reviews_zh.get_config()), tmp_path)


def test_chinese_categories_share_no_text_between_stages(monkeypatch, tmp_path):
    """A text that is read in training and asked about in the test, or a category that leaks."""
    reviews = {
        name: Domain(
            name,
            reviews=tuple(
                Review(f"{name}{i}", f"{name} {i}", sentiment="positive") for i in range(9)
            ),
        )
        for name in ("书籍", "平板", "热水器", "衣服", "蒙牛")
    }
    monkeypatch.setenv("METAGUIDE_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(online_shopping, "read_online_shopping", lambda path: reviews)
    made = guide_reviews_zh.get_config()
    made.data.aside = 2
    made.text.vocabulary = 300
    split = domain_split.prepare(FrozenConfigDict(made), tmp_path / "run")
    texts = {
        part: {p.title for d in getattr(split, part) for p in d.products}
        for part in ("sources", "validation", "held_out")
    }
    assert not texts["sources"] & texts["held_out"]
    assert not texts["validation"] & texts["held_out"]
    assert not texts["sources"] & texts["validation"]
    read = {r.text for d in split.sources for r in d.reviews} | texts["sources"]
    assert not read & (texts["held_out"] | texts["validation"])
    categories = {p.category for d in split.sources for p in d.products}
    assert categories == {"书籍", "平板"}
    assert split.always["unseen categories"] == ("热水器", "衣服")


def test_every_source_has_a_module_and_its_fields_have_ranges():
    """Faults: a source that the command line takes has no module; its module cannot be called."""
    for name in sources.FIELDS:
        read = importlib.import_module(f"experiments.sources.{name}").read
        assert list(inspect.signature(read).parameters) == ["config", "folder"]
    files = {path.stem for path in Path(str(sources.__file__)).parent.glob("*.py")}
    assert files - {"__init__", "parts"} == set(sources.FIELDS)


def test_the_chinese_categories_to_train_on_may_be_named(monkeypatch, tmp_path):
    """Fault: the field that names them is taken and not read."""
    reviews = {
        name: Domain(name, reviews=(Review(name, name, sentiment="positive"),))
        for name in ("书籍", "平板", "热水器", "蒙牛")
    }
    monkeypatch.setenv("METAGUIDE_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(online_shopping, "read_online_shopping", lambda path: reviews)
    made = guide_reviews_zh.get_config()
    made.data.update({"aside": 0, "sources": ("平板",), "held_out": ("热水器",)})
    parts = sources.read(FrozenConfigDict(made), tmp_path)
    assert [one.name for one in parts.sources] == ["平板", "source categories"]


def test_episodes_have_the_sizes_that_are_asked_for(tmp_path):
    """Faults: joint training gets one user per episode, or the table of methods the queries of
    training; a size that is asked for once is kept for those who ask for none."""
    catalogue(tmp_path / "shop")
    for name in ("a", "d"):
        products = tuple(Product(f"{name}{i}", f"thing {i}", category=f"{i % 3}") for i in range(9))
        taken = tuple(Interaction("u", f"{name}{i}", float(i)) for i in range(5))
        write_domain(Domain(name, products, interactions=taken), tmp_path / "shop" / name)
    made = ConfigDict(config(tmp_path / "shop"))
    made.episodes.update({"way": 3, "shots": 1, "queries": 2})
    split = domain_split.prepare(FrozenConfigDict(made), tmp_path / "run")

    def shapes(task, **sizes):
        distribution = split.task_distributions("sources", **sizes)[task]
        data = jax.tree.map(jnp.asarray, distribution.data)
        sampled = partial(distribution.sample, data, 0, 1, jax.random.key(0))
        support, query, context = jax.eval_shape(sampled)
        ranked = context["candidates"].shape if task == "recommendation" else None
        return support["mask"].shape, query["mask"].shape, ranked

    assert shapes("recommendation", users=3) == ((0,), (15,), (9,))
    assert shapes("recommendation", ranked=4, users=3) == ((0,), (15,), (4,))
    assert shapes("recommendation", ranked=4, shots=2) == ((2,), (1,), (4,))
    assert shapes("recommendation") == ((1,), (1,), (9,))
    assert shapes("classification", queries=1) == ((3,), (1,), None)
    assert shapes("classification") == ((3,), (2,), None)


def test_what_no_episode_can_be_drawn_from_names_the_section(tmp_path):
    """Fault: the library's error names an argument, and nobody says which field sets it."""
    catalogue(tmp_path / "shop")
    made = ConfigDict(config(tmp_path / "shop"))
    made.episodes.update({"way": 4, "shots": 1})
    split = domain_split.prepare(FrozenConfigDict(made), tmp_path / "run")
    with pytest.raises(ConfigError, match="config.episodes: domain a, class.*lower way or shots"):
        split.task_distributions("sources")


def test_a_guide_that_could_not_be_loaded_is_refused_before_it_trains(tmp_path):
    """Fault: a run is trained for hours, and cannot be loaded."""
    catalogue(tmp_path / "shop")
    made = ConfigDict(config(tmp_path / "shop"))
    made.model.heads = 5
    with pytest.raises(ConfigError, match="config.model.*: heads is 5; give a divisor of the wid"):
        domain_split.prepare(FrozenConfigDict(made), tmp_path / "run")
    made.model.heads = 4
    split = domain_split.prepare(FrozenConfigDict(made), tmp_path / "run")
    with pytest.raises(ConfigError, match="could not be loaded .*: learner is 'ltsm'; give one of"):
        split.run_config(stage="metatrain", learner="ltsm")
