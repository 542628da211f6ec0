"""Report the progress of a challenge and the time left."""

import time

from dent.evaluation.engine.progress import OnProgress, Progress
from dent.evaluation.records.plan import Unit


class Watch:
    """The progress of a challenge, with the time left as estimated from the passes so far.

    Args:
        progress: Called before, during and after every batch; None to report nothing.
        passes: Maximum number of passes for each attacked batch; empty if no attack runs.
        submissions: Number of batches to submit afterwards. Each counts as one pass.
    """

    def __init__(
        self, progress: OnProgress | None, passes: tuple[int, ...], submissions: int
    ) -> None:
        self._progress, self._passes, self._submissions = progress, passes, submissions
        self._start = time.monotonic()
        self._work = self._done = 0

    @property
    def total(self) -> int:
        """Number of batches to attack and to submit."""
        return len(self._passes) + self._submissions

    def submits(self, count: int) -> None:
        """Set the number of batches to submit, once it is known."""
        self._submissions = count

    def within(self, unit: Unit, done: int, of: int) -> None:
        """Report a batch with `done` of `of` passes done."""
        share = done / max(of, 1)
        self._report(unit, share, self._work + share * self._cost())

    def next(self) -> None:
        """Count a batch as done."""
        self._work += self._cost()
        self._done += 1
        if self._done == self.total:
            self._report(None, 0.0, self._work)

    def _cost(self) -> int:
        """Return the number of passes of the current batch."""
        return self._passes[self._done] if self._done < len(self._passes) else 1

    def _report(self, unit: Unit | None, within: float, work: float) -> None:
        if self._progress is None:
            return
        share = work / max(sum(self._passes) + self._submissions, 1)
        elapsed = time.monotonic() - self._start
        remaining = elapsed * (1 - share) / share if share else None
        self._progress(
            Progress(
                done=self._done,
                total=self.total,
                unit=unit,
                within=within,
                share=share,
                elapsed=elapsed,
                remaining=remaining,
                least=remaining,
                decision=None,
                natural={},
                robust={},
            )
        )
