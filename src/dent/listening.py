"""Addresses that a server of this package listens at."""

import socket

from dent.errors import ConfigError


def listen(host: str, port: int) -> socket.socket:
    """A socket that queues whoever comes before its server runs.

    Args:
        host: A name or address of this machine.
        port: 0 takes a free one.

    Raises:
        ConfigError: The address is none of this machine, or taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"cannot listen at {host}, port {port} ({error}): choose another --port, or 0 for any "
            "that is free"
        ) from error


def url(host: str, port: int) -> str:
    """What to call a server by, without a slash at the end."""
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
