"""Everything that the units of a plan need to run in this process, with its caches."""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from torch import Tensor, nn

from dent.errors import DataError
from dent.evaluation.records.plan import Batch, Plan, Unit, seed_of
from dent.evaluation.records.schema import UnitRecord
from dent.evaluation.records.spec import STATIC, EvaluationSpec
from dent.evaluation.records.store import Store
from dent.evaluation.subject import Prepared, Subject
from dent.evaluation.submission.guard import Guard
from dent.evaluation.submission.stream import Stream, serve_seed
from dent.evaluation.submission.submitter import Submitter
from dent.storage.errors import RecordError
from dent.support.devices import device_of
from dent.support.plural import counted
from dent.threat import ThreatModel

_KEPT_BYTES: Final = 2**29
"""Limit in bytes of the batches, and of the copies of defenses, that are kept for reuse."""


@dataclass(frozen=True)
class RunContext:
    """Everything needed to run a unit.

    Attributes:
        prepared: The prepared evaluation.
        stream: Returns each defense in its state before a batch.
        store: The store of the records.
        guard: Detects a defense that writes into the static model.
        surrogates: Other models to transfer attacks from, by name.
        loaded: The most recently used batches, by index, on the device of the model.
        submitters: The most recently used submitters, by defense and batch index.
    """

    prepared: Prepared
    stream: Stream
    store: Store
    guard: Guard
    surrogates: Mapping[str, nn.Module]
    loaded: OrderedDict[int, tuple[Tensor, Tensor]] = field(default_factory=OrderedDict)
    submitters: OrderedDict[tuple[str, int], Submitter] = field(default_factory=OrderedDict)

    @property
    def subject(self) -> Subject:
        """The objects to evaluate."""
        return self.prepared.subject

    @property
    def spec(self) -> EvaluationSpec:
        """The description of the evaluation."""
        return self.prepared.spec

    @property
    def plan(self) -> Plan:
        """The batches."""
        return self.prepared.plan

    @property
    def threat(self) -> ThreatModel:
        """The threat model."""
        return self.subject.threat

    def load(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the images (N, C, H, W) and labels (N,) of a batch, on the device of the model.

        Raises:
            DataError: The labels in the dataset differ from those in the plan, or are of no class.
        """
        if batch.index not in self.loaded:
            x, y = self.subject.dataset.batch(batch.positions)
            if tuple(y.tolist()) != batch.labels:
                raise DataError(
                    f"the dataset {self.spec.dataset.name!r} gives other labels for batch "
                    f"{batch.index} than when the plan was made: a dataset must not change"
                )
            classes = len(self.spec.dataset.classes)
            if not 0 <= min(batch.labels) <= max(batch.labels) < classes:
                raise DataError(
                    f"the dataset {self.spec.dataset.name!r} has labels {min(batch.labels)} to "
                    f"{max(batch.labels)} in batch {batch.index}, expected 0 to {classes - 1}, one "
                    f"of its {counted(classes, 'class')}"
                )
            device = device_of(self.subject.model)
            self.loaded[batch.index] = x.to(device), y.to(device)
            while len(self.loaded) > 1 and len(self.loaded) * x.nbytes > _KEPT_BYTES:
                self.loaded.popitem(last=False)
        self.loaded.move_to_end(batch.index)
        return self.loaded[batch.index]

    def submitter(self, defense: str, batch: Batch) -> Submitter:
        """Return the submitter for a defense and a batch. The latest are kept with their state."""
        key = defense, batch.index
        if key not in self.submitters:
            self.submitters[key] = Submitter(
                name=defense,
                origin=self.stream.origin(defense, batch.index),
                natural=self.load(batch)[0],
                guard=self.guard,
                seed=serve_seed(self.spec.settings.seed, batch.index),
                attacked=batch.attacked,
                public=self.spec.settings.randomness == "public",
            )
            size = 2 * sum(tensor.nbytes for tensor in self.subject.model.state_dict().values())
            while (
                len(self.submitters) > len(self.spec.defenses)
                and len(self.submitters) * size > _KEPT_BYTES
            ):
                self.submitters.popitem(last=False)
        self.submitters.move_to_end(key)
        return self.submitters[key]

    def recorded(self, unit: Unit) -> UnitRecord:
        """Return the record of a unit.

        Raises:
            RecordError: The unit is not recorded.
        """
        record = self.store.done.get(unit.key)
        if not isinstance(record, UnitRecord):
            raise RecordError(f"{unit.key} is not recorded, though another unit was made from it")
        return record

    def tensor_owner(self, record: UnitRecord) -> UnitRecord:
        """Return the record that owns the tensor: of a transfer, the attack on the static model."""
        if record.kind == "attack":
            return record
        return self.recorded(Unit("attack", STATIC, record.attack, record.batch))


def open_run(prepared: Prepared, store: Store) -> RunContext:
    """Prepare to run units of a plan in this process.

    Args:
        prepared: The prepared evaluation.
        store: The store of the records.
    """
    subject, spec, plan = prepared.subject, prepared.spec, prepared.plan
    lineup = subject.lineup(spec.settings)
    needs_surrogates = any(attack.attack == "surrogates" for attack in spec.attacks)
    return RunContext(
        prepared,
        stream=Stream(subject, lineup, plan.batches, spec.settings.seed),
        store=store,
        guard=Guard(subject.model, spec.model.weights),
        surrogates=subject.surrogates() if needs_surrogates else {},
    )


def batches_of(plan: Plan, unit: Unit) -> tuple[Batch, ...]:
    """Return the batches of a unit."""
    return plan.batches if unit.batch is None else (plan.batches[unit.batch],)


def unit_seed(spec: EvaluationSpec, unit: Unit) -> int:
    """Return the seed of a unit's attack."""
    return seed_of(spec.settings.seed, "unit", unit.batch, unit.attack)
