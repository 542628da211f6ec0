"""Load a user's own dataset: import `package.module:factory`, call it, and check every image."""

import copy
import hashlib
from typing import Any, Final, Literal

import torch
from torch import Tensor

from dent.data.dataset import CHANNELS, ArrayDataset, ImageDataset, label_bytes
from dent.data.image_folder import ImageFolderDataset
from dent.errors import DataError
from dent.support.factories import call_factory, type_name
from dent.support.plural import counted

_CHUNK: Final = 256


def from_factory(spec: str, split: Literal["test", "train"] | None = None) -> ImageDataset:
    """Import a factory and call it; see `dent.support.factories.call_factory`.

    The dataset gets the factory's name, so that records say where it came from. Unless it is an
    `ArrayDataset` or `ImageFolderDataset`, which compute their own digest, every image is read
    once, to check that pixels and labels are in range and to compute the digest. The digest is
    never taken from the factory.

    Args:
        spec: `package.module:factory`; the factory returns an `ImageDataset`, such as
            `ArrayDataset(name, split, classes, pixels, labels)`.
        split: The split to ask the factory for, as `factory(split=split)`. By default, the factory
            is called without arguments.

    Raises:
        UnknownNameError: There is no such module or factory.
        UnsupportedModelError: Importing or calling the factory raised an error, such as for an
            argument `split` that it does not take.
        DataError: The factory returned something else or another split, or its images or labels
            are not valid.
    """
    loaded = call_factory(
        spec,
        kind="makes a dataset",
        called="without arguments: give every argument a default"
        if split is None
        else f"with split={split!r}, and without arguments for the test split: give it an "
        'argument split="test"',
        keywords={} if split is None else {"split": split},
    )
    if not isinstance(loaded, ImageDataset):
        raise DataError(
            f"{spec} must return a dataset (dent.data.ImageDataset, such as ArrayDataset), got "
            f"{type_name(loaded)}"
        )
    if split is not None and getattr(loaded, "split", None) != split:
        raise DataError(
            f"{spec}(split={split!r}) must return that split, got a dataset with the split "
            f"{getattr(loaded, 'split', None)!r}"
        )
    changes = {"name": spec}
    if type(loaded) not in (ArrayDataset, ImageFolderDataset):  # a subclass may read others
        changes["digest"] = _looked_through(loaded, spec)
    dataset = copy.copy(loaded)
    try:
        for key, value in changes.items():
            object.__setattr__(dataset, key, value)
    except AttributeError as error:
        raise DataError(
            f"{spec} returned a {type_name(loaded)} whose name or digest cannot be set: make them "
            f"plain attributes ({error})"
        ) from error
    return dataset


def _looked_through(dataset: ImageDataset, spec: str) -> str:
    """Check all images, and return the SHA-256 over chunks of float32 images and their labels."""
    content = hashlib.sha256()
    try:
        size, classes, ids = len(dataset), len(dataset.classes), len(dataset.sample_ids)
        has_split = isinstance(dataset.split, str)
    except (AttributeError, TypeError) as error:
        raise DataError(
            f"{spec}: a dataset needs split, classes, sample_ids and a length: {error}"
        ) from error
    if ids != size or not has_split:
        raise DataError(
            f"{spec}: expected a text as split and one sample id for each of "
            f"{counted(size, 'image')}, "
            f"got {dataset.split!r} and {ids} ids"
        )
    for start in range(0, size, _CHUNK):
        rows = range(start, min(start + _CHUNK, size))
        where = f"{spec}, images {rows[0]} to {rows[-1]}"
        images, labels = _read(dataset, rows, where)
        _check_batch(images, labels, len(rows), classes, where)
        content.update(images.contiguous().numpy().tobytes())
        content.update(label_bytes(labels.numpy()))
    return content.hexdigest()


def _read(dataset: ImageDataset, rows: range, where: str) -> tuple[Any, Any]:
    try:
        batch: object = dataset.batch(rows)
    except DataError:
        raise
    except Exception as error:  # the user's own code
        raise DataError(f"{where}: batch raised {type(error).__name__}: {error}") from error
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        what = type_name(batch)
        if isinstance(batch, tuple | list):
            what = f"{counted(len(batch), 'object')}"
        raise DataError(f"{where}: batch must return images and labels, got {what}")
    return _on_cpu(batch[0]), _on_cpu(batch[1])


def _on_cpu(part: Any) -> Any:
    return part.detach().cpu() if isinstance(part, Tensor) else part


def _check_batch(images: Any, labels: Any, rows: int, num_classes: int, where: str) -> None:
    if (
        not isinstance(images, Tensor)
        or images.dtype != torch.float32
        or images.ndim != 4
        or len(images) != rows
    ):
        raise DataError(f"{where}: expected float32 images ({rows}, C, H, W), got {_told(images)}")
    if images.shape[1] > max(CHANNELS) and images.shape[3] in CHANNELS:
        raise DataError(
            f"{where}: expected images ({rows}, C, H, W), got {tuple(images.shape)}, with the "
            "channels last: images.permute(0, 3, 1, 2) puts them second"
        )
    if (
        not isinstance(labels, Tensor)
        or labels.dtype != torch.int64
        or tuple(labels.shape) != (rows,)
    ):
        raise DataError(f"{where}: expected int64 labels ({rows},), got {_told(labels)}")
    if not bool(((images >= 0) & (images <= 1)).all()):  # also refuses NaN
        low, high = (float(edge) for edge in images.aminmax())
        raise DataError(f"{where}: expected pixels in [0, 1], got {low:g} to {high:g}")
    if not bool(((labels >= 0) & (labels < num_classes)).all()):
        low, high = (int(edge) for edge in labels.aminmax())
        raise DataError(
            f"{where}: expected labels in 0 to {num_classes - 1}, one of "
            f"{counted(num_classes, 'class')}, got {low} "
            f"to {high}"
        )


def _told(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    return type_name(value)
