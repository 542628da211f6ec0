"""The file of a sweep: it names the run folders, one per value of a setting."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field

from dent.evaluation.records.record_file import read_record
from dent.storage.canonical import Record

SWEEP: Final = "sweep.json"
_FOLDER: Final = r"^[A-Za-z][A-Za-z-]*=[A-Za-z0-9._-]*$"  # names from sweeps.folder_name
Over = Literal["batch_size", "order", "mix", "seed", "n", "eps"]


class SweepRecord(Record):
    """`sweep.json`: the runs in the folder."""

    schema_version: Literal[1] = 1
    over: Over
    runs: dict[str, Annotated[str, Field(pattern=_FOLDER)]]
    """Name of the run folder for each value."""


def read_sweep(path: Path) -> Mapping[str, Path]:
    """Return the run folders of a sweep, by value.

    Raises:
        RecordError: The folder holds no sweep, or `sweep.json` is damaged.
    """
    record = read_record(path / SWEEP, SweepRecord)
    return {value: path / name for value, name in record.runs.items()}
