"""Say that images of a folder are smaller than the size that their preprocessing gives them."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from PIL import Image

from dent.data.preprocessing import FORMATS, Preprocessing
from dent.errors import SmallImagesWarning
from dent.support.plural import agreeing, counted

_CHECKED: Final = 16


def warn_of_small_images(
    name: str, folder: Path, files: Sequence[str], preprocessing: Preprocessing
) -> None:
    """Warn if half or more of a few images would be enlarged or padded.

    Reads only the headers of at most 16 files, spread evenly over the folder. Files that are not
    images are left out here, because reading them refuses them.

    Args:
        name: The dataset's name.
        folder: The folder of the files.
        files: Paths below it.
        preprocessing: How an image is resized and cropped.

    Warns:
        SmallImagesWarning: The message gives a name that keeps the size of the smallest image.
    """
    count = min(_CHECKED, len(files))
    chosen = [files[position * len(files) // count] for position in range(count)]
    sizes = {path: size for path in chosen if (size := _size(folder / path)) is not None}
    side = preprocessing.side
    small = {path: size for path, size in sizes.items() if min(size) < side}
    if not small or 2 * len(small) < len(sizes):
        return
    path = min(small, key=lambda one: min(small[one]))
    width, height = small[path]
    change = "enlarges" if preprocessing.resize or preprocessing.squash else "pads with black"
    kind = name.partition("-")[0]
    warnings.warn(
        f"{name} {change} small images to {side} × {side}: of {counted(len(sizes), 'image')} "
        f"checked, {len(small)} {agreeing(len(small), 'are')} smaller ({path}: {width} × "
        f"{height}). For a model trained on images of {min(small[path])} × {min(small[path])}, use "
        f"{kind}-c{min(small[path])}",
        SmallImagesWarning,
        stacklevel=2,
    )


def _size(path: Path) -> tuple[int, int] | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=FORMATS) as image:
                return image.size
    except Exception:  # Pillow may raise anything on a damaged file
        return None
