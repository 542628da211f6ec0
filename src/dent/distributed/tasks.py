"""The work of a worker: rebuild the subject once, then run units, one group at a time.

Nothing here depends on Ray, so tests can run it in one process.
"""

import io
import pickle
import socket
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dent.errors import ConfigError, InputError
from dent.evaluation.engine.context import RunContext, open_run
from dent.evaluation.engine.execute import execute
from dent.evaluation.records.plan import Group, Unit
from dent.evaluation.records.provenance import new_session
from dent.evaluation.records.schema import JournalRecord, Session, UnitRecord
from dent.evaluation.records.spec import EvaluationSpec, differences
from dent.evaluation.records.store import Memory, Store
from dent.evaluation.records.tensor_files import packed
from dent.evaluation.subject import Prepared, describe
from dent.support.devices import device_of
from dent.support.plural import first_few


@dataclass(frozen=True)
class Task:
    """The units of one group that are not recorded yet, in their order.

    Attributes:
        units: The units to run.
        held: The existing records that the units may need, and their adversarial images.
    """

    units: tuple[Unit, ...]
    held: tuple[tuple[JournalRecord, Tensor | None], ...] = ()

    @classmethod
    def of(cls, group: Group, store: Store, before: Sequence[Unit] = ()) -> "Task":
        """Return the units of a group that are left to run, with the records they need.

        Args:
            group: The units.
            store: The records so far.
            before: Units of earlier rounds that this group needs.
        """
        remaining = tuple(unit for unit in group if unit.key not in store.done)
        replayed = bool(before) or any(unit.kind in {"transfer", "assembled"} for unit in remaining)
        records: list[tuple[JournalRecord, Tensor | None]] = []
        for unit in (*before, *group):
            record = store.done.get(unit.key)
            if record is None:
                continue
            tensor = None
            if replayed and unit.kind == "attack" and isinstance(record, UnitRecord):
                tensor = store.adversarial(record)
            records.append((record, tensor))
        return cls(remaining, tuple(records))


@dataclass(frozen=True)
class Found:
    """A record of a unit, and its adversarial images if there are any."""

    record: JournalRecord
    tensor: Tensor | None


class GroupStore(Memory):
    """In-memory records of one group. Each names its tensor as on disk, with the same digest."""

    def __init__(self, spec: EvaluationSpec) -> None:
        super().__init__()
        self._spec = spec

    def put(self, record: JournalRecord, adversarial: Tensor | None = None) -> None:
        """Record a unit."""
        if adversarial is not None and isinstance(record, UnitRecord):
            ref, _ = packed(self._spec, record, adversarial)
            record = record.model_copy(update={"tensor": ref})
        super().put(record, adversarial)

    def found(self, unit: Unit) -> Found:
        """Return the record of a unit that ran."""
        return Found(self.done[unit.key], self._tensors.get(unit.key))


class Worker:
    """A process that runs groups of units for the driver, which records them."""

    _run: RunContext
    _threads: int

    def __init__(self) -> None:
        self._at: tuple[Unit, float] | None = None

    def prepare(self, content: bytes, device: str, threads: int, folder: str) -> Session:
        """Rebuild the subject of the evaluation.

        Args:
            content: The bytes from `pack`.
            device: Where to compute.
            threads: The number of threads to compute with.
            folder: The driver's current folder, in which Python also looks for modules.

        Returns:
            The session of this worker: its software and machine.

        Raises:
            ConfigError: A module is missing on this machine.
            InputError: The rebuilt evaluation differs from the packed one.
        """
        if Path(folder).is_dir() and folder not in sys.path:
            sys.path.insert(0, folder)
        self._threads = threads
        torch.set_num_threads(threads)
        prepared = unpack(content, device)
        subject, spec = prepared.subject, prepared.spec
        changed = differences(spec.to_json(), describe(subject, spec.settings).to_json())
        if changed:
            raise InputError(
                f"the evaluation changed on its way to a worker on {socket.gethostname()}: "
                f"{'; '.join(first_few(changed, 4))}. All parts of a defense or model must pickle"
            )
        self._run = open_run(prepared, GroupStore(spec))
        return new_session(device_of(subject.model))

    def work(self, task: Task) -> Iterator[Found]:
        """Run units and yield each record as soon as it is made."""
        torch.set_num_threads(self._threads)  # again: `prepare` may have run in another thread
        store = GroupStore(self._run.spec)
        for record, tensor in task.held:
            store.put(record, tensor)
        run = replace(self._run, store=store)
        for unit in task.units:
            self._at = (unit, 0.0)
            execute(run, unit, partial(self._note, unit))
            self._at = None
            yield store.found(unit)

    def within(self) -> tuple[Unit, float] | None:
        """Return the unit that runs and its progress, from 0 to 1; None between units."""
        return self._at

    def _note(self, unit: Unit, done: int, planned: int) -> None:
        self._at = (unit, done / planned if planned else 0.0)


def pack(prepared: Prepared, pickler: Any) -> bytes:
    """Pack an evaluation into bytes. Its tensors can be unpacked on any device.

    Args:
        prepared: The evaluation.
        pickler: A module like `pickle`.

    Raises:
        InputError: A part of it cannot be pickled.
    """
    content = io.BytesIO()
    try:
        torch.save(prepared, content, pickle_module=pickler)
    except Exception as error:
        raise InputError(
            "the evaluation cannot be sent to workers, because a part of it does not pickle "
            f"({type(error).__name__}: {error}). Models, datasets, defenses and attacks must hold "
            "no open files, locks or handles; or evaluate in one process"
        ) from error
    return content.getvalue()


def unpack(content: bytes, device: str) -> Prepared:
    """Return the packed evaluation, with its tensors on a device.

    Raises:
        ConfigError: A module is missing on this machine.
    """
    try:
        prepared: Prepared = torch.load(
            io.BytesIO(content), map_location=device, pickle_module=pickle, weights_only=False
        )
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"a worker on {socket.gethostname()} has no module {error.name!r}, which the "
            "evaluation needs: install it there, put it into a folder that all machines share, "
            "or start the run with `ray job submit --working-dir .`"
        ) from error
    return prepared
