"""Hold a claim against the records: reproduced, not reproduced, or cannot be told."""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

from dent.evaluation.records.plan import seed_of
from dent.evaluation.results.intervals import of_median
from dent.evaluation.results.worst_case import MIN_CLUSTERS, paired
from dent.paper.measure import Interval, Measured
from dent.paper.results import Judgement, Ruling, Unit
from dent.paper.spec import Claim, Table

_ROUGHLY = 0.5
"""Of a published difference, what a rough size is at least."""


@dataclass(frozen=True)
class Compared:
    """A difference, or a single figure, with its interval.

    Attributes:
        value: In the unit of the cells.
        interval: At 95%; None where there are too few values.
        method: How it was made, and what it assumes.
        few: Whether the interval cannot be trusted for want of batches.
    """

    value: float
    interval: Interval | None
    method: str
    few: bool


def judge(
    table: Table, claim: Claim, cells: tuple[str, ...], found: Mapping[str, Measured], unit: Unit
) -> Judgement:
    """Judge a claim about one pair of cells, or one cell.

    A pair is compared by sample, on the samples that both cells have; a difference is taken in the
    direction in which the claim has it. Nothing is told from an interval that takes members of one
    batch for independent where they are not.

    Args:
        table: The table.
        claim: The claim.
        cells: The pair, or the cell.
        found: What was measured, by cell.
        unit: Of the cells.
    """
    published = _published(table, claim, cells)
    if any(cell not in found for cell in cells):
        return _judgement(claim, cells, published, None, unit, "not measured", "Not measured.")
    if len(cells) == 1:
        compared = _single(found[cells[0]])
    else:
        compared = compare(found[cells[0]], found[cells[1]])
    ruling, sentence = _rule(claim, published, compared, unit)
    return _judgement(claim, cells, published, compared, unit, ruling, sentence)


def compare(first: Measured, second: Measured) -> Compared:
    """The first less the second, paired by sample, or by batch where they are no accuracies."""
    if first.right and second.right:
        return _by_sample(first, second)
    differences = [a - b for a, b in zip(first.numbers, second.numbers, strict=False)]
    interval = of_median(differences)
    method = "order statistics of the differences, batch by batch"
    return Compared(median(differences), interval, method, few=interval is None)


def _by_sample(first: Measured, second: Measured) -> Compared:
    common = [at for at in first.right if at in second.right]
    shared = [each for each in (first, second) if each.shared]
    # Members of a larger batch share more: its batches are what may be drawn anew.
    ways = [{at: each.batch[at] for at in common} for each in shared or (first,)]
    coarse = min(ways, key=lambda way: len(set(way.values())))
    ours: dict[int, tuple[bool, ...]] = {}
    theirs: dict[int, tuple[bool, ...]] = {}
    for at in common:
        ours[coarse[at]] = (*ours.get(coarse[at], ()), first.right[at])
        theirs[coarse[at]] = (*theirs.get(coarse[at], ()), second.right[at])
    found = paired(ours, theirs, not shared, True, seed_of(0, "paper", len(common)))
    if found.value is None or found.interval is None:
        return Compared(0.0, None, "no sample in common", few=True)
    low, high = found.interval
    return Compared(
        100 * found.value,
        (100 * low, 100 * high),
        f"{found.method}, assuming {found.assumes}",
        few=bool(shared) and len(ours) < MIN_CLUSTERS,
    )


def _single(found: Measured) -> Compared:
    method = "Wilson" if found.right else "order statistics"
    return Compared(found.value, found.interval, method, few=found.interval is None)


def _published(table: Table, claim: Claim, cells: tuple[str, ...]) -> float | None:
    if claim.difference is not None:
        return claim.difference
    values = [table.cells[cell].value for cell in cells]
    if any(value is None for value in values):
        return None
    numbers = [value for value in values if value is not None]
    return numbers[0] if len(numbers) == 1 else round(numbers[0] - numbers[1], 6)


def _rule(
    claim: Claim, published: float | None, compared: Compared, unit: Unit
) -> tuple[Ruling, str]:
    if compared.interval is None:
        return "cannot be told", "Too few values for an interval."
    low, high = compared.interval
    inside, outside, wanted = _sides(claim, published, low, high, unit)
    if compared.few and (inside or outside):
        return "cannot be told", (
            f"{wanted} Members of a batch share an adaptation, and the batches are too few for an "
            f"interval that allows for it: it takes {MIN_CLUSTERS}."
        )
    if inside:
        return "reproduced", f"{wanted} The interval says so."
    if outside:
        why = "The interval rules it out."
        if claim.kind == "higher" and low > 0:
            why = "The direction is the paper's, but the whole interval lies below."
        return "not reproduced", f"{wanted} {why}"
    return "cannot be told", f"{wanted} The interval allows for both."


def _sides(
    claim: Claim, published: float | None, low: float, high: float, unit: Unit
) -> tuple[bool, bool, str]:
    """Whether the interval lies inside what is claimed, or outside; and what that is, in words."""
    within = claim.within or 0.0
    points = {"%": "points", "×": "static forwards", "s": "s"}.get(unit, unit)
    if claim.kind == "higher":
        least = max(_ROUGHLY * (published or 0.0), 0.0)
        if not least:
            return low > 0, high <= 0, "Claimed: above 0."
        return (
            low > 0 and high >= least,
            high < least,
            f"Claimed: above 0, and roughly {published:.4g} {points}, at least {least:.4g}.",
        )
    if claim.kind == "about":
        inside, outside = -within <= low and high <= within, high < -within or low > within
        return inside, outside, f"Claimed: {within:g} {points} apart at most."
    if claim.kind == "not-lower":
        return low >= -within, high < -within, f"Claimed: at most {within:g} {points} lower."
    if claim.kind == "at-most":
        bound = claim.bound or 0.0
        return high <= bound, low > bound, f"Claimed: at most {bound:g}{unit}."
    factor, middle = claim.factor or 1.0, published or 0.0
    least, most = middle / factor, middle * factor
    inside, outside = least <= low and high <= most, high < least or low > most
    return inside, outside, f"Claimed: {middle:g}{unit}, {least:.3g} to {most:.3g} taken for that."


def _judgement(
    claim: Claim,
    cells: tuple[str, ...],
    published: float | None,
    compared: Compared | None,
    unit: Unit,
    ruling: Ruling,
    sentence: str,
) -> Judgement:
    return Judgement(
        claim=claim.id,
        says=claim.says,
        kind=claim.kind,
        cells=cells,
        published=published,
        measured=None if compared is None else compared.value,
        interval=None if compared is None else compared.interval,
        unit=unit,
        method="" if compared is None else compared.method,
        ruling=ruling,
        sentence=sentence,
        as_in=None,
    )
