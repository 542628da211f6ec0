"""What a run will cost, measured on a few images before it starts."""

from collections import defaultdict
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dent.attacks import Defense
from dent.attacks import answer as ask
from dent.attacks.adaptive import Rung, Unavailable
from dent.attacks.base import isolated_random_state
from dent.attacks.querier import View
from dent.errors import InputError
from dent.evaluation.probe.unit import certificate_passes, probe_passes
from dent.evaluation.records.plan import APART, Plan, Unit, before_decision, units
from dent.evaluation.records.spec import Settings
from dent.evaluation.subject import Prepared, Subject, prepare
from dent.evaluation.submission.fresh import Origin
from dent.evaluation.submission.guard import Guard, put_back
from dent.evaluation.submission.submission import clock, reset
from dent.evaluation.submission.submitter import submissions_per_batch
from dent.storage.canonical import Record
from dent.support.devices import device_of

_LONG_ENOUGH = 0.02
_FEW = 4
_BACKWARD = 2  # forwards, in what a backward costs


class DefenseCost(Record):
    """What one defense costs in a run."""

    answer_seconds: float
    """One answer to a whole batch."""
    gradient_seconds: float | None
    """One answer and its gradient to the input; null where there is none."""
    relative: float
    """Time of an answer relative to one static forward of the same batch."""
    unrolled_seconds: float | None
    """One answer and its exact gradient, through all of the adaptation; null where no attack takes
    it, or the defense does not offer it."""
    answers: int
    """Batches submitted without a gradient, at most."""
    gradients: int
    """Gradients through the final forward taken, at most."""
    unrolled: int
    """Exact gradients taken, at most; where the defense does not offer them, fewer or cheaper."""
    static_passes: int
    """Passes for which nothing adapts, at most, as static forwards: with a gradient it is three."""
    seconds: float
    """Seconds by the slower of two measurements."""
    least: float
    """Seconds by the faster of them."""


class CostEstimate(Record):
    """What a run costs at most: attacks stop early where all members are fooled."""

    seconds: float
    """Seconds by the slower of two measurements of each defense."""
    least: float
    """Seconds by the faster of them."""
    static_seconds: float
    """One static forward of a whole batch."""
    defenses: dict[str, DefenseCost]
    units: int
    tensor_bytes: int
    """Bytes of adversarial images in the run folder."""
    first_decision: float | None
    """Seconds until a run of the whole suite can first stop, by the slower measurement: the static
    model is attacked then, and what broke it is submitted to the defenses. Null of other runs."""
    measured_on: int
    """Images that were timed, and the times scaled to a batch by their number."""


def estimate(subject: Subject, settings: Settings | None = None) -> CostEstimate:
    """Time a static forward and each defense on a few images, and multiply by what is planned.

    Takes a few seconds. It overestimates on a GPU, which a few images do not keep busy.

    Args:
        subject: The objects to evaluate.
        settings: How.

    Raises:
        ConfigError, InputError: As `evaluate` does.
    """
    settings = settings or Settings()
    prepared = prepare(subject, settings)
    subject, spec, plan = prepared.subject, prepared.spec, prepared.plan
    size = max(batch.size for batch in plan.batches)
    x, y, static = _sample(subject, plan, size)
    scale = size / len(x)
    planned: dict[str, list[Unit]] = defaultdict(list)
    for unit in units(spec, plan):
        planned[unit.defense].append(unit)
    early: dict[str, list[Unit]] = defaultdict(list)
    for unit in before_decision(spec, plan):
        early[unit.defense].append(unit)
    guard = Guard(subject.model, spec.model.weights)
    costs, first_decision = {}, 0.0
    for name, defense in subject.lineup(settings).items():
        passes = _passes(prepared, planned[name])
        with put_back(defense):
            timings = []
            for _ in range(2):
                instance = Origin(defense, subject.model).new()
                defense_copy = instance.defense
                timed = _time(partial(ask, defense_copy), defense_copy, x, y)
                exact = _exact(defense_copy, x, y) if passes.unrolled else None
                timings.append(_Timing(*timed, exact, _static(subject.model, x)))
                guard.check_copy(name, instance, thorough=True)
            guard.check(name)
        fast, slow = sorted(timings, key=passes.seconds)
        first_decision += scale * _passes(prepared, early[name]).seconds(slow)
        answer, gradient, exact, _ = slow
        costs[name] = DefenseCost(
            answer_seconds=answer * scale,
            gradient_seconds=None if gradient is None else gradient * scale,
            relative=answer / static,
            unrolled_seconds=None if exact is None else exact * scale,
            answers=passes.answers,
            gradients=passes.gradients,
            unrolled=passes.unrolled,
            static_passes=passes.static,
            seconds=scale * passes.seconds(slow),
            least=scale * passes.seconds(fast),
        )
    kept_images = sum(
        plan.attacked if unit.batch is None else plan.batches[unit.batch].attacked
        for unit in units(spec, plan)
        if unit.kind == "attack" and settings.tensors == "keep"
    )
    return CostEstimate(
        seconds=sum(cost.seconds for cost in costs.values()),
        least=sum(cost.least for cost in costs.values()),
        static_seconds=static * scale,
        defenses=costs,
        units=sum(map(len, planned.values())),
        tensor_bytes=kept_images * x[0].numel() * 4,
        first_decision=first_decision if spec.schedule == "by-attack" else None,
        measured_on=len(x),
    )


def _sample(subject: Subject, plan: Plan, size: int) -> tuple[Tensor, Tensor, float]:
    """Enough images for a forward pass long enough to time, and the seconds it took."""
    positions = plan.batches[0].positions
    count = min(_FEW, size)
    device = device_of(subject.model)
    while True:
        x, y = (tensor.to(device) for tensor in subject.dataset.batch(positions[:count]))
        with torch.no_grad():
            subject.model(x)
        seconds = _static(subject.model, x)
        if seconds >= _LONG_ENOUGH or count >= min(size, len(positions)):
            return x, y, seconds
        count = min(2 * count, size, len(positions))


def _static(model: nn.Module, x: Tensor) -> float:
    """Seconds of a static forward."""
    with torch.no_grad():
        start = clock(x.device)
        model(x)
        return max(clock(x.device) - start, 1e-9)


def _exact(defense: Defense, x: Tensor, y: Tensor) -> float | None:
    """Seconds of an answer with its exact gradient; None where the defense does not offer it."""
    try:
        return _time(Rung("unrolled").view(defense), defense, x, y)[1]
    except Unavailable:
        return None


def _time(view: View, defense: Defense, x: Tensor, y: Tensor) -> tuple[float, float | None]:
    """Seconds of an answer, and of an answer with its gradient; the first call warms up."""
    with isolated_random_state(0, x.device):
        reset(defense)
        leaf = x.clone().requires_grad_()
        start = clock(x.device)
        with torch.enable_grad():
            logits: object = view(leaf)
            if not isinstance(logits, Tensor) or logits.ndim != 2:
                raise InputError(f"{type(defense).__name__} must return logits (N, classes)")
            gradient = None
            if logits.requires_grad:
                loss = F.cross_entropy(logits.float(), y, reduction="sum")
                torch.autograd.grad(loss, leaf, allow_unused=True)
                gradient = clock(x.device) - start
        with torch.no_grad():
            start = clock(x.device)
            view(x)
            answer = max(clock(x.device) - start, 1e-9)
        reset(defense)
    return answer, gradient


class _Timing(NamedTuple):
    """Seconds of one answer, with its gradients if it has them, and of a static forward."""

    answer: float
    gradient: float | None
    exact: float | None
    static: float


class _Passes(NamedTuple):
    """The passes through a defense; a gradient is counted together with its forward pass."""

    answers: int
    gradients: int
    unrolled: int
    static: int
    """Static forwards, for what asks without adapting."""

    def seconds(self, timing: _Timing) -> float:
        """The seconds of all passes."""
        gradient = timing.answer if timing.gradient is None else timing.gradient
        return (
            self.answers * timing.answer
            + self.gradients * gradient
            + self.unrolled * (gradient if timing.exact is None else timing.exact)
            + self.static * timing.static
        )


def _passes(prepared: Prepared, planned: list[Unit]) -> _Passes:
    subject, spec, plan = prepared.subject, prepared.spec, prepared.plan
    answers, gradients, unrolled, static = 0, 0, 0, 0
    classes, norm = len(spec.dataset.classes), subject.threat.norm
    for unit in planned:
        if unit.kind in APART:
            probe = (probe_passes if unit.kind == "probe" else certificate_passes)(prepared)
            answers += probe.forwards - probe.backwards
            gradients += probe.backwards
            continue
        batches = len(plan.batches) if unit.batch is None else 1
        answers += submissions_per_batch(unit.kind) * batches
        if unit.kind == "attack":
            size = plan.attacked if unit.batch is None else plan.batches[unit.batch].attacked
            attack = subject.attack(unit.attack or "")
            passes, cheap = attack.passes(classes, norm, size), attack.unadapted(classes, norm)
            backwards = passes.backwards - cheap.backwards
            answers += max(passes.forwards - cheap.forwards - backwards, 0)
            exact = attack.through_adaptation(classes, norm)
            gradients += backwards - exact
            unrolled += exact
            static += cheap.forwards + _BACKWARD * cheap.backwards
    return _Passes(answers, gradients, unrolled, static)
