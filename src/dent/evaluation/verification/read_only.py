"""A recorded run that units can read, and not write to."""

from collections.abc import Mapping

from torch import Tensor

from dent.evaluation.records.schema import JournalRecord, UnitRecord
from dent.evaluation.results.recorded_run import RecordedRun
from dent.storage.errors import RecordError


class ReadOnlyRecords:
    """A recorded run as a read-only store for running units."""

    def __init__(self, recorded: RecordedRun) -> None:
        self._recorded = recorded

    @property
    def done(self) -> Mapping[str, JournalRecord]:
        """The recorded records, by key."""
        return self._recorded.records

    def put(self, record: JournalRecord, adversarial: Tensor | None = None) -> None:
        """Refuse to record anything."""
        raise RecordError(f"{self._recorded.path} is only being checked, not written to")

    def adversarial(self, record: UnitRecord) -> Tensor:
        """Return the stored images of a unit."""
        return self._recorded.adversarial(record)

    def forget(self, record: UnitRecord) -> None:
        """Refuse to remove images."""
        raise RecordError(f"{self._recorded.path} is only being checked, not written to")
