"""Compute the SHA-256 of many files, and cache the digests until a file changes."""

import hashlib
import json
import stat
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from dent.data import store
from dent.data.progress import OnBytes
from dent.errors import DataError, DataWarning

SIZE: Final = 32
_SETTLED_NS: Final = 2_000_000_000  # two changes within one tick of the clock look like one


def file_digests(
    folder: Path, files: Sequence[str], cache: Path, report: OnBytes
) -> NDArray[np.uint8]:
    """Return the SHA-256 of every file, from a cache if no size or time has changed.

    A cached digest is not checked against the file. So the caller must compare it with the bytes
    that it reads later, as `ImageFolderDataset` does.

    Args:
        folder: The folder of the files.
        files: Paths below the folder.
        cache: The folder of cached digests; its other files are left alone.
        report: Called with the progress, in bytes read.

    Returns:
        uint8 (len(files), 32).

    Raises:
        DataError: A file cannot be read, or is not a regular file.
    """
    began = time.time_ns()
    try:
        stats = [(folder / name).stat() for name in files]
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}") from error
    for name, file_stat in zip(files, stats, strict=True):
        if not stat.S_ISREG(file_stat.st_mode):  # reading a FIFO or /dev/zero would never end
            raise DataError(f"{folder / name} is not a regular file: remove it from the folder")
    sizes = [file_stat.st_size for file_stat in stats]
    listing = [
        str(folder.resolve()),
        [[name, s.st_size, s.st_mtime_ns] for name, s in zip(files, stats, strict=True)],
    ]
    key = hashlib.sha256(json.dumps(listing).encode()).hexdigest()
    remembered = cache / f"{key}.sha256s"
    if remembered.is_file() and remembered.stat().st_size == SIZE * len(files):
        return np.fromfile(remembered, dtype=np.uint8).reshape(-1, SIZE)
    digests = _take(folder, files, sum(sizes), report)
    if all(file_stat.st_mtime_ns < began - _SETTLED_NS for file_stat in stats):
        try:
            store.write(remembered, digests.tobytes())
        except DataError as error:
            warnings.warn(
                f"the digests will be computed again next time: {error}", DataWarning, stacklevel=2
            )
    return digests


def _take(folder: Path, files: Sequence[str], total: int, report: OnBytes) -> NDArray[np.uint8]:
    digests = np.empty((len(files), SIZE), dtype=np.uint8)
    done = 0
    report("taking digests", 0, total)
    for index, name in enumerate(files):
        try:
            content = (folder / name).read_bytes()
        except OSError as error:
            raise DataError(f"{folder / name} cannot be read: {error.strerror}") from error
        digests[index] = np.frombuffer(hashlib.sha256(content).digest(), dtype=np.uint8)
        done += len(content)
        report("taking digests", min(done, total), total)
    return digests
