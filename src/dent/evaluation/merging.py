"""Merge the records of one run that several processes wrote, each to its own folder."""

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from glob import escape
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from dent.errors import ConfigError
from dent.evaluation.records.folder import RESULT, RunFolder
from dent.evaluation.records.plan import groups, units
from dent.evaluation.records.probe_answers import changed, turns
from dent.evaluation.records.schema import (
    ChallengeRecord,
    JournalRecord,
    ProbeRecord,
    Session,
    UnitRecord,
)
from dent.evaluation.records.spec import differences
from dent.evaluation.records.tensor_files import packed_as
from dent.evaluation.results.certificate import certificate_of, over_large_steps
from dent.evaluation.results.decision import units_left
from dent.evaluation.results.recorded_run import RecordedRun, load_run
from dent.evaluation.results.summary import summarize_folder
from dent.storage.canonical import Record, without_timing
from dent.storage.disk import TEMPORARY, sync_folder, writing
from dent.storage.errors import RecordError, SpecMismatchError
from dent.storage.lock import LOCK, FolderLock
from dent.support.plural import first_few

_SHOWN: Final = 10
_DRAWN: Final = 8
"""Number of random characters in a name from `mkdtemp`."""


class Merged(Record):
    """The report of a merge."""

    path: str
    """The new run folder."""
    runs: tuple[str, ...]
    """The merged runs."""
    identity: str
    """The identity of the evaluation, which all runs share."""
    units_done: int
    units_planned: int
    duplicates: int
    """Number of units that more than one run recorded, with equal content, except for rounding in
    probes."""
    rounded: int = 0
    """Number of probes among them that differ by rounding. That of the first run is kept."""
    missing: tuple[str, ...]
    """Keys of the units that no run recorded."""
    missing_batches: tuple[int, ...]
    """Indices of the batches that lack a unit."""


class ConflictError(RecordError):
    """An error: runs of one evaluation recorded different results for a unit. Nothing was written.

    Attributes:
        conflicts: One sentence for every field that differs.
    """

    def __init__(self, message: str, conflicts: tuple[str, ...]) -> None:
        super().__init__(message)
        self.conflicts = conflicts


def merge(paths: Sequence[Path], out: Path) -> Merged:
    """Merge several run folders with parts of the same evaluation into one.

    The new folder holds the records that one process would have written, in the same order. The
    result lists the units that no run recorded. The same evaluation on `out` runs them. The folder
    appears with all its files or not at all. Leftovers of a killed merge into `out` are removed.
    The source folders are only read.

    Args:
        paths: Run folders, written by shards or copied.
        out: A folder that does not exist or is empty.

    Raises:
        ConfigError: No folder is given, one is given twice, or `out` lies in one of them.
        SpecMismatchError: The runs are not of the same evaluation.
        ConflictError: Two runs recorded different results (apart from times) for the same unit.
        RecordError: A run cannot be read, is damaged, or lacks a tensor; or `out` is not empty.
    """
    runs = _load(paths)
    _refuse_what_is_there(out)
    _refuse_within(runs, out)
    first = runs[0]
    records, duplicates, rounded = _union(runs)
    challenges = tuple(_challenges(runs))
    out.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(out)
    with writing(out):
        scratch = Path(tempfile.mkdtemp(prefix=f"{TEMPORARY}{out.name}-", dir=out.parent))
    try:
        with closing(RunFolder(scratch, first.run.spec, first.plan)) as folder:
            _write(folder, runs, records)
            for source, challenge in challenges:
                folder.add(challenge, _files(source, challenge))
            folder.write(RESULT, summarize_folder(folder, first.plan))
            with writing(out):  # while locked, so that no other merge removes it as stale
                scratch.chmod(0o777 & ~_umask())  # mkdtemp makes folders private
                os.replace(scratch, out)
                sync_folder(out.parent)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    done = {key: record for key, (_, record) in records.items()}
    missing = units_left(first.run.spec, first.plan, done)
    return Merged(
        path=str(out),
        runs=tuple(str(run.path) for run in runs),
        identity=first.run.identity,
        units_done=len(records),
        units_planned=first.run.units,
        duplicates=duplicates,
        rounded=rounded,
        missing=tuple(unit.key for unit in missing),
        missing_batches=tuple(sorted({unit.batch for unit in missing if unit.batch is not None})),
    )


def _load(paths: Sequence[Path]) -> tuple[RecordedRun, ...]:
    if not paths:
        raise ConfigError("there is nothing to merge: name the run folders")
    resolved: set[Path] = set()
    for path in paths:
        if path.resolve() in resolved:
            raise ConfigError(f"the run {path} is named twice: name each run once")
        resolved.add(path.resolve())
    runs = tuple(load_run(path) for path in paths)
    for run in runs[1:]:
        _refuse_another(runs[0], run)
    return runs


def _refuse_another(first: RecordedRun, other: RecordedRun) -> None:
    specs = first.run.spec.newest.to_json(), other.run.spec.newest.to_json()
    mismatches = differences(*specs, names=_names(first, other))
    if mismatches:
        shown = "\n  ".join(first_few(mismatches, _SHOWN))
        raise SpecMismatchError(
            f"{other.path} records another evaluation than {first.path}; nothing was written. They "
            f"differ in\n  {shown}",
            mismatches,
        )
    if first.run.plan != other.run.plan:
        raise RecordError(
            f"{other.path} has other batches than {first.path}: they were "
            "made by different versions of torch-dent, and cannot be merged"
        )


def _refuse_what_is_there(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RecordError(f"{out} already exists: choose a new or empty folder to merge into")


def _refuse_within(runs: Sequence[RecordedRun], out: Path) -> None:
    for run in runs:
        if out.resolve().is_relative_to(run.path.resolve()):
            raise ConfigError(
                f"{out} lies in the run {run.path}, which is only read: choose a folder elsewhere"
            )


def _remove_stale(out: Path) -> None:
    """Remove what killed merges into `out` left behind. A running merge holds its lock."""
    for leftover in out.parent.glob(f"{TEMPORARY}{escape(out.name)}-{'?' * _DRAWN}"):
        if leftover.is_symlink() or not (leftover / LOCK).is_file():
            continue  # not a run folder
        with suppress(RecordError), FolderLock(leftover):
            shutil.rmtree(leftover, ignore_errors=True)


def _union(
    runs: Sequence[RecordedRun],
) -> tuple[dict[str, tuple[RecordedRun, JournalRecord]], int, int]:
    """Return the record of every unit with its run, by key.

    Also return the number of duplicates, and of probes among them that differ by rounding.
    """
    records: dict[str, tuple[RecordedRun, JournalRecord]] = {}
    duplicates: set[str] = set()
    rounded: set[str] = set()
    conflicts: list[str] = []
    for run in runs:
        for key, record in run.records.items():
            if key not in records:
                records[key] = run, record
                continue
            duplicates.add(key)
            source, earlier = records[key]
            earlier_json, later_json = (
                without_timing(entry.to_json()) for entry in (earlier, record)
            )
            found = differences(earlier_json, later_json, key, _names(source, run))
            if found and isinstance(earlier, ProbeRecord) and isinstance(record, ProbeRecord):
                rounded.add(key)
                found = differences(_read(earlier), _read(record), key, _names(source, run))
            conflicts += found
    _refuse_conflicts(conflicts)
    return records, len(duplicates), len(rounded)


def _read(probe: ProbeRecord) -> dict[str, Any]:
    """Return what results read from a probe, without distances that rounding changes.

    Every shard of a suite makes all probes, perhaps on another machine than the others.
    """
    plain: dict[str, Any] = without_timing(probe.to_json())
    for name in ("repeated", "again", "alone", "strangers", "permuted"):
        comparison = getattr(probe, name)
        plain[name] = None if comparison is None else changed(comparison)
    plain["again_gradient"] = turns(probe)
    plain["gradient"] = (certificate_of(probe).state, over_large_steps(probe))
    return plain


def _refuse_conflicts(conflicts: Sequence[str]) -> None:
    if conflicts:
        shown = "\n  ".join(first_few(conflicts, _SHOWN))
        raise ConflictError(
            "the runs differ in the same units: one of them is wrong, or was made on another kind "
            f"of device or with another number of threads. Nothing was written:\n  {shown}\n"
            "Leave out one of the runs, and run the rest again.",
            tuple(conflicts),
        )


def _write(
    folder: RunFolder,
    runs: Sequence[RecordedRun],
    records: Mapping[str, tuple[RecordedRun, JournalRecord]],
) -> None:
    spec, plan = runs[0].run.spec, runs[0].plan
    done = {key: record for key, (_, record) in records.items()}
    missing = {unit.key for unit in units_left(spec, plan, done)}
    # A shard drops the images of its groups, and a finished run those of all.
    whole = {
        unit.key: missing.isdisjoint(other.key for other in group)
        for group in groups(spec, plan)
        for unit in group
    }
    for unit in units(spec, plan):
        if unit.key in records:
            run, record = records[unit.key]
            folder.put(record, _tensor(run, record, whole=whole[unit.key]))
    status = "partial" if missing else "complete"
    folder.update(status=status, sessions=tuple(_sessions(runs)))


def _challenges(
    runs: Sequence[RecordedRun],
) -> Iterator[tuple[RecordedRun, ChallengeRecord]]:
    """Yield the challenges of all runs by date, without repeated units, and the run of each."""
    seen: dict[str, tuple[RecordedRun, UnitRecord]] = {}
    every = [(run, challenge) for run in runs for challenge in run.challenges]
    conflicts: list[str] = []
    for run, challenge in sorted(every, key=lambda entry: entry[1].date):
        new = tuple(unit for unit in challenge.units if unit.key not in seen)
        for unit in challenge.units:
            source, earlier = seen.setdefault(unit.key, (run, unit))
            then, now = (without_timing(entry.to_json()) for entry in (earlier, unit))
            conflicts += differences(then, now, unit.key, _names(source, run))
        if new:
            yield run, challenge.model_copy(update={"units": new})
    _refuse_conflicts(conflicts)


def _files(run: RecordedRun, challenge: ChallengeRecord) -> dict[str, bytes]:
    """Return the contents of the files with a challenge's images, by name."""
    return {
        unit.tensor.file: packed_as(unit.tensor.file, run.adversarial(unit))[1]
        for unit in challenge.units
        if unit.tensor is not None
    }


def _tensor(run: RecordedRun, record: JournalRecord, *, whole: bool) -> Tensor | None:
    """Return the submitted images; None if the merged run does not keep them."""
    if not isinstance(record, UnitRecord) or record.kind != "attack":
        return None
    if whole and run.run.spec.settings.tensors == "drop":
        return None
    return run.adversarial(record)


def _sessions(runs: Sequence[RecordedRun]) -> Iterator[Session]:
    """Yield the sessions of all runs, each once, in order of their start."""
    sessions: list[Session] = []
    for run in runs:
        sessions += [session for session in run.run.sessions if session not in sessions]
    yield from sorted(sessions, key=lambda session: session.started)


def _names(first: RecordedRun, second: RecordedRun) -> tuple[str, str]:
    return f"{first.path} has", f"{second.path} has"


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
