"""Load the natural images of a run by the name of the dataset, if its digest matches."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dent import data
from dent.data.dataset import ImageDataset
from dent.errors import DentError
from dent.evaluation.records.spec import DatasetSpec


@dataclass(frozen=True)
class NaturalImages:
    """The dataset of a run, or the reason why it is missing.

    Attributes:
        dataset: The dataset with the recorded digest; None if it could not be loaded.
        missing: Why it could not be loaded; empty if it was.
    """

    dataset: ImageDataset | None
    missing: str


def natural_images(spec: DatasetSpec, root: Path | None = None) -> NaturalImages:
    """Load the dataset that a run names, without a download.

    Args:
        spec: The recorded dataset.
        root: The folder of datasets; see `dent.data.data_root`.
    """
    if spec.name not in data.names():
        return NaturalImages(
            None,
            f"{spec.name} is not a named dataset of dent.data, and records contain no natural "
            "images",
        )
    split: Literal["test", "train"] = "train" if spec.split == "train" else "test"
    try:
        dataset = data.load(spec.name, split, root=root, download=False, progress=False)
    except DentError as error:
        return NaturalImages(None, f"{spec.name} is not on this machine: {error}")
    if dataset.digest != spec.digest:
        return NaturalImages(
            None,
            f"{spec.name} on this machine has the digest {dataset.digest}, but the run used "
            f"{spec.digest}: the images differ",
        )
    return NaturalImages(dataset, "")
