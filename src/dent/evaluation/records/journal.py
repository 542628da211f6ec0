"""The journal: an append-only file with one unit per line.

Each line has a checksum and is synced to disk.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar

from pydantic import ValidationError

from dent.evaluation.records.schema import (
    ChallengeLine,
    ChallengeRecord,
    JournalRecord,
    Line,
)
from dent.storage.canonical import canonical, digest
from dent.storage.disk import is_there, open_regular, read, write_all, writing
from dent.storage.errors import RecordError
from dent.storage.plain_json import parse, problem_of

JOURNAL: Final = "journal.jsonl"
CHALLENGES: Final = "challenges.jsonl"
"""A second journal, for images from outside. A run is complete without it."""
_Any = TypeVar("_Any", Line, ChallengeLine)


def line_of(record: JournalRecord | ChallengeRecord) -> bytes:
    """Return the line of a record, with its checksum and a newline."""
    plain = record.to_json()
    return f"{canonical({'record': plain, 'sha256': digest(plain)})}\n".encode()


class JournalWriter:
    """A writer that appends lines to a journal. The journal must be empty or end in a newline."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with writing(path):
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
            self._handle = open_regular(path, flags, in_place=True)

    def append(self, record: JournalRecord | ChallengeRecord) -> None:
        """Append a line. It is on the disk when this returns.

        Raises:
            RecordError: The line cannot be written. If a part of it was, it is removed again.
        """
        size = os.fstat(self._handle).st_size
        with writing(self._path):
            try:
                write_all(self._handle, line_of(record))
                os.fsync(self._handle)
            except OSError:
                with suppress(OSError):
                    os.ftruncate(self._handle, size)
                raise

    def close(self) -> None:
        """Close the file."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


def read_journal(path: Path) -> Iterator[JournalRecord]:
    """Yield the records of all complete lines. An incomplete last line, from a kill, is skipped.

    Raises:
        RecordError: A complete line is damaged, or the journal is missing.
    """
    for number, line in enumerate(_whole_lines(read(path)), start=1):
        yield _parse(path, number, line, Line).record


def read_challenges(path: Path) -> Iterator[ChallengeRecord]:
    """Yield the records of all complete lines of `challenges.jsonl`; none if there is no such file.

    Raises:
        RecordError: A complete line is damaged.
    """
    if is_there(path):
        for number, line in enumerate(_whole_lines(read(path)), start=1):
            yield _parse(path, number, line, ChallengeLine).record


def repair(path: Path) -> int:
    """Remove an incomplete last line, and return its number of bytes.

    Only bytes after the last newline are removed, because a line with a newline is complete.

    Raises:
        RecordError: The journal cannot be read or written.
    """
    content = read(path)
    complete = content.rfind(b"\n") + 1
    if complete < len(content):
        with writing(path):
            handle = open_regular(path, os.O_WRONLY, in_place=True)
            try:
                os.ftruncate(handle, complete)
                os.fsync(handle)
            finally:
                os.close(handle)
    return len(content) - complete


def _whole_lines(content: bytes) -> list[bytes]:
    return content[: content.rfind(b"\n") + 1].splitlines()


def _parse(path: Path, number: int, line: bytes, kind: type[_Any]) -> _Any:
    location = f"{path}, line {number}"
    try:
        plain = parse(line)
        record, recorded = plain["record"], str(plain.get("sha256"))
        computed = digest(record)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise RecordError(f"{location} is not a record: {_ADVICE}") from None
    if recorded != computed:
        raise RecordError(
            f"{location} does not match its checksum (it says {recorded[:64]}, its content "
            f"has {computed}): {_ADVICE}"
        )
    try:
        return kind.model_validate(plain)
    except ValidationError as error:
        raise RecordError(f"{location}: {problem_of(error)}. {_ADVICE}") from None


_ADVICE: Final = (
    "it was damaged or edited after it was written. Nothing was changed: restore the file, or "
    "delete that line to have its unit run again"
)
