"""What checking the units of a run finds."""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from dent.evaluation.verification.outcome import Check, not_run, outcome_of

RESUBMITTED: Final = ("tensors", "threat model", "served", "probes", "verdict")
"""The checks that submit the images again."""


@dataclass(frozen=True)
class Finding:
    """The outcome of one check of one unit, or of all units together.

    Attributes:
        check: Name of the check.
        unit: Key of the unit; None for all units together.
        problem: The problem, or None.
        skipped: Whether the check could not run. If so, `problem` says why.
    """

    check: str
    unit: str | None
    problem: str | None = None
    skipped: bool = False


class FindingTally:
    """The findings of the checks that submit the images again, by check."""

    def __init__(self) -> None:
        self._problems: dict[str, list[Finding]] = {name: [] for name in RESUBMITTED}
        self._looked_at = dict.fromkeys(RESUBMITTED, 0)
        self._skipped: dict[str, str] = {}

    def count(self, findings: Iterable[Finding]) -> None:
        """Add findings that each stand for one checked item."""
        for finding in findings:
            if finding.skipped:
                self._skipped[finding.check] = finding.problem or ""
                continue
            self._looked_at[finding.check] += 1
            self.add([finding])

    def add(self, findings: Iterable[Finding]) -> None:
        """Add the problems of items that were counted before."""
        for finding in findings:
            if finding.problem is not None:
                self._problems[finding.check].append(finding)

    def look_at(self, check: str, items: int) -> None:
        """Set the number of checked items of a check."""
        self._looked_at[check] = items

    def checks(self) -> Iterator[Check]:
        """Yield the outcome of each check."""
        skipped = dict(self._skipped)
        if "served" in skipped:
            skipped["verdict"] = skipped["served"]
        for name in RESUBMITTED:
            looked_at, problems = self._looked_at[name], self._problems[name]
            if name in skipped and not problems:
                yield not_run(name, skipped[name], looked_at=looked_at)
            else:
                yield outcome_of(name, looked_at, [finding.problem or "" for finding in problems])

    def failed_by(self, keys: Collection[str]) -> list[str]:
        """Return the names of the checks that any of these units fails."""
        return [
            name
            for name, findings in self._problems.items()
            if any(finding.unit in keys for finding in findings)
        ]
