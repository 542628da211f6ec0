"""Runs a server in this process's name until it is told to stop, and then drains it.

Importing this module needs the extra `ray`.
"""

import contextlib
import http.client
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Final

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.config import HTTPOptions, ProxyLocation
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig

from dent import signals
from dent.errors import DentError
from dent.serving.deployment import APPLICATION, application
from dent.serving.options import ServerOptions

_OBJECT_STORE: Final = 100 * 2**20
_ENVIRONMENT: Final = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray runs its workers at nice 15, as background work, which a server is not: beside busy
    # processes a replica would take minutes to start.
    "RAY_worker_niceness": "0",
    # Ray gives a proxy 5 s to start, and kills it after three times as many: too few on a busy
    # machine.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "60",
}
"""What Ray is told unless the user has told it otherwise."""

_REACHED: Final = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104 - not bound
_START: Final = 300.0

_FLUSH = 1.0
"""Seconds for Ray's proxy to hand the last responses on to their clients."""


def run(options: ServerOptions, host: str, port: int, announce: Callable[[], None]) -> None:
    """Serve until SIGTERM or SIGINT; then answer all that was taken in, and return.

    A running Ray cluster is used where `RAY_ADDRESS` names one; otherwise one is started on this
    machine and stopped at the end.

    Args:
        options: what to serve.
        host: where to listen.
        port: at which port, free.
        announce: called once requests are answered.

    Raises:
        DentError: Ray Serve did not start.
    """
    local = not os.environ.get("RAY_ADDRESS")
    _start_ray(options, local=local)
    try:
        handle = _deploy(options, host, port, local=local)
        with _stop_signals() as stopped:
            announce()
            stopped.wait()
            handle.broadcast("drain").results()
            time.sleep(_FLUSH)
        if not local:
            serve.delete(APPLICATION)
    finally:
        ray.shutdown()


def _deploy(
    options: ServerOptions, host: str, port: int, *, local: bool
) -> DeploymentHandle[object]:
    try:
        with contextlib.suppress(TimeoutError):  # a proxy that is late is waited for below
            serve.start(
                proxy_location=ProxyLocation.HeadOnly if local else ProxyLocation.EveryNode,
                http_options=HTTPOptions(host=host, port=port),
                logging_config=LoggingConfig(log_level="WARNING", enable_access_log=False),
            )
        handle = serve.run(application(options), name=APPLICATION)
        if local:
            _await_http(_REACHED.get(host, host), port)
    except (RayError, RuntimeError, TimeoutError) as error:
        first = str(error).strip().partition("\n")[0]
        raise DentError(
            f"Ray Serve did not start ({type(error).__name__}: {first}). Its logs lie where Ray "
            "keeps them, by default below /tmp/ray; on a busy machine try again."
        ) from error
    return handle


def _await_http(host: str, port: int) -> None:
    """Return once the server answers over HTTP.

    Raises:
        TimeoutError: it does not.
    """
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
    with signals.kept():
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


@contextlib.contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set, in the place of what Ray does on them."""
    stopped = threading.Event()
    kinds = (signal.SIGTERM, signal.SIGINT)
    before = {kind: signal.signal(kind, lambda *_: stopped.set()) for kind in kinds}
    try:
        yield stopped
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
