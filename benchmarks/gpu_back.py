"""What `make gpu` brings back from another machine: a few files, none of them large.

Such a machine may end at any moment, and may be another one at the next call. So files are copied
while a part runs, and folders travel as an archive in pieces.
"""

import io
import shutil
import tarfile
from pathlib import Path
from typing import Final, final

FILES: Final = 8
"""Number of files that may be brought back."""
PIECE: Final = 15 * 2**20
"""Largest size of a piece of an archive, in bytes."""


@final
class Back:
    """Copies the files of a folder, but not its folders, to another folder as they change.

    JSON files come first and always. Of the others, those that were there from the start stay
    where they are: they have been brought back before.
    """

    def __init__(self, out: Path, target: Path | None) -> None:
        """Remember which files are there.

        Args:
            out: The folder of all parts.
            target: The folder to copy to; None copies nothing.
        """
        self._out, self._target = out, target
        self._sent = {path.name: _stamp(path) for path in _files(out) if path.suffix != ".json"}
        self._names: set[str] = set()
        self._refused: set[str] = set()

    def bring(self) -> None:
        """Copy the files that are new or have changed."""
        if self._target is None:
            return
        for path in _files(self._out):
            stamp = _stamp(path)
            if self._sent.get(path.name) == stamp or path.name in self._refused:
                continue
            if path.name not in self._names and len(self._names) == FILES:
                print(f"{path} stays here: {FILES} files go back", flush=True)
                self._refused.add(path.name)
                continue
            shutil.copy(path, self._target / path.name)
            self._sent[path.name] = stamp
            self._names.add(path.name)


def pack(folder: Path, most: int, *, piece: int = PIECE) -> list[Path]:
    """Write a folder beside itself as `NAME.tar.xz.00`, and so on, and return these files.

    If this takes more than `most` pieces, its tensors stay here, and the records of the folder are
    in `NAME.records.tar.xz`.
    """
    for old in _pieces(folder):
        old.unlink()
    content = _archive(folder, "*")
    if len(content) > most * piece:
        path = folder.with_name(f"{folder.name}.records.tar.xz")
        path.write_bytes(_archive(folder, "*.json*"))
        return [path]
    paths = []
    for number, at in enumerate(range(0, len(content), piece)):
        paths.append(folder.with_name(f"{folder.name}.tar.xz.{number:02}"))
        paths[-1].write_bytes(content[at : at + piece])
    return paths


def unpack(folder: Path) -> None:
    """Make a folder again from its pieces. Without pieces, or if it is there, do nothing."""
    pieces = _pieces(folder)
    if folder.exists() or not pieces:
        return
    content = b"".join(path.read_bytes() for path in pieces)
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:xz") as archive:
        archive.extractall(folder.parent, filter="data")


def _archive(folder: Path, pattern: str) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:xz", preset=1) as archive:
        for path in sorted(folder.rglob(pattern)):
            archive.add(path, path.relative_to(folder.parent), recursive=False)
    return content.getvalue()


def _pieces(folder: Path) -> list[Path]:
    return sorted(folder.parent.glob(f"{folder.name}.tar.xz.*"))


def _files(out: Path) -> list[Path]:
    found = [path for path in out.iterdir() if path.is_file() and path.suffix != ".part"]
    return sorted(found, key=lambda path: (path.suffix != ".json", path.name))


def _stamp(path: Path) -> tuple[int, int]:
    about = path.stat()
    return about.st_mtime_ns, about.st_size
