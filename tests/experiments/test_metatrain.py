"""Meta-training of learned optimizers: what is trained, what is held, and what it leaves behind."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections.config_dict import ConfigDict, FrozenConfigDict

from experiments import domain_split
from experiments.bench import compared
from experiments.comparison import methods_in
from experiments.config_files import ConfigError
from experiments.configs import guide_bazaar
from experiments.metatrain import check_start, metatraining_stage
from experiments.multitask import multitask_stage
from experiments.pretrain import pretraining_stage
from experiments.runner import USER_ERRORS
from experiments.stages import build_stage, random_start, stage_before, start, train_stage
from metaguide import optimizers, run_config
from metaguide.data.catalogue import Review
from metaguide.data.ngrams import hashed_ngrams
from metaguide.objectives.weighting import fixed
from metaguide.optimizers import StoredError, Trained, rule_of
from metaguide.tasks import guide_model

SETTINGS = {"hidden": 2, "layers": 1, "scale": 10.0}
RULE = rule_of("lstm", SETTINGS)


def toy():
    """A stage whose objective pulls an optimizer to 1, with weight decay."""

    def pull(meta, data, key, progress):
        return sum(jnp.square(leaf - 1).sum() for leaf in jax.tree.leaves(meta["rule"])), {}

    config = guide_bazaar.get_config()
    config.metatrain.update(
        {"steps": 8, "learning_rate": 0.1, "weight_decay": 1.0, "rule_learning_rate": 0.01}
    )
    gradients = {"a": jax.value_and_grad(pull, has_aux=True)}
    trained = Trained(RULE, RULE.init(jax.random.key(0)), "")
    weighting = fixed({"a": 1.0})
    frozen = FrozenConfigDict(config)
    return build_stage(
        frozen, "metatrain", gradients, {"a": ()}, weighting, "lstm", trained=trained
    )


def test_a_held_initialisation_neither_moves_nor_costs():
    """Faults: weight decay shrinks parameters that have no gradient; the optimizer keeps a state of
    them; the rule is held with them, or learns at their rate."""
    stage, meta = toy(), {"params": {"w": 3 * jnp.ones((50, 40))}}
    state = stage.init(meta, 0)
    size = sum(leaf.size for leaf in jax.tree.leaves(state.optimizer))
    assert size < 2000
    before = jax.device_get(state.params["meta"])
    for _ in range(8):
        state, _ = stage.step(state, stage.data)
    after = jax.device_get(state.params["meta"])
    assert (after["params"]["w"] == before["params"]["w"]).all()
    moved = abs(after["rule"]["output"] - before["rule"]["output"]).max()
    assert 1e-3 < moved < 0.1  # 8 steps of Adam of at most .01


@pytest.fixture(scope="module")
def shop(shop_config):
    """A config of one task, and its split."""
    config, folder = shop_config
    config.metatrain.update({"steps": 2, "meta_batch_size": 1, "inner_steps": 1, "shots": (1,)})
    config.metatrain.domain_weights = {}
    path = folder / "lstm.npz"
    optimizers.save(path, RULE, RULE.init(jax.random.key(1)), "made by hand")
    config.metatrain.rule_from.lstm = str(path)
    return config, domain_split.prepare(FrozenConfigDict(config), folder / "run")


def test_a_weight_of_one_of_no_source_changes_nothing(shop):
    """Faults: other held-out domains are refused, since the default names the weights of all; a
    weight that would change something is left out in silence."""
    config, split = shop
    own = ConfigDict(config.to_dict())
    own.metatrain.domain_weights = {"nowhere": 1.0}
    metatraining_stage(FrozenConfigDict(own), split, "lstm")
    own.metatrain.domain_weights = {"nowhere": 2.0}
    with pytest.raises(ConfigError, match="domain_weights.nowhere: no source domain"):
        metatraining_stage(FrozenConfigDict(own), split, "lstm")


@pytest.mark.slow
def test_a_stage_leaves_the_optimizer_that_it_trained(shop, tmp_path):
    """Faults: the optimizer in the folder is the one that training began with, or is not that of
    the checkpoint; parameters of the checkpoint are not those that were held."""
    config, split = shop
    frozen = FrozenConfigDict(config)
    meta = random_start(split, 0)
    stage = metatraining_stage(frozen, split, "lstm-head")
    trained = train_stage(stage, meta, config=frozen, split=split, workdir=tmp_path, seed=0)
    rule, theta, _ = optimizers.load(tmp_path, "lstm")
    assert rule.name == RULE.name
    config = ConfigDict({**config.to_dict(), "init_from": str(tmp_path)})
    before = stage_before(FrozenConfigDict(config))
    assert before is not None and (before.stage, before.learner, before.seed) == (
        *("metatrain", "lstm-head", 0),
    )
    found, of = start(FrozenConfigDict(config), split, before)
    assert of is not None and of.name == RULE.name
    for one in (found, {"params": meta["params"], "rule": theta}):
        jax.tree.map(np.testing.assert_array_equal, one, jax.device_get(trained))
    begun = optimizers.load(config.metatrain.rule_from.lstm).theta
    assert abs(theta["output"] - begun["output"]).max() > 1e-5


def test_what_there_are_no_data_for_is_left_out_with_a_line(shop, capsys):
    """Faults: a catalogue without pictures, or without one task, ends the run before it
    begins, or is left out in silence; a method is trained that serves nothing there."""
    config, split = shop
    stage = pretraining_stage(FrozenConfigDict(config), split)
    assert set(stage.data) == {"masked_language"}
    assert "pretrain: denoising, image_text left out: config.model.image is off" in said(capsys)
    pictured = split._replace(model=guide_model(replace(split.model.encoder, channels=(4, 8))))
    config = config.copy_and_resolve_references()
    config.model.image = True
    pretraining_stage(FrozenConfigDict(config), pictured)
    assert "pretrain: denoising, image_text left out: the sources have no pictures" in said(capsys)
    config.pretrain.weights.masked_language = 0.0
    with pytest.raises(ConfigError, match="config.pretrain.weights: the sources have no pictures,"):
        pretraining_stage(FrozenConfigDict(config), pictured)
    config.multitask.update({"meta_batch_size": 1, "shots": (1,)})
    assert set(multitask_stage(FrozenConfigDict(config), split).data) == {"classification"}
    assert "multitask: questions, recommendation, sentiment left out: no source" in said(capsys)
    config.multitask.weights.classification = 0.0
    with pytest.raises(ConfigError, match="config.multitask.weights: no source domain has data of"):
        multitask_stage(FrozenConfigDict(config), split)
    assert set(compared(split)) == {"classification"}
    with pytest.raises(ConfigError, match="no validation domain has examples of classification"):
        compared(split._replace(validation=()))
    config.metatrain.learners = ("maml", "anil", "prototypical")
    methods = methods_in(FrozenConfigDict(config), ("questions",))
    assert "anil" in methods and "prototypical" not in methods and "ridge" not in methods


@pytest.mark.slow
def test_joint_training_begins_with_what_words_say(shop):
    """Faults: the fitted words are left out, or known to methods that start from random
    parameters."""
    config, split = shop
    config = config.copy_and_resolve_references()
    config.multitask.update({"meta_batch_size": 1, "shots": (1,)})
    reviews = tuple(
        Review(f"r{i}", f"{('awful', 'superb')[i % 2]} number{i}", stars=1.0 + 4.0 * (i % 2))
        for i in range(40)
    )
    split = split._replace(
        model=guide_model(replace(split.model.encoder, buckets=16)),
        sources=tuple(replace(domain, reviews=reviews) for domain in split.sources),
        reading=split.reading._replace(reader=replace(split.reading.reader, buckets=16)),
    )
    stage, begun = multitask_stage(FrozenConfigDict(config), split), random_start(split, 0)
    params = stage.init(begun, 0).params["meta"]["params"]
    row = jnp.asarray(hashed_ngrams(["superb", "awful"]))
    good, bad = split.model.apply({"params": params}, row, method="polarity")
    assert good > 0 > bad
    assert not begun["params"]["grams"]["polarity"].any()


def said(capsys):
    return " ".join(capsys.readouterr().out.split())


def test_a_method_that_starts_from_another_is_given_that_one(shop, tmp_path):
    """Faults: it starts from the multi-task stage, or from nothing, in silence; a method that
    starts from the multi-task stage is asked for another."""
    _, split = shop
    config = guide_bazaar.get_config()
    config.init_from = str(tmp_path)
    message = "init_from=.*: maml.lstm starts from the parameters of maml; give the work folder"

    def check(name, **said):
        if said:
            run_config.write(split.run_config(**said), tmp_path)
        config.metatrain.learner = name
        frozen = FrozenConfigDict(config)
        check_start(frozen, stage_before(frozen))

    with pytest.raises(ConfigError, match=r"init_from=.*run_config.json: no such .* has run"):
        check("maml+lstm")
    for said in ({"stage": "multitask"}, {"stage": "metatrain", "learner": "anil"}):
        with pytest.raises(ConfigError, match=message):
            check("maml+lstm", **said)
    check("lstm")
    check("maml+lstm", stage="metatrain", learner="maml")
    config.init_from = ""
    with pytest.raises(ConfigError, match=message):
        check("maml+lstm")


def test_what_cannot_be_started_from_is_one_clear_error(shop):
    """Faults: an optimizer of another kind is taken, or a slip of the name ends in a traceback."""
    config, split = shop
    other = config.copy_and_resolve_references()
    other.metatrain.rule_from.rnn = config.metatrain.rule_from.lstm
    with pytest.raises(StoredError, match="a trained lstm(.*), not a trained rnn"):
        metatraining_stage(FrozenConfigDict(other), split, "rnn")
    other.metatrain.rule_from.rnn = "nowhere"
    with pytest.raises(StoredError, match="nowhere: there is no trained optimizer"):
        metatraining_stage(FrozenConfigDict(other), split, "rnn")
    with pytest.raises(ConfigError, match="metatrain.learner: .*'adam'; there are maml, "):
        metatraining_stage(FrozenConfigDict(other), split, "adam")
    assert StoredError in USER_ERRORS


def test_an_optimizer_that_holds_its_start_learns_what_it_is_judged_on(shop):
    """Fault: its training is spent on tasks that it never adapts to."""
    config, split = shop
    other = config.copy_and_resolve_references()
    other.adapt.methods.lstm = ("sentiment", "classification")
    assert set(metatraining_stage(FrozenConfigDict(other), split, "lstm").data) == {
        "classification"
    }
    other.adapt.methods.lstm = ("sentiment",)
    with pytest.raises(ConfigError, match="leave lstm no task"):
        metatraining_stage(FrozenConfigDict(other), split, "lstm")


def test_an_optimizer_that_holds_its_start_learns_on_the_domains_that_are_named(shop):
    """Faults: it learns where the start has nothing left to learn; a learner of parameters sees the
    validation domains; another part, such as the held-out domains, is taken."""
    config, split = shop
    other = config.copy_and_resolve_references()
    other.metatrain.weights.sentiment = 0.0
    given = {"shots": max(config.metatrain.shots), "ranked": split.shape.candidates}
    for part in ("validation", "sources"):
        other.metatrain.rule_learned_on = part
        for learner, expected in (("lstm", part), ("maml", "sources")):
            stage = metatraining_stage(FrozenConfigDict(other), split, learner)
            distribution = split.task_distributions(expected, **given)["classification"]
            jax.tree.map(
                np.testing.assert_array_equal, stage.data["classification"], distribution.data
            )
    other.metatrain.rule_learned_on = "held_out"
    with pytest.raises(ConfigError, match="rule_learned_on='held_out': there are sources and val"):
        metatraining_stage(FrozenConfigDict(other), split, "lstm")
