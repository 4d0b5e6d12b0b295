"""A guide on a pretrained encoder: without training, and trained on its vectors."""

import shutil
import subprocess
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest

import metaguide
from metaguide.data.catalogue import Domain, Product, Question, Review
from metaguide.data.histories import History
from metaguide.pretrained import PretrainedEncoder, vector_cache
from metaguide.training.checkpoint import CheckpointError
from tests.pretrained.conftest import write

NAMES = ("good phone", "bad screen", "not the phone")
PRODUCTS = tuple(Product(f"p{row}", NAMES[row % 3], category=NAMES[row % 3]) for row in range(6))
REVIEWS = tuple(
    Review(f"r{row}", "good good screen" if row % 2 else "bad bad phone", stars=1.0 + 4 * (row % 2))
    for row in range(8)
)
DOMAIN = Domain("shop", PRODUCTS, REVIEWS)


@pytest.fixture(scope="module")
def guide(folders):
    return metaguide.from_encoder(folders("bert"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:domain shop")
def test_without_training_names_and_likeness_answer(guide):
    """Faults: the projection of names hides what the encoder knows; a category has the name of
    another; recommendation is not by likeness."""
    zero = guide.adapt(DOMAIN, shots=0)
    for found, product in zip(zero.predict(PRODUCTS), PRODUCTS, strict=True):
        assert found.category == product.category
    (ranking,) = zero.predict([History("u", ("p0",))])
    assert ranking.products[0] == "p3" and "p0" not in ranking.products


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:domain shop")
def test_names_are_known_by_their_words_before_any_example(guide, tmp_path):
    """Faults: words that the encoder does not know tell nothing; what names alone have taught is
    lost when the guide is saved, or counts as examples; examples are not added to it."""
    kinds = ("zyx", "qwv", "jkh")
    products = tuple(Product(f"n{row}", f"the {kinds[row % 3]} {row}") for row in range(6))
    shop = Domain("shop", tuple(replace(one, category=one.title.split()[1]) for one in products))
    zero = guide.adapt(shop, shots=0)
    zero.save(tmp_path / "zero.guide")
    loaded = metaguide.load(tmp_path / "zero.guide")
    expected = [kinds[row % 3] for row in range(6)]
    for one in (zero, loaded, zero.adapt(list(shop.products[:2]))):
        assert [found.category for found in one.predict(products)] == expected
    assert zero.adapted["classification"].chosen == ()
    assert loaded.predict(products) == zero.predict(products)


def test_sentiment_needs_examples(guide):
    """Fault: a head that nothing has trained answers as if it knew."""
    with pytest.warns(UserWarning, match="sentiment: this guide was not trained; adapt it to ex"):
        zero = guide.adapt(DOMAIN, shots=0)
    with pytest.raises(ValueError, match="no answers of sentiment: this guide was not trained"):
        zero.predict(REVIEWS[:1])
    assert "questions" not in zero.notes or "not trained" not in zero.notes["questions"][0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        few = guide.adapt(DOMAIN, shots=2)
    for found, review in zip(few.predict(REVIEWS), REVIEWS, strict=True):
        assert found.sentiment == ("positive" if review.label else "negative")
        assert found.stars is None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:domain shop")
def test_examples_that_are_too_few_wait_for_more(guide, tmp_path):
    """Faults: a review of one sentiment is lost before the next one comes, or when the guide is
    saved; one that is corrected is still what the guide knows; a method that cannot adapt leaves
    the state of another, which reads other fields."""
    good, bad = Review("a", "good screen", stars=5.0), Review("b", "bad phone", stars=1.0)
    one = guide.adapt(DOMAIN, shots=0).adapt([good])
    assert one.waiting == {"sentiment": (good,)}
    one.save(tmp_path / "one.guide")
    loaded = metaguide.load(tmp_path / "one.guide")
    assert loaded.waiting == one.waiting
    for waits in (one, loaded):
        both = waits.adapt([bad])
        assert not both.waiting and len(both.adapted["sentiment"].support) == 2
        said = [found.sentiment for found in both.predict([good, bad])]
        assert said == ["positive", "negative"]
    corrected = both.adapt([replace(bad, stars=5.0)])
    with pytest.raises(ValueError, match="no answers of sentiment"):
        corrected.predict([bad])
    assert len(corrected.waiting["sentiment"]) == 2
    by_words = one.guide.serving["classification"]._replace(method="tf-idf")
    other = guide.adapt(DOMAIN, shots=0).served_by("classification", by_words)
    with pytest.raises(ValueError, match="no answers of classification"):
        other.predict(PRODUCTS)


@pytest.mark.filterwarnings("ignore:domain shop")
def test_a_question_is_answered_by_the_nearest_sentence(guide, tmp_path):
    """Faults: the sentence of another text, or another one of its text; a span that is not the
    answer; an answer to a text without any; a saved guide that has forgotten how."""
    text = "The phone is bad. The screen is good! Not the phone."
    asked = [
        Question("0", "The screen is good!", text),
        Question("1", "Not the phone.", "手机很好。" + text),
        Question("2", "the screen is good", " "),
    ]
    for adapted in (guide.adapt(DOMAIN, 0), guide.adapt(DOMAIN, support=asked[:1])):
        found = adapted.predict(asked)
        assert [one.text for one in found] == ["The screen is good!", "Not the phone.", None]
        assert found[1].span == (5 + text.index("Not"), 5 + len(text)) and found[2].span is None
    adapted.save(tmp_path / "saved")
    assert metaguide.load(tmp_path / "saved").predict(asked) == found


@pytest.mark.filterwarnings("ignore:domain shop")
def test_an_encoder_is_no_guide_yet(folders):
    """Fault: the message asks for a file of a run that an encoder has no need of."""
    with pytest.raises(CheckpointError, match="holds a pretrained encoder.*from_encoder makes a"):
        metaguide.load(folders("bert"))


@pytest.mark.slow
def test_vectors_are_computed_once_where_there_is_a_cache(folders, tmp_path, monkeypatch):
    """Faults: the cache is not read, or answers differ with it."""
    expected = metaguide.from_encoder(folders("bert")).adapt(DOMAIN, 2).predict(REVIEWS)
    first = metaguide.from_encoder(folders("bert"), cache=tmp_path).adapt(DOMAIN, 2)
    assert [one.sentiment for one in first.predict(REVIEWS)] == [one.sentiment for one in expected]
    monkeypatch.setattr(PretrainedEncoder, "encode", None)
    again = metaguide.from_encoder(folders("bert"), cache=tmp_path).adapt(DOMAIN, 2)
    # And the files are read once, not at each question.
    monkeypatch.setattr(vector_cache, "read_arrays", None)
    assert first.predict(REVIEWS) == again.predict(REVIEWS)


@pytest.mark.filterwarnings("ignore:domain shop")
def test_other_reviews_are_read_without_their_labels(guide):
    """Faults: reviews without labels change nothing, their labels are read where they have any, a
    review of three stars counts as one without a label, more are read than was asked for."""
    some = ("good screen", "bad phone", "screen", "the phone", "not good", "good good", "bad")
    others = [Review(f"o{row}", text) for row, text in enumerate(some)]
    support = REVIEWS[:2]

    def chances(*reviews, unlabelled=10):
        domain = Domain("shop", reviews=(*support, *reviews))
        adapted = guide.adapt(domain, support=support, unlabelled=unlabelled)
        assert set(adapted.adapted["sentiment"].chosen) == {"r0", "r1"}
        return [one.positive for one in adapted.predict(REVIEWS + tuple(others))]

    alone, read = chances(*others, unlabelled=0), chances(*others)
    assert alone == chances() and max(abs(np.subtract(alone, read))) > 1e-3
    labelled = [Review(one.id, one.text, stars=5.0) for one in others]
    np.testing.assert_allclose(chances(*labelled), read, rtol=1e-5)
    neither = [Review(one.id, one.text, stars=3.0) for one in others]
    assert chances(*neither) == alone
    one = [chances(other) for other in others]
    found = chances(*others, unlabelled=1)
    assert any(np.allclose(found, this, rtol=1e-5) for this in one)


def test_unlabelled_examples_that_nothing_reads_are_said(guide):
    """Fault: a guide whose methods read none passes over them in silence."""
    with pytest.raises(ValueError, match="unlabelled is -1; it has to be 0 or more"):
        guide.adapt(DOMAIN, unlabelled=-1)
    serving = {"sentiment": guide.serving["sentiment"]._replace(method="logistic")}
    other = replace(guide, serving=serving)
    with pytest.warns(UserWarning, match="unlabelled is 5, but none of the methods of this guide"):
        other.adapt(DOMAIN, unlabelled=5)


@pytest.mark.slow
def test_a_guide_is_trained_on_vectors_loaded_and_refuses_another_encoder(tmp_path):
    """Faults: a stage cannot run without a Transformer; a loaded guide reads other vectors than it
    was trained on, or says nothing where its encoder has gone."""
    folder, run = write(tmp_path / "encoder", "bert"), tmp_path / "run"
    subprocess.run(
        [
            *(sys.executable, "-m", "experiments.guide", "--config.preset=tiny"),
            *(f"--workdir={run}", f"--config.encoder.weights={folder}"),
            *(
                "--config.encoder.length=20",
                "--config.model.layers=0",
                "--config.model.image=False",
            ),
            *("--config.metatrain.learners=()", "--config.adapt.shots=(0,)"),
        ],
        check=True,
        capture_output=True,
    )
    guide = metaguide.load(run)
    assert "pretrain" not in {path.name for path in (run / "seed0").iterdir()}
    assert set(guide.serving) == {"classification", "sentiment", "recommendation"}
    assert guide.reading.reader.vectors is not None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        zero = guide.adapt(DOMAIN, shots=0)
    chances = [one.positive for one in zero.predict(REVIEWS)]
    moved = tmp_path / "moved"
    shutil.move(folder, moved)
    with pytest.raises(CheckpointError, match=r"encoder.*no such folder.*load\(run, encoder=FOLD"):
        metaguide.load(run)
    other = write(tmp_path / "other", "e5")
    with pytest.raises(CheckpointError, match="holds another encoder than the guide reads"):
        metaguide.load(run, encoder=other)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again = metaguide.load(run, encoder=moved).adapt(DOMAIN, shots=0).predict(REVIEWS)
    np.testing.assert_array_equal([one.positive for one in again], chances)
