"""Submit the recorded images of a run again, and compare the answers."""

import math
import operator
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dent.errors import InputError
from dent.evaluation.engine.adversarial import assembled, carried_images
from dent.evaluation.engine.carry import carried
from dent.evaluation.engine.context import batches_of, open_run, unit_seed
from dent.evaluation.engine.execute import answer_fields, certify, submit_once, submit_unit
from dent.evaluation.probe.unit import probe_record
from dent.evaluation.records.image_digest import digest_of
from dent.evaluation.records.plan import APART, Unit, seed_of, units
from dent.evaluation.records.probe_answers import depends_on_batch, randomized, stateful
from dent.evaluation.records.provenance import same_platform
from dent.evaluation.records.schema import (
    CertificateRecord,
    ChallengeRecord,
    FollowUp,
    JournalRecord,
    ProbeRecord,
    UnitRecord,
)
from dent.evaluation.records.spec import STATIC, EvaluationSpec
from dent.evaluation.results.certificate import certificate_of, over_large_steps
from dent.evaluation.results.recorded_run import RecordedRun
from dent.evaluation.subject import Prepared, Subject, threat_of
from dent.evaluation.submission.measures import mean_loss
from dent.evaluation.submission.repeated import CLOSE, TOLERATED, close, may_change
from dent.evaluation.submission.submitter import Answers
from dent.evaluation.verification.other_seeds import OtherSeeds
from dent.evaluation.verification.tolerance import (
    comparable,
    described,
    favored,
    is_tie,
    result_changes,
    trace_problem,
)
from dent.storage.errors import RecordError
from dent.support.devices import device_of
from dent.support.plural import agreeing, counted

_COUNTED = ("rows", "probabilities", "gradient_rows", "zero_gradients")
_PROBED = (
    "repeated",
    "again",
    "alone",
    "strangers",
    "permuted",
    "probabilities",
    "rows",
    "gradient_rows",
    "zero_gradients",
    "huge_eps",
    "calls",
    "again_gradient",
    "uncopied",
)
"""Fields of a probe that are measured again, in addition to the gradient."""
DROPPED = "the tensors were not kept (settings.tensors is 'drop')"
_ONE_ANSWER = "an older version recorded only one answer per batch"
_OLDER_PROBE = "an older version recorded only some fields of the probes"
_UNSEARCHED = "an older version did not look for memory that copies share, and there is some now"


@dataclass(frozen=True)
class Finding:
    """The outcome of one check of one unit, or of all units together.

    Attributes:
        check: Name of the check.
        unit: Key of the unit; None for all units together.
        problem: The problem, or None.
        skipped: Whether the check could not run. If so, `problem` says why.
    """

    check: str
    unit: str | None
    problem: str | None = None
    skipped: bool = False


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


class Resubmission:
    """A checker of the units of a run, one by one and in order.

    Args:
        recorded: The run.
        subject: The evaluated objects.
    """

    def __init__(self, recorded: RecordedRun, subject: Subject) -> None:
        spec, plan = recorded.run.spec, recorded.plan
        subject = subject.sized(spec.settings)
        self._recorded = recorded
        self._run = open_run(Prepared(subject, spec, plan), ReadOnlyRecords(recorded))
        self._threat = threat_of(spec.threat)
        self._same_place = same_platform(
            (
                *recorded.run.sessions,
                *(challenge.session for challenge in recorded.challenges),
            ),
            device_of(subject.model),
            bit_exact=False,
        )
        # Older versions submitted a batch in one way only, and never ran by attack.
        self._complete = spec.schedule == "by-attack" or any(
            isinstance(record, ProbeRecord) and record.calls is not None
            for record in recorded.records.values()
        )
        self._changed: dict[str, list[Finding]] = {}
        self._members: dict[str, int] = {}
        self._clear: list[Finding] = []
        # By defense and sample id: how often it was correct only as recorded, minus only now.
        self._leaning: dict[str, Counter[int]] = {}
        self._again: dict[str, JournalRecord] = {}
        self._other_seeds = OtherSeeds(self._run)

    def check(self, unit: Unit) -> Iterator[Finding]:
        """Check a recorded unit."""
        record = self._recorded.records[unit.key]
        if isinstance(record, ProbeRecord):
            yield from self._probe(unit, record)
        elif isinstance(record, CertificateRecord):
            yield self._certificate(unit, record)
        else:
            yield from self._submitted(unit, record)

    def check_first(self) -> Iterator[Finding]:
        """Submit one adversarial version of each batch to each defense, before any natural image.

        A defense whose copies share a memory may have learned the natural images during the run.
        In a new process, this memory is empty until the first natural images are submitted. Each
        batch is also submitted under a seed that nobody can know.
        """
        run = self._run
        for batch in run.plan.batches:
            for defense in run.spec.defenses:
                unit = self._strongest(defense.name, batch.index)
                record = None if unit is None else self._recorded.records[unit.key]
                if unit is None or not isinstance(record, UnitRecord):
                    continue
                try:
                    adversarial = self._found(unit, record)
                except RecordError:
                    continue  # `check` reports it
                if adversarial is None:
                    continue
                served = submit_once(run, unit, adversarial).predictions
                changed = sum(map(operator.ne, served, record.served))
                problem: str | None = None
                allowed = 0 if self._same_place else may_change(batch.size)
                if self._complete and defense.name != STATIC:
                    problem = self._other_seeds.problem(unit, record, adversarial, allowed)
                if changed > allowed:
                    problem = (
                        f"{unit.key}: {counted(changed, 'member')} {agreeing(changed, 'are')} "
                        "served otherwise before the defense has seen any natural image"
                    )
                yield Finding("served", unit.key, problem)

    def _strongest(self, defense: str, index: int) -> Unit | None:
        """Return the attack with the highest loss on a batch; if there is none, a transfer."""
        found = [
            (record.kind == "attack", record.loss or 0.0, -place, unit)
            for place, unit in enumerate(units(self._run.spec, self._run.plan))
            if (unit.defense, unit.batch) == (defense, index)
            and unit.kind in ("attack", "transfer")
            and isinstance(record := self._recorded.records.get(unit.key), UnitRecord)
        ]
        return max(found)[-1] if found else None

    def check_challenge(self, challenge: ChallengeRecord) -> Iterator[Finding]:
        """Check the images of a challenge, and submit them again."""
        for record in challenge.units:
            unit = Unit("challenge", record.defense, record.attack, record.batch)
            yield from self._submitted(unit, record)

    def unlike_digest(self, challenge: ChallengeRecord) -> str | None:
        """Return a message if the digest of a challenge is not that of its images."""
        try:
            images = {
                unit.batch: self._recorded.adversarial(unit)
                for unit in challenge.units
                if unit.batch is not None
            }
        except RecordError:
            return None  # `check_challenge` reports it
        if digest_of(images, self._run.plan) == challenge.digest:
            return None
        return (
            f"the digest {challenge.short} of the challenge by {challenge.by} is not that of its "
            "images: it was edited, or an older version recorded the digest of their file"
        )

    def _submitted(self, unit: Unit, record: UnitRecord) -> Iterator[Finding]:
        try:
            adversarial = self._found(unit, record)
        except RecordError as error:
            dropped = self._run.spec.settings.tensors == "drop" and unit.kind != "challenge"
            for check in ("tensors", "threat model", "served") if dropped else ("tensors",):
                yield Finding(check, unit.key, DROPPED if dropped else str(error), skipped=dropped)
            return
        if adversarial is not None:
            yield Finding("tensors", unit.key)
            yield Finding("threat model", unit.key, self._outside(unit, record, adversarial))
            if unit.kind == "assembled":
                yield Finding("tensors", unit.key, self._sources(unit, record))
            if record.carried is not None:
                yield Finding("tensors", unit.key, self._carried(unit, record, adversarial))
        yield Finding("served", unit.key, self._served(unit, record, adversarial))
        if not self._complete:
            yield Finding("served", unit.key, _ONE_ANSWER, skipped=True)

    def too_many_changed(self) -> list[Finding]:
        """Return the changed predictions that are problems.

        On the run's own platform, these are all. Elsewhere, they are all if more than `TOLERATED`
        changed in the run, and otherwise only the predictions of units with too many changes.
        """
        changed = [finding for findings in self._changed.values() for finding in findings]
        if self._same_place or len(changed) > TOLERATED * sum(self._members.values()):
            return changed
        return [
            finding
            for key, findings in self._changed.items()
            if len(findings) > may_change(self._members[key])
            for finding in findings
        ]

    def clearly_changed(self) -> list[Finding]:
        """Return the changed predictions of the static model that no rounding explains.

        It does not adapt and draws nothing, so elsewhere only near ties may turn out differently.
        """
        return [] if self._same_place else self._clear

    def one_sided(self) -> list[Finding]:
        """Return the defenses that the changed predictions favor too often to be rounding.

        Honest changes go both ways: the same images are submitted twice. If attacks chose them by
        the first answers, more members are correct only now, which does not favor the record.
        """
        if self._same_place:
            return []
        return [Finding("served", None, problem) for problem in favored(self._leaning)]

    def better_under_known_seeds(self) -> list[Finding]:
        """Return the randomized defenses that do worse under seeds that nobody could know."""
        return [Finding("served", None, problem) for problem in self._other_seeds.problems()]

    def scored_otherwise(self) -> list[Finding]:
        """Return what changes in the result if the run is scored with the new answers."""
        if not self._again:
            return []
        recorded = self._recorded
        challenges = tuple(
            challenge.model_copy(
                update={"units": tuple(self._again.get(unit.key, unit) for unit in challenge.units)}
            )
            for challenge in recorded.challenges
        )
        records = {key: self._again.get(key, record) for key, record in recorded.records.items()}
        again = replace(recorded, records=records, challenges=challenges)
        return [
            Finding("verdict", None, problem)
            for problem in result_changes(recorded.result, again.result)
        ]

    def _found(self, unit: Unit, record: UnitRecord) -> Tensor | None:
        if unit.kind == "natural":
            return None
        if unit.kind == "assembled":
            return assembled(self._run, unit, batches_of(self._run.plan, unit)[0])[0]
        if record.tensor is None:
            raise RecordError(f"{unit.key} has no tensor on record")
        if unit.kind == "transfer":
            source = Unit("attack", STATIC, unit.attack, unit.batch)
            static = self._recorded.records.get(source.key)
            if not isinstance(static, UnitRecord) or static.tensor != record.tensor:
                raise RecordError(f"{unit.key} names another tensor than {source.key}")
        batch = batches_of(self._run.plan, unit)[0]
        image = tuple(self._run.load(batch)[0].shape[1:])
        if record.tensor.shape[1:] != image:  # checked before reading: it can fill a disk
            raise RecordError(
                f"{unit.key} has images {record.tensor.shape[1:]}, the dataset's are {image}"
            )
        return self._recorded.adversarial(record)

    def _outside(self, unit: Unit, record: UnitRecord, adversarial: Tensor) -> str | None:
        natural = torch.cat(
            [
                self._run.load(batch)[0][: batch.attacked].cpu()
                for batch in batches_of(self._run.plan, unit)
            ]
        )
        if adversarial.shape != natural.shape:
            return f"{unit.key}: {tuple(adversarial.shape)} for images of {tuple(natural.shape)}"
        excess = self._threat.check(adversarial, natural)
        outside = int((excess > 0).sum())
        if not outside:
            return self._unlike_used(unit, record, adversarial, natural)
        return (
            f"{unit.key}: {counted(outside, 'image')} {agreeing(outside, 'lie')} outside "
            f"{self._threat}, by up to {excess.max():.3g}"
        )

    def _unlike_used(
        self, unit: Unit, record: UnitRecord, adversarial: Tensor, natural: Tensor
    ) -> str | None:
        if not self._threat.eps:
            return None
        if record.used is None:
            reported = self._complete and unit.kind in ("attack", "challenge")
            return f"{unit.key} does not say which share of eps it uses" if reported else None
        used = (self._threat.distance(adversarial, natural) / self._threat.eps).tolist()
        if all(
            abs(share - recorded) <= CLOSE
            for share, recorded in zip(used, record.used, strict=True)
        ):
            return None
        return f"{unit.key}: the images use another share of eps than recorded"

    def _sources(self, unit: Unit, record: UnitRecord) -> str | None:
        _, sources = assembled(self._run, unit, batches_of(self._run.plan, unit)[0])
        return None if sources == record.sources else f"{unit.key} is assembled from other attacks"

    def _carried(self, unit: Unit, record: UnitRecord, adversarial: Tensor) -> str | None:
        """Compare the members that an attack left out with the ones that had fallen before it."""
        batch = batches_of(self._run.plan, unit)[0]
        broke = carried(self._run.spec, batch, unit, self._run.store.done)
        if tuple(source is not None for source in broke) != record.carried:
            return f"{unit.key} leaves out other members than those that had fallen before it"
        try:
            expected = carried_images(self._run, broke, self._run.load(batch)[0].cpu())
        except RecordError as error:
            return str(error)
        rows = torch.tensor(record.carried)
        if not torch.equal(adversarial[rows], expected[: batch.attacked][rows]):
            return f"{unit.key} has other images of members that had fallen before it"
        return None

    def _served(self, unit: Unit, record: UnitRecord, adversarial: Tensor | None) -> str | None:
        answers = submit_unit(self._run, unit, adversarial)
        served = tuple(prediction for answer in answers for prediction in answer.first.predictions)
        self._members[unit.key] = len(served)
        changed = [
            Finding(
                "served",
                unit.key,
                f"{unit.key}: member {member} is served {current}, recorded as {recorded}",
            )
            for member, (current, recorded) in enumerate(zip(served, record.served, strict=True))
            if current != recorded
        ]
        if changed:
            self._changed[unit.key] = changed
            logits = torch.cat([answer.first.logits for answer in answers])
            self._note_changes(unit, record, served, logits)
        self._keep(record, {"served": served, **self._fields(answers, record)})
        loss = mean_loss([answer.first for answer in answers], batches_of(self._run.plan, unit))
        if record.loss is None:
            unlike = self._complete and loss is not None
        else:
            unlike = not close(loss, record.loss)
        if unlike:
            return f"{unit.key}: the loss is not as recorded"
        problem = self._views_problem(unit, answers, record)
        return problem or trace_problem(unit, [answer.first for answer in answers], record.trace)

    def _note_changes(
        self, unit: Unit, record: UnitRecord, served: Sequence[int | None], logits: Tensor
    ) -> None:
        """Note whether the changed predictions of a unit are ties, and which side they favor."""
        batches = batches_of(self._run.plan, unit)
        members = [pair for each in batches for pair in zip(each.ids, each.labels, strict=True)]
        leaning = self._leaning.setdefault(unit.defense, Counter())
        answers = zip(record.served, served, members, strict=True)
        for member, (then, now, (id_, label)) in enumerate(answers):
            if then == now:
                continue
            leaning[id_] += (then == label) - (now == label)
            if unit.defense == STATIC and not is_tie(logits[member], then):
                problem = (
                    f"{unit.key}: member {member} is served {now}, recorded as {then}, and its "
                    "logits are no near tie: the static model gets other images or weights than "
                    "when it was recorded, or the record was edited"
                )
                self._clear.append(Finding("served", unit.key, problem))

    def _fields(self, answers: list[Answers], record: UnitRecord) -> dict[str, Any]:
        """Return the fields of the other answers; empty for older records, which have only one."""
        if not self._complete:
            return {}
        fields = answer_fields(answers)
        names = sorted(record.apart.keys() | fields["apart"].keys())
        values = (record.apart, fields["apart"])
        fields["apart"] = {name: max(apart.get(name, 0.0) for apart in values) for name in names}
        return fields

    def _keep(self, record: JournalRecord, fields: Mapping[str, Any]) -> None:
        """Keep the new values for `scored_otherwise` if any differs from the record."""
        if any(getattr(record, name) != value for name, value in fields.items()):
            self._again[record.key] = record.model_copy(update=dict(fields))

    def _views_problem(self, unit: Unit, answers: list[Answers], record: UnitRecord) -> str | None:
        """Compare views and draws with the record, only on the run's own platform."""
        if not (self._complete and self._same_place):
            return None
        fields = answer_fields(answers)
        for name in ("views", "draws"):
            if fields[name] != getattr(record, name):
                return f"{unit.key}: {name} are not those recorded"
        if fields["apart"].keys() != record.apart.keys():
            return f"{unit.key}: other answers lie apart than is recorded"
        return None

    def _probe(self, unit: Unit, record: ProbeRecord) -> Iterator[Finding]:
        run, origin = self._run, self._run.stream.origin(unit.defense, 0)
        batch = run.load(run.plan.batches[0])
        try:
            repeated = probe_record(
                origin, unit, run.subject, run.spec, batch, guard=run.guard, more=False
            )
        except InputError as error:  # it answered otherwise in the run
            yield Finding("probes", unit.key, f"{unit.key}: {error}")
            return
        older = record.calls is None and run.spec.schedule != "by-attack"
        if not older:
            kept = {name: getattr(repeated, name) for name in _PROBED}
            kept["gradient"] = comparable(record.gradient, repeated.gradient)
            # In the process of the run, a memory that copies share may be full already.
            kept["shares"] = repeated.shares or record.shares
            self._keep(record, kept)
        problem = self._probe_problem(unit, record, repeated, older=older)
        yield Finding("probes", unit.key, problem)
        if older or (record.shares is None and repeated.shares):
            reason = _OLDER_PROBE if older else _UNSEARCHED
            yield Finding("probes", unit.key, reason, skipped=True)

    def _probe_problem(
        self, unit: Unit, record: ProbeRecord, repeated: ProbeRecord, *, older: bool
    ) -> str | None:
        readings = (depends_on_batch, randomized, stateful)
        if any(reading(repeated) != reading(record) for reading in readings) or any(
            getattr(repeated, name) != getattr(record, name) for name in _COUNTED
        ):
            return f"{unit.key} is answered differently now"
        if record.shares is False and repeated.shares:
            return f"{unit.key}: copies share a memory now, recorded as none"
        return self._checks_problem(unit, record, record, repeated, older=older)

    def _certificate(self, unit: Unit, record: CertificateRecord) -> Finding:
        probed = self._recorded.records.get(Unit("probe", unit.defense, None, 0).key)
        if not isinstance(probed, ProbeRecord):
            problem = f"{unit.key} comes before the probe of its defense"
            return Finding("probes", unit.key, problem)
        repeated = certify(self._run, unit, more=False)
        gradient = comparable(record.gradient, repeated.gradient)
        self._keep(record, {"gradient": gradient, "huge_eps": repeated.huge_eps})
        return Finding("probes", unit.key, self._checks_problem(unit, probed, record, repeated))

    def _checks_problem(
        self,
        unit: Unit,
        probed: ProbeRecord,
        record: ProbeRecord | CertificateRecord,
        repeated: ProbeRecord | CertificateRecord,
        *,
        older: bool = False,
    ) -> str | None:
        """Compare what verdicts depend on: the certificate, its coarse errors and the huge eps."""
        then, now = (
            probed.model_copy(update={"gradient": gradient})
            for gradient in (record.gradient, comparable(record.gradient, repeated.gradient))
        )
        if certificate_of(then).state != certificate_of(now).state:
            return f"{unit.key} has another gradient certificate now"
        if over_large_steps(then) != over_large_steps(now):
            return f"{unit.key}: over large steps, the gradient has other errors than recorded"
        if older or self._huge_alike(record.huge_eps, repeated.huge_eps):
            return None
        said, found = map(described, (record.huge_eps, repeated.huge_eps))
        return f"{unit.key}: under the huge eps, {found} now, recorded as {said}"

    def _huge_alike(self, recorded: FollowUp | None, repeated: FollowUp | None) -> bool:
        if recorded is None or repeated is None:
            return recorded is repeated
        allowed = 0 if self._same_place else max(1, math.floor(TOLERATED * repeated.total))
        same = recorded.total == repeated.total
        return same and abs(recorded.correct - repeated.correct) <= allowed


def unit_seed_of(spec: EvaluationSpec, unit: Unit) -> int:
    """Return the seed that a unit's record must have."""
    if unit.kind in APART:
        return seed_of(spec.settings.seed, "probe")
    return unit_seed(spec, unit)
