"""The choice of a method: another serves only where the labels say that it is better."""

import numpy as np
import pytest

import metaguide
from metaguide import choosing
from metaguide.choosing import LEAST, best
from metaguide.data.catalogue import Domain, Product, Review
from metaguide.tasks import TASKS, HeldBack
from tests.pretrained.conftest import write as write_encoder

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


def held_back(*chances, right=None, counts=None):
    """How a method predicts examples to whose classes it gives these probabilities."""
    chances = np.array(chances, float)
    with np.errstate(divide="ignore"):
        scores = np.log(chances)
    return HeldBack(
        scores,
        chances > 0.5 if right is None else np.array(right),
        np.ones(len(chances), bool) if counts is None else np.array(counts),
    )


def test_another_method_has_to_be_better_beyond_chance():
    """Faults: the largest mean wins, or intervals that are not paired; the best of two is not
    taken."""
    own = held_back(*[0.5, 0.6] * 5)
    lucky = held_back(*[0.9, 0.45] * 5)
    better, best_of = held_back(*[0.55, 0.66] * 5), held_back(*[0.7, 0.84] * 5)
    found = choosing._choice("own", {"own": own, "lucky": lucky})
    assert found.method == "own" and 0 < found.gain["lucky"] < found.margin["lucky"]
    found = choosing._choice("own", {"own": own, "better": better, "lucky": lucky})
    # Both examples gain log 1.1, so that the paired interval has no width.
    assert found.method == "better" and found.margin["better"] < 1e-9
    assert found.gain["better"] == pytest.approx(np.log(1.1))
    scores = {"own": own, "better": better, "best": best_of}
    assert choosing._choice("own", scores).method == "best"
    assert choosing._choice("best", scores).method == "best"


def test_one_sure_mistake_is_not_all():
    """Faults: an example without probability makes a gain of minus infinity; examples that no other
    shares a class with are counted."""
    own = held_back(*[0.5] * 20)
    mistaken = held_back(0, *[0.95] * 19)
    found = choosing._choice("own", {"own": own, "mistaken": mistaken})
    assert found.gain["mistaken"] == pytest.approx((LEAST + 19 * np.log(0.95)) / 20 - np.log(0.5))
    assert found.accuracy == {"own": 0, "mistaken": 0.95}
    alone = [False, *[True] * 19]
    found = choosing._choice(
        "own", {"own": own._replace(counts=np.array(alone)), "mistaken": mistaken}
    )
    assert found.accuracy["mistaken"] == 1 and found.method == "mistaken"
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
    assert (choice.own, choice.method) == ("soft-k-means", "tf-idf"), choice
    assert choice.accuracy["tf-idf"] > choice.accuracy["soft-k-means"]
    assert chosen.adapted["sentiment"].chosen == own.adapted["sentiment"].chosen
    assert own.guide.serving["sentiment"].method == "soft-k-means"
    assert {task for task in chosen.adapted} == {"sentiment"} == set(choices)

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
    assert taught.guide.serving["sentiment"].method == "tf-idf"
    assert len(taught.adapted["sentiment"].chosen) == 21
    assert best(own, ())[0].guide.serving["sentiment"].method == "soft-k-means"


@pytest.mark.slow
@pytest.mark.parametrize("method", ["soft-k-means", "logistic", "tf-idf", "prototypical"])
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
            assert np.exp(found.log_probability[row]) == pytest.approx(chance, abs=2e-4)
            assert found.is_right[row] == (chance > 0.5) or chance == pytest.approx(0.5, abs=1e-4)


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
