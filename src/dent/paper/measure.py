"""Read one cell's figure off the records of its run, sample by sample."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

from dent.evaluation.records.plan import Plan as Batches
from dent.evaluation.records.schema import UnitRecord
from dent.evaluation.records.spec import STATIC
from dent.evaluation.results.intervals import of_median, wilson
from dent.evaluation.results.recorded_run import RecordedRun
from dent.evaluation.results.result import DefenseResult
from dent.evaluation.results.scoring import Piece, Rights, Scores, label, score, worst_of_batch
from dent.evaluation.results.worst_case import by_sample
from dent.paper.planning import PlannedCell
from dent.paper.profile import ProfileRecord

Interval = tuple[float, float]
_SAMPLES: Final = 100.0  # percent


@dataclass(frozen=True)
class Measured:
    """What was measured for a cell.

    Attributes:
        value: The figure, in the unit of the published one: percent, static forwards, seconds.
        interval: Of it, at 95%; None where there are too few values for one.
        right: Of an accuracy, by sample id, whether it was right; empty otherwise.
        batch: By sample id, the batch it was served in.
        shared: Whether the members of a batch share their luck.
        numbers: Of what is no accuracy, the single values, by batch or round.
        flags: Diagnostics that the defense, or the run, raised.
        partial: Whether batches are missing.
    """

    value: float
    interval: Interval | None
    right: Mapping[int, bool]
    batch: Mapping[int, int]
    shared: bool
    numbers: Sequence[float]
    flags: tuple[str, ...]
    partial: bool


def measure(planned: PlannedCell, recorded: RecordedRun) -> Measured | None:
    """Read a cell off its run; None where no batch is whole yet.

    `robust` counts what the defense serves after the attack, in the worst case over the attacks
    that the cell counts: by sample, or by batch where the defense depends on it. What AutoAttack
    ran as it ships is counted as it counts, by its own claims, which is what the paper printed.
    """
    run = planned.run
    if run is None:
        return None
    spec, batches = recorded.run.spec, recorded.plan
    scores = score(spec, batches, recorded.records)[run.defense_name]
    found = recorded.result.defenses[run.defense_name]
    what = planned.cell.measure
    if what in ("robust", "natural", "transfer"):
        rights = _rights(planned, scores, batches, by_sample(found.dependence))
        return _accuracy(rights, batches, found, recorded)
    natural = scores.records["natural"]
    if what == "relative-time":
        pairs = [(record.timing.serve, record.timing.static) for record in natural]
        numbers = [own / static for own, static in pairs if static]
        if run.defense_name == STATIC:  # its own yardstick: it was not timed twice
            numbers = [1.0 for _ in natural]
    else:
        numbers = _sigmas(planned, natural)
    return of_numbers(numbers, _flags(found, recorded), recorded.result.status == "partial")


def of_profile(planned: PlannedCell, record: ProfileRecord, rounds: int) -> Measured | None:
    """Read a cell off a profile; None where its column was not profiled."""
    _, _, column = planned.cell.key.partition("/")
    if column not in record.flops or not record.seconds:
        return None
    first = min(record.flops.values())
    numbers = {
        "gflops": [record.flops[column] / 1e9],
        "relative-flops": [record.flops[column] / first],
        "seconds": [round_[column] for round_ in record.seconds],
        "relative-time": [_ratio(round_, column) for round_ in record.seconds],
    }[planned.cell.measure]
    if planned.cell.measure in ("gflops", "relative-flops"):  # a count, the same at every time
        return Measured(numbers[0], (numbers[0], numbers[0]), {}, {}, False, numbers, (), False)
    return of_numbers(numbers, (), len(record.seconds) < rounds)


def of_numbers(numbers: Sequence[float], flags: tuple[str, ...], partial: bool) -> Measured | None:
    """A median with its interval; None where there are no numbers."""
    if not numbers:
        return None
    return Measured(
        median(numbers), of_median(numbers), {}, {}, False, tuple(numbers), flags, partial
    )


def _sigmas(planned: PlannedCell, natural: Sequence[UnitRecord]) -> list[float]:
    """Batch by batch, where sigma begins, which the configuration says, or where it ends."""
    smoothing = planned.cell.defense.smoothing
    ends = [record.trace.sigma[0] for record in natural if record.trace.sigma]
    if planned.cell.measure == "sigma-before" and smoothing is not None:
        return [smoothing.sigma for _ in ends]
    return ends


def _ratio(round_: Mapping[str, float], column: str) -> float:
    """In static forwards of the same round; the column of no steps is the static model."""
    return round_[column] / round_["0"]


def _rights(
    planned: PlannedCell, scores: Scores, batches: Batches, samples: bool
) -> dict[int, Rights]:
    """By batch index, who was right."""
    if planned.cell.measure == "natural":
        return {at: piece.attacked for at, piece in scores.submissions["natural"].items()}
    kind = "transfer" if planned.cell.measure == "transfer" else "attack"
    pieces = [scores.submissions["natural"]]
    for attack in planned.attacks:
        name = label(kind, attack)
        claimed = _claimed(scores.records[name], batches) if kind == "attack" else None
        pieces.append(claimed or scores.submissions[name])
    whole = set.intersection(*(set(piece) for piece in pieces))
    found = {}
    for at in sorted(whole):
        by_name = {str(index): piece[at] for index, piece in enumerate(pieces)}
        found[at], _ = worst_of_batch(by_name, by_sample=samples or _published(scores, planned))
    return found


def _published(scores: Scores, planned: PlannedCell) -> bool:
    """Whether AutoAttack regrouped members: what it counts, it counts by sample."""
    first = scores.records.get(label("attack", planned.attacks[0]), ())
    return bool(first) and first[0].batch is None


def _claimed(records: Sequence[UnitRecord], batches: Batches) -> dict[int, Piece] | None:
    """By AutoAttack's own word, where it took all batches in one call; None otherwise."""
    if not records or records[0].batch is not None or records[0].claimed is None:
        return None
    stands = [not fell for fell in records[0].claimed]
    pieces, begin = {}, 0
    for batch in batches.batches:
        rights = tuple(stands[begin : begin + batch.attacked])
        pieces[batch.index] = Piece(attacked=rights, clean=(), missing=0)
        begin += batch.attacked
    return pieces


def _accuracy(
    rights: Mapping[int, Rights], batches: Batches, found: DefenseResult, recorded: RecordedRun
) -> Measured | None:
    right: dict[int, bool] = {}
    where: dict[int, int] = {}
    for batch in batches.batches:
        for member, hit in zip(batch.ids, rights.get(batch.index, ()), strict=False):
            right[member], where[member] = hit > 0.5, batch.index
    if not right:
        return None
    low, high = wilson(sum(right.values()), len(right))
    return Measured(
        value=_SAMPLES * sum(right.values()) / len(right),
        interval=(_SAMPLES * low, _SAMPLES * high),
        right=right,
        batch=where,
        shared=not by_sample(found.dependence),
        numbers=(),
        flags=_flags(found, recorded),
        partial=len(right) < recorded.result.samples,
    )


def _flags(found: DefenseResult, recorded: RecordedRun) -> tuple[str, ...]:
    own = (flag.name for flag in recorded.result.diagnostics if flag.raised)
    return (*(flag.name for flag in found.raised), *own)
