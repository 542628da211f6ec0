"""Rule on a claim by a confidence interval, and say what was checked."""

from dataclasses import dataclass
from typing import Final

from dent.evaluation.results.worst_case import MIN_CLUSTERS
from dent.paper.figures import figure, signed
from dent.paper.results import ClaimRuling, Interval, Unit
from dent.paper.spec import Claim
from dent.support.plural import counted
from dent.support.rounding import MINUS

WORST_FIRST: Final[tuple[ClaimRuling, ...]] = (
    "not reproduced",
    "cannot be told",
    "not finished",
    "not measured",
    "reproduced",
)
"""All rulings, from the worst for a claim to the best."""

_LEAST: Final = 0.5
_MOST: Final = 2.0
"""The shares of a published difference between which a difference has the same size."""


@dataclass(frozen=True)
class _Check:
    """What a claim demands of an interval, and where the interval lies."""

    claimed: str
    inside: bool
    outside: bool
    where: str


def rule(
    claim: Claim, published: float | None, bounds: Interval | None, unit: Unit, *, few: bool
) -> tuple[ClaimRuling, str]:
    """Return the ruling on a claim, and a sentence that says what was checked.

    Args:
        claim: The claim.
        published: The difference of the published figures, or the published figure.
        bounds: The interval of the measured difference or figure; None if there are too few values.
        unit: The unit of the interval.
        few: Whether there are too few batches to trust the interval.
    """
    if bounds is None:
        return "cannot be told", "Too few values for an interval."
    check = _check(claim, published, bounds, unit)
    if few and (check.inside or check.outside):
        return "cannot be told", (
            f"{check.claimed} Members of a batch share an adaptation. An interval that accounts "
            f"for this needs at least {counted(MIN_CLUSTERS, 'batch')}."
        )
    ruling: ClaimRuling = "cannot be told"
    if check.inside:
        ruling = "reproduced"
    elif check.outside:
        ruling = "not reproduced"
    return ruling, f"{check.claimed} The interval {check.where}"


def _check(claim: Claim, published: float | None, bounds: Interval, unit: Unit) -> _Check:
    low, high = bounds
    within = claim.within or 0.0
    points = {"%": "points", "×": "static forwards", "s": "s"}.get(unit, unit)
    if claim.kind == "higher":
        return _higher(published or 0.0, bounds, unit)
    if claim.kind == "at-least":
        return _at_least(claim, bounds, unit)
    if claim.kind == "about":
        inside, outside = -within <= low and high <= within, high < -within or low > within
        return _range(f"Claimed: at most {within:g} {points} apart.", inside, outside)
    if claim.kind == "not-lower":
        claimed, bound = f"Claimed: at most {within:g} {points} lower.", f"{MINUS}{within:g}"
        words = (f"does not reach below {bound}", f"lies below {bound}", f"contains {bound}")
        return _checked(claimed, low >= -within, high < -within, words)
    if claim.kind == "at-most":
        most = claim.bound or 0.0
        words = ("does not reach above that", "lies above that", "contains that")
        return _checked(f"Claimed: at most {most:g}{unit}.", high <= most, low > most, words)
    factor, middle = claim.factor or 1.0, published or 0.0
    least, most = middle / factor, middle * factor
    inside, outside = least <= low and high <= most, high < least or low > most
    claimed = f"Claimed: {middle:g}{unit} ({least:.3g} to {most:.3g} counts)."
    return _range(claimed, inside, outside)


def _higher(published: float, bounds: Interval, unit: Unit) -> _Check:
    low, high = bounds
    least = max(_LEAST * published, 0.0)
    if not least:
        words = ("lies above 0", "does not reach above 0", "contains 0")
        return _checked("Claimed: above 0.", low > 0, high <= 0, words)
    half = f"half of that ({figure(least, unit)})"
    if low > 0 and high >= least:
        where = _sized(published, bounds, unit)
    elif low > 0:
        where = f"lies above 0, but below {half}: the direction is the paper's, the size is not."
    elif high >= least:
        where = f"contains 0 and reaches {half}."
    elif high > 0:
        where = f"contains 0 and lies below {half}."
    else:
        where = "does not reach above 0."
    claimed = f"Claimed: {signed(published, unit)}."
    return _Check(claimed, low > 0 and high >= least, high < least, where)


def _sized(published: float, bounds: Interval, unit: Unit) -> str:
    """Return where an interval lies that confirms a direction, and whether it confirms the size."""
    (low, high), least, most = bounds, _LEAST * published, _MOST * published
    half, double = figure(least, unit), figure(most, unit)
    if low > most:
        return (
            f"lies above twice that ({double}): reproduced in direction; the size is larger than "
            "the paper's."
        )
    if low >= least and high <= most:
        where = (
            f"lies between half of that ({half}) and twice that ({double}): reproduced in "
            "direction and size."
        )
    else:
        where = (
            f"lies above 0 and reaches half of that ({half}): reproduced in direction; the size is "
            "not settled."
        )
    if high < published:
        return f"{where} The paper's figure lies above it."
    return f"{where} The paper's figure lies below it." if low > published else where


def _at_least(claim: Claim, bounds: Interval, unit: Unit) -> _Check:
    """Check the size that a sentence states, not the published difference."""
    low, high = bounds
    if claim.ratio is None:
        least = claim.bound or 0.0
        claimed = f"Claimed: at least {signed(least, unit)}."
    else:
        least = 100 * claim.ratio
        claimed = f"Claimed: at least {least:g}% of the second cell."
    words = ("does not reach below that", "lies below that", "contains that")
    return _checked(claimed, low >= least, high < least, words)


def _range(claimed: str, inside: bool, outside: bool) -> _Check:
    words = ("lies inside that range", "lies outside that range", "lies partly outside that range")
    return _checked(claimed, inside, outside, words)


def _checked(claimed: str, inside: bool, outside: bool, words: tuple[str, str, str]) -> _Check:
    """Return a check, with the words for inside, for outside, or for neither."""
    where = words[0 if inside else 1 if outside else 2]
    return _Check(claimed, inside, outside, f"{where}.")
