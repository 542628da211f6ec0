"""Combine the checks of a row with the checks of its runs."""

from collections.abc import Mapping

from dent.board.tracks import HEADLINE
from dent.evaluation.verification.verify import Check, Verification
from dent.storage.canonical import Record


class RowCheck(Record):
    """The outcome of all checks of a row."""

    status: str
    """`verified`, `failed`, or `incomplete`: nothing is wrong, but not everything was checked."""
    says: str
    """The status in words, including which attacks were run again."""
    checks: tuple[Check, ...]
    """The checks of the row, of its headline run, and of its other runs, which come after the name
    of their run."""
    verification: Verification
    """Verification of the headline run."""


def conclude(checks: tuple[Check, ...], verifications: Mapping[str, Verification]) -> RowCheck:
    """Combine the checks of a row with the checks of its runs.

    Args:
        checks: Checks of the row.
        verifications: Verifications of all runs of the row, by the name of the variant.
    """
    headline = verifications[HEADLINE]
    others = (
        check.model_copy(update={"name": f"{variant}: {check.name}"})
        for variant, verification in verifications.items()
        if variant != HEADLINE
        for check in verification.checks
    )
    # The board makes its own rulings, so those of a result need not be compared.
    of_runs = (check for run in verifications.values() for check in run.checks)
    compared = (check for check in of_runs if not check.lacks_only_rulings)
    states = {check.state for check in (*checks, *compared)}
    checks = (*checks, *headline.checks, *others)
    status = "failed" if "failed" in states else "incomplete"
    if states == {"passed"}:
        status = "verified"
        headline = headline.model_copy(update={"status": status})
    says = headline.says if status == headline.status != "failed" else status
    return RowCheck(status=status, says=says, checks=checks, verification=headline)
