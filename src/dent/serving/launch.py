"""Run a server until a signal stops it, then drain it.

Importing this module needs the extra `ray`.
"""

import contextlib
import functools
import http.client
import logging
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import ray
import uvicorn
from ray import serve
from ray.exceptions import RayActorError, RayError
from ray.serve.config import HTTPOptions, ProxyLocation
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig

from dent.errors import ConfigError, DentError
from dent.serving import timed_http
from dent.serving.deployment import APPLICATION, DEPLOYMENT, application
from dent.serving.front import Front
from dent.serving.options import ServerOptions
from dent.support import listening, ray_start
from dent.support.plural import agreeing, counted

_OBJECT_STORE: Final = 100 * 2**20
_ENVIRONMENT: Final = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray runs its workers at nice 15, like background work. Beside busy processes, a replica would
    # then take minutes to start.
    "RAY_worker_niceness": "0",
    # Ray gives a proxy 5 s to start, and kills it after three times as long. That is too short on a
    # busy machine.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "60",
}
"""Environment variables for Ray, used unless the user has set them."""

_REACHED: Final = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104 - not bound
_INSIDE: Final = "127.0.0.1"
_START: Final = 300.0
_CHECK_EVERY: Final = 0.5

_OWN_ERROR: Final = re.compile(r"^dent(?:\.\w+)+: (.+)$", re.MULTILINE)
"""An error of this package in the traceback of a replica, which Ray passes on as text."""

_GONE: Final = (RayActorError, RayServeException)
"""Errors of a replica that has died or is not there."""

_FLUSH = 1.0
"""Seconds for Ray's proxy to send the last responses to their clients."""


def run(
    options: ServerOptions,
    host: str,
    port: int,
    announce: Callable[[], None],
    *,
    allowed: Sequence[str] = (),
) -> None:
    """Serve until SIGTERM, SIGHUP or SIGINT; then answer all admitted requests, and return.

    If `RAY_ADDRESS` names a running Ray cluster, the server uses it, with the cluster's HTTP
    proxies. Otherwise it starts a cluster on this machine, behind a front server in this process,
    and stops it at the end.

    Args:
        options: options of the server.
        host: host to listen at.
        port: port to listen at, which must be free.
        announce: called once requests are answered.
        allowed: more names that requests may give as their host. Without any, all names are allowed
            if other machines can reach `host`.

    Raises:
        ConfigError: This machine has fewer GPUs than the replicas need.
        DentError: Ray Serve did not start.
    """
    local = not os.environ.get("RAY_ADDRESS")
    _start_ray(options, local=local)
    try:
        if local:
            has = ray.cluster_resources()  # type: ignore[no-untyped-call]
            _check_gpus(options, has.get("GPU", 0.0))
            with listening.listen(_INSIDE, 0) as listener:  # to tell Ray a port that is free
                inside = listener.getsockname()[1]
            handle = _deploy(options, _INSIDE, inside, local=True)
            with _front(options, host, port, listening.url(_INSIDE, inside), allowed):
                _serve(handle, announce, functools.partial(_await_http, host, port))
        else:
            _serve(_deploy(options, host, port, local=False), announce)
            serve.delete(APPLICATION)
    finally:
        ray.shutdown()


def _serve(
    handle: DeploymentHandle[object],
    announce: Callable[[], None],
    ready: Callable[[], None] = lambda: None,
) -> None:
    """Wait until the server is ready, announce it, wait for a signal, and drain it."""
    with _explained():
        ready()
    with _stop_signals() as stopped:
        announce()
        stopped.wait()
        _drain(handle)
        time.sleep(_FLUSH)


def _drain(handle: DeploymentHandle[object]) -> None:
    """Drain every replica. One that has died, or does not run yet, holds no requests."""
    try:
        outcomes = handle.broadcast("drain").results(return_exceptions=True)
    except _GONE:
        return
    for outcome in outcomes:
        if isinstance(outcome, Exception) and not isinstance(outcome, _GONE):
            raise outcome


@contextlib.contextmanager
def _front(
    options: ServerOptions, host: str, port: int, behind: str, allowed: Sequence[str]
) -> Iterator[None]:
    """Run the front server until the block ends."""
    front = Front(behind, options.limits, listening.Hosts(host, allowed))
    with listening.listen(host, port) as listener:
        config = uvicorn.Config(
            front,
            http=timed_http.timed(min(timed_http.HEADER_SECONDS, options.limits.timeout)),
            lifespan="on",
            log_level="warning",
            ws="none",
        )
        server, ended = uvicorn.Server(config), threading.Event()
        threads = [
            threading.Thread(target=server.run, args=([listener],), daemon=True),
            threading.Thread(target=_watch_replicas, args=(front, ended), daemon=True),
        ]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            ended.set()
            server.should_exit = True
            for thread in threads:
                thread.join()


def _watch_replicas(front: Front, ended: threading.Event) -> None:
    """Keep the front server informed whether a replica runs."""
    while not ended.wait(_CHECK_EVERY):
        with contextlib.suppress(Exception):  # Ray is busy or ending: try again at the next check
            states = serve.status().applications[APPLICATION].deployments[DEPLOYMENT].replica_states
            running = sum(n for state, n in states.items() if str(state).endswith("RUNNING"))
            if not ended.is_set():
                front.tell(alive=running > 0)


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except (RayError, RuntimeError, TimeoutError) as error:
        own = _OWN_ERROR.findall(str(error))
        if own:
            raise DentError(f"the replica did not start: {own[-1]}") from error
        first_line = str(error).strip().partition("\n")[0]
        raise DentError(
            f"Ray Serve did not start ({type(error).__name__}: {first_line}). Its logs lie where "
            "Ray keeps them, by default below /tmp/ray; on a busy machine try again."
        ) from error


def _deploy(
    options: ServerOptions, host: str, port: int, *, local: bool
) -> DeploymentHandle[object]:
    with _explained():
        with contextlib.suppress(TimeoutError):  # `_await_http` waits for a proxy that is late
            serve.start(
                proxy_location=ProxyLocation.HeadOnly if local else ProxyLocation.EveryNode,
                http_options=HTTPOptions(host=host, port=port),
                logging_config=LoggingConfig(log_level="WARNING", enable_access_log=False),
            )
        return serve.run(application(options), name=APPLICATION)


def _await_http(host: str, port: int) -> None:
    """Return once the server answers over HTTP.

    Raises:
        TimeoutError: it does not answer in time.
    """
    host = _REACHED.get(host, host)
    until = time.monotonic() + _START
    while time.monotonic() < until:
        connection = http.client.HTTPConnection(host, port, timeout=5)
        try:
            connection.request("GET", "/readyz")
            if connection.getresponse().status == http.HTTPStatus.OK:
                return
        except (OSError, http.client.HTTPException):
            pass
        finally:
            connection.close()
        time.sleep(0.2)
    raise TimeoutError(f"nothing answers at {host}:{port} after {_START:g} s.")


def _start_ray(options: ServerOptions, *, local: bool) -> None:
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    with ray_start.starting():
        if not local:
            ray.init(logging_level=logging.WARNING)
            return
        ray.init(
            address="local",
            num_cpus=int(options.replicas * options.num_cpus) + 1,
            include_dashboard=False,
            object_store_memory=_OBJECT_STORE,
            logging_level=logging.WARNING,
        )


def _check_gpus(options: ServerOptions, present: float) -> None:
    """Refuse to wait for GPUs that this machine does not have.

    Raises:
        ConfigError: the replicas need more.
    """
    needed = options.replicas * options.num_gpus
    if needed > present:
        raise ConfigError(
            f"{counted(options.replicas, 'replica')} with --num-gpus {options.num_gpus:g} "
            f"{agreeing(options.replicas, 'need')} {needed:g} GPU{'' if needed == 1 else 's'}, and "
            f"Ray finds {present:g} on this machine: use fewer, or "
            "leave out --num-gpus to compute on the CPU"
        )


@contextlib.contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """Yield an event that SIGTERM, SIGHUP and SIGINT set, in place of Ray's own handlers."""
    stopped = threading.Event()
    signals = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # it is ignored under nohup
        signals.append(signal.SIGHUP)
    handlers = {kind: signal.signal(kind, lambda *_: stopped.set()) for kind in signals}
    try:
        yield stopped
    finally:
        for kind, handler in handlers.items():
            signal.signal(kind, handler)
