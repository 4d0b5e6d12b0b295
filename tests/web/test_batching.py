"""Requests that arrive together are answered together, each with its own answers."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from metaguide.web.batching import Batcher, Full


class Answers:
    """Doubles numbers, and remembers its batches; a negative number fails."""

    def __init__(self):
        self.batches, self.threads = [], set()
        self.go_on = threading.Event()
        self.go_on.set()

    def __call__(self, examples):
        """Answer a batch."""
        self.go_on.wait(5)
        self.threads.add(threading.current_thread().name)
        self.batches.append(list(examples))
        if min(examples) < 0:
            raise ValueError(f"{min(examples)} is negative")
        return [2 * one for one in examples]


def run(test, **settings):
    """Run a coroutine of (batcher, answers) with a batcher that runs."""

    async def body():
        answers = Answers()
        with ThreadPoolExecutor(1, thread_name_prefix="answer") as pool:
            given = {"most": 4, "room": 8, "wait": 0.01, **settings}
            batcher = Batcher(answers, pool, **given)
            running = asyncio.create_task(batcher.run())
            try:
                await asyncio.wait_for(test(batcher, answers), 5)
            finally:
                answers.go_on.set()
                running.cancel()

    asyncio.run(body())


def test_each_gets_its_own_answers_from_few_calls():
    """Faults: a call for each request; answers are swapped; a batch exceeds the limit; the event
    loop computes; sizes are not counted."""
    sizes = []

    async def test(batcher, answers):
        found = await asyncio.gather(*(batcher.ask([n, n + 10]) for n in range(8)))
        assert found == [[2 * n, 2 * n + 20] for n in range(8)]
        assert [len(batch) for batch in answers.batches] == [4, 4, 4, 4] == sizes
        assert answers.threads == {"answer_0"}
        assert await batcher.ask(list(range(9))) == [2 * n for n in range(9)]  # alone

    run(test, room=100, observe=sizes.append)


def test_a_fault_fails_alone():
    """Faults: one bad example fails its whole batch, or ends the batcher."""

    async def test(batcher, answers):
        found = await asyncio.gather(
            *(batcher.ask([n]) for n in (1, -2, 3)), return_exceptions=True
        )
        assert found[0] == [2] and found[2] == [6]
        assert isinstance(found[1], ValueError) and "-2" in str(found[1])
        assert await batcher.ask([5]) == [10]

    run(test)


def test_what_is_too_much_is_refused_and_what_is_given_up_costs_nothing():
    """Faults: the queue grows without bound; a request that timed out is computed all the same."""

    async def test(batcher, answers):
        answers.go_on.clear()
        first = asyncio.create_task(batcher.ask([0]))
        await asyncio.sleep(0.05)  # its batch has begun
        waiting = [asyncio.create_task(batcher.ask([n, n])) for n in range(1, 5)]
        await asyncio.sleep(0.01)
        assert batcher.waiting == 8
        with pytest.raises(Full):
            await batcher.ask([9])
        waiting[0].cancel()
        answers.go_on.set()
        assert await first == [0]
        assert await asyncio.gather(*waiting[1:]) == [[4, 4], [6, 6], [8, 8]]
        assert 1 not in [one for batch in answers.batches for one in batch]

    run(test)
