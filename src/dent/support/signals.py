"""Make SIGTERM and SIGHUP end a run as Ctrl-C does, so that its records are kept."""

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Final

_NAMES: Final = ("SIGTERM", "SIGHUP")
_PATIENCE: Final = 30.0
"""Seconds after a signal in which another one must not interrupt the saving of records, because
schedulers signal both a process and its group. After that one may, in case the first was lost."""


class Terminated(KeyboardInterrupt):
    """Request to end the process by a signal other than Ctrl-C.

    Args:
        number: Number of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"ended by {signal.Signals(number).name}")
        self.number = number


class Received:
    """Signal handler of `as_interrupts`, and a record of the signal that it received.

    Attributes:
        number: Number of the signal; None if there was none.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._until = -math.inf

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Record a signal, and raise `Terminated` in the main thread."""
        if time.monotonic() < self._until:
            return
        self.number = number
        self._until = time.monotonic() + _PATIENCE
        raise Terminated(number)

    def ignore(self) -> None:
        """Ignore all further signals, so that none interrupts the remaining work."""
        self._until = math.inf


@contextmanager
def as_interrupts() -> Iterator[Received]:
    """Make SIGTERM and SIGHUP raise `Terminated`, a `KeyboardInterrupt`, in the main thread.

    A signal that the process was started to ignore, as `nohup` does with SIGHUP, stays ignored. In
    other threads than the main one this changes nothing.
    """
    received = Received()
    previous = {}
    if threading.current_thread() is threading.main_thread():
        for name in _NAMES:
            number = getattr(signal, name, None)  # Windows has no SIGHUP
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                previous[number] = signal.signal(number, received)
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def kept() -> Iterator[None]:
    """Restore the SIGTERM handler on exit, in case the code inside replaces it, as Ray does.

    If SIGTERM arrived meanwhile, and the other handler ended the process by `sys.exit(SIGTERM)`,
    the restored handler receives it instead.
    """
    previous = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit as end:
        _restore(previous)
        if end.code == signal.SIGTERM:
            signal.raise_signal(signal.SIGTERM)
        raise
    finally:
        _restore(previous)


def _restore(handler: object) -> None:
    if handler is not None:
        with suppress(ValueError):  # not in the main thread, where none was replaced either
            signal.signal(signal.SIGTERM, handler)  # type: ignore[arg-type]
