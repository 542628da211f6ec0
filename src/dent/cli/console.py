"""Print results on standard output, and progress and messages on standard error."""

import json
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, TextIO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from dent.errors import DentWarning
from dent.support.printable import one_line, printable


class _Plain(Console):
    """A console that keeps its own styles, but replaces control characters in printed text.

    `:cat:` stays as it is, because it may be part of a name.
    """

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, highlight=False, emoji=False)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Render as rich does, and replace every control character in the text."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else printable(text), style, control)


OUT = _Plain()
"""For results, on standard output."""

ERR = _Plain(stderr=True)
"""For progress, warnings and errors, on standard error."""

QUIET: Final = 60.0
"""Seconds between two lines of progress if the output is a file or a pipe."""


def say(text: str, style: str | None = None) -> None:
    """Print plain text on standard output, without markup or line breaks of our own."""
    OUT.print(text, style=style, markup=False, soft_wrap=True)


def note(text: str, style: str | None = None) -> None:
    """Print plain text on standard error, without markup or line breaks of our own."""
    ERR.print(text, style=style, markup=False, soft_wrap=True)


@contextmanager
def warnings_as_messages() -> Iterator[None]:
    """Print each warning of torch-dent once, without the source line that raised it."""
    usual, said = warnings.showwarning, set[str]()

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if not issubclass(category, DentWarning):
            usual(message, category, filename, lineno, file, line)
            return
        text = str(message)
        if text not in said:
            said.add(text)
            note(f"dent: warning: {text}", style="yellow")

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = usual


_LONGEST_NAME = 40


def print_json(value: object) -> None:
    """Print one JSON document, and nothing else, on standard output."""
    # Flushed, because a server keeps running. Not printed by rich, which would wrap long lines.
    text = json.dumps(value, indent=2, allow_nan=False).replace("\x7f", r"\u007f")
    print(text, flush=True)  # noqa: T201


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table with the names of the rows in the first column and figures in the others.

    All texts are plain: markup in them is printed as it is.
    """
    columns, rows = [*map(one_line, columns)], [[*map(one_line, row)] for row in rows]
    table = Table(title=Text(one_line(title), style="bold"), title_justify="left")
    names = [columns[0], *(row[0] for row in rows)]
    for index, column in enumerate(columns):
        # Names wrap if they are so long that they would push the figures off the screen.
        no_wrap = not index and max(map(len, names)) <= _LONGEST_NAME
        table.add_column(
            Text(column), justify="right" if index else "left", no_wrap=no_wrap, overflow="fold"
        )
    for row in rows:
        table.add_row(*map(Text, row))
    OUT.print(table)
