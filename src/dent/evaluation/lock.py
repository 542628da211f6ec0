"""One process at a time writes to a run folder."""

import fcntl
import json
import os
import socket
from pathlib import Path
from typing import Final, Self

from dent.evaluation.disk import write_all, writing
from dent.evaluation.errors import LockedError

LOCK: Final = "lock"


class FolderLock:
    """Holds a folder until closed, or until the process ends, however it ends.

    Raises:
        LockedError: Another process holds it; the message says which, on which host.
        RecordError: The lock cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / LOCK
        with writing(path):
            self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                self._take(folder)
            except BaseException:  # else this process would hold what it was refused
                self.close()
                raise

    def _take(self, folder: Path) -> None:
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _describe(os.read(self._handle, 4096))
            raise LockedError(
                f"{folder} is being written to by another process ({holder}): wait until it is "
                "done, stop it, or choose another folder"
            ) from None
        os.ftruncate(self._handle, 0)
        content = json.dumps({"pid": os.getpid(), "host": socket.gethostname()})
        write_all(self._handle, content.encode())

    def close(self) -> None:
        """Release the folder. The file stays: who removed it could remove another's lock."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _describe(content: bytes) -> str:
    try:
        holder = json.loads(content)
        return f"pid {int(holder['pid'])} on host {holder['host']}"
    except (ValueError, KeyError, TypeError):
        return "which has not said who it is"
