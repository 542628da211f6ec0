"""Models to train: an architecture by name, with random or given weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dent.errors import UnknownNameError
from dent.models import factory
from dent.models.residual import EXAMPLES, is_member, resnet
from dent.models.weights import fit_weights, read_weights
from dent.support.suggest import did_you_mean

if TYPE_CHECKING:
    from torch import nn


def build(name: str, num_classes: int, *, weights: Path | None = None) -> nn.Module:
    """Build an architecture, in training mode on the CPU.

    Args:
        name: `resnet-{depth}-{width}`, or a factory of your own `package.module:factory`, which
            decides its number of classes alone.
        num_classes: Logits per image of a family net.
        weights: A file to start from; otherwise weights are drawn from PyTorch's global random
            state (by a factory, as it likes).

    Raises:
        UnknownNameError: If nothing that can be trained goes by that name.
        WeightsError: If the weights cannot be read or do not fit.
        UnsupportedModelError: If the factory raises or returns no model.
    """
    if ":" in name:
        model = factory.build(name)
    elif is_member(name):
        model = resnet(name, num_classes)
    else:
        raise UnknownNameError(
            f"no architecture named {name!r}.{did_you_mean(name, EXAMPLES)} There are "
            f"resnet-{{depth}}-{{width}} such as {', '.join(EXAMPLES)}, and package.module:factory."
        )
    if weights is not None:
        fit_weights(model, read_weights(weights), origin=str(weights))
    return model.train()
