"""A run that trains a pretrained encoder: what its steps change and keep, and what it refuses."""

import re
import warnings
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from ml_collections.config_dict import FrozenConfigDict

import metaguide
from experiments import domain_split
from experiments.config_files import ConfigError
from experiments.metatrain import metatraining_stage
from experiments.multitask import multitask_stage
from experiments.pretrain import pretraining_stage
from experiments.stages import build_stage, random_start, stage_before, start, train_stage
from metaguide import run_config
from metaguide.data.catalogue import Domain, Question, Review, read_domain, write_domain
from metaguide.data.tokenizer import Tokenizer
from metaguide.models.encoder import FROZEN
from metaguide.objectives.weighting import fixed
from metaguide.run_config import TOKENIZER
from metaguide.training.checkpoint import CheckpointError, restore_meta
from tests.pretrained.conftest import write

STARS = {"good": 5.0, "bad": 1.0}


@pytest.fixture(scope="module")
def shop(shop_config, tmp_path_factory):
    """What returns a config that trains an encoder so, with other fields changed; its folder."""
    config, _ = shop_config
    folder = tmp_path_factory.mktemp("trained")
    weights = write(folder / "encoder", "bert")

    def made(trains: str = "lora", **fields: object) -> ConfigDict:
        changed = ConfigDict(config.to_dict())
        changed.encoder.update({"weights": str(weights), "train": trains, "rank": 2, "layers": 1})
        changed.text.update({"text": 12, "pair": 20})
        for name, value in fields.items():
            section, field = name.split("__")
            changed[section][field] = value
        return changed

    return made, folder


def questions(name: str) -> tuple[Question, ...]:
    text = "the phone is good , the screen is bad"
    found = []
    for row in range(8):
        word = ("phone", "screen")[row % 2]
        answer = None if row % 3 == 0 else (13, 17) if word == "phone" else (34, 37)
        found.append(Question(f"{name}{row}", f"is the {word} not {row}", f"{text} {row}", answer))
    return tuple(found)


STAGES = {
    "pretrain": pretraining_stage,
    "multitask": multitask_stage,
    "metatrain": metatraining_stage,
}


@pytest.fixture(scope="module")
def run(shop):
    """Every stage once, on an encoder whose factors of low rank train, each in its folder."""
    made, folder = shop
    for name in ("a", "b", "c"):
        reviews = tuple(
            Review(f"{name}{i}", f"the {word} {word} screen {i}", stars=STARS[word])
            for i in range(8)
            for word in [("good", "bad")[i % 2]]
        )
        domain = Domain(name, reviews=reviews, questions=questions(name))
        write_domain(domain, folder / "shops" / name)
    config = made(data__folder=str(folder / "shops"))
    few = {"steps": 2, "meta_batch_size": 1, "shots": (1,)}
    config.pretrain.update({"steps": 2, "batch": 4})
    config.multitask.update(few)
    config.metatrain.update({**few, "inner_steps": 1, "learner": "maml"})
    config.metatrain.domain_weights = {}
    config.multitask.weights.sentiment = config.metatrain.weights.sentiment = 0.0
    frozen = FrozenConfigDict(config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        split = domain_split.prepare(frozen, folder / "run")
        meta, kept = random_start(split, 0), {}
        for name, build in STAGES.items():
            stage, here = build(frozen, split), folder / name
            meta = train_stage(stage, meta, config=frozen, split=split, workdir=here, seed=0)
            kept[name] = jax.device_get(meta["params"])
    return config, folder, split, kept


@pytest.mark.slow
def test_a_step_changes_what_trains_and_keeps_nothing_of_the_rest(run):
    """Faults: weight decay shrinks the frozen weights, which have no gradient; the optimizer keeps
    moments of them, the state a copy; the encoder learns at the rate of the heads."""
    config, _, split, kept = run
    config = ConfigDict(config.to_dict())
    config.multitask.update({"steps": 4, "learning_rate": 0.1})
    config.encoder.learning_rate_scale = 0.01
    config, meta = FrozenConfigDict(config), {"params": kept["pretrain"]}

    def pull(meta, data, key, progress):
        params = meta["params"]
        loss = sum(jnp.abs(leaf - 1).sum() for leaf in jax.tree.leaves(params["text"]))
        loss += jnp.abs(params["fusion"]["bias"] - 1).sum() + data.sum()
        return loss + jnp.square(params[FROZEN]["embedding"]).sum(), {}

    gradients = {"a": jax.value_and_grad(pull, has_aux=True)}
    stage = build_stage(
        config,
        "multitask",
        gradients,
        {"a": jnp.ones(2)},
        fixed({"a": 1.0}),
        frozen=split.frozen,
    )
    state = stage.init(meta, 0)
    before = jax.device_get(state.params["meta"]["params"])
    trained = sum(leaf.size for leaf in jax.tree.leaves(before))
    assert FROZEN not in before and FROZEN in meta["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(state.optimizer)) < 2 * trained + 10
    for _ in range(4):
        state, metrics = stage.step(state, stage.data)
    assert np.isfinite(metrics["loss"])
    after = jax.device_get(state.params["meta"]["params"])
    fusion = np.abs(after["fusion"]["bias"] - before["fusion"]["bias"]).max()
    factors = np.abs(after["text"]["layer_0"]["up"] - before["text"]["layer_0"]["up"]).max()
    assert 0 < factors < 0.02 * fusion
    np.testing.assert_array_equal(meta["params"][FROZEN]["embedding"], split.frozen["embedding"])


@pytest.mark.slow
def test_a_guide_trains_its_encoder_in_every_stage_and_is_loaded(run):
    """Faults: a stage trains nothing of the encoder, or its checkpoint holds the frozen weights or
    lacks what trained; a loaded guide has other weights or tokens than it was trained with."""
    _, folder, split, kept = run
    found = run_config.read(folder / "metatrain")
    assert (found.encoder_train, found.encoder_rank, found.encoder_layers) == ("lora", 2, 0)
    assert (found.width, found.layers, found.heads) == (16, 0, 2)
    changed = [kept[stage]["text"]["layer_0"]["up"] for stage in STAGES]
    assert changed[0].any()
    assert all((one != other).any() for one, other in zip(changed, changed[1:], strict=False))
    guide = metaguide.load(folder / "metatrain")
    params = guide.serving["questions"].meta["params"]
    jax.tree.map(np.testing.assert_array_equal, dict(params), kept["metatrain"])
    jax.tree.map(np.testing.assert_array_equal, params[FROZEN], split.frozen)
    without = {"params": {name: one for name, one in params.items() if name != FROZEN}}
    restore_meta(folder / "metatrain", without)
    with pytest.raises(CheckpointError, match=r"another model: .*frozen.* is absent"):
        restore_meta(folder / "metatrain", {"params": params})
    assert not (folder / "metatrain" / TOKENIZER).exists()
    assert not isinstance(guide.reading.tokenizer, Tokenizer)
    assert guide.reading.reader.vectors is None

    domain = read_domain(folder / "shops" / "c")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = guide.adapt(domain, shots=1)
    for answer, asked in zip(adapted.predict(domain.questions), domain.questions, strict=True):
        if answer.span is not None:
            assert answer.text == asked.text[slice(*answer.span)]
    assert {one.sentiment for one in adapted.predict(domain.reviews)} <= {"positive", "negative"}
    with pytest.raises(CheckpointError, match="holds another encoder than the guide reads"):
        metaguide.load(folder / "metatrain", encoder=write(folder / "other", "e5"))


@pytest.mark.slow
def test_a_stage_goes_on_from_one_on_the_same_encoder_only(run):
    """Faults: a stage run alone lacks the frozen weights of the one before; factors are read beside
    weights that they were not trained with."""
    config, folder, split, kept = run
    config = ConfigDict(config.to_dict())
    config.init_from = str(folder / "multitask")
    frozen = FrozenConfigDict(config)
    meta, rule = start(frozen, split, stage_before(frozen))
    assert rule is None
    jax.tree.map(np.testing.assert_array_equal, dict(meta["params"]), kept["multitask"])
    split = split._replace(guide=replace(split.guide, encoder_fingerprint="another"))
    with pytest.raises(ConfigError, match="init_from=.*: it is on another encoder than"):
        start(frozen, split, stage_before(frozen))


BAD = {
    "there is no encoder to train; give its folder": {"encoder__weights": ""},
    "config.encoder, config.text: texts of 30 tokens; the encoder reads 24": {"text__pair": 30},
    "config.encoder, config.text: layers is 3; the encoder has 2": {"encoder__layers": 3},
}


@pytest.mark.parametrize("said", BAD)
def test_what_cannot_be_trained_is_refused_in_words(shop, said, tmp_path):
    """Faults: a traceback of Flax, or a run without the encoder that it should train."""
    made, _ = shop
    with pytest.raises(ConfigError, match=re.escape(said)):
        domain_split.prepare(FrozenConfigDict(made("last", **BAD[said])), tmp_path)
