"""The server answers texts of every length by the programs that it compiled at the start."""

import pytest

from metaguide.data.catalogue import Product, Question, Review
from metaguide.data.histories import History
from metaguide.training.program import compilations
from metaguide.web import shapes

WORDS = [f"good{number}" for number in range(60)]


@pytest.mark.slow
def test_no_width_is_compiled_for(adapted):
    """Faults: a text with another number of n-grams, a passage with another number of windows or a
    batch of another size makes a user wait for a program; padding changes an answer or its place;
    many windows of many passages are held in memory at once."""
    shapes.warm(adapted, tuple(adapted.adapted), 3)

    def counts():
        return {name: compilations(one.learner.predict) for name, one in adapted.adapted.items()}

    before = counts()
    lengths = (1, 2, 5, 11, 17, 40, 3, 60, 8)
    batches = [
        [Product("", " ".join(WORDS[:length])) for length in lengths],
        [Review("", " ".join(WORDS[:length])) for length in lengths],
        [Question("", "who?", "it is Ann " * (length % 12)) for length in lengths],
        [History("u", ids) for ids in ((), ("phone0",), ("phone0", "shoe1", "shoe2"))],
    ]
    found = []
    for batch in batches:
        parts = [batch[:1], batch[1:3], batch[3:6], batch[6:]]
        found.append([one for part in parts if part for one in shapes.predict(adapted, part)])
    assert counts() == before
    products, reviews, questions, histories = (adapted.predict(batch) for batch in batches)
    for one, wanted in zip(found[0], products, strict=True):
        assert one.probabilities == pytest.approx(wanted.probabilities, abs=1e-5)
    for one, wanted in zip(found[1], reviews, strict=True):
        assert one.positive == pytest.approx(wanted.positive, abs=1e-5)
    assert found[2] == questions
    assert [one.products for one in found[3]] == [one.products for one in histories]


def test_many_windows_are_answered_in_parts(adapted, monkeypatch):
    """Faults: memory grows with the passages of a batch times the windows of the longest one; the
    answers come in another order than the questions, or with that of the companion."""
    sizes = []

    def counted(self, batch, top=None):
        sizes.append(len(batch))
        return [one.text for one in batch]

    monkeypatch.setattr(type(adapted), "predict", counted)
    monkeypatch.setattr(shapes, "WINDOWS_AT_ONCE", 16)
    long = [Question("", "who?", f"{number} it is Ann " * 12) for number in range(4)]
    asked = [*long[:2], Question("", "who?", "Ann"), *long[2:]]
    assert shapes.predict(adapted, asked) == [one.text for one in asked]
    assert sizes == [2, 2, 2, 2, 1]
