"""Take the static model's part of a run from another run, in place of attacking it again.

What attacks leave of the static model depends on the model, the samples, their batches and the
attacks, and not on the defenses beside it. So runs of several defenses may share that part. What
is taken is checked like everything else by `verify`.
"""

from pathlib import Path
from typing import Any, Final

from dent.errors import ConfigError
from dent.evaluation.records.folder import RunFolder
from dent.evaluation.records.plan import units
from dent.evaluation.records.schema import UnitRecord
from dent.evaluation.records.spec import STATIC, EvaluationSpec, differences
from dent.evaluation.results.recorded_run import load_run
from dent.storage.errors import RecordError, SpecMismatchError

_SHOWN: Final = 10


def take_static_part(folder: RunFolder, source: Path) -> int:
    """Copy the records of the static model that a run lacks from another run.

    Args:
        folder: The run that takes them.
        source: A run folder. It is only read.

    Returns:
        How many records were copied.

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
        listed = "\n  ".join(mismatches[:_SHOWN])
        raise SpecMismatchError(
            f"the static model's part of {source} does not fit: it must have the same model, "
            f"samples, batches, threat model and attacks. They differ in\n  {listed}",
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
        attacked = isinstance(record, UnitRecord) and record.kind == "attack"
        folder.put(record, other.adversarial(record) if attacked else None)  # type: ignore[arg-type]
        copied += 1
    return copied


def _static_part(spec: EvaluationSpec) -> dict[str, Any]:
    """Return an evaluation without its other defenses, and without when it stops.

    The static model is not attacked by what is redundant on it, so the place of these attacks among
    the others does not matter.
    """
    values: dict[str, Any] = spec.newest.to_json()
    values["defenses"] = [each for each in values["defenses"] if each["name"] == STATIC]
    values["settings"].pop("until", None)
    redundant = values.get("same_on_static") or {}
    values["attacks"] = sorted(
        values["attacks"], key=lambda each: each["name"] if each["name"] in redundant else ""
    )
    return values
