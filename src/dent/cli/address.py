"""`--ray [ADDRESS]`: an option with an optional value, which Typer does not support."""

from typing import Any, Final

from typer.core import TyperCommand

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
