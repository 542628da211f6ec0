"""`--ray [ADDRESS]`: an option whose value may be left out, which Typer itself does not have."""

from typing import Any, Final

from typer.core import TyperCommand

_OPTION: Final = "--ray"


class AddressMayBeLeftOut(TyperCommand):
    """A command with `--ray`, which counts as `--ray ""` where no value follows."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse arguments."""
        completed = []
        for index, argument in enumerate(args):
            completed.append(argument)
            if argument == _OPTION and (index + 1 == len(args) or args[index + 1].startswith("-")):
                completed.append("")
        return super().parse_args(ctx, completed)
