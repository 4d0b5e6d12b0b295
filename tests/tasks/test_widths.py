"""Texts of any length are answered by few programs, and as if they had not been padded."""

import dataclasses

import jax
import numpy as np
import pytest

from metaguide.data.catalogue import Domain, Product, Question, Review
from metaguide.data.ngrams import MOST
from metaguide.data.tokenizer import PAD, Tokenizer
from metaguide.tasks import labelled, widths
from metaguide.tasks.question_answering import question_rows
from metaguide.tasks.serving import ask
from metaguide.tasks.widths import by_windows, in_few_supports, in_few_widths
from metaguide.training.program import SIZES, compilations
from tests.test_guide import DOMAIN, RUN, WORDS
from tests.test_saved import guide_of

TEXTS = 200
KINDS = (Product, Review, Question)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train([f"it {verb} {i}" for verb in WORDS.values() for i in range(9)], 300)


def made(tokenizer, sentiment=("ridge", 0.1, 0)):
    return guide_of(
        tokenizer,
        dataclasses.replace(RUN, buckets=16),
        classification=("prototypical", 0.0, 0),
        sentiment=sentiment,
        questions=("zero-shot", 0.0, 0),
    )


@pytest.fixture(scope="module")
def adapted(tokenizer):
    return made(tokenizer).adapt(DOMAIN, shots=2)


def texts_of(count):
    """Texts of 0 to 24 words of 1 to 6 letters, so of 0 to more than `MOST` n-grams."""
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice([*"abcdefgh"], rng.integers(1, 7))) for _ in range(300)]
    return [" ".join(rng.choice(words, rng.integers(0, 25))) for _ in range(count)]


def examples_of(kind, texts):
    if kind is Question:
        return [Question("", "who?", text) for text in texts]
    return [kind("", text) for text in texts]


@pytest.mark.slow
@pytest.mark.usefixtures("room_for_programs")
def test_texts_of_all_lengths_compile_few_programs(tokenizer, adapted):
    """Fault: every number of n-grams, of windows or of rows is a program, for which a user waits
    some seconds."""

    def counts():
        found = {name: compilations(one.learner.predict) for name, one in adapted.adapted.items()}
        return np.array([found[name] for name in ("classification", "sentiment", "questions")])

    before, texts, rng = counts(), texts_of(TEXTS), np.random.default_rng(1)
    for kind in KINDS:
        asked, start = examples_of(kind, texts), 0
        while start < len(asked):
            stop = start + int(rng.integers(1, 9))
            adapted.predict(asked[start:stop])
            start = stop
    longest = tokenizer.encode_pairs(["who?"] * TEXTS, texts, RUN.pair_tokens).tokens.shape[1]
    assert longest > 8
    # 4 and 16 rows; of passages also 1, 2, 4, ... windows.
    most = np.array([2, 2, 2 * (1 + int(np.ceil(np.log2(longest))))])
    assert (counts() - before <= most).all()


@pytest.mark.slow
@pytest.mark.usefixtures("room_for_programs")
def test_supports_of_all_sizes_compile_few_programs(tokenizer):
    """Fault: every number of examples, and every length of the longest of them or of the longest
    name of a category, is a program of adapting."""
    guide, texts = made(tokenizer), texts_of(40)
    for count in range(6, 17):
        names = "a", "bcdefghijklmnopqr"[:count]
        products = [Product(f"p{i}", texts[i + count], category=names[i]) for i in (0, 1)]
        reviews = [
            Review(f"r{i}", texts[i], sentiment=("negative", "positive")[i % 2])
            for i in range(count)
        ]
        shop = Domain("shop", (Product("p", "it calls"),))
        adapted = guide.adapt(shop, support=[*products, *reviews]).adapted
    assert compilations(adapted["sentiment"].learner.adapt) == 2  # 8 and 16 rows
    assert compilations(adapted["classification"].learner.adapt) == 1


@pytest.mark.slow
def test_padding_changes_no_answer(adapted):
    """Faults: columns, windows or rows of padding count; answers come in another order than the
    examples; a passage is cut to the windows of another one.

    Within float32's rounding: sums of other widths are added up in another order."""
    reading, text = adapted.guide.reading, adapted.guide.reading.lengths.text
    texts = [one[:40] for one in texts_of(9)]
    passages = [Question("", "who?", f"{one} it is Ann") for one in texts_of(9)]
    rows = {
        "classification": reading.reader.rows(texts, text),
        "sentiment": reading.reader.rows(texts, text),
        "questions": question_rows(passages, reading.tokenizer, reading.lengths.pair, "shop"),
    }
    assert rows["sentiment"]["grams"].shape[1] < MOST and len(passages) not in SIZES
    for name, one in adapted.adapted.items():
        plain = one.learner.predict(one.state, rows[name], one.context)
        found = ask(one, rows[name])
        assert found.keys() == plain.keys()
        for output, leaf in plain.items():
            np.testing.assert_allclose(found[output], leaf, rtol=1e-5, atol=2e-6)
    assert len({*found["window"].tolist()}) > 1  # so that a mistaken place would be seen


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "unlabelled"),
    [
        (("ridge", 0.1, 0), 0),
        (("soft-k-means", 0.0, 0), 3),
        (("head-only", 0.1, 2), 0),
    ],
)
def test_padding_changes_no_adaptation(tokenizer, method, unlabelled, monkeypatch):
    """Fault: an example that is only there to fill the rows is adapted to, as one with or without
    a label."""
    guide, asked = made(tokenizer, method), [Review("", text) for text in texts_of(10)]
    reviews = [
        Review(f"r{i}", text, sentiment=("negative", "positive")[i % 2])
        for i, text in enumerate(texts_of(13))
    ]
    shop = Domain("shop", reviews=tuple(reviews))

    def positive():
        adapted = dataclasses.replace(guide).adapt(shop, shots=3, unlabelled=unlabelled)
        return [one.positive for one in adapted.predict(asked)]

    padded = positive()
    monkeypatch.setattr(labelled, "in_few_supports", lambda rows, masks: rows)
    np.testing.assert_allclose(padded, positive(), atol=5e-5)


def windowed(tokenizer, words):
    asked = [Question("", "who?", "it is Ann " * count) for count in words]
    return question_rows(asked, tokenizer, RUN.pair_tokens, "shop")


def test_passages_of_like_windows_are_read_together(tokenizer, monkeypatch):
    """Faults: a row is lost, doubled, or loses a window; a short passage is padded to a long one's
    windows; memory grows with the passages of a batch times the windows of the longest."""
    monkeypatch.setattr(widths, "WINDOWS_AT_ONCE", 16)
    rows = windowed(tokenizer, (1, 40, 1, 6, 12, 40))
    own = (rows["tokens"][..., 0] != PAD).sum(1)
    seen = []
    for places, part, most in by_windows(rows):
        seen += places.tolist()
        tokens = part["tokens"].reshape(len(places), -1, RUN.pair_tokens)
        width = tokens.shape[1]
        assert part["start"].ndim == part["end"].ndim == part["tokens"].ndim - 1 == 1 + (width > 1)
        assert most == max(1, 16 // width)
        for place, found in zip(places, tokens, strict=True):
            assert width / 2 < own[place] <= width and (found[own[place] :] == PAD).all()
            np.testing.assert_array_equal(found[: own[place]], rows["tokens"][place, : own[place]])
    assert sorted(seen) == list(range(6))
    (short,) = by_windows(windowed(tokenizer, (1, 1)))
    assert short[1]["tokens"].ndim == 2


def test_only_ngrams_and_windows_are_padded(tokenizer):
    """Faults: the names of classes keep a width of their own; another field is padded; a row more
    than a power of two is."""
    rows = {
        "grams": np.ones((3, 5), np.int32),
        "tokens": np.ones((3, 7), np.int32),
        "vector": np.ones((3, 5), np.float16),
        "names": {"grams": np.ones((2, 9), np.int32)},
        "mask": np.ones(3, bool),
    }
    found = in_few_widths(rows)
    assert jax.tree.map(np.shape, found) == {
        "grams": (3, MOST),
        "tokens": (3, 7),
        "vector": (3, 5),
        "names": {"grams": (2, MOST)},
        "mask": (3,),
    }
    assert found["grams"].sum() == 15 and found["grams"][:, :5].all()
    del rows["names"]

    def padded(count):
        found = in_few_supports({n: a[:1].repeat(count, 0) for n, a in rows.items()}, ("mask",))
        return len(found["mask"])

    assert [padded(count) for count in (1, 4, 5, 8, 9)] == [4, 4, 8, 8, 16]
    assert in_few_supports(rows, ("mask",))["mask"].tolist() == [True] * 3 + [False]
    assert rows["mask"].all()
