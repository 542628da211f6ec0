"""Defenses that replace the statistics of BatchNorm layers and adapt nothing else."""

from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import ClassVar, Final

import torch.nn.functional as F
from torch import Tensor, nn

from dent.adaptation.adaptation import Adaptation
from dent.adaptation.adapted_model import check_supported
from dent.adaptation.other_batch_norm import BatchNormCall, OtherBatchNorm
from dent.config import DentConfig
from dent.defenses.base import ReferenceDefense

_STATISTICS_ONLY: Final = DentConfig(steps=0, statistics="test")
Statistics = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""The signature of `BatchNormDefense.statistics`, without `self`."""


class BatchNormDefense(ReferenceDefense):
    """A defense that normalizes by its own statistics, layer by layer, at every forward.

    Subclasses implement `statistics` and `settings`, and set `name`.

    Args:
        model: the classifier; its BatchNorm layers keep running statistics.

    Raises:
        UnsupportedModelError: the model is not supported, or no layer keeps running statistics.
    """

    steps: ClassVar[int] = 0

    def __init__(self, model: nn.Module) -> None:
        check_supported(model, _STATISTICS_ONLY)
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
        """Return logits (N, classes). The gradient to `x` is exact, also through the statistics."""
        with OtherBatchNorm(partial(_normalize, self.statistics)):
            return self.classifier.predict(x, adaptation)


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
