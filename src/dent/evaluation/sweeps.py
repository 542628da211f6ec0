"""Sweeps: several runs that differ in one setting, in one folder."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from dent.errors import ConfigError
from dent.evaluation.engine.progress import OnProgress, Progress
from dent.evaluation.records.record_file import dump, read_record
from dent.evaluation.records.spec import Settings
from dent.evaluation.records.sweep import SWEEP, Over, SweepRecord
from dent.evaluation.results.result import EvaluationResult
from dent.evaluation.run import evaluate
from dent.evaluation.subject import Subject
from dent.storage.disk import is_there, write_atomically, writing
from dent.storage.errors import RecordError
from dent.threat import ThreatModel

Value = int | float | str | None


class Evaluate(Protocol):
    """A function with the behavior of `dent.evaluation.evaluate`."""

    def __call__(
        self, subject: Subject, settings: Settings, *, out: Path | None, progress: OnProgress | None
    ) -> EvaluationResult:
        """Evaluate."""
        ...


def sweep(
    subject: Subject,
    settings: Settings,
    *,
    over: Over,
    values: Sequence[Value],
    out: Path | None = None,
    progress: Callable[[str, Progress], None] | None = None,
    evaluate: Evaluate = evaluate,
) -> dict[str, EvaluationResult]:
    """Evaluate once for every value of one setting.

    Args:
        subject: The objects to evaluate.
        settings: All other settings.
        over: The setting. `eps` is the radius of the threat model.
        values: The values of the setting, in the order in which they run.
        out: A folder for one run folder per value. Each run resumes separately, and more values
            can be added later.
        progress: Called with the value, as text, and the progress of its run.
        evaluate: The function that runs each evaluation.

    Returns:
        The result for each value, as text.

    Raises:
        ConfigError: There are no values, a value occurs twice, or a value is out of range.
        RecordError: `out` holds other files or a sweep over another setting. `evaluate` may raise
            further errors.
    """
    runs = variants(subject, settings, over, values)
    if out is not None:
        _register(Path(out), over, {value: folder_name(over, value) for value in runs})
    results = {}
    for value, (value_subject, value_settings) in runs.items():
        folder = None if out is None else Path(out) / folder_name(over, value)
        results[value] = evaluate(
            value_subject, value_settings, out=folder, progress=_named(progress, value)
        )
    return results


def variants(
    subject: Subject, settings: Settings, over: Over, values: Sequence[Value]
) -> dict[str, tuple[Subject, Settings]]:
    """Return the subject and settings of each run of a sweep, by value as text.

    Raises:
        ConfigError: There are no values, a value occurs twice, or a value is out of range.
    """
    runs: dict[str, tuple[Subject, Settings]] = {}
    for value in values:
        name, swept, its_settings = str(value), subject, settings
        if over == "eps":
            threat = ThreatModel(subject.threat.norm, value or 0, subject.threat.bounds)
            name, swept = threat.written, replace(subject, threat=threat)
        else:
            its_settings = Settings(**{**settings.to_json(), over: value})
        if name in runs:
            raise ConfigError(f"the sweep over {over} has the value {name} twice")
        runs[name] = swept, its_settings
    if not runs:
        raise ConfigError(f"a sweep over {over} needs values")
    return runs


def folder_name(over: str, value: str) -> str:
    """Return the name of the run folder for a value, such as `batch-size=16` or `eps=8_255`."""
    return f"{over.replace('_', '-')}={re.sub(r'[^A-Za-z0-9.-]', '_', value)}"


def _register(path: Path, over: Over, runs: dict[str, str]) -> None:
    if is_there(path / SWEEP):
        recorded = read_record(path / SWEEP, SweepRecord)
        if recorded.over != over:
            raise RecordError(
                f"{path} has a sweep over {recorded.over}, not {over}; nothing was changed. "
                "Choose another folder"
            )
        runs = recorded.runs | runs
    elif path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise RecordError(
            f"{path} contains files that are not part of a sweep: nothing was changed; choose a "
            "new or empty folder"
        )
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
    write_atomically(path / SWEEP, dump(SweepRecord(over=over, runs=runs)))


def _named(progress: Callable[[str, Progress], None] | None, value: str) -> OnProgress | None:
    return None if progress is None else lambda state: progress(value, state)
