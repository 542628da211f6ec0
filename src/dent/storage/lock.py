"""Lock of a run folder, so that only one process at a time writes to it."""

import errno
import json
import os
import socket
import warnings
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, Self

from filelock import FileLock, Timeout

from dent.storage.disk import TEMPORARY, open_regular, read, refuse_special, write_all, writing
from dent.storage.errors import LockedError, RecordError
from dent.storage.plain_json import parse

LOCK: Final = "lock"
HOLDER: Final = "lock.holder"
"""File that names the holder, for error messages: on Windows only the holder can read the lock."""
_LONGEST: Final = 4096
_NO_LOCKS: Final = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)


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
        if _acquired(self._lock):
            return
        lock, gone = folder / LOCK, ""
        if _is_without_locks(folder):
            if not lock.stat().st_size:  # left by a system with locks, where nobody holds it
                lock.unlink(missing_ok=True)
                if _acquired(self._lock):
                    return
            gone = (
                ". This file system has no locks that end with their process: if that process is "
                f"gone, delete {lock}"
            )
        raise LockedError(
            f"{folder} is being written to by another process ({_describe(self._holder, lock)}): "
            f"wait until it is done, stop it, or choose another folder{gone}"
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


def _acquired(lock: FileLock) -> bool:
    try:
        with warnings.catch_warnings():  # that it falls back to a file that exists while locked
            warnings.simplefilter("ignore")
            lock.acquire(blocking=False)
    except Timeout:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        raise RecordError(
            f"{lock.lock_file} cannot be locked ({error.strerror}): its file system may have no "
            "locks. Choose a folder on another one"
        ) from error
    return True


def _is_without_locks(folder: Path) -> bool:
    """Return whether locks are files here that also stay when their process is killed.

    `filelock` writes its process into such a file. A lock of the system is an empty file.
    """
    with TemporaryDirectory(dir=folder, prefix=TEMPORARY) as scratch:
        trial = FileLock(Path(scratch) / LOCK, thread_local=False)
        if not _acquired(trial):
            return False
        try:
            return (Path(scratch) / LOCK).stat().st_size > 0
        finally:
            trial.release()


def _describe(file: Path, lock: Path) -> str:
    with suppress(RecordError, ValueError, KeyError, TypeError):
        holder = parse(read(file, _LONGEST))
        return f"pid {int(holder['pid'])} on host {holder['host']}"
    with suppress(OSError, RecordError, ValueError):  # the file of a system without locks
        pid, host, *_ = read(lock, _LONGEST).decode().splitlines()
        return f"pid {int(pid)} on host {host}"
    return "which has not said who it is"
