import copy
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

import metaguide
from metaguide import run_config
from metaguide.data.catalogue import (
    Domain,
    Interaction,
    Product,
    Question,
    Review,
    checked_domain,
    read_domain,
    write_domain,
)
from metaguide.data.encoding import Lengths, TextReader, product_rows
from metaguide.data.histories import History, histories
from metaguide.data.tokenizer import Tokenizer
from metaguide.guide import Guide, asked, model_of
from metaguide.models.guide import init_params
from metaguide.models.heads import with_slots
from metaguide.objectives.weighting import fixed
from metaguide.optimizers import rule_of, stored
from metaguide.run_config import RunConfig
from metaguide.tasks import Adapted, Reading, Serving
from metaguide.tasks.question_answering import question_rows
from metaguide.tasks.serving import ask
from metaguide.training.checkpoint import CheckpointError, save
from metaguide.training.program import compilations
from metaguide.training.step import init_state
from metaguide.types import Learner

SHOTS, RATE, STEPS = 2, 0.3, 60
RUN = RunConfig(
    width=8,
    layers=1,
    heads=2,
    dropout=0.1,
    channels=(2, 4),
    image=False,
    way=3,
    text_tokens=8,
    pair_tokens=16,
    name_tokens=4,
    max_answer_tokens=4,
)
WORDS = {"phone": "calls", "novel": "tells", "shoe": "walks"}
PRODUCTS = tuple(
    Product(f"{category}{i}", f"it {verb} {i}", category=category)
    for category, verb in WORDS.items()
    for i in range(3)
)
DOMAIN = Domain(
    "shop",
    PRODUCTS,
    reviews=tuple(
        Review(f"r{i}", f"{('bad', 'good')[i % 2]} {i}", stars=1.0 + 4.0 * (i % 2))
        for i in range(6)
    ),
    questions=tuple(
        Question(f"q{i}", "who?", f"it is {who} I see", (6, 6 + len(who)))
        for i, who in enumerate(("Ann", "Bob", "Eve"))
    ),
    interactions=(Interaction("u", "phone0", 2.0), Interaction("u", "shoe1", 1.0)),
)
ONLY_PRODUCTS = Domain("shop", PRODUCTS)


def spoiled(one, **fields):
    """A copy with fields of other types, as where no test looks at the types."""
    one = copy.copy(one)
    for name, value in fields.items():
        object.__setattr__(one, name, value)
    return one


def drawn(model, seed):
    """Parameters drawn by numpy: the compilation of `init_params` would take most of this file."""
    shapes = jax.eval_shape(partial(init_params, model), jax.random.key(0))
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        if leaf.ndim < 2:
            return jnp.full(leaf.shape, float(path[-1].key == "scale"))
        return jnp.asarray(rng.normal(size=leaf.shape) / leaf.shape[-2] ** 0.5, leaf.dtype)

    return jax.tree.map_with_path(draw, shapes)


OPTIMIZER = rule_of("lstm", {"hidden": 2, "layers": 1, "scale": 10.0})


def theta(seed):
    """Parameters of an optimizer that holds still, as no gradient descent does."""
    made = OPTIMIZER.init(jax.random.key(seed))
    return {**made, "output": jnp.zeros_like(made["output"])}


def write_run(folder, tokenizer, config=RUN, serving=None, seeds=None, optimizers=()):
    """A run as the stages leave it: what was learned, what it says of itself, its tokenizer.

    It is that of a stage where nothing is said of what serves. `optimizers` are the folders where a
    learned optimizer was trained along.
    """
    folder.mkdir(exist_ok=True)
    tokenizer.save(folder / "tokenizer.json")
    if serving is None:
        learner = "lstm-head" if "." in optimizers else "maml"
        serving = run_config.stage_serving(learner, RATE, STEPS)
        config = dataclasses.replace(config, stage="metatrain", learner=learner, seed=0)
    run_config.write(dataclasses.replace(config, serving=serving), folder)
    for place, seed in (seeds or {".": 0}).items():
        meta = {"params": drawn(model_of(RUN, tokenizer), seed)}
        if place in optimizers:
            meta["rule"] = theta(seed)
            (folder / place).mkdir(exist_ok=True)
            # As where a run was killed between the file and the checkpoint.
            stored.save(folder / place / stored.FILE, OPTIMIZER, theta(seed + 10), "")
        state = init_state(meta, fixed({"a": 1.0}), optax.adam(0.1), jax.random.key(0))
        save(folder / place / "checkpoints", state)
    return folder


@pytest.fixture(scope="module")
def tokenizer():
    texts = [p.title for p in PRODUCTS] + [r.text for r in DOMAIN.reviews] + [*WORDS]
    texts += [f"{q.question} {q.text}" for q in DOMAIN.questions]
    return Tokenizer.train(texts * 2, 340)


@pytest.fixture(scope="module")
def run(tokenizer, tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "maml", tokenizer)


@pytest.fixture(scope="module")
def guide(run):
    return metaguide.load(run)


@pytest.fixture(scope="module")
def adapted(guide):
    # Another method, and one gradient through the encoder less to compile.
    sentiment = guide.serving["sentiment"]._replace(method="head-only")
    serving = {**guide.serving, "sentiment": sentiment}
    return dataclasses.replace(guide, serving=serving).adapt(DOMAIN, shots=SHOTS)


@pytest.fixture(scope="module")
def probe(tokenizer):
    """A guide held in memory, whose categories are told apart by a ridge on frozen features."""
    model = model_of(RUN, tokenizer)
    serving = {"classification": Serving({"params": drawn(model, 0)}, "ridge", 0.1, 0)}
    return Guide(model, Reading(TextReader(tokenizer), Lengths(8, 16, 4), model.image, 4), serving)


@pytest.mark.slow
def test_categories_are_those_of_the_examples_adapted_to(adapted):
    """Faults: labels or slots are mixed up between support and answer; adaptation does nothing;
    probabilities are under the names of other categories."""
    chosen = [p for p in PRODUCTS if p.id in adapted.adapted["classification"].chosen]
    assert len(chosen) == SHOTS * len(WORDS) == len({p.id for p in chosen})
    for product, found in zip(chosen, adapted.predict(chosen), strict=True):
        assert found.category == product.category
        assert set(found.probabilities) == set(WORDS)
        assert found.category == max(found.probabilities, key=found.probabilities.get)
        assert sum(found.probabilities.values()) == pytest.approx(1, abs=1e-5)


def test_sentiment_is_that_of_the_examples_adapted_to(adapted):
    """Faults: positive is the other class; stars do not move with what was learned."""
    chosen = [r for r in DOMAIN.reviews if r.id in adapted.adapted["sentiment"].chosen]
    assert len(chosen) == 2 * SHOTS
    for review, found in zip(chosen, adapted.predict(chosen), strict=True):
        assert found.sentiment == ("positive" if review.label else "negative")
        assert (found.positive > 0.5) == (found.sentiment == "positive")
        assert 1 <= found.stars <= 5 and (found.stars > 3) == (review.stars > 3)


def test_answers_stand_in_the_passage(adapted):
    """Faults: the span is in tokens, off by one, or in the question; the answers that were adapted
    to are not found."""
    assert len(adapted.adapted["questions"].chosen) == SHOTS
    for question, found in zip(DOMAIN.questions, adapted.predict(DOMAIN.questions), strict=True):
        if question.id in adapted.adapted["questions"].chosen:
            assert found.span == question.answer
        if found.span is not None:
            assert found.text == question.text[slice(*found.span)] != ""


@pytest.mark.slow
def test_a_long_passage_is_adapted_to_and_asked_about_whatever_the_seed(tokenizer):
    """Faults: adapting fails for the seeds that draw the long passage; an answer behind the tokens
    kept is never given; its span is counted in the window."""
    model = model_of(RUN, tokenizer)
    serving = {"questions": Serving({"params": drawn(model, 0)}, "head-only", RATE, 2)}
    guide = Guide(model, Reading(TextReader(tokenizer), Lengths(8, 16, 4), model.image, 4), serving)
    text = "I see it. " * 100 + "it is Bob I see"
    long = Question("long", "who?", text, (1006, 1009))
    domain = Domain("shop", questions=(*DOMAIN.questions[:1], long))
    for seed in range(3):
        adapted = guide.adapt(domain, shots=1, seed=seed)
        assert len(adapted.adapted["questions"].chosen) == 1
    adapted = guide.adapt(domain, shots=2)
    assert set(adapted.adapted["questions"].chosen) == {"q0", "long"}
    for answer in adapted.predict(domain.questions):
        assert (answer.span is None) == (answer.text is None)
    rows = question_rows([long], tokenizer, 16, "shop")
    window = int(np.flatnonzero(rows["start"][0])[0])
    said = {
        "window": np.array([window]),
        "start": rows["start"][:, window],
        "end": rows["end"][:, window],
    }
    learner = adapted.adapted["questions"].learner._replace(
        predict=lambda *_: jax.tree.map(jnp.asarray, said)
    )
    told = {"questions": adapted.adapted["questions"]._replace(learner=learner)}
    (answer,) = dataclasses.replace(adapted, adapted=told).predict([long])
    assert answer == ((1006, 1009), "Bob")


@pytest.mark.slow
def test_rankings_leave_out_what_the_user_has(adapted):
    """Faults: a product is missing or twice, a known one is recommended, a long history is cut to
    the shots, padding of a short one is taken for product 0, a product that was taken again counts
    at another time than in training."""
    known = [product.id for product in PRODUCTS]
    users = [
        History("long", tuple(known[3:7])),
        History("end", tuple(known[5:7])),
        History("one", (known[8],)),
        History("none", ()),
        History("again", (known[0], known[4], known[0], known[4], known[0])),
        History("first", (known[0], known[4])),
    ]
    rankings = adapted.predict(users)
    for user, ranking in zip(users, rankings, strict=True):
        assert ranking.user == user.user
        assert sorted((*ranking.products, *set(user.products))) == sorted(known)
    long, end, one, none, again, first = (ranking.products for ranking in rankings)
    assert again == first  # what is taken again counts once, as it does in training
    assert long != tuple(product for product in end if product not in known[3:7])
    assert one != tuple(product for product in none if product != known[8])


@pytest.mark.slow
def test_who_asks_again_waits_for_no_compiler(adapted):
    """Fault: a prediction makes its program anew at each call."""
    compiled = []

    def listen(name, *_, **__):
        if "backend_compile" in name:
            compiled.append(name)

    batches = PRODUCTS, DOMAIN.reviews, DOMAIN.questions, [History("one", ("shoe1",))]
    for batch in batches:
        adapted.predict(batch)
    jax.monitoring.register_event_duration_secs_listener(listen)
    for batch in batches:
        adapted.predict(batch)
    assert not compiled


@pytest.mark.slow
def test_labels_that_examples_carry_are_not_read(adapted):
    """Faults: a prediction leaks the label of what is predicted, or fails over it, such as over an
    answer beyond the tokens that are read."""
    products = [dataclasses.replace(p, category=None) for p in PRODUCTS]
    reviews = [dataclasses.replace(r, stars=6.0 - r.stars) for r in DOMAIN.reviews]
    asked = [dataclasses.replace(q, text=q.text + " and so on" * 9) for q in DOMAIN.questions]
    questions = [dataclasses.replace(q, answer=(len(q.text) - 2, len(q.text))) for q in asked]
    for plain, other in (
        (PRODUCTS, products),
        (DOMAIN.reviews, reviews),
        (asked, questions),
    ):
        assert adapted.predict(plain) == adapted.predict(other)


@pytest.mark.slow
def test_zero_shots_ask_the_guide_as_it_is(guide):
    """Faults: zero shots adapt to something; parameters are copied; every user gets the same
    ranking, though to read a history is not to adapt."""
    zero = guide.adapt(DOMAIN, shots=0)
    for task, adapted in zero.adapted.items():
        meta = guide.serving[task].meta
        assert adapted.state is (meta if task == "recommendation" else meta["params"])
        assert adapted.chosen == ()
    one, other = zero.predict([History("a", ("phone0",)), History("b", ("shoe1",))])
    both = {"phone0", "shoe1"}
    assert [p for p in one.products if p not in both] != [
        p for p in other.products if p not in both
    ]


@pytest.mark.slow
def test_the_same_domain_and_seed_give_the_same_guide(probe, tmp_path):
    """Faults: adaptation depends on a clock or a global seed; the seed is not heard; a folder is
    another domain than the one that was written to it."""
    write_domain(ONLY_PRODUCTS, tmp_path / "shop")
    found = [
        probe.adapt(domain, shots=SHOTS, seed=seed)
        for domain, seed in ((ONLY_PRODUCTS, 0), (tmp_path / "shop", 0), (ONLY_PRODUCTS, 1))
    ]
    first, again, other = (one.predict(PRODUCTS) for one in found)
    assert first == again != other
    chosen = [one.adapted["classification"].chosen for one in found]
    assert chosen[0] == chosen[1] != chosen[2]
    assert set(found[0].adapted) == {"classification"}


@pytest.mark.slow
def test_a_loaded_guide_is_the_one_that_was_saved(run, guide, probe):
    """Faults: parameters, tokenizer or lengths are lost or swapped between save and load."""
    for loaded in (guide, metaguide.load(str(run))):
        for task in ("classification", "sentiment", "questions", "recommendation"):
            serving = loaded.serving[task]
            assert serving[2:] == (RATE, STEPS, None, True)
            assert serving.method == ("head-only" if task == "recommendation" else "maml")
            saved = probe.serving["classification"].meta
            jax.tree.map(np.testing.assert_array_equal, serving.meta, saved)
        assert (loaded.model, loaded.reading.lengths, loaded.reading.max_answer_tokens) == (
            probe.model,
            probe.reading.lengths,
            probe.reading.max_answer_tokens,
        )
    same = dataclasses.replace(guide, serving={"classification": Serving(*saved_as_probe(guide))})
    expected, found = (one.adapt(ONLY_PRODUCTS, SHOTS).predict(PRODUCTS) for one in (probe, same))
    assert found == expected


@pytest.mark.slow
def test_a_run_folder_of_before_is_loaded(run, guide, tmp_path):
    """Fault: a guide that was trained before run folders had a version is lost."""
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    (folder / run_config.FILE).unlink()
    model = {name: getattr(RUN, name) for name in ("width", "layers", "heads", "dropout", "way")}
    config = {
        "model": {**model, "channels": [2, 4], "image": False},
        "text": {"text": 8, "pair": 16, "name": 4},
        "episodes": {"longest": 4},
        "metatrain": {"inner_rate": RATE},
        "adapt": {"steps": STEPS},
    }
    (folder / "config.json").write_text(json.dumps(config))
    stage = {"stage": "metatrain", "learner": "maml", "seed": 0}
    (folder / "stage.json").write_text(json.dumps(stage))
    loaded = metaguide.load(folder)
    assert (loaded.model, loaded.reading.lengths, loaded.reading.max_answer_tokens) == (
        *(guide.model, guide.reading.lengths, guide.reading.max_answer_tokens),
    )
    for task, serving in guide.serving.items():
        assert loaded.serving[task][1:] == serving[1:]
        jax.tree.map(np.testing.assert_array_equal, loaded.serving[task].meta, serving.meta)


def saved_as_probe(guide):
    return guide.serving["classification"].meta, "ridge", 0.1, 0


@pytest.mark.slow
def test_a_run_says_which_method_serves_what(tokenizer, tmp_path):
    """Faults: a task is served by the parameters of another method, or by one that is not named."""
    serving = {
        "classification": run_config.Served("a", "prototypical", 0.0, 0),
        "sentiment": run_config.Served("b", "logistic", 1.0, 0),
    }
    guide = metaguide.load(
        write_run(tmp_path / "run", tokenizer, serving=serving, seeds={"a": 1, "b": 2})
    )
    assert set(guide.serving) == set(serving)
    for task, seed in (("classification", 1), ("sentiment", 2)):
        expected = {"params": drawn(guide.model, seed)}
        jax.tree.map(np.testing.assert_array_equal, guide.serving[task].meta, expected)
    adapted = guide.adapt(dataclasses.replace(DOMAIN, products=()), shots=3)
    found = adapted.predict(DOMAIN.reviews)
    assert [one.sentiment for one in found] == ["negative", "positive"] * 3
    assert all(one.stars is None for one in found)


@pytest.mark.slow
def test_a_learned_optimizer_serves(tokenizer, tmp_path):
    """Faults: the optimizer is lost on the way, that of another folder or as it was before its
    training; gradient descent serves in its place; its file is needed where there is none."""
    serving = {
        "sentiment": run_config.Served("a", "lstm-head", 1.0, 1),
        "questions": run_config.Served("b", "head-only", 1.0, 1),
    }
    seeds = {"a": 1, "b": 2}
    run = write_run(tmp_path / "run", tokenizer, serving=serving, seeds=seeds, optimizers=("a",))
    guide = metaguide.load(run)
    found = guide.serving["sentiment"]
    assert found.rule.name == OPTIMIZER.name
    expected = {"params": drawn(guide.model, 1), "rule": theta(1)}
    jax.tree.map(np.testing.assert_array_equal, found.meta, expected)
    assert guide.serving["questions"].rule is None and set(guide.serving["questions"].meta) == {
        "params"
    }
    adapted = guide.adapt(Domain("shop", reviews=DOMAIN.reviews), shots=SHOTS)
    after = adapted.adapted["sentiment"].state["sentiment"]
    jax.tree.map(np.testing.assert_array_equal, after, found.meta["params"]["sentiment"])


@pytest.mark.slow
def test_a_stage_that_trained_an_optimizer_is_served_by_it(tokenizer, tmp_path):
    """Faults: the folder of a stage is served by gradient descent, though it learned to descend;
    the updates that it learned are multiplied by the rate of gradient descent."""
    guide = metaguide.load(write_run(tmp_path / "lstm", tokenizer, optimizers=(".",)))
    assert {serving.method for serving in guide.serving.values()} == {"lstm-head"}
    assert guide.serving["recommendation"].rule is not None
    assert {serving.learning_rate for serving in guide.serving.values()} == {1.0}


@pytest.mark.slow
def test_folders_that_hold_no_run_are_errors(run, tokenizer, tmp_path):
    """Fault: a wrong folder ends in a traceback of a library, or a wrong model is loaded."""
    with pytest.raises(CheckpointError, match="nowhere/run_config.json: no such file; give the f"):
        metaguide.load(tmp_path / "nowhere")
    wide = dataclasses.replace(RUN, width=16)
    with pytest.raises(CheckpointError, match="another model: .*width|another model: params.meta"):
        metaguide.load(write_run(tmp_path / "wide", tokenizer, config=wide))
    spoiled = write_run(tmp_path / "spoiled", tokenizer, seeds={"elsewhere": 0})
    with pytest.raises(CheckpointError, match="no checkpoint"):
        metaguide.load(spoiled)
    (spoiled / "run_config.json").write_text("{")
    with pytest.raises(CheckpointError, match="run_config.json: not JSON"):
        metaguide.load(spoiled)
    run = write_run(tmp_path / "other", tokenizer, dataclasses.replace(RUN, vocabulary=299))
    with pytest.raises(CheckpointError, match="tokenizer.json: it has .* ids, .* with 299; take"):
        metaguide.load(run)


def test_more_categories_than_slots_are_told_apart(probe, guide):
    """Faults: a shop with more categories than the guide has slots is refused; a category beyond
    the slots is never answered, or one of the slots is preferred before anything adapts."""
    more = {**WORDS, "good": "good", "bad": "bad"}
    products = tuple(
        Product(f"{name}{i}", f"it {verb}", category=name)
        for name, verb in more.items()
        for i in range(3)
    )
    serving = {"classification": probe.serving["classification"]._replace(method="prototypical")}
    prototypes = dataclasses.replace(probe, serving=serving)
    found = prototypes.adapt(Domain("shop", products), shots=3).predict(products)
    assert [one.category for one in found] == [product.category for product in products]
    params = guide.serving["classification"].meta["params"]
    trained = {**params, "classification": {**params["classification"], "bias": jnp.arange(3.0)}}
    assert with_slots(trained, 3) == trained
    np.testing.assert_array_equal(with_slots(trained, 5)["classification"]["bias"], np.ones(5))


@pytest.mark.slow
def test_what_lacks_examples_is_said_by_name(probe):
    """Faults: one category with few examples stops all tasks; it is named by a number; what is
    lacking is passed over in silence, or a domain without labels gives nothing without a word."""
    rare = Product("x", "it rolls", category="wheel")
    message = "domain shop, classification: category 'wheel' has 1 example, fewer than 3 shots"
    with pytest.warns(UserWarning, match=message):
        adapted = probe.adapt(Domain("shop", (*PRODUCTS, rare)), shots=3)
    assert len(adapted.adapted["classification"].chosen) == 10
    assert adapted.notes["classification"] == (message.split(": ", 1)[1],)
    assert adapted.predict([rare])[0].category == "wheel"
    blank = tuple(dataclasses.replace(product, category=None) for product in PRODUCTS)
    with pytest.warns(UserWarning, match="classification: no product has a category"):
        nothing = probe.adapt(Domain("shop", blank))
    with pytest.raises(ValueError, match="no answers of classification: no product has a category"):
        nothing.predict(PRODUCTS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        whole = probe.adapt(ONLY_PRODUCTS, shots=3)
    assert set(whole.notes) == {"sentiment", "questions", "recommendation"}


def test_what_has_no_examples_answers_as_it_was_trained(guide):
    """Faults: questions are refused without question examples though zero-shot exists; reviews of
    one sentiment teach that all are of it."""
    good = tuple(review for review in DOMAIN.reviews if review.label)
    with pytest.warns(UserWarning, match="sentiment: sentiment 'negative' has no examples"):
        adapted = guide.adapt(Domain("shop", reviews=good), shots=2)
    assert adapted.adapted["questions"].chosen == adapted.adapted["sentiment"].chosen == ()
    assert adapted.notes["questions"] == (
        "no examples to adapt to",
        "it answers as it was trained, without adapting",
    )
    assert adapted.notes["recommendation"] == ("there are no products to rank; add them",)
    zero = guide.adapt(DOMAIN, shots=0)
    for batch in (DOMAIN.questions, DOMAIN.reviews):
        assert adapted.predict(batch) == zero.predict(batch)


@pytest.mark.slow
def test_what_diverges_answers_as_it_was_trained(probe):
    """Fault: probabilities are NaN where a rate is too large for the domain."""
    learnt = probe.serving["classification"]
    wild = {"classification": learnt._replace(method="head-only", learning_rate=3e38, steps=9)}
    with pytest.warns(UserWarning, match=r"head-only diverged \(rate 3e\+38, 9 steps\)"):
        adapted = dataclasses.replace(probe, serving=wild).adapt(ONLY_PRODUCTS, shots=1)
    assert adapted.predict(PRODUCTS) == probe.adapt(ONLY_PRODUCTS, shots=0).predict(PRODUCTS)
    users = {"recommendation": learnt._replace(method="head-only", learning_rate=3e38, steps=9)}
    adapted = dataclasses.replace(probe, serving=users).adapt(ONLY_PRODUCTS, shots=1)
    with pytest.raises(
        ValueError, match="the scores of user 'u' are not finite: adaptation diverg"
    ):
        adapted.predict([History("u", ("phone0", "shoe1"))])


@pytest.mark.parametrize("name", ["finite", "logits"])
def test_an_answer_that_is_not_finite_is_an_error(name):
    """Fault: span scores that are not finite are served as "no answer"."""
    good = {"start": np.zeros(2, np.int32), name: np.ones(2, bool if name == "finite" else float)}
    bad = {**good, name: np.array([1, 0 if name == "finite" else np.nan], good[name].dtype)}
    for outputs in (good, bad):
        learner = Learner(*(lambda *_, found=outputs: found for _ in Learner._fields))
        adapted = Adapted(learner, {}, {}, ())
        if outputs is good:
            assert set(ask(adapted, {"tokens": np.zeros((2, 4))})) == set(good)
            continue
        with pytest.raises(ValueError, match=r"(span scores|logits) are not finite: it diverged"):
            ask(adapted, {"tokens": np.zeros((2, 4))})


def test_support_may_be_picked_by_hand(probe):
    """Faults: what was picked is drawn from, or mixed with a draw; an example outside the domain,
    or one that nothing can be learned from, is passed over."""
    picked = [PRODUCTS[8], PRODUCTS[0], Product("new", "it walks too", category="boot")]
    with pytest.warns(UserWarning, match="category 'novel' has no examples"):
        adapted = probe.adapt(ONLY_PRODUCTS, shots=2, support=iter(picked))
    assert adapted.adapted["classification"].chosen == ("shoe2", "phone0", "new")
    assert adapted.categories == ("boot", "novel", "phone", "shoe")
    assert [one.category for one in adapted.predict(picked)] == ["shoe", "phone", "boot"]
    for wrong, message in (
        ([Product("x", "x")], "'x' has no category"),
        ([Review("x", "x", stars=3.0)], "'x' has no sentiment or stars but 3"),
        ([History("u", ())], "support holds a History"),
        ("phone0", "support is 'phone0'; give a list"),
    ):
        with pytest.raises(ValueError, match=message):
            probe.adapt(ONLY_PRODUCTS, support=wrong)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shots": 2.5}, "shots is 2.5; give a whole number"),
        ({"shots": "5"}, "shots is '5'; give a whole number"),
        ({"shots": True}, "shots is True; give a whole number"),
        ({"shots": -1}, "shots is -1; it has to be 0 or more"),
        ({"seed": -1}, "seed is -1; it has to be 0 or more"),
        ({"seed": None}, "seed is None; give a whole number"),
        ({"domain": None}, "domain is None; give the folder of one, or a Domain"),
        ({"domain": list(PRODUCTS)}, "domain is .*; give the folder of one, or a Domain"),
        ({"domain": spoiled(DOMAIN, products=PRODUCTS[0])}, "products is Product.*give a tuple"),
        ({"domain": spoiled(DOMAIN, products=DOMAIN.reviews)}, r"products\[0\] is a Review; give"),
        ({"domain": Domain("shop", (spoiled(PRODUCTS[0], title=None),))}, "'title' is missing"),
        ({"domain": Domain("shop", (Product("1", "a"),) * 2)}, "'id' is '1', which .*has too"),
        (
            {"domain": Domain("shop", (spoiled(PRODUCTS[0], attributes={"ram": 8}),))},
            "field 'attributes' has the entry 'ram'",
        ),
        (
            {"domain": Domain("shop", (Product("1", "a", image=np.zeros((32, 32), np.uint8)),))},
            r"field 'image' is uint8 \[32, 32\]; give RGB",
        ),
        (
            {"domain": Domain("shop", (Product("1", "a", image=np.full((32, 32, 3), np.nan)),))},
            "field 'image' has floats that are NaN or not from 0 to 1",
        ),
    ],
)
def test_arguments_that_are_wrong_are_one_error_before_anything_compiles(
    probe, arguments, message, monkeypatch
):
    """Fault: a wrong argument ends in a raw error, late and deep inside."""
    monkeypatch.setattr("metaguide.tasks.serving.adaptation_of", None)
    with pytest.raises(ValueError, match=message) as error:
        dataclasses.replace(probe).adapt(**{"domain": ONLY_PRODUCTS, **arguments})
    assert "\n" not in str(error.value)


def test_pictures_of_any_size_are_read_as_the_reader_does(tmp_path):
    """Faults: a picture of 64 by 64 pixels is a raw error; floats from 0 to 1 are read as black."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8)
    (tmp_path / "shop").mkdir()
    Image.fromarray(pixels).save(tmp_path / "shop" / "a.png")
    row = {"id": "1", "title": "a", "image": "a.png"}
    (tmp_path / "shop" / "products.jsonl").write_text(json.dumps(row))
    (read,) = read_domain(tmp_path / "shop").products
    for given in (pixels, pixels / 255, (pixels / 255).astype(np.float32)):
        product = Product("1", "a", image=given)
        assert checked_domain(Domain("shop", (product,))).products == (read,)
        assert asked([product]) == [read]


@pytest.mark.slow
@pytest.mark.usefixtures("room_for_programs")
def test_batches_of_many_sizes_compile_once(probe):
    """Fault: every new size of a batch compiles anew."""
    adapted = dataclasses.replace(probe).adapt(ONLY_PRODUCTS, shots=2)
    many = [dataclasses.replace(PRODUCTS[i % 9], id=str(i)) for i in range(300)]
    predict = adapted.adapted["classification"].learner.predict
    expected = adapted.predict(many[:16])
    for size in (11, 12, 13):
        assert [one.category for one in adapted.predict(many[:size])] == [
            one.category for one in expected[:size]
        ]
    assert compilations(predict) == 1
    found = adapted.predict(many)
    assert len(found) == 300 and compilations(predict) == 3
    assert [one.category for one in found] == [
        one.category for one in (adapted.predict(many[:9]) * 34)[:300]
    ]


@pytest.mark.slow
@pytest.mark.usefixtures("room_for_programs")
def test_another_domain_of_the_same_sizes_does_not_compile(probe):
    """Fault: each domain that a guide adapts to compiles what the one before has compiled."""
    guide = dataclasses.replace(probe)
    first = guide.adapt(ONLY_PRODUCTS, shots=2)
    other = [dataclasses.replace(p, category=f"a {p.category}") for p in PRODUCTS]
    second = guide.adapt(Domain("other", tuple(other)), shots=2, seed=1)
    for adapted in (first, second):
        adapted.predict(PRODUCTS)
        learner = adapted.adapted["classification"].learner
        assert compilations(learner.adapt) == compilations(learner.predict) == 1


@pytest.mark.slow
def test_the_catalogue_is_encoded_once(guide, monkeypatch):
    """Faults: every call encodes the catalogue anew; users of one call get what other numbers of
    users get; users of different lengths of history are mixed up."""
    read = []
    rows_of = product_rows

    def counted(products, *rest, **options):
        read.append(len(products))
        return rows_of(products, *rest, **options)

    monkeypatch.setattr("metaguide.tasks.recommendation.product_rows", counted)
    adapted = guide.adapt(Domain("shop", PRODUCTS), shots=0)
    read.clear()
    known = [product.id for product in PRODUCTS]
    users = [History(str(i), tuple(known[: (5 * i) % 7])) for i in range(20)]
    together = adapted.predict(users)
    monkeypatch.setattr("metaguide.tasks.recommendation.FLOATS_AT_ONCE", 1)
    apart = adapted.predict(users)
    assert read == [9]
    for user, one, other in zip(users, together, apart, strict=True):
        assert one.user == other.user == user.user
        assert one.products == other.products
        np.testing.assert_allclose(one.scores, other.scores, rtol=1e-4)
        assert one.by == ("history" if user.products else "no history")
        assert (np.diff(one.scores) <= 0).all() and len(one.scores) == len(one.products)


CROWD = """
import resource
from functools import partial
import jax
import numpy as np
from metaguide.data.histories import History
from metaguide.data.catalogue import Domain, Product
from metaguide.data.encoding import Lengths, TextReader
from metaguide.data.tokenizer import Tokenizer
from metaguide.guide import Guide
from metaguide.models.encoder import transformer
from metaguide.tasks import Reading, Serving, guide_model
from metaguide.models.guide import init_params

products = tuple(Product(str(i), f"it calls {i % 7}") for i in range(10_000))
tokenizer = Tokenizer.train([product.title for product in products[:99]], 340)
model = guide_model(transformer(tokenizer.size, 16, 1, 2, 8, channels=()))
shapes = jax.eval_shape(partial(init_params, model), jax.random.key(0))
rng = np.random.default_rng(0)
params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32) / 4, shapes)
serving = {"recommendation": Serving({"params": params}, "head-only", 0.01, 1)}
guide = Guide(model, Reading(TextReader(tokenizer), Lengths(8, 16, 4), model.image, 4), serving)
users = [History(str(i), (str(i), str(2 * i))) for i in range(2_000)]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = guide.adapt(Domain("shop", products), shots=2).predict(users)
assert [len(one.rows) for one in found[:2]] == [9_999, 9_998]
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.slow
def test_many_users_fit_into_memory():
    """Fault: 10,000 users on 10,000 products ask for more than 2 GB; here a fifth of the users,
    each with all products ranked, in a process of its own."""
    run = subprocess.run(
        [sys.executable, "-c", CROWD],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "XLA_FLAGS": os.environ["METAGUIDE_TESTS_XLA_FLAGS"]},
    )
    rankings = 2_000 * 10_000 * 8 / 2**20
    assert float(run.stdout) < 500 + rankings


@pytest.mark.slow
def test_rankings_have_a_top(guide):
    """Faults: the top is not the first of the whole ranking; it is cut where it is no number; what
    has no ranking takes it without a word."""
    adapted = guide.adapt(Domain("shop", PRODUCTS, DOMAIN.reviews), shots=0)
    user = [History("u", ("phone0",))]
    (whole,), (top,) = adapted.predict(user), adapted.predict(user, top=3)
    assert top.products == whole.products[:3] and len(top.scores) == 3
    assert (top.scores == whole.scores[:3]).all() and top != whole == adapted.predict(user)[0]
    for wrong in (0, 2.5, "3"):
        with pytest.raises(ValueError, match="top is"):
            adapted.predict(user, top=wrong)
    with pytest.raises(ValueError, match="top is 3; only rankings"):
        adapted.predict(DOMAIN.reviews, top=3)


def test_a_history_beyond_what_is_read_is_said(guide, monkeypatch):
    """Fault: a long history is cut in silence; what is beyond the cut is recommended again."""
    monkeypatch.setattr("metaguide.tasks.recommendation.LONGEST_HISTORY", 4)
    known = tuple(product.id for product in PRODUCTS)
    adapted = guide.adapt(Domain("shop", PRODUCTS), shots=0)
    with pytest.warns(UserWarning, match="1 histories, such as that of user 'u', .*last 4 are"):
        (found,) = adapted.predict([History("u", known[:6])])
    assert sorted(found.products) == sorted(known[6:])


def test_any_iterable_is_a_batch(probe):
    """Faults: a generator is answered by nothing; one product in the place of a list is a raw
    error, or its fields are read as a batch."""
    adapted = probe.adapt(ONLY_PRODUCTS, shots=1)
    assert adapted.predict(p for p in PRODUCTS) == adapted.predict(PRODUCTS)
    assert adapted.predict(iter(())) == []
    parts = spoiled(ONLY_PRODUCTS, products=(p for p in PRODUCTS))
    assert probe.adapt(parts, shots=1).predict(PRODUCTS) == adapted.predict(PRODUCTS)


def test_what_is_shown_of_a_guide_is_short(probe):
    """Fault: a notebook that shows a guide prints a megabyte of parameters."""
    adapted = probe.adapt(ONLY_PRODUCTS, shots=1)
    for one in (probe, adapted, adapted.domain, adapted.adapted, probe.serving):
        assert len(repr(one)) < 300
    assert repr(adapted) == "<AdaptedGuide to 'shop', 1 shots: classification 3>"
    assert repr(ONLY_PRODUCTS) == "<Domain 'shop': 9 products>"


def test_what_cannot_be_predicted_is_an_error(adapted, probe):
    """Faults: a mixed batch is read as the type of its first; a task that was not adapted to is
    answered anyway; an unknown product is passed over."""
    assert adapted.predict([]) == []
    with pytest.raises(ValueError, match="of one type; got Product, Review"):
        adapted.predict([PRODUCTS[0], DOMAIN.reviews[0]])
    with pytest.raises(ValueError, match="got str"):
        adapted.predict(["a phone"])
    with pytest.raises(
        ValueError, match="'u' took product 'gone', which domain shop does not have"
    ):
        adapted.predict([History("u", ("phone0", "gone"))])
    zero = probe.adapt(ONLY_PRODUCTS, shots=0)
    with pytest.raises(ValueError, match="this guide was not trained on sentiment"):
        zero.predict(DOMAIN.reviews)
    users = [History("u", ())]
    for batch, message in (
        (PRODUCTS[0], r"a batch is a list, such as predict\(\[product\]\); got one Product"),
        (None, "got one NoneType"),
        ({"a": PRODUCTS[0]}, "got one dict"),
        ([spoiled(PRODUCTS[0], title=None)], r"batch\[0\]: field 'title' is None"),
        ([PRODUCTS[0], Product("1", "a", image=np.full((8, 8, 3), np.nan))], r"batch\[1\].*NaN"),
        ([Product("1", "a", image=np.zeros((32, 32, 4), np.uint8))], "field 'image' is uint8"),
        ([spoiled(users[0], products="phone0")], "products is 'phone0'; give a tuple of ids"),
        ([spoiled(users[0], products=(1,))], "1 is not a text"),
    ):
        with pytest.raises(ValueError, match=message):
            zero.predict(batch)


def test_histories_are_in_the_order_of_time():
    """Faults: the order of the file is taken for that of time; a product is in a history twice."""
    events = [("b", "y", 3.0), ("a", "x", 2.0), ("b", "x", 1.0), ("b", "y", 0.5)]
    assert histories([Interaction(*event) for event in events]) == [
        History("a", ("x",)),
        History("b", ("y", "x")),
    ]
