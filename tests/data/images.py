"""Small image folders in the layout of torchvision's ImageFolder."""

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("apple", "boat", "cat")


def picture(seed: int, width: int = 40, height: int = 30, mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def lay_images(root: Path, classes: tuple[str, ...] = CLASSES, each: int = 2) -> Path:
    """Write a few images of different sizes, formats and modes for each class."""
    for label, name in enumerate(classes):
        folder = root / name
        folder.mkdir(parents=True)
        for at in range(each):
            mode = ("RGB", "L", "P")[at % 3]
            image = picture(10 * label + at, 40 + at, 30 + 7 * label, mode)
            image.save(folder / f"{at}.{('png', 'PNG', 'bmp')[at % 3]}")
    return root
