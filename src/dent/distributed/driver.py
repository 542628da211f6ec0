"""Give groups of units to workers, record the results, and give the work of dead workers to others.

Only the driver writes, so nothing is recorded twice. It does not depend on Ray, only on a `Pool`.
"""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from dent.distributed.cluster import WorkerError
from dent.distributed.tasks import Found, Task
from dent.errors import InputError
from dent.evaluation.records.plan import Group, Unit
from dent.evaluation.records.probe_answers import stateful
from dent.evaluation.records.schema import JournalRecord, ProbeRecord, Session
from dent.evaluation.run import RemainingWork
from dent.support.plural import counted

if TYPE_CHECKING:
    from dent.evaluation.engine.sessions import OpenSession

_POLL: Final = 0.5
_QUIET: Final = 15.0


@dataclass(frozen=True)
class Ready:
    """An event: a worker is ready for work."""

    worker: int
    session: Session


@dataclass(frozen=True)
class Recorded:
    """An event: a worker ran a unit."""

    worker: int
    found: Found


@dataclass(frozen=True)
class Finished:
    """An event: a worker ran all units of its task."""

    worker: int


@dataclass(frozen=True)
class Lost:
    """An event: a worker died, or cannot be reached. It sends nothing more."""

    worker: int
    cause: str


@dataclass(frozen=True)
class Failed:
    """An event: the work of a worker raised an error, as it would in any process."""

    worker: int
    error: Exception


Event = Ready | Recorded | Finished | Lost | Failed


class Pool(Protocol):
    """A pool of workers, each with a number."""

    @property
    def size(self) -> int:
        """The number of workers to have at once."""
        ...

    def hire(self) -> int:
        """Start a worker and return its number. Events will say if it is ready, failed or lost."""
        ...

    def give(self, worker: int, task: Task) -> None:
        """Give a task to a worker that is ready and idle."""
        ...

    def wait(self, seconds: float) -> list[Event]:
        """Wait for events, for at most this many seconds, and return them."""
        ...

    def within(self) -> Mapping[int, tuple[Unit, float]]:
        """Return, for each worker, the unit that it runs and its last known progress, 0 to 1."""
        ...

    def lacking(self) -> str:
        """Return a message: the resources that one worker needs, and those that are available."""
        ...


def drive(
    work: RemainingWork,
    pool: Pool,
    *,
    attempts: int,
    patience: float,
    notice: Callable[[str], None] = lambda _: None,
) -> None:
    """Do the work with a pool of workers.

    Args:
        work: The work to do.
        pool: The workers.
        attempts: Give up once this many workers have died during one group, or in a row before
            they were ready.
        patience: Seconds to wait without any worker before giving up.
        notice: Called with a message when a worker dies, or when none has started for a while.

    Raises:
        WorkerError: Workers keep dying during the same work, or none can be started.
        InputError: A defense depends on earlier queries and cannot be reset.
        Exception: Any error that an attack or defense raises. There is no retry.
    """
    _Driver(work, pool, attempts, patience, notice).run()


class _Driver:
    def __init__(
        self,
        work: RemainingWork,
        pool: Pool,
        attempts: int,
        patience: float,
        notice: Callable[[str], None],
    ) -> None:
        self._work, self._pool = work, pool
        self._attempts, self._patience, self._notice = attempts, patience, notice
        self._todo: deque[tuple[Unit, ...]] = deque()
        self._coming: set[int] = set()
        self._entries: dict[int, OpenSession] = {}
        self._busy: dict[int, tuple[Unit, ...]] = {}
        self._deaths: dict[tuple[Unit, ...], list[str]] = {}
        self._stillborn: list[str] = []
        self._alone_since = time.monotonic()
        self._said = False

    def run(self) -> None:
        for record in self._work.store.done.values():
            self._refuse_memory(record)
        for groups in self._work.rounds_to_run():
            self._run(groups)
        self._work.tell()

    def _run(self, groups: Sequence[Group]) -> None:
        """Run independent groups."""
        for group in groups:
            if self._work.unrecorded(group):
                self._todo.append(group)
            else:
                self._work.close(group)
        while self._todo or self._busy:
            self._staff()
            for event in self._pool.wait(_POLL):
                self._take(event)
            self._tell()

    def _staff(self) -> None:
        """Give work to idle workers, and start more workers if there is more work."""
        for worker in self._entries:
            if self._todo and worker not in self._busy:
                group = self._todo.popleft()
                self._busy[worker] = group
                self._pool.give(worker, Task.of(group, self._work.store, self._work.needed(group)))
        hands = len(self._entries) + len(self._coming)
        needed = min(self._pool.size, len(self._todo) + len(self._busy))
        for _ in range(needed - hands):
            self._coming.add(self._pool.hire())
        self._wait_for_hands()

    def _wait_for_hands(self) -> None:
        if self._entries:
            self._alone_since, self._said = time.monotonic(), False
            return
        waited = time.monotonic() - self._alone_since
        if waited > self._patience:
            raise WorkerError(
                f"no worker could be started within {counted(round(self._patience), 'second')}: "
                f"{self._pool.lacking()}. The same command resumes when there is room"
            )
        if waited > _QUIET and not self._said:
            self._notice(f"Waiting for workers to start: {self._pool.lacking()}.")
            self._said = True

    def _take(self, event: Event) -> None:
        match event:
            case Ready(worker, session):
                self._coming.discard(worker)
                self._stillborn.clear()
                self._entries[worker] = self._work.sessions.open(session)
            case Recorded(worker, found):
                self._record(worker, found)
            case Finished(worker):
                self._work.close(self._busy.pop(worker))
            case Lost(worker, cause):
                self._lose(worker, cause)
            case Failed(_, error):
                raise error

    def _record(self, worker: int, recorded: Found) -> None:
        unit = next(unit for unit in self._busy[worker] if unit.key == recorded.record.key)
        self._work.store.put(recorded.record, recorded.tensor)
        self._work.count(unit, self._entries[worker])
        self._refuse_memory(recorded.record)

    def _lose(self, worker: int, cause: str) -> None:
        if worker in self._coming:
            self._coming.remove(worker)
            self._stillborn.append(cause)
            if len(self._stillborn) >= self._attempts:
                raise WorkerError(
                    f"{counted(len(self._stillborn), 'worker')} in a row died before they "
                    f"were ready: {cause}"
                )
            return
        self._entries.pop(worker).end("failed", cause)
        group = self._busy.pop(worker, None)
        if group is None:
            return
        deaths = self._deaths.setdefault(group, [])
        deaths.append(cause)
        name = _named(group)
        if len(deaths) >= self._attempts:
            raise WorkerError(
                f"{counted(len(deaths), 'worker')} died during {name}, so it is not tried again: "
                f"{cause}. All other records are safe, and the same command resumes. If memory "
                "was the problem, give each worker more of a machine, or use smaller batches"
            )
        if self._work.unrecorded(group):
            self._todo.appendleft(group)
        else:
            self._work.close(group)
        self._notice(f"A worker died during {name}, which another worker takes over: {cause}")

    def _tell(self) -> None:
        heard = self._pool.within()
        running = []
        for worker, group in reversed(self._busy.items()):
            remaining = self._work.unrecorded(group)
            if not remaining:
                continue
            unit, share = heard.get(worker, (remaining[0], 0.0))
            running.append((remaining[0], share if unit == remaining[0] else 0.0))
        if running:
            self._work.tell(*running)

    def _refuse_memory(self, record: JournalRecord) -> None:
        """Refuse a defense whose predictions would depend on the worker."""
        if not isinstance(record, ProbeRecord) or not stateful(record):
            return
        prepared = self._work.prepared
        defense = prepared.subject.lineup(prepared.spec.settings)[record.defense]
        if callable(getattr(defense, "reset", None)):
            return
        raise InputError(
            f"the defense {record.defense!r} depends on earlier queries and has no reset(), so "
            "its answers would depend on the worker. Add reset() (and snapshot() and "
            "restore(state), if it should keep state), or evaluate it in one process"
        )


def _named(group: tuple[Unit, ...]) -> str:
    first_unit = group[0]
    if first_unit.kind == "certificate":
        return f"the certificate of {first_unit.defense}"
    if first_unit.kind == "probe":
        return f"the probe of {first_unit.defense}"
    if first_unit.batch is None:
        return f"{first_unit.attack} on {first_unit.defense} over all batches"
    return f"batch {first_unit.batch}"
