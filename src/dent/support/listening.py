"""Addresses of the servers of this package, and the requests that they accept."""

import ipaddress
import re
import socket
from collections.abc import Sequence
from typing import Final

from dent.errors import ConfigError

_LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")
_HOST: Final = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[^\[\]:]+)(?::\d{1,5})?")


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket, which queues connections until its server runs.

    Args:
        host: A name or address of this machine.
        port: The port; 0 takes a free one.

    Raises:
        ConfigError: The address does not belong to this machine, or is in use.
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
    """Return the URL of a server, without a trailing slash."""
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


class Hosts:
    """Check of the `Host` headers of requests.

    Any page that is open in the user's browser can reach a server that listens only on this
    machine, if the page's host name is made to resolve to 127.0.0.1 (DNS rebinding). The browser
    then sends the page's host name in the header, which is not an accepted one.

    Args:
        host: The address at which the server listens. If other machines can reach it, any header
            is accepted.
        allowed: More accepted names, such as the name by which a proxy is reached.
    """

    def __init__(self, host: str, allowed: Sequence[str] = ()) -> None:
        names = {*_LOOPBACK, host, *allowed} if is_loopback(host) else None
        self._known = names and {name.lower() for name in names}

    def permits(self, headers: Sequence[str]) -> bool:
        """Return whether to accept a request with these `Host` headers; there must be just one."""
        if self._known is None:
            return True
        match = _HOST.fullmatch(headers[0].strip().lower()) if len(headers) == 1 else None
        return match is not None and match["name"].strip("[]") in self._known


REFUSED_HOST: Final = (
    "The request's Host header does not name this server, which accepts only this machine: use "
    "127.0.0.1 or localhost, or start it with --allowed-host NAME."
)


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach a server that listens at an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
