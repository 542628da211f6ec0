"""The protocol of a dataset's source, which returns decoded arrays or raises `SourceError`."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from dent.data.progress import OnBytes
from dent.errors import DataError


class Arrays(NamedTuple):
    """One decoded split, not yet checked.

    Attributes:
        pixels: uint8 (N, H, W, C).
        labels: int64 (N,).
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]


class SourceError(DataError):
    """The failure of a source; the next one may be tried. The message is only the reason."""


class DataSource(Protocol):
    """A place that a dataset can be fetched from. The caller checks the arrays it returns."""

    @property
    def name(self) -> str:
        """The source's name in messages and in `fetch(source=...)`."""

    def fetch(self, scratch: Path, report: OnBytes) -> Mapping[str, Arrays]:
        """Fetch every split.

        Args:
            scratch: An empty folder to work in, removed by the caller whatever happens.
            report: Called with the progress.

        Raises:
            SourceError: The fetch failed; the message says why.
        """
