"""The strongest images that an attack has found so far: per member, or per batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dent.attacks.base import Outcome
from dent.attacks.losses import margin
from dent.support.devices import widest
from dent.support.rows import per_sample

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dent.attacks.querier import Querier


class Best:
    """The best images of each member, or the best batch if only whole batches count.

    For a batch-independent defense, the best images of members from different queries can be
    combined. Otherwise the members of a batch were predicted together and stay together: the batch
    with the most wrong predictions is kept, and among equals the one with the higher mean loss. In
    addition, each member's strongest image is kept. Together these form one more batch to query.

    Attributes:
        images: (N, C, H, W), at first the natural images.
        wrong: (N,) in [0, 1], the share of queries in which the member was misclassified.
    """

    def __init__(self, target: Querier) -> None:
        self._target = target
        device = target.labels.device
        shape = target.labels.shape
        self._loss = torch.full(shape, -torch.inf, dtype=widest(device), device=device)
        self.images = target.natural.clone()
        self.wrong = torch.zeros_like(self._loss)
        self._strongest = self.images
        self._highest = self._loss

    @property
    def fooled(self) -> Tensor:
        """The members that were wrong in more than half of the queries, bool (N,)."""
        return self.wrong > 0.5

    @property
    def fallen(self) -> Tensor:
        """The members that were wrong in every query, bool (N,)."""
        return self.wrong == 1

    @property
    def strongest(self) -> Tensor:
        """Each member's image with the highest loss, from any batch, (N, C, H, W).

        For a batch-independent defense, the same as `images`.
        """
        return self._strongest if self._target.batch_dependent else self.images

    def complete(self) -> bool:
        """Return whether every member was wrong in every query of its best images."""
        return bool(self.fallen.all())

    def offer(
        self, images: Tensor, wrong: Tensor, loss: Tensor, members: Tensor | None = None
    ) -> None:
        """Keep a batch, or some of its members, if they are better than the best so far.

        Args:
            images: (N, C, H, W).
            wrong: bool (N,), or the share of wrong predictions in several queries, in [0, 1].
            loss: (N,), which breaks ties.
            members: The members of these rows, int64 (N,), for a batch-independent defense; all
                by default.
        """
        wrong, loss = wrong.to(self.wrong), loss.detach().to(self._loss)
        loss = loss.nan_to_num(nan=torch.inf)  # for an attack, no prediction is the best outcome
        if members is not None:
            images = self.images.index_copy(0, members, images.detach())
            wrong = self.wrong.index_copy(0, members, wrong)
            loss = self._loss.index_copy(0, members, loss)
        if self._target.batch_dependent:
            new_total, best_total = (float(share.sum()) for share in (wrong, self.wrong))
            tie = new_total == best_total and float(loss.mean()) > float(self._loss.mean())
            better = torch.full_like(self.fooled, new_total > best_total or tie)
            self._raise(images, loss)
        else:
            better = (wrong > self.wrong) | ((wrong == self.wrong) & (loss > self._loss))
        column = per_sample(better, images)
        self.images = torch.where(column, images.detach(), self.images)
        self.wrong = torch.where(better, wrong, self.wrong)
        self._loss = torch.where(better, loss, self._loss)

    def _raise(self, images: Tensor, loss: Tensor) -> None:
        higher = loss > self._highest
        column = per_sample(higher, images)
        self._strongest = torch.where(column, images.detach(), self._strongest)
        self._highest = torch.where(higher, loss, self._highest)

    def offer_served(self, images: Tensor, part: Querier | None = None) -> Tensor:
        """Query a batch, offer it, and return its logits (N, classes).

        Args:
            images: (N, C, H, W).
            part: The querier of the members of these rows, if they are not the whole batch.
        """
        target = part or self._target
        logits = target(images)
        wrong = logits.argmax(dim=1) != target.labels
        self.offer(images, wrong, margin(logits, target.labels), target.members)
        return logits

    def outcome(
        self, fooled_after: Mapping[str, Tensor] | None = None, notes: tuple[str, ...] = ()
    ) -> Outcome:
        """Query the best images again and return the outcome. Its claim is from that query.

        For a batch-dependent defense, offer the members' strongest images first, as one batch.
        """
        if self._target.batch_dependent:
            self.offer_served(self.strongest)
        logits = self._target(self.images)
        fooled = logits.argmax(dim=1) != self._target.labels
        return Outcome(self.images, fooled, dict(fooled_after or {}), notes)
