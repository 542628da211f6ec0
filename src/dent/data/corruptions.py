"""Natural shifts in the layout of CIFAR-10-C and CIFAR-100-C (Hendrycks & Dietterich, 2019).

The layout is a folder with `labels.npy` and one `CORRUPTION.npy` for each kind, which holds the
same images at five severities, one after the other. No digests of these files are published beside
their archive. So this module checks shapes, types, that the labels repeat, and that the labels of
CIFAR-10-C are CIFAR-10's. The dataset's digest covers the pixels and labels that were read.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from dent.data.cifar10 import CIFAR10
from dent.data.dataset import ArrayDataset, label_bytes
from dent.data.spec import ArraySpec
from dent.errors import DataError, InputError, UnknownNameError

SEVERITIES: Final = 5
KNOWN: Final = (
    "brightness",
    "contrast",
    "defocus_blur",
    "elastic_transform",
    "fog",
    "frost",
    "gaussian_blur",
    "gaussian_noise",
    "glass_blur",
    "impulse_noise",
    "jpeg_compression",
    "motion_blur",
    "pixelate",
    "saturate",
    "shot_noise",
    "snow",
    "spatter",
    "speckle_noise",
    "zoom_blur",
)
"""The corruptions of the original folders; others work as well, by the name of their file."""
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


@dataclass(frozen=True)
class Corrupted:
    """One corruption at one severity.

    Attributes:
        base: The dataset that was corrupted.
        corruption: The file's name without `.npy`.
        severity: 1 to 5.
    """

    base: ArraySpec
    corruption: str
    severity: int

    @property
    def name(self) -> str:
        """The dataset's name, such as `cifar10-c/fog/3`."""
        return f"{self.base.name}-c/{self.corruption}/{self.severity}"

    def folder(self, root: Path) -> Path:
        """Return `root` itself if it has the labels, else its subfolder, such as CIFAR-10-C."""
        if (root / "labels.npy").is_file():
            return root
        return root / f"{self.base.name.upper().replace('CIFAR', 'CIFAR-')}-C"

    def open(self, root: Path) -> ArrayDataset:
        """Read only this severity; the rest of the file stays on disk.

        Raises:
            UnknownNameError: There is no such corruption in the folder.
            DataError: The folder is missing, or a file is damaged or has other content.
        """
        folder = self.folder(root)
        labels = self._labels(folder)
        file = folder / f"{self.corruption}.npy"
        if not file.is_file():
            available = sorted(path.stem for path in folder.glob("*.npy") if path.stem != "labels")
            raise UnknownNameError(
                f"{file} is not there; {folder} has {', '.join(available) or 'none'}"
            )
        pixels = _array(file)
        expected = (SEVERITIES * len(labels), *self.base.image_shape)
        if pixels.dtype != np.uint8 or pixels.shape != expected:
            channels_first = pixels.ndim == 4 and pixels.shape[1] == expected[3] != pixels.shape[3]
            hint = ": its channels are first, but must be last" if channels_first else ""
            raise DataError(
                f"{file} contains {pixels.dtype} {pixels.shape}, expected uint8 {expected}, "
                f"{SEVERITIES} severities one after the other{hint}. What to do: copy it again"
            )
        start = (self.severity - 1) * len(labels)
        try:
            return ArrayDataset(
                name=self.name,
                split="test",
                classes=self.base.classes,
                pixels=np.array(pixels[start : start + len(labels)]),
                labels=labels,
            )
        except InputError as error:
            raise DataError(f"{folder}: {error}. What to do: copy it again") from error

    def _labels(self, folder: Path) -> NDArray[np.int64]:
        file = folder / "labels.npy"
        if not file.is_file():
            raise DataError(
                f"{file} is not there. What to do: unpack {folder.name} there from the archive of "
                "its authors, or name its folder with `root=` (--data)"
            )
        labels = _array(file)
        if labels.ndim != 1 or labels.dtype.kind not in "iu" or len(labels) % SEVERITIES:
            raise DataError(
                f"{file} contains {labels.dtype} {labels.shape}, expected whole numbers, as many "
                f"for each of {SEVERITIES} severities. What to do: copy it again"
            )
        by_severity = labels.astype(np.int64).reshape(SEVERITIES, -1)
        if not (by_severity == by_severity[0]).all():
            raise DataError(
                f"{file} has different labels at different severities. What to do: copy it again"
            )
        test_split = CIFAR10.splits["test"]
        if self.base is CIFAR10 and by_severity.shape[1] == test_split.count:
            digest = hashlib.sha256(label_bytes(by_severity[0])).hexdigest()
            if digest != test_split.labels_sha256:
                raise DataError(
                    f"{file} does not have the labels of CIFAR-10's test images. What to do: copy "
                    "it again, or open another dataset's folder under another name"
                )
        of_one_severity: NDArray[np.int64] = by_severity[0]
        return of_one_severity


def parse(name: str, base: ArraySpec) -> Corrupted:
    """Parse a name such as `cifar10-c/fog/3`; the severity is 5 by default.

    Raises:
        UnknownNameError: The name has no corruption, or a severity that is not from 1 to 5.
    """
    _, *rest = name.split("/")
    severity = rest[1] if len(rest) > 1 else str(SEVERITIES)
    if (
        len(rest) not in (1, 2)
        or not _NAME.fullmatch(rest[0])
        or severity not in "12345"
        or len(severity) != 1
    ):
        raise UnknownNameError(
            f"{name!r}: expected {base.name}-c/CORRUPTION/SEVERITY with a severity from 1 to 5, "
            f"such as {base.name}-c/fog/3. Corruptions: {', '.join(KNOWN)}"
        )
    return Corrupted(base, rest[0], int(severity))


def _array(file: Path) -> NDArray[np.generic]:
    try:
        # Memory-mapped, so that only one severity of five is read; and never unpickled.
        loaded: NDArray[np.generic] = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{file} is damaged or not a .npy file: {error}. Copy it again") from error
    return loaded
