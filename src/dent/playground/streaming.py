"""Turn work that reports through a callback into an iterable stream that can be stopped."""

from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Generic, Protocol, TypeVar

Report = TypeVar("Report")
Result = TypeVar("Result")


class Stopped(BaseException):
    """The work has stopped, because it was asked to.

    It is not an `Exception`: it is raised inside a model, and code that catches the exceptions of
    a model must not catch it.
    """


class Stop(Protocol):
    """The part of `threading.Event` that a stream uses."""

    def set(self) -> None:
        """Ask the work to stop."""

    def is_set(self) -> bool:
        """Return whether the work has to stop."""


class ReportStream(Generic[Report, Result]):
    """A stream of reports from work in a separate thread. The work does not wait for the reader.

    Args:
        work: Called with a function that takes a report. Once `stop` is set, that function raises
            `Stopped`.
        stop: Set it to stop the work at its next report.
    """

    def __init__(self, work: Callable[[Callable[[Report], None]], Result], stop: Stop) -> None:
        self._work = work
        self._stop = stop
        self._reports: SimpleQueue[Report | None] = SimpleQueue()
        self._future: Future[Result] = Future()

    def __iter__(self) -> Generator[list[Report]]:
        """Yield lists of the new reports, at least one in each, until the work ends.

        Closing the generator earlier stops the work and waits for its end.
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
        """Return the result of the work, once the stream has ended.

        Raises:
            Stopped: The work was stopped.
            Exception: The work raised this exception.
        """
        return self._future.result()

    def _report(self, report: Report) -> None:
        if self._stop.is_set():
            raise Stopped
        self._reports.put(report)
