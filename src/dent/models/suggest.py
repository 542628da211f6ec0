"""The "did you mean" of unknown names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of an error message that suggests what may have been meant.

    Args:
        name: The unknown name.
        known: The names that exist.

    Returns:
        ` Did you mean 'x'?` for the first known name that begins with it, else the closest, upper
        and lower case aside; nothing where none is close.
    """
    by_lower = {candidate.lower(): candidate for candidate in known}
    begun = [candidate for candidate in by_lower if name and candidate.startswith(name.lower())]
    close = begun or difflib.get_close_matches(name.lower(), by_lower, n=1)
    return f" Did you mean {by_lower[close[0]]!r}?" if close else ""
