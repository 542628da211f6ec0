"""Format percentages, percentage points and factors, for terminals and pages alike."""

from typing import Final

MINUS: Final = "\N{MINUS SIGN}"
PLACES: Final = ".1f"
"""Format of a percentage, of a difference in percentage points, and of a factor."""

Bounds = tuple[float, float]


def percent(share: float) -> str:
    """Format a share, from 0 to 1, as a percentage: `43.8%`."""
    return f"{100 * share:{PLACES}}%"


def percent_bounds(bounds: Bounds) -> str:
    """Format an interval of shares in percent: `[38.1, 49.6]`."""
    low, high = bounds
    return f"[{100 * low:{PLACES}}, {100 * high:{PLACES}}]"


def points(difference: float) -> str:
    """Format a difference of shares in percentage points, with sign: `+1.2`, `−3.1`, `0.0`."""
    text = f"{100 * difference:+{PLACES}}"
    return (text if float(text) else text[1:]).replace("-", MINUS)


def points_bounds(bounds: Bounds) -> str:
    """Format an interval of differences in percentage points: `[−6.2, +0.3]`."""
    low, high = bounds
    return f"[{points(low)}, {points(high)}]"


def factor(value: float) -> str:
    """Format a factor: `25.3×`."""
    return f"{value:{PLACES}}×"
