from types import SimpleNamespace

import numpy as np
import pytest

from experiments.benchmarks import answers
from experiments.benchmarks.answers import ADAPT, BATCHES, RANK, TAKEN, TOP, Setting
from metaguide.data.catalogue import Domain, Interaction, Product, Review, write_domain

PRODUCTS = tuple(Product(f"p{i}", f"thing {i} of {'red' if i % 2 else 'blue'}") for i in range(40))
REVIEWS = tuple(
    Review(f"r{i}", f"{('bad', 'good')[i % 2]} number {i}", stars=1.0 + 4.0 * (i % 2))
    for i in range(20)
)


@pytest.fixture
def setting(tmp_path):
    interactions = (Interaction("u", "p1", 1.0),)
    write_domain(Domain("toys", PRODUCTS, REVIEWS, (), interactions), tmp_path / "toys")
    return Setting(str(tmp_path / "toys"), None, "", "")


class _Asked:
    """A guide that notes what it is asked."""

    def __init__(self):
        self.support, self.batches, self.users = [], [], []

    def adapt(self, domain, shots=5, support=()):
        self.support.append([one.label for one in support])
        return self

    def predict(self, batch, top=None):
        if isinstance(batch[0], Review):
            self.batches.append([one.id for one in batch])
        else:
            self.users.append((batch[0].products, top))
        return [None] * len(batch)


def test_each_workload_does_what_its_name_says(setting, monkeypatch):
    """Faults: the guide adapts to other numbers of reviews, is asked another number, the same ones
    twice or those it adapted to, or ranks for a user without a history or everything."""
    guide, given = _Asked(), []
    monkeypatch.setattr(answers, "open_guide", lambda *args, **how: given.append(how) or guide)
    answers.build_metaguide(setting, ADAPT)()
    assert guide.support == [[0] * 5 + [1] * 5] and not guide.batches
    run = answers.build_metaguide(setting, "1-review")
    run(), run()
    assert [len(batch) for batch in guide.batches] == [1, 1]
    assert len({*guide.batches[0], *guide.batches[1]}) == 2
    assert not {*guide.batches[0], *guide.batches[1]} & {one.id for one in REVIEWS[:10]}
    answers.build_metaguide(setting, "64-reviews")()
    assert len(guide.batches[-1]) == 64
    answers.build_metaguide(setting, RANK)()
    products, top = guide.users[-1]
    assert len(set(products)) == TAKEN and top == TOP
    # A vector that is read from a cache would not be the time of a new review.
    assert [how["is_cached"] for how in given] == [True, False, False, True]


def test_the_peers_learn_and_rank(setting):
    """Faults: scikit-learn reads other reviews than the guide, or its labels the wrong way round;
    its ranking holds what the user took, or the worst."""
    pipeline = answers.build_sklearn(setting, ADAPT, on_vectors=False)()
    assert pipeline.predict(["good", "bad"]).tolist() == [1, 0]
    for name, count in BATCHES.items():
        assert answers.build_sklearn(setting, name, on_vectors=False)().shape == (count, 2)
    rows = answers.build_sklearn(setting, RANK, on_vectors=False)()
    taken = answers.parts_of(setting)[3]
    assert len(set(rows.tolist())) == TOP and not {*rows.tolist()} & {*taken}


def test_vectors_are_those_of_the_guide(setting, monkeypatch):
    """Fault: the head of SetFit reads other vectors than the guide."""
    seen = []

    def vectors(texts):
        seen.extend(texts)
        return np.array([[float("good" in text), 1.0] for text in texts])

    reading = SimpleNamespace(reader=SimpleNamespace(vectors=vectors))
    made = SimpleNamespace(reading=reading)
    monkeypatch.setattr(answers, "open_guide", lambda *args: made)
    given = setting._replace(encoder="folder")
    found = answers.build_sklearn(given, "64-reviews", on_vectors=True)()
    assert len(seen) == 10 + 64 and (found[:, 1] > 0.5).tolist() == ["good" in t for t in seen[10:]]
    names = [system.name for system in answers.systems_of(given, RANK)]
    assert names == ["metaguide", "scikit-learn, TF-IDF", "scikit-learn, the same vectors"]
    assert len(answers.systems_of(setting, RANK)) == 2
