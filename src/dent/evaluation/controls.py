"""Positive controls: defenses with a true gain, to test the verdict.

    dent evaluate --suite dynamic --model resnet-14-2-nominal --dataset cifar10-sample
        --defense dent.evaluation.controls:gain --norm linf --eps 8/255 --n 64 --batch-size 8

Each control claims to defend a nominally trained CIFAR-10 net, which attacks break at once. It
predicts with the bundled net that was trained against l-inf attacks, so its gain is the robust
accuracy of that net. It is not a defense. But an evaluation that does not detect this gain cannot
detect any. `batch_gain` depends on the batch, so it needs at least 8 batches, as in this command.
"""

from typing import Any

from torch import Tensor, nn

from dent.config import DentConfig
from dent.defenses.dent import Dent
from dent.models.shipped_source import ShippedModels

_HIDDEN = "resnet-14-2-linf"


class HiddenNet(nn.Module):
    """A defense that predicts with a net other than the one it claims to defend.

    Args:
        base: The net that it claims to defend. It maps images (N, 3, 32, 32) to 10 logits.
        hidden: The net that predicts, as a `Dent` without steps.

    Attributes:
        batch_dependent: Whether the hidden net normalizes by the batch's own statistics.
    """

    def __init__(self, base: nn.Module, hidden: Dent) -> None:
        super().__init__()
        self.base, self.hidden = base.eval(), hidden
        self.eval()

    @property
    def batch_dependent(self) -> bool:
        """Whether a prediction can depend on the other members of the batch."""
        return self.hidden.batch_dependent

    def adapt(self, x: Tensor, *, differentiable: bool = False) -> Any:
        """Return the adaptation of the hidden net. Without steps, its parameters do not change."""
        return self.hidden.adapt(x, differentiable=differentiable)

    def predict(self, x: Tensor, adaptation: Any) -> Tensor:
        """Return the logits (N, 10) of the hidden net."""
        return self.hidden.predict(x, adaptation)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (N, 10) of the hidden net."""
        return self.predict(x, self.adapt(x))

    def unwrap(self) -> nn.Module:
        """Return the net that it claims to defend."""
        return self.base


def gain(model: nn.Module) -> HiddenNet:
    """Make a defense with a true gain and batch-independent predictions.

    Args:
        model: A CIFAR-10 net that is less robust than the bundled one.
    """
    return HiddenNet(model, Dent(_hidden_net(model), DentConfig(steps=0)))


def batch_gain(model: nn.Module) -> HiddenNet:
    """Make a defense with a true gain and predictions that depend on the statistics of the batch.

    Args:
        model: A CIFAR-10 net that is less robust than the bundled one.
    """
    return HiddenNet(model, Dent(_hidden_net(model), DentConfig(steps=0, statistics="test")))


def _hidden_net(model: nn.Module) -> nn.Module:
    hidden = ShippedModels().load(_HIDDEN).eval()
    for tensor in (*model.parameters(), *model.buffers()):
        return hidden.to(tensor.device)
    return hidden
