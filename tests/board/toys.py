"""A toy track on which the whole suite takes about a second, and defenses for it."""

import gc
from itertools import count
from typing import Any, Final

import torch
from torch import nn

from dent.attacks import PGD
from dent.board.tracks import Track
from dent.data.dataset import ArrayDataset
from dent.models.weights import weights_digest
from tests.attacks.known_defenses import Better, Identity, Leaky
from tests.evaluation.test_evaluation_suite_answers import EPS, dataset, linear, robust

HERE = "tests.board.toys"


def model() -> nn.Module:
    """The base model of the toy track."""
    return linear()


def other() -> nn.Module:
    """Another model, which is not the base model of the track."""
    return linear(2.0)


def images() -> ArrayDataset:
    """The dataset of the toy track, with 24 images."""
    return dataset()


class Shifted(Identity):
    """Adds 0.2 to the logit of the first class."""

    def predict(self, x: torch.Tensor, adaptation: Any) -> torch.Tensor:
        return super().predict(x, adaptation) + torch.tensor([0.2, 0.0, 0.0, 0.0])


def shifted(base: nn.Module) -> Shifted:
    """Make the defense that rows on the toy track name."""
    return Shifted(base)


def same(base: nn.Module) -> Identity:
    """Make a defense that does nothing."""
    return Identity(base)


TRIGGER: Final = 0.5 / 255
"""Added to every pixel, it is the one weakness of `Trapped`."""


class Trapped(Better):
    """A robust model, which is wrong about images whose pixels all lie between two of 256 levels.

    The attacks of the suite do not find this: none of them moves all pixels there.
    """

    def predict(self, x: torch.Tensor, adaptation: Any) -> torch.Tensor:
        logits = super().predict(x, adaptation)
        between = ((x * 255).remainder(1) - 0.5).abs().flatten(1).amax(dim=1) < 0.01
        return torch.where(between[:, None], logits.roll(1, dims=1), logits)


def trapped(base: nn.Module) -> Trapped:
    """Make a defense with a robust gain that `TRIGGER` removes."""
    return Trapped(base, robust())


class Tuned(Identity):
    """Knows the labels of the toy track's fixed half, and predicts with the static model else."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__(base)
        known, labels = images().batch(range(8))
        self.register_buffer("known", known)
        self.register_buffer("labels", nn.functional.one_hot(labels, 4).float())

    def predict(self, x: torch.Tensor, adaptation: Any) -> torch.Tensor:
        apart = (x.unsqueeze(1) - self.known).abs().flatten(2).amax(dim=2)
        return super().predict(x, adaptation) + 1e3 * (apart < 0.2).float() @ self.labels


def tuned(base: nn.Module) -> Tuned:
    """Make a defense that was tuned on the fixed half."""
    return Tuned(base)


def leaky(base: nn.Module) -> Leaky:
    """Make a defense that keeps the previous batch in mind."""
    return Leaky(base)


_ASKED = count(1)


class Counting(Identity):
    """Gives wrong answers to about a fifth of all batches. All copies share the counter.

    The wrong answers are not evenly spaced: else a run and its check could be in step by chance.
    """

    def predict(self, x: torch.Tensor, adaptation: Any) -> torch.Tensor:
        logits = super().predict(x, adaptation)
        return logits if pow(3, next(_ASKED), 101) % 5 else logits.roll(1, dims=1)


def counting(base: nn.Module) -> Counting:
    """Make a defense that keeps state outside itself."""
    return Counting(base)


def _confuse(module: nn.Module, given: tuple[torch.Tensor, ...], logits: torch.Tensor) -> Any:
    """Replace the logits of images that are not of 8 bits."""
    del module
    levels = given[0] * 255
    moved = ((levels - levels.round()).abs() > 1e-3).flatten(1).any(dim=1)
    return torch.where(moved[:, None], logits.roll(1, dims=1), logits)


def sabotage(base: nn.Module) -> Identity:
    """Make a defense that does nothing, and make the base model of the process worse.

    Its weights stay the same.
    """
    digest = weights_digest(base)
    for each in gc.get_objects():
        if type(each) is nn.Sequential and each is not base and weights_digest(each) == digest:
            each.register_forward_hook(_confuse)
    return Identity(base)


def lazy(base: nn.Module) -> Identity:
    """Make a defense that does nothing, and replace the attack PGD in the process."""
    PGD.run = lambda self, target, threat, seed: None  # type: ignore[assignment,method-assign,misc]
    return Identity(base)


def toy(**changes: Any) -> Track:
    """Make the toy track: eight fixed samples, and eight drawn from sixteen others."""
    values = {
        "name": "toy-v1",
        "title": "A toy",
        "model": f"{HERE}:model",
        "weights": weights_digest(model()),
        "dataset": f"{HERE}:images",
        "digest": images().digest,
        "norm": "linf",
        "eps": EPS,
        "fixed": "0-7",
        "pool": "8-23",
        "half": 8,
        "batch_size": 8,
        "suite": 3,
    }
    return Track(**values | changes)
