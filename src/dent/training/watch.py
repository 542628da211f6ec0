"""Measure clean and PGD accuracy during training, and detect catastrophic overfitting."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import nn

from dent.attacks import Attack
from dent.data import ImageDataset
from dent.threat import ThreatModel
from dent.training.modes import evaluating

BATCH: Final = 256
OnMeasured = Callable[[int, int], None]
"""Called with the number of measured images and of all."""
_FALL: Final = 0.5
"""A PGD accuracy below this share of the best one is a collapse, not noise."""
_FLOOR: Final = 0.02
"""A collapse also needs a best PGD accuracy of at least this share, so that noise near 0 does not
count."""


@dataclass(frozen=True)
class Watched:
    """Accuracy on the watched images, in counts.

    Attributes:
        total: watched images.
        natural: images classified correctly without an attack.
        robust: images classified correctly under the attack; equal to `natural` without an attack.
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
    progress: OnMeasured | None = None,
) -> Watched:
    """Count correct predictions of a model in eval mode, on natural images and under an attack.

    Args:
        model: the model; it is put into eval mode, and its modes are restored afterward.
        data: the dataset of the images.
        indices: positions in `data`.
        threat: the threat model; None measures only clean accuracy.
        attack: the attack; given if and only if `threat` is.
        device: the device of the model.
        seed: seed of the attack's random draws.
        progress: called before the first batch and after each one, with the number of measured
            images and of all.
    """
    natural = robust = done = 0
    with evaluating(model):
        for batch in _batches(indices):
            if progress is not None:
                progress(done, len(indices))
            images, labels = data.batch(batch)
            x, y = images.to(device), labels.to(device)
            with torch.no_grad():
                correct = model(x).argmax(1) == y
            natural += int(correct.sum())
            if threat is not None and attack is not None and correct.any():
                # Misclassified images already count as wrong, so attack only the others.
                result = attack(model, x[correct], y[correct], threat, seed=seed)
                robust += int((~result.fooled).sum())
            done += len(batch)
    if progress is not None:
        progress(done, len(indices))
    return Watched(len(indices), natural, natural if threat is None else robust)


def collapsed(robust: int, best: int, total: int) -> bool:
    """Return whether accuracy under PGD has collapsed, so that training must stop.

    This is catastrophic overfitting (Wong et al. 2020): accuracy under the single step of training
    keeps rising, while accuracy under PGD falls to almost 0 within an epoch.
    """
    return best >= _FLOOR * total and robust < _FALL * best


def _batches(indices: Sequence[int]) -> Iterator[Sequence[int]]:
    for start in range(0, len(indices), BATCH):
        yield indices[start : start + BATCH]
