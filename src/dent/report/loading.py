"""Load runs from paths: run folders, and folders of a sweep."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dent.errors import ConfigError
from dent.evaluation.records.folder import RUN
from dent.evaluation.records.schema import RunStatus
from dent.evaluation.records.sweep import SWEEP, read_sweep
from dent.evaluation.results.recorded_run import RecordedRun, load_run
from dent.evaluation.results.result import EvaluationResult
from dent.storage.disk import is_there
from dent.storage.errors import RecordError


@dataclass(frozen=True)
class NamedRun:
    """A run on a page, with its name on that page.

    Attributes:
        name: The end of its path, as short as possible but unique on the page.
        loaded: Its records.
    """

    name: str
    loaded: RecordedRun

    @property
    def result(self) -> EvaluationResult:
        """The result of the run, derived from its records."""
        return self.loaded.result


def is_run(path: Path) -> bool:
    """Return whether a folder contains a run, intact or damaged.

    Raises:
        RecordError: The folder cannot be read.
    """
    return is_there(path / RUN)


def is_sweep(path: Path) -> bool:
    """Return whether a folder contains a sweep: several runs that differ in one setting.

    Raises:
        RecordError: The folder cannot be read.
    """
    return is_there(path / SWEEP)


def load_runs(paths: Sequence[Path]) -> tuple[NamedRun, ...]:
    """Read several run folders. The folder of a sweep counts as all of its started runs.

    Raises:
        ConfigError: No run is named, or one is named twice.
        RecordError: A run cannot be read, or no run of a sweep was started.
        SchemaVersionError: A run was written by a newer torch-dent.
    """
    folders: list[Path] = []
    for path in map(Path, paths):
        if is_sweep(path) and not is_run(path):
            started = [folder for folder in read_sweep(path).values() if is_run(folder)]
            if not started:
                raise RecordError(f"{path} is a sweep of which no run was begun yet")
            folders += started
        else:
            folders.append(path)
    if not folders:
        raise ConfigError("a report needs at least one run folder")
    for folder, count in Counter(folder.resolve() for folder in folders).items():
        if count > 1:
            raise ConfigError(f"the run {folder} is named {count} times: name each run once")
    names = _names([folder.resolve() for folder in folders])
    return tuple(
        NamedRun(name, load_run(folder)) for name, folder in zip(names, folders, strict=True)
    )


def _names(folders: Sequence[Path]) -> list[str]:
    """Return the last parts of each path, as few as make all names different."""
    longest = max(len(folder.parts) for folder in folders)
    for count in range(1, longest + 1):
        names = ["/".join(folder.parts[-count:]) for folder in folders]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def status_of(loaded: RecordedRun) -> RunStatus:
    """Return `complete` if nothing of the run is left to do, and else the status in `run.json`.

    A run whose process ended before it wrote its last status may be complete, and a complete run
    that has since lost records is `partial`.
    """
    if loaded.result.status == "complete":
        return "complete"
    return "partial" if loaded.run.status == "complete" else loaded.run.status
