"""A toy track on which the whole suite takes about a second, and defenses for it."""

from typing import Any, Final

import torch
from torch import nn

from dent.board.tracks import Track
from dent.data.dataset import ArrayDataset
from dent.models.weights import weights_digest
from tests.attacks.known_defenses import Better, Identity
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
