"""The image that a visitor picked or dropped, and the bundled ones that keep it company."""

import hashlib
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
FIRST: Final = 10
"""The bundled image that the page begins with: rightly answered, and broken by the attack on the
static model as the controls are set at first, so that there is something to see."""
MOST_BYTES: Final = 10_000_000
MOST_PIXELS: Final = 40_000_000
_FORMATS: Final = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
_FITTED: Final = Preprocessing(resize=SIDE, crop=SIDE, most_pixels=MOST_PIXELS)


@dataclass(frozen=True, eq=False)
class Picked:
    """An image to attack.

    Attributes:
        pixels: float32 (3, `SIDE`, `SIDE`) in [0, 1], as the models take it.
        label: Its class; None where nobody knows, so that the static model's answer is taken.
        name: What it is called on the page.
        position: In the bundled images; None of one that was dropped.
        note: What was done to make it fit; empty where nothing was.
    """

    pixels: Tensor
    label: int | None
    name: str
    position: int | None = None
    note: str = ""

    @property
    def key(self) -> str:
        """Equal for equal pixels."""
        return hashlib.sha256(self.pixels.numpy().tobytes()).hexdigest()


def bundled(dataset: ImageDataset, position: int) -> Picked:
    """Pick a bundled image.

    Raises:
        InputError: There is none at this position.
    """
    images, labels = dataset.batch([position])
    label = int(labels[0])
    name = f"{dataset.classes[label]}, CIFAR-10 test image {dataset.sample_ids[position]}"
    return Picked(images[0], label, name, position)


def dropped(path: Path) -> Picked:
    """Read an image file and fit it to the models: shorter side to `SIDE`, middle cut out.

    Args:
        path: PNG, JPEG, WebP, BMP or GIF (its first frame), up to `MOST_BYTES` and `MOST_PIXELS`.

    Raises:
        InputError: It is too large, of extreme proportions, or no such image.
    """
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise InputError(
            f"{path.name} has {size / 1e6:.1f} MB; the page takes up to {MOST_BYTES / 1e6:.0f} MB"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # looked at below
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
    except Exception as error:  # Pillow's decoders raise whatever a broken file makes them raise
        raise InputError(
            f"{path.name} could not be read as an image: drop a PNG, JPEG, WebP, BMP or GIF"
        ) from error
    pixels = torch.from_numpy(fitted.copy()).permute(2, 0, 1).contiguous().float() / 255
    return Picked(pixels, None, path.name, note=_note(*upright.size))


def gallery(dataset: ImageDataset, per_class: int) -> list[int]:
    """Positions of the first few images of every class, class by class."""
    labels = dataset.labels_of(range(len(dataset)))
    return [
        position
        for label in range(len(dataset.classes))
        for position in [index for index, its_label in enumerate(labels) if its_label == label][
            :per_class
        ]
    ]


def company(dataset: ImageDataset, picked: Picked, size: int, seed: int) -> Sequence[int]:
    """Positions of the bundled images that stand in a batch with the picked one.

    Args:
        dataset: The bundled images.
        picked: The image; it is not its own company.
        size: Of the batch, so that one image fewer is drawn.
        seed: Of the draw.
    """
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed)).tolist()
    return [position for position in order if position != picked.position][: size - 1]


def _note(width: int, height: int) -> str:
    if (width, height) == (SIDE, SIDE):
        return ""
    cut = " and cut to the square in its middle" if width != height else ""
    return f"{width} × {height} pixels, resized{cut}: the models take {SIDE} × {SIDE}"
