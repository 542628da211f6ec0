"""The bundled 256 test images of CIFAR-10, which `tools/draw_sample.py` chose."""

import hashlib
from pathlib import Path
from typing import Final

import numpy as np

from dent.data import store
from dent.data.cifar10 import CIFAR10
from dent.data.dataset import ArrayDataset
from dent.errors import DataError
from dent.support.extras import installing

SAMPLE: Final = "cifar10-sample"
SAMPLE_FILE: Final = Path(__file__).parent / "bundled" / f"{SAMPLE}.safetensors"
SAMPLE_FILE_SHA256: Final = "cd62bede24a4109ef39319d72cbf1c17c85608d75b49d66752528fb99c84ffda"
SAMPLE_TENSORS: Final = ("pixels", "labels", "indices")


def load_sample() -> ArrayDataset:
    """Load the bundled sample.

    Raises:
        DataError: The file is missing, or is not the one that the package was built with.
    """
    try:
        content = SAMPLE_FILE.read_bytes()
    except OSError as error:
        raise DataError(_reinstall(f"could not be read ({error.strerror})")) from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != SAMPLE_FILE_SHA256:
        raise DataError(_reinstall(f"is damaged: SHA-256 {digest}, expected {SAMPLE_FILE_SHA256}"))
    pixels, labels, indices = store.decode(content, SAMPLE_TENSORS)
    return ArrayDataset(
        name=SAMPLE,
        split="test",
        classes=CIFAR10.classes,
        pixels=pixels.astype(np.uint8, copy=False),
        labels=labels.astype(np.int64, copy=False),
        sample_ids=tuple(int(index) for index in indices),
    )


def _reinstall(what: str) -> str:
    advice = (
        f"reinstall torch-dent (`{installing('torch-dent', again=True)}`), or, in a clone, restore "
        "the file with git"
    )
    return f"the bundled sample {SAMPLE_FILE} {what}. What to do: {advice}"
