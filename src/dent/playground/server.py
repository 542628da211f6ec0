"""Serve the page from this machine."""

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from dent.playground.turns import MOST_SECONDS
from dent.support import listening
from dent.support.extras import require

_CACHE: Final = "GRADIO_TEMP_DIR"
_CONNECTIONS: Final = 512
_FAREWELL: Final = 2
"""Seconds that open connections get to finish at shutdown."""


def serve(
    host: str,
    port: int,
    ready: Callable[[str], None],
    *,
    allowed: Sequence[str] = (),
    seconds: float = MOST_SECONDS,
) -> None:
    """Serve the page until interrupted.

    Uploads are kept in a private folder of this process, in `GRADIO_TEMP_DIR` or the system's
    temporary folder. They are deleted at the end.

    Args:
        host: Address to listen at.
        port: Port to listen at; 0 takes a free one.
        ready: Called with the page's address once the server listens there.
        allowed: Names that requests may give as their host, in addition to this machine's.
        seconds: Seconds that a run may take.

    Raises:
        MissingExtraError: gradio is not installed.
        ConfigError: The server cannot listen at this address.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
    with _private_cache():
        page, uvicorn, timed_http = (
            require(module, "the playground", extra="playground", package="gradio")
            for module in ("dent.playground.app", "uvicorn", "dent.serving.timed_http")
        )
        with listening.listen(host, port) as listener:
            bound_port = listener.getsockname()[1]
            config = uvicorn.Config(
                page.application(host, bound_port, allowed=allowed, seconds=seconds),
                log_level="warning",
                ws="none",
                http=timed_http.TimedProtocol,
                limit_concurrency=_CONNECTIONS,
                timeout_graceful_shutdown=_FAREWELL,
            )
            ready(f"{listening.url(host, bound_port)}/")
            uvicorn.Server(config).run(sockets=[listener])


@contextmanager
def _private_cache() -> Iterator[None]:
    """Set gradio's cache to a private temporary folder, and delete it at the end."""
    earlier = os.environ.get(_CACHE)
    if earlier is not None:
        os.makedirs(earlier, exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix="dent-playground-", dir=earlier, ignore_cleanup_errors=True
    ) as folder:
        os.environ[_CACHE] = folder
        try:
            yield
        finally:
            os.environ.pop(_CACHE)
            if earlier is not None:
                os.environ[_CACHE] = earlier
