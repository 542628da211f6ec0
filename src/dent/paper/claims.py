"""Judge a claim of the paper by the measured cells."""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Final

from dent.evaluation.records.plan import seed_of
from dent.evaluation.results.intervals import of_median
from dent.evaluation.results.worst_case import MIN_CLUSTERS, paired
from dent.paper.figures import RATIO
from dent.paper.measure import APPROXIMATE, Interval, MeasuredCell, worst_by_batch
from dent.paper.ratios import METHOD, ratio
from dent.paper.results import ClaimRuling, Judgement, Unit
from dent.paper.rules import rule
from dent.paper.spec import Claim, Table

_UNFINISHED: Final[tuple[ClaimRuling, str]] = ("not finished", "Not finished: batches are missing.")


@dataclass(frozen=True)
class Compared:
    """A difference, a ratio, or a single figure, with its interval.

    Attributes:
        value: The difference or figure, in the unit of the cells; or the ratio, in percent.
        interval: Its confidence interval; None if there are too few values.
        method: The method of the interval and its assumptions.
        few: Whether there are too few batches or values to trust the interval.
    """

    value: float | None
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

    A pair is compared by sample, on the samples that both cells have. The difference is the first
    cell minus the second, as in the claim, and a ratio is the first by the second. No ruling
    follows from an interval that ignores the
    dependence between members of a batch, or from an unfinished run.

    Args:
        table: The table.
        claim: The claim.
        cells: The names of the pair, or of the cell.
        measured: The measured values, by name of the cell.
        unit: The unit of the cells.
    """
    published = _published(table, claim, cells)
    unit = unit if claim.ratio is None else RATIO
    if any(cell not in measured for cell in cells):
        return _judgement(claim, cells, published, None, unit, "not measured", "Not measured.")
    if len(cells) == 1:
        compared = _single(measured[cells[0]])
    else:
        first, second = (measured[cell] for cell in cells)
        compared = compare(first, second, as_ratio=claim.ratio is not None)
    if any(measured[cell].partial for cell in cells):
        ruling, sentence = _UNFINISHED
    else:
        ruling, sentence = rule(claim, published, compared.interval, unit, few=compared.few)
    return _judgement(claim, cells, published, compared, unit, ruling, sentence)


def compare(first: MeasuredCell, second: MeasuredCell, *, as_ratio: bool = False) -> Compared:
    """Return the first cell minus the second, paired by sample, or by batch if not accuracies.

    Args:
        first: The first cell.
        second: The second cell.
        as_ratio: Return the first accuracy in percent of the second instead.
    """
    if first.right and second.right:
        return _by_sample(first, second, as_ratio=as_ratio)
    differences = [a - b for a, b in zip(first.numbers, second.numbers, strict=False)]
    interval = of_median(differences)
    method = "order statistics of the differences, batch by batch"
    return Compared(median(differences), interval, method, few=interval is None)


def _by_sample(first: MeasuredCell, second: MeasuredCell, *, as_ratio: bool) -> Compared:
    common = [sample for sample in first.right if sample in second.right]
    shared = [cell for cell in (first, second) if cell.shared]
    # Larger batches have more dependent members, so the bootstrap is over the larger batches.
    ways = [{sample: cell.batch[sample] for sample in common} for cell in shared or (first,)]
    coarse = min(ways, key=lambda way: len(set(way.values())))
    # An attacker who may choose a submission for each sample breaks more than one who may choose
    # only one for each batch. So if one cell is scored by batch, the other one is, too.
    by_batch = first.by_batch or second.by_batch
    first_right, second_right = (
        worst_by_batch(cell, coarse) if by_batch and not cell.by_batch else cell.right
        for cell in (first, second)
    )
    ours: dict[int, tuple[bool, ...]] = {}
    theirs: dict[int, tuple[bool, ...]] = {}
    for sample in common:
        ours[coarse[sample]] = (*ours.get(coarse[sample], ()), first_right[sample])
        theirs[coarse[sample]] = (*theirs.get(coarse[sample], ()), second_right[sample])
    seed = seed_of(0, "paper", len(common))
    difference = paired(
        ours, theirs, independent=not shared, static_by_sample=not by_batch, seed=seed
    )
    if difference.value is None or difference.interval is None:
        return Compared(None, None, "no sample in common", few=True)
    value, (low, high), method = difference.value, difference.interval, difference.method
    few = bool(shared) and len(ours) < MIN_CLUSTERS
    assumes = difference.assumes
    if any(first_right[i] != first.right[i] or second_right[i] != second.right[i] for i in common):
        assumes += "; in both cells, one submission for each batch counts"
    if any(cell.regrouped for cell in shared):
        assumes += f". {APPROXIMATE}"
    if as_ratio:
        dependent = bool(shared) and not few
        found = ratio(ours, theirs, (low, high), dependent=dependent, seed=seed)
        if found is None:
            return Compared(None, None, "the second accuracy is 0", few=True)
        value, (low, high) = found
        method = METHOD.format(method)
    return Compared(
        100 * value,
        (100 * low, 100 * high),
        f"{method}, assuming {assumes}",
        few=few,
    )


def _single(cell: MeasuredCell) -> Compared:
    dependent = cell.shared and len(set(cell.batch.values())) < MIN_CLUSTERS
    return Compared(cell.value, cell.interval, cell.method, few=cell.interval is None or dependent)


def _published(table: Table, claim: Claim, cells: tuple[str, ...]) -> float | None:
    values = [table.cells[cell].value for cell in cells]
    if any(value is None for value in values):
        return None
    numbers = [value for value in values if value is not None]
    if len(numbers) == 1:
        return numbers[0]
    first, second = numbers
    return round(first - second if claim.ratio is None else 100 * first / second, 6)


def _judgement(
    claim: Claim,
    cells: tuple[str, ...],
    published: float | None,
    compared: Compared | None,
    unit: Unit,
    ruling: ClaimRuling,
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
