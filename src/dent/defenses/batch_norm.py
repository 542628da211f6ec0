"""Normalize by other statistics than BatchNorm's own."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class OtherStatistics(TorchFunctionMode):
    """Within it, batch_norm with running statistics normalizes by others; in this thread alone."""

    @abstractmethod
    def statistics(
        self, values: Tensor, running_mean: Tensor, running_var: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the mean and the variance of every channel, two (C,).

        Args:
            values: The layer's input with its positions in one axis, (N, C, positions).
            running_mean: The layer's own mean, (C,).
            running_var: The layer's own variance, (C,).
        """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: tuple[type, ...],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Replace batch_norm, and call every other function."""
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
        mean, variance = self.statistics(by_position, running_mean, running_var)
        normalized = (values - mean.view(shape)) * (variance + eps).rsqrt().view(shape)
        if weight is not None:
            normalized = normalized * weight.view(shape)
        if bias is not None:
            normalized = normalized + bias.view(shape)
        return normalized.to(input.dtype)
