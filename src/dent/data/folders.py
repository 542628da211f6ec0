"""Find and open the folder of ImageNet, or a folder of the user's own images."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dent.data.image_folder import ImageFolderDataset, class_folders, open_image_folder
from dent.data.preprocessing import Preprocessing
from dent.data.progress import OnBytes
from dent.errors import DataError
from dent.support.plural import listed

IMAGENET: Final = "imagenet"
IMAGEFOLDER: Final = "imagefolder"
_CLASSES_FILE: Final = Path(__file__).parent / "bundled" / "imagenet-classes.txt"
_WNID: Final = re.compile(r"n\d{8}")
_SUBFOLDERS: Final = {"test": ("val", "validation", "test"), "train": ("train",)}


@dataclass(frozen=True)
class Folder:
    """A dataset in torchvision's ImageFolder layout.

    Attributes:
        kind: `"imagenet"`, with its 1000 known class folders, or `"imagefolder"`, with any others.
        preprocessing: How images are resized and cropped.
    """

    kind: str
    preprocessing: Preprocessing

    @property
    def name(self) -> str:
        """The name of this dataset: `imagenet`, `imagenet-288`, `imagefolder-r64-c64`."""
        plain = str(self.preprocessing)
        short = {"r256-c224": "", "c288": "-288"}.get(plain, f"-{plain}")
        return f"{self.kind}{short}"

    def open(self, root: Path, split: str, cache: Path, report: OnBytes) -> ImageFolderDataset:
        """Open a split.

        Args:
            root: The folder itself, or for ImageNet also a folder with a subfolder `imagenet`.
            split: `"test"` (the first existing subfolder of val, validation and test; otherwise
                `root` itself, if it has the class folders) or `"train"` (the subfolder train).
            cache: The folder of cached digests.
            report: Called with the progress of the digests.

        Raises:
            DataError: The folder or the split is missing, lacks a class, or cannot be read.
        """
        folder = self._split(root, split)
        wnids, names = _imagenet() if self.kind == IMAGENET else (None, None)
        if self.kind == IMAGEFOLDER and split == "test" and folder != root:
            _same_classes(folder, root / "train")
        return open_image_folder(
            folder,
            name=self.name,
            split=split,
            preprocessing=self.preprocessing,
            cache=cache,
            report=report,
            expected=wnids,
            classes=names,
        )

    def _split(self, root: Path, split: str) -> Path:
        bases = (root, root / IMAGENET) if self.kind == IMAGENET else (root,)
        for base in bases:
            for subfolder in _SUBFOLDERS[split]:
                if class_folders(base / subfolder):
                    return base / subfolder
        splits = {name for names in _SUBFOLDERS.values() for name in names}
        for base in bases:
            classes = set(class_folders(base))
            # For ImageNet, `root` may be the folder of all datasets, whose subfolders are others.
            is_other = self.kind == IMAGENET and not any(map(_WNID.fullmatch, classes))
            if split == "test" and classes and not is_other and not classes & {*splits, IMAGENET}:
                return base
        subfolders = " or ".join(_SUBFOLDERS[split])
        licence = " ImageNet may not be redistributed: get it from its authors." if (
            self.kind == IMAGENET) else ""  # fmt: skip
        if not root.is_dir():
            raise DataError(
                f"{self.name}: the folder {root} does not exist. What to do: pass the folder of "
                f"the images as `root=` (--data FOLDER).{licence}"
            )
        directly = ", or the folders of the classes themselves" if split == "test" else ""
        raise DataError(
            f"{self.name}: there is no {split} split in {' or '.join(map(str, bases))}: expected a "
            f"subfolder {subfolders} with one folder per class "
            f"({_SUBFOLDERS[split][0]}/CLASS/IMAGE.jpg){directly}. "
            "What to do: put each class's images into a folder of its own, or pass another folder "
            f"as `root=` (--data FOLDER).{licence}"
        )


def parse(name: str) -> Folder | None:
    """Parse `imagenet`, `imagenet-288`, `imagefolder-r64-c64`; return None for other names.

    Raises:
        UnknownNameError: The part after the dash is not a preprocessing.
    """
    kind, dash, preprocessing = name.partition("-")
    if kind not in (IMAGENET, IMAGEFOLDER):
        return None
    return Folder(kind, Preprocessing.parse(preprocessing if dash else "224"))


def _imagenet() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the class folders (WordNet ids) and class names of ImageNet-1k, by label."""
    lines = [line.split(" ", 1) for line in _CLASSES_FILE.read_text().splitlines()]
    return tuple(wnid for wnid, _ in lines), tuple(name for _, name in lines)


def _same_classes(test: Path, train: Path) -> None:
    """Refuse splits with different classes, because a missing class would shift the labels."""
    in_test, in_train = set(class_folders(test)), set(class_folders(train))
    if in_train and in_test != in_train:
        missing = listed(sorted(in_train - in_test), 5) or "none"
        extra = listed(sorted(in_test - in_train), 5) or "none"
        raise DataError(
            f"{test} and {train} have different class folders, so their labels would not mean the "
            f"same. Missing in the first: {missing}; missing in the second: {extra}. What to do: "
            "make them the same"
        )
