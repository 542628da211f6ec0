"""Read the bodies of requests before they are admitted."""

import asyncio
from typing import Final

from starlette.types import Message, Receive, Scope

from dent.serving.errors import RefusedError, malformed, too_large, unsupported
from dent.serving.limits import Limits
from dent.support.plural import counted

AT_ONCE: Final = 16
"""Number of bodies that may be arriving at once, for each of `max_requests`."""


class Arrivals:
    """A reader of request bodies, with limits on size, time and number.

    If too many bodies are arriving, or they hold too many bytes, the oldest is given up. So a
    client that sends half a body and waits cannot block others.

    Args:
        limits: each body may have `max_body_bytes` and take `timeout`. All together may have
            `max_requests` times `max_body_bytes`, and number `max_requests` times `AT_ONCE`.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._most = AT_ONCE * limits.max_requests
        self._budget = limits.max_requests * limits.max_body_bytes
        self._coming: dict[_Arrival, None] = {}

    @property
    def coming(self) -> int:
        """The number of bodies that are arriving."""
        return len(self._coming)

    async def read(self, scope: Scope, receive: Receive) -> bytes:
        """Return the body of a request.

        Raises:
            RefusedError: 400, the connection ended; 408, the body took too long or was given up;
                413, it is too large; 415, it is encoded.
        """
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        if headers.get(b"content-encoding", "identity").lower() != "identity":
            raise unsupported("Content-Encoding is not read here: send the body as it is.")
        declared, most = headers.get(b"content-length", ""), self._limits.max_body_bytes
        if declared.isdecimal() and int(declared[:20]) > most:
            size = counted(int(declared[:20]), "byte")
            raise too_large(f"the body has {size}; this server takes {most}.")
        try:
            async with asyncio.timeout(self._limits.timeout) as deadline:
                arrival = _Arrival(deadline)
                self._coming[arrival] = None
                self._make_room()
                await self._take(arrival, receive)
        except TimeoutError:
            raise RefusedError(408, "slow-body", self._late(arrival)) from None
        finally:
            self._coming.pop(arrival, None)
        return bytes(arrival.body)

    async def _take(self, arrival: "_Arrival", receive: Receive) -> None:
        most, more = self._limits.max_body_bytes, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise malformed("the connection ended before the body did.")
            chunk = message.get("body", b"")
            if len(arrival.body) + len(chunk) > most:
                raise too_large(f"the body has more than the {counted(most, 'byte')} taken here.")
            arrival.body += chunk
            self._make_room()
            more = message.get("more_body", False)

    def _make_room(self) -> None:
        while len(self._coming) > self._most or (
            sum(len(arrival.body) for arrival in self._coming) > self._budget
        ):
            oldest = next(iter(self._coming))
            del self._coming[oldest]
            oldest.give_up()

    def _late(self, arrival: "_Arrival") -> str:
        if arrival.given_up:
            return "too many bodies were arriving, and this one was the oldest: send it again."
        return f"the body took more than {self._limits.timeout:g} s to arrive."


class _Arrival:
    """A body that is arriving."""

    def __init__(self, deadline: asyncio.Timeout) -> None:
        self._deadline = deadline
        self.body = bytearray()
        self.given_up = False

    def give_up(self) -> None:
        self.given_up = True
        self._deadline.reschedule(asyncio.get_running_loop().time())


async def left(receive: Receive) -> None:
    """Return once the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


def replayed(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that first gives a body that was already read, then further messages."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay
