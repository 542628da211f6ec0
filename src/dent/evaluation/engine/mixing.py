"""A batch of which only some members are the attacker's."""

import torch
from torch import Tensor

from dent.attacks import Defense, DynamicDefense
from dent.attacks.adaptive import Among


def among(defense: Defense, batch: Tensor, labels: Tensor, attacked: int) -> Defense:
    """Return what an attack on the first `attacked` members of a batch is to attack."""
    if attacked == len(batch) or not isinstance(defense, DynamicDefense):
        return defense
    controlled = torch.arange(len(batch), device=batch.device) < attacked
    return Among(defense, batch, labels, controlled)
