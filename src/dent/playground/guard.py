"""A guard between the network and gradio: it limits what each visitor may request, and how much.

gradio does not check the files that a client names if its page is mounted in another application
(docs/design/gradio-mount.md). So the guard passes on only the requests that the page itself sends,
in the form in which it sends them: no files except the visitor's own, no addresses to fetch, and no
routes that the page does not use.
"""

import asyncio
import json
from collections.abc import Sequence
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dent.playground.turns import Turns
from dent.playground.visitors import Visitor, Visitors
from dent.serving.arrivals import replayed
from dent.support.listening import REFUSED_HOST, Hosts
from dent.support.plural import counted

COOKIE: Final = "dent-playground"
MOST_JSON: Final = 65_536
SECONDS: Final = 30.0
"""Seconds that a body may take to arrive."""
_UPLOADS_AT_ONCE: Final = 4
_API: Final = "/gradio_api"
_JOIN, _UPLOAD, _LISTEN = f"{_API}/queue/join", f"{_API}/upload", f"{_API}/queue/data"
_FILE, _HEARTBEAT = f"{_API}/file=", f"{_API}/heartbeat/"
_PLAIN: Final = ("/", "/favicon.ico", "/theme.css")
_BELOW: Final = ("/assets/", "/static/")
_SCALARS: Final = (str, int, float, bool, type(None))


class _Refused(Exception):  # noqa: N818 - an answer, no error of the program's
    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status, self.why = status, why


class RequestGuard:
    """An ASGI application that passes on the requests that the page sends, and refuses all others.

    Args:
        app: The page.
        visitors: The known visitors.
        turns: The queue of the runs. The guard tells it which sessions listen, and which left.
        hosts: The hosts that a request may name.
        most_bytes: Largest size of an upload, in bytes.
    """

    def __init__(
        self, app: ASGIApp, visitors: Visitors, turns: Turns, hosts: Hosts, most_bytes: int
    ) -> None:
        self._app, self._visitors, self._turns, self._hosts = app, visitors, turns, hosts
        self._most_bytes = most_bytes
        self._uploads = asyncio.Semaphore(_UPLOADS_AT_ONCE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            try:
                await self._answer(scope, receive, send)
            except _Refused as refused:
                response = JSONResponse({"detail": refused.why}, refused.status)
                response.headers["Connection"] = "close"  # do not read the rest of the body
                await response(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._hosts.permits(_headers(scope, b"host")):
            raise _Refused(421, REFUSED_HOST)
        method, path = scope["method"], scope["path"]
        visitor = self._visitors.known(_token(scope))
        if method in ("GET", "HEAD") and (path in _PLAIN or path.startswith(_BELOW)):
            await self._show(scope, receive, send, visitor)
            return
        if (method, path) not in (("POST", _JOIN), ("POST", _UPLOAD)) and not (
            method == "GET"
            and (
                path in (_LISTEN, f"{_API}/upload_progress") or path.startswith((_FILE, _HEARTBEAT))
            )
        ):
            raise _Refused(404, "The page has no such path.")
        if visitor is None:
            raise _Refused(403, "Open the page first, and allow its cookie.")
        if path == _JOIN:
            await self._join(visitor, scope, receive, send)
        elif path == _UPLOAD:
            await self._upload(visitor, scope, receive, send)
        elif path == _LISTEN:
            await self._listen(visitor, scope, receive, send)
        else:
            self._check_path(visitor, path)
            await self._app(scope, receive, send)

    async def _show(
        self, scope: Scope, receive: Receive, send: Send, visitor: Visitor | None
    ) -> None:
        """Pass on a request that needs no cookie; the one that opens the page makes a visitor."""
        welcomed = self._visitors.welcome(_address(scope)) if _opens(scope, visitor) else None

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start" and welcomed is not None:
                cookie = f"{COOKIE}={welcomed.token}; Path=/; HttpOnly; SameSite=Strict"
                message["headers"] = [*message["headers"], (b"set-cookie", cookie.encode())]
            await send(message)

        await self._app(scope, receive, sending)

    async def _join(self, visitor: Visitor, scope: Scope, receive: Receive, send: Send) -> None:
        body = await _read(receive, MOST_JSON)
        try:
            request = json.loads(body)
        except (ValueError, RecursionError):
            raise _Refused(400, "The body is no JSON.") from None
        clean = json.dumps(self._cleaned(visitor, request)).encode()
        other_headers = [
            header for header in scope["headers"] if header[0] not in (b"content-length",)
        ]
        headers = [*other_headers, (b"content-length", str(len(clean)).encode())]
        await self._app({**scope, "headers": headers}, replayed(clean, receive), send)

    def _cleaned(self, visitor: Visitor, request: object) -> dict[str, Any]:
        """Return the request with only the fields that the page sends."""
        if not isinstance(request, dict) or not isinstance(request.get("data"), list):
            raise _Refused(400, "The body is none that the page sends.")
        session, function, trigger = (
            request.get(name) for name in ("session_hash", "fn_index", "trigger_id")
        )
        has_numbers = isinstance(function, int) and isinstance(trigger, int | None)
        if not has_numbers or not isinstance(session, str):
            raise _Refused(400, "The body is none that the page sends.")
        self._check_session(visitor, session)
        event = request.get("event_data")
        index = event.get("index") if isinstance(event, dict) else None
        return {
            "data": [self._value(visitor, value) for value in request["data"]],
            "event_data": {"index": index, "value": None} if isinstance(index, int) else None,
            "fn_index": function,
            "trigger_id": trigger,
            "session_hash": session,
        }

    def _value(self, visitor: Visitor, value: object) -> object:
        if isinstance(value, _SCALARS):
            return value
        if isinstance(value, list) and all(isinstance(item, _SCALARS) for item in value):
            return value
        path = value.get("path") if isinstance(value, dict) else None
        if not isinstance(path, str) or not self._visitors.may_read(visitor, Path(path)):
            raise _Refused(
                403, "Only a file that you have just uploaded can be opened: upload it again."
            )
        name = Path(path).name
        return {"path": path, "orig_name": name, "meta": {"_type": "gradio.FileData"}}

    async def _upload(self, visitor: Visitor, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._uploads:
            body = await _read(receive, self._most_bytes)
            messages: list[Message] = []

            async def keep(message: Message) -> None:
                messages.append(message)

            await self._app(scope, replayed(body, receive), keep)
        start = next(message for message in messages if message["type"] == "http.response.start")
        if start["status"] == 200:
            content = b"".join(message.get("body", b"") for message in messages)
            self._remember(visitor, json.loads(content))
        for message in messages:
            await send(message)

    def _remember(self, visitor: Visitor, paths: Sequence[str]) -> None:
        for path in paths:  # only the last of several is kept
            self._visitors.uploaded(visitor, Path(path))

    async def _listen(self, visitor: Visitor, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on a stream of a session's results; stop its runs when the last stream ends."""
        query = parse_qs(scope["query_string"].decode("latin-1"))
        session = query.get("session_hash", [""])[-1]
        self._check_session(visitor, session)
        received: asyncio.Queue[Message] = asyncio.Queue()
        has_left = asyncio.Event()

        async def watch() -> None:
            while True:
                message = await receive()
                received.put_nowait(message)
                if message["type"] == "http.disconnect":
                    leave()
                    return

        def leave() -> None:
            if not has_left.is_set():
                has_left.set()
                self._turns.left(session)

        async def handed_on() -> Message:
            if has_left.is_set() and received.empty():
                return {"type": "http.disconnect"}
            return await received.get()

        self._turns.came(session)
        watching = asyncio.ensure_future(watch())
        try:
            await self._app(scope, handed_on, send)
        finally:
            watching.cancel()
            leave()

    def _check_session(self, visitor: Visitor, session: str) -> None:
        if not 8 <= len(session) <= 64 or not self._visitors.owns(visitor, session):
            raise _Refused(403, "This session belongs to another visitor: reload the page.")

    def _check_path(self, visitor: Visitor, path: str) -> None:
        """Refuse files outside the cache, and files and heartbeats of other visitors."""
        if path.startswith(_HEARTBEAT):
            self._check_session(visitor, path.removeprefix(_HEARTBEAT))
        elif path.startswith(_FILE):
            file = Path(path.removeprefix(_FILE))
            is_cached = ".." not in file.parts and file.is_relative_to(self._visitors.cache)
            may_read = not self._visitors.is_upload(file) or self._visitors.may_read(visitor, file)
            if not is_cached or not may_read:
                raise _Refused(404, "The page has no such file.")


def _opens(scope: Scope, visitor: Visitor | None) -> bool:
    return visitor is None and (scope["method"], scope["path"]) == ("GET", "/")


def _headers(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key.lower() == name]


def _token(scope: Scope) -> str | None:
    for header in _headers(scope, b"cookie"):
        try:
            morsel = SimpleCookie(header).get(COOKIE)
        except CookieError:
            continue
        if morsel is not None:
            return morsel.value
    return None


def _address(scope: Scope) -> str:
    return scope["client"][0] if scope.get("client") else ""


async def _read(receive: Receive, most: int) -> bytes:
    body = bytearray()
    try:
        async with asyncio.timeout(SECONDS):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise _Refused(400, "The connection ended before the body did.")
                body += message.get("body", b"")
                if len(body) > most:
                    raise _Refused(
                        413, f"The body has more than the {counted(most, 'byte')} taken here."
                    )
                if not message.get("more_body", False):
                    return bytes(body)
    except TimeoutError:
        raise _Refused(408, f"The body took more than {SECONDS:g} s to arrive.") from None
