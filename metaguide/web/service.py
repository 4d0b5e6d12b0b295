"""The service: one guide, its batches and its lessons, without HTTP."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple, TypeVar

from metaguide.data.catalogue import Product, Question, Review
from metaguide.data.histories import History
from metaguide.guide import AdaptedGuide, asked
from metaguide.tasks import TASKS
from metaguide.web.batching import Batcher, Full
from metaguide.web.errors import Refusal, invalid, task_lacks
from metaguide.web.metrics import Metrics
from metaguide.web.schemas import Limits
from metaguide.web.shelf import Shelf
from metaguide.web.teaching import (
    Lesson,
    Outcome,
    adapted_to,
    held_back,
    label_of,
    lesson,
)
from metaguide.web.warming import warm, warm_lessons

T = TypeVar("T")

_log = logging.getLogger("metaguide.web")


class Report(NamedTuple):
    """What to say of a lesson: its outcomes, its notes, and the seconds that it took."""

    outcomes: Sequence[Outcome]
    notes: Sequence[str]
    seconds: float


class Service:
    """Answers by an adapted guide, and teaches it.

    The guide is replaced whole, by one assignment in the event loop: a batch is answered by the
    guide of before a lesson, or by that of after it.

    Attributes:
        guide: the guide that answers now.
        shelf: the products of its domain.
        limits: the limits of requests.
        can_save: whether there is a folder to save to.
    """

    def __init__(
        self,
        guide: AdaptedGuide,
        limits: Limits,
        metrics: Metrics,
        save_to: Path | None = None,
    ):
        self.guide, self.shelf, self.limits = guide, Shelf(guide.domain.products), limits
        self.can_save = save_to is not None
        self._original, self._save_to, self._metrics = guide, save_to, metrics
        self._answering = ThreadPoolExecutor(1, thread_name_prefix="answer")
        self._teaching = ThreadPoolExecutor(1, thread_name_prefix="teach")
        self._lesson = Lock()
        self._batchers: dict[str, Batcher] = {}

    @property
    def taught(self) -> int:
        """Return the number of examples that the guide was taught here."""
        return sum(
            len(adapted_to(self.guide, task) - adapted_to(self._original, task))
            for task in self.guide.adapted
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Compile what requests need, and answer them during the body of a `with`.

        Lessons are prepared while the first requests are answered.
        """
        loop = asyncio.get_running_loop()
        work = partial(warm, self.guide, tuple(self.guide.adapted), self.limits.batch)
        await loop.run_in_executor(self._answering, work)
        self._batchers = {
            task: Batcher(
                self._predict,
                self._answering,
                most=self.limits.batch,
                room=self.limits.queue,
                wait=self.limits.wait,
                observe=partial(self._metrics.observe_batch, task),
            )
            for task in TASKS
        }
        running = [asyncio.create_task(one.run()) for one in self._batchers.values()]
        self._teaching.submit(warm_lessons, self.guide)
        try:
            yield
        finally:
            for one in running:
                one.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            self._answering.shutdown(wait=False, cancel_futures=True)
            self._teaching.shutdown(wait=False, cancel_futures=True)

    def _predict(self, examples: list[Any]) -> list[tuple[Any, bool]]:
        # A ranking of few products is the beginning of one of more.
        top = self.limits.top if isinstance(examples[0], History) else None
        guide = self.guide  # a lesson may replace it
        answers, are_read = guide.predict(examples, top), guide.reads_to_the_end(examples)
        return list(zip(answers, are_read, strict=True))

    def check_task(self, task: str) -> None:
        """Check that the guide answers a task.

        Raises:
            Refusal: it does not; the reason is that of the guide's notes.
        """
        if task not in self.guide.adapted:
            raise task_lacks(task, tuple(self.guide.notes.get(task, ())))

    async def ask(self, task: str, examples: Sequence[Any]) -> list[tuple[Any, bool]]:
        """Return the guide's prediction of each example, and whether the text was read to its end.

        Raises:
            Refusal: the task or an example cannot be answered, or too many wait.
        """
        self.check_task(task)
        try:
            # Checked here, so that no request fails for another's example.
            return await self._batchers[task].ask(asked(examples))
        except Full as error:
            hint = "try again in a second"
            raise Refusal(503, "busy", "too many requests wait", hint, retry_after=1) from error
        except ValueError as error:
            raise Refusal(422, "invalid", str(error), "see /docs") from error

    async def teach(
        self,
        task: str,
        examples: Sequence[Product | Review | Question],
        marks: Sequence[bool | None],
        seed: int,
    ) -> Report:
        """Adapt the guide further to examples that are not held back, and measure on the others.

        Args:
            task: the task of the examples, which the guide was trained on.
            examples: labelled examples, without repeats.
            marks: whether each is held back; None to draw.
            seed: seed of the draw.

        Raises:
            Refusal: nothing can be taught, there are too many, or another lesson is given.
        """
        before = self.guide
        if task not in before.guide.serving:
            raise task_lacks(task, tuple(before.notes.get(task, ())))
        known = adapted_to(before, task)
        is_known = [one.id in known for one in examples]
        held = held_back([label_of(one) for one in examples], marks, is_known, seed)
        new = {one.id for one, is_held in zip(examples, held, strict=True) if not is_held}
        if not new:
            hint = "mark fewer of them as held back"
            raise Refusal(422, "nothing_taught", "all examples are held back", hint, "examples")
        if len(known | new) > self.limits.taught:
            hint = f"the guide adapts to at most {self.limits.taught}; send fewer, or reset it"
            raise Refusal(422, "too_many", "there are too many examples", hint, "examples")
        start = time.perf_counter()

        def work() -> Lesson:
            found = lesson(before, task, examples, held)
            # Other categories are another program, which nobody should wait for.
            warm(found.guide, (task,), self.limits.batch)
            return found

        try:
            async with self._alone(work) as found:
                self.guide = found.guide
        except ValueError as error:
            raise invalid("examples", f"cannot be taught: {error}") from error
        return Report(found.outcomes, found.notes, time.perf_counter() - start)

    async def reset(self) -> None:
        """Forget all lessons.

        Raises:
            Refusal: a lesson is given at the moment.
        """
        async with self._alone(lambda: None):
            self.guide = self._original

    async def save(self) -> None:
        """Save the guide with its lessons into the server's folder.

        Raises:
            Refusal: the server has no such folder, or cannot write it.
        """
        if (folder := self._save_to) is None:
            hint = "start the server with a folder to save to"
            raise Refusal(409, "cannot_save", "this server has nowhere to save to", hint)
        guide = self.guide
        try:
            async with self._alone(lambda: guide.save(folder)):
                pass
        except (OSError, ValueError) as error:
            # The message names a path of this machine, which is for its log alone.
            _log.error("the guide could not be saved: %s", error)
            hint = "the server's log says why"
            raise Refusal(409, "save_failed", "the guide could not be saved", hint) from error

    @asynccontextmanager
    async def _alone(self, work: Callable[[], T]) -> AsyncIterator[T]:
        """Run work that changes the guide, in its own thread; no other begins before a `with` ends.

        Work that was given up runs on, since no thread can be stopped, and until then no other
        begins either; its result is dropped.

        Raises:
            Refusal: other such work runs.
        """
        if not self._lesson.acquire(blocking=False):
            hint = "try again in a few seconds"
            raise Refusal(409, "lesson_running", "another lesson runs", hint, retry_after=5)
        future = self._teaching.submit(work)
        try:
            yield await asyncio.wrap_future(future)
        finally:
            future.add_done_callback(lambda _: self._lesson.release())
