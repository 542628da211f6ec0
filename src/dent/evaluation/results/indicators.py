"""Indicators of attack failure: signs that an attack failed because of its own optimization.

They follow Pintor et al. ("Indicators of Attack Failure: Debugging and Improving Optimization of
Adversarial Examples", NeurIPS 2022), and have the paper's names. The thresholds are ours, because a
value here covers all attacked members, and in the paper only one. Two of the paper's six are not
here: records cannot show *unstable predictions*, and *unconstrained attack failure* is our
diagnostic "huge eps does not break all".

An indicator concerns one attack and changes no number. Other attacks of the run may do better.
"""

from collections.abc import Sequence
from typing import Final

from dent.attacks.history import POINTS
from dent.evaluation.records.schema import AttackHistory, UnitRecord
from dent.evaluation.results.result import AttackCurve, Diagnostic
from dent.support.plural import counted

TOLERATED: Final = 0.1
"""Largest share with which an indicator passes."""


def curve_of(records: Sequence[UnitRecord]) -> AttackCurve | None:
    """Combine the histories of an attack's batches; None if a history is missing.

    A batch whose members had all fallen before the attack (all are `carried`) has no history. It
    counts as broken from the start.
    """
    histories = [record.history for record in records]
    known = [history for history in histories if history is not None]
    idle = [record for record in records if record.history is None]
    if not known or not all(record.carried and all(record.carried) for record in idle):
        return None
    at = _grid(known)
    sizes = [_attacked(record) for record in records if record.history is not None]
    fallen = sum(len(record.carried or ()) for record in idle)
    points = [[_index(history, gradient) for history in known] for gradient in at]
    return AttackCurve(
        gradients=tuple(at),
        broken=tuple(
            fallen + sum(h.broken[i] for h, i in zip(known, row, strict=True)) for row in points
        ),
        total=sum(len(record.claimed or ()) for record in records),
        loss=_means([history.loss for history in known], points, sizes),
        norm=_means([history.norm for history in known], points, sizes),
    )


def indicators_of(records: Sequence[UnitRecord]) -> tuple[Diagnostic, ...]:
    """Return the indicators of one attack on a defense, always in the same order.

    Args:
        records: The attack's units.

    Returns:
        The indicators; empty without gradients, and for older records.
    """
    with_history = [(record, record.history) for record in records if record.history is not None]
    if not with_history:
        return ()
    attacked = [record for record, _ in with_history]
    histories = [history for _, history in with_history]
    return (
        _unavailable(attacked),
        _silent(histories),
        _incomplete(attacked, histories),
        _untransferred(attacked, histories),
    )


def _unavailable(records: Sequence[UnitRecord]) -> Diagnostic:
    counts = [
        (zero, taken)
        for record in records
        for zero, taken, claimed in zip(
            record.zero_gradients or (), record.gradients or (), record.claimed or (), strict=False
        )
        if taken and not claimed
    ]
    zero, taken = sum(zero for zero, _ in counts), sum(taken for _, taken in counts)
    share = zero / taken if taken else 0.0
    return Diagnostic.judge(
        "unavailable gradients",
        share,
        TOLERATED,
        f"{share:.0%} of the gradients of members that are still correct were exactly zero. Use "
        "another loss, a substitute for the gradient, or an attack without gradients.",
        "Members that are still correct had a gradient.",
    )


def _silent(histories: Sequence[AttackHistory]) -> Diagnostic:
    count = sum(history.silent for history in histories)
    return Diagnostic.judge(
        "silent success",
        float(count),
        0,
        f"The attack broke {counted(count, 'member')} on the way and did not return the images. It "
        "must keep the best images, not the last.",
        "The attack returned the best images that it found.",
    )


def _incomplete(records: Sequence[UnitRecord], histories: Sequence[AttackHistory]) -> Diagnostic:
    late = sum(history.late for history in histories)
    rising = sum(history.rising for history in histories)
    standing = sum(not claimed for record in records for claimed in record.claimed or ())
    share = min((late + rising) / (late + standing), 1.0) if late + standing else 0.0
    return Diagnostic.judge(
        "incomplete optimization",
        share,
        TOLERATED,
        f"Unfinished: in its last tenth, the attack first broke {counted(late, 'member')}, and the "
        f"loss still rose for {rising} of {standing} that are still correct. Use more iterations.",
        "The attack found almost nothing more in its last tenth.",
    )


def _untransferred(records: Sequence[UnitRecord], histories: Sequence[AttackHistory]) -> Diagnostic:
    count = sum(history.untransferred for history in histories)
    total = sum(_attacked(record) for record in records)
    share = count / total if total else 0.0
    return Diagnostic.judge(
        "transfer failure",
        share,
        TOLERATED,
        f"The attack used a model in place of the defense. It fooled that model, and never the "
        f"defense, on {counted(count, 'member')} of {total}. Attack the defense itself.",
        "What fooled the model in place of the defense also fooled the defense.",
    )


def _attacked(record: UnitRecord) -> int:
    """Return the number of members that were attacked and not carried."""
    carried = record.carried or (False,) * len(record.claimed or ())
    return sum(not each for each in carried)


def _grid(histories: Sequence[AttackHistory]) -> list[int]:
    """Return at most `POINTS` recorded numbers of gradients, from the smallest to the largest."""
    places = sorted({place for history in histories for place in history.gradients})
    if len(places) <= POINTS:
        return places
    step = (len(places) - 1) / (POINTS - 1)
    return [places[round(step * index)] for index in range(POINTS)]


def _index(history: AttackHistory, gradients: int) -> int:
    """Return the index of the last point of a history at or before a number of gradients, or 0."""
    return max(sum(place <= gradients for place in history.gradients) - 1, 0)


def _means(
    series: Sequence[Sequence[float]], points: Sequence[Sequence[int]], sizes: Sequence[int]
) -> tuple[float, ...]:
    """Return the mean over batches at each point, weighted by attacked members."""
    total = max(sum(sizes), 1)
    sums = (
        sum(values[i] * size for values, i, size in zip(series, row, sizes, strict=True))
        for row in points
    )
    return tuple(float(f"{each / total:.6g}") for each in sums)
