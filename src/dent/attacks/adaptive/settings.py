"""What the adaptive attacks ask of their hyper-parameters."""

from __future__ import annotations

from collections.abc import Sequence

from dent.attacks.losses import LOSSES, LossName, loss_named
from dent.errors import ConfigError


def check_rho(rho: object) -> None:
    """Check APGD's share of successful steps.

    Raises:
        ConfigError: It is not in (0, 1).
    """
    if isinstance(rho, bool) or not isinstance(rho, int | float) or not 0 < rho < 1:
        raise ConfigError(f"rho must be in (0, 1), got {rho!r}")


def check_flags(**values: object) -> None:
    """Check switches.

    Raises:
        ConfigError: One is neither True nor False.
    """
    for key, value in values.items():
        if not isinstance(value, bool):
            raise ConfigError(f"{key} must be true or false, got {value!r}")


def read_losses(losses: str | Sequence[str]) -> tuple[LossName, ...]:
    """Read losses by name, from a sequence or from a text such as `ce+margin`.

    Raises:
        ConfigError: One is none.
    """
    names = losses.split("+") if isinstance(losses, str) else losses
    for name in names:
        loss_named(name)
    return tuple(loss for name in names for loss in LOSSES if loss == name)
