"""Turn work that reports by calling back into a stream to iterate over, which can be stopped."""

from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Generic, Protocol, TypeVar

Seen = TypeVar("Seen")
Done = TypeVar("Done")


class Stopped(BaseException):
    """The work was asked to stop, and did.

    No `Exception`, as a model is what raises it: who catches what a model raises must not catch it.
    """


class Stop(Protocol):
    """What `threading.Event` is, as far as a stream looks."""

    def set(self) -> None:
        """Ask to stop."""

    def is_set(self) -> bool:
        """Whether to stop."""


class Stream(Generic[Seen, Done]):
    """Work in a thread of its own, as a stream of what it reports. The work waits for no reader.

    Args:
        work: Called with a function to report by, which raises `Stopped` once `stop` is set.
        stop: Set it to stop the work at its next report.
    """

    def __init__(self, work: Callable[[Callable[[Seen], None]], Done], stop: Stop) -> None:
        self._work = work
        self._stop = stop
        self._reports: SimpleQueue[Seen | None] = SimpleQueue()
        self._future: Future[Done] = Future()

    def __iter__(self) -> Generator[list[Seen]]:
        """Yield what was reported since the last time, at least one; end when the work does.

        If the generator is closed before, the work is stopped and waited for.
        """
        with ThreadPoolExecutor(1) as pool:
            self._future = pool.submit(self._work, self._report)
            self._future.add_done_callback(lambda _: self._reports.put(None))
            try:
                seen: list[Seen] = []
                while (report := self._reports.get()) is not None:
                    seen.append(report)
                    if self._reports.empty():
                        yield seen
                        seen = []
                if seen:
                    yield seen
            finally:
                if not self._future.done():
                    self._stop.set()

    def result(self) -> Done:
        """Return what the work returned, once the stream has ended.

        Raises:
            Stopped: The work was stopped.
            Exception: Whatever else the work raised.
        """
        return self._future.result()

    def _report(self, seen: Seen) -> None:
        if self._stop.is_set():
            raise Stopped
        self._reports.put(seen)
