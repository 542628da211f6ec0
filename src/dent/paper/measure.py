"""Read the figure of a cell from the records of its run, sample by sample."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Final

from dent.evaluation.records.plan import Plan as Batches
from dent.evaluation.records.plan import seed_of
from dent.evaluation.records.schema import UnitRecord
from dent.evaluation.records.spec import STATIC
from dent.evaluation.results.intervals import (
    BATCHES_INDEPENDENT,
    BY_BATCH,
    OF_MEDIAN,
    OF_PROPORTION,
    of_median,
    over_clusters,
    wilson,
)
from dent.evaluation.results.recorded_run import RecordedRun
from dent.evaluation.results.result import DefenseResult
from dent.evaluation.results.scoring import Piece, Scores, label, score, worst_of_batch
from dent.evaluation.results.worst_case import (
    MIN_CLUSTERS,
    by_sample,
    independent_members,
)
from dent.paper.planning import PlannedCell
from dent.paper.profile import ProfileRecord

Interval = tuple[float, float]
_SAMPLES: Final = 100.0  # percent
APPROXIMATE: Final = (
    "AutoAttack regroups images, so batches are not independent, and the interval is approximate"
)
"""The limit of an interval of a batch-dependent defense under AutoAttack as released."""


@dataclass(frozen=True)
class MeasuredCell:
    """The measured figure of a cell.

    Attributes:
        value: The figure, in the unit of the published one, such as percent, static forwards or
            seconds.
        interval: Its confidence interval; None if there are too few values for one.
        method: The method of the interval and its assumptions.
        right: For an accuracy, whether each sample is correct, by sample id; empty otherwise.
        batch: For an accuracy, the index of each sample's batch, by sample id; empty otherwise.
        shared: Whether it is an accuracy of a batch-dependent defense.
        submissions: For an accuracy, whether each sample is correct in each counted submission.
        by_batch: Whether one submission counts for a whole batch, instead of one for each sample.
        regrouped: Whether the attack took samples out of their batches (AutoAttack as released).
        numbers: For other measures, the values by batch or round.
        flags: Names of the raised diagnostics of the defense and of the run.
        partial: Whether batches are missing.
    """

    value: float
    interval: Interval | None
    method: str
    right: Mapping[int, bool]
    batch: Mapping[int, int]
    shared: bool
    numbers: Sequence[float]
    flags: tuple[str, ...]
    partial: bool
    submissions: Sequence[Mapping[int, bool]] = ()
    by_batch: bool = False
    regrouped: bool = False


def measure(planned: PlannedCell, recorded: RecordedRun) -> MeasuredCell | None:
    """Read a cell from its run; None if no batch has all of its records yet.

    `robust` is the worst case over natural images and the attacks that the cell counts: per sample,
    or per batch for a batch-dependent defense. For AutoAttack as released (`published`), its own
    claims count, per sample, as in the paper. `transfer` is the worst case over the images made for
    the static model only. They are submitted in fixed batches, however they were made.
    """
    run = planned.run
    if run is None:
        return None
    spec, batches = recorded.run.spec, recorded.plan
    scores = score(spec, batches, recorded.records)[planned.defense_name]
    defense = recorded.result.defenses[planned.defense_name]
    quantity = planned.cell.measure
    if quantity in ("robust", "natural", "transfer"):
        pieces = _pieces(planned, scores, batches)
        regrouped = quantity == "robust" and _published(scores, planned)
        per_sample = regrouped or by_sample(defense.dependence)
        cell = _accuracy(pieces, batches, defense, recorded, per_sample=per_sample)
        return None if cell is None else _noted(cell, regrouped=regrouped)
    natural = scores.records["natural"]
    if quantity == "relative-time":
        pairs = [(record.timing.serve, record.timing.static) for record in natural]
        numbers = [seconds / static for seconds, static in pairs if static]
        if planned.defense_name == STATIC:  # it is the reference, and was not timed twice
            numbers = [1.0 for _ in natural]
    else:
        numbers = _sigmas(planned, natural)
    return of_numbers(numbers, _flags(defense, recorded), recorded.result.status == "partial")


def of_profile(planned: PlannedCell, record: ProfileRecord, rounds: int) -> MeasuredCell | None:
    """Read a cell from a profile; None if its column was not profiled."""
    _, _, column = planned.cell.key.partition("/")
    if column not in record.flops or not record.seconds:
        return None
    fewest = min(record.flops.values())
    numbers = {
        "gflops": [record.flops[column] / 1e9],
        "relative-flops": [record.flops[column] / fewest],
        "seconds": [round_[column] for round_ in record.seconds],
        "relative-time": [_ratio(round_, column) for round_ in record.seconds],
    }[planned.cell.measure]
    if planned.cell.measure in ("gflops", "relative-flops"):  # a count does not vary
        count = numbers[0]
        return MeasuredCell(count, (count, count), OF_MEDIAN, {}, {}, False, numbers, (), False)
    return of_numbers(numbers, (), len(record.seconds) < rounds)


def of_numbers(
    numbers: Sequence[float], flags: tuple[str, ...], partial: bool
) -> MeasuredCell | None:
    """Return the median of numbers with its interval; None if there are no numbers."""
    if not numbers:
        return None
    return MeasuredCell(
        value=median(numbers),
        interval=of_median(numbers),
        method=OF_MEDIAN,
        right={},
        batch={},
        shared=False,
        numbers=tuple(numbers),
        flags=flags,
        partial=partial,
    )


def of_accuracy(
    right: Mapping[int, bool],
    batch: Mapping[int, int],
    *,
    shared: bool,
    flags: tuple[str, ...],
    partial: bool,
) -> MeasuredCell:
    """Return an accuracy with its interval.

    Wilson's interval takes samples for independent. If the members of a batch share an adaptation,
    the interval accounts for it, unless there are fewer than `MIN_CLUSTERS` batches.
    """
    low, high = wilson(sum(right.values()), len(right))
    method = OF_PROPORTION
    if shared and len(set(batch.values())) >= MIN_CLUSTERS:
        rights: dict[int, list[bool]] = {}
        for sample, index in batch.items():
            rights.setdefault(index, []).append(right[sample])
        sums, sizes = ([count(rows) for rows in rights.values()] for count in (sum, len))
        low, high = over_clusters((low, high), sums, sizes, seed_of(0, "paper", len(right)))
        low, high = max(low, 0.0), min(high, 1.0)
        method = f"{BY_BATCH.format(OF_PROPORTION)}, assuming {BATCHES_INDEPENDENT}"
    return MeasuredCell(
        value=_SAMPLES * sum(right.values()) / len(right),
        interval=(_SAMPLES * low, _SAMPLES * high),
        method=method,
        right=right,
        batch=batch,
        shared=shared,
        numbers=(),
        flags=flags,
        partial=partial,
    )


def _sigmas(planned: PlannedCell, natural: Sequence[UnitRecord]) -> list[float]:
    """Return sigma in pixels by batch: before adaptation (the configured one) or after it."""
    smoothing = planned.cell.defense.smoothing
    ends = [record.trace.sigma[0] for record in natural if record.trace.sigma]
    if planned.cell.measure == "sigma-before" and smoothing is not None:
        return [smoothing.sigma for _ in ends]
    return ends


def _ratio(round_: Mapping[str, float], column: str) -> float:
    """Return the time of a column relative to the static model (column `0`) in the same round."""
    return round_[column] / round_["0"]


def _pieces(planned: PlannedCell, scores: Scores, batches: Batches) -> list[Mapping[int, Piece]]:
    """Return the submissions that count for a cell, each by batch index."""
    natural = scores.submissions["natural"]
    if planned.cell.measure == "natural":
        return [natural]
    if planned.cell.measure == "transfer":
        return [scores.submissions[label("transfer", attack)] for attack in planned.attacks]
    names = [label("attack", attack) for attack in planned.attacks]
    claims = [_claimed(scores.records[name], batches) or scores.submissions[name] for name in names]
    return [natural, *claims]


def _published(scores: Scores, planned: PlannedCell) -> bool:
    """Return whether the attack regrouped members; then the worst case is per sample."""
    first = scores.records.get(label("attack", planned.attacks[0]), ())
    return bool(first) and first[0].batch is None


def _claimed(records: Sequence[UnitRecord], batches: Batches) -> dict[int, Piece] | None:
    """Return the attack's own claims if it took all batches in one call; None otherwise."""
    if not records or records[0].batch is not None or records[0].claimed is None:
        return None
    standing = [not fooled for fooled in records[0].claimed]
    pieces, start = {}, 0
    for batch in batches.batches:
        rights = tuple(standing[start : start + batch.attacked])
        pieces[batch.index] = Piece(attacked=rights, clean=(), missing=0)
        start += batch.attacked
    return pieces


def _accuracy(
    pieces: Sequence[Mapping[int, Piece]],
    batches: Batches,
    defense: DefenseResult,
    recorded: RecordedRun,
    *,
    per_sample: bool,
) -> MeasuredCell | None:
    right: dict[int, bool] = {}
    batch_of: dict[int, int] = {}
    submissions: list[dict[int, bool]] = [{} for _ in pieces]
    complete = set.intersection(*(set(piece) for piece in pieces))
    for batch in batches.batches:
        if batch.index not in complete:
            continue
        by_name = {str(index): piece[batch.index] for index, piece in enumerate(pieces)}
        worst, _ = worst_of_batch(by_name, by_sample=per_sample)
        for member, hit in zip(batch.ids, worst, strict=False):
            right[member], batch_of[member] = hit > 0.5, batch.index
        for submission, piece in zip(submissions, pieces, strict=True):
            hits = zip(batch.ids, piece[batch.index].attacked, strict=False)
            submission |= {member: hit > 0.5 for member, hit in hits}
    if not right:
        return None
    cell = of_accuracy(
        right,
        batch_of,
        shared=not independent_members(defense.dependence),
        flags=_flags(defense, recorded),
        partial=len(right) < recorded.result.samples,
    )
    return replace(cell, submissions=tuple(submissions), by_batch=not per_sample)


def _noted(cell: MeasuredCell, *, regrouped: bool) -> MeasuredCell:
    """Return an accuracy whose method says if the attack mixed the members of batches."""
    method = f"{cell.method}. {APPROXIMATE}" if regrouped and cell.shared else cell.method
    return replace(cell, regrouped=regrouped, method=method)


def worst_by_batch(cell: MeasuredCell, batch_of: Mapping[int, int]) -> Mapping[int, bool]:
    """Return whether each sample is correct if one submission counts for each batch.

    Args:
        cell: An accuracy.
        batch_of: The batch of each sample that counts.
    """
    members: dict[int, list[int]] = {}
    for sample, batch in batch_of.items():
        members.setdefault(batch, []).append(sample)
    right: dict[int, bool] = {}
    for samples in members.values():
        worst = min(
            cell.submissions or (cell.right,), key=lambda hits: sum(hits[i] for i in samples)
        )
        right |= {sample: worst[sample] for sample in samples}
    return right


def _flags(defense: DefenseResult, recorded: RecordedRun) -> tuple[str, ...]:
    of_run = (flag.name for flag in recorded.result.diagnostics if flag.raised)
    return (*(flag.name for flag in defense.raised), *of_run)
