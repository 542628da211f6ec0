"""Suggestions for unknown names ("did you mean ...")."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def closest(name: str, known: Iterable[str]) -> str | None:
    """Return the first known name that begins with `name`, else the closest; case is ignored.

    Of several that begin with it, a name in the same case is preferred.

    Args:
        name: The unknown name.
        known: The names that exist.

    Returns:
        The known name; `None` if none is close.
    """
    by_lower = {candidate.lower(): candidate for candidate in known}
    completions = sorted(
        (candidate for candidate in by_lower if name and candidate.startswith(name.lower())),
        key=lambda candidate: not by_lower[candidate].startswith(name),
    )
    close = completions or difflib.get_close_matches(name.lower(), by_lower, n=1)
    return by_lower[close[0]] if close else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the end of an error message, which suggests the closest known name.

    Args:
        name: The unknown name.
        known: The names that exist.

    Returns:
        ` Did you mean 'x'?`; the empty string if no known name is close.
    """
    match = closest(name, known)
    return f" Did you mean {match!r}?" if match else ""
