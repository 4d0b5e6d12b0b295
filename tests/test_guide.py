import dataclasses
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metaguide
from metaguide.answers import History, histories
from metaguide.data.catalogue import Domain, Interaction, Product, Question, Review, write_domain
from metaguide.data.encoding import Lengths, question_rows
from metaguide.data.tokenizer import Tokenizer
from metaguide.guide import Guide, Serving, model_of
from metaguide.models.guide import init_params
from metaguide.objectives.weighting import fixed
from metaguide.optimizers import rule_of, stored
from metaguide.training.checkpoint import CheckpointError, save
from metaguide.training.step import init_state

SHOTS, RATE, STEPS = 2, 0.3, 60
CONFIG = {
    "model": {
        "width": 8,
        "layers": 1,
        "heads": 2,
        "dropout": 0.1,
        "way": 3,
        "channels": [2, 4],
        "image": False,
    },
    "text": {"text": 8, "pair": 16, "name": 4},
    "episodes": {"longest": 4},
    "metatrain": {"inner_rate": RATE},
    "adapt": {"steps": STEPS},
}
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


def write_run(
    folder, tokenizer, config=CONFIG, stage=True, serving=None, seeds=None, optimizers=()
):
    """A run as the stages leave it: what was learned, its config, its tokenizer.

    `optimizers` are the folders where a learned optimizer was trained along.
    """
    folder.mkdir(exist_ok=True)
    tokenizer.save(folder / "tokenizer.json")
    (folder / "config.json").write_text(json.dumps(config))
    if stage:
        learner = "lstm-head" if "." in optimizers else "maml"
        content = {"stage": "metatrain", "learner": learner, "seed": 0}
        (folder / "stage.json").write_text(json.dumps(content))
    if serving:
        (folder / "serving.json").write_text(json.dumps(serving))
    for place, seed in (seeds or {".": 0}).items():
        meta = {"params": drawn(model_of(CONFIG, tokenizer), seed)}
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
    # Another arm, and one gradient through the encoder less to compile.
    sentiment = guide.serving["sentiment"]._replace(arm="head-only")
    serving = {**guide.serving, "sentiment": sentiment}
    return dataclasses.replace(guide, serving=serving).adapt(DOMAIN, shots=SHOTS)


@pytest.fixture(scope="module")
def probe(tokenizer):
    """A guide held in memory, whose categories are told apart by a ridge on frozen features."""
    model = model_of(CONFIG, tokenizer)
    serving = {"classification": Serving({"params": drawn(model, 0)}, "ridge", 0.1, 0)}
    return Guide(model, tokenizer, Lengths(8, 16, 4), 4, serving)


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


def test_a_long_passage_is_adapted_to_and_asked_about_whatever_the_seed(tokenizer):
    """Faults: adapting fails for the seeds that draw the long passage; an answer behind the tokens
    kept is never given; its span is counted in the window."""
    model = model_of(CONFIG, tokenizer)
    serving = {"questions": Serving({"params": drawn(model, 0)}, "head-only", RATE, 2)}
    guide = Guide(model, tokenizer, Lengths(8, 16, 4), 4, serving)
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


def test_rankings_leave_out_what_the_user_has(adapted):
    """Faults: a product is missing or twice, a known one is recommended, more of a long history
    is read than the shots, padding of a short one is taken for product 0, a product that was taken
    again counts at another time than in training."""
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
    assert long == tuple(product for product in end if product not in known[3:7])
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
    """Faults: zero shots adapt to something, or read a user's history; parameters are copied."""
    zero = guide.adapt(DOMAIN, shots=0)
    for kind, adapted in zero.adapted.items():
        meta = guide.serving[kind].meta
        assert adapted.state is (meta if kind == "recommendation" else meta["params"])
        assert adapted.chosen == ()
    one, other = zero.predict([History("a", ("phone0",)), History("b", ("shoe1",))])
    both = {"phone0", "shoe1"}
    assert [p for p in one.products if p not in both] == [
        p for p in other.products if p not in both
    ]


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


def test_a_loaded_guide_is_the_one_that_was_saved(run, guide, probe):
    """Faults: parameters, tokenizer or lengths are lost or swapped between save and load."""
    for loaded in (guide, metaguide.load(str(run))):
        for kind in ("classification", "sentiment", "questions", "recommendation"):
            serving = loaded.serving[kind]
            assert serving[2:] == (RATE, STEPS, None)
            assert serving.arm == ("head-only" if kind == "recommendation" else "maml")
            saved = probe.serving["classification"].meta
            jax.tree.map(np.testing.assert_array_equal, serving.meta, saved)
        assert (loaded.model, loaded.lengths, loaded.longest) == (
            probe.model,
            probe.lengths,
            probe.longest,
        )
    same = dataclasses.replace(guide, serving={"classification": Serving(*saved_as_probe(guide))})
    expected, found = (one.adapt(ONLY_PRODUCTS, SHOTS).predict(PRODUCTS) for one in (probe, same))
    assert found == expected


def saved_as_probe(guide):
    return guide.serving["classification"].meta, "ridge", 0.1, 0


def test_a_run_says_which_arm_serves_what(tokenizer, tmp_path):
    """Faults: a kind is served by the parameters of another arm, or by an arm that is not named."""
    serving = {
        "classification": {"folder": "a", "arm": "prototypical", "rate": 0.0, "steps": 0},
        "sentiment": {"folder": "b", "arm": "logistic", "rate": 1.0, "steps": 0},
    }
    guide = metaguide.load(
        write_run(tmp_path / "run", tokenizer, stage=False, serving=serving, seeds={"a": 1, "b": 2})
    )
    assert set(guide.serving) == set(serving)
    for kind, seed in (("classification", 1), ("sentiment", 2)):
        expected = {"params": drawn(guide.model, seed)}
        jax.tree.map(np.testing.assert_array_equal, guide.serving[kind].meta, expected)
    adapted = guide.adapt(dataclasses.replace(DOMAIN, products=()), shots=3)
    found = adapted.predict(DOMAIN.reviews)
    assert [one.sentiment for one in found] == ["negative", "positive"] * 3
    assert all(one.stars is None for one in found)


@pytest.mark.slow
def test_a_learned_optimizer_serves(tokenizer, tmp_path):
    """Faults: the optimizer is lost on the way, that of another folder or as it was before its
    training; gradient descent serves in its place; its file is needed where there is none."""
    serving = {
        "sentiment": {"folder": "a", "arm": "lstm-head", "rate": 1.0, "steps": 1},
        "questions": {"folder": "b", "arm": "head-only", "rate": 1.0, "steps": 1},
    }
    seeds = {"a": 1, "b": 2}
    run = write_run(
        tmp_path / "run", tokenizer, serving=serving, seeds=seeds, optimizers=("a",), stage=False
    )
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


def test_a_stage_that_trained_an_optimizer_is_served_by_it(tokenizer, tmp_path):
    """Faults: the folder of a stage is served by gradient descent, though it learned to descend;
    the updates that it learned are multiplied by the rate of gradient descent."""
    guide = metaguide.load(write_run(tmp_path / "lstm", tokenizer, optimizers=(".",)))
    assert {serving.arm for serving in guide.serving.values()} == {"lstm-head"}
    assert guide.serving["recommendation"].rule is not None
    assert {serving.rate for serving in guide.serving.values()} == {1.0}


def test_folders_that_hold_no_run_are_errors(run, tokenizer, tmp_path):
    """Fault: a wrong folder ends in a traceback of a library, or a wrong model is loaded."""
    with pytest.raises(CheckpointError, match="nowhere/config.json: no such file; give the folder"):
        metaguide.load(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="stage.json: no such file"):
        metaguide.load(write_run(tmp_path / "no_stage", tokenizer, stage=False))
    wide = {**CONFIG, "model": {**CONFIG["model"], "width": 16}}
    with pytest.raises(CheckpointError, match="another model: .*width|another model: params.meta"):
        metaguide.load(write_run(tmp_path / "wide", tokenizer, config=wide))
    spoiled = write_run(tmp_path / "spoiled", tokenizer, seeds={"elsewhere": 0})
    with pytest.raises(CheckpointError, match="no checkpoint"):
        metaguide.load(spoiled)
    (spoiled / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="config.json: not JSON"):
        metaguide.load(spoiled)


def test_what_cannot_be_adapted_to_is_an_error(guide):
    """Faults: more categories than slots are cut, missing examples are repeated, a negative number
    of shots is taken for none."""
    fourth = Product("x", "it rolls", category="wheel")
    with pytest.raises(
        ValueError, match="shop has 4 categories, .* slots for 3; .*config.model.way"
    ):
        guide.adapt(Domain("shop", (*PRODUCTS, fourth)), shots=1)
    with pytest.raises(ValueError, match="shop, classification: 4 shots .*ask for fewer shots"):
        guide.adapt(ONLY_PRODUCTS, shots=4)
    with pytest.raises(ValueError, match="shots is -1"):
        guide.adapt(ONLY_PRODUCTS, shots=-1)


def test_what_cannot_be_predicted_is_an_error(adapted, probe):
    """Faults: a mixed batch is read as the type of its first; a kind that was not adapted to is
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
    with pytest.raises(ValueError, match="shop has no examples of sentiment to adapt to"):
        zero.predict(DOMAIN.reviews)


def test_histories_are_in_the_order_of_time():
    """Faults: the order of the file is taken for that of time; a product is in a history twice."""
    events = [("b", "y", 3.0), ("a", "x", 2.0), ("b", "x", 1.0), ("b", "y", 0.5)]
    assert histories([Interaction(*event) for event in events]) == [
        History("a", ("x",)),
        History("b", ("y", "x")),
    ]
