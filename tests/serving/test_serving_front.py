"""The front server, with a working or a failing server behind it instead of Ray's proxy."""

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import httpx
import pytest
import torch
import uvicorn
from prometheus_client.parser import text_string_to_metric_families
from servers import TOGETHER, logits_of, make_engine, make_images, make_model, npy

from dent import Dent
from dent.serving import timed_http
from dent.serving.app import PREDICT, Server, create_app
from dent.serving.front import Front
from dent.serving.limits import Limits
from dent.support import listening
from dent.support.listening import Hosts

LIMITS = Limits(max_requests=4, timeout=20)
NPY = {"content-type": "application/x-npy"}


@contextmanager
def listening_at(app: Any) -> Iterator[str]:
    """Serve an application on a local port and yield its address."""
    with listening.listen("127.0.0.1", 0) as listener:
        config = uvicorn.Config(
            app,
            http=timed_http.TimedProtocol,
            log_level="critical",
            ws="none",
            timeout_graceful_shutdown=1,
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            for _ in range(1000):
                if server.started:
                    break
                time.sleep(0.01)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(20)


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Server, str, str]]:
    """A server, its address, and the address of a front server before it."""
    engine = make_engine(Dent(make_model(), TOGETHER))
    server = Server(engine, LIMITS, model="toy")
    with (
        listening_at(create_app(server)) as behind,
        listening_at(Front(behind, LIMITS, Hosts("127.0.0.1", ["demo.example"]))) as front,
    ):
        yield server, behind, front


def test_front_passes_responses_through_unchanged(pair: tuple[Server, str, str]) -> None:
    _, behind, front = pair
    images = make_images(3)
    for method, path, content in [
        *(("GET", path, b"") for path in ("/healthz", "/readyz", "/v1/model", "/openapi.json")),
        *(("GET", path, b"") for path in ("/nowhere", "/v1/predict", "/a%2fb?x=%20y")),
        *(("POST", PREDICT, body) for body in (b"", b"no", npy(make_images(1) * 2))),
        ("POST", f"{PREDICT}?deadline=-1", npy(images)),
        *(("HEAD", path, b"") for path in ("/readyz", "/v1/model", "/nowhere", PREDICT)),
    ]:
        one, other = (
            httpx.request(method, f"{url}{path}", content=content, headers=NPY)
            for url in (behind, front)
        )
        assert (one.status_code, one.content) == (other.status_code, other.content), path
        for header in ("content-type", "content-length", "allow", "retry-after"):
            assert one.headers.get(header) == other.headers.get(header), (path, header)
    answer = httpx.post(f"{front}{PREDICT}?logits=true", content=npy(images), headers=NPY)
    expected = Dent(make_model(), TOGETHER)(images)
    torch.testing.assert_close(logits_of(answer.json()), expected.detach())


def test_head_returns_the_headers_of_get_without_a_body(pair: tuple[Server, str, str]) -> None:
    for url in pair[1:]:
        for path in ("/healthz", "/readyz", "/v1/model", "/openapi.json"):
            got, head = (httpx.request(method, f"{url}{path}") for method in ("GET", "HEAD"))
            assert (head.status_code, head.content) == (200, b"")
            assert head.headers["content-length"] == got.headers["content-length"]
            assert head.headers["content-type"] == got.headers["content-type"]
        assert httpx.head(f"{url}/metrics").status_code == 200
        assert httpx.head(f"{url}{PREDICT}").status_code == 405


def half(url: str, size: int = 1000, host: str = "localhost") -> socket.socket:
    """Open a connection and send a request with only one byte of its body."""
    address, port = url.removeprefix("http://").split(":")
    connection = socket.create_connection((address, int(port)), timeout=30)
    connection.sendall(
        f"POST {PREDICT} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/x-npy\r\n"
        f"Content-Length: {size}\r\n\r\nx".encode()
    )
    return connection


def test_half_sent_bodies_do_not_block_other_requests(pair: tuple[Server, str, str]) -> None:
    server, behind, front = pair
    for url in (front, behind):
        connections = [half(url) for _ in range(5 * LIMITS.max_requests)]
        try:
            for _ in range(3):
                answer = httpx.post(f"{url}{PREDICT}", content=npy(make_images(2)), headers=NPY)
                assert answer.status_code == 200, answer.text
            if url == front:
                assert server.admission.inside == server.arrivals.coming == 0  # none is forwarded
        finally:
            for each in connections:
                each.close()


def test_oldest_half_sent_bodies_get_a_408_if_there_are_too_many(
    pair: tuple[Server, str, str],
) -> None:
    most = 16 * LIMITS.max_requests
    connections = [half(pair[1]) for _ in range(most + 3)]
    for each in connections[:3]:
        answer = b"".join(iter(lambda each=each: each.recv(65536), b""))
        assert answer.startswith(b"HTTP/1.1 408")
        assert b"and this one was the oldest" in answer
    found = httpx.post(f"{pair[1]}{PREDICT}", content=npy(make_images(2)), headers=NPY)
    assert found.status_code == 200
    for each in connections:
        each.close()


@pytest.mark.parametrize(
    ("host", "status"),
    [("localhost", 200), ("127.0.0.1:80", 200), ("demo.example", 200), ("evil.example", 421)],
)
def test_unknown_host_names_are_refused(
    pair: tuple[Server, str, str], host: str, status: int
) -> None:
    answer = httpx.get(f"{pair[2]}/v1/model", headers={"host": host})
    assert answer.status_code == status
    if status != 200:
        assert answer.json()["error"]["code"] == "other-host"


def test_ray_routes_and_large_bodies_are_refused_and_refusals_counted(
    pair: tuple[Server, str, str],
) -> None:
    for path in ("/-/routes", "/-/healthz"):
        refused = httpx.get(f"{pair[2]}{path}")
        assert (refused.status_code, refused.json()["error"]["code"]) == (404, "no-such-path")
    families = text_string_to_metric_families(httpx.get(f"{pair[2]}/metrics").text)
    counted = {
        (sample.name, sample.labels.get("reason")): sample.value
        for family in families
        for sample in family.samples
    }
    assert counted["dent_front_refused_total", "no-such-path"] >= 2
    assert ("dent_requests_inside", None) in counted
    too_large = httpx.post(f"{pair[2]}/nowhere", content=bytes(70_000))
    assert too_large.status_code == 413


Behind = Callable[[Any, Any, Any], Awaitable[None]]


def answering(status: int, kind: bytes, body: bytes) -> Behind:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-type", kind), (b"retry-after", b"77")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return app


async def dying(scope: Any, receive: Any, send: Any) -> None:
    raise asyncio.CancelledError  # uvicorn closes the connection without a response


@asynccontextmanager
async def before(app: Behind) -> AsyncIterator[tuple[Front, httpx.AsyncClient]]:
    """Yield a front server and an in-process client; the application behind it is on a port."""
    with listening_at(app) as behind:
        front = Front(behind, LIMITS, Hosts("127.0.0.1"))
        started: asyncio.Queue[Any] = asyncio.Queue()

        async def nothing(_: Any) -> None: ...

        life = asyncio.ensure_future(front({"type": "lifespan"}, started.get, nothing))
        started.put_nowait({"type": "lifespan.startup"})
        await asyncio.sleep(0)
        transport = httpx.ASGITransport(front)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            yield front, client
        started.put_nowait({"type": "lifespan.shutdown"})
        await life


@pytest.mark.parametrize(
    ("app", "code", "after"),
    [
        (answering(500, b"text/plain; charset=utf-8", b"Internal Server Error"), "replica-lost", 5),
        (answering(503, b"text/plain", b"Request dropped due to backpressure"), "queue-full", 1),
        (answering(503, b"application/json", b'{"error":{"code":"draining"}}'), "draining", 77),
        (dying, "replica-lost", 5),
    ],
)
def test_failures_behind_the_front_give_a_documented_503_with_retry_after(
    app: Behind, code: str, after: int
) -> None:
    async def ask() -> None:
        async with before(app) as (_, client):
            answer = await client.post(PREDICT, content=npy(make_images(1)), headers=NPY)
            assert answer.status_code == 503
            assert answer.json()["error"]["code"] == code
            assert answer.headers["retry-after"] == str(after)

    asyncio.run(ask())


def test_front_passes_a_500_of_the_defense_through_unchanged() -> None:
    async def ask() -> None:
        body = b'{"error":{"code":"failed","message":"the defense failed","image":null}}'
        async with before(answering(500, b"application/json", body)) as (_, client):
            answer = await client.post(PREDICT, content=npy(make_images(1)), headers=NPY)
            assert (answer.status_code, answer.content) == (500, body)

    asyncio.run(ask())


def test_requests_get_a_503_without_waiting_while_no_replica_runs() -> None:
    asked, left = threading.Event(), threading.Event()

    async def hanging(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == PREDICT:
            await receive()
            asked.set()
            assert (await receive())["type"] == "http.disconnect"
            left.set()
        else:
            await answering(200, b"application/json", b"{}")(scope, receive, send)

    async def ask() -> None:
        async with before(hanging) as (front, client):
            waiting = asyncio.ensure_future(client.post(PREDICT, content=b"x"))
            assert await asyncio.to_thread(asked.wait, 20)
            front.tell(alive=False)
            lost = await waiting
            assert (lost.status_code, lost.headers["retry-after"]) == (503, "5")
            assert await asyncio.to_thread(left.wait, 20)
            for path in ("/readyz", "/v1/model"):
                refused = await client.get(path)
                assert refused.status_code == 503
                assert refused.json()["error"]["code"] == "no-replica"
                assert refused.headers["retry-after"] == "5"
            assert (await client.get("/healthz")).json() == {"status": "alive"}
            front.tell(alive=True)
            await asyncio.sleep(0.01)
            assert (await client.get("/readyz")).status_code == 200

    asyncio.run(ask())


def test_client_disconnect_cancels_the_forwarded_request() -> None:
    asked, left = threading.Event(), threading.Event()

    async def hanging(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await receive()
        asked.set()
        await receive()
        left.set()

    with (
        listening_at(hanging) as behind,
        listening_at(Front(behind, LIMITS, Hosts("127.0.0.1"))) as front,
    ):
        with half(front, 1):
            assert asked.wait(20)
        assert left.wait(20)
