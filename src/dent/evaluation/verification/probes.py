"""Repeat the probes of the defenses of a run, and compare what verdicts depend on."""

import math
from collections.abc import Callable, Iterator
from typing import Final

from dent.errors import InputError
from dent.evaluation.engine.context import RunContext
from dent.evaluation.engine.execute import certify
from dent.evaluation.probe.unit import probe_record
from dent.evaluation.records.plan import Unit
from dent.evaluation.records.probe_answers import (
    depends_on_batch,
    randomized,
    stateful,
    turns,
)
from dent.evaluation.records.schema import CertificateRecord, FollowUp, ProbeRecord
from dent.evaluation.results.certificate import (
    certificate_of,
    further_attack,
    over_large_steps,
)
from dent.evaluation.results.recorded_run import RecordedRun
from dent.evaluation.submission.repeated import TOLERATED
from dent.evaluation.verification.changed_answers import ChangedAnswers
from dent.evaluation.verification.findings import Finding
from dent.evaluation.verification.tolerance import comparable, described

_COUNTED: Final = ("rows", "probabilities", "gradient_rows", "zero_gradients")
"""Fields of a probe whose numbers must be those on record."""
_PROBED: Final = (
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
_OLDER_PROBE: Final = "an older version recorded only some fields of the probes"
_UNSEARCHED: Final = (
    "an older version did not look for memory that copies share, and there is some now"
)
_FEWER_POINTS: Final = (
    "an older version compared the gradient less often, and it is certified otherwise now"
)


class RepeatedProbes:
    """A checker of the probes of a run.

    Args:
        run: The run, with its records as a read-only store.
        recorded: The run as it is recorded.
        changes: Gets the new values.
        same_place: Whether software and kind of device are the run's own.
    """

    def __init__(
        self,
        run: RunContext,
        recorded: RecordedRun,
        changes: ChangedAnswers,
        *,
        same_place: bool,
    ) -> None:
        self._run = run
        self._recorded = recorded
        self._changes = changes
        self._same_place = same_place

    def probe(self, unit: Unit, record: ProbeRecord) -> Iterator[Finding]:
        """Repeat the probe of a defense."""
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
            self._changes.keep(record, kept)
        problem = self._probe_problem(unit, record, repeated, older=older)
        yield Finding("probes", unit.key, problem)
        if older or (record.shares is None and repeated.shares):
            reason = _OLDER_PROBE if older else _UNSEARCHED
            yield Finding("probes", unit.key, reason, skipped=True)
        yield from _certified_less(unit, record, record, repeated)

    def _probe_problem(
        self, unit: Unit, record: ProbeRecord, repeated: ProbeRecord, *, older: bool
    ) -> str | None:
        readings: list[Callable[[ProbeRecord], object]] = [depends_on_batch, randomized, stateful]
        if not older:
            readings += [_copied, turns]
        if any(reading(repeated) != reading(record) for reading in readings) or any(
            getattr(repeated, name) != getattr(record, name) for name in _COUNTED
        ):
            return f"{unit.key} is answered differently now"
        if record.shares is False and repeated.shares:
            return f"{unit.key}: copies share a memory now, recorded as none"
        return self._checks_problem(unit, record, record, repeated, older=older)

    def certificate(self, unit: Unit, record: CertificateRecord) -> Iterator[Finding]:
        """Repeat the certificate of a defense, which its run made after the attacks."""
        probed = self._recorded.records.get(Unit("probe", unit.defense, None, 0).key)
        if not isinstance(probed, ProbeRecord):
            problem = f"{unit.key} comes before the probe of its defense"
            yield Finding("probes", unit.key, problem)
            return
        repeated = certify(self._run, unit, more=False)
        gradient = comparable(record.gradient, repeated.gradient)
        self._changes.keep(record, {"gradient": gradient, "huge_eps": repeated.huge_eps})
        yield Finding("probes", unit.key, self._checks_problem(unit, probed, record, repeated))
        yield from _certified_less(unit, probed, record, repeated)

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
        if _rung(then) != _rung(now):
            return f"{unit.key}: the checked gradient is {_rung(now)}, recorded as {_rung(then)}"
        if over_large_steps(then) != over_large_steps(now):
            return f"{unit.key}: over large steps, the gradient has other errors than recorded"
        further = further_attack(then)
        if further is not None and not self._alike(further, further_attack(now)):
            said, found = map(described, (further, further_attack(now)))
            return (
                f"{unit.key}: under an attack toward every class, {found} now, recorded as {said}"
            )
        if older or self._alike(record.huge_eps, repeated.huge_eps):
            return None
        said, found = map(described, (record.huge_eps, repeated.huge_eps))
        return f"{unit.key}: under the huge eps, {found} now, recorded as {said}"

    def _alike(self, recorded: FollowUp | None, repeated: FollowUp | None) -> bool:
        if recorded is None or repeated is None:
            return recorded is repeated
        allowed = 0 if self._same_place else max(1, math.floor(TOLERATED * repeated.total))
        same = recorded.total == repeated.total
        return same and abs(recorded.correct - repeated.correct) <= allowed


def _copied(probe: ProbeRecord) -> tuple[bool, bool]:
    """Return whether a copy of the defense was queried, and whether it could be copied."""
    return probe.calls is not None, probe.uncopied is None


def _rung(probe: ProbeRecord) -> str | None:
    """Return the name of the checked gradient; None if none was checked."""
    return None if probe.gradient is None else probe.gradient.rung


def _certified_less(
    unit: Unit,
    probed: ProbeRecord,
    record: ProbeRecord | CertificateRecord,
    repeated: ProbeRecord | CertificateRecord,
) -> Iterator[Finding]:
    """Yield that the recorded gradient check is smaller than today's, if that changes its outcome.

    An older version, or somebody who removed what fails, leaves such a record.
    """
    if record.gradient is None or repeated.gradient is None:
        return
    whole, compared = (
        probed.model_copy(update={"gradient": gradient})
        for gradient in (repeated.gradient, comparable(record.gradient, repeated.gradient))
    )
    if certificate_of(whole).state != certificate_of(compared).state:
        yield Finding("probes", unit.key, _FEWER_POINTS, skipped=True)
