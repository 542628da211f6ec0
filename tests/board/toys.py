"""A toy track on which the whole suite takes about a second, and defenses for it."""

from typing import Any

import torch
from torch import nn

from dent.board.tracks import Track
from dent.data.dataset import ArrayDataset
from dent.models.weights import weights_digest
from tests.attacks.known_defenses import Identity
from tests.evaluation.test_evaluation_suite_answers import EPS, dataset, linear

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
