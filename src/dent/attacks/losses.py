"""Losses of attacks: one number per sample, which grows as the prediction gets more wrong.

With z the logits, y the label, t a target, and z₁ ≥ z₂ ≥ ... in order:

    ce          −log softmax(z)_y
    dlr         −(z_y − max_{k≠y} z_k) / (z₁ − z₃)                    Croce & Hein, ICML 2020
    margin      max_{k≠y} z_k − z_y                                   Carlini & Wagner, S&P 2017
    hinge       min(margin, ½)
    confident   max_{k≠y} log softmax(z)_k − entropy(softmax(z))

    ce, targeted        log softmax(z)_t
    dlr, targeted       −(z_y − z_t) / (z₁ − (z₃ + z₄)/2)
    margin, targeted    z_t − z_y
    hinge, targeted     min(z_t − z_y, ½)
    confident, targeted log softmax(z)_t − entropy(softmax(z))

`margin` is not normalized and keeps growing after success. Entropy minimization amplifies the
winning class, so an attack on it gains from a wide margin. DLR does not, because it is invariant
to scale. For the same reason, `margin` is the loss for attacks on a stand-in, whose images are then
submitted to the defense. `hinge` has no slope for fooled members, so in a joint loss of a batch,
the members that are still correct decide. `confident` is highest for a wrong and confident
prediction. There the entropy and its gradient vanish, so a defense that follows them does not
change.
"""

from __future__ import annotations

from typing import Literal, Protocol, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from dent.adaptation.objectives import entropy
from dent.errors import ConfigError
from dent.support.plural import counted

LossName = Literal["ce", "dlr", "margin", "hinge", "confident"]
LOSSES: tuple[LossName, ...] = get_args(LossName)

_TINY = 1e-12  # as in pyautoattack
_FALLEN = 0.5
"""Margin in logits above which `hinge` has no slope."""


class Loss(Protocol):
    """A loss per sample."""

    def __call__(self, logits: Tensor, labels: Tensor, targets: Tensor | None = None) -> Tensor:
        """Return the loss to maximize, (N,), of logits (N, classes), labels and targets (N,)."""
        ...


def loss_named(name: str) -> Loss:
    """Return a loss by its name.

    Raises:
        ConfigError: There is no loss of this name.
    """
    losses: dict[str, Loss] = {
        "ce": cross_entropy,
        "dlr": dlr,
        "margin": margin,
        "hinge": hinge,
        "confident": confident,
    }
    given: object = name
    if not isinstance(given, str) or given not in losses:
        raise ConfigError(f"loss must be one of {', '.join(LOSSES)}, got {name!r}")
    return losses[name]


def cross_entropy(logits: Tensor, labels: Tensor, targets: Tensor | None = None) -> Tensor:
    """Return the cross-entropy of the label, or the negative one of the target if given, (N,).

    In nats.
    """
    if targets is None:
        return F.cross_entropy(logits, labels, reduction="none")
    return -F.cross_entropy(logits, targets, reduction="none")


def margin(logits: Tensor, labels: Tensor, targets: Tensor | None = None) -> Tensor:
    """Return the largest other logit, or the target's if given, minus the label's, (N,)."""
    label_logit = _at(logits, labels)
    return (
        largest_other(logits, labels) if targets is None else _at(logits, targets)
    ) - label_logit


def hinge(logits: Tensor, labels: Tensor, targets: Tensor | None = None) -> Tensor:
    """Return the margin, (N,), capped at half a logit. Above that there is no slope."""
    return margin(logits, labels, targets).clamp(max=_FALLEN)


def dlr(logits: Tensor, labels: Tensor, targets: Tensor | None = None) -> Tensor:
    """Return the margin over a difference of the sample's logits, (N,), which removes the scale.

    With three classes, the targeted denominator is z₁ − z₃, too. With two classes, the loss is the
    margin itself, because a margin divided by itself has no gradient.
    """
    classes = logits.shape[1]
    if classes < 3:
        return margin(logits, labels, targets)
    ordered = logits.sort(dim=1, descending=True).values
    scale = ordered[:, 0] - ordered[:, 2]
    if targets is not None and classes > 3:
        scale = ordered[:, 0] - (ordered[:, 2] + ordered[:, 3]) / 2
    # The constant would distort the ratios of tiny logits. Nearly equal ones need it to avoid NaN.
    tiny = (scale > 1e-30) & (scale < 1e-10)
    return margin(logits, labels, targets) / torch.where(tiny, scale, scale + _TINY)


def confident(logits: Tensor, labels: Tensor, targets: Tensor | None = None) -> Tensor:
    """Return the log-probability of the likeliest wrong class or target, minus the entropy, (N,).

    Both in nats.
    """
    shares = logits.log_softmax(dim=1)
    wrong = largest_other(shares, labels) if targets is None else _at(shares, targets)
    return wrong - entropy(logits)


def largest_other(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the largest logit of any class except the label's, (N,)."""
    return logits.scatter(1, labels.unsqueeze(1), -torch.inf).amax(dim=1)


def runner_up(logits: Tensor, labels: Tensor, rank: int) -> Tensor:
    """Return the `rank`-th most likely wrong class of each sample, int64 (N,). Ranks start at 1.

    Raises:
        ConfigError: There is no wrong class of this rank.
    """
    if not 1 <= rank < logits.shape[1]:
        raise ConfigError(
            f"there is no wrong class of rank {rank} among {counted(logits.shape[1], 'class')}"
        )
    other_logits = logits.scatter(1, labels.unsqueeze(1), -torch.inf)
    return other_logits.argsort(dim=1, descending=True)[:, rank - 1]


def _at(values: Tensor, classes: Tensor) -> Tensor:
    return values.gather(1, classes.unsqueeze(1)).squeeze(1)
