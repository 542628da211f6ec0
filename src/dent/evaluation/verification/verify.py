"""Check a run folder as an outsider would, by recomputing whatever can be recomputed."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from dent.errors import DentError
from dent.evaluation.records.folder import RESULT, check_tensor, read_record
from dent.evaluation.records.naming import contradiction
from dent.evaluation.records.plan import Unit, make_plan, units
from dent.evaluation.records.spec import differences
from dent.evaluation.results.decision import left
from dent.evaluation.results.recorded_run import RecordedRun, load_run
from dent.evaluation.results.result import EvaluationResult
from dent.evaluation.results.verdict import RULES
from dent.evaluation.subject import Subject, describe
from dent.evaluation.verification.other_seeds import unknown_seed
from dent.evaluation.verification.reattack import Attacker, Reattack, Reattacked
from dent.evaluation.verification.resubmit import DROPPED, Finding, Resubmission, unit_seed_of
from dent.storage.canonical import Record, without_rulings, without_wording
from dent.storage.disk import is_there
from dent.storage.errors import RecordError
from dent.support.plural import agreeing, counted, first_few

_SHOWN = 20
_RESUBMITTED = ("tensors", "threat model", "served", "probes", "verdict")
"""The checks that submit the images again."""
_SUBJECT_CHECKS = ("subject", "plan", *_RESUBMITTED)
"""The checks that need the subject, in their order."""
OnUnit = Callable[[int, int], None]
"""Called with (units checked, units to check)."""


class Check(Record):
    """The outcome of one kind of check."""

    name: str
    state: Literal["passed", "failed", "not-run"]
    looked_at: int
    """Number of checked items."""
    problems: tuple[str, ...]
    """The first problems found, or why the check was not run."""

    @property
    def lacks_only_rulings(self) -> bool:
        """Whether it compared a result with the records, but not its rulings by other rules."""
        return self.name == "result" and self.state == "not-run" and self.looked_at > 0


class Verification(Record):
    """The outcome of all checks of a run folder."""

    schema_version: Literal[1] = 1
    status: Literal["verified", "failed", "incomplete"]
    """`incomplete`: nothing is wrong, but something could not be checked."""
    identity: str | None
    """Identity of the run; null if it could not be read."""
    attacks: Literal["not re-run", "some re-run", "all re-run"] = "not re-run"
    """Whether any attack was run again. If none was, `verified` covers only the records: their
    images were submitted again, but nobody checked that the attack finds these images."""
    reattacked: Reattacked | None = None
    """Result of running attacks again."""
    checks: tuple[Check, ...]

    @property
    def says(self) -> str:
        """The status in words, including what was not checked."""
        if self.status == "verified" and self.attacks == "not re-run":
            return "records verified, attacks not re-run"
        reattacked = self.reattacked
        if reattacked is None:
            return f"{self.status}, attacks {self.attacks}"
        return (
            f"{self.status}, {len(reattacked.units)} of {counted(reattacked.of, 'attack')} re-run"
        )

    @property
    def problems(self) -> tuple[str, ...]:
        """All problems that were found, with the names of their checks."""
        return tuple(
            f"{check.name}: {problem}"
            for check in self.checks
            if check.state == "failed"
            for problem in check.problems
        )


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
        return _conclude(None, [_check("records", 1, [str(error)])])
    checks = [
        _check("records", len(recorded.records) + 2, []),
        _check("identity", 1, list(_identity(recorded))),
        _check("names", len(recorded.run.spec.defenses), list(_names(recorded))),
        _check("seeds", len(recorded.records), list(_seeds(recorded))),
        _check("completeness", recorded.run.units, list(_completeness(recorded))),
        _result(recorded),
    ]
    if subject is None:
        checks.append(_stored(recorded))  # the check `tensors`, without the defenses
        reason = "the model and the dataset were not given"
        return _stop(recorded, checks, reattack, reason)
    mismatches = _subject(recorded, subject)
    checks.append(_check("subject", 1, mismatches))
    if mismatches:
        return _stop(recorded, checks, reattack, "the subject is not that of the record")
    plan_mismatches = _plan(recorded, subject)
    checks.append(_check("plan", len(recorded.plan.batches), plan_mismatches))
    if plan_mismatches:
        return _stop(recorded, checks, reattack, "the plan does not follow from the dataset")
    units_again = () if reattack is None else reattack.draw(recorded)
    outside = len(recorded.challenges)
    watch = _Counting(progress, len(recorded.records) + outside + len(units_again))
    checks += _resubmit(recorded, subject, watch)
    if reattack is None:
        return _conclude(recorded, checks)
    reattacked, check = _attack(recorded, subject, reattack, units_again, watch)
    return _conclude(recorded, [*checks, check], reattacked)


class _Counting:
    """A counter that reports how many units have been checked."""

    def __init__(self, progress: OnUnit | None, total: int) -> None:
        self._progress, self._done, self._total = progress, 0, total

    def one(self) -> None:
        """Count one more unit."""
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, self._total)


class _Tally:
    """The findings of the checks that submit the images again, by check."""

    def __init__(self) -> None:
        self._problems: dict[str, list[Finding]] = {name: [] for name in _RESUBMITTED}
        self._looked_at = dict.fromkeys(_RESUBMITTED, 0)
        self._skipped: dict[str, str] = {}

    def count(self, findings: Iterable[Finding]) -> None:
        """Add findings that each stand for one checked item."""
        for finding in findings:
            if finding.skipped:
                self._skipped[finding.check] = finding.problem or ""
                continue
            self._looked_at[finding.check] += 1
            self.add([finding])

    def add(self, findings: Iterable[Finding]) -> None:
        """Add the problems of items that were counted before."""
        for finding in findings:
            if finding.problem is not None:
                self._problems[finding.check].append(finding)

    def look_at(self, check: str, items: int) -> None:
        """Set the number of checked items of a check."""
        self._looked_at[check] = items

    def checks(self) -> Iterator[Check]:
        """Yield the outcome of each check."""
        skipped = dict(self._skipped)
        if "served" in skipped:
            skipped["verdict"] = skipped["served"]
        for name in _RESUBMITTED:
            looked_at, problems = self._looked_at[name], self._problems[name]
            if name in skipped and not problems:
                yield _not_run(name, skipped[name]).model_copy(update={"looked_at": looked_at})
            else:
                yield _check(name, looked_at, [finding.problem or "" for finding in problems])

    def failed_by(self, keys: Collection[str]) -> list[str]:
        """Return the names of the checks that any of these units fails."""
        return [
            name
            for name, findings in self._problems.items()
            if any(finding.unit in keys for finding in findings)
        ]


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
    not_run = (_not_run(name, reason) for name in later if name not in done)
    return _conclude(recorded, [*checks, *not_run])


def _names(recorded: RecordedRun) -> Iterator[str]:
    for defense in recorded.run.spec.defenses:
        problem = contradiction(defense)
        if problem is not None:
            yield problem


def _attack(
    recorded: RecordedRun,
    subject: Subject,
    reattack: Reattack,
    units_again: Sequence[Unit],
    watch: _Counting,
) -> tuple[Reattacked, Check]:
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
        return reattacked, _check("attacks", len(units_again), problems)
    not_run = Check(
        name="attacks",
        state="not-run",
        looked_at=len(reattacked.units),
        problems=tuple(first_few(reasons, _SHOWN)),
    )
    return reattacked, not_run


def _identity(recorded: RecordedRun) -> Iterator[str]:
    if recorded.run.identity != recorded.run.spec.identity:
        yield f"run.json says {recorded.run.identity}, its spec has {recorded.run.spec.identity}"


def _seeds(recorded: RecordedRun) -> Iterator[str]:
    for unit in units(recorded.run.spec, recorded.plan):
        record = recorded.records.get(unit.key)
        if record is not None and record.seed != unit_seed_of(recorded.run.spec, unit):
            yield f"{unit.key} was run with a seed that does not follow from the run's"
    for challenge in recorded.challenges:
        for entry in challenge.units:
            unit = Unit("challenge", entry.defense, entry.attack, entry.batch)
            if entry.seed != unit_seed_of(recorded.run.spec, unit):
                yield f"{unit.key} was run with a seed that does not follow from the run's"


def _completeness(recorded: RecordedRun) -> Iterator[str]:
    planned = sum(1 for _ in units(recorded.run.spec, recorded.plan))
    if recorded.run.units != planned:
        yield f"run.json says {counted(recorded.run.units, 'unit')}, the plan has {planned}"
    missing = len(left(recorded.run.spec, recorded.plan, recorded.records))
    if recorded.run.status == "complete" and missing:
        yield (
            f"run.json says that the run is complete, but {counted(missing, 'unit')} "
            f"{agreeing(missing, 'are')} missing"
        )


def _result(recorded: RecordedRun) -> Check:
    if not is_there(recorded.path / RESULT):
        return _not_run("result", f"there is no {RESULT} yet")
    try:
        stored = read_record(recorded.path / RESULT, EvaluationResult)
    except RecordError as error:
        return _check("result", 1, [str(error)])
    mismatches = _mismatches(stored, recorded)
    if mismatches and recorded.challenges:
        before = replace(recorded, challenges=recorded.challenges[:-1])
        if not _mismatches(stored, before):  # it ended before it wrote the result
            return _not_run(
                "result",
                f"{RESULT} is without the last challenge, by {recorded.challenges[-1].by}: repeat "
                "that `dent challenge` to have it written",
            )
    if mismatches and _is_of_a_part(stored, recorded):
        return _not_run(
            "result",
            f"{RESULT} is from before the last session, when {counted(stored.units_done, 'unit')} "
            f"of {len(recorded.records)} were recorded: resume the run to have it written",
        )
    if not mismatches and stored.rules != RULES:
        newer = ": upgrade torch-dent" if stored.rules > RULES else ""
        return _not_run(
            "result",
            f"its rulings are by rules {stored.rules}, and this version only knows rules {RULES}, "
            f"so it compared only counts and differences{newer}",
        ).model_copy(update={"looked_at": 1})
    problems = [f"{RESULT} does not follow from the records: {item}" for item in mismatches]
    return _check("result", 1, problems)


def _is_of_a_part(stored: EvaluationResult, recorded: RecordedRun) -> bool:
    """Return whether an unfinished run has worked on after its result was written."""
    return (
        recorded.run.status != "complete"
        and stored.status == "partial"
        and len(recorded.run.sessions) > len(stored.sessions)
    )


def _stored(recorded: RecordedRun) -> Check:
    """Compare the stored images with their digests."""
    refs, problems = recorded.kept(), []
    dropped = recorded.run.spec.settings.tensors == "drop"
    if not any(is_there(recorded.path / ref.file) for ref in refs):
        return _not_run("tensors", DROPPED if dropped else "the folder has no images")
    for ref in refs:
        try:
            check_tensor(recorded.path, ref)
        except RecordError as error:
            problems.append(str(error))
    if dropped and not problems:  # only those of challenges are kept
        return _not_run("tensors", DROPPED).model_copy(update={"looked_at": len(refs)})
    return _check("tensors", len(refs), problems)


def _mismatches(stored: EvaluationResult, recorded: RecordedRun) -> tuple[str, ...]:
    # Sentences are not compared, because every version words a result itself when it shows a run.
    # Rulings are not compared either if the version of the rules differs.
    if stored.status == "partial":
        stored = _without_views(stored)
    pair = tuple(without_wording(result.to_json()) for result in (stored, recorded.result))
    if stored.rules != recorded.result.rules:
        pair = tuple(without_rulings(result) for result in pair)
    return differences(*pair)


def _without_views(stored: EvaluationResult) -> EvaluationResult:
    """Leave out comparisons with views: older versions also made them for unfinished runs."""
    defenses = {
        name: defense.model_copy(update={"over_views": None})
        for name, defense in stored.defenses.items()
    }
    return stored.model_copy(update={"defenses": defenses})


def _subject(recorded: RecordedRun, subject: Subject) -> list[str]:
    spec = recorded.run.spec
    try:
        described = describe(subject, spec.settings)
    except DentError as error:
        return [str(error)]
    return list(differences(spec.newest.to_json(), described.to_json()))


def _plan(recorded: RecordedRun, subject: Subject) -> list[str]:
    plan = make_plan(recorded.run.spec.settings, subject.dataset)
    return [
        f"plan.json is not what the dataset gives: {item}"
        for item in differences(recorded.plan.to_json(), plan.to_json())
    ]


def _resubmit(recorded: RecordedRun, subject: Subject, watch: _Counting) -> Iterator[Check]:
    tally, resubmission = _Tally(), Resubmission(recorded, subject)
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
    tally.add(resubmission.too_many_changed())
    tally.add(resubmission.clearly_changed())
    tally.add(resubmission.one_sided())
    tally.add(resubmission.better_under_known_seeds())
    tally.add(resubmission.scored_otherwise())
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
        return _check("challenges", looked_at, failed + unlike)
    return _check("challenges", looked_at, unlike).model_copy(update={"state": "not-run"})


def _failed(recorded: RecordedRun, tally: _Tally) -> Iterator[str]:
    """Yield a sentence for each challenge with problems, with the checks that it fails."""
    for challenge in recorded.challenges:
        checks = tally.failed_by({unit.key for unit in challenge.units})
        if checks:
            yield f"the challenge by {challenge.by} fails: {', '.join(checks)}"


def _check(name: str, looked_at: int, problems: list[str]) -> Check:
    return Check(
        name=name,
        state="failed" if problems else "passed",
        looked_at=looked_at,
        problems=tuple(first_few(problems, _SHOWN)),
    )


def _not_run(name: str, reason: str) -> Check:
    return Check(name=name, state="not-run", looked_at=0, problems=(reason,))


def _rerun(reattacked: Reattacked | None) -> Literal["not re-run", "some re-run", "all re-run"]:
    if reattacked is None or (reattacked.of and not reattacked.units):
        return "not re-run"
    complete = reattacked.drawn == "all" and len(reattacked.units) == reattacked.of
    return "all re-run" if complete else "some re-run"


def _conclude(
    recorded: RecordedRun | None, checks: list[Check], reattacked: Reattacked | None = None
) -> Verification:
    states = {check.state for check in checks}
    status: Literal["verified", "failed", "incomplete"] = "verified"
    if "failed" in states:
        status = "failed"
    elif "not-run" in states:
        status = "incomplete"
    return Verification(
        status=status,
        identity=None if recorded is None else recorded.run.identity,
        attacks=_rerun(reattacked),
        reattacked=reattacked,
        checks=tuple(checks),
    )
