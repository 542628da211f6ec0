"""Checks of hyper-parameters that a user sets, and the metadata of their fields."""

import math
from dataclasses import Field, field
from typing import Any, Final, TypeVar

from dent.errors import ConfigError

_T = TypeVar("_T")
_EFFORT: Final = "effort"
_LATER: Final = "later"
LATER: Final = {_LATER: True}
"""Metadata of a field that was added after its attack was first recorded."""


def effort(default: _T, *, later: bool = False) -> _T:
    """Return a field of an attack for which a larger value means more effort."""
    effort_field: Any = field(default=default, metadata={_EFFORT: True, _LATER: later})
    return effort_field  # type: ignore[no-any-return]


def is_effort(setting: "Field[Any]") -> bool:
    """Return whether a field was made by `effort`."""
    return bool(setting.metadata.get(_EFFORT))


def is_later(setting: "Field[Any]") -> bool:
    """Return whether a field was added after its attack was first recorded."""
    return bool(setting.metadata.get(_LATER))


def is_count(value: object) -> bool:
    """Return whether a value is a whole number of at least 1."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def is_number(value: object) -> bool:
    """Return whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def check_counts(least: int, **values: object) -> None:
    """Check that all values are whole numbers of at least `least`.

    Raises:
        ConfigError: A value is not a whole number, or is less than `least`.
    """
    for key, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ConfigError(f"{key} must be a whole number from {least}, got {value!r}")


def check_rho(rho: object) -> None:
    """Check that APGD's share of successful steps is in (0, 1).

    Raises:
        ConfigError: It is not.
    """
    if isinstance(rho, bool) or not isinstance(rho, int | float) or not 0 < rho < 1:
        raise ConfigError(f"rho must be in (0, 1), got {rho!r}")


def check_flags(**values: object) -> None:
    """Check that all values are booleans.

    Raises:
        ConfigError: A value is neither True nor False.
    """
    for key, value in values.items():
        if not isinstance(value, bool):
            raise ConfigError(f"{key} must be true or false, got {value!r}")
