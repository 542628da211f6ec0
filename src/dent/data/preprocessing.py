"""How images of any size are brought to one size for evaluation, exactly as torchvision does it."""

import re
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dent.errors import UnknownNameError

_WRITTEN: Final = re.compile(
    r"(?:r(?P<resize>[1-9]\d{0,3})-)?(?:s(?P<squash>[1-9]\d{0,3})|c(?P<crop>[1-9]\d{0,3}))"
    r"(?P<bicubic>-bicubic)?"
)
_SHORT: Final = {"224": "r256-c224", "288": "c288"}


@dataclass(frozen=True)
class Preprocessing:
    """Resize, then center crop; or squash.

    Attributes:
        resize: What the shorter side becomes, keeping the proportions; None leaves the size.
        crop: Side of the square cut from the middle, filled up with black where the image is
            smaller; None where `squash` is given.
        squash: Side of the square that the whole image becomes, whatever its proportions.
        bicubic: Bicubic instead of bilinear interpolation.
    """

    resize: int | None = 256
    crop: int | None = 224
    squash: int | None = None
    bicubic: bool = False

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `224`, `288`, `r232-c224`, `c288`, `s224`, `r256-c224-bicubic`.

        `224` is short for `r256-c224`, the usual transform of ImageNet. `288` is short for `c288`:
        the center of the image as it is, which is how RobustBench evaluates the ImageNet model of
        Wong et al. (2020), trained for 288 pixels; the paper (Table 14) gives the size alone.

        Raises:
            UnknownNameError: It is written otherwise.
        """
        match = _WRITTEN.fullmatch(_SHORT.get(text, text))
        if match is None or (match["squash"] and match["resize"]):
            raise UnknownNameError(
                f"there is no preprocessing {text!r}: expected 224, 288, or resize and center crop "
                "as r256-c224, a crop alone as c288, a squash to a square as s224, each with "
                "-bicubic if that is meant"
            )
        numbers = {k: int(match[k]) if match[k] else None for k in ("resize", "crop", "squash")}
        return cls(**numbers, bicubic=bool(match["bicubic"]))

    def __str__(self) -> str:
        sides = {"r": self.resize, "s": self.squash, "c": self.crop}
        parts = [f"{letter}{side}" for letter, side in sides.items() if side]
        return "-".join([*parts, *(["bicubic"] if self.bicubic else [])])

    @property
    def side(self) -> int:
        """Height and width of the result."""
        return self.crop or self.squash or 0

    def __call__(self, image: Image.Image) -> NDArray[np.uint8]:
        """Bring an image to size.

        Args:
            image: Of any size and mode.

        Returns:
            uint8 (side, side, 3), red first.
        """
        image = image.convert("RGB")
        how = Image.Resampling.BICUBIC if self.bicubic else Image.Resampling.BILINEAR
        if self.squash:
            image = image.resize((self.squash, self.squash), how)
        elif self.resize:
            image = image.resize(_proportional(image.size, self.resize), how)
        if self.crop:
            image = _center(image, self.crop)
        return np.asarray(image, dtype=np.uint8)


def _proportional(size: tuple[int, int], shorter: int) -> tuple[int, int]:
    width, height = size
    longer = int(shorter * max(size) / min(size))
    return (shorter, longer) if width <= height else (longer, shorter)


def _center(image: Image.Image, side: int) -> Image.Image:
    width, height = image.size
    if width < side or height < side:  # torchvision rounds differently before it pads
        left, top = max(side - width, 0) // 2, max(side - height, 0) // 2
        padded = Image.new("RGB", (max(width, side), max(height, side)))
        padded.paste(image, (left, top))
        image = padded
        width, height = image.size
    left, top = round((width - side) / 2.0), round((height - side) / 2.0)
    return image.crop((left, top, left + side, top + side))
