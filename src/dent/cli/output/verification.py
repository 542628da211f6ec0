"""Print what was checked about a run or a row, and every problem."""

from collections.abc import Sequence

from dent.cli import console
from dent.evaluation.verification.verify import Check
from dent.support.printable import one_line


def show_checks(name: str, says: str, checks: Sequence[Check]) -> None:
    """Print what was checked, and every problem."""
    rows = [(check.name, check.state, str(check.looked_at)) for check in checks]
    console.say(f"{one_line(name)}: {says}", style="bold")
    console.print_table("What was checked", ("check", "state", "looked at"), rows)
    for check in checks:
        for problem in check.problems:
            console.say(f"{check.name}: {one_line(problem)}")
