"""Rewrite the badges of the README from the facts in the repository.

    python tools/badges.py

The badges are files in the repository, so the README loads nothing from other hosts. A test checks
that they are up to date.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Final
from xml.sax.saxutils import escape

ROOT: Final = Path(__file__).parents[1]
FOLDER: Final = ROOT / "docs" / "figures" / "badges"
_LETTER: Final = 6.6
_MARGIN: Final = 12


def badges(root: Path = ROOT) -> dict[str, str]:
    """Return all badges as SVG, by file name."""
    with (root / "pyproject.toml").open("rb") as file:
        project: dict[str, Any] = tomllib.load(file)["project"]
    is_typed = (root / "src" / "dent" / "py.typed").is_file()
    torch = next(text for text in project["dependencies"] if text.startswith("torch>="))
    said = {
        "version": ("version", project["version"]),
        "python": ("Python", project["requires-python"].replace(">=", "≥ ")),
        "torch": ("PyTorch", torch.removeprefix("torch").replace(">=", "≥ ")),
        "license": ("license", project["license"]),
        "types": ("types", "mypy strict" if is_typed else "none"),
    }
    return {f"{name}.svg": _badge(*words) for name, words in said.items()}


def _badge(left: str, right: str) -> str:
    first, second = (round(len(word) * _LETTER + _MARGIN) for word in (left, right))
    width = first + second
    words = "".join(
        f'<text x="{at:g}" y="14">{escape(word)}</text>'
        for at, word in ((first / 2, left), (first + second / 2, right))
    )
    label = escape(f"{left}: {right}")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="20" role="img" '
        f'aria-label="{label}"><title>{label}</title>'
        f'<rect width="{width}" height="20" rx="3" fill="#444c56"/>'
        f'<path d="M{first} 0h{second - 3}a3 3 0 0 1 3 3v14a3 3 0 0 1-3 3h-{second - 3}z" '
        'fill="#1f6feb"/><g fill="#fff" font-size="11" text-anchor="middle" '
        f'font-family="Verdana,Geneva,DejaVu Sans,sans-serif">{words}</g></svg>\n'
    )


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, text in badges().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
