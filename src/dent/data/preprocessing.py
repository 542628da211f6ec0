"""Resize and crop images of any size to one size, exactly as torchvision does."""

import re
from dataclasses import dataclass, field
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dent.data.deep_pictures import in_eight_bits
from dent.errors import InputError, UnknownNameError

_WRITTEN: Final = re.compile(
    r"(?:r(?P<resize>[1-9]\d{0,3})-)?(?:s(?P<squash>[1-9]\d{0,3})|c(?P<crop>[1-9]\d{0,3}))"
    r"(?P<bicubic>-bicubic)?"
)
_SHORT: Final = {"224": "r256-c224", "288": "c288"}

FORMATS: Final = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP")
"""Formats of the image suffixes. Pillow reads more, some with other programs (PostScript with
Ghostscript)."""
MOST_PIXELS: Final = 178_956_970
"""The most pixels an image and each intermediate image may have; Pillow opens none with more."""


@dataclass(frozen=True)
class Preprocessing:
    """A resize followed by a center crop, or a squash to a square.

    Attributes:
        resize: New length of the shorter side, keeping the proportions; None keeps the size.
        crop: Side of the square cut from the center, padded with black if the image is smaller;
            None with `squash`.
        squash: Side of the square that the whole image is resized to, whatever its proportions.
        bicubic: Whether the interpolation is bicubic; otherwise it is bilinear.
        most_pixels: The most pixels that an image and each intermediate image may have.
    """

    resize: int | None = 256
    crop: int | None = 224
    squash: int | None = None
    bicubic: bool = False
    most_pixels: int = field(default=MOST_PIXELS, repr=False, compare=False)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse `224`, `288`, `r232-c224`, `c288`, `s224`, `r256-c224-bicubic`.

        `224` is short for `r256-c224`, the usual transform of ImageNet. `288` is short for `c288`,
        the center of the image without a resize. RobustBench evaluates the ImageNet model of Wong
        et al. (2020), trained for 288 pixels, in this way; the paper (Table 14) only gives the
        size.

        Raises:
            UnknownNameError: The text has another form.
        """
        match = _WRITTEN.fullmatch(_SHORT.get(text, text))
        if match is None or (match["squash"] and match["resize"]):
            raise UnknownNameError(
                f"there is no preprocessing {text!r}: expected 224, 288, resize and center crop "
                "as r256-c224, only a crop as c288, or a squash to a square as s224, each "
                "optionally with -bicubic"
            )
        resize, squash, crop = (
            int(match[group]) if match[group] else None for group in ("resize", "squash", "crop")
        )
        return cls(resize, crop, squash, bicubic=bool(match["bicubic"]))

    def __str__(self) -> str:
        sides = {"r": self.resize, "s": self.squash, "c": self.crop}
        parts = [f"{letter}{side}" for letter, side in sides.items() if side]
        return "-".join([*parts, *(["bicubic"] if self.bicubic else [])])

    @property
    def side(self) -> int:
        """Height and width of the result."""
        return self.crop or self.squash or 0

    def __call__(self, image: Image.Image) -> NDArray[np.uint8]:
        """Resize and crop an image.

        Args:
            image: An image of any size and mode.

        Returns:
            uint8 (side, side, 3), red first.

        Raises:
            InputError: The white level of its pixels is unknown; or a step would make an image of
                more than `most_pixels` pixels, which is checked before the first step.
        """
        self._check_size(image.size)
        image = in_eight_bits(image).convert("RGB")
        resampling = Image.Resampling.BICUBIC if self.bicubic else Image.Resampling.BILINEAR
        if self.squash:
            image = image.resize((self.squash, self.squash), resampling)
        elif self.resize:
            image = image.resize(_proportional(image.size, self.resize), resampling)
        if self.crop:
            image = _center(image, self.crop)
        return np.asarray(image, dtype=np.uint8)

    def _check_size(self, size: tuple[int, int]) -> None:
        width, height = size
        sizes = [size]
        if self.squash:
            size = self.squash, self.squash
        elif self.resize:
            size = _proportional(size, self.resize)
        sizes += [(size[0], height), size]  # Pillow resizes the rows first, then the columns
        if self.crop:
            sizes.append((max(size[0], self.crop), max(size[1], self.crop)))
        largest = max(wide * high for wide, high in sizes)
        if largest > self.most_pixels:
            raise InputError(
                f"the image has {width} × {height} pixels, and resizing it needs an image of "
                f"{largest} pixels, expected at most {self.most_pixels}: cut it or scale it down"
            )


def _proportional(size: tuple[int, int], shorter: int) -> tuple[int, int]:
    width, height = size
    longer = int(shorter * max(size) / min(size))
    return (shorter, longer) if width <= height else (longer, shorter)


def _center(image: Image.Image, side: int) -> Image.Image:
    width, height = image.size
    if width < side or height < side:  # like torchvision, round down here, but not for the crop
        left, top = max(side - width, 0) // 2, max(side - height, 0) // 2
        padded = Image.new("RGB", (max(width, side), max(height, side)))
        padded.paste(image, (left, top))
        image = padded
        width, height = image.size
    left, top = round((width - side) / 2.0), round((height - side) / 2.0)
    return image.crop((left, top, left + side, top + side))
