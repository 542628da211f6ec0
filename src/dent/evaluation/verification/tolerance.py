"""What may differ between the records of a run and its images when they are submitted again.

On the run's own platform, every answer must be the recorded one. Elsewhere, rounding changes a few
answers, and these functions tell whether it explains a change.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

from scipy.stats import binomtest
from torch import Tensor

from dent.evaluation.records.plan import Unit
from dent.evaluation.records.schema import FollowUp, GradientRecord, Trace
from dent.evaluation.records.spec import STATIC
from dent.evaluation.results.result import DefenseResult, Difference, EvaluationResult
from dent.evaluation.submission.repeated import CLOSE, TOLERATED, close
from dent.evaluation.submission.submission import Submission, merge_traces
from dent.support.plural import agreeing, counted
from dent.support.predictions import is_prediction

TIE = 1e-3
"""Share of its largest logit by which the static model may prefer another class than the recorded
one on other hardware or software. Rounding in float32 changed logits of the bundled models by up to
1.3e-6 of the largest one, and rounding of their layers to TF32 by up to 3.4e-4, at most twice of
which adds up in a margin. Defenses that adapt amplify rounding too much for such a limit."""
ONE_SIDED = 0.001
"""Significance level of the test whether changed predictions favor a defense, over all defenses."""


def result_changes(recorded: EvaluationResult, again: EvaluationResult) -> Iterator[str]:
    """Yield how two results of a run differ: counts beyond the tolerance, and any ruling."""
    # A run that stopped early, but would not stop now, has no ruling yet.
    ruled = recorded.status == again.status
    for name, then in recorded.defenses.items():
        now = again.defenses[name]
        for where, before, after in (
            ("in the worst case", then.worst.served, now.worst.served),
            ("without an attack", then.natural, now.natural),
        ):
            allowed = max(1, math.floor(TOLERATED * before.total))
            if before.total != after.total or abs(before.correct - after.correct) > allowed:
                yield (
                    f"{name}: {before.correct} of {counted(before.total, 'member')} "
                    f"{agreeing(before.correct, 'are')} correct {where} as recorded, "
                    f"{after.correct} of {after.total} as submitted again"
                )
        moves = (
            _moved("the static model", then.difference, now.difference),
            _moved("the mean over views", _over_views(then), _over_views(now)),
        )
        yield from (f"{name}: {moved}" for moved in moves if moved is not None)
        yield from (f"{name}: {problem}" for problem in _other_draws(then, now))
        ruling, ruling_now = (_ruling(each, ruled=ruled) for each in (then, now))
        if ruling != ruling_now:
            yield f"{name}: {ruling} as recorded, {ruling_now} as submitted again"


def _over_views(result: DefenseResult) -> Difference | None:
    return None if result.over_views is None else result.over_views.difference


def _other_draws(then: DefenseResult, now: DefenseResult) -> Iterator[str]:
    """Yield how the results over several draws of a randomized defense change.

    Each draw may change as much as an accuracy. Draws that were made equal keep their mean, but the
    resubmission risk falls.
    """
    before, after = then.repeated, now.repeated
    if before is None or after is None:
        if before is not after:
            yield "it has several draws, or has none, only as recorded"
        return
    rounding = 1 / max(before.natural_always.total, 1)
    for where, risks, risks_now in (
        ("under attack", before.risk, after.risk),
        ("without an attack", before.natural_risk, after.natural_risk),
    ):
        pairs = enumerate(zip(risks, risks_now, strict=False), start=1)
        off = [n for n, (a, b) in pairs if abs(a - b) > n * TOLERATED + rounding + CLOSE]
        if off or len(risks) != len(risks_now):
            yield f"its resubmission risk {where} is not as recorded"


def _moved(what: str, before: Difference | None, after: Difference | None) -> str | None:
    """Return a message if a difference changes by more than is tolerated.

    Each accuracy may change as well, but not so that their changes add up.
    """
    if before is None or after is None or before.value is None or after.value is None:
        return None
    allowed = max(1, math.floor(TOLERATED * before.total))
    if abs(after.value - before.value) * before.total <= allowed + CLOSE:
        return None
    return (
        f"the difference to {what} is {100 * before.value:+.2f} points as recorded, "
        f"{100 * after.value:+.2f} as submitted again, which is more than "
        f"{counted(allowed, 'member')} of {before.total} apart"
    )


def _ruling(result: DefenseResult, *, ruled: bool) -> str:
    """Return the ruling in words; without a verdict, on which side of 0 the difference lies."""
    if ruled and result.verdict is not None:
        return f"the verdict is {result.verdict.ruling}"
    if result.difference is None or result.difference.interval is None:
        return "there is no difference"
    low, high = result.difference.interval
    side = "above" if low > 0 else "below" if high < 0 else "around"
    return f"the interval of the difference lies {side} 0"


def is_tie(logits: Tensor, recorded: int | None) -> bool:
    """Return whether a recorded class may be predicted from these logits after some rounding.

    Args:
        logits: Of one member, (classes,).
        recorded: The recorded class; None if there was no prediction.
    """
    if recorded is None or recorded >= len(logits) or not bool(is_prediction(logits)):
        return False
    behind = logits.max() - logits[recorded]
    return bool(behind <= TIE * logits[logits.isfinite()].abs().max())


def favored(leaning: Mapping[str, Mapping[int, int]]) -> Iterator[str]:
    """Yield the defenses with more samples that are correct as recorded than now, by a sign test.

    A sample counts once, because its predictions under different attacks are not independent.
    """
    others = {name: counts for name, counts in leaning.items() if name != STATIC}
    for name, counts in others.items():
        recorded, now = (sum(sign * count > 0 for count in counts.values()) for sign in (1, -1))
        if not recorded:
            continue
        p_value = float(binomtest(recorded, recorded + now, alternative="greater").pvalue)
        if p_value < ONE_SIDED / len(others):
            yield (
                f"{name}: of {counted(recorded + now, 'sample')} with other predictions, "
                f"{recorded} are correct more often as recorded, and only {now} as submitted again "
                f"(p = {p_value:.2g}): rounding would change them in both directions"
            )


def comparable(
    recorded: GradientRecord | None, repeated: GradientRecord | None
) -> GradientRecord | None:
    """Return the repeated check without what the recorded one lacks: it may be older."""
    if recorded is None or repeated is None or not recorded.points or not repeated.points:
        return repeated
    points = tuple(
        now.model_copy(update={"coarse": None}) if then.coarse is None else now
        for then, now in zip(recorded.points, repeated.points, strict=False)
    )
    further = None if recorded.further is None else repeated.further
    agreement = None if recorded.agreement is None else repeated.agreement
    changes = {"points": points, "further": further, "agreement": agreement}
    return repeated.model_copy(update=changes)


def described(huge: FollowUp | None) -> str:
    """Return the outcome of the attack with a huge eps in words."""
    if huge is None:
        return "nothing was attacked"
    members = counted(huge.total, "member")
    return f"{huge.correct} of {members} {agreeing(huge.correct, 'are')} correct"


def trace_problem(unit: Unit, answers: list[Submission], recorded: Trace) -> str | None:
    """Return how the adaptation in repeated answers of a unit differs from its record, or None."""
    trace = merge_traces([answer.trace for answer in answers])
    if (trace.rows, trace.status) != (recorded.rows, recorded.status):
        return f"{unit.key}: rows or statuses of the adaptation are not those recorded"
    for name, now, then in (
        ("entropy", trace.entropy, recorded.entropy),
        ("sigma", trace.sigma, recorded.sigma),
        ("sigma by step", trace.sigma_by_step, recorded.sigma_by_step),
    ):
        if name == "sigma by step" and then is None:
            continue  # recorded before defenses reported it
        values, recorded_values = _flat(now), _flat(then)
        if len(values) != len(recorded_values) or (now is None) != (then is None):
            return f"{unit.key}: {name} has another length than recorded"
        pairs = zip(values, recorded_values, strict=True)
        if not all(close(a, b) for a, b in pairs):
            return f"{unit.key}: {name} is not as recorded"
    return None


def _flat(values: Sequence[float | Sequence[float]] | None) -> list[float]:
    """Return all numbers of a trace's entry, in order; empty if it has none."""
    rows = [[entry] if isinstance(entry, float) else entry for entry in values or ()]
    return [value for row in rows for value in row]
