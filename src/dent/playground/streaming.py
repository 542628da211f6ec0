"""Turn work that reports by calling back into a stream to iterate over, which can be stopped."""

from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Generic, Protocol, TypeVar

Report = TypeVar("Report")
Result = TypeVar("Result")


class Stopped(BaseException):
    """The work was asked to stop, and did.

    It is no `Exception`, since it is raised inside a model: code that catches the exceptions of a
    model must not catch it.
    """


class Stop(Protocol):
    """The part of `threading.Event` that a stream uses."""

    def set(self) -> None:
        """Ask to stop."""

    def is_set(self) -> bool:
        """Whether to stop."""


class ReportStream(Generic[Report, Result]):
    """A stream of the reports of work in a thread of its own. The work waits for no reader.

    Args:
        work: Called with a function to report by, which raises `Stopped` once `stop` is set.
        stop: Set it to stop the work at its next report.
    """

    def __init__(self, work: Callable[[Callable[[Report], None]], Result], stop: Stop) -> None:
        self._work = work
        self._stop = stop
        self._reports: SimpleQueue[Report | None] = SimpleQueue()
        self._future: Future[Result] = Future()

    def __iter__(self) -> Generator[list[Report]]:
        """Yield the reports since the last time, at least one; end when the work ends.

        If the generator is closed earlier, it stops the work and waits for its end.
        """
        with ThreadPoolExecutor(1) as pool:
            self._future = pool.submit(self._work, self._report)
            self._future.add_done_callback(lambda _: self._reports.put(None))
            try:
                reports: list[Report] = []
                while (report := self._reports.get()) is not None:
                    reports.append(report)
                    if self._reports.empty():
                        yield reports
                        reports = []
                if reports:
                    yield reports
            finally:
                if not self._future.done():
                    self._stop.set()

    def result(self) -> Result:
        """Return what the work returned, once the stream has ended.

        Raises:
            Stopped: The work was stopped.
            Exception: Whatever else the work raised.
        """
        return self._future.result()

    def _report(self, report: Report) -> None:
        if self._stop.is_set():
            raise Stopped
        self._reports.put(report)
