"""A user's own tensors as a dataset."""

import hashlib
from collections.abc import Sequence
from typing import final

import numpy as np
import torch
from torch import Tensor

from dent.data.dataset import ImageDataset, label_bytes, positions
from dent.errors import InputError
from dent.support.plural import counted


@final
class TensorDataset(ImageDataset):
    """Images and labels held in memory as tensors.

    `digest` is SHA-256 over the images' float32 bytes, row by row, followed by the labels as
    little-endian int64.

    Args:
        images: Float (N, C, H, W) in [0, 1], on any device; kept as float32 on the CPU.
        labels: Integers (N,), each in `range(num_classes)`.
        num_classes: The number of classes.
        name: Its name in records.

    Raises:
        InputError: Shapes, types or values are wrong; the message says what was passed.
    """

    def __init__(
        self, images: Tensor, labels: Tensor, num_classes: int, *, name: str = "tensors"
    ) -> None:
        images = as_images(images)
        _check_labels(labels, len(images), num_classes)
        self.name, self.split = name, "test"
        self.classes = tuple(map(str, range(num_classes)))
        self._images = images.clone()
        self._labels = labels.detach().to("cpu", torch.int64).clone()
        content = hashlib.sha256(self._images.numpy().astype("<f4", copy=False).tobytes())
        content.update(label_bytes(self._labels.numpy()))
        self.digest = content.hexdigest()
        self.sample_ids = range(len(images))

    def __len__(self) -> int:
        return len(self._labels)

    def __repr__(self) -> str:
        size = "x".join(map(str, self._images.shape[1:]))
        return f"<{self.name}: {counted(len(self), 'image')} {size}, sha256 {self.digest[:12]}>"

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return the samples at some positions; see `ImageDataset.batch`."""
        rows = torch.from_numpy(positions(indices, len(self), self.name))
        return self._images[rows], self._labels[rows]

    def labels_of(self, indices: Sequence[int]) -> list[int]:
        """Return only the labels; see `ImageDataset.labels_of`."""
        rows = torch.from_numpy(positions(indices, len(self), self.name))
        labels: list[int] = self._labels[rows].tolist()
        return labels


def as_images(images: object) -> Tensor:
    """Check images, and return them as float32 on the CPU.

    Args:
        images: Float (N, C, H, W) in [0, 1], N at least 1, on any device.

    Raises:
        InputError: `images` is something else; the message says what was passed.
    """
    expected = "images must be a float tensor (N, C, H, W) in [0, 1], N at least 1"
    if not isinstance(images, Tensor):
        raise InputError(f"{expected}, got {type(images).__name__}{_conversion(images, 'images')}")
    if images.ndim != 4 or not images.numel() or not images.is_floating_point():
        kind = str(images.dtype).removeprefix("torch.")
        hint = "" if images.is_floating_point() else "; for bytes: images.float() / 255"
        raise InputError(f"{expected}, got {kind} {tuple(images.shape)}{hint}")
    unusable = first_not_finite(images)
    if unusable is not None:
        raise InputError(f"{expected}, got NaN or infinity in images[{unusable}]")
    low, high = (float(edge) for edge in images.detach().aminmax())
    if not (low >= 0 and high <= 1):
        raise InputError(
            f"{expected}, got values from {low:g} to {high:g}: divide bytes by 255, and leave the "
            "normalization to the model"
        )
    return images.detach().to("cpu", torch.float32).contiguous()


def first_not_finite(images: Tensor) -> int | None:
    """Return the index of the first image with a value that is not finite, or None."""
    broken = (~images.detach().isfinite()).flatten(1).any(dim=1).nonzero()
    return int(broken[0]) if len(broken) else None


def _conversion(value: object, name: str) -> str:
    """Return the end of a message that says how to turn an array or list into a tensor."""
    if isinstance(value, np.ndarray):
        return f": pass torch.from_numpy({name})"
    return f": pass torch.tensor({name})" if isinstance(value, list | tuple) else ""


def _check_labels(labels: object, rows: int, num_classes: int) -> None:
    expected = f"labels must be a tensor of {rows} integers from 0 to {num_classes - 1}"
    if not isinstance(labels, Tensor):
        raise InputError(f"{expected}, got {type(labels).__name__}{_conversion(labels, 'labels')}")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise InputError(f"{expected}, got {str(labels.dtype).removeprefix('torch.')}")
    if labels.shape != (rows,):
        raise InputError(f"{expected}, one for each image, got shape {tuple(labels.shape)}")
    low, high = int(labels.min()), int(labels.max())
    if not 0 <= low <= high < num_classes:
        raise InputError(f"{expected}, got values from {low} to {high}")
