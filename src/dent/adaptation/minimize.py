"""The core step: adapt to one batch by minimizing the entropy of the model's own predictions.

`step` is the algorithm. `minimize` starts it from the trained parameters and repeats it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Final

import torch
from torch import Tensor

from dent.adaptation import smoothing
from dent.adaptation.adaptation import Adaptation
from dent.adaptation.adapted_model import AdaptedModel
from dent.adaptation.non_finite import NonFiniteGate
from dent.adaptation.objectives import entropy, log_mean_probability, loss
from dent.adaptation.optim import Optimizer, State, make_optimizer
from dent.adaptation.unroll import DescentState, recomputing, segments
from dent.adaptation.values import (
    AFFINE,
    SMOOTHING,
    STATISTICS,
    Values,
    flatten,
    joined,
    unflatten,
)
from dent.adaptation.views import of_views, prediction
from dent.config import DentConfig
from dent.errors import UnsupportedModelError

_NO_GRADIENT: Final = (
    "The model's output does not depend differentiably on what is optimized: does its forward use "
    "torch.no_grad(), detach() or NumPy, return outputs of an earlier call, or skip its "
    "normalization layers?"
)

OnStep = Callable[[Tensor], None]
"""Function that is called with logits (N, classes), with their graph to the batch."""


def step(
    forward: Callable[[Values], Tensor],
    values: Values,
    states: Mapping[str, State],
    optimizers: Mapping[str, Optimizer],
    config: DentConfig,
    *,
    keep_graph: bool,
) -> tuple[Tensor, Values, dict[str, State]]:
    """Take one step: a forward, the objective's gradient, and an update (Figure 2).

    Args:
        forward: runs the model on the batch with given values, and returns logits: (N, classes),
            or (V, N, classes) with views.
        values: all values before the step.
        states: the states of the optimizers before the step.
        optimizers: those of the learned values, by name.
        config: determines the objective and its reduction.
        keep_graph: keep the graph of the step, for the exact gradient.

    Returns:
        The logits before the step, and the learned values and the states after it.
    """
    learned = {name: values[name].requires_grad_() for name in optimizers}
    logits = forward(values)
    objective = loss(logits, config.objective, config.reduction)
    slopes = gradients(objective, [*learned.values()], keep_graph=keep_graph)
    updated, updated_states = {}, {}
    with torch.set_grad_enabled(keep_graph):
        for (name, optimizer), slope in zip(optimizers.items(), slopes, strict=True):
            updated[name], updated_states[name] = optimizer.step(learned[name], slope, states[name])
    return logits, updated, updated_states


def minimize(
    model: AdaptedModel,
    trained: Mapping[str, Tensor],
    config: DentConfig,
    x: Tensor,
    *,
    differentiable: bool,
    last_steps: int | None = None,
    checkpointed: bool = False,
    on_step: OnStep | None = None,
    running: Mapping[str, Tensor] = MappingProxyType({}),
) -> Adaptation:
    """Adapt to one batch by steps from the trained parameters; see `step`.

    Args:
        model: runs the forward passes.
        trained: the trained scales and shifts by dotted name, from which every batch starts.
        config: the defense.
        x: (N, ...), finite; if N is 0, no step is taken.
        differentiable: keep the graph of the steps, for the exact gradient of the result in x.
        last_steps: keep the graph of only this many last steps; earlier steps count as constant.
        checkpointed: store about sqrt(`steps`) states instead of the graph, and rerun the steps
            from each during the backward pass.
        on_step: called with the prediction before each step whose graph is kept.
        running: the running statistics by dotted name, from which every batch starts; empty if
            they do not move.
    """
    start = _start(trained, config, x) | ({STATISTICS: flatten(running)} if running else {})
    optimizers = _optimizers(config, start)
    values = dict(start)
    states = {name: optimizer.init(start[name]) for name, optimizer in optimizers.items()}
    gate = NonFiniteGate(config, x, start.get(SMOOTHING))
    if differentiable and x.requires_grad:
        x = x.view_as(x)
        x.register_hook(gate.gradient)

    def descend(
        x: Tensor, state: DescentState, gate: NonFiniteGate, steps: int, keep_graph: bool
    ) -> DescentState:
        # `x` and `gate` are arguments because the backward pass may repeat these steps on others.
        values, states = dict(state.values), dict(state.states)
        predictions: list[Tensor] = []

        def forward(values: Values) -> Tensor:
            parameters, width = unflatten(values.get(AFFINE), trained), values.get(SMOOTHING)
            run = partial(model, parameters=parameters, smoothing=width)
            logits = of_views(run, x, config.views)
            if on_step is not None:
                predicted = prediction(logits if keep_graph else logits.detach(), config.views)
                predictions.append(predicted)
            return logits

        for _ in range(steps):
            logits, updated, states = step(
                forward, values, states, optimizers, config, keep_graph=keep_graph
            )
            with torch.set_grad_enabled(keep_graph):
                values |= gate.accept(updated, start, _entropies(logits.detach()))
                values |= _moved(model, running, start, values, states, gate)
        return DescentState(values, states, tuple(predictions))

    state = DescentState(values, states)
    for steps, keep_graph in segments(config, x, differentiable, last_steps, checkpointed):
        if keep_graph and checkpointed:
            state = recomputing(descend, x, state, gate, steps)
        else:
            state = descend(x, state, gate, steps, keep_graph)
        if keep_graph and on_step is not None:
            _tell(on_step, state)
    values = state.values
    if not differentiable:
        values = {name: value.detach() for name, value in values.items()}
    return _adaptation(config, x, values, trained, running, gate)


def _adaptation(
    config: DentConfig,
    x: Tensor,
    values: Values,
    trained: Mapping[str, Tensor],
    running: Mapping[str, Tensor],
    gate: NonFiniteGate,
) -> Adaptation:
    """Return the adaptation with the values after all steps."""
    return Adaptation(
        parameters=unflatten(values.get(AFFINE), trained),
        smoothing=values.get(SMOOTHING),
        covariance_kind=config.smoothing.covariance if config.smoothing else None,
        entropy=torch.stack(gate.entropies) if gate.entropies else _no_entropy(config, x),
        status=gate.status(),
        sample_wise=config.granularity == "sample",
        smoothing_by_step=torch.stack(gate.smoothings) if gate.smoothings else None,
        statistics=unflatten(values.get(STATISTICS), running),
    )


def _moved(
    model: AdaptedModel,
    running: Mapping[str, Tensor],
    start: Values,
    values: Values,
    states: Mapping[str, State],
    gate: NonFiniteGate,
) -> Values:
    """Return the running statistics after a step; empty if they do not move."""
    if not running:
        return {}
    taken = max(state.step for state in states.values())
    moved = model.moved(unflatten(values[STATISTICS], running), taken)
    return {STATISTICS: gate.accept_shared(joined(moved.values()), start[STATISTICS])}


def over_finite_rows(on_step: OnStep | None, finite: Tensor | None) -> OnStep | None:
    """Wrap `on_step` so that it takes the logits of only the samples that are adapted to.

    Args:
        on_step: takes the logits of the whole batch; None for no function.
        finite: (N,) bool, which samples are adapted to; the others get rows of NaN. None for all.
    """
    if on_step is None or finite is None:
        return on_step

    def on_part(logits: Tensor) -> None:
        nothing = logits.new_full((len(finite), logits.shape[1]), math.nan)
        on_step(nothing.index_put((finite,), logits))

    return on_part


def _tell(on_step: OnStep, state: DescentState) -> None:
    for predicted in state.predictions:
        on_step(predicted)


def _entropies(logits: Tensor) -> Tensor:
    return entropy(log_mean_probability(logits) if logits.dim() == 3 else logits)


def _no_entropy(config: DentConfig, x: Tensor) -> Tensor:
    dtype = torch.promote_types(torch.float32, x.dtype)
    return x.new_zeros(config.steps, len(x), dtype=dtype)


def _start(trained: Mapping[str, Tensor], config: DentConfig, x: Tensor) -> Values:
    start = {}
    if config.adapt_affine and trained:
        start[AFFINE] = flatten(trained)
    if config.smoothing is not None:
        dtype = torch.promote_types(torch.float32, x.dtype)
        start[SMOOTHING] = smoothing.initial(config.smoothing, dtype=dtype, device=x.device)
    if config.granularity == "sample":
        start = {name: value.expand(len(x), -1).clone() for name, value in start.items()}
    return start


def _optimizers(config: DentConfig, start: Values) -> dict[str, Optimizer]:
    optimizers = {}
    if AFFINE in start:
        optimizers[AFFINE] = make_optimizer(config, config.lr)
    if config.smoothing is not None and config.smoothing.learn:
        optimizers[SMOOTHING] = make_optimizer(config, config.smoothing.lr)
    return optimizers


def gradients(
    objective: Tensor, of: Sequence[Tensor], *, keep_graph: bool = False
) -> tuple[Tensor, ...]:
    """Return the gradients of a scalar, without writing to any `.grad`.

    Args:
        objective: () scalar.
        of: the tensors to differentiate with respect to, of any shape.
        keep_graph: keep the graph, so that the gradients themselves can be differentiated.

    Raises:
        UnsupportedModelError: the model cuts the graph, so `objective` has no gradient.
    """
    if not objective.requires_grad:
        raise UnsupportedModelError(_NO_GRADIENT)
    slopes: Sequence[Tensor | None] = torch.autograd.grad(
        objective, of, create_graph=keep_graph, allow_unused=True
    )
    if all(slope is None for slope in slopes):
        raise UnsupportedModelError(_NO_GRADIENT)
    return tuple(
        torch.zeros_like(value) if slope is None else slope
        for value, slope in zip(of, slopes, strict=True)
    )
