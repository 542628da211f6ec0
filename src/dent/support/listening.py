"""Addresses of the servers of this package, and the requests that they accept."""

import errno
import ipaddress
import re
import socket
from collections.abc import Sequence
from typing import Final

from dent.errors import ConfigError

_LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")
_NAME: Final = re.compile(r"[^\s\[\]:/*?@]+")
_HOST: Final = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[^\[\]:]+)(?::\d{1,5})?")


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket, which queues connections until its server runs.

    Args:
        host: A name or address of this machine.
        port: The port; 0 takes a free one.

    Raises:
        ConfigError: The address does not belong to this machine, or is in use.
    """
    if not host:
        raise ConfigError(
            "--host is empty: 127.0.0.1 accepts only this machine, and 0.0.0.0 every machine"
        )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OverflowError as error:
        raise ConfigError(f"--port expected 0 to 65535, got {port}") from error
    except OSError as error:
        # create_server raises a plain OSError in place of the one that says that a name is unknown.
        is_unknown = isinstance(error.__context__, socket.gaierror)
        is_host = is_unknown or error.errno == errno.EADDRNOTAVAIL
        advice = (
            "choose a --host that is an address of this machine"
            if is_host
            else "choose another --port, or 0 for a free one"
        )
        raise ConfigError(f"cannot listen at {host}, port {port} ({error}): {advice}") from error


def url(host: str, port: int) -> str:
    """Return the URL of a server, without a trailing slash."""
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def check_names(names: Sequence[str]) -> None:
    """Refuse names that no `Host` header can match, such as a URL or a name with a port.

    Raises:
        ConfigError: There is such a name.
    """
    for name in names:
        bare = name.strip("[]")
        if not _is_address(bare) and not _NAME.fullmatch(bare):
            raise ConfigError(
                "--allowed-host expected a name or an address without scheme, port and path, such "
                f"as demo.example, got {name!r}"
            )


class Hosts:
    """Check of the `Host` headers of requests.

    Any page that is open in the user's browser can reach a server that listens only on this
    machine, if the page's host name is made to resolve to 127.0.0.1 (DNS rebinding). The browser
    then sends the page's host name in the header, which is not an accepted one.

    Args:
        host: The address at which the server listens. If other machines can reach it, they may know
            it by any name, so any header is accepted unless names are allowed.
        allowed: More accepted names, such as the name by which a proxy is reached.

    Raises:
        ConfigError: No header can match one of the names.
    """

    def __init__(self, host: str, allowed: Sequence[str] = ()) -> None:
        check_names(allowed)
        names = {*_LOOPBACK, host, *allowed} if is_loopback(host) or allowed else None
        self._known = names and {name.lower().strip("[]") for name in names}

    def permits(self, headers: Sequence[str]) -> bool:
        """Return whether to accept a request with these `Host` headers; there must be just one."""
        if self._known is None:
            return True
        match = _HOST.fullmatch(headers[0].strip().lower()) if len(headers) == 1 else None
        return match is not None and match["name"].strip("[]") in self._known


REFUSED_HOST: Final = (
    "The request's Host header does not name this server: use 127.0.0.1, localhost or a name that "
    "it allows, or start it with --allowed-host NAME."
)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach a server that listens at an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
