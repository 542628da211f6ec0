"""Addresses that a server of this package listens at."""

import ipaddress
import re
import socket
from collections.abc import Sequence
from typing import Final

from dent.errors import ConfigError

_LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")
_HOST: Final = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[^\[\]:]+)(?::\d{1,5})?")


def listen(host: str, port: int) -> socket.socket:
    """A socket that queues connections until its server runs.

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
            f"cannot listen at {host}, port {port} ({error}): choose another --port, or 0 for a "
            "free one"
        ) from error


def url(host: str, port: int) -> str:
    """What to call a server by, without a slash at the end."""
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


class Hosts:
    """What the `Host` header of a request may be.

    A server that listens at this machine alone can still be reached from any page that its user's
    browser has open, if that page's name is made to stand for 127.0.0.1 (DNS rebinding). The
    browser then names the page's host, which is none of these.

    Args:
        host: Where the server listens. Where that is not this machine alone, any host is right.
        allowed: More names, those by which a proxy is reached.
    """

    def __init__(self, host: str, allowed: Sequence[str] = ()) -> None:
        names = {*_LOOPBACK, host, *allowed} if is_loopback(host) else None
        self._known = names and {name.lower() for name in names}

    def permits(self, headers: Sequence[str]) -> bool:
        """Whether a request with these `Host` headers is meant for the server; it must have one."""
        if self._known is None:
            return True
        match = _HOST.fullmatch(headers[0].strip().lower()) if len(headers) == 1 else None
        return match is not None and match["name"].strip("[]") in self._known


REFUSED_HOST: Final = (
    "The request's Host header does not name this server, which accepts only this machine: use "
    "127.0.0.1 or localhost, or start it with --allowed-host NAME."
)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address to listen at."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
