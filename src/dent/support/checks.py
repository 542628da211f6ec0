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


def check_flag(name: str, value: object) -> None:
    """Raise `ConfigError` unless `value` is a boolean."""
    if not isinstance(value, bool):
        raise ConfigError(f"{name} must be true or false, got {value!r}.")


def read_number(name: str, value: object, low: float, high: float = math.inf) -> float:
    """Return `value` as a float in the open interval (low, high).

    Raises:
        ConfigError: it is not a number, or not in the interval.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{name} must be a number, got {value!r}.")
    if not is_number(value) or not low < value < high:
        bound = f"greater than {low:g}" + (f" and less than {high:g}" if high < math.inf else "")
        raise ConfigError(f"{name} must be finite, {bound}, got {value!r}.")
    return float(value)
