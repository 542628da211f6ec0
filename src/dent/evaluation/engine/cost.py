"""Estimate the time of a run before it starts, from measurements on a few images."""

from collections import defaultdict
from collections.abc import Collection
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dent.attacks import Attack, Defense
from dent.attacks import answer as ask
from dent.attacks.adaptive import Rung, Unavailable
from dent.attacks.base import isolated_random_state
from dent.attacks.protocol import taking
from dent.attacks.querier import NoGradientError, View, derivatives_of
from dent.evaluation.probe.unit import certificate_passes, probe_passes
from dent.evaluation.records.plan import APART, Plan, Unit, before_decision, units
from dent.evaluation.records.spec import Settings
from dent.evaluation.subject import Prepared, Subject, prepare
from dent.evaluation.submission.fresh import Origin, reset
from dent.evaluation.submission.guard import Guard, put_back
from dent.evaluation.submission.submission import check_answer, clock
from dent.evaluation.submission.submitter import submissions_per_batch
from dent.storage.canonical import Record
from dent.support.devices import device_of

_LONG_ENOUGH = 0.02  # seconds of a forward pass
_FEW = 4
_BACKWARD = 2  # cost of a backward pass, in forward passes


class DefenseCost(Record):
    """The cost of one defense in a run."""

    answer_seconds: float
    """Seconds of one answer to a whole batch."""
    gradient_seconds: float | None
    """Seconds of one answer with its gradient to the input; null if there is no gradient."""
    relative: float
    """Time of one answer relative to one static forward of the same batch."""
    unrolled_seconds: float | None
    """Seconds of one answer with its exact gradient, through the whole adaptation. Null if no
    attack uses it, or if the defense does not offer it."""
    answers: int
    """Maximum number of batches submitted without a gradient."""
    gradients: int
    """Maximum number of gradients through the final forward only."""
    unrolled: int
    """Maximum number of exact gradients. They are fewer or cheaper if the defense offers none."""
    static_passes: int
    """Maximum cost of passes without adaptation, in static forwards; three if with a gradient."""
    seconds: float
    """Seconds of all units, by the slower of two measurements."""
    least: float
    """Seconds by the faster of them."""


class CostEstimate(Record):
    """The maximum cost of a run. Attacks stop early if all members are fooled."""

    seconds: float
    """Seconds by the slower of two measurements of each defense."""
    least: float
    """Seconds by the faster of them."""
    static_seconds: float
    """Seconds of one static forward of a whole batch."""
    defenses: dict[str, DefenseCost]
    units: int
    tensor_bytes: int
    """Bytes of adversarial images in the run folder."""
    first_decision: float | None
    """Seconds until a run of the whole suite can first stop, by the slower measurement: the static
    model is attacked, and the images of the first attack on it are submitted to the defenses. Null
    for other runs."""
    measured_on: int
    """Number of images that were timed. The times are scaled from it to the size of a batch."""


def estimate(
    subject: Subject, settings: Settings | None = None, *, only: Collection[str] | None = None
) -> CostEstimate:
    """Time a static forward and each defense on a few images, and multiply by the planned passes.

    Takes a few seconds. It overestimates the time on a GPU, because a few images do not keep it
    busy.

    Args:
        subject: The objects to evaluate.
        settings: How the samples form batches, and what else runs.
        only: Keys of the units that are left to run; None for all.

    Raises:
        ConfigError, InputError: For the reasons in `evaluate`.
    """
    settings = settings or Settings()
    prepared = prepare(subject, settings)
    subject, spec, plan = prepared.subject, prepared.spec, prepared.plan
    sample = _sample(subject, plan)
    scale = sample.scale
    waiting = [unit for unit in units(spec, plan) if only is None or unit.key in only]
    planned: dict[str, list[Unit]] = defaultdict(list)
    for unit in waiting:
        planned[unit.defense].append(unit)
    early: dict[str, list[Unit]] = defaultdict(list)
    for unit in before_decision(spec, plan):
        if only is None or unit.key in only:
            early[unit.defense].append(unit)
    guard = Guard(subject.model, spec.model.weights)
    costs, first_decision = {}, 0.0
    for name, defense in subject.lineup(settings).items():
        costs[name], slow = _cost(prepared, name, defense, planned[name], sample, guard)
        first_decision += scale * _passes(prepared, early[name]).seconds(slow)
    kept_images = sum(
        plan.attacked if unit.batch is None else plan.batches[unit.batch].attacked
        for unit in waiting
        if unit.kind == "attack" and settings.tensors == "keep"
    )
    return CostEstimate(
        seconds=sum(cost.seconds for cost in costs.values()),
        least=sum(cost.least for cost in costs.values()),
        static_seconds=sample.static * scale,
        defenses=costs,
        units=sum(map(len, planned.values())),
        tensor_bytes=kept_images * sample.x[0].numel() * 4,
        first_decision=first_decision if spec.schedule == "by-attack" else None,
        measured_on=len(sample.x),
    )


def estimate_attack(prepared: Prepared, defense: str, attack: Attack) -> DefenseCost:
    """Return the maximum cost of one attack on one defense, including the submission of its images.

    Args:
        prepared: The evaluation. Its own attacks do not matter.
        defense: Name of the defense.
        attack: The attack.

    Raises:
        ConfigError: The passes of the attack cannot be counted.
    """
    spec, plan = prepared.spec, prepared.plan
    subject = replace(prepared.subject, attacks=[attack]).sized(spec.settings)
    prepared = Prepared(subject, spec, plan)
    (attack,) = subject.attacks
    planned = [Unit("attack", defense, attack.name, batch.index) for batch in plan.batches]
    guard = Guard(subject.model, spec.model.weights)
    target = subject.lineup(spec.settings)[defense]
    return _cost(prepared, defense, target, planned, _sample(subject, plan), guard)[0]


def _cost(
    prepared: Prepared,
    name: str,
    defense: Defense,
    planned: list[Unit],
    sample: "_Sample",
    guard: Guard,
) -> tuple[DefenseCost, "_Timing"]:
    """Return the cost of the units of a defense, and the slower of two measurements."""
    model, x, y, scale = prepared.subject.model, sample.x, sample.y, sample.scale
    passes, classes = _passes(prepared, planned), len(prepared.spec.dataset.classes)
    with put_back(defense):
        timings = []
        for _ in range(2):
            instance = Origin(defense, model).new()
            defense_copy = instance.defense
            timed = _time(partial(ask, defense_copy), defense_copy, x, y, classes)
            exact = _exact(defense_copy, x, y, classes) if passes.unrolled else None
            timings.append(_Timing(*timed, exact, _static(model, x)))
            guard.check_copy(name, instance, thorough=True)
        guard.check(name)
    fast, slow = sorted(timings, key=passes.seconds)
    answer, gradient, exact, _ = slow
    cost = DefenseCost(
        answer_seconds=answer * scale,
        gradient_seconds=None if gradient is None else gradient * scale,
        relative=answer / sample.static,
        unrolled_seconds=None if exact is None else exact * scale,
        answers=passes.answers,
        gradients=passes.gradients,
        unrolled=passes.unrolled,
        static_passes=passes.static,
        seconds=scale * passes.seconds(slow),
        least=scale * passes.seconds(fast),
    )
    return cost, slow


class _Sample(NamedTuple):
    """The images to time, their labels, and the seconds of a static forward of these images."""

    x: Tensor
    y: Tensor
    static: float
    scale: float
    """Size of a batch divided by the number of these images."""


def _sample(subject: Subject, plan: Plan) -> _Sample:
    """Return enough images for a forward pass that is long enough to time."""
    size = max(batch.size for batch in plan.batches)
    positions = plan.batches[0].positions
    count = min(_FEW, size)
    device = device_of(subject.model)
    while True:
        x, y = (tensor.to(device) for tensor in subject.dataset.batch(positions[:count]))
        with torch.no_grad(), taking(subject.model, x):
            subject.model(x.clone())
        seconds = _static(subject.model, x)
        if seconds >= _LONG_ENOUGH or count >= min(size, len(positions)):
            return _Sample(x, y, seconds, size / len(x))
        count = min(2 * count, size, len(positions))


def _static(model: nn.Module, x: Tensor) -> float:
    """Return the seconds of a static forward."""
    x = x.clone()
    with torch.no_grad():
        start = clock(x.device)
        model(x)
        return max(clock(x.device) - start, 1e-9)


def _exact(defense: Defense, x: Tensor, y: Tensor, classes: int) -> float | None:
    """Return the seconds of an answer with its exact gradient; None if it is not available."""
    try:
        return _time(Rung("unrolled").view(defense), defense, x, y, classes)[1]
    except Unavailable:
        return None


def _time(
    view: View, defense: Defense, x: Tensor, y: Tensor, classes: int
) -> tuple[float, float | None]:
    """Return the seconds of an answer without and with its gradient.

    The second is None if there is no gradient. The call with a gradient runs first and warms up.

    Raises:
        InputError: The answer is not one row of logits of all classes per image.
    """
    with isolated_random_state(0, x.device):
        reset(defense)
        leaf = x.clone().requires_grad_()
        start = clock(x.device)
        with torch.enable_grad():
            logits = check_answer(defense, view(leaf), len(x), classes)
            gradient = None
            if logits.requires_grad:
                loss = F.cross_entropy(logits.float(), y, reduction="sum")
                with suppress(NoGradientError), derivatives_of(defense):
                    torch.autograd.grad(loss, leaf, allow_unused=True)
                    gradient = clock(x.device) - start
        with torch.no_grad():
            start = clock(x.device)
            view(x)
            answer = max(clock(x.device) - start, 1e-9)
        reset(defense)
    return answer, gradient


class _Timing(NamedTuple):
    """The seconds of one answer, of one with each kind of gradient, and of a static forward."""

    answer: float
    gradient: float | None
    exact: float | None
    static: float


class _Passes(NamedTuple):
    """The number of passes through a defense. A gradient includes its forward pass."""

    answers: int
    gradients: int
    unrolled: int
    static: int
    """Cost of passes without adaptation, in static forwards."""

    def seconds(self, timing: _Timing) -> float:
        """Return the seconds of all passes."""
        gradient = timing.answer if timing.gradient is None else timing.gradient
        return (
            self.answers * timing.answer
            + self.gradients * gradient
            + self.unrolled * (gradient if timing.exact is None else timing.exact)
            + self.static * timing.static
        )


def _passes(prepared: Prepared, planned: list[Unit]) -> _Passes:
    """Return the maximum number of passes of some units of one defense, by their kind."""
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
