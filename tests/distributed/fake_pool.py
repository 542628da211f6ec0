"""A pool of workers in this process, which die when a test says so."""

import pickle
import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from dent.distributed.driver import Event, Failed, Finished, Lost, Ready, Recorded, drive
from dent.distributed.tasks import Found, Task, Worker, pack
from dent.evaluation import EvaluationResult, Settings, Subject
from dent.evaluation.engine.progress import OnProgress
from dent.evaluation.records.plan import Unit
from dent.evaluation.records.shard import Shard
from dent.evaluation.run import RemainingWork, evaluate_with

Dies = Callable[[Task | None], bool]
"""Decides from the task of a worker if it dies now. It is called before the worker is ready (with
None) and before every record."""


class FakePool:
    """In each call of `wait`, draws a worker at random and runs it for one unit."""

    def __init__(self, work: RemainingWork, size: int, dies: Dies, seed: int = 0) -> None:
        self.size = size
        self._dies = dies
        self._draw = random.Random(seed)  # noqa: S311
        self._content = pack(work.prepared, pickle)
        self._workers: dict[int, Worker] = {}
        self._starting: list[int] = []
        self._streams: dict[int, Iterator[Found]] = {}
        self.hired = 0
        self._doing: dict[int, Task] = {}
        self.tasks: list[Task] = []

    def hire(self) -> int:
        self.hired += 1
        self._starting.append(self.hired)
        return self.hired

    def give(self, worker: int, task: Task) -> None:
        assert worker not in self._streams
        self.tasks.append(task)
        self._doing[worker] = task
        self._streams[worker] = self._workers[worker].work(task)

    def wait(self, seconds: float) -> list[Event]:
        del seconds
        worker = self._draw.choice([*self._starting, *self._streams])
        if self._dies(self._doing.get(worker)):
            self._streams.pop(worker, None)
            self._workers.pop(worker, None)
            if worker in self._starting:
                self._starting.remove(worker)
            return [Lost(worker, "out of memory")]
        if worker in self._starting:
            self._starting.remove(worker)
            self._workers[worker] = Worker()
            return [Ready(worker, self._workers[worker].prepare(self._content, "cpu", 1, "/no"))]
        try:
            return [Recorded(worker, next(self._streams[worker]))]
        except StopIteration:
            del self._streams[worker], self._doing[worker]
            return [Finished(worker)]
        except Exception as error:
            return [Failed(worker, error)]

    def within(self) -> Mapping[int, tuple[Unit, float]]:
        found = {number: worker.within() for number, worker in self._workers.items()}
        return {number: at for number, at in found.items() if at is not None}

    def lacking(self) -> str:
        return "each takes 1 CPU, and the cluster has 0 of 0 CPU free"


def evaluate_by_fakes(
    subject: Subject,
    settings: Settings,
    out: Path,
    *,
    size: int = 2,
    dies: Dies = lambda _: False,
    seed: int = 0,
    attempts: int = 3,
    progress: OnProgress | None = None,
    shard: Shard | None = None,
    notice: Callable[[str], None] = lambda _: None,
    pools: list[FakePool] | None = None,
) -> EvaluationResult:
    """Evaluate as `dent.distributed.evaluate` does, but on a `FakePool` in this process."""

    def run_units(work: RemainingWork) -> None:
        pool = FakePool(work, size, dies, seed)
        if pools is not None:
            pools.append(pool)
        drive(work, pool, attempts=attempts, patience=60.0, notice=notice)

    return evaluate_with(
        subject, settings, run_units, out=out, progress=progress, shard=shard, in_parts=False
    )
