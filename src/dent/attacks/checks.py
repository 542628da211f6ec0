"""What counts as a number where hyper-parameters come from a person."""

import math

from dent.errors import ConfigError


def is_count(value: object) -> bool:
    """Whether this is a whole number from 1."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def is_number(value: object) -> bool:
    """Whether this is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def check_counts(least: int, **values: object) -> None:
    """Check whole numbers.

    Raises:
        ConfigError: One is none, or less than `least`.
    """
    for key, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ConfigError(f"{key} must be a whole number from {least}, got {value!r}")
