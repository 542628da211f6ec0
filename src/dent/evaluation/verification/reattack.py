"""Run recorded attacks again and compare, to find what no check of the records can find."""

import hashlib
from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Annotated, Final, Literal

from pydantic import Field
from scipy.stats import binomtest
from torch import Tensor

from dent.errors import ConfigError
from dent.evaluation.engine.context import open_run
from dent.evaluation.engine.execute import execute
from dent.evaluation.probe.unit import attacks_with_more_iterations
from dent.evaluation.records.plan import Unit, units
from dent.evaluation.records.provenance import same_platform
from dent.evaluation.records.schema import (
    CertificateRecord,
    FollowUp,
    JournalRecord,
    ProbeRecord,
    UnitRecord,
)
from dent.evaluation.records.spec import STATIC, EvaluationSpec
from dent.evaluation.records.tensor_files import packed
from dent.evaluation.results.diagnostics import MISMATCH
from dent.evaluation.results.recorded_run import RecordedRun
from dent.evaluation.subject import Prepared, Subject
from dent.evaluation.verification.other_seeds import stronger_attacks, under_seed
from dent.evaluation.verification.read_only import ReadOnlyRecords
from dent.storage.canonical import Record, without_timing
from dent.storage.errors import RecordError
from dent.support.devices import device_of
from dent.support.plural import agreeing, counted

LEVEL: Final = 0.001
"""Significance level of the paired test, over all defenses together."""
_ALWAYS: Final = frozenset({"claimed", "claimed_after", "tensor"})
"""Optional fields that every attack's record has had, also in runs of older versions."""


@dataclass(frozen=True)
class Reattack:
    """A choice of the attack units of a run to run again.

    With full diagnostics, the extra attacks on a defense with more iterations are one of the units.

    Attributes:
        count: Number of units; None for all.
        nonce: Text that draws the units. It must be fixed after the run was handed over, and not by
            the maker of the run: for example the hash of a later block of a public chain, the draw
            of a lottery, or a number that the reviewer rolls.

    Raises:
        ConfigError: `count` is below 1, or it is given without a nonce.
    """

    count: int | None = None
    nonce: str = ""

    def __post_init__(self) -> None:
        if self.count is not None and self.count < 1:
            raise ConfigError(f"expected at least 1 attack to run again, or all, got {self.count}")
        if self.count is not None and not self.nonce:
            raise ConfigError(
                f"Reattack({self.count}) needs a nonce, a random text that selects the attacks. "
                "Choose it "
                "after the run is finished, so that its author cannot know which attacks you will "
                "check. Or use Reattack() to run all again"
            )

    def draw(self, recorded: RecordedRun) -> tuple[Unit, ...]:
        """Return the units to run again, in the order of the plan.

        They are the lowest by SHA-256 of the nonce, the identity of the run, and the key. But if
        they are all on the static model, the lowest unit of another defense takes the place of the
        last one, if there is any. What a run claims stands on the attacks on its defense.
        """
        attacked = [
            unit
            for unit in units(recorded.run.spec, recorded.plan)
            if _attacks(unit, recorded.run.spec) and unit.key in recorded.records
        ]
        if self.count is None:
            return tuple(attacked)
        ordered = sorted(
            attacked, key=lambda unit: _lot(self.nonce, recorded.run.identity, unit.key)
        )
        drawn = ordered[: self.count]
        of_defense = next((unit for unit in ordered if unit.defense != STATIC), None)
        if of_defense is not None and all(unit.defense == STATIC for unit in drawn):
            drawn[-1] = of_defense
        keys = {unit.key for unit in drawn}
        return tuple(unit for unit in attacked if unit.key in keys)


class Paired(Record):
    """For one defense, a comparison of the correct members as recorded and when attacked again."""

    defense: str
    members: int
    stood: int
    """Number of members that were correct, as recorded."""
    stands: int
    """Number of members that are correct when attacked again."""
    only_stood: int
    """Number of members that were correct as recorded, but not when attacked again."""
    only_stands: int
    """Number of members that are correct when attacked again, but were not as recorded."""
    p_value: float
    """P-value of McNemar's exact two-sided test, which treats members as independent."""


class RerunCount(Record):
    """How many attacks on one defense ran again."""

    units: Annotated[int, Field(ge=0)]
    """Number of attack units that ran again."""
    of: Annotated[int, Field(ge=0)]
    """Number of recorded attack units."""


class Reattacked(Record):
    """The result of running attacks again."""

    drawn: Literal["some", "all"]
    nonce: str | None
    """The nonce that drew the attacks; null if all ran."""
    units: tuple[str, ...]
    """Keys of the units that were attacked again."""
    of: int
    """Number of recorded attack units."""
    by_defense: dict[str, RerunCount] = Field(default_factory=dict)
    """The two numbers by defense, in the order of the run's description; empty in older results."""
    same: int
    """Number of units with equal results: images, predictions, claims and queries, bit for bit."""
    same_place: bool
    """Whether software and kind of device are the run's own, so that results must be equal."""
    level: float = LEVEL
    """Significance level. Each p-value must be at least this divided by the length of `paired`."""
    paired: tuple[Paired, ...]
    """For each defense with different results, the comparison over the units that have them."""


class Attacker:
    """A repeater of the attack units of a recorded run, one by one, from their recorded seeds.

    Attacks on a defense also run from another seed.

    Args:
        recorded: The run.
        subject: The evaluated objects.
        other_seed: A seed that the maker of the run cannot have known.
    """

    def __init__(self, recorded: RecordedRun, subject: Subject, other_seed: int) -> None:
        spec = recorded.run.spec
        self._recorded = recorded
        subject = subject.sized(spec.settings)
        self._repeated = RepeatedRecords(recorded)
        self._run = open_run(Prepared(subject, spec, recorded.plan), self._repeated)
        self._under_other_seed = under_seed(self._run, other_seed)
        self._with_other_seed: dict[str, list[tuple[bool, bool]]] = {}
        self._same_place = same_platform(
            recorded.run.sessions, device_of(subject.model), bit_exact=True
        )
        self._complete = recorded.complete_fields
        self._others: dict[str, list[tuple[bool, bool]]] = {}
        self._symptoms: dict[tuple[str, str, str | None], _Symptom] = {}
        self._unlike: list[str] = []
        self._done: list[str] = []

    def check(self, unit: Unit) -> None:
        """Run the attacks of a unit again, and compare the results."""
        recorded = self._recorded.records[unit.key]
        if isinstance(recorded, UnitRecord):
            self._check_attack(unit, recorded)
        else:
            self._check_more_iterations(unit, recorded)

    def _check_more_iterations(self, unit: Unit, record: ProbeRecord | CertificateRecord) -> None:
        """Repeat the extra attacks on the first batch, with twice the iterations."""
        run = self._run
        probed = self._recorded.records.get(Unit("probe", unit.defense, None, 0).key)
        if not isinstance(probed, ProbeRecord):
            raise RecordError("the probe of its defense is not recorded")
        repeated = attacks_with_more_iterations(
            run.stream.origin(unit.defense, 0),
            run.subject,
            run.spec,
            run.load(run.plan.batches[0]),
            differentiable=probed.zero_gradients is not None,
        )
        # Older versions recorded null if the defense has no gradient.
        recorded = record.more_iterations or ()
        self._done.append(unit.key)
        symptom = self._symptoms.setdefault(("iterations", unit.defense, None), _Symptom())
        symptom.members += max((follow_up.total for follow_up in repeated), default=0)
        symptom.then += _gain(recorded)
        symptom.now += _gain(repeated)
        if recorded != repeated:
            self._unlike.append(f"{unit.key}: more_iterations not the same when attacked again")

    def _check_attack(self, unit: Unit, recorded: UnitRecord) -> None:
        """Repeat an attack, and keep which members stand in each of the two results."""
        execute(self._run, unit)
        repeated = self._repeated.take()
        self._done.append(unit.key)
        for name, count in (("claims", self._misclaims), ("gradients", _blind)):
            symptom = self._symptoms.setdefault((name, unit.defense, unit.attack), _Symptom())
            symptom.members += len(repeated.claimed or ())
            symptom.then += count(unit, recorded)
            symptom.now += count(unit, repeated)
        differing = _differing_fields(recorded, repeated, older=not self._complete)
        if differing:
            self._unlike.append(
                f"{unit.key}: {', '.join(differing)} not the same when attacked again"
            )
            recorded_right, repeated_right = (
                self._right(unit, record.served) for record in (recorded, repeated)
            )
            pairs = self._others.setdefault(unit.defense, [])
            pairs += zip(recorded_right, repeated_right, strict=True)
        if unit.defense != STATIC:
            execute(self._under_other_seed, unit)
            rights = (
                self._right(unit, record.served) for record in (recorded, self._repeated.take())
            )
            self._with_other_seed.setdefault(unit.defense, []).extend(zip(*rights, strict=True))

    def conclude(self, request: Reattack) -> Reattacked:
        """Return the result over all units that were run again."""
        recorded = self._recorded
        every = Reattack().draw(recorded)
        done = set(self._done)
        return Reattacked(
            drawn="all" if request.count is None else "some",
            nonce=None if request.count is None else request.nonce,
            units=tuple(self._done),
            of=len(every),
            by_defense={
                defense.name: _count(every, done, defense.name)
                for defense in recorded.run.spec.defenses
            },
            same=len(self._done) - len(self._unlike),
            same_place=self._same_place,
            paired=tuple(_paired(name, pairs) for name, pairs in self._others.items()),
        )

    def problems(self, reattacked: Reattacked) -> list[str]:
        """Return the problems that the repeated attacks found.

        On the run's own platform, any difference is a problem. Elsewhere, only a significant
        difference is one, or a symptom that the records hide. Everywhere, it is a problem if the
        attacks break significantly more members from another seed.
        """
        stronger = list(stronger_attacks(self._with_other_seed))
        if reattacked.same_place:
            return self._unlike + stronger
        hidden = [
            f"{defense}: {_SYMPTOMS[name].format(attack=attack)} for {symptom.now} of "
            f"{counted(symptom.members, 'member')} when attacked again, for {symptom.then} as "
            "recorded"
            for (name, defense, attack), symptom in self._symptoms.items()
            if symptom.hidden
        ]
        return [*hidden, *stronger] + [
            f"{paired.defense}: {paired.stood} of {counted(paired.members, 'member')} stand as "
            f"recorded, {paired.stands} when attacked again (only then {paired.only_stands}, only "
            f"as recorded {paired.only_stood}; p = {paired.p_value:.2g})"
            for paired in reattacked.paired
            if paired.p_value < reattacked.level / len(reattacked.paired)
        ]

    def weak(self, reattacked: Reattacked) -> list[str]:
        """Return a message for each defense with too few members for the test to find anything."""
        return [
            f"{paired.defense}: {counted(paired.members, 'member')} "
            f"{agreeing(paired.members, 'are')} too few to tell, on other "
            "software or "
            "another kind of device than the run's: draw more attacks"
            for paired in reattacked.paired
            if not reattacked.same_place
            and 2 * 0.5**paired.members >= reattacked.level / len(reattacked.paired)
        ]

    def _misclaims(self, unit: Unit, record: UnitRecord) -> int:
        """Return the number of attacked members whose submission contradicts the attack's claim."""
        if record.draws:  # they may differ by chance
            return 0
        pairs = zip(record.claimed or (), self._right(unit, record.served), strict=False)
        return sum(claimed == right for claimed, right in pairs)

    def _right(self, unit: Unit, served: Sequence[int | None]) -> list[bool]:
        plan = self._recorded.plan
        batches = plan.batches if unit.batch is None else (plan.batches[unit.batch],)
        rights, start = [], 0
        for batch in batches:
            labels = batch.labels[: batch.attacked]
            answers = served[start : start + batch.attacked]
            rights += [
                prediction == label for prediction, label in zip(answers, labels, strict=True)
            ]
            start += batch.size
        return rights


@dataclass
class _Symptom:
    """Numbers of members that show a symptom, as recorded and when attacked again."""

    members: int = 0
    then: int = 0
    now: int = 0

    @property
    def hidden(self) -> bool:
        """Whether the record hides the symptom: more members show it now, beyond rounding."""
        return self.now - self.then > max(1.0, MISMATCH * self.members)


_SYMPTOMS: Final = {
    "claims": "the claims of {attack} differ from the submission",
    "gradients": "{attack} has no gradient in half of its steps",
    "iterations": "more iterations still help",
}


def _attacks(unit: Unit, spec: EvaluationSpec) -> bool:
    """Return whether a unit attacks: itself, or by the extra attacks with more iterations."""
    extra = "probe" if spec.schedule == "by-batch" else "certificate"
    return unit.kind == "attack" or (spec.settings.diagnostics == "full" and unit.kind == extra)


def _gain(follow_ups: Sequence[FollowUp]) -> int:
    """Return the largest number of members that only twice the iterations broke."""
    gains = ((follow_up.before or 0) - follow_up.correct for follow_up in follow_ups)
    return max([0, *gains])


def _blind(_: Unit, record: UnitRecord) -> int:
    """Return the number of members for which at least half of the gradients were zero."""
    pairs = zip(record.gradients or (), record.zero_gradients or (), strict=False)
    return sum(0 < gradients <= 2 * zero for gradients, zero in pairs)


class RepeatedRecords(ReadOnlyRecords):
    """A recorded run as a store that only keeps the latest record of an attack that ran again."""

    def __init__(self, recorded: RecordedRun) -> None:
        super().__init__(recorded)
        self._last: UnitRecord | None = None

    def put(self, record: JournalRecord, adversarial: Tensor | None = None) -> None:
        """Keep the record of a unit with its images; drop any other record."""
        if isinstance(record, UnitRecord) and adversarial is not None:
            ref, _ = packed(self._recorded.run.spec, record, adversarial)
            self._last = record.model_copy(update={"tensor": ref})

    def take(self) -> UnitRecord:
        """Return the kept record, and drop it.

        Raises:
            RecordError: No attack has left a record since the last call.
        """
        if self._last is None:
            raise RecordError("the attack left no record")
        record, self._last = self._last, None
        return record


def _count(every: Sequence[Unit], done: Set[str], defense: str) -> RerunCount:
    own = [unit.key for unit in every if unit.defense == defense]
    return RerunCount(units=sum(key in done for key in own), of=len(own))


def _lot(nonce: str, identity: str, key: str) -> bytes:
    return hashlib.sha256("\n".join((nonce, identity, key)).encode()).digest()


def _differing_fields(recorded: UnitRecord, repeated: UnitRecord, *, older: bool) -> list[str]:
    """Return the names of the fields that differ, without fields that older records lack.

    Args:
        recorded: The record of an attack.
        repeated: The record of the same attack when it ran again.
        older: Whether an older version, which recorded fewer fields, may have made the run.
    """
    old_fields, new_fields = (without_timing(record.to_json()) for record in (recorded, repeated))
    differing = [name for name, value in new_fields.items() if old_fields[name] != value]
    if not older:
        return differing
    optional = {name for name, field in UnitRecord.model_fields.items() if not field.is_required()}
    later = {name for name in optional - _ALWAYS if old_fields[name] is None}
    return [name for name in differing if name not in later]


def _paired(defense: str, pairs: Sequence[tuple[bool, bool]]) -> Paired:
    only_stood = sum(before and not now for before, now in pairs)
    only_stands = sum(now and not before for before, now in pairs)
    unlike = only_stood + only_stands
    return Paired(
        defense=defense,
        members=len(pairs),
        stood=sum(before for before, _ in pairs),
        stands=sum(now for _, now in pairs),
        only_stood=only_stood,
        only_stands=only_stands,
        p_value=float(binomtest(only_stood, unlike).pvalue) if unlike else 1.0,
    )
