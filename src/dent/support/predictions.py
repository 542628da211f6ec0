"""The rule for which rows of logits are predictions, for all parts of the package.

A row is a prediction if it has no NaN and its largest logit is finite. Minus infinity for some
classes is allowed: models use it to exclude classes.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

_FAR: Final = 1e3
"""Distance at which the probability of a class is exactly 0, even in float64."""


def is_prediction(logits: Tensor) -> Tensor:
    """Return which rows are predictions.

    Args:
        logits: (..., classes), at least one class.

    Returns:
        bool (...).
    """
    return logits.amax(-1).isfinite()


def bounded(logits: Tensor) -> Tensor:
    """Return logits that are finite in every row that is a prediction.

    Excluded classes get a logit far below all others of their row, without a gradient. So losses
    are finite, and the predicted class and all probabilities stay the same. Without an excluded
    class, the logits themselves are returned.

    Args:
        logits: (..., classes), floating-point.
    """
    excluded = logits.isneginf()
    if not bool(excluded.any()):
        return logits
    size = logits.detach().masked_fill(excluded, 0.0).abs().amax(-1, keepdim=True)
    lowest = (-2 * size - _FAR).clamp(min=torch.finfo(logits.dtype).min)
    return torch.where(excluded, lowest, logits)
