"""The HTTP API, as an application for any ASGI server."""

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager, nullcontext
from typing import Annotated, Any, Final

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from torch import Tensor

from dent import __version__
from dent.serving.admission import Admission
from dent.serving.arrivals import Arrivals, left, replayed
from dent.serving.batching import Batcher, Job
from dent.serving.engine import Clock, Engine, ServedAnswer
from dent.serving.errors import RefusedError, invalid
from dent.serving.limits import Limits
from dent.serving.metrics import Metrics
from dent.serving.requests import CONTENT_TYPES, JSON, PredictRequest, decode, media_type, shown
from dent.serving.responses import Failure, FailureResponse, PredictResponse, respond

_LOG = logging.getLogger(__name__)

PREDICT: Final = "/v1/predict"
_UNREAD = (408, 413, 503)
_PARAMETERS: Final = ("deadline", "logits")
_ROUTES = (PREDICT, "/v1/model", "/healthz", "/readyz", "/metrics", "/openapi.json")

STATUSES: Final[dict[int, str]] = {
    400: "The body is not what its content type says.",
    408: "The body did not arrive in time, or too many were arriving.",
    413: "Too many bytes, or too many images.",
    415: "An unsupported content type or encoding.",
    422: "Well-formed, but not valid for the model: wrong shape, NaN, infinity, outside [0, 1].",
    500: "The defense failed; the log says why.",
    503: "Full, shutting down, or restarting. Retry-After says when to try again.",
    504: "Not even one step fitted into the deadline, or the batch did not start in time.",
}
"""The statuses other than 200 that a prediction request can get."""


class Server:
    """Everything behind the API of one replica.

    Args:
        engine: answers the batches.
        limits: limits on size, count, time and queue.
        classes: names of the classes by label; empty if unknown.
        model: name of the model.
        metrics: the metrics; new ones if None.
        clock: returns the time in seconds; for tests.
    """

    def __init__(
        self,
        engine: Engine,
        limits: Limits,
        *,
        classes: Sequence[str] = (),
        model: str = "",
        metrics: Metrics | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self.engine, self.limits, self.clock = engine, limits, clock
        self.classes, self.model = tuple(classes), model
        self.metrics = metrics or Metrics()
        self.batcher = Batcher(engine, limits, self.metrics, clock)
        self.arrivals = Arrivals(limits)
        self.admission = Admission(limits.max_requests, self._retry_after)
        self.metrics.requests_inside.set_function(lambda: self.admission.inside)
        self.metrics.images_waiting.set_function(lambda: self.batcher.images_waiting)
        # Parsed JSON takes many times the memory of its text, so bodies are parsed in turn.
        self._one_json = asyncio.Semaphore(1)
        self.ready = False

    def start(self) -> None:
        """Start to answer requests."""
        self.batcher.start()
        self.ready = True

    async def drain(self) -> None:
        """Refuse new requests, and wait until all admitted ones are answered."""
        self.ready = False
        await self.admission.drain()

    async def stop(self) -> None:
        """Drain the server, then stop it."""
        await self.drain()
        await self.batcher.stop()

    def about(self) -> dict[str, Any]:
        """Return the model, the defense and the limits of the server, as plain JSON types."""
        return {
            "version": __version__,
            "model": self.model,
            "defense": self.engine.description,
            "shares_batches": self.engine.shares,
            "shape": list(self.engine.shape),
            "classes": list(self.classes),
            "limits": self.limits.model_dump(mode="json"),
        }

    async def predict(
        self, request: Request, deadline: float | None, *, logits: bool
    ) -> PredictResponse:
        """Return the response to one request.

        Args:
            request: the request; its body has been read and admitted.
            deadline: seconds within which to answer; None for the default of `limits`.
            logits: whether to include the logits.

        Raises:
            RefusedError: with a status of `STATUSES`; or 499, the client has left. Nobody gets this
                response, but it ends the request: a batch that has not started is not computed.
        """
        arrived = self.clock()
        body = await request.body()
        images = await self._decoded(request.headers.get("content-type", ""), body)
        seconds = deadline if deadline is not None else self.limits.deadline
        due = None if seconds is None else arrived + seconds
        expires = arrived + self.limits.timeout
        job = Job(images, arrived, due, expires if due is None else min(due, expires))
        answer = await _while_connected(request.receive, self.batcher.submit(job))
        elapsed = self.clock() - arrived
        response = respond(
            answer,
            classes=self.classes,
            configured=None if answer.steps is None else self.engine.steps,
            late=seconds is not None and elapsed > seconds,
            seconds=elapsed,
            logits=logits,
        )
        self.metrics.answered(elapsed, degraded=response.degraded, late=response.late)
        return response

    async def _decoded(self, kind: str, body: bytes) -> Tensor:
        async with self._one_json if media_type(kind) == JSON else nullcontext():
            return await asyncio.to_thread(
                decode, kind, body, self.engine.shape, self.limits.max_batch_size
            )

    def _retry_after(self) -> int:
        return max(1, min(math.ceil(self.batcher.backlog()), 600))


async def _while_connected(
    receive: Receive, submission: Coroutine[Any, Any, ServedAnswer]
) -> ServedAnswer:
    """Wait for an answer while the client does; cancel the submission if it leaves.

    Raises:
        RefusedError: 499, the client has left; or as in `Batcher.submit`.
    """
    answer = asyncio.ensure_future(submission)
    gone = asyncio.ensure_future(left(receive))
    try:
        await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            return answer.result()
    finally:
        for task in (answer, gone):
            task.cancel()
        await asyncio.gather(answer, gone, return_exceptions=True)
    raise RefusedError(499, "client-left", "the client left before its answer.")


_Handler = Callable[[Request, Any], Coroutine[Any, Any, Response]]
Scrape = Callable[[], Awaitable[bytes]]


def create_app(server: Server, scrape: Scrape | None = None) -> FastAPI:
    """Return the ASGI application of a server.

    Args:
        server: the server, which starts and stops with the application.
        scrape: returns the text of /metrics; by default that of the server's own registry.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        server.start()
        yield
        await server.stop()

    app = FastAPI(
        title="torch-dent",
        version=__version__,
        summary="A dynamic defense over HTTP: every batch adapts the model before it predicts.",
        docs_url=None,  # these pages would load scripts from other hosts
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
        exception_handlers=_handlers(server),
    )
    app.add_middleware(_AdmissionMiddleware, server=server)
    _add_predict(app, server)
    _add_probes(app, server, scrape or _own(server))
    return app


def _add_predict(app: FastAPI, server: Server) -> None:
    files = {kind: {"schema": {"type": "string", "format": "binary"}} for kind in CONTENT_TYPES}
    schema = {"schema": PredictRequest.model_json_schema()}
    failures: dict[int | str, dict[str, Any]] = {
        status: {"model": FailureResponse, "description": text} for status, text in STATUSES.items()
    }

    @app.post(
        PREDICT,
        responses=failures,
        response_model=PredictResponse,
        openapi_extra={"requestBody": {"required": True, "content": files | {JSON: schema}}},
    )
    async def predict(
        request: Request,
        deadline: Annotated[
            float | None,
            Query(
                gt=0,
                le=3600,
                allow_inf_nan=False,
                description="Seconds to answer, with fewer steps if necessary.",
            ),
        ] = None,
        logits: Annotated[bool, Query(description="Whether to return logits.")] = False,
    ) -> Response:
        """Adapt to the images of one request, and predict their classes."""
        _check_query(request.query_params)
        response = await server.predict(request, deadline, logits=logits)
        return Response(response.model_dump_json(), media_type=JSON)


def _check_query(parameters: Iterable[str]) -> None:
    """Refuse a mistyped parameter: without its deadline, a request would wait for all steps.

    Raises:
        RefusedError: 422, the server knows no such parameter.
    """
    for name in parameters:
        if name not in _PARAMETERS:
            raise invalid(
                f"there is no query parameter {shown(name)}: expected {' or '.join(_PARAMETERS)}."
            )


def _add_probes(app: FastAPI, server: Server, scrape: Scrape) -> None:
    @app.get("/v1/model")
    async def model() -> dict[str, Any]:
        """Return the model, the defense and the limits of the server."""
        return server.about()

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Report that the process is alive."""
        return {"status": "alive"}

    @app.get("/readyz", responses={503: {"model": FailureResponse}})
    async def readyz() -> dict[str, str]:
        """Report whether the server admits requests."""
        if not server.ready:
            raise RefusedError(503, "draining", "no requests are taken in.", retry_after=5)
        return {"status": "ready"}

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Return the metrics in the text format of Prometheus."""
        return Response(await scrape(), media_type=CONTENT_TYPE_PLAIN_0_0_4)


def _own(server: Server) -> Scrape:
    async def scrape() -> bytes:
        return generate_latest(server.metrics.registry)

    return scrape


class _AdmissionMiddleware:
    """An ASGI middleware that admits requests and counts responses.

    A request holds its place from the last byte of its body to the last byte of its response.
    """

    def __init__(self, app: ASGIApp, server: Server) -> None:
        self._app, self._server = app, server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        route = _route(scope["path"])
        head = scope["method"] == "HEAD"  # answered like GET, without the body

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._server.metrics.responded(route, message["status"])
            elif head:
                message = {**message, "body": b""}
            await send(message)

        if (scope["method"], route) != ("POST", PREDICT):
            as_get = {**scope, "method": "GET"} if head else scope
            await self._app(as_get, receive, counted)
            return
        admission = self._server.admission
        try:
            admission.check()
            body = await self._server.arrivals.read(scope, receive)
            with admission.enter():
                await self._app(scope, replayed(body, receive), counted)
        except (
            RefusedError
        ) as error:  # from admission: errors from within the app are answered there
            self._server.metrics.refused(error.code)
            await failed(error)(scope, receive, counted)


def _route(path: str) -> str:
    """Return the label of a path in the metrics."""
    return path if path in _ROUTES else "other"


def failed(error: RefusedError) -> Response:
    """Return the response for a failure. All failures have this one form."""
    failure = Failure(code=error.code, message=error.message, image=error.image)
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    if error.status in _UNREAD:
        headers["Connection"] = "close"  # do not read the rest of the body
    body = FailureResponse(error=failure).model_dump_json()
    return Response(body, error.status, headers, JSON)


def _handlers(server: Server) -> dict[int | type[Exception], _Handler]:
    """Return handlers that turn each kind of failure into the one documented form."""

    def refuse(request: Request, error: RefusedError) -> Response:
        if request.url.path == PREDICT:
            server.metrics.refused(error.code)
        return failed(error)

    async def refused(request: Request, error: RefusedError) -> Response:
        return refuse(request, error)

    async def bad_query(request: Request, error: RequestValidationError) -> Response:
        problem = error.errors()[0]
        location = ".".join(str(part) for part in problem["loc"])
        return refuse(request, RefusedError(422, "invalid", f"{location}: {problem['msg']}."))

    async def no_such_route(request: Request, error: HTTPException) -> Response:
        code = {404: "no-such-path", 405: "wrong-method"}.get(error.status_code, "refused")
        response = refuse(request, RefusedError(error.status_code, code, f"{error.detail}."))
        response.headers.update(error.headers or {})
        return response

    async def bug(request: Request, error: Exception) -> Response:
        _LOG.error("A request failed", exc_info=error)
        server.metrics.responded(_route(request.url.path), 500)  # it bypasses the middleware
        return refuse(request, RefusedError(500, "failed", "the server failed; its log says why."))

    return {
        RefusedError: refused,
        RequestValidationError: bad_query,
        HTTPException: no_such_route,
        Exception: bug,
    }
