"""Write durations as a person would say them."""

from typing import Final

_UNITS: Final = (("second", 1.0), ("minute", 60.0), ("hour", 3600.0), ("day", 86400.0))
_SWITCH: Final = 1.5
"""A unit is used from this many of it on: 80 seconds, but 1.5 minutes."""


def lasting(seconds: float) -> str:
    """Return a time such as `40 seconds`, `2.5 hours`, `12 days`."""
    return between(seconds, seconds)


def between(low: float, high: float) -> str:
    """Return a range such as `3 to 5 minutes`; one time where both round to the same."""
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
    """Round to two figures, since an estimate knows no more."""
    if unit == "second":
        return f"{max(round(value), 1)}"
    return f"{value:.2g}" if value < 10 else f"{round(value)}"
