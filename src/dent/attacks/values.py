"""What counts as a number where hyper-parameters come from a person."""

import math


def is_count(value: object) -> bool:
    """Whether this is a whole number from 1."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def is_number(value: object) -> bool:
    """Whether this is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
