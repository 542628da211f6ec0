"""Errors of run folders, by what the reader can do about them.

None of them is raised after something in a run folder was destroyed: all files are still there.
"""

from dent.errors import DentError


class RecordError(DentError):
    """A run folder cannot be read, written or trusted: the message says which file and why."""


class SpecMismatchError(RecordError):
    """The folder contains another run: choose another folder, or the same evaluation.

    Attributes:
        differences: One sentence for each field that differs.
    """

    def __init__(self, message: str, differences: tuple[str, ...]) -> None:
        super().__init__(message)
        self.differences = differences


class LockedError(RecordError):
    """Another process is writing to the folder: wait for it, or choose another folder."""


class SchemaVersionError(RecordError):
    """The record was written by a newer torch-dent: upgrade to read it."""
