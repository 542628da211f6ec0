"""Recognize, by their content, files that hold no weights."""

from __future__ import annotations

import io
import zipfile
from typing import Final

from dent.support.plural import listed

_GIT_LFS: Final = b"version https://git-lfs.github.com/spec/"
_PAGES: Final = (b"<!doctype", b"<html", b"<head", b"<?xml")
#: The first bytes of a file, the kind of file, and what to do with it.
_MAGIC: Final = (
    (b"\x1f\x8b", "a gzip archive", "unpack it (tar -xf, or gunzip)"),
    (b"BZh", "a bzip2 archive", "unpack it (tar -xf, or bunzip2)"),
    (b"\xfd7zXZ\x00", "an xz archive", "unpack it (tar -xf, or unxz)"),
    (b"\x28\xb5\x2f\xfd", "a zstandard archive", "unpack it (tar -xf, or unzstd)"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", "unpack it"),
    (b"Rar!", "a RAR archive", "unpack it"),
    (b"\x89HDF\r\n", "an HDF5 file (Keras writes those)", "export the weights with torch.save"),
    (b"\x93NUMPY", "a NumPy array", "export the weights with torch.save"),
    (b"\x89PNG", "a PNG picture", "name the weights file"),
    (b"\xff\xd8\xff", "a JPEG picture", "name the weights file"),
    (b"%PDF", "a PDF document", "name the weights file"),
    (b"GGUF", "a GGUF file", "export the weights with torch.save or safetensors"),
)
_TAR: Final = (257, b"ustar")
_TEXT: Final = 200
_SHOWN: Final = 60


def recognized(data: bytes) -> str | None:
    """Return what a file is and what to do with it, if it certainly holds no weights.

    Args:
        data: The whole content of the file.

    Returns:
        The end of a sentence that begins with the file's path; None if the file may hold weights.
    """
    start = data[:_TEXT].lstrip().lower()
    if not data:
        return "is empty: the download or copy was interrupted. Download or copy it again"
    if data.startswith(_GIT_LFS):
        return (
            "is a git-lfs pointer, not the file itself. Run "
            "`git lfs install` and `git lfs pull` in that repository, or download the file itself"
        )
    if start.startswith(_PAGES):
        return (
            "contains a web page (a login, a limit or a warning) instead of weights. Delete it, "
            "and download the file with a browser"
        )
    return _binary(data) or (_archive(data) if data.startswith(b"PK") else _text(data))


def _binary(data: bytes) -> str | None:
    for magic, what, advice in _MAGIC:
        if data.startswith(magic):
            return f"is {what}, not a weights file: {advice}"
    if data[_TAR[0] :].startswith(_TAR[1]):
        return "is a tar archive, not a weights file: unpack it (tar -xf)"
    return None


def _archive(data: bytes) -> str | None:
    """Recognize a zip file that torch.save did not write; one that it wrote holds data.pkl."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile:
        return None  # perhaps a damaged file of torch.save: torch reports the error
    ends = {name.rpartition("/")[2] for name in names}
    if "constants.pkl" in ends:
        return (
            "is a TorchScript program, not a weights file: load it where it was made, and save "
            "torch.save(program.state_dict(), ...)"
        )
    if "data.pkl" in ends:
        return None
    if any(name.endswith(".npy") for name in names):
        return "is an .npz archive of NumPy arrays: export the weights with torch.save"
    return (
        "is a zip archive that torch.save did not write (it contains "
        f"{listed(names, 3)}): unpack it"
    )


def _text(data: bytes) -> str | None:
    head = data[:_TEXT]
    try:
        text = head.decode("ascii")
    except UnicodeDecodeError:
        return None
    if not all(character.isprintable() or character in "\t\r\n" for character in text):
        return None
    line = text.strip().splitlines()[0] if text.strip() else ""
    return (
        f"contains text instead of weights (it begins {line[:_SHOWN]!r}): it is a note about the "
        "file, or the response to a failed download. Download or copy the file itself"
    )


def is_safetensors(data: bytes) -> bool:
    """Return whether a file begins like safetensors: with a length and then a JSON header."""
    length = int.from_bytes(data[:8], "little")
    return len(data) > 9 and length <= len(data) - 8 and data[8:10] in (b'{"', b"{}", b"{ ")
