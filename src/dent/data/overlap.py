"""Find test images that are also training images."""

import hashlib
import warnings

from dent.data.dataset import ArrayDataset, ImageDataset
from dent.data.image_folder import ImageFolderDataset
from dent.errors import DataWarning
from dent.support.plural import agreeing, counted


def warn_of_overlap(train: ImageDataset, test: ImageDataset) -> None:
    """Warn if images of a test split are also in the train split, in the same file or pixels.

    Compares datasets in memory and folders of images. All others are not compared, because each
    image would have to be read.

    Warns:
        DataWarning: How many there are, and the first two of them.
    """
    known = set(_digests(train))
    both = [at for at, digest in enumerate(_digests(test)) if digest in known]
    if not both:
        return
    examples = [
        test.files[at] if isinstance(test, ImageFolderDataset) else f"image {at}" for at in both[:2]
    ]
    warnings.warn(
        f"{len(both)} of {counted(len(test), 'test image')} of {test.name} "
        f"{agreeing(len(both), 'are')} also in its train split ({', '.join(examples)}). The "
        "accuracy that is measured on them is too high: remove them from one of the splits",
        DataWarning,
        stacklevel=2,
    )


def _digests(dataset: ImageDataset) -> list[bytes]:
    """Return one digest per image, of its file or of its pixels; none if they are not at hand."""
    if isinstance(dataset, ImageFolderDataset):
        return [digest.tobytes() for digest in dataset.digests]
    if isinstance(dataset, ArrayDataset):
        return [hashlib.sha256(image.data).digest() for image in dataset.pixels]
    return []
