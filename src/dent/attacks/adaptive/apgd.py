"""APGD (Croce & Hein, ICML 2020; in l1 their ICML 2021) on a whole batch, for any gradient.

pyautoattack's APGD takes a model and the name of one of five losses. Here a function gives the loss
and its gradient, so they can be a mean over models, or depend on the predictions of other members.
The schedule is the published one. On a static model, both take the same steps in l-inf, and in l2
away from the bounds. In l1 and at the bounds in l2, the projections differ.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor

from dent.attacks.steps import enlarged
from dent.support.rows import per_sample

if TYPE_CHECKING:
    from dent.threat import Norm, ThreatModel

_L1_SHRINK = 1.5
_L1_SMALLEST = 10.0
_L1_SPARSER = 0.95


class Evaluation(NamedTuple):
    """The value of the objective for a batch.

    Attributes:
        loss: (N,), to maximize.
        gradient: (N, ...), the gradient of its sum.
    """

    loss: Tensor
    gradient: Tensor


Objective = Callable[[Tensor], Evaluation]
"""A function from a batch (N, ...), detached, to its loss and gradient."""


class Ascent(NamedTuple):
    """The result of an ascent: each member's image with the highest loss.

    Attributes:
        images: (N, ...). With a joint schedule, all are from one iteration.
        loss: (N,).
    """

    images: Tensor
    loss: Tensor


@dataclass
class _BestPoints:
    """Each member's image with the highest loss so far, with its loss and gradient."""

    images: Tensor
    loss: Tensor
    gradient: Tensor

    def offer(self, images: Tensor, evaluation: Evaluation) -> None:
        better = evaluation.loss > self.loss
        column = per_sample(better, images)
        self.images = torch.where(column, images, self.images)
        self.gradient = torch.where(column, evaluation.gradient, self.gradient)
        self.loss = torch.where(better, evaluation.loss, self.loss)


def apgd(
    objective: Objective,
    natural: Tensor,
    start: Tensor,
    threat: ThreatModel,
    *,
    iterations: int,
    rho: float = 0.75,
    joint: bool = False,
    stride: float = 2.0,
    warm: bool = False,
    stop: Callable[[], bool] | None = None,
) -> Ascent:
    """Maximize an objective from `start`, inside the threat model around `natural`.

    In l-inf and l2, steps follow the gradient with momentum. At checkpoints, a member halves its
    step and returns to its best image if its loss rose in at most a share `rho` of the steps, or if
    it found no better image. In l1, a step moves the coordinates with the largest gradients: at
    first a fifth of all, then two thirds as many as the best image moved so far. After a warm
    start, the latter holds from the first step on. A batch of one image works, too. The published
    three radii are left out.

    Args:
        objective: Called with the whole batch, with members in their places, at most
            `iterations` + 1 times.
        natural: Images (N, ...), inside the bounds.
        start: Images (N, ...), inside the threat model.
        threat: The threat model. Every batch given to the objective is inside.
        iterations: At least 1.
        rho: In (0, 1). Not used in l1.
        joint: Whether the mean loss of the batch decides for all members at once. Otherwise each
            member's own loss decides. The members' best images then come from different batches,
            which a batch-dependent defense never predicted together.
        stride: The first step, in units of eps (in l1, of eps / 2). A good start needs a shorter
            step than the published 2.
        warm: Whether `start` is the result of an attack. It changes the schedule in l1.
        stop: Called before every step. The ascent ends if it returns True.
    """

    def ask(images: Tensor) -> Evaluation:
        loss, gradient = objective(images)
        return Evaluation(loss.mean().expand_as(loss) if joint else loss, gradient)

    x = previous = start
    evaluation = ask(x)
    best = _BestPoints(x, evaluation.loss, evaluation.gradient)
    schedule: _Schedule
    if threat.norm == "l1":
        found = start if warm else None
        schedule = _Sparse(threat, natural, int(0.04 * iterations), stride, found)
    else:
        schedule = _Halving(threat, natural, iterations, rho, stride)
    gradient = evaluation.gradient
    for iteration in range(iterations):
        if stop is not None and stop():
            break
        step = schedule.move(x, gradient, natural) - x
        share = 0.75 if iteration else 1.0
        moved = x + step
        if threat.norm != "l1":  # the published l1 variant has no momentum
            moved = x + share * step + (1 - share) * (x - previous)
        previous, x = x, threat.project(moved, natural)
        evaluation = ask(x)
        gradient = evaluation.gradient
        best.offer(x, evaluation)
        returning = schedule.check(evaluation.loss, best)
        if returning is not None:
            column = per_sample(returning, x)
            x = torch.where(column, best.images, x)
            gradient = torch.where(column, best.gradient, gradient)
    return Ascent(best.images, best.loss)


class _Schedule(Protocol):
    """How far each member moves in a step, and when it returns to its best image."""

    def move(self, x: Tensor, gradient: Tensor, natural: Tensor) -> Tensor:
        """Return the images after a step along the gradient, inside the threat model.

        Args:
            x: Images (N, ...).
            gradient: (N, ...), of the objective at `x`.
            natural: Images (N, ...).
        """
        ...

    def check(self, loss: Tensor, best: _BestPoints) -> Tensor | None:
        """Take the losses after a step; at a checkpoint, adjust the steps.

        Args:
            loss: (N,).
            best: The best images so far.

        Returns:
            The members that return to their best image, bool (N,); None between checkpoints.
        """
        ...


class _Halving:
    """The schedule for l-inf and l2: halve a member's step if its loss stopped rising."""

    def __init__(
        self, threat: ThreatModel, natural: Tensor, iterations: int, rho: float, stride: float
    ) -> None:
        self._threat = threat
        self._rho = rho
        self._step = natural.new_full((len(natural),), stride * threat.eps)
        self._period = max(int(0.22 * iterations), 1)
        self._shortest = max(int(0.06 * iterations), 1)
        self._shorter = max(int(0.03 * iterations), 1)
        self._losses: list[Tensor] = []
        self._since = 0
        self._best_before = torch.zeros_like(self._step)
        self._halved = torch.ones(len(natural), dtype=torch.bool, device=natural.device)

    def move(self, x: Tensor, gradient: Tensor, natural: Tensor) -> Tensor:
        step = per_sample(self._step, x) * steepest(gradient, self._threat.norm)
        return self._threat.project(x + step, natural)

    def check(self, loss: Tensor, best: _BestPoints) -> Tensor | None:
        self._losses.append(loss)
        self._since += 1
        if self._since < self._period:
            return None
        # The published code compares the first loss with the first row of its table, zeros.
        history = [loss.new_zeros(loss.shape), *self._losses]
        recent = range(len(self._losses) - self._period, len(self._losses))
        rose = sum((self._losses[i] > history[i]).float() for i in recent)
        tired = rose <= self._period * self._rho
        stuck = ~self._halved & (self._best_before >= best.loss)
        self._halved = tired | stuck
        self._best_before = best.loss
        self._step = torch.where(self._halved, self._step / 2, self._step)
        self._since = 0
        self._period = max(self._period - self._shorter, self._shortest)
        return self._halved


class _Sparse:
    """The schedule for l1: sparser steps if the best images get sparser, else shorter steps."""

    def __init__(
        self,
        threat: ThreatModel,
        natural: Tensor,
        period: int,
        stride: float,
        found: Tensor | None,
    ) -> None:
        """Start with the first step.

        Args:
            threat: The threat model.
            natural: Images (N, ...).
            period: Number of steps between checks.
            stride: The first step, in units of eps / 2.
            found: The result of an attack to start from, (N, ...). Its moved coordinates decide how
                many the first steps move, except for images that it did not move.
        """
        self._threat = threat
        self._natural = natural
        self._period = max(period, 1)
        self._since = 0
        self._step = natural.new_full((len(natural),), stride / 2 * threat.eps)
        self._share = natural.new_full((len(natural),), 0.2)
        self._moved = natural.new_full((len(natural),), float(natural[0].numel()))
        if found is not None:
            moved = self._count_moved(found)
            share = moved / natural[0].numel() / _L1_SHRINK
            self._share = torch.where(moved > 0, share, self._share)
            self._moved = torch.where(moved > 0, moved, self._moved)

    def move(self, x: Tensor, gradient: Tensor, natural: Tensor) -> Tensor:
        rows = gradient.flatten(1)
        size = rows.abs()
        order = size.sort(dim=1).values
        rank = ((1 - self._share) * rows.shape[1]).long().clamp(0, rows.shape[1] - 1)
        selected = size >= order.gather(1, rank.unsqueeze(1))
        signs = torch.where(selected, rows.sign(), 0.0)
        length = signs.abs().sum(dim=1, keepdim=True)
        step = self._step.unsqueeze(1) * signs / (length + 1e-10)
        return self._threat.project(x + step.reshape(x.shape), natural)

    def check(self, loss: Tensor, best: _BestPoints) -> Tensor | None:
        del loss
        self._since += 1
        if self._since < self._period:
            return None
        moved = self._count_moved(best.images)
        sparser = moved / self._moved.clamp(min=1) < _L1_SPARSER
        eps = self._threat.eps
        shorter = (self._step / _L1_SHRINK).clamp(eps / _L1_SMALLEST, eps)
        self._step = torch.where(sparser, torch.full_like(self._step, eps), shorter)
        self._share = moved / self._natural[0].numel() / _L1_SHRINK
        self._moved = moved
        self._since = 0
        return sparser

    def _count_moved(self, images: Tensor) -> Tensor:
        return (images != self._natural).flatten(1).sum(dim=1).to(self._moved)


def steepest(gradient: Tensor, norm: Norm) -> Tensor:
    """Return the direction of steepest ascent, (N, ...), with length one in l-inf or l2.

    Args:
        gradient: (N, ...).
        norm: `linf` or `l2`.
    """
    if norm == "linf":
        return gradient.sign()
    rows = enlarged(gradient).flatten(1)
    length: Tensor = rows.norm(dim=1, keepdim=True) + 1e-12
    return (rows / length).reshape(gradient.shape)


def random_start(natural: Tensor, threat: ThreatModel, draws: torch.Generator) -> Tensor:
    """Return a random start far out in the ball, (N, ...), as in APGD.

    It is drawn on the CPU, so that all devices get the same. In l-inf, uniform draws are scaled to
    the surface. Normal draws are scaled to it in l2, and projected in l1.
    """
    shape = natural.flatten(1).shape
    if threat.norm == "linf":
        delta = 2 * torch.rand(shape, generator=draws) - 1
        delta = threat.eps * delta / delta.abs().amax(dim=1, keepdim=True).clamp(min=1e-12)
    else:
        delta = torch.randn(shape, generator=draws)
        if threat.norm == "l2":
            delta = threat.eps * delta / delta.norm(dim=1, keepdim=True).clamp(min=1e-12)
    return threat.project(natural + delta.reshape(natural.shape).to(natural), natural)
