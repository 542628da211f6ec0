"""One more attack on the first batch: toward every class, with all members in every query.

Attacks of a run stop early, aim at few classes and leave out members that are broken already. A
defense may rely on each of these:

    a shield    One wrong class comes close, but never wins, and hides the slopes of the others.
    sizes       In batches with fewer members, it predicts with another net.

So a claim of a gain needs that this attack breaks hardly more than the whole run did. Its images
are also where long attacks end, and the gradient is checked there as well.
"""

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from dent.attacks import Queries
from dent.attacks.adaptive.apgd import Evaluation, apgd, random_start
from dent.attacks.losses import runner_up
from dent.support.rows import per_sample
from dent.threat import ThreatModel

CLASSES: Final = 9
"""Largest number of wrong classes to aim at: the likeliest ones on the natural images."""
ITERATIONS: Final = 20

PASSES: Final = Queries(1 + CLASSES * (ITERATIONS + 2), CLASSES * (ITERATIONS + 1))
"""Maximum number of passes of a batch in `attack_every_class`."""


def attack_every_class(
    served: Callable[[Tensor], Tensor],
    ascent: Callable[[Tensor, Tensor], Evaluation],
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    draws: torch.Generator,
    *,
    dependent: bool,
) -> Tensor:
    """Attack a whole batch toward each wrong class in turn.

    Args:
        served: The served logits (N, classes) of a batch (N, C, H, W).
        ascent: The margin of target classes (N,) at a batch, and its gradient.
        x: Natural images (N, C, H, W).
        y: Labels (N,).
        threat: The threat model.
        draws: A CPU generator, for random starts.
        dependent: Whether predictions depend on the batch.

    Returns:
        The images, (N, C, H, W). If the defense is batch-dependent, they are those of the class
        that left the fewest members correct. If not, members keep the image that broke them.
    """
    logits = served(x).nan_to_num()
    images, standing = x, torch.ones_like(y, dtype=torch.bool)
    for targets in every_target(logits, y):
        found = apgd(
            lambda images, targets=targets: ascent(images, targets),  # type: ignore[misc]
            x,
            random_start(x, threat, draws),
            threat,
            iterations=ITERATIONS,
        ).images
        right = served(found).nan_to_num().argmax(dim=1) == y
        if not dependent:
            found = torch.where(per_sample(standing, x), found, images)
            right &= standing
        if right.sum() <= standing.sum():
            images, standing = found, right
    return images


def every_target(logits: Tensor, y: Tensor) -> list[Tensor]:
    """Return the wrong classes to aim at, likeliest first, each (N,).

    Args:
        logits: Finite logits (N, classes).
        y: Labels (N,).
    """
    ranks = range(1, min(CLASSES, logits.shape[1] - 1) + 1)
    return [runner_up(logits, y, rank) for rank in ranks]
