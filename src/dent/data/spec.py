"""The facts that identify a dataset, whatever its source."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dent.data.dataset import ArrayDataset, label_bytes
from dent.data.sources import Arrays, DataSource
from dent.data.torchvision_folder import TorchvisionFolder
from dent.errors import DataError, InputError


@dataclass(frozen=True)
class SplitFacts:
    """The facts that a split must match.

    Attributes:
        count: Number of images.
        pixels_sha256: SHA-256 of the pixels as uint8 (N, H, W, C) in C order; None if unknown, so
            that only the source's own checksums are checked.
        labels_sha256: SHA-256 of the labels as little-endian int64 (N,); None if unknown.
    """

    count: int
    pixels_sha256: str | None
    labels_sha256: str | None


@dataclass(frozen=True)
class ArraySpec:
    """A dataset that fits into memory, identified by the digests of its splits.

    Attributes:
        name: The registry's name.
        classes: Class names, in the order of the labels.
        image_shape: (H, W, C).
        splits: Facts by split.
        folder: Torchvision's layout on disk.
        sources: Its sources, in the order tried.
        by_hand: Instructions if no source can be reached; `{root}` stands for the folder.
    """

    name: str
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    splits: Mapping[str, SplitFacts]
    folder: TorchvisionFolder
    sources: tuple[DataSource, ...]
    by_hand: str

    @property
    def recognizable(self) -> bool:
        """Whether decoded arrays can be identified without their files."""
        return all(f.pixels_sha256 and f.labels_sha256 for f in self.splits.values())

    def cache_path(self, root: Path, split: str) -> Path:
        """Return the path of the file under `root` with the decoded arrays of a split."""
        return root / f"{self.name}-{split}.safetensors"

    def recognize(self, split: str, arrays: Arrays) -> ArrayDataset:
        """Check that decoded arrays are a split of this dataset, and return the split.

        Raises:
            DataError: The arrays are something else; the message says only how they differ.
        """
        facts = self.splits[split]
        expected = (facts.count, *self.image_shape)
        if arrays.pixels.shape != expected:
            raise DataError(f"its pixels have shape {arrays.pixels.shape}, expected {expected}")
        try:
            dataset = ArrayDataset(self.name, split, self.classes, *arrays)
        except InputError as error:
            raise DataError(str(error)) from error
        _compare("pixels", dataset.pixels_sha256, facts.pixels_sha256)
        labels = hashlib.sha256(label_bytes(dataset.labels)).hexdigest()
        _compare("labels", labels, facts.labels_sha256)
        return dataset


def _compare(what: str, digest: str, expected: str | None) -> None:
    if expected is not None and digest != expected:
        raise DataError(f"its {what} have SHA-256 {digest}, expected {expected}")
