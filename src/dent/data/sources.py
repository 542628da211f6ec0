"""The protocol of a dataset's source: it returns decoded arrays, or raises the reason."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from dent.data.progress import OnBytes
from dent.errors import DataError


class Arrays(NamedTuple):
    """One split as it was decoded, not yet checked.

    Attributes:
        pixels: uint8 (N, H, W, C).
        labels: int64 (N,).
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]


class SourceError(DataError):
    """A source has failed; the next one may be tried. The message is only the reason."""


class DataSource(Protocol):
    """A place that a dataset can be fetched from. The caller checks what it returns."""

    @property
    def name(self) -> str:
        """Its name in messages and in `fetch(source=...)`."""

    def fetch(self, scratch: Path, report: OnBytes) -> Mapping[str, Arrays]:
        """Fetch every split.

        Args:
            scratch: An empty folder to work in, removed by the caller whatever happens.
            report: Called with the progress.

        Raises:
            SourceError: It cannot; the message says why.
        """
