"""Write to a disk so that a crash at any moment leaves either all of a file or what was before."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from dent.evaluation.errors import RecordError

TEMPORARY: Final = ".tmp-"
BINARY: Final[int] = getattr(os, "O_BINARY", 0)
"""For `os.open`: Windows would write another line end than was asked for."""


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file as a whole, synced to disk before it gets its name.

    Raises:
        RecordError: The disk is full, or the folder cannot be written to; the file is as it was.
    """
    temporary = path.with_name(f"{TEMPORARY}{path.name}")
    with writing(path):
        try:
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | BINARY, 0o644)
            try:
                write_all(handle, content)
                os.fsync(handle)
            finally:
                os.close(handle)
            os.replace(temporary, path)
        except OSError:
            with suppress(OSError):
                temporary.unlink()
            raise
        sync_folder(path.parent)


def write_all(handle: int, content: bytes) -> None:
    """Write every byte, however many calls it takes."""
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(handle, rest) :]


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable; Windows does so itself, and opens no folder."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read(path: Path) -> bytes:
    """Read a file.

    Raises:
        RecordError: It is missing or cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise RecordError(f"{path} is missing") from None
    except OSError as error:
        raise RecordError(f"cannot read {path}: {error.strerror}") from error


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the system refuses into what a person can do about it."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise RecordError(
                f"no space left to write {path} ({error.strerror}). Everything recorded before is "
                "safe: free some space and run the same command again to resume"
            ) from error
        raise RecordError(
            f"cannot write {path}: {error.strerror}. What was there is as it was: check that the "
            "folder exists, is a folder, and that you may write to it"
        ) from error
