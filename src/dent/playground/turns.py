"""The queue of runs: one at a time, a few for each address, and none for a visitor who has left."""

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from dent.errors import InputError

MOST_WAITING: Final = 16
"""Largest number of runs that wait or compute, for all visitors together."""
MOST_OF_ADDRESS: Final = 4
"""Largest number of runs that wait or compute for one network address."""
MOST_SECONDS: Final = 300.0
"""Seconds that a run may compute, by default."""
_PATIENCE: Final = 10.0
"""Seconds within which a client that asks for a run must begin to listen for its results."""


@dataclass(frozen=True)
class Asker:
    """The client that asks for a run.

    Attributes:
        session: Session of the open page.
        visitor: Token of the browser.
        address: Network address of the browser.
    """

    session: str
    visitor: str
    address: str


class Turn:
    """One run, from the request until its work has ended.

    To the work, it is an event that is set once the work must stop.
    """

    def __init__(self, turns: "Turns", asker: Asker, until: float) -> None:
        self.asker = asker
        self._turns = turns
        self._stopped = threading.Event()
        self._listened_by = until
        self._ends = math.inf
        self.begun = False

    def begin(self) -> None:
        """Begin to compute. The time limit counts from now."""
        self.begun, self._ends = True, self._turns.clock() + self._turns.seconds

    def set(self) -> None:
        """Stop the run, because its visitor asks for it or has left."""
        self._stopped.set()

    def is_set(self) -> bool:
        """Return whether the run must stop."""
        return self._stopped.is_set() or self.overdue or self._unheard

    @property
    def overdue(self) -> bool:
        """Whether the run has reached its time limit."""
        return self._turns.clock() >= self._ends

    @property
    def _unheard(self) -> bool:
        late = self._turns.clock() >= self._listened_by
        return late and not self._turns.listens(self.asker.session)


class Turns:
    """The queue of runs.

    Args:
        seconds: Seconds that a run may compute.
        clock: Returns the time in seconds; for tests.
    """

    def __init__(
        self, seconds: float = MOST_SECONDS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.seconds, self.clock = seconds, clock
        self._queue: deque[Turn] = deque()
        self._listening: Counter[str] = Counter()
        self._changed = threading.Condition()

    def ask(self, asker: Asker) -> Turn:
        """Put a run into the queue.

        Raises:
            InputError: The visitor has a run already, or there are too many.
        """
        with self._changed:
            self._drop_stopped()
            waiting = [turn.asker for turn in self._queue]
            if any(other.visitor == asker.visitor for other in waiting):
                raise InputError("one run at a time: stop the other, or wait until it has ended")
            if sum(other.address == asker.address for other in waiting) >= MOST_OF_ADDRESS:
                raise InputError(
                    f"{MOST_OF_ADDRESS} runs from this address are already waiting: try again later"
                )
            if len(waiting) >= MOST_WAITING:
                raise InputError(f"{MOST_WAITING} runs are already waiting: try again later")
            turn = Turn(self, asker, self.clock() + _PATIENCE)
            self._queue.append(turn)
            return turn

    def wait(self, turn: Turn, seconds: float) -> int:
        """Wait for a run's turn, or until it must stop; return the number of runs before it.

        Args:
            turn: The run.
            seconds: Longest time to wait.
        """
        with self._changed:
            self._changed.wait_for(lambda: turn.is_set() or not self._before(turn), seconds)
            return self._before(turn)

    def end(self, turn: Turn) -> None:
        """Remove a run from the queue, so that the next one can begin."""
        with self._changed:
            if turn in self._queue:
                self._queue.remove(turn)
            self._changed.notify_all()

    def stop(self, session: str) -> None:
        """Stop the runs of a session, computing or waiting."""
        with self._changed:
            for turn in self._queue:
                if turn.asker.session == session:
                    turn.set()
            self._changed.notify_all()

    def came(self, session: str) -> None:
        """Record that a client listens for a session's results."""
        with self._changed:
            self._listening[session] += 1

    def left(self, session: str) -> None:
        """Record that a client has left; stop the session's runs if it was the last one."""
        with self._changed:
            self._listening[session] -= 1
            is_gone = self._listening[session] <= 0
            if is_gone:
                del self._listening[session]
        if is_gone:
            self.stop(session)

    def listens(self, session: str) -> bool:
        """Return whether a client listens for a session's results."""
        return self._listening[session] > 0

    def _before(self, turn: Turn) -> int:
        self._drop_stopped(but=turn)
        return self._queue.index(turn) if turn in self._queue else 0

    def _drop_stopped(self, but: Turn | None = None) -> None:
        """Drop stopped runs that have not begun; a run that has begun ends by itself."""
        for turn in [turn for turn in self._queue if turn is not but]:
            if not turn.begun and turn.is_set():
                self._queue.remove(turn)
