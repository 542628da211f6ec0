"""Percentages, points and factors as they are written in a terminal and on every page."""

from typing import Final

MINUS: Final = "\N{MINUS SIGN}"
PLACES: Final = ".1f"
"""Format of a percentage, of a difference in percentage points, and of a factor."""

Bounds = tuple[float, float]


def percent(share: float) -> str:
    """A share of 1: `43.8%`."""
    return f"{100 * share:{PLACES}}%"


def percent_bounds(bounds: Bounds) -> str:
    """An interval of shares, in percent: `[38.1, 49.6]`."""
    low, high = bounds
    return f"[{100 * low:{PLACES}}, {100 * high:{PLACES}}]"


def points(difference: float) -> str:
    """A difference of shares in percentage points, its sign shown: `+1.2`, `−3.1`, `0.0`."""
    text = f"{100 * difference:+{PLACES}}"
    return (text if float(text) else text[1:]).replace("-", MINUS)


def points_bounds(bounds: Bounds) -> str:
    """An interval of differences: `[−6.2, +0.3]`."""
    low, high = bounds
    return f"[{points(low)}, {points(high)}]"


def factor(value: float) -> str:
    """How many times as much: `25.3×`."""
    return f"{value:{PLACES}}×"
