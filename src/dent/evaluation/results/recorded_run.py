"""Read a run folder without touching it: for reports, and for whoever wants to check."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from dent.evaluation.records.folder import load_tensor, read_plan, read_records, read_run
from dent.evaluation.records.plan import Batch, Plan
from dent.evaluation.records.schema import JournalRecord, RunRecord, UnitRecord
from dent.evaluation.results.result import EvaluationResult
from dent.evaluation.results.summary import summarize
from dent.storage.errors import RecordError
from dent.support.plural import counted


@dataclass(frozen=True)
class SampleAnswer:
    """What one sample was answered in one unit.

    Attributes:
        record: The unit.
        batch: The batch it stood in.
        member: Its place there.
        predicted: The class served; None where there was no prediction.
        correct: Whether that is its label.
        claimed: Whether the attack says that it fell; None where nothing attacked it there.
        row: Its row in the unit's tensor; None where it was not perturbed.
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
    """A run folder as it was when it was read; a run that is still on can be read, too.

    Attributes:
        path: The folder.
        run: `run.json`.
        plan: `plan.json`.
        records: The journal, by the unit's key, in the order of writing.
    """

    path: Path
    run: RunRecord
    plan: Plan
    records: Mapping[str, JournalRecord]

    @cached_property
    def result(self) -> EvaluationResult:
        """The result, derived anew from the records."""
        run = self.run
        return summarize(run.spec, self.plan, self.records, run.units, run.sessions)

    def units(self) -> tuple[UnitRecord, ...]:
        """All records but the probes'."""
        return tuple(item for item in self.records.values() if isinstance(item, UnitRecord))

    def adversarial(self, record: UnitRecord) -> Tensor:
        """What was submitted of the attacked members in an attack or a transfer.

        Returns:
            float32 (members attacked, C, H, W); over all batches where `record.batch` is None.

        Raises:
            RecordError: The unit has no tensor of its own, or it was not kept or was changed.
        """
        return load_tensor(self.path, record)

    def images(self, defense: str, attack: str) -> Tensor:
        """The adversarial images that an attack made of all samples.

        Args:
            defense: The name, in this run, of the defense that was attacked.
            attack: The attack's.

        Returns:
            float32 (samples attacked, C, H, W), in the order of the samples' ids: where a whole
            dataset is attacked, row i belongs to image i.

        Raises:
            RecordError: There is no such attack in the run, it is not finished, or the images were
                not kept or were changed.
        """
        made = [unit for unit in self.units() if unit.kind == "attack"]
        found = {u.batch: u for u in made if (u.defense, u.attack) == (defense, attack)}
        wanted = [None] if None in found else [batch.index for batch in self.plan.batches]
        missing = sum(batch not in found for batch in wanted)
        if missing:
            there = sorted({f"{unit.attack} on {unit.defense}" for unit in made})
            raise RecordError(
                f"{self.path} has no images of {attack} on {defense} for {missing} of "
                f"{counted(len(wanted), 'batch')}; there is {', '.join(there) or 'no attack yet'}"
            )
        ids = [each for batch in self.plan.batches for each in batch.ids[: batch.attacked]]
        rows = torch.cat([self.adversarial(found[batch]) for batch in wanted])
        return rows[torch.tensor(sorted(range(len(ids)), key=ids.__getitem__))]

    def sample(self, sample_id: int) -> tuple[SampleAnswer, ...]:
        """All that one sample was answered, by its id in the full split.

        Raises:
            RecordError: No batch of the run holds it.
        """
        places = [
            (batch, member)
            for batch in self.plan.batches
            for member, known in enumerate(batch.ids)
            if known == sample_id
        ]
        if not places:
            raise RecordError(f"{self.path} has no sample with the id {sample_id}")
        starts, attacked = self._starts()
        answers = []
        for record in self.units():
            for batch, member in places:
                if record.batch not in (None, batch.index):
                    continue
                whole = record.batch is None
                at = member + (starts[batch.index] if whole else 0)
                row = member + (attacked[batch.index] if whole else 0)
                perturbed = member < batch.attacked and record.kind != "natural"
                claimed = record.claimed if perturbed else None
                answers.append(
                    SampleAnswer(
                        record=record,
                        batch=batch,
                        member=member,
                        predicted=record.served[at],
                        correct=record.served[at] == batch.labels[member],
                        claimed=None if claimed is None else claimed[row],
                        row=row if perturbed and record.tensor is not None else None,
                    )
                )
        return tuple(answers)

    def _starts(self) -> tuple[list[int], list[int]]:
        """Where each batch begins among all members, and among all attacked members."""
        members, attacked = [0], [0]
        for batch in self.plan.batches:
            members.append(members[-1] + batch.size)
            attacked.append(attacked[-1] + batch.attacked)
        return members, attacked


def load_run(path: Path) -> RecordedRun:
    """Read a run folder; nothing in it is changed, and no lock is needed.

    Raises:
        RecordError: A file is missing or damaged; the message says which, and where.
        SchemaVersionError: It was written by a newer torch-dent.
    """
    path = Path(path)
    try:
        there = path.is_dir()
    except OSError as error:
        raise RecordError(f"cannot read {path}: {error.strerror}") from error
    if not there:
        raise RecordError(f"{path} is no run folder: there is no such folder")
    run = read_run(path)
    plan = read_plan(path, run)
    return RecordedRun(path, run, plan, read_records(path, run, plan))
