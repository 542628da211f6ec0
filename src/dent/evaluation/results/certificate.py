"""Whether the gradient that attacks follow is certified, from the records of the probe."""

from collections.abc import Sequence
from typing import Final

from dent.evaluation.probe.gradient_check import ALIKE, CHECKS
from dent.evaluation.probe.moves import COARSE
from dent.evaluation.records.probe_answers import randomized
from dent.evaluation.records.schema import FollowUp, GradientCheck, GradientPoint, ProbeRecord
from dent.evaluation.results.result import Diagnostic

CERTIFICATE: Final = "gradient certificate"
"""Name of the diagnostic."""
_POINTS: Final = 3
"""Number of batches of images at which a gradient is compared."""


def certificate_of(probe: ProbeRecord | None) -> Diagnostic:
    """Return the diagnostic that says whether attacks follow the true gradient of every member."""
    if probe is None:
        return Diagnostic.not_run(CERTIFICATE, "The defense has not been probed for it yet.")
    check = probe.gradient
    if check is None:
        return _older_certificate(probe.gradient_check)
    if check.missing is not None or check.threshold is None:
        return Diagnostic.not_run(CERTIFICATE, f"There is no gradient to check: {check.missing}.")
    worst = max(_error(point) for point in check.points)
    return Diagnostic.judge(
        CERTIFICATE,
        worst,
        check.threshold,
        "For some checked member, the predictions do not change as the gradient says. Attacks that "
        "follow it are not white-box.",
        f"For every checked member, the predictions change as the {check.rung} gradient says.",
    )


def _error(point: GradientPoint) -> float:
    """Return the largest error of any member, at most 1.

    It is 1 if an error is infinite, or if the check saw another gradient than the attack or other
    predictions than the submission.
    """
    if point.alike < ALIKE or point.same < ALIKE * point.of or None in point.errors:
        return 1.0
    return min(max(error for error in point.errors if error is not None), 1.0)


def over_large_steps(probe: ProbeRecord | None) -> bool | None:
    """Return whether the gradient predicts how the answers change over large steps.

    It must do so over steps of a quarter or half of eps, for all checked members but one in fifty.
    Exact gradients are no exception, because they may follow only a small ripple on the input.

    Returns:
        None if it was not checked. Older versions checked only inexact gradients.
    """
    check = None if probe is None else probe.gradient
    if check is None or check.missing is not None or not check.points:
        return None
    errors = [point.coarse for point in check.points]
    if any(coarse is not None and not _few_are_wrong(coarse) for coarse in errors):
        return False
    return None if None in errors else True


def answered_classes(probe: ProbeRecord | None) -> int | None:
    """Return the number of logits per image; None if it is not recorded."""
    return None if probe is None or probe.gradient is None else probe.gradient.classes


def further_attack(probe: ProbeRecord | None) -> FollowUp | None:
    """Return the outcome of one more attack on the first batch; None if it did not run."""
    return None if probe is None or probe.gradient is None else probe.gradient.further


def missing_checks(probe: ProbeRecord | None) -> tuple[str, ...]:
    """Return the checks that a claim of a gain needs and the records of an older version lack.

    A defense without a gradient lacks no checks of gradients, and neither does an early stop.
    """
    if probe is None:
        return ()
    check = probe.gradient
    found: dict[str, bool] = {
        "whether it can be copied": probe.calls is not None,
        "whether copies share a memory": probe.shares is not None or probe.uncopied is not None,
    }
    if check is not None and check.missing is None:
        found |= {
            "whether gradients change after queries": probe.again_gradient is not None,
            "whether the gradient passes today's checks": (check.checks or 0) >= CHECKS,
            "the number of logits": check.classes is not None,
            "one more attack, toward every class": check.further is not None,
            "the gradient at the images of that attack": len(check.points) >= _POINTS,
            "gradients under other seeds": not randomized(probe) or check.agreement is not None,
        }
    return tuple(name for name, there in found.items() if not there)


def agreement_of(probe: ProbeRecord | None) -> float | None:
    """Return how alike gradients under other seeds are; None if they are equal or not recorded."""
    return None if probe is None or probe.gradient is None else probe.gradient.agreement


def _few_are_wrong(errors: Sequence[float | None]) -> bool:
    return sum(error is None or error > COARSE for error in errors) <= len(errors) // 50


def _older_certificate(check: GradientCheck | None) -> Diagnostic:
    if check is None:
        return Diagnostic.not_run(CERTIFICATE, "The defense has not been probed for it yet.")
    if check.missing is not None or check.threshold is None:
        return Diagnostic.not_run(
            CERTIFICATE, f"There is no exact gradient to check: {check.missing}."
        )
    return Diagnostic.not_run(
        CERTIFICATE,
        "An older version made a weaker check: run it again.",
    )
