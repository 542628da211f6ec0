"""Format figures, differences and intervals in the unit of their cells."""

from collections.abc import Mapping
from typing import Final

from dent.paper.results import Judgement, Unit
from dent.support.rounding import MINUS, PLACES

RATIO: Final[Unit] = "% of the second"
"""The unit of a ratio of two cells."""
_PLACES: Final[Mapping[Unit, str]] = {
    "%": PLACES,
    RATIO: PLACES,
    "×": PLACES,
    "s": ".3g",
    "pixels": ".3f",
}


def figure(value: float, unit: Unit) -> str:
    """Format a figure: `62.1`, `25.3×`, `0.213 s`. Accuracies have no sign, as in the paper."""
    text = format(value, _PLACES.get(unit, ".4g"))
    return text + {"×": "×", "s": " s", RATIO: "%"}.get(unit, "")


def signed(value: float, unit: Unit) -> str:
    """Format a difference with its sign: `+15.2`; without a sign if it rounds to 0."""
    text = format(value, f"+{_PLACES.get(unit, '.4g')}")
    return (text if float(text) else text[1:]).replace("-", MINUS)


def interval(bounds: tuple[float, float] | None, unit: Unit) -> str:
    """Format an interval: `[53.1, 70.2]`; empty without an interval."""
    if bounds is None:
        return ""
    low, high = (format(bound, _PLACES.get(unit, ".4g")) for bound in bounds)
    return f"[{low}, {high}]".replace("-", MINUS)


def measured(judgement: Judgement) -> str:
    """Format the measured value of a judgement: a signed difference, a ratio, or a figure."""
    return _written(judgement, judgement.measured) or "not measured"


def printed(judgement: Judgement) -> str:
    """Format the published value of a judgement, or return `no figure`."""
    return _written(judgement, judgement.published) or "no figure"


def _written(judgement: Judgement, value: float | None) -> str:
    if value is None:
        return ""
    write = figure if len(judgement.cells) == 1 or judgement.unit == RATIO else signed
    return write(value, judgement.unit)
