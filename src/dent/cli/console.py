"""How commands speak: results on standard output, progress and complaints on standard error."""

import json
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

OUT = Console(highlight=False)
"""For results: what a pipe receives."""

ERR = Console(stderr=True, highlight=False)
"""For progress, warnings and errors."""


_LONGEST_NAME = 40


def print_json(value: Any) -> None:
    """Print one JSON document, on standard output, with nothing around it."""
    print(json.dumps(value, indent=2, allow_nan=False), flush=True)  # noqa: T201 - rich would wrap long lines


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table whose first column names the row and whose others are figures."""
    table = Table(title=title, title_justify="left", title_style="bold")
    names = [columns[0], *(row[0] for row in rows)]
    for index, column in enumerate(columns):
        # A name that would push figures off the screen is broken itself.
        whole = not index and max(map(len, names)) <= _LONGEST_NAME
        table.add_column(
            column, justify="right" if index else "left", no_wrap=whole, overflow="fold"
        )
    for row in rows:
        table.add_row(*row)
    OUT.print(table)
