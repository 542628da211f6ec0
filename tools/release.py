"""Check that a release agrees on its version, or print its notes.

python tools/release.py            # pyproject.toml, CITATION.cff and CHANGELOG.md agree
python tools/release.py v0.2.0     # and so does the tag
python tools/release.py --notes    # print the section of the changelog
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]


def version(root: Path = ROOT) -> str:
    """Return the version from pyproject.toml, the only place where it is set."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return str(project["version"])


def notes(root: Path = ROOT) -> str:
    """Return the section of the changelog for this version.

    Raises:
        SystemExit: The changelog has no such section, or an empty one.
    """
    changes = _changes(root)
    heading = re.compile(rf"^## {re.escape(version(root))}(?: .*)?$", re.MULTILINE)
    match = heading.search(changes)
    section = changes[match.end() :].partition("\n## ")[0].strip() if match else ""
    if not section:
        raise SystemExit(
            f"CHANGELOG.md: expected a section '## {version(root)}' that says something"
        )
    return f"{section}\n"


def check(tag: str | None, root: Path = ROOT) -> None:
    """Check that CITATION.cff, CHANGELOG.md and the tag, if any, name the version.

    Raises:
        SystemExit: One of them does not, or the changelog calls a tagged version unreleased.
    """
    expected = version(root)
    cited = re.search(
        r"^version: (.+)$", (root / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE
    )
    if cited is None or cited[1] != expected:
        raise SystemExit(f"CITATION.cff: expected version: {expected}, as pyproject.toml has it")
    if tag is not None and tag != f"v{expected}":
        raise SystemExit(f"the tag is {tag}, expected v{expected}, as pyproject.toml has it")
    notes(root)
    if tag is not None and f"## {expected} (unreleased)" in _changes(root):
        raise SystemExit(
            f"CHANGELOG.md: expected the date of {expected} in the place of unreleased"
        )


def _changes(root: Path) -> str:
    return (root / "CHANGELOG.md").read_text(encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:] == ["--notes"]:
        print(notes(), end="")
    else:
        check(sys.argv[1] if sys.argv[1:] else None)
