"""A folder of images with one subfolder for each class, read batch by batch."""

import hashlib
import io
import json
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from dent.data.dataset import ImageDataset, positions, unchanging
from dent.data.file_digests import file_digests
from dent.data.preprocessing import FORMATS, Preprocessing
from dent.data.progress import OnBytes
from dent.data.small_images import warn_of_small_images
from dent.errors import DataError, DataWarning, InputError
from dent.support.plural import agreeing, counted, listed

SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""The suffixes of image files, as in torchvision's ImageFolder."""

_SHOWN: Final = 5


@final
@dataclass(frozen=True, eq=False, repr=False)
class ImageFolderDataset(ImageDataset):
    """Images on disk, opened when a batch needs them.

    The bytes of every image are compared with the file's digest, from which the dataset's digest
    is computed. So a file that changed raises an error, and never yields another image under the
    same digest. The dataset's digest covers the files, their labels, and how they are resized and
    cropped. It does not cover the JPEG decoder: versions may differ in the last bit of a pixel.

    `digest` is always computed, never passed in; see `open_image_folder`.

    Args:
        name: The registry's name.
        split: `"test"` or `"train"`.
        classes: Class names, by label.
        sample_ids: `range(N)`.
        folder: The folder of the files.
        files: Paths below it, in the order of the samples.
        labels: int64 (N,), each in `range(len(classes))`.
        digests: SHA-256 of each file, uint8 (N, 32).
        preprocessing: How an image is resized and cropped.

    Raises:
        InputError: Shapes, types or labels do not fit together.
    """

    name: str
    split: str
    classes: tuple[str, ...]
    sample_ids: Sequence[int]
    folder: Path
    files: Sequence[str]
    labels: NDArray[np.int64]
    digests: NDArray[np.uint8]
    preprocessing: Preprocessing
    digest: str = field(init=False, default="")

    def __post_init__(self) -> None:
        self._check()
        object.__setattr__(self, "files", tuple(self.files))
        object.__setattr__(self, "labels", unchanging(self.labels))
        object.__setattr__(self, "digests", unchanging(self.digests))
        object.__setattr__(self, "digest", self._content())

    def _check(self) -> None:
        where, count = f"dataset {self.name!r}", len(self.files)
        for what, array, dtype, shape in (
            ("labels", self.labels, np.int64, (count,)),
            ("digests", self.digests, np.uint8, (count, 32)),
        ):
            if array.dtype != dtype or array.shape != shape:
                expected = f"{np.dtype(dtype)} {what} {shape}, one for every file"
                raise InputError(f"{where}: expected {expected}, got {array.dtype} {array.shape}")
        if len(self.sample_ids) != count:
            raise InputError(
                f"{where}: {counted(len(self.sample_ids), 'sample id')} for "
                f"{counted(count, 'file')}"
            )
        if count and not 0 <= self.labels.min() <= self.labels.max() < len(self.classes):
            label_range = f"{self.labels.min()} to {self.labels.max()}"
            expected = f"labels must be in 0 to {len(self.classes) - 1}"
            raise InputError(f"{where}: {expected}, got {label_range}")

    def _content(self) -> str:
        samples = list(zip(self.files, self.labels.tolist(), self.digests, strict=True))
        folders = {label: path.partition("/")[0] for path, label, _ in reversed(samples)}
        by_label = [folders[label] for label in sorted(folders)]
        total = hashlib.sha256(json.dumps([str(self.preprocessing), by_label]).encode() + b"\n")
        for path, label, digest in samples:
            total.update(json.dumps([path, label, digest.tobytes().hex()]).encode() + b"\n")
        return total.hexdigest()

    def __len__(self) -> int:
        return len(self.files)

    def __repr__(self) -> str:
        what = f"{counted(len(self), 'image')} {self.preprocessing}"
        return f"<{self.name} {self.split}: {what}, sha256 {self.digest[:12]}>"

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return the samples at some positions; see `ImageDataset.batch`.

        Raises:
            InputError: A position is out of range, or is not an integer.
            DataError: A file is missing, has changed, or is not an intact image.
        """
        selected = positions(indices, len(self), self.name)
        side = self.preprocessing.side
        pixels = np.empty((len(selected), side, side, 3), dtype=np.uint8)
        for row, index in enumerate(selected):
            pixels[row] = self._read(int(index))
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        scaled = images.to(torch.float32, memory_format=torch.contiguous_format).div_(255)
        return scaled, torch.from_numpy(self.labels[selected])

    def labels_of(self, indices: Sequence[int]) -> list[int]:
        """Return only the labels, without opening an image; see `ImageDataset.labels_of`."""
        labels: list[int] = self.labels[positions(indices, len(self), self.name)].tolist()
        return labels

    def _read(self, index: int) -> NDArray[np.uint8]:
        path = self.folder / self.files[index]
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DataError(_changed(path, f"cannot be read ({error.strerror})")) from error
        if hashlib.sha256(content).digest() != self.digests[index].tobytes():
            raise DataError(_changed(path, "has changed since the dataset was opened"))
        try:
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                return self.preprocessing(image)
        except InputError as error:
            raise DataError(_unfit(path, f"is not taken: {error}")) from error
        except UnidentifiedImageError as error:  # its own message only names a Python object
            reason = f"is damaged or not an image ({', '.join(FORMATS)})"
            raise DataError(_unfit(path, reason)) from error
        except Exception as error:  # Pillow's decoders may raise anything on a damaged file
            raise DataError(_unfit(path, f"is a damaged image: {error}")) from error


def open_image_folder(
    folder: Path,
    *,
    name: str,
    split: str,
    preprocessing: Preprocessing,
    cache: Path,
    report: OnBytes,
    expected: Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
) -> ImageFolderDataset:
    """Open a folder with one subfolder per class, in the order of torchvision's ImageFolder.

    Classes, and the files within them, are sorted by name. Hidden files and folders are skipped, as
    are files without the suffix of an image, and links to folders that are already in the dataset
    or above it. The dataset's digest is the SHA-256 over lines of JSON: one with the preprocessing
    and the class folders, and one for each sample with its path below the folder, its label and the
    SHA-256 of its bytes.

    Args:
        folder: The folder.
        name: The dataset's name.
        split: The split's name.
        preprocessing: How an image is resized and cropped.
        cache: The folder of cached digests.
        report: Called with the progress of the digests.
        expected: The class folders that must exist, with no others beside them; by default any.
        classes: The class names, by label; by default the names of the folders.

    Raises:
        DataError: There are fewer than two classes; a class is missing, unexpected, without images,
            or a link to another class or a parent folder; or a file or folder cannot be read.

    Warns:
        DataWarning: Links to folders were not followed.
        SmallImagesWarning: Half or more of a few images are smaller than the preprocessing's size.
    """
    class_names = _class_folders(folder)
    if expected is not None:
        _compare(folder, class_names, expected)
    _check_links(folder, class_names)
    files: list[str] = []
    labels: list[int] = []
    empty: list[str] = []
    passed: list[str] = []
    for label, class_name in enumerate(class_names):
        images = list(_images(folder, class_name, passed))
        files += images
        labels += [label] * len(images)
        if not images:
            empty.append(class_name)
    if empty:
        raise DataError(
            f"{folder}: {len(empty)} of {len(class_names)} classes have no images: "
            f"{listed(empty, _SHOWN)}. What to do: fill or delete these folders "
            f"(images end in {', '.join(SUFFIXES)})"
        )
    if passed:
        warnings.warn(
            f"{folder}: {counted(len(passed), 'link')} to folders "
            f"{agreeing(len(passed), 'were')} not followed, because they lead to a folder of the "
            f"dataset or to a parent folder: {listed(passed, _SHOWN)}",
            DataWarning,
            stacklevel=2,
        )
    dataset = ImageFolderDataset(
        name=name,
        split=split,
        classes=tuple(classes or class_names),
        sample_ids=range(len(files)),
        folder=folder,
        files=files,
        labels=np.array(labels, dtype=np.int64),
        digests=file_digests(folder, files, cache, report),  # refuses a pipe, which would block
        preprocessing=preprocessing,
    )
    warn_of_small_images(name, folder, files, preprocessing)
    return dataset


def class_folders(folder: Path) -> list[str]:
    """Return the sorted names of subfolders that are not hidden; [] if there is no folder."""
    try:
        with os.scandir(folder) as entries:
            return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror}") from error


def _class_folders(folder: Path) -> list[str]:
    class_names = class_folders(folder)
    if len(class_names) < 2:
        raise DataError(
            f"{folder} has {counted(len(class_names), 'class folder')}, expected at least 2: one "
            "folder per class, with the images of that class in it (CLASS/IMAGE.jpg). "
            "--data FOLDER (root=) names another folder"
        )
    return class_names


def _check_links(folder: Path, class_names: Sequence[str]) -> None:
    """Refuse links to another class or to a parent folder, which would label images twice."""
    places: dict[Path, str] = {}
    root = Path(os.path.realpath(folder))
    for name in sorted(class_names, key=lambda class_name: (folder / class_name).is_symlink()):
        place = Path(os.path.realpath(folder / name))
        linked_class = next((places[p] for p in (place, *place.parents) if p in places), None)
        if place == root or place in root.parents or linked_class is not None:
            target = f"the class {linked_class}" if linked_class else "a folder above"
            raise DataError(
                f"{folder / name} is a link to {target} ({place}), so its images would have two "
                "labels: delete the link"
            )
        places[place] = name


def _compare(folder: Path, class_names: Sequence[str], expected: Sequence[str]) -> None:
    missing = sorted(set(expected) - set(class_names))
    unknown = sorted(set(class_names) - set(expected))
    if missing or unknown:
        problems = [f"{len(missing)} are missing: {listed(missing, _SHOWN)}"] if missing else []
        problems += [f"{len(unknown)} are unknown: {listed(unknown, _SHOWN)}"] if unknown else []
        raise DataError(
            f"{folder} must have the {len(expected)} class folders that its labels are numbered "
            f"by; {'; '.join(problems)}. What to do: add the missing ones and remove the others, "
            "or evaluate the folder by its own classes with --dataset imagefolder"
        )


def _images(folder: Path, class_name: str, passed: list[str]) -> Iterator[str]:
    """Yield the paths of a class's images below `folder`, and add skipped links to `passed`."""
    for base, names in sorted(
        _walk(folder, folder / class_name, passed), key=lambda walked: str(walked[0])
    ):
        relative = base.relative_to(folder)
        if any(part.startswith(".") for part in relative.parts):
            continue
        for file_name in sorted(names):
            if file_name.lower().endswith(SUFFIXES) and not file_name.startswith("."):
                yield (relative / file_name).as_posix()


def _walk(folder: Path, top: Path, passed: list[str]) -> Iterator[tuple[Path, list[str]]]:
    """Yield folders and their files, each once; skip links into folders that are walked anyway.

    Links to folders elsewhere are followed, because people use them to save space.
    """
    parents = [Path(os.path.realpath(folder))]
    parents += parents[0].parents
    visited: set[Path] = set()

    def refuse(error: OSError) -> None:
        place = Path(error.filename)
        if not any(part.startswith(".") for part in place.relative_to(folder).parts):
            raise DataError(
                f"{place} cannot be read: {error.strerror}. What to do: make it readable, or move "
                "it out of the dataset"
            ) from error

    for base, folders, names in os.walk(top, followlinks=True, onerror=refuse):
        visited.add(Path(os.path.realpath(base)))
        yield Path(base), names
        for subfolder in list(folders):
            link = Path(base) / subfolder
            if not link.is_symlink():
                continue
            target = Path(os.path.realpath(link))
            repeated = target in visited or any(target in place.parents for place in visited)
            if repeated or target in parents or parents[0] in target.parents:
                folders.remove(subfolder)
                passed.append(link.relative_to(folder).as_posix())
            else:
                visited.add(target)


def _changed(path: Path, what: str) -> str:
    return f"{path} {what}. What to do: restore it, or start a new run"


def _unfit(path: Path, what: str) -> str:
    return (
        f"{path} {what}. What to do: copy it again or delete it. The digest of the dataset then "
        "changes, so start a new run"
    )
