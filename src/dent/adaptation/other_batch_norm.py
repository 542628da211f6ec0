"""Run something else where a model calls `torch.nn.functional.batch_norm`."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class BatchNormCall(NamedTuple):
    """The arguments of `torch.nn.functional.batch_norm`, by its names and with its defaults.

    Scale and shift are tensors, or of the kind that a sample-wise adaptation puts in their place.
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
    """Within it, `normalize` runs in place of batch_norm; in this thread alone.

    Args:
        normalize: The call to its output.

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
        """Run an operation."""
        kwargs = kwargs or {}
        if func is not F.batch_norm:
            return func(*args, **kwargs)
        self.asked = True
        return self._normalize(BatchNormCall(*args, **kwargs))
