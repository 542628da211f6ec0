"""Check a run folder as a stranger would: nothing in it is taken at its word that can be redone."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from dent.errors import DentError
from dent.evaluation.canonical import Record, without_wording
from dent.evaluation.errors import RecordError
from dent.evaluation.folder import RESULT, read_record
from dent.evaluation.plan import Unit, make_plan, units
from dent.evaluation.reading import RecordedRun, load_run
from dent.evaluation.resubmit import Finding, Resubmission, unit_seed_of
from dent.evaluation.result import EvaluationResult
from dent.evaluation.spec import differences
from dent.evaluation.subject import Subject, describe

_SHOWN = 20
_WITH_SUBJECT = ("subject", "plan", "tensors", "threat model", "served", "probes")
Watch = Callable[[int, int], None]
"""Called with (units checked, units recorded)."""


class Check(Record):
    """One kind of thing that was checked."""

    name: str
    state: Literal["passed", "failed", "not-run"]
    looked_at: int
    """How many things were."""
    problems: tuple[str, ...]
    """What was found wrong, the first of many; or why it was not run."""


class Verification(Record):
    """What checking a run folder found."""

    schema_version: Literal[1] = 1
    status: Literal["verified", "failed", "incomplete"]
    """`incomplete`: nothing is wrong, but something could not be checked."""
    identity: str | None
    """Of the run; null where not even that could be read."""
    checks: tuple[Check, ...]

    @property
    def problems(self) -> tuple[str, ...]:
        """All that was found wrong."""
        return tuple(
            f"{check.name}: {problem}"
            for check in self.checks
            if check.state == "failed"
            for problem in check.problems
        )


def verify(
    path: Path, subject: Subject | None = None, *, progress: Watch | None = None
) -> Verification:
    """Check the records of a run, and redo what can be redone. Nothing in the folder is written.

    Always: checksums, digests, identity, the plan against the journal, and that `result.json`
    follows from the records. With the subject also: that model, dataset, defenses and attacks are
    those of the record; that the plan follows from the dataset; that every adversarial image lies
    in the threat model, in float64; that every batch, submitted again, is served as recorded; and
    that the probes, the gradient certificate among them, find again what they found.

    What cannot be redone without attacking again is what the attacks claimed, what they cost, and
    the extra attacks of the full diagnostics.

    Args:
        path: The run folder.
        subject: What was evaluated, as it would be evaluated again.
        progress: Called after every unit.
    """
    try:
        recorded = load_run(Path(path))
    except RecordError as error:
        return _conclude(None, [_check("records", 1, [str(error)])])
    checks = [
        _check("records", len(recorded.records) + 2, []),
        _check("identity", 1, list(_identity(recorded))),
        _check("seeds", len(recorded.records), list(_seeds(recorded))),
        _check("completeness", recorded.run.units, list(_completeness(recorded))),
        _result(recorded),
    ]
    if subject is None:
        return _stop(recorded, checks, 0, "the model and the dataset were not given")
    others = _subject(recorded, subject)
    checks.append(_check("subject", 1, others))
    if others:
        return _stop(recorded, checks, 1, "the subject is not that of the record")
    moved = _plan(recorded, subject)
    checks.append(_check("plan", len(recorded.plan.batches), moved))
    if moved:
        return _stop(recorded, checks, 2, "the plan does not follow from the dataset")
    return _conclude(recorded, [*checks, *_resubmit(recorded, subject, progress)])


def _stop(recorded: RecordedRun, checks: list[Check], at: int, why: str) -> Verification:
    return _conclude(recorded, [*checks, *(_not_run(name, why) for name in _WITH_SUBJECT[at:])])


def _identity(recorded: RecordedRun) -> Iterator[str]:
    if recorded.run.identity != recorded.run.spec.identity:
        yield f"run.json says {recorded.run.identity}, its spec has {recorded.run.spec.identity}"


def _seeds(recorded: RecordedRun) -> Iterator[str]:
    for unit in units(recorded.run.spec, recorded.plan):
        record = recorded.records.get(unit.key)
        if record is not None and record.seed != unit_seed_of(recorded.run.spec, unit):
            yield f"{unit.key} was run with a seed that does not follow from the run's"


def _completeness(recorded: RecordedRun) -> Iterator[str]:
    done, planned = len(recorded.records), sum(1 for _ in units(recorded.run.spec, recorded.plan))
    if recorded.run.units != planned:
        yield f"run.json says {recorded.run.units} units, the plan has {planned}"
    if recorded.run.status == "complete" and done != planned:
        yield f"run.json says that the run is complete, but {planned - done} units are missing"


def _result(recorded: RecordedRun) -> Check:
    if not (recorded.path / RESULT).exists():
        return _not_run("result", f"there is no {RESULT} yet")
    try:
        written = read_record(recorded.path / RESULT, EvaluationResult)
    except RecordError as error:
        return _check("result", 1, [str(error)])
    # Wording is no finding: it is derived anew by whoever shows a run, in their version's words.
    pair = (without_wording(each.to_json()) for each in (written, recorded.result))
    found = differences(*pair)
    problems = [f"{RESULT} does not follow from the records: {item}" for item in found]
    return _check("result", 1, problems)


def _subject(recorded: RecordedRun, subject: Subject) -> list[str]:
    spec = recorded.run.spec
    try:
        given = describe(subject, spec.settings)
    except DentError as error:
        return [str(error)]
    return list(differences(spec.to_json(), given.to_json()))


def _plan(recorded: RecordedRun, subject: Subject) -> list[str]:
    plan = make_plan(recorded.run.spec.settings, subject.dataset)
    return [
        f"plan.json is not what the dataset gives: {item}"
        for item in differences(recorded.plan.to_json(), plan.to_json())
    ]


def _resubmit(recorded: RecordedRun, subject: Subject, progress: Watch | None) -> Iterator[Check]:
    names = _WITH_SUBJECT[2:]
    problems: dict[str, list[str]] = {name: [] for name in names}
    looked = dict.fromkeys(names, 0)
    skipped: dict[str, str] = {}
    again = Resubmission(recorded, subject)
    done: list[Unit] = [
        unit for unit in units(recorded.run.spec, recorded.plan) if unit.key in recorded.records
    ]
    for count, unit in enumerate(done, start=1):
        for finding in again.check(unit):
            _note(finding, problems, looked, skipped)
        if progress is not None:
            progress(count, len(done))
    problems["served"] += again.too_many_changed()
    for name in names:
        if name in skipped and not problems[name]:
            yield _not_run(name, skipped[name]).model_copy(update={"looked_at": looked[name]})
        else:
            yield _check(name, looked[name], problems[name])


def _note(
    finding: Finding,
    problems: dict[str, list[str]],
    looked: dict[str, int],
    skipped: dict[str, str],
) -> None:
    if finding.skipped:
        skipped[finding.check] = finding.problem or ""
        return
    looked[finding.check] += 1
    if finding.problem is not None:
        problems[finding.check].append(finding.problem)


def _check(name: str, looked_at: int, problems: list[str]) -> Check:
    shown = problems[:_SHOWN]
    if len(problems) > _SHOWN:
        shown.append(f"and {len(problems) - _SHOWN} more")
    return Check(
        name=name,
        state="failed" if problems else "passed",
        looked_at=looked_at,
        problems=tuple(shown),
    )


def _not_run(name: str, why: str) -> Check:
    return Check(name=name, state="not-run", looked_at=0, problems=(why,))


def _conclude(recorded: RecordedRun | None, checks: list[Check]) -> Verification:
    states = {check.state for check in checks}
    status: Literal["verified", "failed", "incomplete"] = "verified"
    if "failed" in states:
        status = "failed"
    elif "not-run" in states:
        status = "incomplete"
    return Verification(
        status=status,
        identity=None if recorded is None else recorded.run.identity,
        checks=tuple(checks),
    )
