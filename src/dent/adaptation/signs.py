"""Sign functions with exact values and the gradient of a smooth function."""

from typing import Any, Final

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from dent.support.checks import read_number

_SIGNS: Final = (torch.sign, torch.sgn, Tensor.sign, Tensor.sgn)
_TINY: Final = 1e-30


class _SmoothSign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, temperature: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.temperature = temperature
        return x.sign()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        width = ctx.temperature * _mean_size(x)
        return gradients[0] * (1 - (x / width).tanh() ** 2) / width, None


def smooth_sign(x: Tensor, temperature: float) -> Tensor:
    """Return `x.sign()`, to the last bit, with the gradient of tanh(x / (temperature * s)).

    s is the mean absolute value of `x`, of each row if it has several dimensions, and counts as a
    constant. So a row's gradient does not depend on other rows, and the scale of `x` cancels in the
    tanh.
    """
    smooth: Tensor = _SmoothSign.apply(x, temperature)
    return smooth


def _mean_size(x: Tensor) -> Tensor:
    dimensions = tuple(range(1, x.dim())) if x.dim() > 1 else None
    return x.abs().mean(dim=dimensions, keepdim=True).clamp(min=_TINY)


class SmoothSigns(TorchFunctionMode):
    """Context in which every sign of a tensor that requires a gradient is `smooth_sign`.

    It acts on the operations that PyTorch runs eagerly, not on compiled or scripted code.

    Args:
        temperature: greater than 0; at a smaller one, the gradient is closer to the sign's own.

    Raises:
        ConfigError: the temperature is not a finite number greater than 0.
    """

    def __init__(self, temperature: float) -> None:
        super().__init__()
        check_temperature(temperature)
        self._temperature = temperature

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, with signs replaced."""
        del types
        if func in _SIGNS and args and not kwargs and torch.is_grad_enabled():
            operand = args[0]
            if operand.requires_grad and operand.is_floating_point():
                return smooth_sign(operand, self._temperature)
        return func(*args, **(kwargs or {}))


def check_temperature(value: object) -> None:
    """Check the temperature of smooth signs.

    Raises:
        ConfigError: it is not a finite number greater than 0.
    """
    read_number("smooth_signs", value, 0.0)
