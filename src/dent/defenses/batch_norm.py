"""Defenses that replace the statistics of BatchNorm layers and adapt nothing else."""

from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import ClassVar, Final

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.instancenorm import _InstanceNorm

from dent.adaptation.adaptation import Adaptation
from dent.adaptation.moving import MEAN
from dent.adaptation.norm import norm_layers
from dent.adaptation.other_batch_norm import BatchNormCall, OtherBatchNorm
from dent.adaptation.recomputation import recomputation_refused
from dent.adaptation.supported import check_supported
from dent.config import DentConfig
from dent.defenses.base import ReferenceDefense
from dent.errors import UnsupportedModelError

_STATISTICS_ONLY: Final = DentConfig(steps=0, statistics="test")
Statistics = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""The signature of `BatchNormDefense.statistics`, without `self`."""


class BatchNormDefense(ReferenceDefense):
    """A defense that normalizes by its own statistics, layer by layer, at every forward.

    Subclasses implement `statistics` and `settings`, and set `name`.

    Args:
        model: the classifier; its BatchNorm layers keep running statistics.

    Raises:
        UnsupportedModelError: the model is not supported, or no BatchNorm layer keeps running
            statistics.
    """

    steps: ClassVar[int] = 0

    def __init__(self, model: nn.Module) -> None:
        check_supported(model, _STATISTICS_ONLY)
        if not any(map(_may_call_batch_norm, dict(norm_layers(model)).values())):
            raise UnsupportedModelError(
                f"{self.name} replaces the running statistics of BatchNorm layers, and no such "
                f"layer of {type(model).__name__} keeps any, only InstanceNorm: the defense would "
                "be the static model."
            )
        super().__init__(model)

    @abstractmethod
    def statistics(
        self, values: Tensor, running_mean: Tensor, running_var: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the mean and the variance of every channel, (C,) each.

        Args:
            values: the layer's input with its positions flattened to one axis, (N, C, positions).
            running_mean: the layer's own mean, (C,).
            running_var: the layer's own variance, (C,).
        """

    @property
    def batch_dependent(self) -> bool:
        """True: every member changes the batch's statistics."""
        return True

    def adapt(self, x: Tensor, *, differentiable: bool = False) -> Adaptation:
        """Return an empty adaptation: the statistics are computed again at every forward."""
        return self.classifier.adapt(x, differentiable=differentiable)

    def predict(self, x: Tensor, adaptation: Adaptation) -> Tensor:
        """Return logits (N, classes). The gradient to `x` is exact, also through the statistics.

        Raises:
            InputError: the model cannot take `x`, or the adaptation is not for it.
            UnsupportedModelError: the model does not call torch.nn.functional.batch_norm, or uses
                activation checkpointing and `x` needs a gradient.
        """
        other = OtherBatchNorm(partial(_normalize, self.statistics))
        with recomputation_refused(self.name, x), other:
            logits = self.classifier.predict(x, adaptation)
        if not other.asked:
            raise UnsupportedModelError(
                f"{self.name} replaces the statistics of torch.nn.functional.batch_norm, and "
                f"{type(self.unwrap()).__name__} does not call that: the defense would be the "
                "static model. Call it in the forward of your normalization layers."
            )
        return logits


def _may_call_batch_norm(layer: nn.Module) -> bool:
    """Return whether a layer keeps running statistics and is no InstanceNorm."""
    return layer._buffers.get(MEAN) is not None and not isinstance(layer, _InstanceNorm)


def _normalize(statistics: Statistics, call: BatchNormCall) -> Tensor:
    """Normalize by `statistics`; a layer without running statistics runs plain BatchNorm."""
    x, mean, variance, weight, bias = call[:5]
    if mean is None or variance is None:
        return F.batch_norm(x, None, None, weight, bias, call.training, call.momentum, call.eps)
    shape = [-1 if axis == 1 else 1 for axis in range(x.dim())]
    values = x.to(mean.dtype)
    by_position = values.reshape(*values.shape[:2], -1)
    mean, variance = statistics(by_position, mean, variance)
    normalized = (values - mean.view(shape)) * (variance + call.eps).rsqrt().view(shape)
    if weight is not None:
        normalized = normalized * weight.view(shape)
    if bias is not None:
        normalized = normalized + bias.view(shape)
    return normalized.to(x.dtype)
