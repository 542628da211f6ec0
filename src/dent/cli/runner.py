"""Evaluate, verify and challenge in a terminal: print the cost first, then show the progress."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from dent import distributed, evaluation
from dent.attacks import Attack
from dent.cli import console
from dent.distributed import Cluster
from dent.errors import ConfigError
from dent.evaluation import (
    Challenged,
    EvaluationResult,
    Reattack,
    RecordedRun,
    RecordError,
    SchemaVersionError,
    Settings,
    Subject,
    Verification,
    evaluate,
    sweep,
)
from dent.evaluation import Progress as State
from dent.evaluation.announcement import (
    AnnouncedRun,
    UnitLines,
    announcement,
    announcement_of_runs,
    doing,
    time_left,
)
from dent.evaluation.engine.progress import OnProgress
from dent.evaluation.records.shard import Shard
from dent.evaluation.records.sweep import Over
from dent.evaluation.remote import Place
from dent.evaluation.sweeps import Value, folder_name, variants
from dent.evaluation.verification.verify import OnUnit
from dent.report import load_run
from dent.report.loading import is_run
from dent.support.durations import between
from dent.support.plural import counted


@dataclass(frozen=True)
class RunPlacement:
    """The place where a run is computed, and the part to compute. Results do not depend on it.

    Attributes:
        cluster: The Ray cluster; None computes in this process.
        shard: The part of the run; None computes the whole run.
        place: The destination of the records; None for a plain folder.
        static_from: A run folder whose records of the static model are copied.
    """

    cluster: Cluster | None = None
    shard: Shard | None = None
    place: Place | None = None
    static_from: Path | None = None

    def name_of(self, out: Path) -> str:
        """Return the path or URL of a run folder, in the user's terms."""
        return str(out) if self.place is None else self.place.name_of(out)

    def evaluate(
        self, subject: Subject, settings: Settings, *, out: Path | None, progress: OnProgress | None
    ) -> EvaluationResult:
        """Evaluate, as `dent.evaluation.evaluate` does."""
        if self.place is not None:
            progress = self.place.watch(progress)
        if self.cluster is None or out is None:
            return evaluate(
                subject,
                settings,
                out=out,
                progress=progress,
                shard=self.shard,
                static_from=self.static_from,
            )
        return distributed.evaluate(
            subject,
            settings,
            cluster=self.cluster,
            out=out,
            progress=progress,
            shard=self.shard,
            static_from=self.static_from,
            notice=console.note,
        )


HERE: Final = RunPlacement()
"""Compute the whole run in this process."""


@dataclass(frozen=True)
class Restoration:
    """How to restore what a run evaluated.

    Attributes:
        weights: The model's weights file, if the recorded model needs one.
        data_root: Folder of datasets.
        device: The device to compute on; without one, the GPU if there is one.
        allow_code: Import and call the `module:factory` names that the run records.
    """

    weights: Path | None = None
    data_root: Path | None = None
    device: str | None = None
    allow_code: bool = False

    def subject(self, recorded: RecordedRun) -> Subject:
        """Return what a run evaluated.

        Raises:
            ConfigError: The run names code that is not allowed.
            DentError: The model or the dataset is missing here, or does not fit the record.
        """
        return evaluation.restore(
            recorded,
            weights=self.weights,
            data_root=self.data_root,
            device=self.device,
            allow_code=self.allow_code,
        )


def run(
    subject: Subject, settings: Settings, out: Path, placement: RunPlacement = HERE
) -> EvaluationResult:
    """Evaluate with a progress bar. If interrupted, print how to resume."""
    try:
        with progress() as shown:
            return placement.evaluate(subject, settings, out=out, progress=shown)
    except KeyboardInterrupt:
        _stopped(placement.name_of(out))
        raise


def run_sweep(
    subject: Subject,
    settings: Settings,
    over: Over,
    values: Sequence[Value],
    out: Path,
    placement: RunPlacement,
) -> dict[str, EvaluationResult]:
    """Evaluate once for each value, with a progress bar. If interrupted, print how to resume."""
    name = over.replace("_", "-")
    try:
        with progress() as shown:
            return sweep(
                subject,
                settings,
                over=over,
                values=values,
                out=out,
                progress=lambda value, state: shown(state, f"{name}={value}"),
                evaluate=placement.evaluate,
            )
    except KeyboardInterrupt:
        _stopped(placement.name_of(out))
        raise


def announce(
    subject: Subject, settings: Settings, out: Path, placement: RunPlacement = HERE
) -> None:
    """Print the largest cost of a run before it starts; nothing if it will not start."""
    for sentence in announcement(_announced(subject, settings, out, placement)):
        console.note(sentence)


def announce_sweep(
    subject: Subject,
    settings: Settings,
    over: Over,
    values: Sequence[Value],
    out: Path,
    placement: RunPlacement = HERE,
) -> None:
    """Print the largest cost of all runs of a sweep together."""
    runs = [
        _announced(variant, chosen, out / folder_name(over, value), placement)
        for value, (variant, chosen) in variants(subject, settings, over, values).items()
    ]
    for sentence in announcement_of_runs(runs):
        console.note(sentence)


def _announced(
    subject: Subject, settings: Settings, out: Path, placement: RunPlacement
) -> AnnouncedRun:
    workers = (placement.cluster and placement.cluster.workers) or 1
    return AnnouncedRun(subject, settings, out, placement.shard, placement.static_from, workers)


def challenge(
    folder: Path,
    source: Path | Attack,
    *,
    by: str,
    defense: str | None,
    url: str | None,
    note: str | None,
    dry_run: bool,
    restoration: Restoration,
) -> Challenged:
    """Challenge a run: print the cost of an attack, and show the progress.

    Raises:
        ConfigError: The run names code that is not allowed.
        DentError: As in `dent.evaluation.challenge`.
    """
    loaded = load_run(folder)
    subject = restoration.subject(loaded)
    if isinstance(source, Attack):
        _announce_challenge(folder, subject, source, defense)
    batches = len(loaded.plan.batches)
    try:
        with progress() as shown:
            return evaluation.challenge(
                folder,
                subject,
                source,
                by=by,
                defense=defense,
                url=url,
                note=note,
                progress=lambda state: shown(state, _where(state, batches)),
                dry_run=dry_run,
            )
    except KeyboardInterrupt:
        console.note("\nStopped. Nothing was recorded.")
        raise


def verify(
    folder: Path, restoration: Restoration, *, records_only: bool, reattack: Reattack | None
) -> Verification:
    """Check a run, with a progress bar.

    Args:
        folder: The run.
        restoration: How to restore what it evaluated.
        records_only: Check only records and digests.
        reattack: The attacks to run again; none if None.

    Raises:
        ConfigError: The run names code that is not allowed.
        RecordError: There is no run.
    """
    loaded = _readable(folder)
    subject = None
    if loaded is not None and not records_only:
        subject = restoration.subject(loaded)
    with verification_progress() as on_unit:
        return evaluation.verify(folder, subject, progress=on_unit, reattack=reattack)


def _announce_challenge(
    folder: Path, subject: Subject, attack: Attack, defense: str | None
) -> None:
    """Print the largest cost of an attack before it starts."""
    text = "A challenge cannot be resumed: if it stops, nothing is recorded."
    try:
        cost = evaluation.estimate_challenge(folder, subject, attack, defense=defense)
    except ConfigError:  # there is no estimate, or the challenge will be refused
        pass
    else:
        expected = between(cost.least, cost.seconds)
        text = f"This attack takes about {expected} if it does not stop early. {text}"
    console.note(text)


def _where(state: State, batches: int) -> str:
    batch = None if state.unit is None else state.unit.batch
    return "" if batch is None else f"batch {batch + 1} of {batches}"


def _readable(run: Path) -> RecordedRun | None:
    """Read the run; None if its records are damaged, which `verify` reports as a failed check.

    Raises:
        RecordError: There is no run there at all.
    """
    try:
        return load_run(run)
    except SchemaVersionError:
        raise
    except RecordError:
        if not is_run(run):
            raise
        return None


@contextmanager
def progress() -> Iterator["_RunReport"]:
    """Show the progress of evaluations: a bar in a terminal, otherwise a line for each unit."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}  {task.fields[robust]}", markup=False),
    )
    with Progress(*columns, console=console.ERR, disable=not console.ERR.is_terminal) as bar:
        yield _RunReport(bar)


@contextmanager
def verification_progress() -> Iterator[OnUnit]:
    """Show a bar, and yield what is called after every unit that was submitted again."""
    columns = ("[progress.description]{task.description}", BarColumn(), MofNCompleteColumn())
    with Progress(
        *columns, TimeRemainingColumn(), console=console.ERR, disable=not console.ERR.is_terminal
    ) as bar:
        task = bar.add_task("submitting again", total=None)
        yield lambda done, of: bar.update(task, completed=done, total=of)


class _RunReport:
    """A callback for progress: draws a bar in a terminal, otherwise prints a line per unit."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._task = bar.add_task("starting", total=1.0, left="", robust="")
        self._lines = UnitLines(console.note)
        self._said: float | None = None

    def clean(self, done: int, total: int) -> None:
        """Show how many images of a dataset are measured; without a terminal, in a line a minute.

        Args:
            done: Number of measured images.
            total: Number of images to measure.
        """
        text = f"Measuring clean accuracy, {done} of {counted(total, 'image')}"
        self._bar.update(self._task, description=text, completed=done / max(total, 1))
        if console.ERR.is_terminal or done == total:
            return
        if self._said is None or time.monotonic() - self._said >= console.QUIET:
            self._said = time.monotonic()
            console.note(text)

    def __call__(self, state: State, where: str = "", left_in: str = "") -> None:
        robust = ", ".join(f"{name} {a}/{b}" for name, (a, b) in state.robust.items())
        self._bar.update(
            self._task,
            description=doing(state, where),
            completed=state.share,
            left=time_left(state, left_in),
            robust=f"robust: {robust}" if robust else "",
        )
        if not console.ERR.is_terminal:
            self._lines(state, where, left_in)


def _stopped(out: str) -> None:
    console.note(f"\nStopped. The records are in {out}. The same command resumes the run.")
