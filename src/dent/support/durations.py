"""Write durations in words."""

from typing import Final

_UNITS: Final = (("second", 1.0), ("minute", 60.0), ("hour", 3600.0), ("day", 86400.0))
_SWITCH: Final = 1.5
"""A unit applies from this many of it: 80 seconds stay seconds, and 90 are 1.5 minutes."""


def duration(seconds: float) -> str:
    """Return a time such as `40 seconds`, `2.5 hours`, `12 days`."""
    return between(seconds, seconds)


def between(low: float, high: float) -> str:
    """Return a range such as `3 to 5 minutes`, or one time if both round to the same."""
    unit, length = _UNITS[0]
    for name, seconds in _UNITS:
        if high >= _SWITCH * seconds:
            unit, length = name, seconds
    shortest, longest = _figure(low / length, unit), _figure(high / length, unit)
    plural = "" if longest == "1" else "s"
    return (
        f"{longest} {unit}{plural}"
        if shortest == longest
        else f"{shortest} to {longest} {unit}{plural}"
    )


def _figure(value: float, unit: str) -> str:
    """Round to whole seconds, or to two digits, because an estimate is not more precise."""
    if unit == "second":
        return f"{max(round(value), 1)}"
    return f"{value:.2g}" if value < 10 else f"{round(value)}"
