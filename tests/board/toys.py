"""A track on which the whole suite takes a second, and defenses on it."""

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
    """Another one."""
    return linear(2.0)


def images() -> ArrayDataset:
    """Twenty-four images."""
    return dataset()


class Shifted(Identity):
    """As robust as its model, but for the first classes: their logit is a little higher."""

    def predict(self, x: torch.Tensor, adaptation: Any) -> torch.Tensor:
        return super().predict(x, adaptation) + torch.tensor([0.2, 0.0, 0.0, 0.0])


def shifted(base: nn.Module) -> Shifted:
    """A defense on the toy track."""
    return Shifted(base)


def same(base: nn.Module) -> Identity:
    """Another one, that does nothing."""
    return Identity(base)


def toy(**changes: Any) -> Track:
    """The toy track: eight fixed samples, and eight of sixteen others."""
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
