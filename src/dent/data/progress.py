"""Progress of a fetch: the callback type that every fetch calls, and a progress bar."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

OnBytes = Callable[[str, int, int | None], None]
"""Called as `report(stage, done, total)`: the stage in words, the bytes so far, and the total bytes
or None if unknown."""


def silent(stage: str, done: int, total: int | None) -> None:
    """Show nothing; an `OnBytes` for a silent fetch."""


@contextmanager
def progress_bar(console: Console | None = None) -> Iterator[OnBytes]:
    """Show a fetch as a bar for each stage.

    Args:
        console: The console; by default standard error. Nothing is drawn if the console is not
            a terminal, so that logs stay clean.

    Yields:
        The callback to pass to `dent.data.fetch`.
    """
    console = console or Console(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn())
    with Progress(
        *columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal
    ) as bar:
        tasks = {}

        def report(stage: str, done: int, total: int | None) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total)
            bar.update(tasks[stage], completed=done, total=total)

        yield report
