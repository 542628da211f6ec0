"""Scale images with more than 8 bits per channel to 8 bits; refuse images of unknown range.

Pillow's own conversion to RGB clips values above 255, so that a 16-bit image turns white.
"""

from typing import Any, Final

import numpy as np
from PIL import Image

from dent.errors import InputError

_BITS_PER_SAMPLE: Final = 258  # a tag of TIFF, as is the next
_PHOTOMETRIC: Final = 262
_WHITE_IS_ZERO: Final = 0
#: Formats whose 16-bit values Pillow opens as 32-bit integers.
_SIXTEEN: Final = ("PNG", "PPM")


def in_eight_bits(image: Image.Image) -> Image.Image:
    """Return an image with 8 bits per channel, in which black stays black and white stays white.

    Args:
        image: The image as opened, of any mode. An image of an 8-bit mode is returned unchanged.

    Returns:
        The image, in a mode that converts to RGB without clipping.

    Raises:
        InputError: The image has floating-point, 32-bit or signed values, for which no format
            defines the white level.
    """
    if not image.mode.startswith(("I", "F")):
        return image
    tags: dict[int, Any] = dict(getattr(image, "tag_v2", {}))
    bits = _bits(image, tags)
    if bits is None:
        kind = "floating-point" if image.mode == "F" else "32-bit or signed"
        raise InputError(
            f"its pixels are {kind} numbers with an unknown white level: convert it to an image "
            "with 8 or 16 bits per channel"
        )
    most = 2**bits - 1
    values = np.asarray(image).astype(np.int64)
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        values = most - values
    scaled = (values.clip(0, most) * 255 + most // 2) // most
    return Image.fromarray(scaled.astype(np.uint8))


def _bits(image: Image.Image, tags: dict[int, Any]) -> int | None:
    """Return the number of bits of a gray value; None if unknown."""
    if image.mode.startswith("I;16"):
        return int(tags.get(_BITS_PER_SAMPLE, (16,))[0])
    return 16 if image.mode == "I" and image.format in _SIXTEEN else None
