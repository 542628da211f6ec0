"""Rewrite docs/notebooks/*.ipynb from the tutorials that the tests run.

    python tools/notebooks.py

Blocks of Python become code cells, and everything else becomes text. Links that work only in the
repository become plain text. Nothing is run, so there are no outputs.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import nbformat

from dent.support.extras import installing

ROOT: Final = Path(__file__).parents[1]
TUTORIALS: Final = ROOT / "docs" / "tutorials"
FOLDER: Final = ROOT / "docs" / "notebooks"
NAMES: Final = ("break-a-defense", "evaluate")
"""Names of the tutorials that become notebooks; any tutorial can."""
CLONE: Final = "# Before the release on PyPI, in a clone of torch-dent: %pip install ../.."

_NOTEBOOK: Final = re.compile(r"^\[[^\]]*\]\([^)]*\.ipynb\)\n+", re.MULTILINE)
_CODE: Final = re.compile(r"^```python\n(.*?)^```\n?", re.MULTILINE | re.DOTALL)
_LINK: Final = re.compile(r"(!?)\[([^\]]*)\]\((?!\w+://)[^)\s]+\)")


def notebook(page: str) -> nbformat.NotebookNode:
    """Return a tutorial as a notebook.

    Args:
        page: The tutorial in Markdown.

    Raises:
        ValueError: The tutorial has no block of Python.
    """
    pieces = _CODE.split(_NOTEBOOK.sub("", page))
    if len(pieces) == 1:
        raise ValueError("the tutorial has no block of Python, so that it makes no notebook")
    # The text between the blocks of Python is at the even places.
    cells = [_cell(piece, is_code=bool(place % 2)) for place, piece in enumerate(pieces)]
    install = nbformat.v4.new_code_cell(f"%{installing('torch-dent')}\n{CLONE}")
    cells = [cell for cell in [cells[0], install, *cells[1:]] if cell.source]
    for place, cell in enumerate(cells):
        cell.id = f"cell-{place}"  # otherwise it is drawn at random each time
    made: nbformat.NotebookNode = nbformat.v4.new_notebook(cells=cells)
    made.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    made.nbformat_minor = 5
    nbformat.validate(made)
    return made


def written(name: str) -> str:
    """Return the content of a notebook file.

    Args:
        name: Name of the tutorial, without a suffix.
    """
    page = (TUTORIALS / f"{name}.md").read_text(encoding="utf-8")
    return f"{nbformat.writes(notebook(page))}\n"


def _cell(piece: str, *, is_code: bool) -> nbformat.NotebookNode:
    cell: nbformat.NotebookNode
    if is_code:
        cell = nbformat.v4.new_code_cell(piece.strip("\n"))
    else:
        cell = nbformat.v4.new_markdown_cell(_LINK.sub(_text, piece).strip("\n"))
    return cell


def _text(link: re.Match[str]) -> str:
    return "" if link[1] else link[2]


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name in NAMES:
        (FOLDER / f"{name}.ipynb").write_text(written(name), encoding="utf-8")
