"""Measure a submission and the images in it, for the fields of a record."""

from collections.abc import Sequence
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor

from dent.attacks import Attack
from dent.evaluation.records.plan import Batch
from dent.evaluation.submission.submission import Submission
from dent.support.predictions import bounded, is_prediction
from dent.threat import ThreatModel

_ROUNDED: Final = 6
_FAR: Final = 1e12
"""Largest loss that is recorded, in nats: readers refuse larger ones."""


def mean_loss(answers: Sequence[Submission], batches: Sequence[Batch]) -> float | None:
    """Return the mean cross-entropy of the attacked members, in nats; None if none is finite."""
    rows: list[Tensor] = []
    for answer, batch in zip(answers, batches, strict=True):
        labels = torch.tensor(batch.labels[: batch.attacked])
        logits = answer.logits[: batch.attacked].cpu().double()
        if int(labels.max()) < logits.shape[1]:
            losses = F.cross_entropy(bounded(logits), labels, reduction="none")
            rows.append(losses[is_prediction(logits)])
    losses = torch.cat(rows) if rows else torch.empty(0)
    losses = losses[losses.isfinite()]
    return min(round(float(losses.mean()), _ROUNDED), _FAR) if len(losses) else None


def attack_measures(
    attack: Attack,
    threat: ThreatModel,
    adversarial: Tensor,
    natural: Tensor,
    num_classes: int,
) -> dict[str, Any]:
    """Return the record fields `planned` and `used`: how far an attack was to go, and went.

    Args:
        attack: The attack.
        threat: The threat model.
        adversarial: The adversarial images (N, C, H, W).
        natural: The natural images that it started from, of the same shape.
        num_classes: The number of classes.
    """
    planned: int | None = attack.passes(num_classes, threat.norm, len(natural)).forwards
    if attack.registered == "surrogates":  # its queries depend on the number of models
        planned = None
    return {"planned": planned, "used": share_of_eps(threat, adversarial, natural)}


def share_of_eps(
    threat: ThreatModel, adversarial: Tensor, natural: Tensor
) -> tuple[float, ...] | None:
    """Return the size of each image's perturbation as a share of eps; None if eps is 0."""
    if threat.eps == 0:
        return None
    share = threat.distance(adversarial.cpu(), natural.cpu()) / threat.eps
    return tuple(round(distance, 4) for distance in share.tolist())
