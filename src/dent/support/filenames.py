"""Names of files that every file system and URL takes."""

import re


def portable(name: str) -> str:
    """Return a name with `plus` for `+`, and `_` for all but letters, digits and `.=_-`."""
    return re.sub(r"[^A-Za-z0-9.=_-]", "_", name.replace("+", "plus"))
