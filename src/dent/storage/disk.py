"""Read and write the files of a run folder.

A crash at any moment leaves either the complete new file or the old one. The author of a folder
controls nothing outside it: only regular files are opened, never links, and their size is checked
first.
"""

import errno
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
"""Size of the largest file that is read as a whole, in bytes."""
# Not every system has all of them. Without O_NONBLOCK, opening a FIFO waits for ever.
_SAFE: Final = sum(
    getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY")
)


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file as a whole, synced to disk before it gets its name.

    Raises:
        RecordError: The disk is full, or the folder cannot be written to; the file is as it was.
    """
    temporary = path.with_name(f"{TEMPORARY}{path.name}-{secrets.token_hex(8)}")
    with writing(path):
        try:
            # Exclusive, so that nobody can have laid a link there.
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
    """Make the names in a folder durable; Windows does so itself, and opens no folder."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def open_regular(path: Path, flags: int, *, in_place: bool = False) -> int:
    """Open a regular file: never what a link names, nor a FIFO or a device.

    Args:
        path: The file. Links among its parents are followed.
        flags: As `os.open` takes them.
        in_place: What is there is to be written over: refuse a file that has another name, too.

    Returns:
        The handle, for the caller to close.

    Raises:
        OSError: It is something else, or the system refuses.
    """
    # Before it is opened: to open a device can do something.
    refuse_special(path, in_place=in_place)
    handle = os.open(path, flags | _SAFE, 0o644)
    try:
        _refuse(os.fstat(handle), in_place)
    except BaseException:
        os.close(handle)
        raise
    return handle


def refuse_special(path: Path, *, in_place: bool = False) -> None:
    """Refuse a link, a FIFO, a device or a folder where a regular file, or nothing, should be.

    Args:
        path: The file.
        in_place: Refuse a file that has another name, too.

    Raises:
        OSError: Saying which.
    """
    with suppress(FileNotFoundError):
        _refuse(path.lstat(), in_place)


def _refuse(status: os.stat_result, in_place: bool) -> None:
    if stat.S_ISLNK(status.st_mode):
        raise OSError(errno.ELOOP, "it is a symbolic link, and links are not followed here")
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is no regular file")
    if in_place and status.st_nlink > 1:
        raise OSError(errno.EMLINK, "it has another name (a hard link): copy it first")


def is_there(path: Path) -> bool:
    """Whether there is anything of that name, a link to nothing included.

    Raises:
        RecordError: That cannot be known: no permission, or a name that is too long.
    """
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise unreadable(path, error) from error
    return True


def refuse_linked_folder(folder: Path) -> None:
    """Refuse a folder of a run that is a link, or no folder.

    Raises:
        RecordError: It is.
    """
    if is_there(folder) and not stat.S_ISDIR(folder.lstat().st_mode):
        raise RecordError(
            f"{folder} must be a folder, not a link or a file: nothing was read or changed"
        )


def remove_temporaries(folder: Path) -> None:
    """Remove what a killed process left half-written in a folder that is locked."""
    for temporary in folder.glob(f"{TEMPORARY}*"):
        if temporary.is_symlink() or temporary.is_file():
            temporary.unlink()


def read(path: Path, most: int = LARGEST) -> bytes:
    """Read a file.

    Args:
        path: The file.
        most: The bytes that it may have.

    Raises:
        RecordError: It is missing, too large, no regular file, or cannot be read.
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


def unreadable(path: Path, error: OSError | ValueError) -> RecordError:
    """What to raise where the system does not let one read."""
    why = error.strerror if isinstance(error, OSError) else error
    return RecordError(f"cannot read {path}: {why}")


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
        unchanged = " The old content is unchanged." if os.path.isfile(path) else ""
        raise RecordError(
            f"cannot write {path}: {error.strerror}.{unchanged} Check that the folder exists and "
            "that you may write to it"
        ) from error
