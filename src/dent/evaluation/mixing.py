"""A batch of which only some members are the attacker's."""

from typing import Any

import torch
from torch import Tensor, nn

from dent.attacks import Defense, DynamicDefense, answer
from dent.errors import InputError


class AmongOthers(nn.Module):
    """A defense as those members see it that stand in one batch with fixed others.

    What is asked about the members is asked of the whole batch, and what is answered about the
    others is kept from them. An attack on this attacks the members through the very batch that is
    served, and cannot touch the others.

    Args:
        defense: The dynamic defense of the whole batch.
        others: Images (M, C, H, W) that stand after the members.
        members: How many rows a question has.
    """

    def __init__(self, defense: DynamicDefense, others: Tensor, members: int) -> None:
        super().__init__()
        # In a list: the defense is only asked, and must not become a part of this module.
        self._defense = [defense]
        self._others = others
        self._members = members
        self.eval()

    @property
    def batch_dependent(self) -> bool:
        """As the defense declares."""
        return self._defense[0].batch_dependent

    def adapt(self, x: Tensor, **how: Any) -> Any:
        """Adapt the defense to the whole batch."""
        return self._defense[0].adapt(self._whole(x), **how)

    def predict(self, x: Tensor, adaptation: Any) -> Tensor:
        """Logits (N, classes) of the members alone."""
        return self._defense[0].predict(self._whole(x), adaptation)[: len(x)]

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, classes) of the members, the whole batch adapted afresh."""
        return answer(self._defense[0], self._whole(x))[: len(x)]

    def _whole(self, x: Tensor) -> Tensor:
        if len(x) != self._members:
            raise InputError(
                f"{self._members} members stand in a batch with {len(self._others)} others, but "
                f"the attack asks about {len(x)}: it must keep its batch together"
            )
        return torch.cat([x, self._others])


def among(defense: Defense, batch: Tensor, attacked: int) -> Defense:
    """Return what an attack on the first `attacked` members of a batch is to attack."""
    if attacked == len(batch) or not isinstance(defense, DynamicDefense):
        return defense
    return AmongOthers(defense, batch[attacked:], attacked)
