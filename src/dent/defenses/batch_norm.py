"""Defenses that normalize by other statistics than BatchNorm's own, and adapt nothing else."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Final

import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dent.adaptation.adaptation import Adaptation
from dent.adaptation.adapted_model import check_supported
from dent.config import DentConfig
from dent.defenses.base import ReferenceDefense

_STATISTICS_ONLY: Final = DentConfig(steps=0, statistics="test")
Statistics = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""`BatchNormDefense.statistics`."""


class BatchNormDefense(ReferenceDefense):
    """Normalizes by other statistics, layer by layer, at every forward.

    Subclasses implement `statistics` and `settings`, and name themselves.

    Args:
        model: the classifier; its BatchNorm layers keep running statistics.

    Raises:
        UnsupportedModelError: the model cannot be computed, or no layer keeps running statistics.
    """

    steps: ClassVar[int] = 0

    def __init__(self, model: nn.Module) -> None:
        check_supported(model, _STATISTICS_ONLY)
        super().__init__(model)

    @abstractmethod
    def statistics(
        self, values: Tensor, running_mean: Tensor, running_var: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the mean and the variance of every channel, two (C,).

        Args:
            values: the layer's input with its positions in one axis, (N, C, positions).
            running_mean: the layer's own mean, (C,).
            running_var: the layer's own variance, (C,).
        """

    @property
    def batch_dependent(self) -> bool:
        """True: the other members change the batch's statistics."""
        return True

    def adapt(self, x: Tensor, *, differentiable: bool = False) -> Adaptation:
        """Return an empty adaptation: the statistics are computed anew at every forward."""
        return self.classifier.adapt(x, differentiable=differentiable)

    def predict(self, x: Tensor, adaptation: Adaptation) -> Tensor:
        """Return logits (N, classes), with the exact gradient to `x`, statistics included."""
        with _OtherStatistics(self.statistics):
            return self.classifier.predict(x, adaptation)


class _OtherStatistics(TorchFunctionMode):
    """Within it, batch_norm with running statistics normalizes by others; in this thread alone."""

    def __init__(self, statistics: Statistics) -> None:
        super().__init__()
        self._statistics = statistics

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: tuple[type, ...],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.batch_norm:
            return self._batch_norm(*args, **kwargs)
        return func(*args, **kwargs)

    def _batch_norm(
        self,
        input: Tensor,  # noqa: A002 - torch passes it by this name
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        if running_mean is None or running_var is None:
            return F.batch_norm(input, None, None, weight, bias, training, momentum, eps)
        shape = [-1 if axis == 1 else 1 for axis in range(input.dim())]
        values = input.to(running_mean.dtype)
        by_position = values.reshape(*values.shape[:2], -1)
        mean, variance = self._statistics(by_position, running_mean, running_var)
        normalized = (values - mean.view(shape)) * (variance + eps).rsqrt().view(shape)
        if weight is not None:
            normalized = normalized * weight.view(shape)
        if bias is not None:
            normalized = normalized + bias.view(shape)
        return normalized.to(input.dtype)
