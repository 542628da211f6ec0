"""Check that a Ray cluster answers before Ray's own client tries for minutes."""

from __future__ import annotations

import os
import re
import socket
from typing import Final

_ADDRESS: Final = re.compile(
    r"(?:ray://)?(?:\[(?P<six>[^\]]+)\]|(?P<host>[^:/\[\]]+)):(?P<port>\d+)"
)
_SECONDS: Final = 3.0
VARIABLE: Final = "RAY_ADDRESS"


def unreachable(address: str | None = None) -> str | None:
    """Return a sentence why a Ray cluster cannot be reached; None if it answers.

    Args:
        address: `HOST:PORT`; by default the value of RAY_ADDRESS. Words such as `auto`, which Ray
            resolves itself, are not checked, and give None.
    """
    full_address = address or os.environ.get(VARIABLE) or ""
    match = _ADDRESS.fullmatch(full_address.strip())
    if match is None:
        return None
    try:
        host_and_port = (match["six"] or match["host"], int(match["port"]))
        with socket.create_connection(host_and_port, timeout=_SECONDS):
            return None
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        source = "" if address else f", which {VARIABLE} names,"
        remedy = "name another" if address else f"unset {VARIABLE}, or name another"
        return (
            f"the Ray cluster {full_address}{source} cannot be reached from "
            f"{socket.gethostname()}: {reason}. Start it, or {remedy}"
        )
