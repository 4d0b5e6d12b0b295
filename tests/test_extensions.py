"""The worked examples of the library's paper, each put where its reader would put it."""

import contextlib
import io
import re
import sys
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections.config_dict import FrozenConfigDict

from experiments import sources
from experiments.comparison import _grid
from experiments.config_files import ConfigError
from experiments.configs import guide_bazaar
from experiments.ranges import text
from metaguide.data.catalogue import CatalogueError, Domain, Product, Review
from metaguide.data.encoding import Lengths, TextReader
from metaguide.data.sinusoid import wave_sampler, waves
from metaguide.data.tokenizer import Tokenizer
from metaguide.evaluation.evaluate import drawn, episode_keys, evaluator
from metaguide.evaluation.rows import cells_to_rows
from metaguide.guide import Guide
from metaguide.learners import joint
from metaguide.methods import METHODS, Settings
from metaguide.models.encoder import transformer
from metaguide.models.guide import init_params
from metaguide.models.mlp import MLP
from metaguide.objectives.weighting import fixed
from metaguide.problems import regression
from metaguide.tasks import TASKS, Reading, Serving, Shape, guide_model, task_distributions
from metaguide.training.episodic import episodic
from metaguide.training.step import init_state, make_step
from metaguide.types import TaskDistribution

PAPER = Path(__file__).resolve().parents[1] / "metaguide" / "README.md"


def example(name: str, namespace: dict[str, Any] | None = None) -> dict[str, Any]:
    """Runs a worked example, and returns what it defines."""
    _, after = PAPER.read_text("utf-8").split(f"<!-- example: {name} -->\n```python\n")
    code, _, _ = after.partition("```")
    namespace = {} if namespace is None else namespace
    exec(code, namespace)
    return namespace


def trained(gradients, meta, data, steps: int, rate: float):
    """Returns meta-parameters after some steps of Adam, and the losses by objective."""
    weighting, optimizer = fixed(dict.fromkeys(gradients, 1.0)), optax.adam(rate)
    state = init_state(meta, weighting, optimizer, jax.random.key(1))
    state, metrics = make_step(gradients, weighting, optimizer, steps, steps_per_call=steps)(
        state, data
    )
    return state.params["meta"], {name: metrics[f"{name}/loss"] for name in gradients}


@pytest.mark.slow
def test_arrays_of_ones_own(tmp_path, monkeypatch, capsys):
    """Faults: the example does not run, learns nothing, or does not resume."""
    monkeypatch.chdir(tmp_path)
    found = example("arrays of one's own")
    assert found["right"].shape == (6,)
    assert found["right"][-1] > 0.8 > 0.5 > found["right"][0]
    assert (tmp_path / "runs" / "my_arrays" / "metrics.jsonl").read_text().count("\n") == 2
    capsys.readouterr()
    again = example("arrays of one's own")
    assert "already finished" in capsys.readouterr().out
    np.testing.assert_array_equal(again["right"], found["right"])


LENGTHS = Lengths(text=12, pair=16, name=4)


def shop(name: str, *things: str) -> Domain:
    """Products of three colours, which their texts say and their attributes too."""
    return Domain(
        name,
        tuple(
            Product(f"{thing}{colour}", f"a {colour} {thing}", attributes={"colour": colour})
            for thing in things
            for colour in ("red", "green", "blue")
        ),
    )


@pytest.mark.slow
def test_a_task_is_a_file_and_a_line(monkeypatch):
    """Faults: the guide asks about the types that it came with alone; a task of one's own cannot be
    trained, scored, adapted or picked examples for without touching another file."""
    made = example("a task")
    description, task = made["Description"], made["COLOUR"]
    monkeypatch.setitem(TASKS, task.name, task)  # pyright: ignore
    furniture, lamps = shop("furniture", "chair", "table", "bed", "desk"), shop("lamps", *"abc")
    texts = [one.title for domain in (furniture, lamps) for one in domain.products]
    tokenizer = Tokenizer.train(texts * 2, 300)
    reading = Reading(TextReader(tokenizer), LENGTHS, False, 4)
    encoder = transformer(tokenizer.size, 8, 1, 2, 12, dropout=0.0, channels=())
    model, shape = guide_model(encoder, way=3), Shape(way=3, shots=2, queries=3, candidates=None)

    assert task_distributions(model, [Domain("bare")], reading, shape, [task.name]) == {}
    distribution = task_distributions(model, [furniture], reading, shape, [task.name])[task.name]
    gradients = {
        task.name: episodic(
            distribution, joint(distribution.problem), meta_batch_size=2, shots=(1, 2)
        )
    }
    meta = {"params": init_params(model, jax.random.key(0))}
    data = {task.name: jax.tree.map(jnp.asarray, distribution.data)}
    meta, losses = trained(gradients, meta, data, steps=60, rate=0.03)
    assert losses[task.name][-1] < 0.5 * losses[task.name][0]

    guide = Guide(
        model,
        Reading(TextReader(tokenizer), LENGTHS, model.image, 4),
        {task.name: Serving(meta, "head-only", 0.1, 2)},
    )
    adapted = guide.adapt(lamps, shots=2)
    asked = [description(colour, f"a {colour} a") for colour in ("green", "red", "blue")]
    found: Any = adapted.predict(asked)
    assert [one.colour for one in found] == ["green", "red", "blue"]
    assert len(adapted.adapted[task.name].chosen) == 6
    picked = [description(f"my {c}", f"a {c} b", c) for c in ("red", "green", "blue")]
    by_hand = guide.adapt(lamps, support=picked).adapted[task.name]
    assert by_hand.chosen == ("my red", "my green", "my blue")
    with pytest.raises(ValueError, match="Histories or Descriptions of one type; got Description"):
        adapted.predict([asked[0], lamps.products[0]])

    # Three things of each colour: two to adapt to, one to ask about.
    distribution = task_distributions(model, [lamps], reading, shape, [task.name])[task.name]
    keys = episode_keys(0, "test", 2)
    learners = {"joint": lambda rate: joint(distribution.problem)}
    raw = evaluator(distribution, learners, chunk=2).run(
        meta, distribution.data, 0, 2, keys, {"joint": 1.0}
    )
    methods = {"joint": {name: leaf[None] for name, leaf in raw["joint"].items()}}
    cells = {2: drawn(distribution, distribution.data, 0, 2, keys)}
    for name, shots, outcome in task.baselines([furniture], lamps, reading, {}, cells):
        assert shots == 2
        methods[name] = outcome
    values = {}
    for method, outcome in methods.items():
        cell = {"table": "t", "method": method, "domain": "lamps", "shots": 2}
        rows, _ = cells_to_rows(outcome, scoring=task.scoring, **cell)
        values |= {(method, row.metric): row.value for row in rows}
    assert set(values) == {
        (method, metric) for method in ("joint", "majority") for metric in ("accuracy", "macro_f1")
    }
    assert values["joint", "accuracy"] == 1 > values["majority", "accuracy"]


def test_a_source_is_a_file_and_an_entry(monkeypatch, tmp_path):
    """Faults: a source is found by a table that its entry does not reach; the paper's entry is not
    one; what the reader of catalogues refuses comes in by another door."""
    name = "reviews_csv"
    module = ModuleType(f"{sources.__name__}.{name}")
    example("a source", vars(module))
    found = re.search(rf'`("{name}": .*?)`', PAPER.read_text("utf-8"))
    assert found is not None
    data = {"world": name, "folder": str(tmp_path)}
    data |= {"sources": (), "validation": ("books",), "held_out": ("toys",)}
    config = FrozenConfigDict({"data": data})
    with pytest.raises(ConfigError, match="world=reviews_csv: no such world"):
        sources.read(config, tmp_path)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for field, ranges in eval(f"{{{found[1]}}}", {"text": text}).items():
        monkeypatch.setitem(sources.FIELDS, field, ranges)  # pyright: ignore

    table = tmp_path / "reviews.csv"
    lines = ["domain,text,stars", 'toys,"It broke, at once.",1', "books,Fine,5", "phones,好,4.5"]
    table.write_text("\n".join(lines), "utf-8")
    parts = sources.read(config, tmp_path)
    assert parts.held_out == (Domain("toys", reviews=(Review("r1", "It broke, at once.", 1.0),)),)
    assert [one.name for one in (*parts.sources, *parts.validation)] == ["phones", "books"]
    table.write_text("\n".join([*lines, "phones,So so,7"]), "utf-8")
    with pytest.raises(CatalogueError, match=r"domain phones: reviews\[1\]: field 'stars'"):
        sources.read(config, tmp_path)


@pytest.mark.slow
def test_an_encoder_is_a_file():
    """Faults: the guide or a head knows its encoder; the embeddings get no gradient."""
    domain = Domain(
        "shop",
        reviews=tuple(
            Review(f"{i}", f"{word} {i}", stars=star)
            for i in range(4)
            for word, star in (("bad", 1.0), ("good", 5.0))
        ),
    )
    tokenizer = Tokenizer.train([review.text for review in domain.reviews] * 2, 300)
    model = guide_model(example("an encoder")["bag"](tokenizer.size, width=8, length=12), way=3)
    reading, shape = Reading(TextReader(tokenizer), LENGTHS, False, 4), Shape(3, 2, 4, None)
    distribution = task_distributions(model, [domain], reading, shape, ["sentiment"])["sentiment"]
    params = init_params(model, jax.random.key(0))
    tokens = jnp.asarray(tokenizer.encode(["good", "bad"], 12).tokens)
    encoding: Any = model.apply({"params": params}, tokens, method="encode")
    assert encoding.vector.shape == (2, 8) and encoding.states.shape == (2, 12, 8)
    logits: Any = model.apply({"params": params}, encoding.states, method="language_logits")
    assert logits.shape == (2, 12, tokenizer.size)

    episode = distribution.sample(
        jax.tree.map(jnp.asarray, distribution.data), 0, 2, jax.random.key(1)
    )
    objective = joint(distribution.problem).objective
    slope = jax.jit(jax.value_and_grad(lambda meta: objective(meta, episode, None, 0.0)[0]))
    before, gradient = slope({"params": params})
    assert np.abs(gradient["params"]["text"]["embedding"]["embedding"]).max() > 0
    stepped = jax.tree.map(lambda leaf, change: leaf - 0.1 * change, params, gradient["params"])
    assert slope({"params": stepped})[0] < before


@pytest.mark.slow
def test_a_method_is_an_entry(monkeypatch):
    """Faults: the worked example is no method; what it was trained as is not what it adapts by; the
    guide has no grid to choose its learning rate from."""
    name = "maml-momentum"
    monkeypatch.setitem(METHODS, name, None)  # pyright: ignore
    method = example("a method")["METHODS"][name]
    problem = regression(MLP((16,)))
    sample = wave_sampler(shots=5, queries=10)
    distribution = TaskDistribution(("waves",), waves(), sample, problem)
    learner = method.train(problem, Settings(steps=2, learning_rate=0.01))
    meta = learner.init(jax.random.key(0))
    gradients = {"waves": episodic(distribution, learner, meta_batch_size=8, shots=(5,))}
    after, _ = trained(gradients, meta, {"waves": distribution.data}, steps=100, rate=0.01)

    test = method.adaptation.tuned_to(problem, 0.01, steps=2)
    episodes = jax.vmap(partial(sample, distribution.data, 0, 5))(
        jax.random.split(jax.random.key(2), 20)
    )

    @jax.jit
    def loss(meta):
        def one(episode):
            adapted, _ = test.adapt(meta, episode.support, episode.context, None)
            return test.loss(adapted, episode.query, episode.context)[0]

        return jax.vmap(one)(episodes).mean()

    assert loss(after) < 0.9 * loss(meta)
    once = jax.tree.map(lambda leaf: leaf[0], episodes)
    both = [
        one.adapt(meta, once.support, once.context, None)[0]
        for one in (test, method.at_test(problem, Settings(steps=2, learning_rate=0.01)))
    ]
    jax.tree.map(np.testing.assert_array_equal, *both)
    rates = guide_bazaar.get_config().adapt.learning_rates
    assert _grid(FrozenConfigDict({"learning_rates": rates}), method.adaptation) == rates


@pytest.mark.slow
def test_a_learned_optimizer_learns():
    """Faults: the worked example does not run, or what it trains is no better than its start."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), jax.numpy_dtype_promotion("standard"):
        example("a learned optimizer")
    found = re.fullmatch(r"before (\S+), after (\S+)\n", said.getvalue())
    assert found and float(found[2]) < float(found[1]) - 0.3


@pytest.mark.slow
def test_a_learner_is_one_function():
    """Faults: the paper's learner adapts no head, starts from the trained one, or its meta-gradient
    does not reach the body."""
    made = example("a learner")
    learner, meta, episode = made["learner"], made["meta"], made["episode"]
    norms = {name: float(optax.tree.norm(leaf)) for name, leaf in made["slope"]["params"].items()}
    assert norms["head"] == 0 < norms["body"]
    adapted, _ = learner.adapt(meta, episode.support, (), None)
    moved = {**meta["params"], "head": jax.tree.map(jnp.ones_like, meta["params"]["head"])}
    again, _ = learner.adapt({"params": moved}, episode.support, (), None)
    jax.tree.map(np.testing.assert_array_equal, adapted["head"], again["head"])
    jax.tree.map(np.testing.assert_array_equal, adapted["body"], meta["params"]["body"])
    assert optax.tree.norm(adapted["head"]) > 0
