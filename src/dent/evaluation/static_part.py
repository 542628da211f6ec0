"""Copy the static model's part of a run from another run, instead of attacking the model again.

The robust accuracy of the static model depends on the model, the samples, their batches and the
attacks, and not on the defenses in the same run. So runs of several defenses may share this part.
`verify` checks the copied records like all others.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from dent.errors import ConfigError
from dent.evaluation.records.folder import RunFolder, read_run
from dent.evaluation.records.plan import Plan, units
from dent.evaluation.records.schema import JournalRecord, UnitRecord
from dent.evaluation.records.spec import STATIC, EvaluationSpec, differences
from dent.evaluation.results.recorded_run import load_run
from dent.storage.canonical import digest
from dent.storage.errors import RecordError, SpecMismatchError
from dent.support.plural import first_few

_SHOWN: Final = 10


def take_static_part(folder: RunFolder, source: Path) -> int:
    """Copy records of the static model from another run, as far as this run lacks them.

    Args:
        folder: The run that receives the records.
        source: The run folder to copy from. It is only read.

    Returns:
        The number of copied records.

    Raises:
        ConfigError: The run has no static model.
        SpecMismatchError: The runs differ in more than their defenses.
        RecordError: The source cannot be read, or lacks adversarial images.
    """
    spec = folder.run.spec
    if not spec.has_static:
        raise ConfigError(
            f"this run has no static model, so it can take nothing from {source}: leave out "
            "static_from"
        )
    other = load_run(source)
    names = ("this run has", f"{source} has")
    mismatches = differences(_static_part(spec), _static_part(other.run.spec), names=names)
    if mismatches:
        raise SpecMismatchError(
            f"the static model's part of {source} does not fit: it must have the same model, "
            "samples, batches, threat model and attacks. They differ in\n  "
            + "\n  ".join(first_few(mismatches, _SHOWN)),
            mismatches,
        )
    if folder.run.plan != other.run.plan:
        raise RecordError(f"{source} has other batches than this run: take no static part from it")
    copied = 0
    sessions = [each for each in other.run.sessions if each not in folder.run.sessions]
    for unit in units(spec, other.plan):
        record = other.records.get(unit.key)
        if unit.defense != STATIC or record is None or unit.key in folder.done:
            continue
        if not copied:
            folder.session(*sessions)
        if isinstance(record, UnitRecord) and record.kind == "attack":
            folder.put(record, other.adversarial(record))
        else:
            folder.put(record, None)
        copied += 1
    return copied


def find_static_part(spec: EvaluationSpec, plan: Plan, runs: Iterable[Path]) -> Path | None:
    """Return the finished run from which a run can take most of its static model's records.

    Args:
        spec: The specification of the run that takes the records.
        plan: Its batches.
        runs: The folders to choose from. They are only read. A folder is passed over if its run is
            not finished, is another evaluation of the static model, lacks images, or cannot be
            read.

    Returns:
        The folder; None if there is none with such records. Of equal ones, the first.
    """
    wanted, batches = _static_part(spec), digest(plan.to_json())
    best, most = None, 0
    for path in runs:
        try:
            run = read_run(path)
            if (run.status, run.plan) != ("complete", batches) or _static_part(run.spec) != wanted:
                continue
            records = load_run(path).records.values()
        except RecordError:
            continue
        static = [record for record in records if record.defense == STATIC]
        if len(static) > most and all(_has_images(path, record) for record in static):
            best, most = path, len(static)
    return best


def _has_images(path: Path, record: JournalRecord) -> bool:
    """Return whether the images of a record that has some are in its run folder."""
    if not isinstance(record, UnitRecord) or record.kind != "attack":
        return True
    return record.tensor is not None and (path / record.tensor.file).is_file()


def _static_part(spec: EvaluationSpec) -> dict[str, Any]:
    """Return what an evaluation says about the static model, without its stopping rule.

    Redundant attacks do not run on the static model, so their position does not matter. Here they
    come last, sorted by name.
    """
    values: dict[str, Any] = spec.newest.to_json()
    values["defenses"] = [each for each in values["defenses"] if each["name"] == STATIC]
    values["settings"].pop("until", None)
    redundant = values.get("same_on_static") or {}
    values["attacks"] = sorted(
        values["attacks"], key=lambda each: each["name"] if each["name"] in redundant else ""
    )
    return values
