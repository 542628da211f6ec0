"""Writes the table of shipped models in a Markdown page anew from their cards.

python -m dent.models.tabulate_shipped docs/models.md
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from dent.models.shipped_source import ShippedModels

if TYPE_CHECKING:
    from dent.models.info import Accuracy, ModelInfo

BEGIN: Final = "<!-- shipped models, from their cards: python -m dent.models.tabulate_shipped -->"
END: Final = "<!-- end of shipped models -->"


def table(models: ShippedModels) -> str:
    """The table in Markdown, without a final line break; a sentence where there is no model."""
    entries = models.entries()
    if not entries:
        return "No model is shipped yet."
    rows = [
        "| name | dataset | trained for | size | natural | robust |",
        "| --- | --- | --- | ---: | --- | --- |",
    ]
    return "\n".join([*rows, *(_row(entry) for entry in entries)])


def rewrite(page: str, models: ShippedModels) -> str:
    """A page with the table between its two marks written anew.

    Raises:
        ValueError: The marks are not there.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the page has no lines {BEGIN!r} and {END!r}")
    return f"{before}{BEGIN}\n{table(models)}\n{END}{after}"


def _row(entry: ModelInfo) -> str:
    natural = [_cell(each) for each in entry.accuracies if each.threat is None]
    robust = [
        f"{each.attack} at {each.threat}: {_cell(each)}" for each in entry.accuracies if each.threat
    ]
    size = "" if entry.size is None else f"{entry.size / 1e6:.1f} MB"
    cells = (
        f"`{entry.name}`",
        entry.dataset,
        entry.threat or "nominal",
        size,
        "<br>".join(natural) or "not measured",
        "<br>".join(robust) or "not measured",
    )
    return f"| {' | '.join(cells)} |"


def _cell(accuracy: Accuracy) -> str:
    return f"{100 * accuracy.value:.1f}% of {accuracy.total}"


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(rewrite(path.read_text(), ShippedModels()))
