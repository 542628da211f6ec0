"""The "did you mean" of unknown names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def closest(name: str, known: Iterable[str]) -> str | None:
    """The first known name that begins with another, else the closest; same case comes first.

    Args:
        name: The unknown name.
        known: The names that exist.

    Returns:
        The known name; `None` where none is close.
    """
    by_lower = {candidate.lower(): candidate for candidate in known}
    completions = sorted(
        (candidate for candidate in by_lower if name and candidate.startswith(name.lower())),
        key=lambda candidate: not by_lower[candidate].startswith(name),
    )
    close = completions or difflib.get_close_matches(name.lower(), by_lower, n=1)
    return by_lower[close[0]] if close else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of an error message that suggests what may have been meant.

    Args:
        name: The unknown name.
        known: The names that exist.

    Returns:
        ` Did you mean 'x'?` for the closest known name; nothing where none is close.
    """
    match = closest(name, known)
    return f" Did you mean {match!r}?" if match else ""
