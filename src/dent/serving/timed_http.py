"""uvicorn's HTTP protocol, with a limit on how long the headers of a request may take.

uvicorn itself waits for headers without a limit, so a few hundred clients that never finish their
headers can occupy all connections. Importing this module needs uvicorn.
"""

import asyncio
from typing import Any, Final

from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_SECONDS: Final = 10.0
"""Seconds from the connection, or the end of the last response, to the end of the headers."""


class TimedProtocol(H11Protocol):
    """An HTTP protocol that closes a connection whose headers take more than `header_seconds`."""

    header_seconds: float = HEADER_SECONDS
    _header_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Start the timer for the first headers."""
        super().connection_made(transport)
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer."""
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Receive data; stop the timer once a request is complete enough to be answered."""
        super().data_received(data)
        if self._answering:
            self._disarm()
        elif self._header_timer is None:
            self._arm()

    def on_response_complete(self) -> None:
        """Handle data that arrived in the meantime, and start the timer for the next headers."""
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
    """Return the protocol with another limit, in seconds."""
    return type("TimedProtocol", (TimedProtocol,), {"header_seconds": seconds})
