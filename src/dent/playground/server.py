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
"""Seconds that open pages are given at the end."""


def serve(
    host: str,
    port: int,
    ready: Callable[[str], None],
    *,
    allowed: Sequence[str] = (),
    seconds: float = MOST_SECONDS,
) -> None:
    """Serve the page until interrupted.

    What visitors upload lies in a folder that is this process's alone, in `GRADIO_TEMP_DIR` or the
    system's temporary folder, and is deleted at the end.

    Args:
        host: Address to listen at.
        port: 0 takes a free one.
        ready: Called with the page's address once it can be opened.
        allowed: Names that requests may give as their host, beside this machine's.
        seconds: That a run may take.

    Raises:
        MissingExtraError: gradio is not installed.
        ConfigError: The address cannot be listened at.
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
    """Have gradio keep files where nobody else can read them, and keep none of them."""
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
