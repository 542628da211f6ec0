"""Unroll the steps: which keep their graph, and which the backward pass repeats.

Gradient checkpointing (Chen et al., 2016) recomputes steps instead of storing their graph.
`torch.utils.checkpoint` recomputes a plain forward. The steps recomputed here take gradients
themselves, so even the first computation needs a graph, which is then discarded.
"""

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dent.adaptation.autocast import autocast_of, under
from dent.adaptation.isolation import isolated
from dent.adaptation.non_finite import NonFiniteGate
from dent.adaptation.optim import State
from dent.adaptation.values import STATISTICS, Values
from dent.config import DentConfig

Segment = Callable[[Sequence[Tensor], bool], Sequence[Tensor]]
"""Function from tensors to tensors; the flag tells it to keep the graph between them."""


class DescentState(NamedTuple):
    """State of the descent after some steps.

    Attributes:
        values: The updated values.
        states: The states of the optimizers.
        predictions: The predictions before each step since the previous state, if kept.
    """

    values: Values
    states: Mapping[str, State]
    predictions: tuple[Tensor, ...] = ()


Descend = Callable[[Tensor, DescentState, NonFiniteGate, int, bool], DescentState]
"""Function that takes steps: the batch, the state before them, the gate, the number of steps, and
whether to keep their graph."""


def segments(
    config: DentConfig, x: Tensor, differentiable: bool, last_steps: int | None, checkpointed: bool
) -> Iterator[tuple[int, bool]]:
    """Yield segments of the steps: their number, and whether to keep their graph."""
    steps = config.steps if len(x) else 0
    exact = steps if last_steps is None else min(last_steps, steps)
    exact = exact if differentiable else 0
    yield steps - exact, False
    length = math.ceil(math.sqrt(exact)) if checkpointed else exact
    while exact:
        length = min(length, exact)
        yield length, True
        exact -= length


def recomputing(
    descend: Descend,
    x: Tensor,
    start: DescentState,
    gate: NonFiniteGate,
    steps: int,
) -> DescentState:
    """Take steps without keeping their graph; the backward pass repeats them with it.

    Memory holds one state instead of the graph of all these steps (see `recomputed`).
    """
    untouched_gate = copy.copy(gate)
    moving = [*start.states, *({STATISTICS} & start.values.keys())]

    def pack(state: DescentState) -> list[Tensor]:
        averages = [tensor for kept in state.states.values() for tensor in kept.averages]
        moved = [state.values[name] for name in moving]
        return [*moved, *averages, *state.predictions]

    def unpack(tensors: Sequence[Tensor], steps_taken: int) -> DescentState:
        remaining = iter(tensors)
        values = start.values | {name: next(remaining) for name in moving}
        return DescentState(
            values,
            {
                name: State(kept.step + steps_taken, tuple(next(remaining) for _ in kept.averages))
                for name, kept in start.states.items()
            },
            tuple(remaining),
        )

    def run(inputs: Sequence[Tensor], keep_graph: bool) -> Sequence[Tensor]:
        watch = copy.copy(untouched_gate) if keep_graph else gate
        return pack(descend(inputs[0], unpack(inputs[1:], 0), watch, steps, keep_graph))

    start = start._replace(predictions=())
    return unpack(recomputed(run, [x, *pack(start)]), steps)


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
