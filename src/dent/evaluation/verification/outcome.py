"""The outcome of checking a run folder."""

from typing import Final, Literal

from dent.evaluation.results.recorded_run import RecordedRun
from dent.evaluation.verification.reattack import Reattacked
from dent.storage.canonical import Record
from dent.support.plural import counted, first_few

_SHOWN: Final = 20


class Check(Record):
    """The outcome of one kind of check."""

    name: str
    state: Literal["passed", "failed", "not-run"]
    looked_at: int
    """Number of checked items."""
    problems: tuple[str, ...]
    """The first problems found, or why the check was not run."""

    @property
    def lacks_only_rulings(self) -> bool:
        """Whether it compared a result with the records, but not its rulings by other rules."""
        return self.name == "result" and self.state == "not-run" and self.looked_at > 0


class Verification(Record):
    """The outcome of all checks of a run folder."""

    schema_version: Literal[1] = 1
    status: Literal["verified", "failed", "incomplete"]
    """`incomplete`: nothing is wrong, but something could not be checked."""
    identity: str | None
    """Identity of the run; null if it could not be read."""
    attacks: Literal["not re-run", "some re-run", "all re-run"] = "not re-run"
    """Whether any attack was run again. If none was, `verified` covers only the records: their
    images were submitted again, but nobody checked that the attack finds these images."""
    reattacked: Reattacked | None = None
    """Result of running attacks again."""
    checks: tuple[Check, ...]

    @property
    def says(self) -> str:
        """The status in words, including what was not checked."""
        if self.status == "verified" and self.attacks == "not re-run":
            return "records verified, attacks not re-run"
        reattacked = self.reattacked
        if reattacked is None:
            return f"{self.status}, attacks {self.attacks}"
        return (
            f"{self.status}, {len(reattacked.units)} of {counted(reattacked.of, 'attack')} re-run"
        )

    @property
    def problems(self) -> tuple[str, ...]:
        """All problems that were found, with the names of their checks."""
        return tuple(
            f"{check.name}: {problem}"
            for check in self.checks
            if check.state == "failed"
            for problem in check.problems
        )


def outcome_of(name: str, looked_at: int, problems: list[str]) -> Check:
    """Return the outcome of a check that has run: passed if it found no problem."""
    return Check(
        name=name,
        state="failed" if problems else "passed",
        looked_at=looked_at,
        problems=tuple(first_few(problems, _SHOWN)),
    )


def not_run(name: str, *reasons: str, looked_at: int = 0) -> Check:
    """Return the outcome of a check that could not run, or not on all items."""
    return Check(
        name=name,
        state="not-run",
        looked_at=looked_at,
        problems=tuple(first_few(reasons, _SHOWN)),
    )


def conclude(
    recorded: RecordedRun | None, checks: list[Check], reattacked: Reattacked | None = None
) -> Verification:
    """Return the outcome of all checks.

    Args:
        recorded: The run; None if it could not be read.
        checks: The outcome of each check.
        reattacked: The result of running attacks again; None if none were to run.
    """
    states = {check.state for check in checks}
    status: Literal["verified", "failed", "incomplete"] = "verified"
    if "failed" in states:
        status = "failed"
    elif "not-run" in states:
        status = "incomplete"
    return Verification(
        status=status,
        identity=None if recorded is None else recorded.run.identity,
        attacks=_rerun(reattacked),
        reattacked=reattacked,
        checks=tuple(checks),
    )


def _rerun(reattacked: Reattacked | None) -> Literal["not re-run", "some re-run", "all re-run"]:
    if reattacked is None or (reattacked.of and not reattacked.units):
        return "not re-run"
    complete = reattacked.drawn == "all" and len(reattacked.units) == reattacked.of
    return "all re-run" if complete else "some re-run"
