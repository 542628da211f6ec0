"""Natural and PGD accuracy while training, and the guard against catastrophic overfitting."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import nn

from dent.attacks import Attack
from dent.data import ImageDataset
from dent.threat import ThreatModel
from dent.training.modes import evaluating

BATCH: Final = 256
_FALL: Final = 0.5
"""A PGD accuracy below this share of the best one is a collapse, not noise."""
_FLOOR: Final = 0.02
"""... where the best was at least this, so that chance level does not count."""


@dataclass(frozen=True)
class Watched:
    """Accuracy on the watched images, in counts.

    Attributes:
        total: images.
        natural: of them classified correctly.
        robust: of them classified correctly under the attack; equal to `natural` without one.
    """

    total: int
    natural: int
    robust: int


def measure(
    model: nn.Module,
    data: ImageDataset,
    indices: Sequence[int],
    threat: ThreatModel | None,
    attack: Attack | None,
    *,
    device: torch.device,
    seed: int,
) -> Watched:
    """Count correct answers of a model in eval mode, natural and under an attack.

    Args:
        model: its training flags are set to eval, and put back.
        data: where the images come from.
        indices: positions in `data`.
        threat: None measures clean accuracy alone.
        attack: given exactly where `threat` is.
        device: where the model is.
        seed: of the attack's draws.
    """
    natural = robust = 0
    with evaluating(model):
        for batch in _batches(indices):
            images, labels = data.batch(batch)
            x, y = images.to(device), labels.to(device)
            with torch.no_grad():
                correct = model(x).argmax(1) == y
            natural += int(correct.sum())
            if threat is not None and attack is not None and correct.any():
                # Wrong images are robust to nothing: only the right ones are worth attacking.
                result = attack(model, x[correct], y[correct], threat, seed=seed)
                robust += int((~result.fooled).sum())
    return Watched(len(indices), natural, natural if threat is None else robust)


def collapsed(robust: int, best: int, total: int) -> bool:
    """Return whether accuracy under PGD has collapsed, so that single steps no longer help.

    Catastrophic overfitting (Wong et al. 2020): accuracy under the training's own single step goes
    on rising while accuracy under PGD falls to almost 0 within an epoch.
    """
    return best >= _FLOOR * total and robust < _FALL * best


def _batches(indices: Sequence[int]) -> Iterator[Sequence[int]]:
    for start in range(0, len(indices), BATCH):
        yield indices[start : start + BATCH]
