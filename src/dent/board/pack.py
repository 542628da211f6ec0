"""Pack records into one archive, and adversarial images into another: the same bytes every time.

The manifest lists every file with its digest, and its own digest covers all files. So the records
can be published without the images, which are large and can be kept elsewhere.
"""

import gzip
import hashlib
import io
import os
import re
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Final, Literal

from pydantic import Field, ValidationError

from dent.board.row_folder import ROW
from dent.errors import ConfigError
from dent.evaluation.records.folder import PLAN, RESULT, RUN
from dent.evaluation.records.journal import JOURNAL
from dent.evaluation.records.record_file import LARGEST_JSON, dump
from dent.evaluation.records.schema import TENSORS
from dent.evaluation.records.spec import Sha256
from dent.evaluation.records.sweep import SWEEP
from dent.evaluation.results.recorded_run import load_run
from dent.storage.canonical import Record, digest
from dent.storage.disk import (
    LARGEST,
    is_there,
    read,
    refuse_unreadable,
    write_atomically,
    writing,
)
from dent.storage.errors import RecordError
from dent.storage.plain_json import problem_of
from dent.support.plural import counted

MANIFEST: Final = "manifest.json"
CHALLENGES: Final = "challenges.jsonl"
_FIXED: Final = (RUN, PLAN, JOURNAL, ROW)
_RECORDS: Final = (*_FIXED, RESULT, SWEEP, CHALLENGES)
_NAME: Final = re.compile(r"(?:[A-Za-z0-9][A-Za-z0-9._=+-]*/){0,3}[A-Za-z0-9][A-Za-z0-9._=+-]*")
_IMAGES: Final = ".safetensors"
_MOST_FILES: Final = 100_000


class PackedFile(Record):
    """A file of an archive."""

    sha256: Sha256
    bytes: Annotated[int, Field(ge=0)]
    images: bool = False
    """Whether it is in the archive of images."""


class Manifest(Record):
    """`manifest.json`: every file of a run or row."""

    schema_version: Literal[1] = 1
    files: dict[str, PackedFile]

    @property
    def digest(self) -> str:
        """SHA-256 of the manifest, which covers all files."""
        return digest(self.to_json())

    @property
    def declared(self) -> str:
        """SHA-256 of the files that a submission declares, which outside attacks do not change.

        The journal has the digest of every image, so this covers the images as well.
        """
        return digest(
            {name: file.to_json() for name, file in self.files.items() if _is_fixed(name)}
        )


@dataclass(frozen=True)
class Packed:
    """The files that `pack` has written.

    Attributes:
        manifest: The manifest of all files.
        records: The archive of records.
        images: The archive of images; None if there are no images.
        removed: An older archive of images that was removed, because it belonged to other records;
            None if there was none.
    """

    manifest: Manifest
    records: Path
    images: Path | None
    removed: Path | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """What else happened, in sentences for the user."""
        if self.removed is None:
            return ()
        return (f"Removed {self.removed}: these records have no images, so it was of others.",)


def declared_of(folder: Path) -> str:
    """Return `Manifest.declared` of a run or row, without reading its images.

    Raises:
        RecordError: A file cannot be read.
    """
    names = [name for name in sorted(_names(folder)) if _is_fixed(name)]
    files = {name: _described(name, read(folder / name)) for name in names}
    return Manifest(files=files).declared


def _is_fixed(name: str) -> bool:
    return PurePosixPath(name).name in _FIXED


def pack(folder: Path, out: Path, *, checked: bool = True) -> Packed:
    """Write the records of a run or row into one archive, and its images into another beside it.

    Each file is read once, so that the archives match the manifest even if a run goes on meanwhile.
    An archive of images with the same name is removed if the run has no images, because it belongs
    to other records.

    Args:
        folder: The run or row.
        out: The archive of records, which ends in `.tar.gz`. `images_of` names the other one.
        checked: Whether to refuse images that are not those of the journal.

    Raises:
        ConfigError: The name of the archive does not end in `.tar.gz`.
        RecordError: There is no run, or a file cannot be read or written. Or `checked`, and the
            records are damaged, or an image is missing or differs from its digest.
    """
    check_name(out)
    journals = _images_of_journals(folder) if checked else {}  # first: a run may go on
    names = _names_of_runs(folder)
    records = {name: read(folder / name) for name in names if not name.endswith(_IMAGES)}
    files = {name: _described(name, content) for name, content in records.items()}
    images = _Tar()
    for name in names:
        if name.endswith(_IMAGES):
            content = read(folder / name)
            files[name] = _described(name, content)
            images.add(name, content)
    _refuse_other_images(folder, files, journals)
    manifest = Manifest(files={name: files[name] for name in names})
    removed = _write_images(images_of(out), images)
    archive = _Tar()
    archive.add(MANIFEST, dump(manifest))
    for name, content in records.items():
        archive.add(name, content)
    write_atomically(out, gzip.compress(archive.end(), mtime=0))
    return Packed(manifest, out, images_of(out) if images.count else None, removed)


def _images_of_journals(folder: Path) -> dict[str, str]:
    """Return the digests of the images that the runs in a folder must have, by name."""
    expected: dict[str, str] = {}
    for name in _names_of_runs(folder):
        path = PurePosixPath(name)
        if path.name == RUN:
            run = folder / path.parent
            refs = load_run(run).kept()
            if any(is_there(run / ref.file) for ref in refs):  # else it is without its images
                expected |= {str(path.parent / ref.file): ref.sha256 for ref in refs}
    return expected


def _refuse_other_images(
    folder: Path, files: Mapping[str, PackedFile], journals: Mapping[str, str]
) -> None:
    for name, sha256 in journals.items():
        found = files.get(name)
        if found is None or found.sha256 != sha256:
            problem = "is missing" if found is None else "is not what was written"
            raise RecordError(
                f"{folder / name} {problem}: `dent verify` says more. Nothing was packed"
            )


def _write_images(beside: Path, images: "_Tar") -> Path | None:
    """Write the archive of images, or remove an older one; return what was removed."""
    if images.count:
        write_atomically(beside, images.end())
        return None
    if not is_there(beside):
        return None
    with writing(beside):
        beside.unlink()
    return beside


def check_name(archive: Path) -> None:
    """Check that an archive of records has the right suffix.

    Raises:
        ConfigError: The name does not end in `.tar.gz`.
    """
    if not archive.name.endswith(".tar.gz"):
        raise ConfigError(
            f"an archive of records must end in .tar.gz, got {archive.name!r}: choose another name"
        )


def images_of(archive: Path) -> Path:
    """Return the path of the archive of images that belongs to an archive of records."""
    return archive.with_name(f"{archive.name.removesuffix('.tar.gz')}.images.tar")


def unpack(archive: Path, folder: Path) -> Manifest:
    """Unpack records into a new or empty folder, and check their digests.

    Only files that the manifest names are written, and nothing outside the folder.

    Raises:
        RecordError: The archive is damaged, does not match its manifest, or cannot be written.
    """
    content = _members(archive, compressed=True)
    if MANIFEST not in content:
        raise RecordError(f"{archive} has no {MANIFEST}: `dent pack` writes one")
    manifest = _read_manifest(archive, content.pop(MANIFEST))
    expected = {name for name, file in manifest.files.items() if not file.images}
    unlike = sorted(content.keys() ^ expected)
    if unlike:
        raise RecordError(f"{archive} does not contain what its manifest says: {unlike[0]}")
    for name, data in content.items():
        if hashlib.sha256(data).hexdigest() != manifest.files[name].sha256:
            raise RecordError(f"{archive}: {name} is not what its manifest says")
    _write(content, folder)
    return manifest


def add_images(archive: Path, folder: Path) -> None:
    """Unpack images into the folder of their records; `dent verify` compares their digests.

    Raises:
        RecordError: The archive is damaged, or holds anything but images.
    """
    content = _members(archive, compressed=False)
    for name in content:
        path = PurePosixPath(name)
        if path.parent.name != TENSORS or path.suffix != _IMAGES:
            raise RecordError(f"{archive} is of images, and contains {name}")
    _write(content, folder)


def _write(content: dict[str, bytes], folder: Path) -> None:
    for name, data in content.items():
        with writing(folder / name):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / name, data)


def _names(folder: Path) -> Iterator[str]:
    for place, inside, files in os.walk(folder, onerror=refuse_unreadable):
        inside.sort()
        for file in files:
            path = Path(place, file)
            is_image = path.parent.name == TENSORS and file.endswith(_IMAGES)
            if file in _RECORDS or is_image:
                name = path.relative_to(folder).as_posix()
                if not _NAME.fullmatch(name):
                    raise RecordError(f"{path} is not a file that torch-dent writes into a run")
                yield name


def _names_of_runs(folder: Path) -> list[str]:
    """Return the names of all records and images, in order.

    Raises:
        RecordError: There is no run among them.
    """
    names = sorted(_names(folder))
    if not any(PurePosixPath(name).name == RUN for name in names):
        raise RecordError(f"{folder} is not a run folder: it has no {RUN}")
    return names


def _described(name: str, content: bytes) -> PackedFile:
    return PackedFile(
        sha256=hashlib.sha256(content).hexdigest(),
        bytes=len(content),
        images=name.endswith(_IMAGES),
    )


class _Tar:
    """An archive in memory, whose bytes depend only on its files.

    Attributes:
        count: The number of its files.
    """

    def __init__(self) -> None:
        self.count = 0
        self._buffer = io.BytesIO()
        self._archive = tarfile.open(  # noqa: SIM115 (`end` closes it)
            fileobj=self._buffer, mode="w", format=tarfile.USTAR_FORMAT
        )

    def add(self, name: str, content: bytes) -> None:
        """Add a file."""
        member = tarfile.TarInfo(name)
        member.size = len(content)
        member.mode = 0o644
        self._archive.addfile(member, io.BytesIO(content))
        self.count += 1

    def end(self) -> bytes:
        """Complete the archive and return its bytes."""
        self._archive.close()
        return self._buffer.getvalue()


def _members(archive: Path, *, compressed: bool) -> dict[str, bytes]:
    stream: io.BufferedIOBase = io.BytesIO(read(archive))
    try:
        with gzip.open(stream) if compressed else stream as opened:
            return dict(_files(archive, opened))
    except (tarfile.TarError, zlib.error, OSError, EOFError, ValueError) as error:
        raise RecordError(f"{archive} is not an archive that `dent pack` wrote: {error}") from None


def _files(archive: Path, stream: io.BufferedIOBase) -> Iterator[tuple[str, bytes]]:
    """Yield the files of an archive as `_Tar` writes it, one header and one content at a time.

    `tarfile.open` also follows headers for long names and other sizes. Their content can be of any
    size once it is unpacked, and chains of them exhaust the stack of Python.
    """
    names, total = set[str](), 0
    while (header := stream.read(tarfile.BLOCKSIZE)).strip(b"\0") or not header:
        member = tarfile.TarInfo.frombuf(header, "utf-8", "strict")
        name, size = member.name, member.size
        total += size
        if member.type != tarfile.REGTYPE or not _NAME.fullmatch(name) or name in names or size < 0:
            raise RecordError(f"{archive} contains {name!r}, which no archive does")
        if total > LARGEST:
            raise RecordError(f"{archive} is larger than {counted(LARGEST, 'byte')}")
        if len(names) >= _MOST_FILES:
            raise RecordError(f"{archive} has more than {counted(_MOST_FILES, 'file')}")
        names.add(name)
        content = stream.read(size)
        if len(content) < size:
            raise EOFError(f"{name} is cut off")
        stream.read(-size % tarfile.BLOCKSIZE)
        yield name, content


def _read_manifest(archive: Path, content: bytes) -> Manifest:
    if len(content) > LARGEST_JSON:
        raise RecordError(f"{archive}: its {MANIFEST} has {counted(len(content), 'byte')}")
    try:
        return Manifest.model_validate_json(content)
    except ValidationError as error:
        raise RecordError(f"{archive}: {MANIFEST}: {problem_of(error)}") from None
