"""Load runs from paths: run folders, and folders of a sweep."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dent.errors import ConfigError
from dent.evaluation.records.folder import RUN
from dent.evaluation.results.recorded_run import RecordedRun as LoadedRun
from dent.evaluation.results.recorded_run import load_run as _load_run
from dent.evaluation.results.result import EvaluationResult
from dent.evaluation.sweeps import SWEEP, read_sweep
from dent.storage.disk import is_there, unreadable
from dent.storage.errors import RecordError

__all__ = ["LoadedRun", "NamedRun", "is_run", "is_sweep", "load_run", "load_runs"]


@dataclass(frozen=True)
class NamedRun:
    """A run on a page, with its name on that page.

    Attributes:
        name: The end of its path, as short as possible but unique on the page.
        loaded: Its records.
    """

    name: str
    loaded: LoadedRun

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


def load_run(path: Path) -> LoadedRun:
    """Read a run folder without changing it. The run may still be in progress.

    Returns:
        The run, with `.result` (derived from the records), `.run.spec`, `.plan`, `.records` (the
        journal, by unit), `.units()`, `.adversarial(record)` and `.sample(id)`.

    Raises:
        RecordError: The folder contains no run, or a file of the run is missing or damaged. The
            message says which file, and where the damage is.
        SchemaVersionError: The run was written by a newer torch-dent.
    """
    path = Path(path)
    try:
        is_file, is_folder = path.is_file(), path.is_dir()
    except OSError as error:
        raise unreadable(path, error) from error
    if is_file:
        raise RecordError(
            f"{path} is a file, and a run is a folder: name the folder that contains {RUN}"
        )
    if is_folder and not is_run(path):
        raise RecordError(f"{path} is not a run folder: it has no {RUN}{_instead(path)}")
    return _load_run(path)


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


def _instead(path: Path) -> str:
    if is_sweep(path):
        runs = ", ".join(str(folder) for folder in read_sweep(path).values())
        return f". It is a sweep; its runs are {runs}"
    inside = [child.name for child in sorted(path.iterdir()) if os.path.lexists(child / RUN)]
    if not inside:
        return ""
    more = ", ..." if len(inside) > 4 else ""
    return f". There are runs inside it: {', '.join(inside[:4])}{more}"
