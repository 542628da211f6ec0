"""Draw the bundled sample of CIFAR-10 again: `python tools/draw_sample.py`.

The rule: within each class, the test images are ranked by the SHA-256 of `cifar10-sample INDEX`
(INDEX in decimal), smallest first. The first image of every class is taken in the order of the
classes, then the second of every class, and so on until there are 256. So classes 0 to 5 have 26
images, and classes 6 to 9 have 25. For every n, the first n images are balanced to within one image
per class. The choice depends only on index and label.
"""

import argparse
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from dent.data import store
from dent.data.cifar10 import CIFAR10
from dent.data.dataset import ArrayDataset
from dent.data.fetching import load_arrays
from dent.data.progress import progress_bar
from dent.data.registry import data_root
from dent.data.sample import SAMPLE, SAMPLE_FILE, SAMPLE_TENSORS
from dent.errors import DataError

SAMPLE_SIZE: Final = 256


def draw(labels: Sequence[int], size: int = SAMPLE_SIZE) -> list[int]:
    """Choose a class-balanced sample by the rule above.

    Args:
        labels: The label of every image of the full set.
        size: Number of images to choose; every class must have enough.

    Returns:
        Positions in the full set, (size,), interleaved by class.

    Raises:
        DataError: A class has too few images.
    """
    ranked: dict[int, list[int]] = {}
    for index in sorted(range(len(labels)), key=_rank):
        ranked.setdefault(int(labels[index]), []).append(index)
    classes = sorted(ranked)
    counts = [size // len(classes) + (place < size % len(classes)) for place in range(len(classes))]
    for label, count in zip(classes, counts, strict=True):
        if len(ranked[label]) < count:
            msg = f"class {label} has {len(ranked[label])} images, the sample needs {count}"
            raise DataError(f"{msg}; draw from the full test set, or fewer")
    return [ranked[classes[n % len(classes)]][n // len(classes)] for n in range(size)]


def encode_sample(full: ArrayDataset) -> bytes:
    """Return the bytes of the bundled file, drawn from the full test set.

    Raises:
        DataError: `full` has too few images of a class.
    """
    chosen = draw(full.labels.tolist())
    sample = full.subset(chosen)
    indices = np.array(chosen, dtype=np.int64)
    arrays = (sample.pixels, sample.labels, indices)
    return store.encode(dict(zip(SAMPLE_TENSORS, arrays, strict=True)))


def _rank(index: int) -> bytes:
    return hashlib.sha256(f"{SAMPLE} {index}".encode()).digest()


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the file of the sample; download the full test set if it is not on this machine."""
    parser = argparse.ArgumentParser(description="Draw the bundled sample of CIFAR-10 anew.")
    parser.add_argument("--out", type=Path, default=SAMPLE_FILE, help="file (default: %(default)s)")
    out: Path = parser.parse_args(arguments).out
    with progress_bar() as report:
        full = load_arrays(CIFAR10, "test", data_root(), download=True, report=report)
    content = encode_sample(full)
    store.write(out, content)
    sys.stdout.write(f"{out}: SHA-256 {hashlib.sha256(content).hexdigest()}\n")


if __name__ == "__main__":
    main()
