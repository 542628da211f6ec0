"""Parsing of the losses of adaptive attacks."""

from __future__ import annotations

from collections.abc import Sequence

from dent.attacks.losses import LOSSES, LossName, loss_named


def read_losses(losses: str | Sequence[str]) -> tuple[LossName, ...]:
    """Read the names of losses from a sequence, or from a text such as `ce+margin`.

    Raises:
        ConfigError: There is no loss of one of these names.
    """
    names = losses.split("+") if isinstance(losses, str) else losses
    for name in names:
        loss_named(name)
    return tuple(loss for name in names for loss in LOSSES if loss == name)
