"""Find the claims that a scale is too small to decide, before anything runs."""

import math
from collections.abc import Mapping
from typing import Final, Literal

from dent.evaluation.results.intervals import of_median, tango, wilson
from dent.evaluation.results.worst_case import MIN_CLUSTERS
from dent.paper.planning import PaperPlan, PlannedRun
from dent.paper.spec import SHARES, Claim

Foreseen = Literal["cannot be told", "cannot be reproduced", "needs a rise"]
Comparison = tuple[str, tuple[str, ...]]
"""The id of a claim, and the compared cells."""

SENTENCES: Final[Mapping[Foreseen, str]] = {
    "cannot be told": "This cannot be told at this scale, whatever the result.",
    "cannot be reproduced": "This cannot be reproduced at this scale, whatever the result.",
    "needs a rise": "This can be reproduced at this scale only if the accuracy rises.",
}


def foreseen(plan: PaperPlan) -> dict[Comparison, Foreseen]:
    """Return the comparisons for which no result, or no likely result, is enough.

    There are too few batches of a batch-dependent defense, or the interval is wider than the
    claim's margin even if no sample disagrees.
    """
    found: dict[Comparison, Foreseen] = {}
    for claim in plan.table.claims:
        comparisons: list[tuple[str, ...]] = [*claim.compared(), *((key,) for key in claim.cells)]
        for cells in comparisons:
            if any(plan.cells[key].why for key in cells):
                continue  # not measured
            verdict = _of_profile(plan) if plan.profile else _of_runs(plan, claim, cells)
            if verdict is not None:
                found[claim.id, cells] = verdict
    return found


def _of_profile(plan: PaperPlan) -> Foreseen | None:
    rounds = 0 if plan.profile is None else plan.profile.rounds
    return None if of_median([0.0] * rounds) else "cannot be told"


def _of_runs(plan: PaperPlan, claim: Claim, cells: tuple[str, ...]) -> Foreseen | None:
    runs = [run for key in cells if (run := plan.cells[key].run) is not None]
    if plan.cells[cells[0]].cell.measure not in SHARES:
        return None if of_median([0.0] * min(map(_batches, runs))) else "cannot be told"
    shared = [run for run in runs if run.defense is not None and run.defense.batch_dependent]
    if shared and min(map(_batches, shared)) < MIN_CLUSTERS:
        return "cannot be told"
    samples = min(run.samples for run in runs)
    if claim.kind in ("about", "not-lower"):
        reached = 100 * tango(0, 0, samples)[1] <= (claim.within or 0.0)
    elif claim.kind == "at-most":
        reached = 100 * wilson(0, samples)[1] <= (claim.bound or 0.0)
    else:
        reached = 100 * tango(samples, 0, samples)[0] > (claim.bound or 0.0)
    if reached:
        return None
    return "needs a rise" if claim.kind == "not-lower" else "cannot be reproduced"


def _batches(run: PlannedRun) -> int:
    return math.ceil(run.samples / run.attacked_per_batch)
