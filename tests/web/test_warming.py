"""The server answers texts of every length by the programs that it compiled at the start."""

import asyncio
import threading

import pytest

from metaguide.data.catalogue import Product, Question, Review
from metaguide.data.histories import History
from metaguide.training.program import compilations
from metaguide.web import service
from metaguide.web.metrics import Metrics
from metaguide.web.schemas import Limits
from metaguide.web.warming import warm, warm_lessons

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


@pytest.mark.slow
@pytest.mark.usefixtures("room_for_programs")
def test_the_first_lesson_finds_its_programs(adapted, monkeypatch):
    """Faults: the first lesson compiles, or reads all texts of before anew; a server that starts
    does not prepare lessons."""
    ready = threading.Event()

    def prepared(guide):
        warm_lessons(guide)
        ready.set()

    monkeypatch.setattr(service, "warm_lessons", prepared)

    async def started():
        async with service.Service(adapted, Limits(batch=1), Metrics()).running():
            assert await asyncio.to_thread(ready.wait, 60)

    asyncio.run(started())
    taught = {name: one for name, one in adapted.adapted.items() if one.support}
    before = {name: compilations(one.learner.adapt) for name, one in taught.items()}
    assert len(before) > 1 and all(before.values())
    for one in taught.values():
        adapted.adapt(one.support[-1:])
    assert {name: compilations(one.learner.adapt) for name, one in taught.items()} == before
