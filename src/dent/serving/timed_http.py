"""uvicorn's HTTP protocol, with a limit on how long the headers of a request may take.

uvicorn itself waits for them without a limit, so that a few hundred clients that never finish their
headers occupy all connections. Importing this module needs uvicorn.
"""

import asyncio
from typing import Any, Final

from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_SECONDS: Final = 10.0
"""Seconds from the connection, or the end of the last response, to the end of the headers."""


class TimedProtocol(H11Protocol):
    """Closes a connection whose headers take longer than `header_seconds`."""

    header_seconds: float = HEADER_SECONDS
    _header_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Give a client time for its first headers."""
        super().connection_made(transport)
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer."""
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Receive data; the headers of the next request have a time limit as well."""
        super().data_received(data)
        if self._answering:
            self._disarm()
        elif self._header_timer is None:
            self._arm()

    def on_response_complete(self) -> None:
        """Handle what arrived in the meantime, which may be half a request."""
        super().on_response_complete()
        if not self._answering:
            self._arm()

    @property
    def _answering(self) -> bool:
        cycle: Any = self.cycle  # none before the first request
        return cycle is not None and not cycle.response_complete

    def _arm(self) -> None:
        self._disarm()
        self._header_timer = self.loop.call_later(self.header_seconds, self._give_up)

    def _disarm(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _give_up(self) -> None:
        if not self._answering and not self.transport.is_closing():
            self.transport.close()


def timed(seconds: float) -> type[TimedProtocol]:
    """The protocol with another limit."""
    return type("TimedProtocol", (TimedProtocol,), {"header_seconds": seconds})
