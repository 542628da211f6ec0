"""The core step: adapt to one batch by minimizing the entropy of the model's own predictions."""

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Final, NamedTuple

import torch
from torch import Tensor

from dent.adaptation import smoothing
from dent.adaptation.adaptation import Adaptation, Status
from dent.adaptation.adapted_model import AdaptedModel
from dent.adaptation.checkpoint import recomputed
from dent.adaptation.objectives import entropy, log_mean_probability, loss
from dent.adaptation.optim import Optimizer, State, make_optimizer
from dent.adaptation.views import of_views, prediction
from dent.config import DentConfig
from dent.errors import UnsupportedModelError

OnStep = Callable[[Tensor], None]
"""Function that is called with logits (N, classes), with their graph to the batch."""
Values = dict[str, Tensor]
"""The values that a step may update, by name: each (D,) batch-wise or (N, D) sample-wise."""

AFFINE: Final = "affine"
SMOOTHING: Final = "smoothing"
STATISTICS: Final = "statistics"
"""Name of the running statistics, (D,): each step moves them, but they are not learned, and the
batch shares them."""


class Point(NamedTuple):
    """State of the descent after some steps.

    Attributes:
        values: The updated values.
        states: The states of the optimizers.
        predictions: The predictions before each step since the previous point, if kept.
    """

    values: Values
    states: Mapping[str, State]
    predictions: tuple[Tensor, ...] = ()


def minimize(
    model: AdaptedModel,
    trained: Mapping[str, Tensor],
    config: DentConfig,
    x: Tensor,
    *,
    differentiable: bool,
    last: int | None = None,
    checkpointed: bool = False,
    on_step: OnStep | None = None,
    running: Mapping[str, Tensor] = MappingProxyType({}),
) -> Adaptation:
    """Adapt to one batch: per step a forward, the objective's gradient, and an update (Figure 2).

    Args:
        model: runs the forward passes.
        trained: the trained scales and shifts by dotted name, from which every batch starts.
        config: the defense.
        x: (N, ...), finite; if N is 0, no step is taken.
        differentiable: keep the graph of the steps, for the exact gradient of the result in x.
        last: keep the graph of only this many last steps; earlier steps count as constant.
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
    gate = _NonFiniteGate(config, x, start.get(SMOOTHING))
    if differentiable and x.requires_grad:
        x = x.view_as(x)
        x.register_hook(gate.gradient)

    def descend(
        x: Tensor, point: Point, gate: _NonFiniteGate, steps: int, keep_graph: bool
    ) -> Point:
        values, states = dict(point.values), dict(point.states)
        predictions: list[Tensor] = []
        for _ in range(steps):
            learned = {name: values[name].requires_grad_() for name in optimizers}
            parameters, width = unflatten(values.get(AFFINE), trained), values.get(SMOOTHING)
            logits = of_views(
                partial(model, parameters=parameters, smoothing=width), x, config.views
            )
            if on_step is not None:
                predicted = prediction(logits if keep_graph else logits.detach(), config.views)
                predictions.append(predicted)
            objective = loss(logits, config.objective, config.reduction)
            slopes = gradients(objective, [*learned.values()], keep_graph=keep_graph)
            with torch.set_grad_enabled(keep_graph):
                for (name, optimizer), slope in zip(optimizers.items(), slopes, strict=True):
                    values[name], states[name] = optimizer.step(learned[name], slope, states[name])
                updated = {name: values[name] for name in optimizers}
                values |= gate.accept(updated, start, _entropies(logits.detach()))
                values |= _moved(model, running, start, values, states, gate)
        return Point(values, states, tuple(predictions))

    point = Point(values, states)
    for steps, keep_graph in _stretches(config, x, differentiable, last, checkpointed):
        if keep_graph and checkpointed:
            point = _recomputing(descend, x, point, gate, steps)
        else:
            point = descend(x, point, gate, steps, keep_graph)
        if keep_graph and on_step is not None:
            _tell(on_step, point)
    values = point.values
    if not differentiable:
        values = {name: value.detach() for name, value in values.items()}
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
    gate: "_NonFiniteGate",
) -> Values:
    """Return the running statistics after a step; empty if they do not move."""
    if not running:
        return {}
    taken = max(state.step for state in states.values())
    moved = model.moved(unflatten(values[STATISTICS], running), taken)
    return {STATISTICS: gate.accept_shared(_joined(moved.values()), start[STATISTICS])}


def spread_to(on_step: OnStep | None, finite: Tensor | None) -> OnStep | None:
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


def _stretches(
    config: DentConfig, x: Tensor, differentiable: bool, last: int | None, checkpointed: bool
) -> Iterator[tuple[int, bool]]:
    """Yield stretches of the steps: their number, and whether to keep their graph."""
    steps = config.steps if len(x) else 0
    exact = steps if last is None else min(last, steps)
    exact = exact if differentiable else 0
    yield steps - exact, False
    length = math.ceil(math.sqrt(exact)) if checkpointed else exact
    while exact:
        length = min(length, exact)
        yield length, True
        exact -= length


def _recomputing(
    descend: Callable[[Tensor, Point, "_NonFiniteGate", int, bool], Point],
    x: Tensor,
    start: Point,
    gate: "_NonFiniteGate",
    steps: int,
) -> Point:
    """Take steps without keeping their graph; the backward pass repeats them with it.

    Memory holds one state instead of the graph of all these steps (see `recomputed`).
    """
    untouched_gate = copy.copy(gate)
    moving = [*start.states, *({STATISTICS} & start.values.keys())]

    def pack(point: Point) -> list[Tensor]:
        averages = [tensor for state in point.states.values() for tensor in state.averages]
        moved = [point.values[name] for name in moving]
        return [*moved, *averages, *point.predictions]

    def unpack(tensors: Sequence[Tensor], steps_taken: int) -> Point:
        remaining = iter(tensors)
        values = start.values | {name: next(remaining) for name in moving}
        return Point(
            values,
            {
                name: State(
                    state.step + steps_taken, tuple(next(remaining) for _ in state.averages)
                )
                for name, state in start.states.items()
            },
            tuple(remaining),
        )

    def run(inputs: Sequence[Tensor], keep_graph: bool) -> Sequence[Tensor]:
        watch = copy.copy(untouched_gate) if keep_graph else gate
        return pack(descend(inputs[0], unpack(inputs[1:], 0), watch, steps, keep_graph))

    start = start._replace(predictions=())
    return unpack(recomputed(run, [x, *pack(start)]), steps)


def _tell(on_step: OnStep, point: Point) -> None:
    for predicted in point.predictions:
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
        raise UnsupportedModelError(
            "The model's output does not depend differentiably on what is optimized: does its "
            "forward use torch.no_grad(), detach() or NumPy, or skip its normalization layers?"
        )
    return torch.autograd.grad(objective, of, create_graph=keep_graph, materialize_grads=True)


def flatten(trained: Mapping[str, Tensor]) -> Tensor:
    """Return all parameters as one vector, so that one update serves all layers.

    It has at least float32: in bfloat16, a step of 1e-3 on a scale near 1 would be rounded away.
    """
    return _joined(tensor.detach() for tensor in trained.values())


def _joined(tensors: Iterable[Tensor]) -> Tensor:
    first, *others = tensors
    dtype = torch.promote_types(torch.float32, first.dtype)
    for tensor in others:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return torch.cat([tensor.to(first.device, dtype).flatten() for tensor in (first, *others)])


def unflatten(flat: Tensor | None, trained: Mapping[str, Tensor]) -> Values:
    """Split a flat (..., D) into views by dotted name, each (..., *shape of the parameter)."""
    if flat is None:
        return {}
    # One split, not slices: the gradient of a slice is as large as the whole.
    pieces = flat.split([tensor.numel() for tensor in trained.values()], dim=-1)
    return {
        name: piece.reshape((*flat.shape[:-1], *tensor.shape))
        for (name, tensor), piece in zip(trained.items(), pieces, strict=True)
    }


class _NonFiniteGate:
    """Filter that reverts samples that turned non-finite, and records every step.

    A sample whose update or entropy is NaN or infinite returns to its start and stays there. If the
    batch shares parameters, the whole batch does. No method waits for a GPU. Nothing is modified in
    place, so a shallow copy is a snapshot.
    """

    def __init__(self, config: DentConfig, x: Tensor, smoothing: Tensor | None) -> None:
        self._sample_wise = config.granularity == "sample"
        self._shared = not self._sample_wise or config.objective == "information-maximization"
        self._kept = torch.ones(len(x), dtype=torch.bool, device=x.device)
        self._own_fault = ~self._kept
        self._all_finite = x.device.type == "cpu"
        self.entropies: tuple[Tensor, ...] = ()
        steps = config.steps if not len(x) else 0  # an empty batch takes no step
        self.smoothings = () if smoothing is None else (smoothing.detach(),) * (steps + 1)

    def accept(self, updated: Values, start: Values, entropies: Tensor) -> Values:
        """Return `updated`, with `start` for every sample that is reverted."""
        self.entropies = (*self.entropies, entropies)
        if self._finite_so_far(updated, entropies):
            self._follow(updated)
            return updated
        no_entropy = ~entropies.isfinite()
        no_update = torch.zeros_like(no_entropy)
        for value in updated.values():
            no_update = no_update | ~value.detach().isfinite().all(-1)
        explained = no_entropy.any() & self._shared
        self._own_fault = self._own_fault | (self._kept & (no_entropy | (no_update & ~explained)))
        alive = self._kept & ~no_entropy & ~no_update
        self._kept = alive if self._sample_wise else alive & alive.all()
        keep = self._kept.unsqueeze(-1) if self._sample_wise else self._kept.all()
        gated = {name: torch.where(keep, value, start[name]) for name, value in updated.items()}
        self._all_finite = False
        self._follow(gated)
        return gated

    def accept_shared(self, updated: Tensor, start: Tensor) -> Tensor:
        """Return a value that the batch shares, or `start` if it is non-finite or reverted."""
        keep = updated.detach().isfinite().all()
        if not self._sample_wise:
            keep = keep & self._kept.all()
        return torch.where(keep, updated, start)

    def _finite_so_far(self, updated: Values, entropies: Tensor) -> bool:
        """Return whether all values are finite; always False on a GPU, to avoid a wait."""
        return (
            self._all_finite
            and bool(entropies.isfinite().all())
            and all(bool(value.isfinite().all()) for value in updated.values())
        )

    def _follow(self, values: Values) -> None:
        if self.smoothings:
            after = values.get(SMOOTHING, self.smoothings[-1])
            self.smoothings = (*self.smoothings, after.detach())

    def gradient(self, gradient: Tensor) -> Tensor:
        """Return the gradient in x, set to 0 for reverted samples, which do not depend on x.

        Otherwise it could be NaN: backward through a reverted step multiplies 0 by infinity.
        """
        alive = self._kept.reshape(-1, *[1] * (gradient.dim() - 1))
        return torch.where(alive, gradient, 0)

    def status(self) -> Tensor:
        """Return each sample's `Status`, (N,) int64."""
        failed = torch.where(self._own_fault, Status.STEP_NON_FINITE, Status.REVERTED)
        return torch.where(self._kept, Status.ADAPTED, failed)
