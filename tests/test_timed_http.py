"""Connections with unfinished headers are closed; slow bodies and responses are not cut off."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
import uvicorn

from dent.serving import timed_http
from dent.support import listening

LIMIT = 0.3
LONGER = 3 * LIMIT


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Reads the body, waits if the path is /slow, and responds with the length of the body."""
    size, more = 0, True
    while more:
        message = await receive()
        size += len(message.get("body", b""))
        more = message.get("more_body", False)
    if scope["path"] == "/slow":
        await asyncio.sleep(LONGER)
    body = b"%d" % size
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture(scope="module")
def address() -> Iterator[tuple[str, int]]:
    with listening.listen("127.0.0.1", 0) as listener:
        config = uvicorn.Config(
            app, http=timed_http.timed(LIMIT), lifespan="off", log_level="error", ws="none"
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        yield listener.getsockname()
        server.should_exit = True
        thread.join(20)


def everything(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(65536), b""))


def test_connections_with_unfinished_headers_are_closed(address: tuple[str, int]) -> None:
    """The client sends nothing, only some headers, or one more line from time to time."""
    connections = [socket.create_connection(address, timeout=20) for _ in range(12)]
    for at, each in enumerate(connections):
        if at % 3:
            each.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n")
    dripping, closed = [each for at, each in enumerate(connections) if at % 3 == 2], 0
    for _ in range(100):
        time.sleep(LIMIT / 5)
        for each in dripping:
            try:
                each.sendall(b"X: y\r\n")
            except OSError:
                closed += 1
        if closed:
            break
    assert closed
    for each in connections:
        with each, suppress(ConnectionResetError):
            assert everything(each) == b""


def test_the_time_limit_applies_to_the_headers_of_a_second_request(
    address: tuple[str, int],
) -> None:
    whole = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    for second in (b"", b"GET / HTTP/1.1\r\nHost: x\r\n"):
        with socket.create_connection(address, timeout=20) as connection:
            connection.sendall(whole + second)
            assert everything(connection).startswith(b"HTTP/1.1 200")


def test_slow_responses_and_slow_bodies_are_not_cut_off(address: tuple[str, int]) -> None:
    with socket.create_connection(address, timeout=20) as connection:
        connection.sendall(b"POST /slow HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n")
        for _ in range(4):
            time.sleep(LONGER / 4)
            connection.sendall(b"x")
        answered = connection.recv(65536)
        assert answered.startswith(b"HTTP/1.1 200")
        assert answered.endswith(b"\r\n\r\n4")
        time.sleep(LIMIT / 3)
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert everything(connection).endswith(b"\r\n\r\n0")
