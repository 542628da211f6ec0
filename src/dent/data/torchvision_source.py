"""Run torchvision's own download in a child process.

torchvision's downloader has no time limit and draws its own progress bar. In a child process, it
can be watched and ended.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from dent.data.progress import OnBytes
from dent.data.sources import Arrays, SourceError
from dent.data.torchvision_folder import TorchvisionFolder
from dent.data.watched import run_watched
from dent.errors import DataError

_SOCKET_SECONDS = 20
_CHILD = f"""\
import socket, sys
from torchvision import datasets
socket.setdefaulttimeout({_SOCKET_SECONDS})
getattr(datasets, sys.argv[1])(sys.argv[2], download=True)
"""


@dataclass(frozen=True)
class TorchvisionSource:
    """A source that uses torchvision's own downloader, which checks the archive's MD5 sum.

    Attributes:
        folder: Torchvision's folder of the dataset.
        splits: The splits to read.
        archive_bytes: Size of the download.
        stall_seconds: The download is ended after this long without a new byte. A child process
            needs about ten seconds to import torchvision before the first byte.
    """

    folder: TorchvisionFolder
    splits: tuple[str, ...]
    archive_bytes: int
    stall_seconds: float = 60.0
    name: ClassVar[str] = "torchvision"

    def fetch(self, scratch: Path, report: OnBytes) -> Mapping[str, Arrays]:
        """Fetch every split; see `DataSource.fetch`."""
        command = (sys.executable, "-c", _CHILD, self.folder.dataset, str(scratch))
        code, lines = run_watched(
            command,
            watch=scratch,
            stage="downloading with torchvision",
            total=self.archive_bytes,
            stall_seconds=self.stall_seconds,
            report=report,
        )
        if code:
            # The last line of a traceback is the exception itself.
            raise SourceError(lines[-1] if lines else f"torchvision's download ended with {code}")
        try:
            return {split: self.folder.read(scratch, split) for split in self.splits}
        except (DataError, FileNotFoundError) as error:
            raise SourceError(f"the download is incomplete: {error}") from error
