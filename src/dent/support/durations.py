"""Write durations in words."""

from typing import Final

_UNITS: Final = (("second", 1.0), ("minute", 60.0), ("hour", 3600.0), ("day", 86400.0))
_SWITCH: Final = 1.5
"""A unit applies from this many of it: 80 seconds stay seconds, and 90 are 1.5 minutes."""


def duration(seconds: float) -> str:
    """Return a time such as `40 seconds`, `2.5 hours`, `12 days`."""
    unit, length = _unit(seconds)
    figure = _figure(seconds / length, unit)
    return f"{figure} {unit}{'' if figure == '1' else 's'}"


def between(low: float, high: float) -> str:
    """Return a range such as `3 to 5 minutes`, or one time if both round to the same.

    A low end below one unit of the high end has its own unit: `50 minutes to 4 days`.
    """
    unit, length = _unit(high)
    if low < length:
        shortest, longest = duration(low), duration(high)
        return longest if shortest == longest else f"{shortest} to {longest}"
    shortest, longest = _figure(low / length, unit), _figure(high / length, unit)
    return duration(high) if shortest == longest else f"{shortest} to {longest} {unit}s"


def _unit(seconds: float) -> tuple[str, float]:
    return [each for each in _UNITS if each is _UNITS[0] or seconds >= _SWITCH * each[1]][-1]


def _figure(value: float, unit: str) -> str:
    """Round to whole seconds, or to two digits, because an estimate is not more precise."""
    if unit == "second":
        return f"{max(round(value), 1)}"
    return f"{value:.2g}" if value < 10 else f"{round(value)}"
