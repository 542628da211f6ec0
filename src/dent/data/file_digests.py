"""SHA-256 of many files, taken once and remembered as long as no file has changed."""

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
_SETTLED_NS: Final = 2_000_000_000  # a file changed again within its clock's tick looks the same


def file_digests(
    folder: Path, files: Sequence[str], cache: Path, report: OnBytes
) -> NDArray[np.uint8]:
    """Give the SHA-256 of every file, from a cache where sizes and times are as they were.

    Taking a remembered digest on trust is safe only for a caller that compares it with the bytes it
    reads later, as `ImageFolderDataset` does.

    Args:
        folder: The folder of the files.
        files: Paths below it.
        cache: Folder to remember in; what is there under another name is left alone.
        report: Called with the number of bytes read.

    Returns:
        uint8 (len(files), 32).

    Raises:
        DataError: A file cannot be read, or is no regular file.
    """
    began = time.time_ns()
    try:
        stats = [(folder / name).stat() for name in files]
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}") from error
    for name, file_stat in zip(files, stats, strict=True):
        if not stat.S_ISREG(file_stat.st_mode):  # a FIFO would never end, nor would /dev/zero
            raise DataError(f"{folder / name} is no regular file: remove it from the folder")
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
