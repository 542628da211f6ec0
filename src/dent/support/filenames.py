"""File names that are valid in every file system and URL."""

import re


def portable(name: str) -> str:
    """Return a name with `plus` for `+`, and `_` for all but ASCII letters, digits and `.=_-`."""
    return re.sub(r"[^A-Za-z0-9.=_-]", "_", name.replace("+", "plus"))
