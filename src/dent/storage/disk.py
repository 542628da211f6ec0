"""Read and write the files of a run folder.

A crash at any moment leaves either the complete new file or the old one. The author of a folder
controls nothing outside it: only regular files are opened, never links, and their size is checked
before they are read.
"""

import errno
import hashlib
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from dent.storage.errors import RecordError
from dent.support.plural import counted

TEMPORARY: Final = ".tmp-"
LARGEST: Final = 2 * 2**30
"""Largest size in bytes of a file that is read as a whole."""
# Not every system has all of these flags. Without O_NONBLOCK, opening a FIFO could wait forever.
_SAFE: Final = sum(
    getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY")
)


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file as a whole. The content is synced to disk before it gets the file's name.

    Raises:
        RecordError: The disk is full, or the folder cannot be written to; the file is unchanged.
    """
    temporary = path.with_name(f"{TEMPORARY}{path.name}-{secrets.token_hex(8)}")
    with writing(path):
        try:
            # O_EXCL refuses a link that somebody else created under this name.
            handle = open_regular(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
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
    remaining = memoryview(content)
    while remaining:
        remaining = remaining[os.write(handle, remaining) :]


def sync_folder(folder: Path) -> None:
    """Sync the names in a folder to disk; Windows does so itself, and cannot open a folder."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def open_regular(path: Path, flags: int, *, in_place: bool = False) -> int:
    """Open a regular file, but never a link, a FIFO or a device.

    Args:
        path: The file. Links among its parent folders are followed.
        flags: Flags of `os.open`.
        in_place: Whether existing content is overwritten: then also refuse a file that has another
            name (a hard link).

    Returns:
        The file descriptor, which the caller must close.

    Raises:
        OSError: `path` is not a regular file, or the system refuses.
    """
    # Check before opening, because opening a device can have effects.
    refuse_special(path, in_place=in_place)
    handle = os.open(path, flags | _SAFE, 0o644)
    try:
        _refuse(os.fstat(handle), in_place)
    except BaseException:
        os.close(handle)
        raise
    return handle


def refuse_special(path: Path, *, in_place: bool = False) -> None:
    """Check that a path is a regular file or does not exist.

    Args:
        path: The file.
        in_place: Whether to refuse a file that has another name (a hard link), too.

    Raises:
        OSError: It is a link, a FIFO, a device or a folder; the message says why it is refused.
    """
    with suppress(FileNotFoundError):
        _refuse(path.lstat(), in_place)


def _refuse(status: os.stat_result, in_place: bool) -> None:
    if stat.S_ISLNK(status.st_mode):
        raise OSError(errno.ELOOP, "it is a symbolic link, and links are not followed here")
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file")
    if in_place and status.st_nlink > 1:
        raise OSError(errno.EMLINK, "it has another name (a hard link): copy it first")


def refuse_unreadable(error: OSError) -> None:
    """Raise an error for a folder that `os.walk` would skip: pass this as `onerror`.

    Raises:
        RecordError: The folder exists, but cannot be listed.
    """
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise RecordError(
            f"{error.filename} cannot be looked into: {error.strerror}. Make it readable, or move "
            "it away"
        ) from error


def is_there(path: Path) -> bool:
    """Return whether a path exists; a dangling link counts.

    Raises:
        RecordError: The system does not say, for lack of permission or because the name is invalid.
    """
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise unreadable(path, error) from error
    return True


def refuse_linked_folder(folder: Path) -> None:
    """Check that a path in a run is a folder or does not exist.

    Raises:
        RecordError: It is a link or a file.
    """
    if is_there(folder) and not stat.S_ISDIR(folder.lstat().st_mode):
        raise RecordError(
            f"{folder} must be a folder, not a link or a file: nothing was read or changed"
        )


def remove_temporaries(folder: Path) -> None:
    """Remove the temporary files of killed processes from a folder that the caller has locked."""
    for temporary in folder.glob(f"{TEMPORARY}*"):
        if temporary.is_symlink() or temporary.is_file():
            temporary.unlink()


def read(path: Path, most: int = LARGEST) -> bytes:
    """Read a file.

    Args:
        path: The file.
        most: Largest size in bytes that is read.

    Raises:
        RecordError: It is missing, too large, not a regular file, or cannot be read.
    """
    try:
        with os.fdopen(open_regular(path, os.O_RDONLY), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > most:
                raise RecordError(
                    f"{path} has {counted(size, 'byte')}, and at most {most} are read: torch-dent "
                    "did not write it"
                )
            return file.read(size)
    except FileNotFoundError:
        raise RecordError(f"{path} is missing") from None
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error
    except MemoryError:
        raise RecordError(f"{path} is larger than the memory that is free") from None


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file of any size, without holding it in memory.

    Raises:
        RecordError: It is missing, not a regular file, or cannot be read.
    """
    try:
        with os.fdopen(open_regular(path, os.O_RDONLY), "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise RecordError(f"{path} is missing") from None
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: OSError | ValueError) -> RecordError:
    """Return the error to raise if the system cannot read a file."""
    why = error.strerror if isinstance(error, OSError) else error
    return RecordError(f"cannot read {path}: {why}")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an `OSError` while writing `path` into a `RecordError` that says what to do.

    Raises:
        RecordError: The code inside raised an `OSError`.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise RecordError(
                f"no space left to write {path} ({error.strerror}). Everything recorded before is "
                "safe: free some space and run the same command again to resume"
            ) from error
        unchanged = " The old content is unchanged." if os.path.isfile(path) else ""
        raise RecordError(
            f"cannot write {path}: {error.strerror}.{unchanged} Check that the folder exists and "
            "that you may write to it"
        ) from error
