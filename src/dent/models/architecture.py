"""Build a model for training by its architecture's name, with random or given weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dent.errors import UnknownNameError
from dent.models import factory
from dent.models.residual import EXAMPLES, is_member, resnet
from dent.models.weights import fit_weights, read_weights
from dent.support.suggest import unknown

if TYPE_CHECKING:
    from torch import nn


def build(name: str, num_classes: int, *, weights: Path | None = None) -> nn.Module:
    """Build a model by the name of its architecture, on the CPU and in training mode.

    Args:
        name: `resnet-{depth}-{width}`, or your own factory `package.module:factory`, which sets
            the number of classes itself.
        num_classes: Logits per image of a `resnet-{depth}-{width}`.
        weights: A file of weights to start from. By default, a `resnet-{depth}-{width}` draws its
            weights from PyTorch's global random state, and a factory initializes its own.

    Raises:
        UnknownNameError: If no architecture or factory has that name.
        WeightsError: If the weights cannot be read or do not fit.
        UnsupportedModelError: If the factory raises an error or returns no model.
    """
    if ":" in name:
        model = factory.build(name)
    elif is_member(name):
        model = resnet(name, num_classes)
    else:
        raise UnknownNameError(
            unknown(
                "architecture",
                name,
                EXAMPLES,
                expected=f"resnet-{{depth}}-{{width}}, such as {', '.join(EXAMPLES)}, or "
                "package.module:factory",
            )
        )
    if weights is not None:
        fit_weights(model, read_weights(weights), origin=str(weights))
    return model.train()
