"""Serve the page from this machine."""

import os
import socket
from collections.abc import Callable

from dent.errors import ConfigError, MissingExtraError


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
    try:
        import uvicorn  # noqa: PLC0415 - an extra

        from dent.playground.app import application  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise MissingExtraError(
            "the playground needs gradio: pip install 'torch-dent[playground]'"
        ) from error
    with _listening(host, port) as listener:
        taken = listener.getsockname()[1]
        config = uvicorn.Config(application(host, taken), log_level="warning", ws="none")
        ready(f"http://{f'[{host}]' if ':' in host else host}:{taken}/")
        uvicorn.Server(config).run(sockets=[listener])


def _listening(host: str, port: int) -> socket.socket:
    """A socket that queues whoever comes before the server runs.

    Raises:
        ConfigError: The address is none of this machine, or taken.
    """
    try:
        return socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET
        )
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"cannot listen at {host}, port {port} ({error}): choose another --port, or 0 for any "
            "that is free"
        ) from error
