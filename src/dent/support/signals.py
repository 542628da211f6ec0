"""SIGTERM and SIGHUP end what runs as Ctrl-C does: what is recorded is kept."""

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
"""Seconds in which another signal must not interrupt what saves the records, for schedulers signal
a process and its group. Afterwards one may, in case the first was lost."""


class Terminated(KeyboardInterrupt):
    """The process was told to end, by another way than Ctrl-C.

    Args:
        number: Number of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"ended by {signal.Signals(number).name}")
        self.number = number


class Received:
    """What was received while `as_interrupts` held.

    Attributes:
        number: Number of the signal; None if there was none.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._until = -math.inf

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Take note of a signal, and raise it where the main thread is."""
        if time.monotonic() < self._until:
            return
        self.number = number
        self._until = time.monotonic() + _PATIENCE
        raise Terminated(number)

    def ignore(self) -> None:
        """Let no signal interrupt what is left to do."""
        self._until = math.inf


@contextmanager
def as_interrupts() -> Iterator[Received]:
    """Have SIGTERM and SIGHUP raise `Terminated`, a `KeyboardInterrupt`, in the main thread.

    A signal that the process was started to ignore, as `nohup` does with SIGHUP, stays ignored;
    elsewhere than in the main thread nothing changes.
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
    """Put a SIGTERM handler back that what is called inside replaces by its own, as Ray does."""
    previous = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if callable(previous):
            with suppress(ValueError):  # not in the main thread, where none was replaced either
                signal.signal(signal.SIGTERM, previous)
