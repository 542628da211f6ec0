"""Start Ray so that only its owner can read its token, and SIGTERM keeps its handler."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dent.support import signals


@contextmanager
def starting() -> Iterator[None]:
    """Context in which to start Ray.

    Anyone with the token in `~/.ray/auth_token` can run code as this user through any port of Ray.
    Ray itself makes the file readable by everyone, so this makes it private.
    """
    token = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    previous_umask = None if token.exists() else os.umask(0o077)
    try:
        with signals.kept():
            yield
    finally:
        if previous_umask is not None:
            os.umask(previous_umask)
        with suppress(OSError):  # there is no token, or another user owns it
            if token.stat().st_mode & 0o077:
                token.chmod(0o600)
