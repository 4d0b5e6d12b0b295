"""The server answers texts of every length by the programs that it compiled at the start."""

import pytest

from metaguide.data.catalogue import Product, Question, Review
from metaguide.data.histories import History
from metaguide.training.program import compilations
from metaguide.web.warming import warm

WORDS = [f"good{number}" for number in range(60)]


@pytest.mark.slow
@pytest.mark.usefixtures("room_for_programs")
def test_no_width_is_compiled_for(adapted):
    """Fault: a text with another number of n-grams, a passage with another number of windows or a
    batch of another size makes a user wait for a program."""
    warm(adapted, tuple(adapted.adapted), 4)

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
    for batch in batches:
        for part in (batch[:1], batch[1:3], batch[3:6], batch[6:]):
            adapted.predict(part)
    assert counts() == before
