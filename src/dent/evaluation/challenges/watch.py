"""How far a challenge is, and how long it will take."""

import time

from dent.evaluation.engine.progress import OnProgress, Progress
from dent.evaluation.records.plan import Unit


class Watch:
    """Reports the progress of a challenge, and estimates the time from the passes so far.

    Args:
        progress: Called before, during and after every batch; None: nobody.
        passes: By batch that is attacked, its passes at most; empty where nothing is attacked.
        submissions: Batches to submit afterwards. Each is one pass.
    """

    def __init__(
        self, progress: OnProgress | None, passes: tuple[int, ...], submissions: int
    ) -> None:
        self._progress, self._passes, self._submissions = progress, passes, submissions
        self._start = time.monotonic()
        self._work = self._done = 0

    @property
    def total(self) -> int:
        """Batches to attack and to submit."""
        return len(self._passes) + self._submissions

    def submits(self, count: int) -> None:
        """Say how many batches there are to submit, once it is known."""
        self._submissions = count

    def within(self, unit: Unit, done: int, of: int) -> None:
        """Report a batch of which some passes are done."""
        share = done / max(of, 1)
        self._report(unit, share, self._work + share * self._cost())

    def next(self) -> None:
        """Count a batch as done."""
        self._work += self._cost()
        self._done += 1
        if self._done == self.total:
            self._report(None, 0.0, self._work)

    def _cost(self) -> int:
        """Passes of the batch that is under way."""
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
