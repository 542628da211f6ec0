"""Values with the gradient of others: straight-through estimators (Bengio et al. 2013)."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from dent.support.predictions import is_prediction

_ROUNDING: Final = 1e-5
"""Largest share of a row's largest value that rounding explains."""


def straight_through(values: Tensor, base: Tensor) -> Tensor:
    """Return values with the gradient of others, up to rounding.

    Args:
        values: (N, classes). No gradient passes to them.
        base: (N, classes), which gets the gradient.
    """
    values = values.detach()
    result = base + (values - base).detach()
    # If the base is much larger than a row, rounding in this sum takes the row's order. Only such
    # rows are exact, because existing records hold the others bit by bit.
    near = (result - values).abs() <= _ROUNDING * values.abs().amax(dim=1, keepdim=True)
    lost = ~near.all(dim=1, keepdim=True) & is_prediction(values).unsqueeze(1)
    if not bool(lost.any()):
        return result
    return torch.where(lost, exactly(values, base), result)


def exactly(values: Tensor, base: Tensor) -> Tensor:
    """Return exactly the values, with the gradient of others where those are finite."""
    return values.detach() + (base - base.detach()).nan_to_num(nan=0.0)
