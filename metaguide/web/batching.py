"""Micro-batches: requests that arrive together are answered by one call, beside the event loop."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Any, NamedTuple


class Full(Exception):
    """Too many examples wait already."""


class _Job(NamedTuple):
    examples: Sequence[Any]
    answers: asyncio.Future[list[Any]]


class Batcher:
    """Answers the requests of one task together.

    While a batch is computed, the requests of the next one gather; only an idle batcher waits, for
    `wait` seconds.

    Args:
        answer: examples -> as many answers; called in `pool`.
        pool: what runs it.
        most: number of examples of a batch. A larger request is a batch of its own.
        room: number of examples that may wait.
        wait: seconds to wait for other requests.
        observe: called with the number of examples of each batch.
    """

    def __init__(
        self,
        answer: Callable[[list[Any]], Sequence[Any]],
        pool: Executor,
        *,
        most: int,
        room: int,
        wait: float,
        observe: Callable[[int], None] = lambda size: None,
    ):
        self._answer, self._pool, self._observe = answer, pool, observe
        self._most, self._room, self._wait = most, room, wait
        self._jobs: deque[_Job] = deque()
        self._arrived = asyncio.Event()

    @property
    def waiting(self) -> int:
        """Return the number of examples that wait, without those that were given up."""
        return sum(len(job.examples) for job in self._jobs if not job.answers.done())

    async def ask(self, examples: Sequence[Any]) -> list[Any]:
        """Return the answers to examples; cancelled before its batch begins, it costs nothing.

        Raises:
            Full: too many examples wait.
            Exception: what `answer` raised for these examples.
        """
        if self.waiting and self.waiting + len(examples) > self._room:
            raise Full
        job = _Job(examples, asyncio.get_running_loop().create_future())
        self._jobs.append(job)
        self._arrived.set()
        return await job.answers

    async def run(self) -> None:
        """Answer requests until cancelled."""
        while True:
            await self._arrived.wait()
            if 0 < self.waiting < self._most:
                await asyncio.sleep(self._wait)
            if jobs := self._next():
                await self._serve(jobs)

    def _next(self) -> list[_Job]:
        """Remove and return the jobs of the next batch, without those that were given up."""
        jobs: list[_Job] = []
        room = self._most
        while self._jobs and (not jobs or len(self._jobs[0].examples) <= room):
            job = self._jobs.popleft()
            if not job.answers.done():
                jobs.append(job)
                room -= len(job.examples)
        if not self._jobs:
            self._arrived.clear()
        return jobs

    async def _serve(self, jobs: Sequence[_Job]) -> None:
        """Answer jobs together; if that fails, each alone, so that only the faulty one fails."""
        examples = [example for job in jobs for example in job.examples]
        loop = asyncio.get_running_loop()
        try:
            self._observe(len(examples))
            answers = await loop.run_in_executor(self._pool, self._answer, examples)
        except Exception as error:
            if len(jobs) > 1:
                for job in jobs:
                    await self._serve([job])
            elif not jobs[0].answers.done():
                jobs[0].answers.set_exception(error)
            return
        start = 0
        for job in jobs:
            if not job.answers.done():
                job.answers.set_result(list(answers[start : start + len(job.examples)]))
            start += len(job.examples)
