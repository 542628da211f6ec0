"""Rewrite the table of bundled models in a Markdown page from their cards.

python tools/tabulate_shipped.py docs/models.md
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from dent.models.info import by_images
from dent.models.shipped_source import ShippedModels

if TYPE_CHECKING:
    from dent.models.info import Accuracy, ModelInfo

BEGIN: Final = "<!-- shipped models, from their cards: python tools/tabulate_shipped.py -->"
END: Final = "<!-- end of shipped models -->"


def table(models: ShippedModels) -> str:
    """Return the table in Markdown without a final line break; a sentence if there is no model."""
    entries = models.entries()
    if not entries:
        return "No model is bundled yet."
    rows = [
        "| name | dataset | trained for | size | images | clean | attacked, the same images |",
        "| --- | --- | --- | ---: | ---: | ---: | --- |",
    ]
    return "\n".join([*rows, *(row for entry in entries for row in _rows(entry))])


def rewrite(page: str, models: ShippedModels) -> str:
    """Return a page with a new table between its two markers.

    Raises:
        ValueError: The page lacks a marker.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the page has no lines {BEGIN!r} and {END!r}")
    return f"{before}{BEGIN}\n{table(models)}\n{END}{after}"


def _rows(entry: ModelInfo) -> list[str]:
    """Return one row for each set of images, so that a row has only figures on the same images."""
    size = "" if entry.size is None else f"{entry.size / 1e6:.1f} MB"
    first = [f"`{entry.name}`", entry.dataset, entry.threat or "nominal", size]
    found = by_images(entry.accuracies)
    if not found:
        return [_line([*first, "", "not measured", "not measured"])]
    rows = []
    for at, one in enumerate(found):
        attacked = [f"{a.attack} at {a.threat}: {_percent(a)}" for a in one.attacked]
        natural = "not measured" if one.natural is None else _percent(one.natural)
        cells = [str(one.total), natural, "<br>".join(attacked) or "not attacked"]
        rows.append(_line([*(first if at == 0 else [""] * len(first)), *cells]))
    return rows


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _percent(accuracy: Accuracy) -> str:
    return f"{100 * accuracy.value:.1f}%"


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(rewrite(path.read_text(), ShippedModels()))
