"""The surroundings in which adaptation runs, so that nothing outside it notices."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


@contextmanager
def isolated(x: Tensor, *, differentiable: bool) -> Iterator[None]:
    """Record gradients whatever the caller's mode, and leave the random state as it was.

    Args:
        x: the batch; its device's generator is among those restored.
        differentiable: choose operations that have a second derivative.
    """
    attention = _MathAttention() if differentiable else nullcontext()
    with torch.inference_mode(False), torch.enable_grad(), _same_random_state(x), attention:
        yield


@contextmanager
def _same_random_state(x: Tensor) -> Iterator[None]:
    # Restored only if something drew, since the generators belong to all threads.
    before = torch.get_rng_state()
    before_cuda = torch.cuda.get_rng_state(x.device) if x.is_cuda else None
    try:
        yield
    finally:
        if not torch.equal(before, torch.get_rng_state()):
            torch.set_rng_state(before)
        if before_cuda is not None and not torch.equal(
            before_cuda, torch.cuda.get_rng_state(x.device)
        ):
            torch.cuda.set_rng_state(before_cuda, x.device)


class _MathAttention(TorchFunctionMode):
    """Compute attention by plain matrix products: the fused kernels have no second derivative.

    A mode, unlike the switches in torch.backends, holds for this thread alone.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: tuple[type, ...],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return _attention(*args, **kwargs)
        return func(*args, **kwargs)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    # The operator adds any mask to the scores; what is False in a boolean one must be left out.
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        nothing = torch.zeros_like(attn_mask, dtype=query.dtype)
        attn_mask = nothing.masked_fill(~attn_mask, -math.inf)
    result: Tensor = torch.ops.aten._scaled_dot_product_attention_math(
        query, key, value, attn_mask, *args, **kwargs
    )[0]
    return result
