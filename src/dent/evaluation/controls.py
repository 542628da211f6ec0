"""Positive controls: defenses with a true gain, to test the verdict.

    dent evaluate --suite dynamic --model resnet-14-2-nominal --dataset cifar10-sample
        --defense dent.evaluation.controls:gain --norm linf --eps 8/255 --n 64 --batch-size 8

Each pretends to defend a nominally trained CIFAR-10 net, which falls at once, and answers with the
bundled net that was trained against l-inf attacks. What it gains is what that net keeps, and nobody
calls it a defense: an evaluation that cannot see this gain cannot see any.
"""

from typing import Any

from torch import Tensor, nn

from dent.config import DentConfig
from dent.defenses.dent import Dent
from dent.models.shipped_source import ShippedModels

_HIDDEN = "resnet-14-2-linf"


class HiddenNet(nn.Module):
    """Predicts with another net than the one that it claims to defend.

    Args:
        base: The net that it claims to defend; images (N, 3, 32, 32) to 10 logits.
        hidden: The net that answers, as a `Dent` without steps.

    Attributes:
        batch_dependent: Whether the hidden net normalizes by the batch's own statistics.
    """

    def __init__(self, base: nn.Module, hidden: Dent) -> None:
        super().__init__()
        self.base, self.hidden = base.eval(), hidden
        self.eval()

    @property
    def batch_dependent(self) -> bool:
        """Whether a prediction can depend on the rest of its batch."""
        return self.hidden.batch_dependent

    def adapt(self, x: Tensor, *, differentiable: bool = False) -> Any:
        """Adapt the hidden net. Without steps, nothing changes."""
        return self.hidden.adapt(x, differentiable=differentiable)

    def predict(self, x: Tensor, adaptation: Any) -> Tensor:
        """Return logits (N, 10) of the hidden net."""
        return self.hidden.predict(x, adaptation)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, 10) of the hidden net."""
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
    """Make a defense with a true gain that depends on the batch's statistics.

    Args:
        model: A CIFAR-10 net that is less robust than the bundled one.
    """
    return HiddenNet(model, Dent(_hidden_net(model), DentConfig(steps=0, statistics="test")))


def _hidden_net(model: nn.Module) -> nn.Module:
    hidden = ShippedModels().load(_HIDDEN).eval()
    for tensor in (*model.parameters(), *model.buffers()):
        return hidden.to(tensor.device)
    return hidden
