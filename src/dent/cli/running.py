"""Run an evaluation in a terminal: print its cost first, then show its progress."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from dent import distributed
from dent.cli.console import ERR, QUIET
from dent.distributed import Cluster
from dent.evaluation import EvaluationResult, Settings, Subject, evaluate, sweep
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
from dent.support.plural import counted


@dataclass(frozen=True)
class How:
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
            notice=_say,
        )


HERE: Final = How()
"""Compute the whole run in this process."""


def run(subject: Subject, settings: Settings, out: Path, how: How = HERE) -> EvaluationResult:
    """Evaluate with a progress bar. If interrupted, print how to resume."""
    try:
        with progress() as report:
            return how.evaluate(subject, settings, out=out, progress=report)
    except KeyboardInterrupt:
        _stopped(how.name_of(out))
        raise


def run_sweep(
    subject: Subject, settings: Settings, over: Over, values: Sequence[Value], out: Path, how: How
) -> dict[str, EvaluationResult]:
    """Evaluate once for each value, with a progress bar. If interrupted, print how to resume."""
    name = over.replace("_", "-")
    try:
        with progress() as report:
            return sweep(
                subject,
                settings,
                over=over,
                values=values,
                out=out,
                progress=lambda value, state: report(state, f"{name}={value}"),
                evaluate=how.evaluate,
            )
    except KeyboardInterrupt:
        _stopped(how.name_of(out))
        raise


def announce(subject: Subject, settings: Settings, out: Path, how: How = HERE) -> None:
    """Print the largest cost of a run before it starts; nothing if it will not start."""
    for sentence in announcement(_announced(subject, settings, out, how)):
        _say(sentence)


def announce_sweep(
    subject: Subject,
    settings: Settings,
    over: Over,
    values: Sequence[Value],
    out: Path,
    how: How = HERE,
) -> None:
    """Print the largest cost of all runs of a sweep together."""
    runs = [
        _announced(variant, chosen, out / folder_name(over, value), how)
        for value, (variant, chosen) in variants(subject, settings, over, values).items()
    ]
    for sentence in announcement_of_runs(runs):
        _say(sentence)


def _announced(subject: Subject, settings: Settings, out: Path, how: How) -> AnnouncedRun:
    workers = (how.cluster and how.cluster.workers) or 1
    return AnnouncedRun(subject, settings, out, how.shard, how.static_from, workers)


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
    with Progress(*columns, console=ERR, disable=not ERR.is_terminal) as bar:
        yield _RunReport(bar)


class _RunReport:
    """A callback for progress: draws a bar in a terminal, otherwise prints a line per unit."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._task = bar.add_task("starting", total=1.0, left="", robust="")
        self._lines = UnitLines(_say)
        self._said: float | None = None

    def clean(self, done: int, total: int) -> None:
        """Show how many images of a dataset are measured; without a terminal, in a line a minute.

        Args:
            done: Number of measured images.
            total: Number of images to measure.
        """
        text = f"Measuring clean accuracy, {done} of {counted(total, 'image')}"
        self._bar.update(self._task, description=text, completed=done / max(total, 1))
        if ERR.is_terminal or done == total:
            return
        if self._said is None or time.monotonic() - self._said >= QUIET:
            self._said = time.monotonic()
            _say(text)

    def __call__(self, state: State, where: str = "", left_in: str = "") -> None:
        robust = ", ".join(f"{name} {a}/{b}" for name, (a, b) in state.robust.items())
        self._bar.update(
            self._task,
            description=doing(state, where),
            completed=state.share,
            left=time_left(state, left_in),
            robust=f"robust: {robust}" if robust else "",
        )
        if not ERR.is_terminal:
            self._lines(state, where, left_in)


def _stopped(out: str) -> None:
    _say(f"\nStopped. The records are in {out}. The same command resumes the run.")


def _say(text: str) -> None:
    ERR.print(text, markup=False, soft_wrap=True)
