"""Datasets: labeled images in [0, 1] with a digest, the same on every machine.

`load` returns a dataset by name. `fetch` downloads a dataset to this machine, and returns its
location.
"""

from dent.data.dataset import ArrayDataset, ImageDataset
from dent.data.fetching import Attempt, FetchResult
from dent.data.overlap import warn_of_overlap
from dent.data.own import from_factory
from dent.data.progress import OnBytes, progress_bar
from dent.data.registry import data_root, fetch, load, names

__all__ = [
    "ArrayDataset",
    "Attempt",
    "FetchResult",
    "ImageDataset",
    "OnBytes",
    "data_root",
    "fetch",
    "from_factory",
    "load",
    "names",
    "progress_bar",
    "warn_of_overlap",
]
