"""Check a run folder as an outsider would, by recomputing whatever can be recomputed."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from dent.errors import DentError
from dent.evaluation.records.plan import Unit, make_plan, units
from dent.evaluation.records.spec import EvaluationSpec, differences
from dent.evaluation.results.recorded_run import RecordedRun, load_run
from dent.evaluation.subject import Subject, describe
from dent.evaluation.verification.findings import RESUBMITTED, FindingTally
from dent.evaluation.verification.other_seeds import unknown_seed
from dent.evaluation.verification.outcome import (
    Check,
    Verification,
    conclude,
    not_run,
    outcome_of,
)
from dent.evaluation.verification.reattack import Attacker, Reattack, Reattacked
from dent.evaluation.verification.record_checks import check_records, check_stored_images
from dent.evaluation.verification.resubmit import Resubmission
from dent.storage.errors import RecordError

_SUBJECT_CHECKS = ("subject", "plan", *RESUBMITTED)
"""The checks that need the subject, in their order."""
OnUnit = Callable[[int, int], None]
"""Called with (units checked, units to check)."""


def verify(
    path: Path,
    subject: Subject | None = None,
    *,
    progress: OnUnit | None = None,
    reattack: Reattack | None = None,
) -> Verification:
    """Check the records of a run, and repeat what can be repeated. The folder is not changed.

    The following is always checked: checksums, digests (also those of the stored images), identity,
    names, seeds, the plan against the journal, and that `result.json` follows from the records.
    With the subject, these are checked as well:

    - The model, dataset, defenses and attacks are as recorded, and the plan follows from the
      dataset.
    - Every adversarial image lies within the threat model, in float64.
    - Every batch, submitted again, gets the recorded predictions.
    - The probes find what they found before, including the gradient certificate and the huge eps.
    - If the run is scored with the new answers, no ruling changes, and no worst case and no
      difference changes by more than the tolerance. Elsewhere than on the run's platform, the
      static model changes only near ties, and changes do not all favor a defense.

    What an older version did not record cannot be checked. Its checks are `not-run`.

    Some records can only be checked by new attacks: what the attacks found, claimed and cost, and
    the extra attacks of the full diagnostics. With `reattack`, attacks run again from their
    recorded seeds. On the platform of the run, their results must be equal, bit for bit. Elsewhere,
    a paired test compares which members are still correct.

    Args:
        path: The run folder.
        subject: The evaluated objects, as for another evaluation.
        progress: Called after every unit.
        reattack: The attacks to run again; none if None.
    """
    try:
        recorded = load_run(Path(path))
    except RecordError as error:
        return conclude(None, [outcome_of("records", 1, [str(error)])])
    checks = check_records(recorded)
    if subject is None:
        checks.append(check_stored_images(recorded))  # the check `tensors`, without the defenses
        reason = "the model and the dataset were not given"
        return _stop(recorded, checks, reattack, reason)
    mismatches = _subject(recorded, subject)
    checks.append(outcome_of("subject", 1, mismatches))
    if mismatches:
        return _stop(recorded, checks, reattack, "the subject is not that of the record")
    plan_mismatches = _plan(recorded, subject)
    checks.append(outcome_of("plan", len(recorded.plan.batches), plan_mismatches))
    if plan_mismatches:
        return _stop(recorded, checks, reattack, "the plan does not follow from the dataset")
    units_again = () if reattack is None else reattack.draw(recorded)
    outside = len(recorded.challenges)
    watch = _Counting(progress, len(recorded.records) + outside + len(units_again))
    checks += _resubmit(recorded, subject, watch)
    if reattack is None:
        return conclude(recorded, checks)
    reattacked, check = _attack(recorded, subject, reattack, units_again, watch)
    return conclude(recorded, [*checks, check], reattacked)


class _Counting:
    """A counter that reports how many units have been checked."""

    def __init__(self, progress: OnUnit | None, total: int) -> None:
        self._progress, self._done, self._total = progress, 0, total

    def one(self) -> None:
        """Count one more unit."""
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, self._total)


def _stop(
    recorded: RecordedRun, checks: list[Check], reattack: Reattack | None, reason: str
) -> Verification:
    """Return the outcome of the checks so far. All later checks are not run."""
    later = (
        *_SUBJECT_CHECKS,
        *(["challenges"] if recorded.challenges else []),
        *(["attacks"] if reattack is not None else []),
    )
    done = {check.name for check in checks}
    return conclude(
        recorded, [*checks, *(not_run(name, reason) for name in later if name not in done)]
    )


def _attack(
    recorded: RecordedRun,
    subject: Subject,
    reattack: Reattack,
    units_again: Sequence[Unit],
    watch: _Counting,
) -> tuple[Reattacked, Check]:
    """Run attacks again, and return the result and the check `attacks`."""
    attacker = Attacker(recorded, subject, unknown_seed(reattack.nonce, recorded.run.identity))
    unread: list[str] = []
    for unit in units_again:
        try:
            attacker.check(unit)
        except RecordError as error:  # it builds on images of earlier attacks
            unread.append(f"{unit.key} cannot be attacked again: {error}")
        watch.one()
    reattacked = attacker.conclude(reattack)
    dropped = recorded.run.spec.settings.tensors == "drop"
    problems = attacker.problems(reattacked) + ([] if dropped else unread)
    reasons = attacker.weak(reattacked) + unread
    if problems or not reasons:
        return reattacked, outcome_of("attacks", len(units_again), problems)
    return reattacked, not_run("attacks", *reasons, looked_at=len(reattacked.units))


def _subject(recorded: RecordedRun, subject: Subject) -> list[str]:
    spec = recorded.run.spec
    try:
        described = describe(subject, spec.settings)
    except DentError as error:
        return [str(error)]
    described = _in_order(described, [attack.name for attack in spec.attacks])
    return list(differences(spec.newest.to_json(), described.to_json()))


def _in_order(spec: EvaluationSpec, names: Sequence[str]) -> EvaluationSpec:
    """Return an evaluation with its attacks in this order, which older versions chose otherwise."""
    places = {name: place for place, name in enumerate(names)}
    attacks = sorted(spec.attacks, key=lambda attack: places.get(attack.name, len(places)))
    return spec.model_copy(update={"attacks": tuple(attacks)})


def _plan(recorded: RecordedRun, subject: Subject) -> list[str]:
    plan = make_plan(recorded.run.spec.settings, subject.dataset)
    return [
        f"plan.json is not what the dataset gives: {item}"
        for item in differences(recorded.plan.to_json(), plan.to_json())
    ]


def _resubmit(recorded: RecordedRun, subject: Subject, watch: _Counting) -> Iterator[Check]:
    """Submit every unit and challenge again, and yield the checks in `RESUBMITTED`.

    If there are challenges, the check `challenges` follows.
    """
    tally, resubmission = FindingTally(), Resubmission(recorded, subject)
    recorded_units: list[Unit] = [
        unit for unit in units(recorded.run.spec, recorded.plan) if unit.key in recorded.records
    ]
    tally.count(resubmission.check_first())
    for unit in recorded_units:
        tally.count(resubmission.check(unit))
        watch.one()
    for challenge in recorded.challenges:
        tally.count(resubmission.check_challenge(challenge))
        watch.one()
    tally.add(resubmission.problems_of_changes())
    tally.look_at("verdict", len(recorded.run.spec.defenses))
    yield from tally.checks()
    if recorded.challenges:
        failed = list(_failed(recorded, tally))
        yield _challenges(recorded, resubmission, failed)


def _challenges(recorded: RecordedRun, resubmission: Resubmission, failed: list[str]) -> Check:
    looked_at = len(recorded.challenges)
    unlike = [
        problem
        for challenge in recorded.challenges
        if (problem := resubmission.unlike_digest(challenge)) is not None
    ]
    if failed or not unlike:
        return outcome_of("challenges", looked_at, failed + unlike)
    return not_run("challenges", *unlike, looked_at=looked_at)


def _failed(recorded: RecordedRun, tally: FindingTally) -> Iterator[str]:
    """Yield a sentence for each challenge with problems, with the checks that it fails."""
    for challenge in recorded.challenges:
        checks = tally.failed_by({unit.key for unit in challenge.units})
        if checks:
            yield f"the challenge by {challenge.by} fails: {', '.join(checks)}"
