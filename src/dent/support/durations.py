"""Write durations in words."""

from typing import Final

_UNITS: Final = (("second", 1.0), ("minute", 60.0), ("hour", 3600.0), ("day", 86400.0))
_SWITCH: Final = 1.5
"""A unit applies from this many of it: 80 seconds stay seconds, and 90 are 1.5 minutes."""


def duration(seconds: float) -> str:
    """Return a time such as `40 seconds`, `2.5 hours`, `12 days`."""
    return _in(seconds, _unit(seconds))


def between(low: float, high: float) -> str:
    """Return a range such as `3 to 5 minutes`, or one time if both round to the same.

    A low end below one unit of the high end has its own unit: `50 minutes to 4 days`.
    """
    unit = _unit(high)
    unit_of_low = _unit(low) if low < unit[1] else unit
    shortest, longest = _in(low, unit_of_low), _in(high, unit)
    if shortest == longest:
        return longest
    return f"{shortest.split()[0] if unit_of_low == unit else shortest} to {longest}"


def _unit(seconds: float) -> tuple[str, float]:
    return [each for each in _UNITS if each is _UNITS[0] or seconds >= _SWITCH * each[1]][-1]


def _in(seconds: float, unit: tuple[str, float]) -> str:
    name, length = unit
    figure = _figure(seconds / length, name)
    return f"{figure} {name}{'' if figure == '1' else 's'}"


def _figure(value: float, unit: str) -> str:
    """Round to whole seconds, or to two digits, because an estimate is not more precise."""
    if unit == "second":
        return f"{max(round(value), 1)}"
    return f"{value:.2g}" if value < 10 else f"{round(value)}"
