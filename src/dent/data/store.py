"""Store decoded arrays in one safetensors file, written whole or not at all.

The reader of a file checks its content against known digests every time. SHA-256 over the test
split of CIFAR-10 takes a tenth of a second, and needs no marker file, which could disagree with the
data.
"""

import contextlib
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from dent.data.sources import Arrays
from dent.errors import DataError


def encode(tensors: Mapping[str, NDArray[np.generic]]) -> bytes:
    """Return the bytes of a file with these arrays; the same arrays always give the same bytes."""
    return save({name: np.ascontiguousarray(array) for name, array in tensors.items()})


def decode(content: bytes, names: tuple[str, ...]) -> list[NDArray[np.generic]]:
    """Read the named arrays from a file's bytes.

    Raises:
        DataError: The bytes are not a file of exactly these arrays; the message is only the reason.
    """
    try:
        tensors = load(content)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"it is damaged or not a safetensors file ({error})") from error
    if set(tensors) != set(names):
        raise DataError(f"it contains {sorted(tensors)}, expected {sorted(names)}")
    return [tensors[name] for name in names]


def read_split(path: Path) -> Arrays:
    """Read pixels and labels, whose values the caller must check.

    Raises:
        DataError: The file holds something else; the message is only the reason.
        OSError: The file cannot be read.
    """
    pixels, labels = decode(path.read_bytes(), ("pixels", "labels"))
    if pixels.dtype != np.uint8 or labels.dtype != np.int64:
        dtypes = f"{pixels.dtype} pixels and {labels.dtype} labels"
        msg = f"it contains {dtypes}, expected uint8 and int64"
        raise DataError(msg)
    return Arrays(pixels.astype(np.uint8, copy=False), labels.astype(np.int64, copy=False))


def write(path: Path, content: bytes) -> None:
    """Write a file as a whole: readers see the old file or the new one, never a part of one.

    The bytes are written under a temporary name in the same folder and synced to the disk. Only
    then do they get the file's name. If anything fails, the old file stays and the temporary file
    is removed.

    Raises:
        DataError: The folder cannot be written to, or the disk is full.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        reason = error.strerror or str(error)
        msg = f"{path} ({len(content):,} bytes) could not be written: {reason}. No part of it"
        advice = "make room, or choose another folder with `root=` or DENT_DATA"
        raise DataError(f"{msg} was left there. What to do: {advice}") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
