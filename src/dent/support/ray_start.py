"""What has to hold while Ray is started: its token is its owner's alone, and SIGTERM stays ours."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dent.support import signals


@contextmanager
def starting() -> Iterator[None]:
    """Start Ray in here.

    Anyone with the token in `~/.ray/auth_token` can run code as this user on every port of Ray's.
    Ray itself makes the file readable by everyone.
    """
    token = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    previous_umask = None if token.exists() else os.umask(0o077)
    try:
        with signals.kept():
            yield
    finally:
        if previous_umask is not None:
            os.umask(previous_umask)
        with suppress(OSError):  # none was made, or it is another's
            if token.stat().st_mode & 0o077:
                token.chmod(0o600)
