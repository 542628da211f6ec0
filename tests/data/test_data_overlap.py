"""Test images that are also in the train split are counted; other datasets are not compared."""

import warnings

import numpy as np
import pytest

from dent.data import ArrayDataset, warn_of_overlap
from dent.errors import DataWarning


def _dataset(split: str, images: list[int]) -> ArrayDataset:
    pixels = np.stack([np.full((2, 2, 3), image, dtype=np.uint8) for image in images])
    return ArrayDataset("mine", split, ("cat", "dog"), pixels, np.zeros(len(images), np.int64))


def test_shared_images_are_counted_whatever_their_order_and_label() -> None:
    train, test = _dataset("train", [1, 2, 3, 4]), _dataset("test", [9, 4, 1, 8])
    with pytest.warns(DataWarning, match=r"2 of 4 test images of mine are also .*image 1, image 2"):
        warn_of_overlap(train, test)


def test_separate_splits_give_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_overlap(_dataset("train", [1, 2]), _dataset("test", [3, 4]))
