"""A batch with some attacked members, as the attacker sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor

from dent.attacks.adaptive.capabilities import adapt_accepts
from dent.attacks.protocol import (
    DynamicDefense,
    adapted,
    answer,
    as_queried,
    is_batch_dependent,
    predicted,
)
from dent.errors import InputError
from dent.support.plural import agreeing, counted

if TYPE_CHECKING:
    from dent.attacks.protocol import Defense


@final
class Among:
    """A defense for an attack on some members of a batch. The clean members stay fixed.

    The attack only sees the attacked members. Each query adds the clean members, with every member
    in its place, and hides their logits. So any attack on this defense queries the same batches
    that are later submitted, and cannot change the clean members. An attack on the clean members
    uses `answer_others`.

    Attributes:
        inner: The defense of the whole batch.
        labels: Labels of the clean members, int64 (M,).
    """

    def __init__(self, defense: Defense, batch: Tensor, labels: Tensor, controlled: Tensor) -> None:
        """Divide a batch into attacked and clean members.

        Args:
            defense: The defense of the whole batch, or a plain module in eval mode.
            batch: Natural images (N, C, H, W).
            labels: int64 (N,).
            controlled: bool (N,), True for the attacked members, at least one.

        Raises:
            InputError: `controlled` is not bool (N,), or selects no member; or `defense` is neither
                a defense nor a module, or is in training mode.
        """
        is_batch_dependent(defense)
        given: object = controlled
        if not isinstance(given, Tensor):
            raise InputError(
                f"controlled must be a tensor, bool ({len(batch)},), got {type(given).__name__}: "
                "torch.tensor(...) makes one"
            )
        if controlled.dtype != torch.bool or controlled.shape != batch.shape[:1]:
            raise InputError(
                f"controlled must be bool ({len(batch)},), got {controlled.dtype} "
                f"{tuple(controlled.shape)}"
            )
        if not bool(controlled.any()):
            raise InputError("the attacker must control at least one member of the batch")
        self.inner = defense
        self.labels = labels[~controlled]
        self._batch = batch.detach().clone()
        self._controlled = controlled.clone()
        self._members = controlled.nonzero().flatten()

    @property
    def batch_dependent(self) -> bool:
        """Whether the defense declares that it depends on the batch."""
        return is_batch_dependent(self.inner)

    def over(self, defense: Defense) -> Among:
        """Return the same division of the batch for another defense."""
        copied = object.__new__(Among)
        copied.__dict__ = {**self.__dict__, "inner": defense}
        return copied

    def whole(self, x: Tensor) -> Tensor:
        """Return the whole batch (N, C, H, W) with `x` as the attacked members.

        Raises:
            InputError: There are not as many rows as members.
        """
        if len(x) != len(self._members):
            raise InputError(
                f"{counted(len(self._members), 'member')} "
                f"{agreeing(len(self._members), 'stand')} in a batch of {len(self._batch)}, "
                "but the "
                f"attack asks about {len(x)}: it must keep its batch together"
            )
        batch = self._batch.to(x).index_copy(0, self._members, x)
        return as_queried(batch) if batch.requires_grad else batch

    def adapt(self, x: Tensor, **how: Any) -> Any:
        """Adapt to the whole batch. `on_step` gets the logits of the attacked members only."""
        on_step = how.get("on_step")
        if on_step is not None:
            how = how | {"on_step": lambda logits: on_step(logits[self._controlled])}
        return adapted(self.inner, self.whole(x), **how)

    def predict(self, x: Tensor, adaptation: Any) -> Tensor:
        """Return logits (len(x), classes) of the attacked members."""
        return predicted(self.inner, self.whole(x), adaptation)[self._controlled]

    def __call__(self, x: Tensor) -> Tensor:
        """Return logits (len(x), classes) of the attacked members, after a fresh adaptation."""
        return answer(self.inner, self.whole(x))[self._controlled]

    def answer_others(self, x: Tensor, *, exact: bool = False) -> Tensor:
        """Return logits (M, classes) of the clean members in the batch with `x`.

        Args:
            x: The images of the attacked members.
            exact: Whether the gradient to `x` goes through all steps, which the defense must offer.
                Otherwise it goes through the final forward only.
        """
        batch = self.whole(x)
        if exact:
            options: dict[str, Any] = {"differentiable": True}
            if adapt_accepts(self.inner, "checkpointed"):
                options["checkpointed"] = True
            adaptation = self.adapt(x, **options)
        else:
            adaptation = adapted(self.inner, batch.detach())
        return predicted(self.inner, batch, adaptation)[~self._controlled]


def among(defense: Defense, batch: Tensor, labels: Tensor, attacked: int) -> Defense:
    """Return the defense for an attack on the first members of a batch.

    Args:
        defense: The defense of whole batches.
        batch: Natural images, (N, C, H, W). Those of the other members are submitted as they are.
        labels: int64 (N,).
        attacked: Number of attacked members.

    Returns:
        A defense that takes these members alone; `defense` itself if it answers members alone, or
        if all are attacked.
    """
    if attacked == len(batch) or not isinstance(defense, DynamicDefense):
        return defense
    controlled = torch.arange(len(batch), device=batch.device) < attacked
    return Among(defense, batch, labels, controlled)
