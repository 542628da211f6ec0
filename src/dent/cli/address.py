"""`--ray [ADDRESS]`: an option whose value may be left out, which Typer itself does not have."""

from typing import Any, Final

from typer.core import TyperCommand

_OPTION: Final = "--ray"


class AddressMayBeLeftOut(TyperCommand):
    """A command with `--ray`, which counts as `--ray ""` where no value follows."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse arguments."""
        whole = []
        for at, argument in enumerate(args):
            whole.append(argument)
            if argument == _OPTION and (at + 1 == len(args) or args[at + 1].startswith("-")):
                whole.append("")
        return super().parse_args(ctx, whole)
