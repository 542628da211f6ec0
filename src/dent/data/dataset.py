"""The protocol of a dataset: ids, labels, and batches made on demand."""

import hashlib
import operator
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dent.errors import InputError
from dent.support.factories import type_name
from dent.support.plural import counted

CHANNELS: Final = (1, 3, 4)
"""Usual numbers of channels, used to detect images with the channels in the wrong place."""

_Scalar = TypeVar("_Scalar", bound=np.generic)


class ImageDataset(ABC):
    """Labeled images in a fixed order; any batch can be read by position.

    The images need not be in memory: a dataset may read them from disk for each batch. A dataset
    never changes, so threads may share one.

    Attributes:
        name: The registry's name, such as `"cifar10"`.
        split: `"test"` or `"train"`.
        classes: The class names; label `i` means `classes[i]`.
        digest: SHA-256 (hex) that identifies the content, for the records of a run. Two datasets
            with the same digest hold the same pixels and labels in the same order.
        sample_ids: For each position, the sample's position in the full split. A sample keeps its
            id in every subset, so results on different subsets can be paired.
    """

    name: str
    split: str
    classes: tuple[str, ...]
    digest: str
    sample_ids: Sequence[int]

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return the samples at some positions, in the given order.

        Args:
            indices: Positions in `range(len(self))`; repeats are allowed, negative ones are not.
                Empty gives an empty batch.

        Returns:
            Images as float32 (N, C, H, W) in [0, 1] and labels as int64 (N,), both on the CPU. They
            are copies, so writing to them does not change the dataset.

        Raises:
            InputError: A position is out of range, or is not an integer.
        """

    def labels_of(self, indices: Sequence[int]) -> list[int]:
        """Return the labels at some positions, which may be much faster than `batch`.

        Args:
            indices: As in `batch`.

        Raises:
            InputError: A position is out of range, or is not an integer.
        """
        labels: list[int] = self.batch(indices)[1].tolist()
        return labels


def check_attributes(dataset: ImageDataset) -> None:
    """Refuse a dataset of the user's own class that lacks an attribute.

    Raises:
        InputError: It lacks one; the message says how to get a digest.
    """
    needed = ("name", "split", "classes", "digest", "sample_ids")
    missing = [name for name in needed if not hasattr(dataset, name)]
    if missing:
        raise InputError(
            f"the dataset {type(dataset).__name__} has no {', '.join(missing)}: a subclass of "
            "dent.data.ImageDataset sets them. dent.data.from_factory('package.module:factory') "
            "reads all images of the dataset that your function returns, checks them, and computes "
            "the digest"
        )


@final
@dataclass(frozen=True, eq=False, repr=False)
class ArrayDataset(ImageDataset):
    """A dataset held in memory as decoded arrays.

    `digest` is always computed from the arrays, never passed in: SHA-256 over the pixels in C order
    followed by the labels as little-endian int64.

    Args:
        name: The registry's name.
        split: `"test"` or `"train"`.
        classes: Class names.
        pixels: uint8 (N, H, W, C); copied, unless the array is contiguous and read-only and owns
            its memory.
        labels: int64 (N,), each in `range(len(classes))`.
        sample_ids: Positions in the full split, (N,); `range(N)` by default.

    Raises:
        InputError: Shapes, types or labels do not fit together.
    """

    name: str
    split: str
    classes: tuple[str, ...]
    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    sample_ids: Sequence[int] = ()
    digest: str = field(init=False, default="")
    pixels_sha256: str = field(init=False, default="")

    def __post_init__(self) -> None:
        where = f"dataset {self.name!r}"
        names: object = self.classes
        if isinstance(names, str) or not all(isinstance(one, str) for one in self.classes):
            raise InputError(
                f"{where}: expected a tuple of class names, got {self.classes!r}: one class is "
                "('cat',)"
            )
        for name, given in (("pixels", self.pixels), ("labels", self.labels)):
            if not isinstance(given, np.ndarray):
                raise InputError(
                    f"{where}: expected a NumPy array of {name}, got {type_name(given)}: "
                    "a tensor's .numpy() is one"
                )
        if self.pixels.dtype != np.uint8 or self.pixels.ndim != 4:
            msg = f"{where}: expected uint8 pixels (N, H, W, C), got {_describe(self.pixels)}"
            raise InputError(msg)
        _, first, _, last = self.pixels.shape
        if first in CHANNELS and last > max(CHANNELS):
            raise InputError(
                f"{where}: ArrayDataset takes (N, H, W, C), got {self.pixels.shape}, with the "
                "channels first: pixels.transpose(0, 2, 3, 1) puts them last"
            )
        if self.labels.dtype != np.int64 or self.labels.shape != self.pixels.shape[:1]:
            expected = f"int64 labels ({len(self.pixels)},), one for every image"
            raise InputError(f"{where}: expected {expected}, got {_describe(self.labels)}")
        if len(self.labels) and not 0 <= self.labels.min() <= self.labels.max() < len(self.classes):
            label_range = f"{self.labels.min()} to {self.labels.max()}"
            msg = f"{where}: labels must be in 0 to {len(self.classes) - 1}, got {label_range}"
            raise InputError(msg)
        ids = self.sample_ids or range(len(self.labels))
        if len(ids) != len(self.labels):
            raise InputError(
                f"{where}: {counted(len(ids), 'sample id')} for "
                f"{counted(len(self.labels), 'image')}"
            )
        object.__setattr__(self, "pixels", unchanging(self.pixels))
        object.__setattr__(self, "labels", unchanging(self.labels))
        object.__setattr__(self, "sample_ids", ids)
        content = hashlib.sha256(self.pixels.data)
        object.__setattr__(self, "pixels_sha256", content.hexdigest())
        content.update(label_bytes(self.labels))
        object.__setattr__(self, "digest", content.hexdigest())

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        size = "x".join(map(str, self.pixels.shape[1:]))
        return (
            f"<{self.name} {self.split}: {counted(len(self), 'image')} {size}, sha256 "
            f"{self.digest[:12]}>"
        )

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return the samples at some positions; see `ImageDataset.batch`."""
        rows = positions(indices, len(self), self.name)
        images = torch.from_numpy(self.pixels[rows]).permute(0, 3, 1, 2)
        scaled = images.to(torch.float32, memory_format=torch.contiguous_format).div_(255)
        return scaled, torch.from_numpy(self.labels[rows])

    def labels_of(self, indices: Sequence[int]) -> list[int]:
        """Return only the labels; see `ImageDataset.labels_of`."""
        labels: list[int] = self.labels[positions(indices, len(self), self.name)].tolist()
        return labels

    def subset(self, indices: Sequence[int], *, name: str | None = None) -> "ArrayDataset":
        """Return a dataset of the samples at some positions, which keep their ids.

        Args:
            indices: Positions in `range(len(self))`, in the order of the subset.
            name: Name of the subset; by default this dataset's own.

        Raises:
            InputError: A position is out of range, or is not an integer.
        """
        rows = positions(indices, len(self), self.name)
        return ArrayDataset(
            name=name or self.name,
            split=self.split,
            classes=self.classes,
            pixels=_frozen(self.pixels[rows]),
            labels=_frozen(self.labels[rows]),
            sample_ids=tuple(self.sample_ids[i] for i in rows),
        )


def positions(indices: Sequence[int], length: int, name: str) -> NDArray[np.int64]:
    """Check positions before anything is read.

    Args:
        indices: The requested positions.
        length: The number of samples.
        name: The dataset's name, for the error.

    Returns:
        The positions as int64 (N,).

    Raises:
        InputError: One is out of range, a boolean, or not an integer.
    """
    checked = []
    for index in indices:
        if isinstance(index, bool | np.bool_):
            msg = f"dataset {name!r}: expected positions, got a boolean; turn a mask into positions"
            raise InputError(f"{msg} with `mask.nonzero()` first")
        try:
            position = operator.index(index)
        except TypeError:
            msg = f"dataset {name!r}: expected integer positions, got {index!r}"
            raise InputError(f"{msg} ({type(index).__name__})") from None
        if not 0 <= position < length:
            msg = f"dataset {name!r}: position {position} is not in range({length})"
            raise InputError(f"{msg}: it has {counted(length, 'sample')}, counted from 0")
        checked.append(position)
    return np.array(checked, dtype=np.int64)


def label_bytes(labels: NDArray[np.int64]) -> bytes:
    """Return labels as bytes for a digest: little-endian int64."""
    return labels.astype("<i8", copy=False).tobytes()


def unchanging(array: NDArray[_Scalar]) -> NDArray[_Scalar]:
    """Return a read-only contiguous array whose values nobody else can change; a copy if needed."""
    contiguous = np.ascontiguousarray(array)
    return contiguous.view() if _is_unchanging(contiguous) else _frozen(contiguous.copy())


def _is_unchanging(array: NDArray[_Scalar]) -> bool:
    memory: object = array
    while isinstance(memory, np.ndarray):
        if memory.flags.writeable:
            return False
        memory = memory.base
    return memory is None or isinstance(memory, bytes)


def _frozen(array: NDArray[_Scalar]) -> NDArray[_Scalar]:
    array.flags.writeable = False
    return array


def _describe(array: NDArray[np.generic]) -> str:
    return f"{array.dtype} {array.shape}"
