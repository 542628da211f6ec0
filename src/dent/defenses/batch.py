"""What every defense asks of a batch before it adapts to it."""

import torch
from torch import Tensor

from dent.errors import InputError


def finite_rows(x: Tensor) -> Tensor:
    """Return which samples of a batch are finite, (N,) bool: only those are adapted to.

    Raises:
        InputError: `x` is not a batch (N, ...) of at least one sample of floating-point numbers.
    """
    if not isinstance(x, Tensor):
        raise InputError(f"A defense expected a torch.Tensor, got {type(x).__name__}.")
    if not x.is_floating_point() or x.dim() < 2 or x.numel() == 0:
        raise InputError(
            "A defense expected a batch of floating-point numbers, shape (N, ...) with N at least "
            f"1, got {x.dtype} of shape {tuple(x.shape)}: for images, pass x.float() / 255; for "
            "one sample, x.unsqueeze(0)."
        )
    with torch.inference_mode(False):
        return x.detach().flatten(1).isfinite().all(1)
