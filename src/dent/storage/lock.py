"""Lock of a run folder, so that only one process at a time writes to it."""

import json
import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

from filelock import FileLock, Timeout

from dent.storage.disk import open_regular, read, refuse_special, write_all, writing
from dent.storage.errors import LockedError, RecordError
from dent.storage.plain_json import parse

LOCK: Final = "lock"
HOLDER: Final = "lock.holder"
"""File that names the holder, for error messages: on Windows only the holder can read the lock."""
_LONGEST: Final = 4096


class FolderLock:
    """Lock of a folder, held until it is closed or the process ends, however it ends.

    Raises:
        LockedError: Another process holds it; the message gives its process ID and host.
        RecordError: The lock cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._holder = folder / HOLDER
        self._lock = FileLock(folder / LOCK, thread_local=False)
        with writing(folder / LOCK):
            refuse_special(folder / LOCK, in_place=True)  # filelock empties what it opens
            self._take(folder)
            try:
                self._say_who()
            except BaseException:  # do not keep the lock if the constructor fails
                self.close()
                raise

    def _take(self, folder: Path) -> None:
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            raise LockedError(
                f"{folder} is being written to by another process ({_describe(self._holder)}): "
                "wait until it is done, stop it, or choose another folder"
            ) from None

    def _say_who(self) -> None:
        content = json.dumps({"pid": os.getpid(), "host": socket.gethostname()})
        with writing(self._holder):
            handle = open_regular(self._holder, os.O_WRONLY | os.O_CREAT, in_place=True)
            try:
                os.ftruncate(handle, 0)
                write_all(handle, content.encode())
            finally:
                os.close(handle)

    def close(self) -> None:
        """Release the folder.

        The locked file stays, because removing it could remove the lock of another process.
        """
        if self._lock.is_locked:
            with suppress(OSError):
                self._holder.unlink()
            self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _describe(file: Path) -> str:
    try:
        holder = parse(read(file, _LONGEST))
        return f"pid {int(holder['pid'])} on host {holder['host']}"
    except (RecordError, ValueError, KeyError, TypeError):
        return "which has not said who it is"
