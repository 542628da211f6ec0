"""Submit the recorded images of a run again, and compare the answers."""

import math
import operator
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from scipy.stats import binomtest
from torch import Tensor

from dent.evaluation.engine.carry import carried
from dent.evaluation.engine.execute import (
    Batches,
    answer_fields,
    assembled,
    batches_of,
    carried_images,
    certify,
    open_run,
    submit_once,
    submit_unit,
    unit_seed,
)
from dent.evaluation.probe.unit import probe_record
from dent.evaluation.records.image_digest import digest_of
from dent.evaluation.records.plan import APART, Unit, seed_of, units
from dent.evaluation.records.provenance import new_session
from dent.evaluation.records.readings import depends, randomized, stateful
from dent.evaluation.records.schema import (
    CertificateRecord,
    ChallengeRecord,
    FollowUp,
    GradientRecord,
    JournalRecord,
    ProbeRecord,
    Trace,
    UnitRecord,
)
from dent.evaluation.records.spec import STATIC, EvaluationSpec
from dent.evaluation.results.diagnostics import certificate_of, over_large_steps
from dent.evaluation.results.recorded_run import RecordedRun
from dent.evaluation.results.result import DefenseResult, EvaluationResult
from dent.evaluation.results.tells import loss_of
from dent.evaluation.subject import Prepared, Subject, threat_of
from dent.evaluation.submission.submission import Submission, merge_traces
from dent.evaluation.submission.submitter import Answers
from dent.storage.errors import RecordError
from dent.support.devices import device_of
from dent.support.plural import agreeing, counted
from dent.support.predictions import is_prediction

TOLERATED = 0.01
"""Share of members whose prediction may change on other hardware or software, because of near ties.
It limits the whole run, each unit (plus one member), every worst case, and every difference."""
TIE = 1e-3
"""Share of its largest logit by which the static model may prefer another class than the recorded
one on other hardware or software. Rounding in float32 changed logits of the bundled models by up to
1.3e-6 of the largest one, and rounding of their layers to TF32 by up to 3.4e-4, at most twice of
which adds up in a margin. Defenses that adapt amplify rounding too much for such a limit."""
ONE_SIDED = 0.001
"""Significance level of the test whether changed predictions favor a defense, over all defenses."""
_CLOSE = 1e-3
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
    """The outcome of one check of one unit.

    Attributes:
        check: Name of the check.
        problem: The problem, or None.
        skipped: Whether the check could not run. If so, `problem` says why.
    """

    check: str
    problem: str | None = None
    skipped: bool = False


class _ReadOnly:
    """A recorded run as a read-only store for running units."""

    def __init__(self, recorded: RecordedRun) -> None:
        self._recorded = recorded

    @property
    def done(self) -> Mapping[str, JournalRecord]:
        return self._recorded.records

    def put(self, record: JournalRecord, adversarial: Tensor | None = None) -> None:
        raise RecordError(f"{self._recorded.path} is only being checked, not written to")

    def adversarial(self, record: UnitRecord) -> Tensor:
        return self._recorded.adversarial(record)

    def forget(self, record: UnitRecord) -> None:
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
        self._run = open_run(Prepared(subject, spec, plan), _ReadOnly(recorded))
        self._batches = Batches(self._run)
        self._threat = threat_of(spec.threat)
        self._same_place = _same_place(recorded, subject)
        # Older versions submitted a batch in one way only, and never ran by attack.
        self._complete = spec.schedule == "by-attack" or any(
            isinstance(record, ProbeRecord) and record.calls is not None
            for record in recorded.records.values()
        )
        self._changed: dict[str, list[str]] = {}
        self._members: dict[str, int] = {}
        self._clear: list[str] = []
        # By defense and sample id: how often it was correct only as recorded, minus only now.
        self._leaning: dict[str, Counter[int]] = {}
        self._again: dict[str, JournalRecord] = {}

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
        In a new process, this memory is empty until the first natural images are submitted.
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
                served = submit_once(run, unit, adversarial, self._batches).predictions
                changed = sum(map(operator.ne, served, record.served))
                problem = None
                if changed > (0 if self._same_place else 1 + math.ceil(TOLERATED * batch.size)):
                    problem = (
                        f"{unit.key}: {counted(changed, 'member')} {agreeing(changed, 'are')} "
                        "served otherwise before the defense has seen any natural image"
                    )
                yield Finding("served", problem)

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
                yield Finding(check, DROPPED if dropped else str(error), skipped=dropped)
            return
        if adversarial is not None:
            yield Finding("tensors")
            yield Finding("threat model", self._outside(unit, record, adversarial))
            if unit.kind == "assembled":
                yield Finding("tensors", self._sources(unit, record))
            if record.carried is not None:
                yield Finding("tensors", self._carried(unit, record, adversarial))
        yield Finding("served", self._served(unit, record, adversarial))
        if not self._complete:
            yield Finding("served", _ONE_ANSWER, skipped=True)

    def too_many_changed(self) -> list[str]:
        """Return the changed predictions that are problems.

        On the run's own platform, these are all. Elsewhere, they are all if more than `TOLERATED`
        changed in the run, and otherwise only the predictions of units with too many changes.
        """
        changed = [problem for problems in self._changed.values() for problem in problems]
        if self._same_place or len(changed) > TOLERATED * sum(self._members.values()):
            return changed
        return [
            problem
            for key, problems in self._changed.items()
            if len(problems) > 1 + math.ceil(TOLERATED * self._members[key])
            for problem in problems
        ]

    def clearly_changed(self) -> list[str]:
        """Return the changed predictions of the static model that no rounding explains.

        It does not adapt and draws nothing, so elsewhere only near ties may turn out differently.
        """
        return [] if self._same_place else self._clear

    def one_sided(self) -> list[str]:
        """Return the defenses that the changed predictions favor too often to be rounding.

        Honest changes go both ways: the same images are submitted twice. If attacks chose them by
        the first answers, more members are correct only now, which does not favor the record.
        """
        return [] if self._same_place else list(_favored(self._leaning))

    def scored_otherwise(self) -> list[str]:
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
        return list(_unlike(recorded.result, again.result))

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
        image = tuple(self._batches.load(batch)[0].shape[1:])
        if record.tensor.shape[1:] != image:  # checked before reading: it can fill a disk
            raise RecordError(
                f"{unit.key} has images {record.tensor.shape[1:]}, the dataset's are {image}"
            )
        return self._recorded.adversarial(record)

    def _outside(self, unit: Unit, record: UnitRecord, adversarial: Tensor) -> str | None:
        natural = torch.cat(
            [
                self._batches.load(batch)[0][: batch.attacked].cpu()
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
            abs(share - recorded) <= _CLOSE
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
            expected = carried_images(self._run, broke, self._batches.load(batch)[0].cpu())
        except RecordError as error:
            return str(error)
        rows = torch.tensor(record.carried)
        if not torch.equal(adversarial[rows], expected[: batch.attacked][rows]):
            return f"{unit.key} has other images of members that had fallen before it"
        return None

    def _served(self, unit: Unit, record: UnitRecord, adversarial: Tensor | None) -> str | None:
        answers = submit_unit(self._run, unit, adversarial, self._batches)
        served = tuple(prediction for answer in answers for prediction in answer.first.predictions)
        self._members[unit.key] = len(served)
        changed = [
            f"{unit.key}: member {member} is served {current}, recorded as {recorded}"
            for member, (current, recorded) in enumerate(zip(served, record.served, strict=True))
            if current != recorded
        ]
        if changed:
            self._changed[unit.key] = changed
            logits = torch.cat([answer.first.logits for answer in answers])
            self._note_changes(unit, record, served, logits)
        self._keep(record, {"served": served, **self._fields(answers, record)})
        loss = loss_of([answer.first for answer in answers], batches_of(self._run.plan, unit))
        if record.loss is None:
            unlike = self._complete and loss is not None
        else:
            unlike = not _close(loss, record.loss)
        if unlike:
            return f"{unit.key}: the loss is not as recorded"
        problem = self._views_problem(unit, answers, record)
        return problem or _trace_problem(unit, [answer.first for answer in answers], record.trace)

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
            if unit.defense == STATIC and not _is_tie(logits[member], then):
                self._clear.append(
                    f"{unit.key}: member {member} is served {now}, recorded as {then}, and its "
                    "logits are no near tie: the static model gets other images or weights than "
                    "when it was recorded, or the record was edited"
                )

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
        batch = self._batches.load(run.plan.batches[0])
        repeated = probe_record(
            origin, unit, run.subject, run.spec, batch, guard=run.guard, more=False
        )
        older = record.calls is None and run.spec.schedule != "by-attack"
        if not older:
            kept = {name: getattr(repeated, name) for name in _PROBED}
            kept["gradient"] = _comparable(record.gradient, repeated.gradient)
            # In the process of the run, a memory that copies share may be full already.
            kept["shares"] = repeated.shares or record.shares
            self._keep(record, kept)
        yield Finding("probes", self._probe_problem(unit, record, repeated, older=older))
        if older or (record.shares is None and repeated.shares):
            yield Finding("probes", _OLDER_PROBE if older else _UNSEARCHED, skipped=True)

    def _probe_problem(
        self, unit: Unit, record: ProbeRecord, repeated: ProbeRecord, *, older: bool
    ) -> str | None:
        readings = (depends, randomized, stateful)
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
            return Finding("probes", f"{unit.key} comes before the probe of its defense")
        repeated = certify(self._run, unit, self._batches, more=False)
        gradient = _comparable(record.gradient, repeated.gradient)
        self._keep(record, {"gradient": gradient, "huge_eps": repeated.huge_eps})
        return Finding("probes", self._checks_problem(unit, probed, record, repeated))

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
            for gradient in (record.gradient, _comparable(record.gradient, repeated.gradient))
        )
        if certificate_of(then).state != certificate_of(now).state:
            return f"{unit.key} has another gradient certificate now"
        if over_large_steps(then) != over_large_steps(now):
            return f"{unit.key}: over large steps, the gradient has other errors than recorded"
        if older or self._huge_alike(record.huge_eps, repeated.huge_eps):
            return None
        said, found = map(_said, (record.huge_eps, repeated.huge_eps))
        return f"{unit.key}: under the huge eps, {found} now, recorded as {said}"

    def _huge_alike(self, recorded: FollowUp | None, repeated: FollowUp | None) -> bool:
        if recorded is None or repeated is None:
            return recorded is repeated
        allowed = 0 if self._same_place else max(1, math.floor(TOLERATED * repeated.total))
        same = recorded.total == repeated.total
        return same and abs(recorded.correct - repeated.correct) <= allowed


def _comparable(
    recorded: GradientRecord | None, repeated: GradientRecord | None
) -> GradientRecord | None:
    """Return the repeated check without coarse errors that the recorded check does not have."""
    if recorded is None or repeated is None or len(recorded.points) != len(repeated.points):
        return repeated
    points = tuple(
        now.model_copy(update={"coarse": None}) if then.coarse is None else now
        for then, now in zip(recorded.points, repeated.points, strict=True)
    )
    return repeated.model_copy(update={"points": points})


def _said(huge: FollowUp | None) -> str:
    if huge is None:
        return "nothing was attacked"
    members = counted(huge.total, "member")
    return f"{huge.correct} of {members} {agreeing(huge.correct, 'are')} correct"


def _unlike(recorded: EvaluationResult, again: EvaluationResult) -> Iterator[str]:
    """Yield how two results of a run differ: counts beyond the tolerance, and any ruling."""
    # A run that stopped early, but would not stop now, has no ruling yet.
    ruled = recorded.status == again.status
    for name, then in recorded.defenses.items():
        now = again.defenses[name]
        for where, before, after in (
            ("in the worst case", then.worst.served, now.worst.served),
            ("without an attack", then.natural, now.natural),
        ):
            allowed = max(1, math.floor(TOLERATED * before.total))
            if before.total != after.total or abs(before.correct - after.correct) > allowed:
                yield (
                    f"{name}: {before.correct} of {counted(before.total, 'member')} "
                    f"{agreeing(before.correct, 'are')} correct {where} as recorded, "
                    f"{after.correct} of {after.total} as submitted again"
                )
        moved = _moved(then, now)
        if moved is not None:
            yield f"{name}: {moved}"
        ruling, ruling_now = (_ruling(each, ruled=ruled) for each in (then, now))
        if ruling != ruling_now:
            yield f"{name}: {ruling} as recorded, {ruling_now} as submitted again"


def _moved(then: DefenseResult, now: DefenseResult) -> str | None:
    """Return a message if the difference to the static model changes by more than is tolerated.

    Each accuracy may change as well, but not so that their changes add up.
    """
    before, after = then.difference, now.difference
    if before is None or after is None or before.value is None or after.value is None:
        return None
    allowed = max(1, math.floor(TOLERATED * before.total))
    if abs(after.value - before.value) * before.total <= allowed + _CLOSE:
        return None
    return (
        f"the difference to the static model is {100 * before.value:+.2f} points as recorded, "
        f"{100 * after.value:+.2f} as submitted again, which is more than "
        f"{counted(allowed, 'member')} of {before.total} apart"
    )


def _is_tie(logits: Tensor, recorded: int | None) -> bool:
    """Return whether a recorded class may be predicted from these logits after some rounding."""
    if recorded is None or recorded >= len(logits) or not bool(is_prediction(logits)):
        return False
    behind = logits.max() - logits[recorded]
    return bool(behind <= TIE * logits[logits.isfinite()].abs().max())


def _favored(leaning: Mapping[str, Mapping[int, int]]) -> Iterator[str]:
    """Yield the defenses with more samples that are correct as recorded than now, by a sign test.

    A sample counts once, because its predictions under different attacks are not independent.
    """
    others = {name: counts for name, counts in leaning.items() if name != STATIC}
    for name, counts in others.items():
        recorded, now = (sum(sign * count > 0 for count in counts.values()) for sign in (1, -1))
        if not recorded:
            continue
        p_value = float(binomtest(recorded, recorded + now, alternative="greater").pvalue)
        if p_value < ONE_SIDED / len(others):
            yield (
                f"{name}: of {counted(recorded + now, 'sample')} with other predictions, "
                f"{recorded} are correct more often as recorded, and only {now} as submitted again "
                f"(p = {p_value:.2g}): rounding would change them in both directions"
            )


def _ruling(result: DefenseResult, *, ruled: bool) -> str:
    """Return the ruling in words; without a verdict, on which side of 0 the difference lies."""
    if ruled and result.verdict is not None:
        return f"the verdict is {result.verdict.ruling}"
    if result.difference is None or result.difference.interval is None:
        return "there is no difference"
    low, high = result.difference.interval
    side = "above" if low > 0 else "below" if high < 0 else "around"
    return f"the interval of the difference lies {side} 0"


def unit_seed_of(spec: EvaluationSpec, unit: Unit) -> int:
    """Return the seed that a unit's record must have."""
    if unit.kind in APART:
        return seed_of(spec.settings.seed, "probe")
    return unit_seed(spec, unit)


def _trace_problem(unit: Unit, answers: list[Submission], recorded: Trace) -> str | None:
    trace = merge_traces([answer.trace for answer in answers])
    if (trace.rows, trace.status) != (recorded.rows, recorded.status):
        return f"{unit.key}: rows or statuses of the adaptation are not those recorded"
    for name, values, recorded_values in (
        ("entropy", _flat(trace.entropy), _flat(recorded.entropy)),
        ("sigma", _flat(trace.sigma), _flat(recorded.sigma)),
        ("sigma by step", _flat(trace.sigma_by_step), _flat(recorded.sigma_by_step)),
    ):
        if name == "sigma by step" and recorded.sigma_by_step is None:
            continue  # recorded before defenses reported it
        if len(values) != len(recorded_values):
            return f"{unit.key}: {name} has another length than recorded"
        pairs = zip(values, recorded_values, strict=True)
        if not all(_close(a, b) for a, b in pairs):
            return f"{unit.key}: {name} is not as recorded"
    return None


def _close(first: float | None, second: float) -> bool:
    return first is not None and math.isclose(first, second, rel_tol=_CLOSE, abs_tol=_CLOSE)


def _flat(values: Sequence[float | Sequence[float]] | None) -> list[float]:
    """Return all numbers of a trace's entry, in order; empty if it has none."""
    rows = [[entry] if isinstance(entry, float) else entry for entry in values or ()]
    return [value for row in rows for value in row]


def _same_place(recorded: RecordedRun, subject: Subject) -> bool:
    """Return whether the whole run used the software, device and threads of this process."""
    current = new_session(device_of(subject.model))
    return all(
        (session.versions, session.device, session.threads)
        == (current.versions, current.device, current.threads)
        for session in (
            *recorded.run.sessions,
            *(challenge.session for challenge in recorded.challenges),
        )
    )
