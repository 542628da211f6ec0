"""Checks of settings that a user gives. Every package refuses a wrong value in the same words."""

import math

from dent.errors import ConfigError


def is_count(value: object) -> bool:
    """Return whether a value is a whole number of at least 1."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def is_number(value: object) -> bool:
    """Return whether a value is a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer that is too large for a float
        return False


def check_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    """Raise `ConfigError` unless `value` is one of `allowed`."""
    if value not in allowed:
        raise ConfigError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}.")


def check_count(name: str, value: object, low: int) -> None:
    """Raise `ConfigError` unless `value` is a whole number of at least `low`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ConfigError(f"{name} must be a whole number, at least {low}, got {value!r}.")


def check_counts(least: int, **values: object) -> None:
    """Check that all values are whole numbers of at least `least`.

    Raises:
        ConfigError: A value is not a whole number, or is less than `least`.
    """
    for key, value in values.items():
        check_count(key, value, least)


def check_flag(name: str, value: object) -> None:
    """Raise `ConfigError` unless `value` is a boolean."""
    if not isinstance(value, bool):
        raise ConfigError(f"{name} must be true or false, got {value!r}.")


def check_flags(**values: object) -> None:
    """Check that all values are booleans.

    Raises:
        ConfigError: A value is neither True nor False.
    """
    for key, value in values.items():
        check_flag(key, value)


def read_number(
    name: str, value: object, low: float, high: float = math.inf, *, closed_low: bool = False
) -> float:
    """Return `value` as a float in the interval (low, high), or [low, high) with `closed_low`.

    Args:
        name: The name of the setting, for the message.
        value: The value that was given.
        low: The lower bound.
        high: The upper bound; by default, every finite number is below it.
        closed_low: Whether the interval contains `low`.

    Raises:
        ConfigError: The value is not a number, or not in the interval.
    """
    if high < math.inf:
        expected = f"a number in {'[' if closed_low else '('}{low:g}, {high:g})"
    elif isinstance(value, bool) or not isinstance(value, int | float):
        expected = "a number"
    else:
        expected = f"finite, {'at least' if closed_low else 'greater than'} {low:g}"
    number = float(value) if isinstance(value, int | float) and is_number(value) else math.nan
    if low < number < high or (closed_low and number == low):
        return number
    raise ConfigError(f"{name} must be {expected}, got {value!r}.")
