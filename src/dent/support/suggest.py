"""Messages about unknown names, with a suggestion ("Did you mean ...?")."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable


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


def unknown(what: str, name: str, known: Collection[str], *, expected: str | None = None) -> str:
    """Return the error message about an unknown name.

    Args:
        what: The kind of thing that has names, such as `dataset`.
        name: The unknown name.
        known: The names that exist, or examples of them.
        expected: The names that are allowed, in words; by default, `known`.

    Returns:
        `there is no dataset 'x'. Did you mean 'y'? Expected one of y, z`
    """
    if expected is None:
        expected = f"{'one of ' if len(known) > 1 else ''}{', '.join(known)}"
    return f"there is no {what} {name!r}.{did_you_mean(str(name), known)} Expected {expected}"
