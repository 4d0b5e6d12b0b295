"""The choice of a method: another serves only where the labels say that it is better."""

import collections
import dataclasses

import numpy as np
import pytest
import scipy.special

import metaguide
from metaguide import choosing
from metaguide.choosing import best
from metaguide.data.catalogue import Domain, Interaction, Product, Review
from metaguide.data.histories import History
from metaguide.data.tokenizer import Tokenizer
from metaguide.learners.calibration import LEAST, SCALES
from metaguide.methods import IN_GUIDE, adaptation_of
from metaguide.tasks import TASKS, HeldBack, Serving
from tests.pretrained.conftest import write as write_encoder
from tests.test_saved import DOMAIN as SHOP
from tests.test_saved import guide_of

GOOD, BAD = ("good", "nice", "great"), ("bad", "awful", "broken")


def review(number):
    """A review whose sentiment only its second word says."""
    words = BAD if number % 2 else GOOD
    text = f"the {words[number % 3]} thing number {number}"
    return Review(f"r{number}", text, sentiment="negative" if number % 2 else "positive")


@pytest.fixture(scope="module")
def guide(tmp_path_factory):
    """A guide on an encoder that was not trained, so that its vectors say little."""
    folder = tmp_path_factory.mktemp("encoder")
    write_encoder(folder, "bert")
    return metaguide.from_encoder(folder, length=20)


DOMAIN = Domain("garden", reviews=tuple(map(review, range(60))))


def held_back(*chances, counts=None):
    """How a method predicts examples of class 1, to which it gives these probabilities."""
    chances = np.array(chances, float)
    with np.errstate(divide="ignore"):
        logits = np.log(np.stack([1 - chances, chances], axis=1))
    # Small enough that a factor does not matter much, and never infinite.
    logits = np.maximum(logits, -1e4)
    counts = np.ones(len(chances), bool) if counts is None else np.array(counts)
    return HeldBack(logits, np.ones(len(chances), int), counts)


def test_another_method_has_to_be_better_beyond_chance():
    """Faults: the largest mean wins, or intervals that are not paired; the best of two is not
    taken."""
    own = held_back(*[0.6, 0.4, 0.7, 0.6] * 4)
    lucky = held_back(*[0.6, 0.4, 0.7, 0.6] * 3, *[0.6, 0.8, 0.7, 0.8])
    better, best_of = held_back(*[0.7, 0.5, 0.8, 0.7] * 4), held_back(*[0.8, 0.6, 0.9, 0.8] * 4)
    found = choosing._choice("own", {"own": own, "lucky": lucky})
    assert found.method == "own" and 0 < found.gain["lucky"] < found.margin["lucky"]
    found = choosing._choice("own", {"own": own, "better": better, "lucky": lucky})
    assert found.method == "better" and found.gain["better"] > found.margin["better"]
    scores = {"own": own, "better": better, "best": best_of}
    assert choosing._choice("own", scores).method == "best"
    assert choosing._choice("best", scores).method == "best"


def test_every_candidate_with_a_penalty_gets_one():
    """Fault: a method that is no candidate by default is asked for with a penalty of 0."""
    own = Serving({"params": {}}, "zero-shot", 0.0, 0)
    for method in IN_GUIDE:
        found = choosing._serving_by(method, own)
        assert (found.learning_rate > 0) == (adaptation_of(method).tuned == "penalty"), method


def test_a_method_that_is_too_sure_is_no_worse():
    """Faults: logits are compared as they are; the factor is another for each example."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 40)
    logits = rng.normal(size=(40, 3)) + 2 * np.eye(3)[labels]
    score = choosing.log_probability(logits, labels)
    for factor in (0.1, 3.0, 20.0):
        np.testing.assert_allclose(
            choosing.log_probability(factor * logits, labels).mean(), score.mean(), atol=0.02
        )
    plain = {s: scipy.special.log_softmax(s * logits, axis=1) for s in SCALES}
    means = {s: np.maximum(rows[np.arange(40), labels], LEAST).mean() for s, rows in plain.items()}
    assert score.mean() == pytest.approx(max(means.values()))


def test_one_sure_mistake_is_not_all():
    """Faults: an example without probability, or logits that are not finite, make a gain of minus
    infinity or win; examples that no other shares a class with are counted."""
    own, mistaken = held_back(*[0.6, 0.55] * 10), held_back(0, *[1 - 1e-9] * 19)
    found = choosing._choice("own", {"own": own, "mistaken": mistaken})
    assert found.accuracy == {"own": 1, "mistaken": 0.95} and np.isfinite(found.gain["mistaken"])
    score = choosing.log_probability(mistaken.logits, mistaken.labels)
    # Without the bound, the best factor would make the nineteen unsure for the sake of the one.
    assert score[0] == LEAST and score[1:].min() > -0.01
    alone = np.array([False, *[True] * 19])
    found = choosing._choice("own", {"own": own._replace(counts=alone), "mistaken": mistaken})
    assert found.accuracy["mistaken"] == 1
    broken = own._replace(logits=np.full((20, 2), np.nan))
    found = choosing._choice("own", {"own": own, "broken": broken})
    assert found.method == "own" and found.accuracy["broken"] == 0
    # NumPy takes NaN for the largest, so that class 0 would be predicted.
    first = own._replace(logits=own.logits[:, ::-1], labels=np.zeros(20, int))
    broken = first._replace(logits=broken.logits)
    assert choosing._choice("own", {"own": first, "broken": broken}).accuracy["broken"] == 0
    assert choosing._choice("broken", {"own": first, "broken": broken}).method == "own"
    assert (choosing.log_probability(broken.logits, broken.labels) == LEAST).all()
    nothing = held_back(0.5, 0.5, counts=[False, True])
    found = choosing._choice("own", {"own": nothing, "other": held_back(0.9, 0.9)})
    assert (found.method, found.accuracy) == ("own", {})


@pytest.mark.slow
def test_words_serve_where_they_say_more(guide, tmp_path):
    """Faults: the choice is not what answers; the guide adapts to other examples than before; a
    chosen method is lost when the guide is saved or taught."""
    own = guide.adapt(DOMAIN, 10)
    chosen, choices = best(own)
    choice = choices["sentiment"]
    assert choice.own == "soft-k-means" and choice.method in ("tf-idf", "vectors+words"), choice
    assert choice.accuracy[choice.method] > choice.accuracy["soft-k-means"]
    assert chosen.adapted["sentiment"].chosen == own.adapted["sentiment"].chosen
    assert own.guide.serving["sentiment"].method == "soft-k-means"
    assert set(chosen.adapted) == {"sentiment", "questions"} and set(choices) == {"sentiment"}

    def right(adapted):
        answers = adapted.predict(DOMAIN.reviews)
        return np.mean(
            [a.sentiment == r.sentiment for a, r in zip(answers, DOMAIN.reviews, strict=True)]
        )

    assert right(chosen) > max(0.9, right(own))
    chosen.save(tmp_path / "garden")
    again = metaguide.load(tmp_path / "garden")
    assert again.predict(DOMAIN.reviews) == chosen.predict(DOMAIN.reviews)
    taught = again.adapt([review(100)])
    assert taught.guide.serving["sentiment"].method == choice.method
    assert len(taught.adapted["sentiment"].chosen) == 21
    assert best(own, ())[0].guide.serving["sentiment"].method == "soft-k-means"


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", ["soft-k-means", "logistic", "tf-idf", "vectors+words", "prototypical"]
)
def test_an_example_is_predicted_by_the_others_alone(guide, method):
    """Faults: an example is in the support that predicts it; the folds' answers are mixed up; the
    label of one changes its own answer."""
    adapted = guide.adapt(DOMAIN, 4, unlabelled=5)
    one = adapted.adapted["sentiment"]
    serving = choosing._serving_by(method, guide.serving["sentiment"])
    by_method = guide.served_by("sentiment", serving)
    found = TASKS["sentiment"].validate(by_method.server("sentiment"), DOMAIN, one)
    assert found.counts.all()
    labels = [review.label for review in one.support]
    for fold in range(4):  # each class has an example in each
        out = [row for row in range(8) if row % 4 == fold]
        assert sorted(labels[row] for row in out) == [0, 1]
        rest = [one.support[row] for row in range(8) if row not in out]
        plain = by_method._adapted(DOMAIN, 4, 0, {"sentiment": rest}, {"sentiment": one.unlabelled})
        again = metaguide.guide.AdaptedGuide(by_method, DOMAIN, 4, *plain)
        for row in out:
            (answer,) = again.predict([one.support[row]])
            chance = answer.positive if labels[row] else 1 - answer.positive
            expected = scipy.special.softmax(found.logits[row])[found.labels[row]]
            assert expected == pytest.approx(chance, abs=2e-4)


@pytest.mark.slow
def test_every_class_of_a_domain_is_validated(guide):
    """Faults: a class of one example is counted, or has a fold of its own; products are validated
    as reviews."""
    products = tuple(
        Product(f"p{number}", f"{('saw', 'pot', 'lamp')[number % 3]} {number}",
                category=("tools", "kitchen", "light")[number % 3])
        for number in range(24)
    )  # fmt: skip
    lone = Product("alone", "a lonely chair", category="chairs")
    adapted = guide.adapt(Domain("home", (*products, lone)), 6)
    found = TASKS["classification"].validate(
        adapted.guide.server("classification"), adapted.domain, adapted.adapted["classification"]
    )
    ids = adapted.adapted["classification"].chosen
    assert [name for name, counts in zip(ids, found.counts, strict=True) if not counts] == ["alone"]
    chosen, choices = best(adapted)
    assert choices["classification"].accuracy["tf-idf"] == 1
    answers = chosen.predict([*products, lone])
    assert {one.category for one in answers} <= {"tools", "kitchen", "light", "chairs"}


@pytest.mark.slow
def test_tasks_without_classes_stay_as_they_are():
    """Faults: an answer of a question is held back as if it had a class; the parameters that a
    gradient adapted are lost where a method on features validates."""
    methods = dict.fromkeys(("classification", "sentiment"), ("head-only", 0.3, 2))
    others = dict.fromkeys(("questions", "recommendation"), ("zero-shot", 0.0, 0))
    texts = [one.title for one in SHOP.products] + [one.text for one in SHOP.reviews]
    texts += [f"{one.question} {one.text}" for one in SHOP.questions]
    guide = guide_of(Tokenizer.train(texts * 2, 340), **methods, **others)
    adapted = guide.adapt(SHOP, shots=2)
    assert set(adapted.adapted) == set(TASKS)
    chosen, choices = best(adapted, ("logistic",))
    assert set(choices) == {"classification", "sentiment", "recommendation"}
    assert choices["classification"].own == choices["sentiment"].own == "head-only"
    assert chosen.adapted["questions"] is adapted.adapted["questions"]


@pytest.mark.slow
@pytest.mark.parametrize("favourite", [True, False])
def test_popularity_counts_as_much_as_a_shops_users_say(tmp_path, favourite):
    """Faults: popularity counts the product that is held back; a shop where all take the same is
    ranked by likeness, or one of series by popularity; a choice of two users; a new user's ranking
    is not that of the popular products; the choice is lost when the guide is saved."""
    rng = np.random.default_rng(0)
    kinds = ("good", "bad", "phone", "screen", "很", "手")  # words that the encoder knows
    products = [
        Product(f"{kind}{i}", " ".join([kind] * 4 + ["the"] * i)) for kind in kinds for i in (1, 2)
    ]
    events = []
    for number in range(60):
        kind = kinds[number % 6]
        took = rng.permutation([f"{kind}1", f"{kind}2"])
        if favourite:
            took = ["phone1", took[0]] if number % 4 == 0 else [took[0], "phone1"]
        events += [Interaction(f"u{number}", str(one), float(t)) for t, one in enumerate(took)]
    shop = Domain("home", tuple(products), interactions=tuple(events))
    guide = metaguide.from_encoder(write_encoder(tmp_path / "encoder", "bert"))
    adapted, choices = best(guide.adapt(shop))
    choice = choices["recommendation"]
    assert choice.measure == "NDCG@10" and (choice.method != choice.own) == favourite
    if favourite:
        assert choice.accuracy[choice.method] > choice.accuracy[choice.own] + 0.2
    taken = collections.Counter(one.product for one in events)
    (new, old) = adapted.predict([History("new", ()), History("old", ("bad1",))])
    assert new.by == "no history" and new.products[0] == taken.most_common(1)[0][0]
    assert [taken[one] for one in new.products] == sorted(taken.values(), reverse=True)
    adapted.save(tmp_path / "shop.guide")
    (again,) = metaguide.load(tmp_path / "shop.guide").predict([History("old", ("bad1",))])
    assert again.products == old.products
    np.testing.assert_allclose(again.scores, old.scores, rtol=1e-5)
    two, choices = best(guide.adapt(dataclasses.replace(shop, interactions=tuple(events[:2]))))
    assert choices["recommendation"].method == choice.own
