"""Checks of the records of a run that need neither its model nor its dataset."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from dent.evaluation.engine.context import unit_seed
from dent.evaluation.records.folder import RESULT
from dent.evaluation.records.naming import attack_contradiction, contradiction
from dent.evaluation.records.plan import APART, Unit, seed_of, units
from dent.evaluation.records.record_file import read_record
from dent.evaluation.records.spec import EvaluationSpec, differences
from dent.evaluation.records.tensor_files import check_tensor
from dent.evaluation.results.decision import units_left
from dent.evaluation.results.recorded_run import RecordedRun
from dent.evaluation.results.result import EvaluationResult
from dent.evaluation.results.verdict import RULES
from dent.evaluation.verification.outcome import Check, not_run, outcome_of
from dent.storage.canonical import without_rulings, without_wording
from dent.storage.disk import is_there
from dent.storage.errors import RecordError
from dent.support.plural import agreeing, counted

DROPPED: Final = "the tensors were not kept (settings.tensors is 'drop')"
"""Why images cannot be checked."""


def check_records(recorded: RecordedRun) -> list[Check]:
    """Check that the records of a run agree with each other, and that its result follows."""
    spec = recorded.run.spec
    return [
        outcome_of("records", len(recorded.records) + 2, []),  # reading them has checked them
        outcome_of("identity", 1, list(_identity(recorded))),
        outcome_of("names", len(spec.defenses) + len(spec.attacks), list(_names(recorded))),
        outcome_of("seeds", len(recorded.records), list(_seeds(recorded))),
        outcome_of("completeness", recorded.run.units, list(_completeness(recorded))),
        _result(recorded),
    ]


def expected_seed(spec: EvaluationSpec, unit: Unit) -> int:
    """Return the seed that a unit's record must have."""
    if unit.kind in APART:
        return seed_of(spec.settings.seed, "probe")
    return unit_seed(spec, unit)


def _names(recorded: RecordedRun) -> Iterator[str]:
    spec = recorded.run.spec
    found = (
        *map(contradiction, spec.defenses),
        *(attack_contradiction(attack, spec.threat.norm) for attack in spec.attacks),
    )
    yield from (problem for problem in found if problem is not None)


def _identity(recorded: RecordedRun) -> Iterator[str]:
    if recorded.run.identity != recorded.run.spec.identity:
        yield f"run.json says {recorded.run.identity}, its spec has {recorded.run.spec.identity}"


def _seeds(recorded: RecordedRun) -> Iterator[str]:
    spec = recorded.run.spec
    seeds = [
        (unit, recorded.records[unit.key].seed)
        for unit in units(spec, recorded.plan)
        if unit.key in recorded.records
    ]
    seeds += [
        (Unit("challenge", entry.defense, entry.attack, entry.batch), entry.seed)
        for challenge in recorded.challenges
        for entry in challenge.units
    ]
    for unit, seed in seeds:
        if seed != expected_seed(spec, unit):
            yield f"{unit.key} was run with a seed that does not follow from the run's"


def _completeness(recorded: RecordedRun) -> Iterator[str]:
    planned = sum(1 for _ in units(recorded.run.spec, recorded.plan))
    if recorded.run.units != planned:
        yield f"run.json says {counted(recorded.run.units, 'unit')}, the plan has {planned}"
    missing = len(units_left(recorded.run.spec, recorded.plan, recorded.records))
    if recorded.run.status == "complete" and missing:
        yield (
            f"run.json says that the run is complete, but {counted(missing, 'unit')} "
            f"{agreeing(missing, 'are')} missing"
        )


def _result(recorded: RecordedRun) -> Check:
    """Check that `result.json` follows from the records.

    It does not if a process ended before it wrote the result of its last records. This is no
    problem: the check is `not-run`, and says how to have it written.
    """
    if not is_there(recorded.path / RESULT):
        return not_run("result", f"there is no {RESULT} yet")
    try:
        stored = read_record(recorded.path / RESULT, EvaluationResult)
    except RecordError as error:
        return outcome_of("result", 1, [str(error)])
    mismatches = _mismatches(stored, recorded)
    if mismatches and recorded.challenges:
        before = replace(recorded, challenges=recorded.challenges[:-1])
        if not _mismatches(stored, before):  # it ended before it wrote the result
            return not_run(
                "result",
                f"{RESULT} is without the last challenge, by {recorded.challenges[-1].by}: repeat "
                "that `dent challenge` to have it written",
            )
    if mismatches and _is_of_a_part(stored, recorded):
        return not_run(
            "result",
            f"{RESULT} is from before the last session, when {counted(stored.units_done, 'unit')} "
            f"of {len(recorded.records)} were recorded: resume the run to have it written",
        )
    if not mismatches and stored.rules != RULES:
        newer = ": upgrade torch-dent" if stored.rules > RULES else ""
        return not_run(
            "result",
            f"its rulings are by rules {stored.rules}, and this version only knows rules {RULES}, "
            f"so it compared only counts and differences{newer}",
            looked_at=1,
        )
    problems = [f"{RESULT} does not follow from the records: {item}" for item in mismatches]
    return outcome_of("result", 1, problems)


def _is_of_a_part(stored: EvaluationResult, recorded: RecordedRun) -> bool:
    """Return whether an unfinished run has worked on after its result was written."""
    return (
        recorded.run.status != "complete"
        and stored.status == "partial"
        and len(recorded.run.sessions) > len(stored.sessions)
    )


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


def check_stored_images(recorded: RecordedRun) -> Check:
    """Compare the stored images with their digests; they are not submitted."""
    refs, problems = recorded.kept(), []
    dropped = recorded.run.spec.settings.tensors == "drop"
    if not any(is_there(recorded.path / ref.file) for ref in refs):
        return not_run("tensors", DROPPED if dropped else "the folder has no images")
    for ref in refs:
        try:
            check_tensor(recorded.path, ref)
        except RecordError as error:
            problems.append(str(error))
    if dropped and not problems:  # only those of challenges are kept
        return not_run("tensors", DROPPED, looked_at=len(refs))
    return outcome_of("tensors", len(refs), problems)
