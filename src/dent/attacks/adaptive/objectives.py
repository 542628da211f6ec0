"""Objectives for APGD: losses of predictions, with their gradients to the batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from dent.attacks.adaptive.apgd import Evaluation, Objective
from dent.attacks.adaptive.unmasked import Unmasked
from dent.attacks.losses import Loss, margin
from dent.attacks.protocol import name_of
from dent.attacks.querier import NoGradientError, derivatives_of, finite_logits
from dent.support.devices import widest
from dent.support.predictions import bounded, is_prediction

if TYPE_CHECKING:
    from dent.attacks.best import Best
    from dent.attacks.querier import Querier, View


class Aim(NamedTuple):
    """The loss to maximize.

    Attributes:
        loss: Loss of each prediction.
        targets: Each member's target, for a targeted loss, int64 (N,).
        on_the_way: Logits before every adaptation step of the last query, if the mean loss over
            all predictions is maximized. It is emptied before every query.
    """

    loss: Loss
    targets: Tensor | None = None
    on_the_way: list[Tensor] | None = None

    def of(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of a query, (N,).

        Args:
            logits: (N, classes), of the final prediction.
            labels: int64 (N,).
        """
        losses = [self.loss(logits, labels, self.targets)]
        for before in self.on_the_way or ():
            predicted, there = is_prediction(before), bounded(before.to(logits))
            there = torch.where(predicted.unsqueeze(1), there, logits.detach())
            losses.append(self.loss(there, labels, self.targets))
        return _mean(losses)


def ask(
    target: Querier, view: View | None, images: Tensor, aim: Aim, weights: Tensor | None = None
) -> tuple[Tensor, Evaluation]:
    """Query once: return detached logits (N, classes), and the loss with its gradient.

    Args:
        target: The querier, which counts the pass.
        view: The view to query; None for the defense itself.
        images: (N, C, H, W).
        aim: The loss to maximize.
        weights: (N,), weights of the members' losses in the gradient; all 1 by default.

    Raises:
        NoGradientError: The logits do not depend differentiably on the batch.
    """
    with torch.enable_grad():
        leaf = images.detach().requires_grad_()
        members = None if weights is None else weights.nonzero().flatten()
        if aim.on_the_way is not None:
            aim.on_the_way.clear()
        logits = target(leaf, asked=members, view=view)
        loss = aim.of(logits, target.labels)
        total = (loss if weights is None else loss * weights).sum()
    with derivatives_of(target.defense):
        (gradient,) = torch.autograd.grad(total, leaf, allow_unused=True)
    if gradient is None:
        name = name_of(target.defense)
        raise NoGradientError(f"{name} returned logits that do not depend on its input")
    if aim.on_the_way is not None:
        aim.on_the_way.clear()  # to free the graph, too
    return logits.detach(), Evaluation(loss.detach(), gradient)


def through(
    target: Querier, view: View | None, aim: Aim, best: Best | None, submissions: int = 1
) -> Objective:
    """Return an objective: the mean loss over several queries (EOT: Athalye et al., ICML 2018).

    Args:
        target: The querier.
        view: The view to query; None for the defense itself.
        aim: The loss to maximize.
        best: Receives every batch. None if the view is a stand-in for the defense.
        submissions: Number of queries per batch; more than 1 for a randomized defense.
    """

    def objective(images: Tensor) -> Evaluation:
        losses, gradients, wrong, margins = [], [], [], []
        for _ in range(submissions):
            logits, evaluation = ask(target, view, images, aim)
            losses.append(evaluation.loss)
            gradients.append(evaluation.gradient)
            predicted = _predicted(view, logits, target.labels)
            wrong.append((predicted.argmax(dim=1) != target.labels).to(widest(logits.device)))
            margins.append(margin(predicted, target.labels))
        if best is not None:
            share = _mean(wrong)
            best.offer(images, share, _mean(margins), target.members)
            target.recorder.broke(share > 0.5, target.members, along=True)
        return Evaluation(_mean(losses), _mean(gradients))

    return objective


def _predicted(view: View | None, logits: Tensor, labels: Tensor) -> Tensor:
    """Return the logits of the defense itself, where the view returned other scores."""
    if isinstance(view, Unmasked) and view.replaced is not None:
        return finite_logits(view.replaced, labels)
    return logits


def mean_of(target: Querier, views: Sequence[View], aim: Aim) -> Objective:
    """Return an objective: the mean loss over several models, with one in memory at a time."""

    def objective(images: Tensor) -> Evaluation:
        evaluations = [ask(target, view, images, aim)[1] for view in views]
        return Evaluation(
            _mean([evaluation.loss for evaluation in evaluations]),
            _mean([evaluation.gradient for evaluation in evaluations]),
        )

    return objective


def least_of(target: Querier, views: Sequence[View], aim: Aim) -> Objective:
    """Return an objective: each member's smallest loss over several models.

    It queries all models for their loss. Then it takes the gradient only of models that have the
    smallest loss for some member.
    """

    def objective(images: Tensor) -> Evaluation:
        if len(views) == 1:
            return ask(target, views[0], images, aim)[1]
        losses = torch.stack(
            [aim.loss(target(images, view=view), target.labels, aim.targets) for view in views]
        )
        least = losses.argmin(dim=0)
        gradient = torch.zeros_like(images)
        for index, view in enumerate(views):
            selected = least == index
            if bool(selected.any()):
                gradient += ask(target, view, images, aim, selected.to(images.dtype))[1].gradient
        return Evaluation(losses.amin(dim=0), gradient)

    return objective


def _mean(values: list[Tensor]) -> Tensor:
    return values[0] if len(values) == 1 else torch.stack(values).mean(dim=0)
