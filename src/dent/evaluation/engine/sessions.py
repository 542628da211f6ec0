"""The sessions of a run: which processes worked on it, for how long, and how they ended."""

import time
from collections.abc import Collection
from contextlib import nullcontext, suppress
from typing import Final, Self

from dent.evaluation.records.folder import RunFolder
from dent.evaluation.records.plan import Plan
from dent.evaluation.records.provenance import later, now
from dent.evaluation.records.schema import JournalRecord, Session, SessionEnd, UnitRecord
from dent.evaluation.results.decision import units_left
from dent.storage.errors import RecordError
from dent.support.printable import encodable

_LONGEST: Final = 4000
"""Most characters of an error message that are recorded."""


class OpenSession:
    """The session of one process that works on a run."""

    def __init__(self, session: Session, taken: Collection[str] = ()) -> None:
        # The start time identifies a session. If the clock was set back, it could occur twice.
        started = now()
        while started in taken:
            started = later(started)
        self.session = session.model_copy(update={"started": started})
        self._began = time.perf_counter()
        self._timing = dict.fromkeys(("total", "attack", "serve", "probe"), 0.0)

    def count(self, record: JournalRecord) -> None:
        """Count a unit that the process recorded."""
        if not isinstance(record, UnitRecord):
            self._timing["probe"] += record.timing.total
        self._timing["attack"] += record.timing.attack
        self._timing["serve"] += record.timing.serve + (record.timing.static or 0.0)
        self._timing["total"] = time.perf_counter() - self._began
        self.session = self.session.model_copy(
            update={"units": self.session.units + 1, "timing": dict(self._timing)}
        )

    def end(self, outcome: SessionEnd, message: str | None = None) -> None:
        """Record how the session ended, unless that is already recorded."""
        if self.session.outcome is None:
            if message is not None:
                message = encodable(message)[:_LONGEST]
            changes = {"ended": now(), "outcome": outcome, "message": message}
            self.session = self.session.model_copy(update=changes)


class Sessions:
    """The sessions of all processes that work on a run. They are written even after an error.

    Args:
        folder: The folder of the run; None if nothing is written.
        plan: The batches of the run.
    """

    def __init__(self, folder: RunFolder | None, plan: Plan) -> None:
        self._folder, self._plan = folder, plan
        self._entries: list[OpenSession] = []
        self._began = time.perf_counter()

    @property
    def elapsed(self) -> float:
        """Seconds since this object was created."""
        return time.perf_counter() - self._began

    @property
    def sessions(self) -> tuple[Session, ...]:
        """The sessions that were opened here."""
        return tuple(entry.session for entry in self._entries)

    def open(self, session: Session) -> OpenSession:
        """Begin a session."""
        entry = OpenSession(session, {recorded.started for recorded in self._known()})
        self._entries.append(entry)
        if self._folder is not None:
            self._folder.session(entry.session)
        return entry

    def _known(self) -> tuple[Session, ...]:
        recorded = () if self._folder is None else self._folder.run.sessions
        return (*recorded, *self.sessions)

    def _missing(self) -> bool:
        """Return whether units are left to run."""
        folder = self._folder
        return folder is not None and bool(units_left(folder.spec, self._plan, folder.done))

    def __enter__(self) -> Self:
        if self._folder is not None:
            self._folder.update(status="running")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, _: object) -> None:
        outcome: SessionEnd = "complete"
        if kind is not None:
            outcome = "failed" if issubclass(kind, Exception) else "interrupted"
        message = None if kind in (None, KeyboardInterrupt) else f"{error}"
        for entry in self._entries:
            entry.end(outcome, message)
        if self._folder is None:
            return
        status = "partial" if outcome == "complete" and self._missing() else outcome
        # If the disk is full, keep the error that ended the run: it matters more than the sessions.
        with suppress(RecordError) if kind is not None else nullcontext():
            self._folder.session(*self.sessions)
            self._folder.update(status=status)
