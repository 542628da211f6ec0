"""Summaries of all runs in a folder, for `dent list`."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from dent.errors import DentError
from dent.evaluation.records.folder import RUN
from dent.evaluation.records.record_file import LARGEST_JSON
from dent.evaluation.records.schema import RunStatus
from dent.evaluation.results.recorded_run import RecordedRun, load_run
from dent.evaluation.results.result import Count, Decision, Difference
from dent.evaluation.subject import threat_of
from dent.report.loading import status_of
from dent.storage.canonical import Record
from dent.storage.disk import read, unreadable
from dent.storage.errors import RecordError
from dent.storage.plain_json import parse


class DefenseLine(Record):
    """The line of a defense in a list."""

    name: str
    natural: Count
    worst: Count
    unit: Literal["sample", "batch"]
    """Whether the worst case is per sample or per batch."""
    difference: Difference | None
    decided: Decision | None = None
    """Where the run stopped early, so that worst case and difference are upper bounds; else
    null."""
    ruling: str | None = None
    """The verdict of the dynamic suite, such as `no gain`; null without the whole suite."""
    broken_by: tuple[str, ...] = ()
    """Who made the challenges that lowered the worst case."""
    flags: tuple[str, ...]
    """Names of the raised diagnostics of the defense and of the run."""


class RunSummary(Record):
    """The entry of a run in a list. An unreadable run has only the path and `error`."""

    path: str
    error: str | None = None
    """Why the run cannot be read; null if it can."""
    status: RunStatus | None = None
    started: str | None = None
    """UTC, ISO 8601; null if no session began."""
    model: str | None = None
    dataset: str | None = None
    threat: str | None = None
    """The threat model, such as `linf 8/255`."""
    attacks: tuple[str, ...] = ()
    samples: int = 0
    """Number of attacked samples in the plan."""
    units_done: int = 0
    units_planned: int = 0
    defenses: tuple[DefenseLine, ...] = ()


def list_runs(root: Path) -> list[RunSummary]:
    """Summarize every run in a folder or its subfolders, in the order of their paths.

    A run that cannot be read is listed with the error. Folders that cannot be read come last.
    Nothing inside a run folder counts as another run, and links to folders are not followed. A
    folder of `dent train` is not a run, but the runs inside it (for its model card) are listed.

    Raises:
        RecordError: `root` is not a folder, or the system refuses to look it up.
    """
    root = Path(root)
    try:
        exists = root.is_dir()
    except OSError as error:
        raise unreadable(root, error) from error
    if not exists:
        problem = "is a file" if root.exists() else "does not exist"
        raise RecordError(f"{root} {problem}. Name a folder that contains runs")
    unread: list[OSError] = []
    summaries = [_summarize(path) for path in _run_folders(root, unread)]
    return summaries + [
        RunSummary(path=str(error.filename), error=f"cannot be looked into: {error.strerror}")
        for error in unread
    ]


def _run_folders(root: Path, unread: list[OSError]) -> Iterator[Path]:
    for folder, inside, files in os.walk(root, onerror=unread.append):
        inside.sort()
        if RUN in (*files, *inside) and not _is_training(Path(folder)):
            inside.clear()
            yield Path(folder)


def _is_training(folder: Path) -> bool:
    """Return whether `dent train` wrote a folder. It is not a run, but it may contain runs."""
    try:
        content = parse(read(folder / RUN, LARGEST_JSON))
    except (RecordError, ValueError):
        return False
    return isinstance(content, dict) and content.get("kind") == "training"


def _summarize(path: Path) -> RunSummary:
    try:
        return _of(load_run(path))
    except DentError as error:
        return RunSummary(path=str(path), error=str(error))
    except Exception as error:  # an unexpected error in one run must not hide the others
        return RunSummary(path=str(path), error=f"unreadable: {type(error).__name__}: {error}")


def _of(loaded: RecordedRun) -> RunSummary:
    result, run = loaded.result, loaded.run
    of_run = tuple(flag.name for flag in result.diagnostics if flag.raised)
    return RunSummary(
        path=str(loaded.path),
        status=status_of(loaded),
        started=run.sessions[0].started if run.sessions else None,
        model=run.spec.model.name,
        dataset=run.spec.dataset.name,
        threat=threat_of(run.spec.threat).label,
        attacks=tuple(attack.name for attack in run.spec.attacks),
        samples=result.samples,
        units_done=result.units_done,
        units_planned=result.units_planned,
        defenses=tuple(
            DefenseLine(
                name=name,
                natural=defense.natural,
                worst=defense.worst.served,
                unit=defense.worst.unit,
                difference=defense.difference,
                decided=defense.decided,
                ruling=None if defense.verdict is None else defense.verdict.ruling,
                broken_by=tuple(dict.fromkeys(entry.by for entry in defense.broken_by)),
                flags=tuple(flag.name for flag in defense.raised) + of_run,
            )
            for name, defense in result.defenses.items()
        ),
    )
