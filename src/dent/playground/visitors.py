"""The visitors of the page, and the files that belong to each."""

import secrets
import shutil
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

MOST: Final = 1024
"""Largest number of known visitors. Beyond it, the one whose last request is the oldest is
forgotten, and must open the page again."""
MOST_OF_ADDRESS: Final = 64
MOST_SESSIONS: Final = 32
"""Largest number of sessions of one visitor. Every load of the page makes one."""
MOST_FILES: Final = 64
"""Largest number of files for all visitors together; of each visitor, the last upload is kept."""


@dataclass(eq=False)
class Visitor:
    """A browser that has opened the page.

    Attributes:
        token: The value of its cookie, which identifies it.
        address: Its network address.
        sessions: The sessions of its pages as keys, the oldest first.
    """

    token: str
    address: str
    sessions: dict[str, None] = field(default_factory=dict)


class Visitors:
    """The known visitors by their token, with the files that each may read.

    Args:
        cache: The folder of the files.
    """

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self._known: OrderedDict[str, Visitor] = OrderedDict()
        self._sessions: dict[str, Visitor] = {}
        self._files: OrderedDict[Visitor, Path] = OrderedDict()
        self._lock = threading.Lock()

    def welcome(self, address: str) -> Visitor:
        """Return a new visitor; forget an old one if there are too many."""
        with self._lock:
            same_address = [
                visitor for visitor in self._known.values() if visitor.address == address
            ]
            if len(same_address) >= MOST_OF_ADDRESS:
                self._forget(same_address[0])
            elif len(self._known) >= MOST:
                self._forget(next(iter(self._known.values())))
            visitor = Visitor(secrets.token_urlsafe(24), address)
            self._known[visitor.token] = visitor
            return visitor

    def known(self, token: str | None) -> Visitor | None:
        """Return the visitor with this token; None if there is none."""
        with self._lock:
            visitor = None if token is None else self._known.get(token)
            if visitor is not None:
                self._known.move_to_end(visitor.token)
            return visitor

    def owns(self, visitor: Visitor, session: str) -> bool:
        """Return whether a session belongs to a visitor: the first visitor who names it owns it."""
        with self._lock:
            owner = self._sessions.setdefault(session, visitor)
            if owner is not visitor:
                return False
            visitor.sessions[session] = None
            if len(visitor.sessions) > MOST_SESSIONS:
                oldest = next(iter(visitor.sessions))
                del visitor.sessions[oldest], self._sessions[oldest]
            return True

    def of(self, session: str | None) -> Visitor | None:
        """Return the owner of a session; None if there is none."""
        with self._lock:
            return None if session is None else self._sessions.get(session)

    def uploaded(self, visitor: Visitor, path: Path) -> None:
        """Record a visitor's upload, and delete the previous one."""
        with self._lock:
            earlier = self._files.pop(visitor, None)
            self._files[visitor] = path
            if earlier is not None:
                self._remove(earlier)
            if len(self._files) > MOST_FILES:
                _, oldest = self._files.popitem(last=False)
                self._remove(oldest)

    def may_read(self, visitor: Visitor, path: Path) -> bool:
        """Return whether a path is exactly that of the visitor's own file."""
        with self._lock:
            return self._files.get(visitor) == path

    def is_upload(self, path: Path) -> bool:
        """Return whether a path is a file of any visitor."""
        with self._lock:
            return path in self._files.values()

    def _forget(self, visitor: Visitor) -> None:
        del self._known[visitor.token]
        for session in visitor.sessions:
            self._sessions.pop(session, None)
        if (path := self._files.pop(visitor, None)) is not None:
            self._remove(path)

    def _remove(self, path: Path) -> None:
        """Delete a file, unless another visitor uploaded the same one."""
        if path not in self._files.values() and path.parent.parent == self.cache:
            shutil.rmtree(path.parent, ignore_errors=True)
