"""Checks of hyper-parameters that a user sets, and the metadata of their fields."""

from dataclasses import Field, field
from typing import Any, Final, TypeVar

from dent.errors import ConfigError
from dent.support.checks import is_number

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


def check_rho(rho: float) -> None:
    """Check that APGD's share of successful steps is in (0, 1).

    Raises:
        ConfigError: It is not.
    """
    if not (is_number(rho) and 0 < rho < 1):
        raise ConfigError(f"rho must be in (0, 1), got {rho!r}")
