"""What Typer does not support: optional values, former names of options, a quiet end of a pipe.

Nobody may read the output of a command any more, as in `dent list | head -1`.
"""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Final

from typer.core import TyperCommand, TyperGroup

from dent.support.blame import place

NOBODY_READS: Final = 141
"""Exit status if the reader of the output has ended: 128 plus the number of SIGPIPE."""

_OPTION: Final = "--ray"


class AddressMayBeLeftOut(TyperCommand):
    """A command that reads `--ray` without a value as `--ray ""`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Add the empty value of `--ray` where it is missing, then parse the arguments."""
        completed = []
        for index, argument in enumerate(args):
            completed.append(argument)
            if argument == _OPTION and (index + 1 == len(args) or args[index + 1].startswith("-")):
                completed.append("")
        return super().parse_args(ctx, completed)


def renamed(former: Mapping[str, str]) -> type[TyperCommand]:
    """Return a command that also takes options by their former names.

    Help does not show them, because they have another meaning in other commands.

    Args:
        former: The present name by the former one, both with dashes.
    """

    class TakesFormerNames(TyperCommand):
        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
            """Replace former names, then parse the arguments."""
            present = []
            for argument in args:
                name, assigned, value = argument.partition("=")
                present.append(former.get(name, name) + assigned + value)
            return super().parse_args(ctx, present)

    return TakesFormerNames


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
