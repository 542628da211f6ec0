"""Places for the records of a run."""

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from dent.evaluation.records.schema import JournalRecord, UnitRecord


class Store(Protocol):
    """A place for the records of a run: a run folder or memory."""

    @property
    def done(self) -> Mapping[str, JournalRecord]:
        """The records so far, by the key of the unit."""
        ...

    def put(self, record: JournalRecord, adversarial: Tensor | None = None) -> None:
        """Record a unit.

        Args:
            record: Its record.
            adversarial: The submitted images, (attacked members, C, H, W), if they are to be kept.
        """
        ...

    def adversarial(self, record: UnitRecord) -> Tensor:
        """Return the submitted images of a recorded unit, (attacked members, C, H, W)."""
        ...

    def forget(self, record: UnitRecord) -> None:
        """Drop the images of a recorded unit that no later unit needs."""
        ...


class Memory:
    """Records in memory, with the images that later units need."""

    def __init__(self) -> None:
        self._done: dict[str, JournalRecord] = {}
        self._tensors: dict[str, Tensor] = {}

    @property
    def done(self) -> Mapping[str, JournalRecord]:
        """The records so far, by the key of the unit."""
        return self._done

    def put(self, record: JournalRecord, adversarial: Tensor | None = None) -> None:
        """Record a unit, and keep its images until `forget`."""
        self._done[record.key] = record
        if adversarial is not None:
            self._tensors[record.key] = adversarial.cpu()

    def adversarial(self, record: UnitRecord) -> Tensor:
        """Return the submitted images of a recorded unit, on the CPU."""
        return self._tensors[record.key]

    def forget(self, record: UnitRecord) -> None:
        """Drop the images of a unit."""
        self._tensors.pop(record.key, None)
