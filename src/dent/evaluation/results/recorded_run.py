"""Read a run folder without changing it, for reports and manual checks."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from dent.evaluation.records.folder import RUN, read_outside, read_plan, read_records, read_run
from dent.evaluation.records.plan import Batch, Plan
from dent.evaluation.records.schema import (
    ChallengeRecord,
    JournalRecord,
    ProbeRecord,
    RunRecord,
    TensorRef,
    UnitRecord,
)
from dent.evaluation.records.sweep import SWEEP, read_sweep
from dent.evaluation.records.tensor_files import load_tensor
from dent.evaluation.results.result import EvaluationResult
from dent.evaluation.results.summary import summarize
from dent.storage.disk import is_there, unreadable
from dent.storage.errors import RecordError
from dent.support.plural import counted, listed


@dataclass(frozen=True)
class SampleAnswer:
    """The prediction for one sample in one unit.

    Attributes:
        record: The record of the unit.
        batch: The batch that held the sample.
        member: Its index in that batch.
        predicted: The class that was predicted; None if there was no prediction.
        correct: Whether the prediction is the label.
        claimed: Whether the attack says that it fooled the defense; None if the unit did not attack
            the sample.
        row: Row of the sample in the unit's tensor; None if the unit did not perturb the sample or
            has no tensor.
    """

    record: UnitRecord
    batch: Batch
    member: int
    predicted: int | None
    correct: bool
    claimed: bool | None
    row: int | None


@dataclass(frozen=True)
class RecordedRun:
    """A run folder as it was when it was read. The run need not have ended.

    Attributes:
        path: The folder.
        run: Content of `run.json`.
        plan: Content of `plan.json`.
        records: The journal's records by unit key, in the order of writing.
        challenges: The records of `challenges.jsonl` (adversarial images from outside the run), in
            the order of submission.
    """

    path: Path
    run: RunRecord
    plan: Plan
    records: Mapping[str, JournalRecord]
    challenges: tuple[ChallengeRecord, ...] = ()

    @cached_property
    def result(self) -> EvaluationResult:
        """The result, derived from the records at first use."""
        run = self.run
        return summarize(
            run.spec, self.plan, self.records, run.units, run.sessions, self.challenges
        )

    @property
    def complete_fields(self) -> bool:
        """Whether the records have all fields of this version, so that a missing one was removed.

        Older versions submitted a batch in one way only, and never ran by attack.
        """
        return self.run.spec.schedule == "by-attack" or any(
            isinstance(record, ProbeRecord) and record.calls is not None
            for record in self.records.values()
        )

    def units(self) -> tuple[UnitRecord, ...]:
        """Return the records of all submissions: no probes or certificates, and challenges last."""
        own = (item for item in self.records.values() if isinstance(item, UnitRecord))
        return (*own, *(unit for challenge in self.challenges for unit in challenge.units))

    def kept(self) -> tuple[TensorRef, ...]:
        """Return the files of images that the records name and the settings keep, each once."""
        dropped = self.run.spec.settings.tensors == "drop"
        units = (unit for unit in self.units() if unit.kind == "challenge" or not dropped)
        return tuple(dict.fromkeys(unit.tensor for unit in units if unit.tensor is not None))

    @cached_property
    def _units_by_key(self) -> dict[str, UnitRecord]:
        return {unit.key: unit for unit in self.units()}

    def unit(self, key: str) -> UnitRecord | None:
        """Return the record of a submission by its key; None if there is none."""
        return self._units_by_key.get(key)

    def adversarial(self, record: UnitRecord) -> Tensor:
        """Return the images that a unit submitted in place of its attacked members.

        Returns:
            float32 (attacked members, C, H, W); of all batches if `record.batch` is None.

        Raises:
            RecordError: The unit has no tensor of its own, or the tensor was not kept or has
                changed.
        """
        return load_tensor(self.path, record)

    def images(self, defense: str, attack: str) -> Tensor:
        """Return the adversarial images of one attack for all samples.

        Args:
            defense: The name, in this run, of the defense that was attacked.
            attack: The name of the attack.

        Returns:
            float32 (attacked samples, C, H, W), in the order of the sample ids. If the whole
            dataset was attacked, row i belongs to image i.

        Raises:
            RecordError: The run has no such attack, the attack is not finished, or its images were
                not kept or have changed.
        """
        attack_units = [unit for unit in self.units() if unit.kind == "attack"]
        units_by_batch = {
            u.batch: u for u in attack_units if (u.defense, u.attack) == (defense, attack)
        }
        batches = [None] if None in units_by_batch else [batch.index for batch in self.plan.batches]
        missing = sum(batch not in units_by_batch for batch in batches)
        if missing:
            available = sorted({f"{unit.attack} on {unit.defense}" for unit in attack_units})
            raise RecordError(
                f"{self.path} has no images of {attack} on {defense} for {missing} of "
                f"{counted(len(batches), 'batch')}; there is "
                f"{', '.join(available) or 'no attack yet'}"
            )
        ids = [
            sample_id for batch in self.plan.batches for sample_id in batch.ids[: batch.attacked]
        ]
        rows = torch.cat([self.adversarial(units_by_batch[batch]) for batch in batches])
        return rows[torch.tensor(sorted(range(len(ids)), key=ids.__getitem__))]

    def sample(self, sample_id: int) -> tuple[SampleAnswer, ...]:
        """Return all predictions for one sample.

        Args:
            sample_id: Id of the sample in the full split.

        Raises:
            RecordError: No batch of the run contains the sample.
        """
        places = [
            (batch, member)
            for batch in self.plan.batches
            for member, member_id in enumerate(batch.ids)
            if member_id == sample_id
        ]
        if not places:
            raise RecordError(f"{self.path} has no sample with the id {sample_id}")
        starts, attacked = self._starts()
        answers = []
        for record in self.units():
            for batch, member in places:
                if record.batch not in (None, batch.index):
                    continue
                all_batches = record.batch is None
                position = member + (starts[batch.index] if all_batches else 0)
                row = member + (attacked[batch.index] if all_batches else 0)
                perturbed = member < batch.attacked and record.kind != "natural"
                claimed = record.claimed if perturbed else None
                answers.append(
                    SampleAnswer(
                        record=record,
                        batch=batch,
                        member=member,
                        predicted=record.served[position],
                        correct=record.served[position] == batch.labels[member],
                        claimed=None if claimed is None else claimed[row],
                        row=row if perturbed and record.tensor is not None else None,
                    )
                )
        return tuple(answers)

    def _starts(self) -> tuple[list[int], list[int]]:
        """Return the first index of each batch among all members, and among attacked members."""
        members, attacked = [0], [0]
        for batch in self.plan.batches:
            members.append(members[-1] + batch.size)
            attacked.append(attacked[-1] + batch.attacked)
        return members, attacked


def load_run(path: Path) -> RecordedRun:
    """Read a run folder without changing it. The run may still be in progress.

    Returns:
        The run, with `.result` (derived from the records), `.run.spec`, `.plan`, `.records` (the
        journal, by unit), `.units()`, `.adversarial(record)` and `.sample(id)`.

    Raises:
        RecordError: The folder contains no run, or a file of the run is missing or damaged. The
            message says which file, and where the damage is.
        SchemaVersionError: The run was written by a newer torch-dent.
    """
    path = Path(path)
    try:
        is_file, is_folder = path.is_file(), path.is_dir()
    except OSError as error:
        raise unreadable(path, error) from error
    if is_file:
        raise RecordError(
            f"{path} is a file, and a run is a folder: name the folder that contains {RUN}"
        )
    if not is_folder:
        raise RecordError(f"{path} does not exist")
    if not is_there(path / RUN):
        raise RecordError(f"{path} is not a run folder: it has no {RUN}{_instead(path)}")
    run = read_run(path)
    plan = read_plan(path, run)
    records, challenges = read_records(path, run, plan), read_outside(path, run, plan)
    return RecordedRun(path, run, plan, records, challenges)


def _instead(path: Path) -> str:
    if is_there(path / SWEEP):
        runs = ", ".join(str(folder) for folder in read_sweep(path).values())
        return f". It is a sweep; its runs are {runs}"
    try:
        inside = [child.name for child in sorted(path.iterdir()) if os.path.lexists(child / RUN)]
    except OSError as error:
        raise unreadable(path, error) from error
    if not inside:
        return ""
    return f". There are runs inside it: {listed(inside, 4)}"
