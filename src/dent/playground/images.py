"""The image that a visitor picked or dropped, and the bundled images in its batch."""

import hashlib
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from PIL import Image, ImageOps
from torch import Tensor

from dent.data import ImageDataset
from dent.data.preprocessing import Preprocessing
from dent.errors import InputError

SIDE: Final = 32
"""Height and width of the images for the offered models."""
FIRST: Final = 12
"""Position of the bundled image that the page begins with. The static model and dent+ predict it
correctly, and the attack on the static model with the initial settings breaks both, as it does for
most images. So the first run has something to show, and suggests no gain that is not there."""
MOST_BYTES: Final = 10_000_000
MOST_PIXELS: Final = 40_000_000
_FORMATS: Final = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
_FITTED: Final = Preprocessing(resize=SIDE, crop=SIDE, most_pixels=MOST_PIXELS)


@dataclass(frozen=True, eq=False)
class Picked:
    """An image to attack.

    Attributes:
        pixels: float32 (3, `SIDE`, `SIDE`) in [0, 1], the input of the models.
        label: Its class. None if it is unknown; the static model's prediction is then the label.
        name: Its name on the page.
        position: Its position in the bundled images; None if it was dropped.
        note: How it was resized and cropped; empty if it was not.
    """

    pixels: Tensor
    label: int | None
    name: str
    position: int | None = None
    note: str = ""

    @property
    def key(self) -> str:
        """A key that is equal for equal pixels."""
        return hashlib.sha256(self.pixels.numpy().tobytes()).hexdigest()


def bundled(dataset: ImageDataset, position: int) -> Picked:
    """Return a bundled image.

    Raises:
        InputError: There is no image at this position.
    """
    images, labels = dataset.batch([position])
    label = int(labels[0])
    name = f"{dataset.classes[label]}, CIFAR-10 test image {dataset.sample_ids[position]}"
    return Picked(images[0], label, name, position)


def dropped(file: str | os.PathLike[str]) -> Picked:
    """Read an image file, resize its shorter side to `SIDE`, and crop the square in its middle.

    Args:
        file: PNG, JPEG, WebP, BMP or GIF (its first frame), up to `MOST_BYTES` and `MOST_PIXELS`.

    Raises:
        InputError: There is no such file, it is too large, has an extreme aspect ratio, or is not
            such an image.
    """
    path = Path(file)
    if not path.is_file():
        raise InputError(f"there is no file {path}: check the path")
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise InputError(
            f"{path.name} has {size / 1e6:.1f} MB; the page takes up to {MOST_BYTES / 1e6:.0f} MB"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # checked below
            opened = Image.open(path, formats=_FORMATS)
        width, height = opened.size
        if width * height > MOST_PIXELS:
            raise InputError(
                f"it has {width} × {height} pixels; the page takes up to "
                f"{MOST_PIXELS / 1e6:.0f} million"
            )
        upright = ImageOps.exif_transpose(opened)
        fitted = _FITTED(upright)
    except InputError as error:
        raise InputError(f"{path.name} is not taken: {error}") from error
    except Exception as error:  # on a broken file, Pillow's decoders may raise any exception
        raise InputError(
            f"{path.name} could not be read as an image: drop a PNG, JPEG, WebP, BMP or GIF"
        ) from error
    pixels = torch.from_numpy(fitted.copy()).permute(2, 0, 1).contiguous().float() / 255
    return Picked(pixels, None, path.name, note=_note(*upright.size))


def gallery(dataset: ImageDataset, per_class: int) -> list[int]:
    """Return the positions of the first few images of every class, class by class."""
    labels = dataset.labels_of(range(len(dataset)))
    return [
        position
        for label in range(len(dataset.classes))
        for position in [index for index, its_label in enumerate(labels) if its_label == label][
            :per_class
        ]
    ]


def company(dataset: ImageDataset, picked: Picked, size: int, seed: int) -> Sequence[int]:
    """Return the positions of the bundled images that share a batch with the picked image.

    Args:
        dataset: The bundled images.
        picked: The picked image, which is never drawn.
        size: Size of the batch; one image fewer is drawn.
        seed: Seed of the draw.
    """
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed)).tolist()
    return [position for position in order if position != picked.position][: size - 1]


def _note(width: int, height: int) -> str:
    if (width, height) == (SIDE, SIDE):
        return ""
    cut = " and cut to the square in its middle" if width != height else ""
    return f"{width} × {height} pixels, resized{cut}: the models take {SIDE} × {SIDE}"
