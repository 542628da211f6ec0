"""Scale pictures of more than 8 bits a channel to 8 bits; refuse those of an unknown range.

Pillow's own conversion to RGB cuts everything above 255 off, so that a 16-bit picture turns white.
"""

from typing import Any, Final

import numpy as np
from PIL import Image

from dent.errors import InputError

_BITS_PER_SAMPLE: Final = 258  # TIFF's tags
_PHOTOMETRIC: Final = 262
_WHITE_IS_ZERO: Final = 0
#: Formats whose 32-bit integers in Pillow are 16-bit values.
_SIXTEEN: Final = ("PNG", "PPM")


def in_eight_bits(image: Image.Image) -> Image.Image:
    """Bring a picture to 8 bits a channel, black staying black and white staying white.

    Args:
        image: As it was opened: of any mode. Modes of 8 bits are returned as they are.

    Returns:
        The picture, of a mode that converts to RGB without loss of range.

    Raises:
        InputError: It has 32-bit or signed values, for which no format says what is white.
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
    """Return how many bits a gray value has; None if that is not known."""
    if image.mode.startswith("I;16"):
        return int(tags.get(_BITS_PER_SAMPLE, (16,))[0])
    return 16 if image.mode == "I" and image.format in _SIXTEEN else None
