"""Projected gradient descent (Madry et al., ICLR 2018)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import torch
import torch.nn.functional as F
from torch import Tensor

from dent.attacks.base import Attack, Outcome
from dent.attacks.checks import effort
from dent.attacks.querier import Querier, Queries
from dent.attacks.steps import ascent, uniform_in_ball
from dent.errors import ConfigError
from dent.support.checks import check_counts, check_flags, is_number

if TYPE_CHECKING:
    from dent.threat import Norm, ThreatModel


@final
@dataclass(frozen=True)
class PGD(Attack):
    """Projected ascent of the cross-entropy in steps of fixed length.

    Steps follow the steepest ascent in the norm: the sign of the gradient (linf), its direction
    (l2), or the signs of its `share` of largest coordinates (l1: Tramer & Boneh, 2019). A
    projection follows each step. It is exact for ball and bounds together. The natural images are
    the first candidate, so a member that is misclassified without an attack always counts as
    fooled.

    For a batch-independent defense, the best image of each member over all iterations and restarts
    is kept: one with a wrong prediction before one with a correct prediction, then the one with
    the higher loss. For a batch-dependent defense, the best whole batch is kept, by the number of
    wrong predictions and then by the mean loss, because members of different iterations were never
    predicted together. The defaults are those of Madry et al. for CIFAR-10: 20 steps of 2/255 at
    8/255.
    """

    iterations: int = effort(20)
    """Steps from each start; at least 1."""
    step: float = 0.25
    """Length of a step as a share of eps; above 0."""
    restarts: int = effort(1)
    """Number of starts; at least 1. More than one needs `random_start`."""
    random_start: bool = True
    """Whether to start uniformly in the ball, instead of at the natural image."""
    share: float = 0.05
    """Share of an image's values that one step changes in l1, in (0, 1]."""

    def __post_init__(self) -> None:
        """Check every field."""
        super().__post_init__()
        check_counts(1, iterations=self.iterations, restarts=self.restarts)
        if not (is_number(self.step) and self.step > 0):
            raise ConfigError(f"step must be a number above 0, relative to eps, got {self.step!r}")
        if self.restarts > 1 and not self.random_start:
            raise ConfigError(
                f"{self.restarts} restarts from one start are equal: use random_start"
            )
        if not (is_number(self.share) and 0 < self.share <= 1):
            raise ConfigError(f"share must be in (0, 1], got {self.share!r}")
        check_flags(random_start=self.random_start)

    @property
    def registered(self) -> str:
        """`pgd`."""
        return "pgd"

    def queries(self, num_classes: int, norm: Norm = "linf") -> Queries:
        """Return one forward for the natural images and the passes of every restart.

        A restart has one forward more than backwards.
        """
        del num_classes, norm
        per_restart = Queries(self.iterations + 1, self.iterations)
        return Queries(1, 0) + per_restart.times(self.restarts)

    def run(self, target: Querier, threat: ThreatModel, seed: int) -> Outcome:
        """Run all restarts, but stop once every member is fooled."""
        draws = torch.Generator().manual_seed(seed)
        best = _BestImages(target)
        best.offer(target.natural, target(target.natural))
        for _ in range(self.restarts):
            if best.complete():
                break
            x = target.natural
            if self.random_start:
                x = threat.project(x + uniform_in_ball(x, threat, draws), x)
            for _ in range(self.iterations):
                logits, gradient = _loss_gradient(target, x)
                best.offer(x, logits)
                moved = x + self.step * threat.eps * ascent(gradient, threat.norm, self.share)
                x = threat.project(moved, target.natural)
            best.offer(x, target(x))
        return best.outcome()


class _BestImages:
    """The best image of each member so far, or the best batch if only whole batches count."""

    def __init__(self, target: Querier) -> None:
        self._target = target
        self._images = target.natural.clone()
        self._fooled = torch.zeros_like(target.labels, dtype=torch.bool)
        self._loss = torch.full(target.labels.shape, -math.inf, device=target.labels.device)

    def offer(self, images: Tensor, logits: Tensor) -> None:
        fooled = logits.argmax(dim=1) != self._target.labels
        loss = F.cross_entropy(logits, self._target.labels, reduction="none")
        better = (fooled & ~self._fooled) | ((fooled == self._fooled) & (loss > self._loss))
        self._images[better] = images[better]
        self._fooled[better] = fooled[better]
        self._loss[better] = loss[better]

    def complete(self) -> bool:
        worst = self._target.worst
        fooled = self._fooled if worst is None else worst.fooled
        return bool(fooled.all())

    def outcome(self) -> Outcome:
        worst = self._target.worst
        if worst is None:
            return Outcome(self._images, self._fooled)
        return Outcome(worst.images, worst.fooled)


def _loss_gradient(target: Querier, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits (N, classes) at `x`, and the gradient of the summed cross-entropy."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        logits = target(leaf)
        loss = F.cross_entropy(logits, target.labels, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, leaf)
    return logits.detach(), gradient
