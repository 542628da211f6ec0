"""How the adaptive attacks read their losses."""

from __future__ import annotations

from collections.abc import Sequence

from dent.attacks.losses import LOSSES, LossName, loss_named


def read_losses(losses: str | Sequence[str]) -> tuple[LossName, ...]:
    """Read losses by name, from a sequence or from a text such as `ce+margin`.

    Raises:
        ConfigError: One is none.
    """
    names = losses.split("+") if isinstance(losses, str) else losses
    for name in names:
        loss_named(name)
    return tuple(loss for name in names for loss in LOSSES if loss == name)
