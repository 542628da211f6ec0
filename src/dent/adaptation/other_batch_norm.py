"""Replace `torch.nn.functional.batch_norm` where a model calls it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class BatchNormCall(NamedTuple):
    """Arguments of `torch.nn.functional.batch_norm`, with its names and defaults.

    `weight` and `bias` are tensors, or the `Affine` that replaces them in an adapted layer.
    """

    input: Tensor
    running_mean: Tensor | None
    running_var: Tensor | None
    weight: Any = None
    bias: Any = None
    training: bool = False
    momentum: float = 0.1
    eps: float = 1e-5


class OtherBatchNorm(TorchFunctionMode):
    """Context in which `normalize` runs instead of batch_norm, in this thread only.

    Args:
        normalize: Takes the call and returns its output.

    Attributes:
        asked: Whether batch_norm was called.
    """

    def __init__(self, normalize: Callable[[BatchNormCall], Tensor]) -> None:
        super().__init__()
        self._normalize = normalize
        self.asked = False

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: tuple[type, ...],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run an operation, with batch_norm replaced."""
        kwargs = kwargs or {}
        if func is not F.batch_norm:
            return func(*args, **kwargs)
        self.asked = True
        return self._normalize(BatchNormCall(*args, **kwargs))
