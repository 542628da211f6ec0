"""Admit requests while there is room, and refuse all once the server drains."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from dent.serving.errors import RefusedError
from dent.support.plural import agreeing, counted


class Admission:
    """A count of the requests that are admitted and not yet answered.

    Args:
        most: largest number of such requests.
        retry_after: returns the seconds after which the queue will probably have room.
    """

    def __init__(self, most: int, retry_after: Callable[[], int] = lambda: 1) -> None:
        self._most = most
        self._retry_after = retry_after
        self._inside = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self.draining = False

    @property
    def inside(self) -> int:
        """The number of requests that are admitted and not yet answered."""
        return self._inside

    def check(self) -> None:
        """Check that there is room for a request, without taking it.

        Raises:
            RefusedError: 503, the server is draining or full.
        """
        if self.draining:
            raise RefusedError(
                503, "draining", "the server is shutting down: ask another one.", retry_after=5
            )
        if self._inside >= self._most:
            raise RefusedError(
                503,
                "queue-full",
                f"{counted(self._inside, 'request')} {agreeing(self._inside, 'are')} waiting, "
                "which is all that this server takes in.",
                retry_after=self._retry_after(),
            )

    @contextmanager
    def enter(self) -> Iterator[None]:
        """Hold a place for one request.

        Raises:
            RefusedError: 503, as in `check`.
        """
        self.check()
        self._inside += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._inside -= 1
            if not self._inside:
                self._idle.set()

    async def drain(self) -> None:
        """Admit no more requests, and wait until all admitted ones are answered."""
        self.draining = True
        await self._idle.wait()
