"""Evaluate: the plan, unit by unit, into records, and from them the result."""

import os
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from dent.evaluation.engine.execute import Batches, execute, open_run
from dent.evaluation.engine.progress import OnProgress, Tracker
from dent.evaluation.engine.rehearsal import rehearse
from dent.evaluation.engine.sessions import OpenSession, Sessions
from dent.evaluation.records.folder import RESULT, RUN, Memory, RunFolder, Store
from dent.evaluation.records.plan import Unit, groups, units
from dent.evaluation.records.provenance import new_session
from dent.evaluation.records.schema import UnitRecord
from dent.evaluation.records.spec import Settings
from dent.evaluation.results.result import EvaluationResult
from dent.evaluation.results.summary import summarize
from dent.evaluation.shard import Shard
from dent.evaluation.subject import Prepared, Subject, prepare
from dent.support.devices import device_of


def evaluate(
    subject: Subject,
    settings: Settings | None = None,
    *,
    out: Path | None = None,
    progress: OnProgress | None = None,
    shard: Shard | None = None,
) -> EvaluationResult:
    """Attack every defense on the same samples with the same budget, and score what it serves.

    Args:
        subject: Model, dataset, defenses, attacks and threat model.
        settings: How samples are batched, and what comes along.
        out: The run folder. A new or empty one is set up; one that holds the same evaluation is
            resumed where it stopped, however it stopped. Without it nothing is kept but the
            result.
        progress: Called before, within and after every unit. What it raises ends the run, which
            can then be resumed.
        shard: Do this part of the run alone; the result is `partial` until all parts lie in one
            folder (`dent.distributed.merge`).

    Returns:
        The result, also written to `out/result.json`.

    Raises:
        ConfigError: The settings or names mean nothing, or do not fit the dataset.
        InputError: A defense is none, does not answer with logits, or writes into the model.
        SpecMismatchError: `out` holds another evaluation; what differs is said field by field.
        LockedError: Another process is writing to `out`.
        RecordError: `out` is damaged, holds something else, or cannot be written to.

    Example:
        >>> subject = Subject(model, dataset, {"dent+": Dent(model)}, [make("apgd-ce")], threat)
        >>> result = evaluate(subject, Settings(n=256), out=Path("runs/first"))
        >>> result.defenses["dent+"].worst.served.share
    """
    return conduct(subject, settings, here, out=out, progress=progress, shard=shard)


@dataclass(frozen=True)
class Work:
    """The work left in a run, and where its records go: all that a worker needs.

    Attributes:
        prepared: What is evaluated.
        groups: Independent groups of units, only those of the shard.
        store: Where records are kept; existing records are not made again.
        sessions: The processes that work on it.
        tracker: How far it is.
        progress: Called with the progress.
    """

    prepared: Prepared
    groups: tuple[tuple[Unit, ...], ...]
    store: Store
    sessions: Sessions
    tracker: Tracker
    progress: OnProgress | None

    def left(self, group: Sequence[Unit]) -> tuple[Unit, ...]:
        """The units of a group that are not recorded."""
        return tuple(unit for unit in group if unit.key not in self.store.done)

    def count(self, unit: Unit, worker: OpenSession) -> None:
        """Count a recorded unit."""
        worker.count(self.store.done[unit.key])
        self.tracker.count(unit, self.store.done[unit.key])

    def close(self, group: Sequence[Unit]) -> None:
        """Drop the tensors of a group once all its units are recorded."""
        for unit in group:
            record = self.store.done[unit.key]
            if isinstance(record, UnitRecord) and unit.kind == "attack":
                self.store.forget(record)

    def tell(self, *running: tuple[Unit, float]) -> None:
        """Report how far the run is."""
        if self.progress is not None:
            self.progress(self.tracker.state(running, self.sessions.elapsed))


Do = Callable[[Work], None]
"""Makes all records that are missing, in whatever processes."""


def conduct(
    subject: Subject,
    settings: Settings | None,
    do: Do,
    *,
    out: Path | None,
    progress: OnProgress | None,
    shard: Shard | None,
) -> EvaluationResult:
    """Evaluate as `evaluate` does, the work being done by `do`."""
    settings = settings or Settings()
    prepared = prepare(subject, settings)
    spec, plan = prepared.spec, prepared.plan
    unit_groups = tuple(groups(spec, plan))
    if shard is not None:
        unit_groups = shard.of_all(unit_groups)

    if out is None or not os.path.exists(Path(out) / RUN):  # otherwise rehearsed before it started
        rehearse(prepared, (unit for group in unit_groups for unit in group))

    def work(store: Store, sessions: Sessions) -> Work:
        todo = [unit for group in unit_groups for unit in group]
        tracker = Tracker(prepared, todo)
        for unit in todo:
            if unit.key in store.done:
                tracker.count(unit, store.done[unit.key])
        return Work(prepared, unit_groups, store, sessions, tracker, progress)

    if out is None:
        memory = Memory()
        with Sessions(None) as sessions:
            do(work(memory, sessions))
        count = sum(1 for _ in units(spec, plan))
        return summarize(spec, plan, memory.done, count, sessions.sessions)
    with closing(RunFolder(Path(out), spec, plan)) as folder:
        if any(unit.key not in folder.done for group in unit_groups for unit in group):
            with Sessions(folder) as sessions:
                do(work(folder, sessions))
        run = folder.run
        result = summarize(run.spec, plan, folder.done, run.units, run.sessions)
        folder.write(RESULT, result)
    return result


def here(work: Work) -> None:
    """Do the work in this process, group by group."""
    run = open_run(work.prepared, work.store)
    batches = Batches(run)
    worker = work.sessions.open(new_session(device_of(work.prepared.subject.model)))
    for group in work.groups:
        for unit in work.left(group):
            work.tell((unit, 0.0))
            execute(run, unit, batches, _within(work, unit))
            work.count(unit, worker)
        work.close(group)
    work.tell()


def _within(work: Work, unit: Unit) -> Callable[[int, int], None] | None:
    if work.progress is None:
        return None
    return lambda done, planned: work.tell((unit, done / planned if planned else 0.0))
