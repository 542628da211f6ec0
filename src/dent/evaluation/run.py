"""Evaluate: the plan, unit by unit, into records, and from them the result."""

import time
from collections.abc import Iterator
from contextlib import closing, nullcontext, suppress
from pathlib import Path

from dent.evaluation.errors import RecordError
from dent.evaluation.execute import Batches, Run, Within, execute
from dent.evaluation.folder import RESULT, Memory, RunFolder, Store
from dent.evaluation.guard import Guard
from dent.evaluation.plan import Plan, Unit, make_plan, units
from dent.evaluation.progress import Report, Tracker
from dent.evaluation.provenance import new_session, now
from dent.evaluation.records import ProbeRecord, Session, UnitRecord
from dent.evaluation.result import EvaluationResult
from dent.evaluation.serving import device_of
from dent.evaluation.spec import EvaluationSpec, Settings
from dent.evaluation.stream import Stream
from dent.evaluation.subject import Subject, describe
from dent.evaluation.summary import summarize


def evaluate(
    subject: Subject,
    settings: Settings | None = None,
    *,
    out: Path | None = None,
    progress: Report | None = None,
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

    Returns:
        The result, also written to `out/result.json`.

    Raises:
        ConfigError: The settings or names mean nothing, or do not fit the dataset.
        InputError: A defense is none, does not answer with logits, or writes into the model.
        SpecMismatchError: `out` holds another evaluation; what differs is said field by field.
        LockedError: Another process is writing to `out`.
        RecordError: `out` is damaged, holds something else, or cannot be written to.

    Example:
        >>> subject = Subject(model, dataset, {"dent": Dent(model)}, [make("apgd-ce")], threat)
        >>> result = evaluate(subject, Settings(n=256), out=Path("runs/first"))
        >>> result.defenses["dent"].worst.served.share
    """
    settings = settings or Settings()
    subject = subject.sized(settings)
    spec = describe(subject, settings)
    plan = make_plan(settings, subject.dataset)
    session = new_session(device_of(subject.model))
    if out is None:
        store = Memory()
        with _Session(session, None) as tracked:
            _work(subject, spec, plan, store, tracked, progress)
        count = sum(1 for _ in units(spec, plan))
        return summarize(spec, plan, store.done, count, (tracked.session,))
    with closing(RunFolder(Path(out), spec, plan)) as folder:
        count = folder.run.units
        if len(folder.done) < count:
            folder.update(status="running", sessions=(*folder.run.sessions, session))
            with _Session(session, folder) as tracked:
                _work(subject, spec, plan, folder, tracked, progress)
        result = summarize(spec, plan, folder.done, count, folder.run.sessions)
        folder.write(RESULT, result)
    return result


class _Session:
    """Keeps the books of this process, and writes them when it ends, however it ends."""

    def __init__(self, session: Session, folder: RunFolder | None) -> None:
        self.session = session
        self._folder = folder
        self._started = time.perf_counter()
        self._timing = dict.fromkeys(("total", "attack", "serve", "probe"), 0.0)

    @property
    def elapsed(self) -> float:
        """Seconds since it began."""
        return time.perf_counter() - self._started

    def count(self, record: UnitRecord | ProbeRecord) -> None:
        """Take note of a unit that this process recorded."""
        if isinstance(record, ProbeRecord):
            self._timing["probe"] += record.timing.total
        self._timing["attack"] += record.timing.attack
        self._timing["serve"] += record.timing.serve + (record.timing.static or 0.0)
        self._timing["total"] = self.elapsed
        self.session = self.session.model_copy(
            update={"units": self.session.units + 1, "timing": dict(self._timing)}
        )

    def __enter__(self) -> "_Session":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, _: object) -> None:
        status = "complete"
        if kind is not None:
            status = "failed" if issubclass(kind, Exception) else "interrupted"
        self.session = self.session.model_copy(
            update={
                "ended": now(),
                "outcome": status,
                "message": None if kind in (None, KeyboardInterrupt) else f"{error}",
            }
        )
        if self._folder is not None:
            # Where the disk is full, what ends the run matters more than its books.
            with suppress(RecordError) if kind is not None else nullcontext():
                self._folder.session(self.session)
                self._folder.update(status=status)


def _work(
    subject: Subject,
    spec: EvaluationSpec,
    plan: Plan,
    store: Store,
    session: _Session,
    progress: Report | None,
) -> None:
    lineup = subject.lineup(spec.settings)
    stream = Stream(subject, lineup, plan.batches, spec.settings.seed)
    guard = Guard(subject.model, spec.model.weights)
    run = Run(subject, spec, plan, lineup, stream, store, guard)
    tracker = Tracker(subject, spec, plan)
    batches = Batches(run)
    for group in _groups(spec, plan):
        _work_on(run, group, tracker, batches, session, progress)
    if progress is not None:
        progress(tracker.state(None, session.elapsed))


def _work_on(
    run: Run,
    group: list[Unit],
    tracker: Tracker,
    batches: Batches,
    session: _Session,
    progress: Report | None,
) -> None:
    """Do what is not done yet of one batch's units, and then let go of its tensors."""
    for unit in group:
        if unit.key not in run.store.done:
            if progress is not None:
                progress(tracker.state(unit, session.elapsed))
            execute(run, unit, batches, _within(unit, tracker, session, progress))
            session.count(run.store.done[unit.key])
        tracker.count(unit, run.store.done[unit.key])
    for unit in group:
        record = run.store.done[unit.key]
        if isinstance(record, UnitRecord) and unit.kind == "attack":
            run.store.forget(record)


def _within(
    unit: Unit, tracker: Tracker, session: _Session, progress: Report | None
) -> Within | None:
    if progress is None:
        return None
    return lambda done, planned: progress(
        tracker.state(unit, session.elapsed, done / planned if planned else 0.0)
    )


def _groups(spec: EvaluationSpec, plan: Plan) -> Iterator[list[Unit]]:
    """The units batch by batch, in their order."""
    group: list[Unit] = []
    for unit in units(spec, plan):
        if group and (unit.batch != group[-1].batch or group[-1].kind == "probe"):
            yield group
            group = []
        group.append(unit)
    if group:
        yield group
