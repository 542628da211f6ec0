"""A run folder: its files, and the rules for writing to it."""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Final

from torch import Tensor

from dent.evaluation.records import consistency
from dent.evaluation.records.journal import (
    CHALLENGES,
    JOURNAL,
    JournalWriter,
    read_challenges,
    read_journal,
    repair,
)
from dent.evaluation.records.plan import Plan, units
from dent.evaluation.records.record_file import dump, read_record
from dent.evaluation.records.schema import (
    TENSORS,
    ChallengeRecord,
    JournalRecord,
    RunRecord,
    Session,
    UnitRecord,
)
from dent.evaluation.records.spec import EvaluationSpec, differences
from dent.evaluation.records.tensor_files import load_tensor, packed
from dent.storage.canonical import Record, digest
from dent.storage.disk import (
    TEMPORARY,
    is_there,
    refuse_linked_folder,
    remove_temporaries,
    sync_folder,
    write_atomically,
    writing,
)
from dent.storage.errors import RecordError, SpecMismatchError
from dent.storage.lock import HOLDER, LOCK, FolderLock
from dent.support.plural import counted, listed

RUN: Final = "run.json"
PLAN: Final = "plan.json"
RESULT: Final = "result.json"
ASCENTS: Final = "ascents"
"""Folder for what attacks computed on the static model. No record refers to it."""


class RunFolder:
    """A run folder that this process writes to. While it is open, no other process can.

    A new or empty folder is set up. A folder with the same run is resumed. Any other folder is
    refused before anything is written.

    Args:
        path: The folder. Missing parents are created.
        spec: The specification of the run.
        plan: The plan of the run.

    Raises:
        SpecMismatchError: The folder holds a run of another specification.
        SchemaVersionError: The folder was written by a newer torch-dent.
        LockedError: Another process is writing to the folder.
        RecordError: The folder holds other files, is damaged, or cannot be written to.
    """

    def __init__(self, path: Path, spec: EvaluationSpec, plan: Plan) -> None:
        self.path = path
        self.spec = spec
        with writing(path):
            _refuse_what_is_no_run(path)
            path.mkdir(parents=True, exist_ok=True)
        self._lock = FolderLock(path)
        try:
            self._run = self._set_up(spec, plan)
            self.torn = repair(path / JOURNAL)
            self._done = read_records(self.path, self._run, plan)
            self._challenges = read_outside(self.path, self._run, plan)
            self._writer = JournalWriter(path / JOURNAL)
        except BaseException:
            self._lock.close()
            raise

    @property
    def run(self) -> RunRecord:
        """The current content of `run.json`."""
        return self._run

    @property
    def done(self) -> Mapping[str, JournalRecord]:
        """The records so far, by the key of the unit."""
        return self._done

    def put(self, record: JournalRecord, adversarial: Tensor | None = None) -> None:
        """Record a unit: first its images, then its line. Both are on the disk on return."""
        if adversarial is not None and isinstance(record, UnitRecord):
            ref, content = packed(self.spec, record, adversarial)
            write_atomically(self.path / ref.file, content)
            record = record.model_copy(update={"tensor": ref})
        self._writer.append(record)
        self._done[record.key] = record

    @property
    def challenges(self) -> tuple[ChallengeRecord, ...]:
        """The challenges, in the order of submission."""
        return self._challenges

    def add(self, challenge: ChallengeRecord, files: Mapping[str, bytes]) -> None:
        """Record a challenge: first its images, then its line.

        Args:
            challenge: The record.
            files: The contents of the files with its images, by name in the folder.
        """
        for name, content in files.items():
            write_atomically(self.path / name, content)
        path = self.path / CHALLENGES
        if is_there(path):
            repair(path)
        else:
            write_atomically(path, b"")
        with closing(JournalWriter(path)) as writer:
            writer.append(challenge)
        self._challenges += (challenge,)

    def adversarial(self, record: UnitRecord) -> Tensor:
        """Return the submitted images of a recorded unit, after a check of their digest."""
        return load_tensor(self.path, record)

    def forget(self, record: UnitRecord) -> None:
        """Delete the images of a unit, if the settings say so."""
        if self.spec.settings.tensors == "drop" and record.tensor is not None:
            refuse_linked_folder(self.path / TENSORS)
            with writing(self.path / record.tensor.file):
                (self.path / record.tensor.file).unlink(missing_ok=True)

    def update(self, **changes: object) -> None:
        """Rewrite `run.json` with changed fields."""
        self._run = self._run.model_copy(update=changes)
        write_atomically(self.path / RUN, dump(self._run))

    def session(self, *sessions: Session) -> None:
        """Write sessions. They replace those with the same start time."""
        by_start = {session.started: session for session in (*self._run.sessions, *sessions)}
        self.update(sessions=tuple(by_start.values()))

    def write(self, name: str, record: Record) -> None:
        """Write a file that is derived from the records."""
        write_atomically(self.path / name, dump(record))

    def close(self) -> None:
        """Release the folder for other processes."""
        self._writer.close()
        self._lock.close()

    def _set_up(self, spec: EvaluationSpec, plan: Plan) -> RunRecord:
        """Write the first files of a new run, or read those of this run, and remove leftovers."""
        if is_there(self.path / RUN):
            run = read_run(self.path)
            _refuse_another(self.path, run, spec, plan)
        else:
            # Write run.json last: if it exists, so do the other files.
            write_atomically(self.path / PLAN, dump(plan))
            run = RunRecord(
                schema_version=spec.written_as,
                status="running",
                identity=spec.identity,
                spec=spec,
                plan=digest(plan.to_json()),
                units=sum(1 for _ in units(spec, plan)),
                sessions=(),
            )
            write_atomically(self.path / JOURNAL, b"")
            write_atomically(self.path / RUN, dump(run))
        with writing(self.path):
            (self.path / TENSORS).mkdir(exist_ok=True)
            for folder in (self.path, self.path / TENSORS):
                remove_temporaries(folder)
            sync_folder(self.path)
        return run


def read_run(path: Path) -> RunRecord:
    """Read `run.json`.

    Raises:
        RecordError: The file is missing or damaged, or its parts contradict each other.
        SchemaVersionError: The file was written by a newer torch-dent.
    """
    run = read_record(path / RUN, RunRecord)
    _refuse_first(path / RUN, consistency.of_spec(run.spec))
    _refuse_first(path / RUN, consistency.of_sessions(run.sessions))
    return run


def read_plan(path: Path, run: RunRecord) -> Plan:
    """Read `plan.json`, and check that it is the plan of the run.

    Raises:
        RecordError: The file is missing or damaged, or is another plan.
    """
    plan = read_record(path / PLAN, Plan)
    if digest(plan.to_json()) != run.plan:
        raise RecordError(
            f"{path / PLAN} is not the plan that {RUN} was written with: restore it, or start over "
            "in another folder"
        )
    _refuse_first(path / PLAN, consistency.of_plan(run.spec, plan))
    return plan


def read_records(path: Path, run: RunRecord, plan: Plan) -> dict[str, JournalRecord]:
    """Read the records of the journal, by the key of the unit, in the order of writing.

    Raises:
        RecordError: A line is damaged, contradicts itself or the plan, or records a unit that is
            not in the plan or was recorded before.
    """
    planned = Counter(unit.key for unit in units(run.spec, plan))
    key, times = planned.most_common(1)[0]
    if times > 1:
        raise RecordError(f"{path / RUN}: {key} is planned twice: names are ambiguous")
    if run.units != planned.total():
        raise RecordError(
            f"{path / RUN} says {counted(run.units, 'unit')}, the plan has {planned.total()}; "
            "nothing was changed"
        )
    records: dict[str, JournalRecord] = {}
    for record in read_journal(path / JOURNAL):
        location = f"{path / JOURNAL}: {record.key}"
        if record.key not in planned:
            raise RecordError(f"{location} is not in the plan of this run; nothing was changed")
        if record.key in records:
            raise RecordError(
                f"{location} is recorded twice; nothing was changed. Two processes wrote here at "
                "once, which can happen only if somebody deleted the lock: if both lines say the "
                "same but for their times, delete one of them"
            )
        _refuse_first(location, consistency.of_record(run.spec, plan, record))
        records[record.key] = record
    return records


def read_outside(path: Path, run: RunRecord, plan: Plan) -> tuple[ChallengeRecord, ...]:
    """Read the challenges of a run, in the order of submission; none if there is no file.

    Raises:
        RecordError: A line is damaged, contradicts itself or the plan, or repeats a unit of another
            line.
    """
    challenges: list[ChallengeRecord] = []
    seen: set[str] = set()
    for number, challenge in enumerate(read_challenges(path / CHALLENGES), start=1):
        location = f"{path / CHALLENGES}, line {number}"
        _refuse_first(location, consistency.of_challenge(run.spec, plan, challenge, challenges))
        for unit in challenge.units:
            if unit.key in seen:
                raise RecordError(f"{location}: {unit.key} is there twice; nothing was changed")
            seen.add(unit.key)
        challenges.append(challenge)
    return tuple(challenges)


def _refuse_first(where: Path | str, problems: Iterator[str]) -> None:
    for problem in problems:
        raise RecordError(f"{where}: {problem}; nothing was changed")


def _refuse_what_is_no_run(path: Path) -> None:
    """Check that a folder is missing, empty or a run.

    Raises:
        RecordError: It is none of these. Nothing was changed.
    """
    if path.exists() and not path.is_dir():
        raise RecordError(f"{path} is a file: a run is a folder, choose another name")
    if not path.is_dir():
        return
    refuse_linked_folder(path / TENSORS)
    if is_there(path / RUN):
        return
    own_files = {PLAN, JOURNAL, LOCK, HOLDER}
    foreign = sorted(
        item.name
        for item in path.iterdir()
        if item.name not in own_files and not item.name.startswith(TEMPORARY)
    )
    journal = path / JOURNAL
    if journal.exists() and journal.stat().st_size:
        raise RecordError(
            f"{path} has a journal but no {RUN}: restore {RUN}, or choose another folder. "
            "Nothing was changed"
        )
    if foreign:
        raise RecordError(
            f"{path} contains files that are not part of a run ({listed(foreign, 4)}): nothing "
            "was changed; choose a new or empty folder"
        )


def _refuse_another(path: Path, run: RunRecord, spec: EvaluationSpec, plan: Plan) -> None:
    mismatches = differences(run.spec.newest.to_json(), spec.newest.to_json())
    if mismatches:
        lines = "\n  ".join(mismatches)
        raise SpecMismatchError(
            f"{path} has another evaluation, and nothing was changed. They differ in\n  {lines}\n"
            "Choose another folder (--out), or repeat the command that started this run.",
            mismatches,
        )
    if run.identity != run.spec.identity:
        raise RecordError(f"{path / RUN} was edited: its identity is not that of its spec")
    if digest(read_plan(path, run).to_json()) != digest(plan.to_json()):
        raise RecordError(
            f"{path / PLAN} lays the samples into other batches than this version of torch-dent: "
            "resume with the version that started the run, or start over in another folder"
        )
