"""Collect requests into batches, without letting one client change another's answer.

If the defense is batch-dependent, every request is its own batch. Otherwise, requests that arrive
together share a batch. A request that needs fewer steps to meet its deadline is answered alone.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dent.serving.engine import Clock, Engine, ServedAnswer
from dent.serving.errors import RefusedError
from dent.serving.limits import Limits
from dent.serving.metrics import Metrics

_LOG = logging.getLogger(__name__)


@dataclass(eq=False)
class Job:
    """The images of a request, and the times by which they must be answered.

    Attributes:
        images: (N, C, H, W), float32 in [0, 1].
        arrived: time of arrival, by the batcher's clock.
        deadline: time by which it should be answered, with fewer steps if necessary; None for all
            steps.
        expires: time at which it stops waiting for its batch to start.
        answer: the future of the answer.
        started: whether its batch has started.
    """

    images: Tensor
    arrived: float
    deadline: float | None
    expires: float
    answer: "asyncio.Future[ServedAnswer]" = field(init=False)
    started: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        """Create the future of the answer."""
        self.answer = asyncio.get_running_loop().create_future()


class Batcher:
    """A queue of jobs for one engine, which answers them in its own thread, in order of arrival.

    Args:
        engine: answers the batches.
        limits: the batcher uses `max_batch_size` and `max_wait`.
        metrics: record every batch.
        clock: returns the time in seconds; the times of jobs must use the same clock.
    """

    def __init__(self, engine: Engine, limits: Limits, metrics: Metrics, clock: Clock) -> None:
        self._engine, self._limits, self._metrics, self._clock = engine, limits, metrics, clock
        self._waiting: deque[Job] = deque()
        self._arrival = asyncio.Event()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="dent-engine")
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start to answer jobs."""
        self._task = asyncio.get_running_loop().create_task(self._serve())

    async def stop(self) -> None:
        """Stop answering. Jobs that are still waiting are never answered, so drain first."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._thread.shutdown(wait=True, cancel_futures=True)

    @property
    def images_waiting(self) -> int:
        """The number of images in jobs whose batch has not started."""
        return sum(len(job.images) for job in self._waiting)

    def backlog(self) -> float:
        """Return the estimated seconds to answer the waiting jobs, each in its own batch."""
        steps = self._engine.steps
        return sum(self._engine.cost.seconds(len(job.images), steps) for job in self._waiting)

    async def submit(self, job: Job) -> ServedAnswer:
        """Add a job, wait for its answer, and return it.

        Raises:
            RefusedError: 504, its batch did not start in time, or not even one step fits into its
                deadline; 500, the defense failed.
        """
        self._waiting.append(job)
        self._arrival.set()
        try:
            await asyncio.wait({job.answer}, timeout=max(job.expires - self._clock(), 0))
            if not job.started and not job.answer.done():
                raise _late("the batch did not start in time")
            return await job.answer
        finally:
            job.answer.cancel()  # otherwise asyncio warns about a failure that nobody retrieves
            if not job.started and job in self._waiting:
                self._waiting.remove(job)

    async def _serve(self) -> None:
        while True:
            try:
                jobs, steps = await self._next()
                await self._run(jobs, steps)
            except Exception:  # after any error, the next request must still be answered
                _LOG.exception("A batch could not be formed or counted")

    async def _next(self) -> tuple[list[Job], int]:
        """Return the jobs of the next batch, and its number of steps."""
        while True:
            self._arrival.clear()
            if not self._waiting:
                await self._arrival.wait()
                continue
            await self._wait_for_more()
            if not self._waiting:
                continue
            head = self._waiting.popleft()
            head.started = True
            steps = self._steps(head)
            if steps is None:
                _refuse(head, _late("not even one step fits into the deadline"))
            elif steps < self._engine.steps:
                return [head], steps
            else:
                return [head, *self._companions(head)], steps

    async def _wait_for_more(self) -> None:
        """Wait for more jobs until the batch is full or the first one has waited for `max_wait`."""
        if not self._engine.shares:
            return
        latest = self._waiting[0].arrived + self._limits.max_wait
        while self._waiting and self.images_waiting < self._limits.max_batch_size:
            remaining = latest - self._clock()
            if remaining <= 0:
                return
            self._arrival.clear()
            try:
                await asyncio.wait_for(self._arrival.wait(), remaining)
            except TimeoutError:
                return

    def _steps(self, job: Job) -> int | None:
        engine = self._engine
        if job.deadline is None:
            return engine.steps
        remaining = job.deadline - self._clock()
        if remaining <= 0:
            return None
        return engine.cost.steps_within(len(job.images), engine.steps, remaining)

    def _companions(self, head: Job) -> list[Job]:
        """Return the jobs that can join the head's batch with all steps and no missed deadline."""
        if not self._engine.shares:
            return []
        jobs, images = [head], len(head.images)
        while self._waiting:
            job = self._waiting[0]
            images += len(job.images)
            if images > self._limits.max_batch_size or not self._in_time([*jobs, job], images):
                break
            job.started = True
            jobs.append(self._waiting.popleft())
        return jobs[1:]

    def _in_time(self, jobs: Sequence[Job], images: int) -> bool:
        end = self._clock() + self._engine.cost.seconds(images, self._engine.steps)
        return all(job.deadline is None or end <= job.deadline for job in jobs)

    async def _run(self, jobs: list[Job], steps: int) -> None:
        self._metrics.batch_starts([self._clock() - job.arrived for job in jobs])
        await self._answer(jobs, steps)

    async def _answer(self, jobs: list[Job], steps: int) -> None:
        loop = asyncio.get_running_loop()
        try:
            answer = await loop.run_in_executor(self._thread, self._compute, jobs, steps)
        except (Exception, SystemExit) as error:  # SystemExit would end the event loop
            if len(jobs) > 1:  # one of them may be the cause; the others must not fail with it
                for job in jobs:
                    await self._answer([job], steps)
                return
            _LOG.exception("A batch of %d images failed", len(jobs[0].images))
            failed = RefusedError(500, "failed", f"the defense failed: {type(error).__name__}.")
            _refuse(jobs[0], failed)
            return
        start = 0
        for job in jobs:
            if not job.answer.done():
                job.answer.set_result(answer[start : start + len(job.images)])
            start += len(job.images)
        self._metrics.batch_ends(answer, len(jobs))

    def _compute(self, jobs: list[Job], steps: int) -> ServedAnswer:
        images = torch.cat([job.images for job in jobs]) if len(jobs) > 1 else jobs[0].images
        return self._engine.run(images, steps)


def _refuse(job: Job, error: RefusedError) -> None:
    if not job.answer.done():
        job.answer.set_exception(error)


def _late(what: str) -> RefusedError:
    return RefusedError(504, "deadline", f"{what}: allow more time, or send fewer images.")
