"""Serve the page from this machine."""

import os
from collections.abc import Callable

from dent import listening
from dent.extras import require


def serve(host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serve the page until interrupted.

    Args:
        host: Address to listen at.
        port: 0 takes a free one.
        ready: Called with the page's address once it can be opened.

    Raises:
        MissingExtraError: gradio is not installed.
        ConfigError: The address cannot be listened at.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
    page, uvicorn = (
        require(module, "the playground", extra="playground", package="gradio")
        for module in ("dent.playground.app", "uvicorn")
    )
    with listening.listen(host, port) as listener:
        taken = listener.getsockname()[1]
        config = uvicorn.Config(page.application(host, taken), log_level="warning", ws="none")
        ready(f"{listening.url(host, taken)}/")
        uvicorn.Server(config).run(sockets=[listener])
