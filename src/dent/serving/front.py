"""The front server of `dent serve`: clients connect to it, and it forwards to Ray's HTTP proxy.

Ray's proxy waits for headers without a time limit, and admits a request with half a body. It
answers 500 when a replica dies, and does not answer at all until the next one runs. The front
server limits the time for headers and bodies, forwards only whole requests, and reports every
failure behind it in the one documented form.
"""

import asyncio
from typing import Final

import httpx
from prometheus_client import CollectorRegistry, Counter, generate_latest
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from dent.serving.app import PREDICT, failed
from dent.serving.arrivals import Arrivals, left
from dent.serving.errors import RefusedError
from dent.serving.limits import Limits
from dent.serving.requests import JSON
from dent.support.listening import REFUSED_HOST, Hosts

_HOP_BY_HOP: Final = {
    *("connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer"),
    *("transfer-encoding", "upgrade", "content-length", "expect"),
}
_ADDED: Final = {"date", "server"}
_SMALL: Final = 65_536
_RETRY: Final = 5
_LOST: Final = "the replica that had the request died, and another is being started: ask again."
_NONE: Final = "no replica runs at the moment; one is being started."


class Front:
    """An ASGI application that forwards whole requests to a server and reports its failures.

    Args:
        behind: The address of the server behind, without a slash at the end.
        limits: The limits on bodies.
        hosts: The host names that a request may give.
    """

    def __init__(self, behind: str, limits: Limits, hosts: Hosts) -> None:
        self._behind, self._hosts = behind, hosts
        self._arrivals = Arrivals(limits)
        self._others = Arrivals(limits.model_copy(update={"max_body_bytes": _SMALL}))
        self._client: httpx.AsyncClient | None = None
        self._down = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._registry = CollectorRegistry()
        self._refused = Counter(
            "dent_front_refused", "Requests refused before a replica.", ["reason"],
            registry=self._registry,
        )  # fmt: skip

    def tell(self, *, alive: bool) -> None:
        """Set whether a replica runs, from any thread. While none runs, no request waits."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._down.clear if alive else self._down.set)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or forward it."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            try:
                response = await self._answer(scope, receive)
            except RefusedError as error:
                self._refused.labels(error.code).inc()
                response = failed(error)
            await response(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        self._loop = asyncio.get_running_loop()
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=16)
        timeout = httpx.Timeout(None, connect=10)
        async with httpx.AsyncClient(
            base_url=self._behind, limits=limits, timeout=timeout, trust_env=False
        ) as client:
            self._client = client
            while True:
                message = await receive()
                kind = message["type"]
                await send({"type": f"{kind}.complete"})
                if kind == "lifespan.shutdown":
                    return

    async def _answer(self, scope: Scope, receive: Receive) -> Response:
        hosts = [value.decode("latin-1") for key, value in scope["headers"] if key == b"host"]
        if not self._hosts.permits(hosts):
            raise RefusedError(421, "other-host", REFUSED_HOST)
        if scope["path"].startswith("/-/"):  # Ray's own routes
            raise RefusedError(404, "no-such-path", "Not Found.")
        if self._down.is_set():
            if scope["path"] == "/healthz":
                return Response('{"status":"alive"}', media_type=JSON)
            raise RefusedError(503, "no-replica", _NONE, retry_after=_RETRY)
        body = await self._body(scope, receive)
        response = await self._forward(scope, receive, body)
        return self._pass_on(scope, response)

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        if (scope["method"], scope["path"]) == ("POST", PREDICT):
            return await self._arrivals.read(scope, receive)
        return await self._others.read(scope, receive)

    async def _forward(self, scope: Scope, receive: Receive, body: bytes) -> httpx.Response:
        """Forward a request, for as long as the client waits and a replica runs."""
        assert self._client is not None  # noqa: S101 - the server starts with its lifespan
        headers = [
            (key, value)
            for key, value in scope["headers"]
            if key.decode("latin-1").lower() not in _HOP_BY_HOP
        ]
        path = scope["raw_path"] + (b"?" + scope["query_string"] if scope["query_string"] else b"")
        request = self._client.build_request(
            scope["method"], httpx.URL(self._behind).copy_with(raw_path=path),
            headers=headers, content=body,
        )  # fmt: skip
        response = asyncio.ensure_future(self._client.send(request))
        ends = [asyncio.ensure_future(ending) for ending in (left(receive), self._down.wait())]
        try:
            await asyncio.wait([response, *ends], return_when=asyncio.FIRST_COMPLETED)
            if response.done():
                return response.result()
        except httpx.HTTPError:
            pass
        finally:
            for task in (response, *ends):
                task.cancel()
            await asyncio.gather(response, *ends, return_exceptions=True)
        raise RefusedError(503, "replica-lost", _LOST, retry_after=_RETRY)

    def _pass_on(self, scope: Scope, replica_response: httpx.Response) -> Response:
        """Return the response for the client; Ray's own errors get the documented form."""
        kind = replica_response.headers.get("content-type", "")
        if replica_response.status_code >= 500 and not kind.startswith(JSON):
            if replica_response.status_code == 503:
                reason = "more requests wait than the replicas take in."
                raise RefusedError(503, "queue-full", reason, retry_after=1)
            raise RefusedError(503, "replica-lost", _LOST, retry_after=_RETRY)
        content = replica_response.content
        if (
            scope["path"] == "/metrics"
            and replica_response.status_code == 200
            and scope["method"] == "GET"
        ):
            content += generate_latest(self._registry)
        response = Response(content, replica_response.status_code)
        if scope["method"] == "HEAD" and "content-length" in replica_response.headers:
            response.headers["content-length"] = replica_response.headers["content-length"]
        for key, value in replica_response.headers.multi_items():
            if key.lower() not in _HOP_BY_HOP | _ADDED | {"content-encoding"}:
                response.headers.append(key, value)
        return response
