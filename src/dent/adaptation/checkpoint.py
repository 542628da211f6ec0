"""Gradient checkpointing: recompute steps instead of storing their graph (Chen et al., 2016).

`torch.utils.checkpoint` recomputes a plain forward. The steps recomputed here take gradients
themselves, so even the first computation needs a graph, which is then discarded.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dent.adaptation.autocast import autocast_of, under
from dent.adaptation.isolation import isolated

Segment = Callable[[Sequence[Tensor], bool], Sequence[Tensor]]
"""Function from tensors to tensors; the flag tells it to keep the graph between them."""


def recomputed(run: Segment, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return `run(inputs, True)`, storing only the inputs for the backward pass.

    The forward pass keeps no graph; the backward pass runs again with one, under the forward's
    automatic mixed precision. The gradient is exact, but cannot be differentiated again.

    Args:
        run: must return the same values both times. Only the first run may have side effects.
        inputs: floating-point; the first is the batch.
    """
    outputs: tuple[Tensor, ...] = _Recomputed.apply(run, *inputs)
    return outputs


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, run: Segment, *inputs: Tensor) -> tuple[Tensor, ...]:
        ctx.run = run
        ctx.autocast = autocast_of(inputs[0].device)
        ctx.save_for_backward(*inputs)
        with torch.enable_grad():
            outputs = run([tensor.detach() for tensor in inputs], False)
        return tuple(tensor.detach() for tensor in outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[1:]
        inputs = [
            tensor.detach().requires_grad_(wanted)
            for tensor, wanted in zip(ctx.saved_tensors, needed, strict=True)
        ]
        device = inputs[0].device
        with isolated(inputs[0], differentiable=True), under(ctx.autocast, device):
            outputs = ctx.run(inputs, True)
            reached = [index for index, tensor in enumerate(outputs) if tensor.requires_grad]
            input_gradients = torch.autograd.grad(
                [outputs[index] for index in reached],
                [tensor for tensor, wanted in zip(inputs, needed, strict=True) if wanted],
                [gradients[index] for index in reached],
                allow_unused=True,
            )
        remaining = iter(input_gradients)
        return (None, *(next(remaining) if wanted else None for wanted in needed))
