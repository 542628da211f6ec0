"""End a command quietly if nobody reads its output any more, as in `dent list | head -1`."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

from typer.core import TyperGroup

from dent.support.blame import place

NOBODY_READS: Final = 141
"""Exit status if the reader of the output has ended: 128 plus the number of SIGPIPE."""


class EndsWithItsReader(TyperGroup):
    """The group of all commands. Typer itself would exit with 1, as if something were wrong."""

    def make_context(self, *arguments: Any, **settings: Any) -> Any:
        """Parse the arguments, which may print the help."""
        with _ends_with_its_reader():
            return super().make_context(*arguments, **settings)

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        with _ends_with_its_reader():
            return super().invoke(ctx)


@contextmanager
def _ends_with_its_reader() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError as error:
        if not _is_closed() and place(error) is not None:  # a connection of the user's code
            message = f"BrokenPipeError: {error}"
            raise ConnectionError(message).with_traceback(error.__traceback__) from None
        raise SystemExit(NOBODY_READS) from None
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # rich has met it, and ends with 1
            raise SystemExit(NOBODY_READS) from None
        raise


def _is_closed() -> bool:
    """Return whether nobody reads standard output; if so, drop what is left to write."""
    try:
        sys.stdout.flush()
    except OSError:
        with suppress(OSError):  # else Python itself would fail to write it at its end
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, sys.stdout.fileno())
            os.close(null)
        return True
    return False
