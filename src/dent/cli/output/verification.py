"""Print what was checked about a run or a row, and every problem."""

from collections.abc import Sequence
from typing import Final

import typer

from dent.cli import console
from dent.evaluation.verification.outcome import Check
from dent.support.printable import one_line

FAILED: Final = 1
"""Exit status if a check found something wrong."""
INCOMPLETE: Final = 3
"""Exit status if nothing is wrong, but not everything was checked."""


def show_checks(name: str, says: str, checks: Sequence[Check]) -> None:
    """Print what was checked, and every problem."""
    rows = [(check.name, check.state, str(check.looked_at)) for check in checks]
    console.say(f"{one_line(name)}: {says}", style="bold")
    console.print_table("What was checked", ("check", "state", "looked at"), rows)
    for check in checks:
        for problem in check.problems:
            console.say(f"{check.name}: {one_line(problem)}")


def exit_unless_verified(status: str) -> None:
    """End the command with the exit status of a verification that failed or is incomplete."""
    if status != "verified":
        raise typer.Exit(FAILED if status == "failed" else INCOMPLETE)
