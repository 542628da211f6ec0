"""Judge a claim by the records: reproduced, not reproduced, or cannot be told."""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

from dent.evaluation.records.plan import seed_of
from dent.evaluation.results.intervals import OF_MEDIAN, OF_PROPORTION, of_median
from dent.evaluation.results.worst_case import MIN_CLUSTERS, paired
from dent.paper.measure import Interval, MeasuredCell
from dent.paper.results import Judgement, Ruling, Unit
from dent.paper.spec import Claim, Table
from dent.support.plural import counted

_ROUGHLY = 0.5
"""The least share of a published difference that counts as roughly the same."""


@dataclass(frozen=True)
class Compared:
    """A difference, or a single figure, with its interval.

    Attributes:
        value: In the unit of the cells.
        interval: Its confidence interval; None where there are too few values.
        method: How it was made, and what it assumes.
        few: Whether the interval cannot be trusted for want of batches.
    """

    value: float
    interval: Interval | None
    method: str
    few: bool


def judge(
    table: Table,
    claim: Claim,
    cells: tuple[str, ...],
    measured: Mapping[str, MeasuredCell],
    unit: Unit,
) -> Judgement:
    """Judge a claim about one pair of cells, or one cell.

    A pair is compared by sample, on the samples that both cells have. The difference has the
    direction of the claim. An interval that ignores the dependence of members of one batch decides
    nothing.

    Args:
        table: The table.
        claim: The claim.
        cells: The pair, or the cell.
        measured: The measured values, by cell.
        unit: The unit of the cells.
    """
    published = _published(table, claim, cells)
    if any(cell not in measured for cell in cells):
        return _judgement(claim, cells, published, None, unit, "not measured", "Not measured.")
    if len(cells) == 1:
        compared = _single(measured[cells[0]])
    else:
        compared = compare(measured[cells[0]], measured[cells[1]])
    ruling, sentence = _rule(claim, published, compared, unit)
    return _judgement(claim, cells, published, compared, unit, ruling, sentence)


def compare(first: MeasuredCell, second: MeasuredCell) -> Compared:
    """Return the first less the second, paired by sample; by batch if they are not accuracies."""
    if first.right and second.right:
        return _by_sample(first, second)
    differences = [a - b for a, b in zip(first.numbers, second.numbers, strict=False)]
    interval = of_median(differences)
    method = "order statistics of the differences, batch by batch"
    return Compared(median(differences), interval, method, few=interval is None)


def _by_sample(first: MeasuredCell, second: MeasuredCell) -> Compared:
    common = [sample for sample in first.right if sample in second.right]
    shared = [cell for cell in (first, second) if cell.shared]
    # Members of a larger batch share more, so the bootstrap is over the larger batches.
    ways = [{sample: cell.batch[sample] for sample in common} for cell in shared or (first,)]
    coarse = min(ways, key=lambda way: len(set(way.values())))
    ours: dict[int, tuple[bool, ...]] = {}
    theirs: dict[int, tuple[bool, ...]] = {}
    for sample in common:
        ours[coarse[sample]] = (*ours.get(coarse[sample], ()), first.right[sample])
        theirs[coarse[sample]] = (*theirs.get(coarse[sample], ()), second.right[sample])
    difference = paired(ours, theirs, not shared, True, seed_of(0, "paper", len(common)))
    if difference.value is None or difference.interval is None:
        return Compared(0.0, None, "no sample in common", few=True)
    low, high = difference.interval
    return Compared(
        100 * difference.value,
        (100 * low, 100 * high),
        f"{difference.method}, assuming {difference.assumes}",
        few=bool(shared) and len(ours) < MIN_CLUSTERS,
    )


def _single(cell: MeasuredCell) -> Compared:
    method = OF_PROPORTION if cell.right else OF_MEDIAN
    return Compared(cell.value, cell.interval, method, few=cell.interval is None)


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
    inside, outside, claimed = _sides(claim, published, low, high, unit)
    if compared.few and (inside or outside):
        return "cannot be told", (
            f"{claimed} Members of a batch share an adaptation. An interval that accounts for this "
            f"needs at least {counted(MIN_CLUSTERS, 'batch')}."
        )
    if inside:
        return "reproduced", f"{claimed} The interval confirms it."
    if outside:
        reason = "The interval rules it out."
        if claim.kind == "higher" and low > 0:
            reason = "The direction is the paper's, but the whole interval is below that."
        return "not reproduced", f"{claimed} {reason}"
    return "cannot be told", f"{claimed} The interval allows both."


def _sides(
    claim: Claim, published: float | None, low: float, high: float, unit: Unit
) -> tuple[bool, bool, str]:
    """Return whether the interval lies inside the claim, or outside, and the claim in words."""
    within = claim.within or 0.0
    points = {"%": "points", "×": "static forwards", "s": "s"}.get(unit, unit)
    if claim.kind == "higher":
        lowest = max(_ROUGHLY * (published or 0.0), 0.0)
        if not lowest:
            return low > 0, high <= 0, "Claimed: above 0."
        return (
            low > 0 and high >= lowest,
            high < lowest,
            f"Claimed: above 0, and roughly {published:.4g} {points} (at least {lowest:.4g}).",
        )
    if claim.kind == "about":
        inside, outside = -within <= low and high <= within, high < -within or low > within
        return inside, outside, f"Claimed: at most {within:g} {points} apart."
    if claim.kind == "not-lower":
        return low >= -within, high < -within, f"Claimed: at most {within:g} {points} lower."
    if claim.kind == "at-most":
        bound = claim.bound or 0.0
        return high <= bound, low > bound, f"Claimed: at most {bound:g}{unit}."
    factor, middle = claim.factor or 1.0, published or 0.0
    lowest, highest = middle / factor, middle * factor
    inside, outside = lowest <= low and high <= highest, high < lowest or low > highest
    return (
        inside,
        outside,
        f"Claimed: {middle:g}{unit} ({lowest:.3g} to {highest:.3g} counts).",
    )


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
